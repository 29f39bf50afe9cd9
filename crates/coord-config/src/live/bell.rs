//! How all who wait for a change are woken.
//!
//! A thousand of them are woken by one change, so each has a place where it is found again, instead of a queue which
//! it enters anew after each change while others are still being woken from it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Context,
};

use futures::task::AtomicWaker;
use slab::Slab;

/// How many are woken before the next are looked for.
const AT_ONCE: usize = 64;

/// Rings for all ears when there is a value with a higher number.
#[derive(Debug, Default)]
pub(super) struct Bell {
    number: AtomicU64,
    is_silent: AtomicBool,
    ears: Mutex<Slab<Arc<AtomicWaker>>>,
}

impl Bell {
    /// The number that it was rung for last.
    pub(super) fn number(&self) -> u64 {
        self.number.load(Ordering::Acquire)
    }

    /// Whether that was the last time.
    pub(super) fn is_silent(&self) -> bool {
        self.is_silent.load(Ordering::Acquire)
    }

    fn ring(&self) {
        let places = self.ears().capacity();
        for first in (0..places).step_by(AT_ONCE) {
            // Not while the lock is held: whoever wakes may run at once, and drop an ear.
            let some: Vec<_> = {
                let ears = self.ears();
                (first..first + AT_ONCE).filter_map(|place| ears.get(place).cloned()).collect()
            };
            for ear in some {
                ear.wake();
            }
        }
    }

    fn ears(&self) -> MutexGuard<'_, Slab<Arc<AtomicWaker>>> {
        self.ears.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Rings; and when it is dropped, for the last time.
#[derive(Debug)]
pub(super) struct Ringer(pub(super) Arc<Bell>);

impl Ringer {
    /// Wakes all who listen. What the number stands for can be seen before.
    pub(super) fn ring(&self, number: u64) {
        self.0.number.store(number, Ordering::Release);
        self.0.ring();
    }
}

impl Drop for Ringer {
    fn drop(&mut self) {
        self.0.is_silent.store(true, Ordering::Release);
        self.0.ring();
    }
}

/// Hears the bell. One that never listened takes no place; a clone listens for itself.
pub(super) struct Ear {
    bell: Arc<Bell>,
    place: Option<(usize, Arc<AtomicWaker>)>,
}

impl Ear {
    pub(super) fn new(bell: Arc<Bell>) -> Self {
        Self { bell, place: None }
    }

    /// Lets the task of `cx` be woken when the bell rings. The bell has to be asked again after this.
    pub(super) fn listen(&mut self, cx: &Context<'_>) {
        let (_, waker) = self.place.get_or_insert_with(|| {
            let waker = Arc::new(AtomicWaker::new());
            (self.bell.ears().insert(waker.clone()), waker)
        });
        waker.register(cx.waker());
    }
}

impl Clone for Ear {
    fn clone(&self) -> Self {
        Self::new(self.bell.clone())
    }
}

impl Drop for Ear {
    fn drop(&mut self) {
        if let Some((place, _)) = self.place.take() {
            self.bell.ears().remove(place);
        }
    }
}

impl fmt::Debug for Ear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ear").field("listens", &self.place.is_some()).finish_non_exhaustive()
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
    fn only_who_listens_has_a_place_and_only_as_long_as_it_lives() {
        let bell = Arc::new(Bell::default());
        let mut ears = vec![Ear::new(bell.clone()); 3];
        assert!(bell.ears().is_empty());
        for _ in 0..2 {
            ears[0].listen(&Context::from_waker(Waker::noop()));
        }
        ears[1].listen(&Context::from_waker(Waker::noop()));
        let clone = ears[1].clone();
        assert_eq!(bell.ears().len(), 2);
        drop((ears, clone));
        assert!(bell.ears().is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nobody_sleeps_through_it_whoever_comes_and_goes() {
        const LAST: u64 = 2000;
        let ringer = Ringer(Arc::default());
        let bell = ringer.0.clone();
        let listener = |number| {
            let (bell, mut ear) = (bell.clone(), Ear::new(bell.clone()));
            async move {
                let mut told = 0;
                while told < LAST || !bell.is_silent() {
                    poll_fn(|cx| {
                        ear.listen(cx);
                        let is_last = bell.is_silent();
                        if bell.number() > told || is_last { Poll::Ready(()) } else { Poll::Pending }
                    })
                    .await;
                    told = bell.number();
                    if told % 20 == number {
                        ear = ear.clone();
                    }
                }
            }
        };
        // More than are woken at once.
        let listeners: Vec<_> = (0..200).map(|number| tokio::spawn(listener(number % 40))).collect();
        for number in 1..=LAST {
            ringer.ring(number);
            if number % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        drop(ringer);
        for listener in listeners {
            listener.await.expect("does not panic");
        }
        assert!(bell.ears().is_empty());
    }
}
