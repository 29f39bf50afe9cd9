//! The time that numbers may use: how far it is reserved in the store, and who reserves more.
//!
//! A task does, before it is used up. If it can not, since the store refuses or nobody drives the task, a
//! caller that needs a number does. There is one such caller at a time, or another if it does not come to an
//! end.

use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::Maker;
use crate::{Error, Result, backoff::Backoff, mutex::lock, timer};

/// Between two tries, at first and at most.
const SHORTEST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(2);

/// After how long another one tries as well: whoever tries may be on a runtime that nobody drives.
const TURN: Duration = Duration::from_secs(2);

/// Reserved time, in milliseconds since the epoch.
#[derive(Debug)]
pub(super) struct Reserve {
    /// How much is reserved at once.
    ttl: u64,
    /// Before which time numbers may be made: at most what the store has.
    until: AtomicU64,
    /// From when on more should be reserved.
    low: AtomicU64,
    /// Whether more was asked for since then.
    is_asked: AtomicBool,
    asked: Notify,
    /// Counts how often time was reserved.
    news: watch::Sender<u64>,
    tries: Mutex<Tries>,
}

#[derive(Debug, Default)]
struct Tries {
    count: u64,
    /// The number of the try that is under way, and when it began.
    under_way: Option<(u64, Instant)>,
    /// Why the last one failed.
    failure: Option<Error>,
}

/// The right to try, until it is dropped.
struct Turn<'a> {
    reserve: &'a Reserve,
    number: u64,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut tries = self.reserve.tries();
        if tries.under_way.is_some_and(|(number, _)| number == self.number) {
            tries.under_way = None;
        }
    }
}

impl Reserve {
    /// Nothing is reserved yet.
    pub(super) fn of(ttl: u64) -> Self {
        Self {
            ttl,
            until: AtomicU64::new(0),
            low: AtomicU64::new(0),
            is_asked: AtomicBool::new(false),
            asked: Notify::new(),
            news: watch::Sender::new(0),
            tries: Mutex::default(),
        }
    }

    fn tries(&self) -> MutexGuard<'_, Tries> {
        lock(&self.tries)
    }

    /// Returns whether numbers of that time may be made. Asks for more in time.
    pub(super) fn covers(&self, time: u64) -> bool {
        if time < self.low.load(Ordering::SeqCst) {
            return true;
        }
        // Once, so that nothing is left of it when more is there.
        if !self.is_asked.swap(true, Ordering::SeqCst) {
            self.asked.notify_one();
        }
        time < self.until.load(Ordering::SeqCst)
    }

    /// Returns whether somebody has asked for more, and nobody has reserved it yet.
    pub(super) fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::SeqCst)
    }

    /// Takes the right to try, if nobody has it who may still come to an end.
    fn take_turn(&self) -> Option<Turn<'_>> {
        let mut tries = self.tries();
        if tries.under_way.is_some_and(|(_, since)| since.elapsed() < TURN) {
            return None;
        }
        tries.count += 1;
        let number = tries.count;
        tries.under_way = Some((number, Instant::now()));
        Some(Turn { reserve: self, number })
    }

    fn reserved(&self, until: u64, low: u64) {
        // A reservation that was overtaken changes nothing: the store keeps the later time.
        self.until.fetch_max(until, Ordering::SeqCst);
        self.low.fetch_max(low, Ordering::SeqCst);
        self.is_asked.store(false, Ordering::SeqCst);
        self.tries().failure = None;
        self.news.send_modify(|count| *count += 1);
    }
}

/// How long a caller has waited for more time.
#[derive(Debug, Default)]
pub(super) struct Patience {
    since: Option<Instant>,
    backoff: Option<Backoff>,
}

impl Maker {
    /// Reserves one TTL from now on.
    pub(super) async fn reserve_now(&self) -> Result<()> {
        let ttl = self.reserve.ttl;
        let now = self.now().max(self.last_time());
        let until = now.saturating_add(ttl);
        self.held.stamp(self.epoch.saturating_add(until)).await?;
        self.reserve.reserved(until, now.saturating_add(ttl / 3));
        Ok(())
    }

    /// Reserves more if it is its turn, and notes why it could not. `None`: somebody else tries.
    async fn try_to_reserve(&self) -> Option<Result<()>> {
        let turn = self.reserve.take_turn()?;
        let outcome = self.reserve_now().await;
        if let Err(error) = &outcome {
            tracing::debug!(id = %self.held.id(), %error, "no more time is reserved for numbers yet");
            self.reserve.tries().failure = Some(error.duplicate());
        }
        drop(turn);
        Some(outcome)
    }

    fn is_low(&self) -> bool {
        self.now().max(self.last_time()) >= self.reserve.low.load(Ordering::SeqCst)
    }

    /// Waits until more time is reserved, by whoever does it: by the caller if it comes to that.
    pub(super) async fn more_time(&self, patience: &mut Patience) -> Result<()> {
        let mut news = self.reserve.news.subscribe();
        // Looked at after that, so that no news falls between.
        if self.reserve.covers(self.now().max(self.last_time())) {
            return Ok(());
        }
        let limit = Duration::from_millis(self.reserve.ttl);
        let since = *patience.since.get_or_insert_with(Instant::now);
        let Some(left) = limit.checked_sub(since.elapsed()).filter(|left| !left.is_zero()) else {
            let failure = self.reserve.tries().failure.as_ref().map(Error::duplicate);
            let late = Error::Timeout { operation: "reserve time for numbers", after: limit };
            return Err(failure.unwrap_or(late));
        };
        let trying = async {
            let pause = match self.try_to_reserve().await {
                Some(Ok(())) => return,
                Some(Err(_)) => patience.backoff.get_or_insert_with(backoff).pause(),
                None => TURN,
            };
            timer::sleep(pause).await;
        };
        tokio::select! {
            biased;
            // The sender is a part of the maker, so this can not fail.
            _ = news.changed() => {}
            reason = self.held.lost() => return Err(Error::Lost { reason }),
            () = trying => {}
            () = timer::sleep(left) => {}
        }
        Ok(())
    }
}

/// Reserves more time as often as it is needed, until the id is lost. An error ends nothing: a role, a quota or the way to
/// the store may be mended.
pub(super) async fn keep_reserving(maker: Arc<Maker>) {
    let reserving = async {
        let mut backoff = backoff();
        loop {
            while maker.is_low() {
                match maker.try_to_reserve().await {
                    Some(Ok(())) => backoff.reset(),
                    Some(Err(_)) => timer::sleep(backoff.pause()).await,
                    None => timer::sleep(TURN).await,
                }
            }
            // Requests of before are done with it.
            maker.reserve.is_asked.store(false, Ordering::SeqCst);
            maker.reserve.asked.notified().await;
        }
    };
    tokio::select! {
        _ = maker.held.lost() => {}
        () = reserving => {}
    }
}

fn backoff() -> Backoff {
    Backoff::new(SHORTEST, LONGEST)
}
