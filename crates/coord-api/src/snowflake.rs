//! Snowflake ids: 64-bit numbers that are unique and grow, made in this process without asking anyone.

mod options;

use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
};

pub use options::SnowflakeOptions;

use crate::{Error, HeldId, InstanceIdAllocator, Result, ids::Numbering};

/// How often the end of a millisecond is looked for before a timer is set.
const SPINS: usize = 100;

/// Makes numbers that no other holder of an id of the same service makes, each larger than the one before.
///
/// # Contract
/// - It is bound to the id that was held when it started, and refuses from the moment at which that is lost or
///   released, also if its allocator acquires another. There is one for each id at a time; one that follows it makes larger
///   numbers. Share it between tasks, for instance in an [`Arc`].
/// - The store keeps, beside the id, a time up to which numbers may have been made. It is always ahead of the numbers,
///   and the next holder of the id starts after it: so not even a process that was frozen between two instructions
///   makes a number twice, and numbers of one worker grow from holder to holder. That time is one TTL ahead, and is
///   written about every third of a TTL while numbers are made.
/// - When the clock goes back, numbers go on growing: small steps are waited for, larger ones are
///   [`Error::ClockWentBack`].
/// - Making a number takes no lock.
///
/// Dropping it ends its task; the id stays held by its allocator.
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
    reserving: AbortHandle,
    numbering: Numbering,
}

/// All that numbers are made of.
struct Maker {
    held: HeldId,
    options: SnowflakeOptions,
    /// In milliseconds since 1970.
    epoch: u64,
    /// The time and sequence of the number that was made last.
    last: AtomicU64,
    /// Before which time numbers may be made: what the store has. In milliseconds since the epoch.
    reserved: AtomicU64,
    /// From when on more time should be reserved.
    low: AtomicU64,
    is_low: Notify,
    /// Counts how often time was reserved.
    news: watch::Sender<u64>,
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
    /// Needs a tokio runtime, on which it keeps reserving time. It waits if the holder before reserved more time than
    /// has passed.
    ///
    /// # Errors
    /// As [`start_with`](Self::start_with).
    pub async fn start<A: InstanceIdAllocator + ?Sized>(allocator: &A) -> Result<Self> {
        Self::start_with(allocator, SnowflakeOptions::default()).await
    }

    /// Starts making numbers with the id that `allocator` holds.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for options that can not be used, or `allocator` if it holds no id or another
    /// `Snowflake` uses that; [`Error::ClockWentBack`] if the clock is far behind that of the holder before; [`Error::Lost`]; others as the
    /// store answers.
    pub async fn start_with<A: InstanceIdAllocator + ?Sized>(
        allocator: &A,
        options: SnowflakeOptions,
    ) -> Result<Self> {
        let held =
            allocator.held().ok_or_else(|| Error::invalid("allocator", "holds no id: acquire one first"))?;
        let epoch = options.check(held.id())?;
        let numbering = held.make_numbers()?;
        let start = numbering.after().unwrap_or(0).max(epoch);
        let ttl = held.ttl().as_millis() as u64;
        let ahead = start.saturating_sub(options.now());
        if ahead > ttl + options.clock_step.as_millis() as u64 {
            return Err(Error::ClockWentBack { by: Duration::from_millis(ahead) });
        }
        while let ahead @ 1.. = start.saturating_sub(options.now()) {
            held.check()?;
            tokio::time::sleep(Duration::from_millis(ahead)).await;
        }
        let maker = Arc::new(Maker {
            // One before the first of that time, which no number of an earlier holder reached.
            last: AtomicU64::new(((start - epoch) << options.sequence_bits).saturating_sub(1)),
            held,
            options,
            epoch,
            reserved: AtomicU64::new(0),
            low: AtomicU64::new(0),
            is_low: Notify::new(),
            news: watch::Sender::new(0),
        });
        maker.reserve(ttl).await?;
        let reserving = tokio::spawn(keep_reserving(maker.clone(), ttl)).abort_handle();
        Ok(Self { maker, reserving, numbering })
    }

    /// The id that numbers are made with.
    pub fn worker(&self) -> NonZeroU32 {
        self.maker.held.id()
    }

    /// The next number if there is one now, without waiting: `None` when the numbers of this millisecond are used up,
    /// the clock has gone back a little, or the store has not answered for so long that no time is reserved.
    ///
    /// # Errors
    /// [`Error::Lost`] once the id is lost or released; [`Error::ClockWentBack`].
    pub fn try_next_id(&self) -> Result<Option<u64>> {
        Ok(self.maker.make()?.ok())
    }

    /// The next number; waits for it.
    ///
    /// # Errors
    /// [`Error::Lost`] once the id is lost or released; [`Error::ClockWentBack`].
    pub async fn next_id(&self) -> Result<u64> {
        let mut news = None;
        let mut spins = 0..SPINS;
        loop {
            match self.maker.make()? {
                Ok(number) => return Ok(number),
                // Timers are coarser than what is left of a millisecond.
                Err(Busy::Wait(1)) if spins.next().is_some() => tokio::task::yield_now().await,
                Err(Busy::Wait(ahead)) => tokio::time::sleep(Duration::from_millis(ahead)).await,
                // Subscribed before looking again, so that no news falls between.
                Err(Busy::Reserve) => match &mut news {
                    None => news = Some(self.maker.news.subscribe()),
                    Some(news) => tokio::select! {
                        // The sender is a part of the maker, so this can not fail.
                        _ = news.changed() => {}
                        reason = self.maker.held.lost() => return Err(Error::Lost { reason }),
                    },
                },
            }
        }
    }

    /// Ends, and stores up to when numbers were really made: the next holder of the id need not wait. Worth it before
    /// an id is released that the same [identity](crate::IdOptions::identity) soon acquires again.
    ///
    /// # Errors
    /// [`Error::Lost`] if the id was lost before; others as the store answers.
    pub async fn finish(self) -> Result<()> {
        // A reservation that is under way may come after this: then the next holder waits all the same.
        self.reserving.abort();
        self.maker.held.stamp(self.maker.made_until()).await
    }
}

impl Drop for Snowflake {
    fn drop(&mut self) {
        self.reserving.abort();
        self.numbering.made(self.maker.made_until());
    }
}

impl Maker {
    /// Before which time all numbers are that were made, in milliseconds since 1970.
    fn made_until(&self) -> u64 {
        self.epoch + (self.last.load(Ordering::SeqCst) >> self.options.sequence_bits) + 1
    }

    fn make(&self) -> Result<Result<u64, Busy>> {
        let Self { options, .. } = self;
        loop {
            self.held.check()?;
            let now = options.now().saturating_sub(self.epoch);
            let last = self.last.load(Ordering::SeqCst);
            let next = (now << options.sequence_bits).max(last + 1);
            let time = next >> options.sequence_bits;
            if time > now {
                let ahead = time - now;
                let step = Duration::from_millis(ahead - 1);
                return if step > options.clock_step {
                    Err(Error::ClockWentBack { by: step })
                } else {
                    Ok(Err(Busy::Wait(ahead)))
                };
            }
            if time >= self.low.load(Ordering::SeqCst) {
                self.is_low.notify_one();
                if time >= self.reserved.load(Ordering::SeqCst) {
                    return Ok(Err(Busy::Reserve));
                }
            }
            if time >> options.time_bits != 0 {
                return Err(Error::invalid("epoch", "is so long ago that the bits of the time are over"));
            }
            if self.last.compare_exchange(last, next, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
                let sequence = next & ((1 << options.sequence_bits) - 1);
                let worker = u64::from(self.held.id().get()) << options.sequence_bits;
                return Ok(Ok(time << (options.worker_bits + options.sequence_bits) | worker | sequence));
            }
        }
    }

    /// Reserves `ttl` milliseconds from now on.
    async fn reserve(&self, ttl: u64) -> Result<()> {
        let made = self.last.load(Ordering::SeqCst) >> self.options.sequence_bits;
        let now = self.options.now().saturating_sub(self.epoch).max(made);
        let until = now + ttl;
        self.held.stamp(self.epoch + until).await?;
        self.reserved.store(until, Ordering::SeqCst);
        self.low.store(now + ttl / 3, Ordering::SeqCst);
        self.news.send_modify(|count| *count += 1);
        Ok(())
    }
}

/// Reserves more time as often as it is needed, until the id is lost or the generator is dropped.
async fn keep_reserving(maker: Arc<Maker>, ttl: u64) {
    loop {
        maker.is_low.notified().await;
        while let Err(error) = maker.reserve(ttl).await {
            if !error.is_retryable() {
                tracing::warn!(id = %maker.held.id(), %error, "no more numbers can be made with this id");
                return;
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(100..400))).await;
        }
    }
}

#[cfg(test)]
mod tests;
