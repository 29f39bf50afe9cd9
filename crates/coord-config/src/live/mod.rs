//! Values that follow the store, and keep the last good state when the store or a writer fails them.

mod builder;
mod changes;
mod check_result;
mod current;
mod file;
mod follow;
mod held;
mod layers;
mod merge;
mod share_key;
mod start;
mod wakeups;
mod whole;

use std::{fmt, future::poll_fn, sync::Arc, task::Poll};

use arc_swap::ArcSwap;
use coord_api::{ConfigCenter, ConfigKey, Connectivity, Error, Result, Version};
use tokio::{sync::broadcast, task::AbortHandle};

pub use builder::{LiveBuilder, WhenDeleted};
pub use changes::{Change, Changes};
pub use check_result::CheckResult;
pub use current::{LiveCounters, LiveState, Origin, Rejection, RejectionCause};
pub use whole::{Whole, whole};

use crate::history::{Record, record_of};
use current::{Counters, Current};
use file::Claim;
use wakeups::{Waiter, Wakeups};

/// Live values of a config center.
pub trait LiveExt {
    /// A value that follows `key`; [`LiveBuilder::start`] begins.
    ///
    /// ```
    /// use coord_api::{ConfigExt, Provider};
    /// use coord_config::LiveExt;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Limits { max_upload_mb: u32 }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let store = coord_memory::Store::new();
    /// let config = store.client().config();
    /// let mut limits = config
    ///     .live("limits")
    ///     .default(Limits { max_upload_mb: 10 })
    ///     .validate(|limits| if limits.max_upload_mb > 0 { Ok(()) } else { Err("max_upload_mb is 0") })
    ///     .start()
    ///     .await?;
    /// assert_eq!(limits.current().max_upload_mb, 10);
    ///
    /// config.set("limits", &Limits { max_upload_mb: 50 }).await?;
    /// assert_eq!(limits.changed().await?.max_upload_mb, 50);
    /// # Ok(()) }
    /// ```
    fn live<T>(&self, key: &str) -> LiveBuilder<T>;
}

impl LiveExt for Arc<dyn ConfigCenter> {
    fn live<T>(&self, key: &str) -> LiveBuilder<T> {
        LiveBuilder::new(self.clone(), key)
    }
}

/// A typed value that follows its key.
///
/// # Contract
/// - [`current`](Self::current) never waits and never fails. It is the last value that was decoded, passed the
///   validator and was not refused by the hook.
/// - An update that is refused is counted and told by [`state`](Self::state), with the JSON path where it does not
///   fit. The next good one is taken. A panic in code of the type (`Deserialize`, `Drop`), a validator or the hook is a
///   rejection, and ends nothing.
/// - Nothing is missed between the first value and the changes, and no value older than one that was seen comes
///   later. Values that were replaced before this process heard of them may be skipped.
/// - While the store is away the value stays, and [`state`](Self::state) says that it is stale and since
///   when. So it does from three seconds after the runtime that the value was started on was last driven.
/// - After the provider was closed the value stays, stale.
///
/// Clones are the same value; each has its own place in [`changed`](Self::changed). All live values of one
/// key and type are one as well, if one config center starts them on one runtime with no rules but their key.
/// However many parts of a program start one, a change is decoded once, and [`counters`](Self::counters)
/// count for all of them. A newly started value is what the store has then, never an older value that others
/// still have. The task that follows the key ends with the last handle, and so does the client if nothing
/// else uses it.
pub struct Live<T> {
    /// State of the task, so that a read takes one step less.
    shared: Arc<Shared<T>>,
    /// The number of the value that this handle was last told of.
    told: u64,
    waiter: Waiter,
    task: Arc<Task<T>>,
}

struct Shared<T> {
    key: String,
    center: Arc<dyn ConfigCenter>,
    now: ArcSwap<Current<T>>,
    /// Rung by the task when the value is another one.
    wakeups: Arc<Wakeups>,
    counters: Counters,
    connectivity: Connectivity,
    /// The sending end belongs to the task, so that the consumers' end with it.
    each: broadcast::Receiver<Arc<Current<T>>>,
}

impl<T> Shared<T> {
    /// Returns who wrote a version of the key, if that can be read.
    async fn record(&self, version: Version) -> Option<Record> {
        let key = ConfigKey::parse(&self.key).ok()?;
        record_of(&*self.center, &key, version).await.ok()?
    }
}

/// Handle of the task, which all live values share: the task ends with the last of them.
struct Task<T> {
    shared: Arc<Shared<T>>,
    follower: AbortHandle,
    /// No other live value has it meanwhile.
    _file: Option<Claim>,
}

impl<T> Task<T> {
    /// Returns whether the value in use is the one of `version`, and will follow what comes after it.
    fn is_good_at(&self, version: Version) -> bool {
        let now = self.shared.now.load();
        let is_followed = !self.shared.wakeups.is_closed() && self.shared.connectivity.freshness().is_fresh();
        is_followed && now.origin == Origin::Store(version) && now.rejection.is_none()
    }
}

impl<T> Drop for Task<T> {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl<T> Live<T> {
    /// A handle that was told of the value as it is now.
    fn of(task: Arc<Task<T>>) -> Self {
        let shared = task.shared.clone();
        let (told, waiter) = (shared.now.load().number, Waiter::new(shared.wakeups.clone()));
        Self { shared, told, waiter, task }
    }

    /// The key.
    pub fn key(&self) -> &str {
        &self.shared.key
    }

    /// The value now, without waiting: some ten nanoseconds. Keep it as long as one piece of work has to see one
    /// value.
    pub fn current(&self) -> Arc<T> {
        self.shared.now.load().value.get().clone()
    }

    /// As [`current`](Self::current), for a short look: no counter is shared between threads, so many of them may
    /// look in tight loops without slowing each other.
    pub fn look<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(self.shared.now.load().value.get())
    }

    /// Returns where the value comes from, with its version.
    pub fn origin(&self) -> Origin {
        self.shared.now.load().origin
    }

    /// Waits until the value is not the one that this handle was last told of, and tells it. Changes that follow
    /// each other quickly are told as one; [`changes`](Self::changes) has them all.
    ///
    /// # Errors
    /// [`Error::Closed`] after the provider was closed.
    ///
    /// # Cancel safety
    /// May be dropped and called again: no change is lost.
    pub async fn changed(&mut self) -> Result<Arc<T>> {
        poll_fn(|cx| {
            if let Some(value) = self.news() {
                return Poll::Ready(Ok(value));
            }
            self.waiter.register(cx);
            // In this order: after the bell has fallen silent nothing is new any more.
            let is_last = self.shared.wakeups.is_closed();
            match self.news() {
                Some(value) => Poll::Ready(Ok(value)),
                None if is_last => Poll::Ready(Err(Error::Closed)),
                None => Poll::Pending,
            }
        })
        .await
    }

    /// The value, if this handle was not told of it.
    fn news(&mut self) -> Option<Arc<T>> {
        if self.shared.wakeups.number() <= self.told {
            return None;
        }
        let now = self.shared.now.load();
        // The bell may be about to ring for this one.
        self.told = now.number;
        Some(now.value.get().clone())
    }

    /// Every change from now on, with who made it and when, where its writer said so.
    pub fn changes(&self) -> Changes<T> {
        Changes::new(self.clone())
    }

    /// Returns how far the value can be trusted.
    pub fn state(&self) -> LiveState {
        LiveState {
            freshness: self.shared.connectivity.freshness(),
            rejection: self.shared.now.load().rejection.clone(),
        }
    }

    /// Tells when the value becomes stale, and fresh again.
    pub fn connectivity(&self) -> Connectivity {
        // The shared handle was never asked: to the new one, what was before is no change.
        self.shared.connectivity.from_now_on()
    }

    /// Returns the counters, for metrics.
    pub fn counters(&self) -> LiveCounters {
        self.shared.counters.read()
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        let Self { shared, told, waiter, task } = self;
        Self { shared: shared.clone(), told: *told, waiter: waiter.clone(), task: task.clone() }
    }
}

/// Never shows the value, which may be a secret.
impl<T> fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Live")
            .field("key", &self.key())
            .field("origin", &self.origin())
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}
