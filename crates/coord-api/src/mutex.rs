//! The one rule for a mutex whose holder panicked: it is locked all the same.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks a mutex, also one whose holder panicked: guards are dropped while a thread unwinds, and a drop must not panic.
///
/// Nothing that coord does while it holds a mutex can panic half-way, so there is no half-made state to protect from.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutex_whose_holder_panicked_is_locked() {
        let mutex = Mutex::new(1);
        std::thread::scope(|scope| {
            let panicking = scope.spawn(|| {
                let _held = lock(&mutex);
                panic!("while the mutex is held");
            });
            assert!(panicking.join().is_err());
        });
        assert_eq!(*lock(&mutex), 1);
    }
}
