//! Snowflake ids: 64-bit numbers that are unique and grow, made in this process without asking anyone.

mod clock;
mod options;
mod reserve;

use std::{
    fmt,
    num::NonZeroU32,
    sync::atomic::{AtomicU64, Ordering},
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::task::AbortHandle;

pub use options::SnowflakeOptions;

use crate::{
    Error, HeldId, InstanceIdAllocator, Result,
    ids::Numbering,
    mutex::lock,
    timer::{self, Driver},
};
use clock::{Clock, Standstill, pause};
use reserve::{Patience, Reserve, keep_reserving};

/// How often the end of a millisecond is looked for before a timer is set.
const SPINS: usize = 100;

/// Makes numbers that no other holder of an id of the same service makes, each larger than the one before.
///
/// # Contract
/// - It is bound to the id that was held when it started. It refuses from the moment at which that id is lost
///   or released, also if its allocator acquires another. There is one for each id at a time; one that
///   follows it makes larger numbers. Share it between tasks, for instance in an [`Arc`].
/// - The store keeps, beside the id, a time up to which numbers may have been made. It is always ahead of the
///   numbers, and the next holder of the id starts after it. So not even a process that was frozen between
///   two instructions makes a number twice, and numbers of one worker grow from holder to holder. It is one
///   TTL ahead, and is written about every third of a TTL while numbers are made.
/// - When the clock goes back, numbers go on growing: small steps are waited for, larger ones are
///   [`Error::ClockWentBack`].
/// - Time goes on being reserved, whatever the store answered before and whatever became of the runtime it was started
///   on, until the id is lost. A caller waits for that at most one TTL, and gets the store's last error then.
/// - Making a number takes no lock.
///
/// Dropping it ends its task; the id stays held by its allocator. It works on any executor.
///
/// # Cancel safety
/// Every future here may be dropped at any point.
///
/// # Example
/// ```
/// use coord_api::{InstanceIdAllocator, Provider, Snowflake};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let client = coord_memory::Store::new().client();
/// let allocator = client.instance_id_allocator("im-gateway", 1024)?;
/// allocator.acquire_id().await?;
/// let snowflake = Snowflake::start(&*allocator).await?;
/// let (one, next) = (snowflake.next_id().await?, snowflake.next_id().await?);
/// assert!(one < next);
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Snowflake {
    maker: Arc<Maker>,
    /// The task that reserves time, and what drives it.
    reserving: Mutex<(AbortHandle, Option<Driver>)>,
    numbering: Numbering,
}

/// All that numbers are made of.
struct Maker {
    held: HeldId,
    options: SnowflakeOptions,
    clock: Clock,
    /// In milliseconds since 1970.
    epoch: u64,
    /// The time and sequence of the number that was made last.
    last: AtomicU64,
    /// Reserved time, in milliseconds since the epoch.
    reserve: Reserve,
}

impl fmt::Debug for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Maker")
            .field("held", &self.held)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

/// Why there is no number now.
enum Busy {
    /// For so many milliseconds.
    Wait(u64),
    /// More time has to be reserved.
    Reserve,
}

impl Snowflake {
    /// Starts making numbers with the id that `allocator` holds, with the default options.
    ///
    /// It waits if the holder before reserved more time than has passed.
    ///
    /// # Errors
    /// As [`start_with`](Self::start_with).
    pub async fn start<A: InstanceIdAllocator + ?Sized>(allocator: &A) -> Result<Self> {
        Self::start_with(allocator, SnowflakeOptions::default()).await
    }

    /// Starts making numbers with the id that `allocator` holds.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] for:
    /// - options that can not be used;
    /// - `bits`, if an id that the allocator may get has more bits than the worker;
    /// - `allocator`, if it holds no id or another `Snowflake` uses that.
    /// - [`Error::ClockWentBack`] with a mark if the clock is far behind that of an earlier holder, or stands still.
    /// - [`Error::Lost`]; others as the store answers.
    pub async fn start_with<A: InstanceIdAllocator + ?Sized>(
        allocator: &A,
        options: SnowflakeOptions,
    ) -> Result<Self> {
        let held =
            allocator.held().ok_or_else(|| Error::invalid("allocator", "holds no id: acquire one first"))?;
        let clock = options.chosen_clock();
        let epoch = options.check(held.bound(), clock.now())?;
        let numbering = held.make_numbers()?;
        let start = numbering.after().unwrap_or(0).max(epoch);
        let ttl = millis(held.ttl());
        let ahead_by = |by| Error::ClockWentBack { by: Duration::from_millis(by), mark: Some(held.mark()) };
        let ahead = start.saturating_sub(clock.now());
        let fits = (start - epoch).checked_shr(options.time_bits).is_none_or(|rest| rest == 0);
        if ahead > ttl.saturating_add(millis(options.clock_step)) || !fits {
            return Err(ahead_by(ahead));
        }
        let mut standstill = Standstill::default();
        while let ahead @ 1.. = start.saturating_sub(clock.now()) {
            held.check()?;
            if standstill.is_seen(clock.now()) {
                return Err(ahead_by(ahead));
            }
            timer::sleep(pause(ahead)).await;
        }
        let maker = Arc::new(Maker {
            // Millisecond before the first of that time, which no number of an earlier holder reached.
            last: AtomicU64::new(((start - epoch) << options.sequence_bits).saturating_sub(1)),
            reserve: Reserve::of(ttl),
            held,
            options,
            clock,
            epoch,
        });
        maker.reserve_now().await?;
        let reserving = Mutex::new(begin_reserving(&maker));
        Ok(Self { maker, reserving, numbering })
    }

    /// The id that numbers are made with.
    pub fn worker(&self) -> NonZeroU32 {
        self.maker.held.id()
    }

    /// Returns the next number without waiting. It is `None` if the numbers of this millisecond are used up,
    /// if the clock has gone back a little, or if no time is reserved because the store has not answered.
    ///
    /// # Errors
    /// [`Error::Lost`] once the id is lost or released; [`Error::ClockWentBack`].
    pub fn try_next_id(&self) -> Result<Option<u64>> {
        Ok(self.make()?.ok())
    }

    /// The next number; waits for it.
    ///
    /// # Errors
    /// - [`Error::Lost`] once the id is lost or released.
    /// - [`Error::ClockWentBack`], also if the clock stands still while timers go on.
    /// - As the store answers, if it lets no time be reserved for a whole TTL. The next call may succeed.
    pub async fn next_id(&self) -> Result<u64> {
        let (mut patience, mut standstill) = (Patience::default(), Standstill::default());
        let mut spins = 0..SPINS;
        loop {
            match self.make()? {
                Ok(number) => return Ok(number),
                // Timers are coarser than what is left of a millisecond.
                Err(Busy::Wait(1)) if spins.next().is_some() => tokio::task::yield_now().await,
                Err(Busy::Wait(ahead)) => {
                    if standstill.is_seen(self.maker.clock.now()) {
                        return Err(Error::ClockWentBack { by: Duration::from_millis(ahead), mark: None });
                    }
                    timer::sleep(pause(ahead)).await;
                }
                Err(Busy::Reserve) => self.maker.more_time(&mut patience).await?,
            }
        }
    }

    fn make(&self) -> Result<Result<u64, Busy>> {
        let made = self.maker.make();
        if self.maker.reserve.is_asked() {
            self.go_on_reserving();
        }
        made
    }

    /// Begins the task again that reserves time, if it ended with the runtime that it was on.
    fn go_on_reserving(&self) {
        // The task that has it looks for all.
        let Ok(mut reserving) = self.reserving.try_lock() else { return };
        if reserving.0.is_finished() && !self.maker.held.is_lost() {
            *reserving = begin_reserving(&self.maker);
        }
    }

    /// Ends, and stores up to when numbers were really made: the next holder of the id need not wait. Worth it before
    /// an id is released that the same [identity](crate::IdOptions::identity) soon acquires again.
    ///
    /// # Errors
    /// [`Error::Lost`] if the id was lost before; others as the store answers.
    pub async fn finish(self) -> Result<()> {
        // A reservation that is under way may come after this: then the next holder waits all the same.
        self.end_reserving();
        self.maker.held.settle(self.maker.made_until()).await
    }

    fn end_reserving(&self) {
        lock(&self.reserving).0.abort();
    }
}

impl Drop for Snowflake {
    fn drop(&mut self) {
        self.end_reserving();
        self.numbering.made(self.maker.made_until());
    }
}

fn begin_reserving(maker: &Arc<Maker>) -> (AbortHandle, Option<Driver>) {
    let (runtime, driver) = timer::driven();
    (runtime.spawn(keep_reserving(maker.clone())).abort_handle(), driver)
}

/// In milliseconds; a time that does not fit is longer than anything.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Maker {
    /// The time of the number that was made last, in milliseconds since the epoch.
    fn last_time(&self) -> u64 {
        self.last.load(Ordering::SeqCst) >> self.options.sequence_bits
    }

    /// Before which time all numbers are that were made, in milliseconds since 1970.
    fn made_until(&self) -> u64 {
        self.epoch.saturating_add(self.last_time()).saturating_add(1)
    }

    /// By the clock, in milliseconds since the epoch.
    fn now(&self) -> u64 {
        self.clock.now().saturating_sub(self.epoch)
    }

    fn make(&self) -> Result<Result<u64, Busy>> {
        let Self { options, .. } = self;
        loop {
            self.held.check()?;
            let now = self.now();
            if now >> options.time_bits != 0 {
                return Err(Error::invalid("epoch", "is so long ago that the bits of the time are over"));
            }
            let last = self.last.load(Ordering::SeqCst);
            let next = (now << options.sequence_bits).max(last.wrapping_add(1));
            let time = next >> options.sequence_bits;
            if time > now {
                let ahead = time - now;
                let step = Duration::from_millis(ahead - 1);
                return if step > options.clock_step {
                    Err(Error::ClockWentBack { by: step, mark: None })
                } else {
                    Ok(Err(Busy::Wait(ahead)))
                };
            }
            if !self.reserve.covers(time) {
                return Ok(Err(Busy::Reserve));
            }
            if self.last.compare_exchange(last, next, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                let sequence = next & ((1 << options.sequence_bits) - 1);
                let worker = u64::from(self.held.id().get()) << options.sequence_bits;
                return Ok(Ok(time << (options.worker_bits + options.sequence_bits) | worker | sequence));
            }
        }
    }
}

#[cfg(test)]
mod tests;
