//! Wakeups: a notification of all tasks that wait for a change (broadcast), of which a change may wake a thousand.
//!
//! Each waiter has a fixed place in a slab. A queue of waiters would be entered anew after each change, while others are
//! still being woken from it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Context,
};

use coord_api::backend::lock;
use futures::task::AtomicWaker;
use slab::Slab;

/// Number of waiters that are woken before the next are looked up.
const AT_ONCE: usize = 64;

/// Shared state of a notifier and its waiters.
#[derive(Debug, Default)]
pub(super) struct Wakeups {
    /// Number of the latest value.
    number: AtomicU64,
    /// Whether the notifier is gone.
    is_closed: AtomicBool,
    waiters: Mutex<Slab<Arc<AtomicWaker>>>,
}

impl Wakeups {
    /// Returns the number of the last notification.
    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Returns whether there will be no more notifications.
    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    fn wake_all(&self) {
        let places = self.waiters().capacity();
        for first in (0..places).step_by(AT_ONCE) {
            // Not while the lock is held: a woken task may run at once, and drop a waiter.
            let some: Vec<_> = {
                let waiters = self.waiters();
                (first..first + AT_ONCE).filter_map(|place| waiters.get(place).cloned()).collect()
            };
            for waker in some {
                waker.wake();
            }
        }
    }

    fn waiters(&self) -> MutexGuard<'_, Slab<Arc<AtomicWaker>>> {
        lock(&self.waiters)
    }
}

/// Sender of notifications. Dropping it is the last one.
#[derive(Debug)]
pub(super) struct Notifier(pub(super) Arc<Wakeups>);

impl Notifier {
    /// Wakes all waiters. The value of that number has to be visible before.
    pub(super) fn notify(&self, number: u64) {
        self.0.number.store(number, Ordering::Release);
        self.0.wake_all();
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.0.is_closed.store(true, Ordering::Release);
        self.0.wake_all();
    }
}

/// Waiter for notifications. It takes a place when it is first polled; a clone has its own.
pub(super) struct Waiter {
    wakeups: Arc<Wakeups>,
    place: Option<(usize, Arc<AtomicWaker>)>,
}

impl Waiter {
    pub(super) fn new(wakeups: Arc<Wakeups>) -> Self {
        Self { wakeups, place: None }
    }

    /// Registers the task of `cx` for the next notification. Read the number again after this.
    pub(super) fn register(&mut self, cx: &Context<'_>) {
        let (_, waker) = self.place.get_or_insert_with(|| {
            let waker = Arc::new(AtomicWaker::new());
            (self.wakeups.waiters().insert(waker.clone()), waker)
        });
        waker.register(cx.waker());
    }
}

impl Clone for Waiter {
    fn clone(&self) -> Self {
        Self::new(self.wakeups.clone())
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some((place, _)) = self.place.take() {
            self.wakeups.waiters().remove(place);
        }
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter").field("is_registered", &self.place.is_some()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        task::{Poll, Waker},
    };

    use super::*;

    #[test]
    fn waiter_has_a_place_while_it_is_registered() {
        let wakeups = Arc::new(Wakeups::default());
        let mut waiters = vec![Waiter::new(wakeups.clone()); 3];
        assert!(wakeups.waiters().is_empty());
        for _ in 0..2 {
            waiters[0].register(&Context::from_waker(Waker::noop()));
        }
        waiters[1].register(&Context::from_waker(Waker::noop()));
        let clone = waiters[1].clone();
        assert_eq!(wakeups.waiters().len(), 2);
        drop((waiters, clone));
        assert!(wakeups.waiters().is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn waiters_that_come_and_go_miss_no_notification() {
        const LAST: u64 = 2000;
        let notifier = Notifier(Arc::default());
        let wakeups = notifier.0.clone();
        let listener = |number| {
            let (wakeups, mut waiter) = (wakeups.clone(), Waiter::new(wakeups.clone()));
            async move {
                let mut told = 0;
                while told < LAST || !wakeups.is_closed() {
                    poll_fn(|cx| {
                        waiter.register(cx);
                        let is_last = wakeups.is_closed();
                        if wakeups.number() > told || is_last { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                    told = wakeups.number();
                    if told % 20 == number {
                        waiter = waiter.clone();
                    }
                }
            }
        };
        // More waiters than are woken at once.
        let listeners: Vec<_> = (0..200).map(|number| tokio::spawn(listener(number % 40))).collect();
        for number in 1..=LAST {
            notifier.notify(number);
            if number % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        drop(notifier);
        for listener in listeners {
            listener.await.expect("does not panic");
        }
        assert!(wakeups.waiters().is_empty());
    }
}
