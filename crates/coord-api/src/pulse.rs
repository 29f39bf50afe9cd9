//! Whether a runtime is driven.
//!
//! A task on a runtime that nobody drives does nothing, and so can not say that it does nothing. Each runtime has one task
//! that notes the time; whoever asks from elsewhere sees for how long it has not.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, LazyLock, Mutex, OnceLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::{Handle, Id},
    task::AbortHandle,
    time::Instant,
};

use crate::mutex::lock;

/// How often the time is noted.
pub(crate) const BEAT: Duration = Duration::from_secs(1);

/// How long a runtime may be busy with something else before it counts as not driven.
const LATE: Duration = Duration::from_secs(3);

static PULSES: LazyLock<Mutex<HashMap<Id, Weak<Pulse>>>> = LazyLock::new(Mutex::default);

/// The pulse of one runtime; its task ends with the last handle.
pub(crate) struct Pulse {
    begun: Instant,
    /// Milliseconds from the beginning to the last beat.
    last: AtomicU64,
    /// The task that beats, if there is one.
    task: OnceLock<AbortHandle>,
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.task.get().into_iter().for_each(AbortHandle::abort);
    }
}

impl Pulse {
    /// The pulse of this runtime.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub(crate) fn here() -> Arc<Self> {
        let runtime = Handle::current();
        let mut pulses = lock(&PULSES);
        pulses.retain(|_, pulse| pulse.strong_count() > 0);
        if let Some(pulse) = pulses.get(&runtime.id()).and_then(Weak::upgrade) {
            return pulse;
        }
        let pulse = Arc::new(Self::unattended());
        pulses.insert(runtime.id(), Arc::downgrade(&pulse));
        let beating = Arc::downgrade(&pulse);
        let task = runtime.spawn(async move {
            loop {
                tokio::time::sleep(BEAT).await;
                let Some(pulse) = beating.upgrade() else { return };
                pulse.last.store(pulse.age(), Ordering::Relaxed);
            }
        });
        // Nobody else has set it.
        let _ = pulse.task.set(task.abort_handle());
        pulse
    }

    /// A pulse that nobody keeps going.
    pub(crate) fn unattended() -> Self {
        Self { begun: Instant::now(), last: AtomicU64::new(0), task: OnceLock::new() }
    }

    /// The last beat, if the next one is overdue.
    pub(crate) fn stopped_at(&self) -> Option<Instant> {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        let is_late = self.begun.elapsed().saturating_sub(last) > LATE;
        is_late.then(|| self.begun.checked_add(last).unwrap_or(self.begun))
    }

    fn age(&self) -> u64 {
        // More milliseconds than fit are half a billion years.
        self.begun.elapsed().as_millis() as u64
    }
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulse").field("stopped_at", &self.stopped_at()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_driven_runtime_beats_and_has_one_pulse() {
        let pulse = Pulse::here();
        assert!(Arc::ptr_eq(&pulse, &Pulse::here()));
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(700)).await;
            assert_eq!(pulse.stopped_at(), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pulse_without_a_beat_has_stopped() {
        let (pulse, begun) = (Pulse::unattended(), Instant::now());
        tokio::time::advance(LATE).await;
        assert_eq!(pulse.stopped_at(), None);
        tokio::time::advance(Duration::from_millis(2)).await;
        assert_eq!(pulse.stopped_at(), Some(begun));
        pulse.last.store(pulse.age(), Ordering::Relaxed);
        assert_eq!(pulse.stopped_at(), None);
    }

    #[test]
    fn the_task_ends_with_the_last_handle() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("can be built");
        runtime.block_on(async {
            let pulse = Pulse::here();
            tokio::time::sleep(2 * BEAT).await;
            drop(pulse);
            tokio::task::yield_now().await;
        });
        assert_eq!(runtime.metrics().num_alive_tasks(), 0);
    }
}
