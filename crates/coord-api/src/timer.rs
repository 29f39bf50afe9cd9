//! Timers and tasks for callers on any executor, and the clock by which they go.
//!
//! Timers are tokio's, and on a tokio runtime they are its own. A thread of coord drives futures that are
//! polled elsewhere, and tasks that must go on although nobody drives the runtime they were begun on. It
//! begins with its first user and ends with its last.

use std::{
    cell::Cell,
    convert::Infallible,
    fmt,
    sync::{Arc, Mutex, OnceLock, Weak},
    thread,
    time::{Duration, SystemTime},
};

use tokio::{
    runtime::{Builder, Handle},
    sync::oneshot,
    time::Instant,
};

use crate::mutex::lock;

/// Returns whether the clock of timers is the machine's here: not where a test pauses or moves it.
///
/// ```
/// use coord_api::backend::is_machine_clock;
///
/// assert!(is_machine_clock());
/// let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
/// assert!(!runtime.block_on(async { is_machine_clock() }));
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn is_machine_clock() -> bool {
    let before = std::time::Instant::now();
    let here = Instant::now().into_std();
    before <= here && here <= std::time::Instant::now()
}

thread_local! {
    /// The time of day at one moment of the clock of timers, if a simulation on this thread has set it.
    static SET: Cell<Option<(SystemTime, Instant)>> = const { Cell::new(None) };
}

/// Sets the time of day for this thread, whose clock of timers a simulation moves. Without that, it depends on when the
/// process began, and so would what is simulated.
#[doc(hidden)]
pub fn set_time_of_day(now: SystemTime) {
    SET.set(Some((now, Instant::now())));
}

/// The time of day by the clock of timers: where that is not the machine's, it goes as the timers do.
pub fn time_of_day() -> SystemTime {
    static BOTH: OnceLock<(SystemTime, std::time::Instant)> = OnceLock::new();
    if let Some((then, begun)) = SET.get() {
        return then.checked_add(Instant::now().saturating_duration_since(begun)).unwrap_or(then);
    }
    if is_machine_clock() {
        return SystemTime::now();
    }
    let (then, begun) = *BOTH.get_or_init(|| (SystemTime::now(), std::time::Instant::now()));
    let here = Instant::now().into_std();
    let later = then.checked_add(here.saturating_duration_since(begun)).unwrap_or(then);
    later.checked_sub(begun.saturating_duration_since(here)).unwrap_or(later)
}

/// The runtime of coord's thread, for what must be driven whoever drives other runtimes. The thread lives as long as a
/// clone of this.
#[derive(Clone)]
pub struct Driver(Arc<Thread>);

struct Thread {
    runtime: Handle,
    /// Dropped with the last user, which ends the thread. It has no other use.
    _stop: oneshot::Sender<Infallible>,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl Driver {
    /// The driver of this process.
    ///
    /// # Panics
    /// If the system has no thread left.
    pub fn get() -> Self {
        static SHARED: Mutex<Weak<Thread>> = Mutex::new(Weak::new());
        let mut shared = lock(&SHARED);
        if let Some(thread) = shared.upgrade() {
            return Self(thread);
        }
        let thread = Arc::new(Thread::start().expect("the system has a thread left"));
        *shared = Arc::downgrade(&thread);
        Self(thread)
    }

    /// Returns where tasks are begun. They end with the thread, which they do not keep.
    pub fn runtime(&self) -> &Handle {
        &self.0.runtime
    }
}

impl Thread {
    fn start() -> std::io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel();
        thread::Builder::new().name("coord-timer".into()).spawn(move || {
            // Nothing is ever sent.
            let Err(_) = runtime.block_on(stopped);
        })?;
        Ok(Self { runtime: handle, _stop: stop })
    }
}

/// Where a task is begun that must go on: on coord's thread, or on the caller's runtime where a test moves its clock.
/// Keep the driver for as long as the task has to run.
pub fn driven() -> (Handle, Option<Driver>) {
    match Handle::try_current() {
        Ok(runtime) if !is_machine_clock() => (runtime, None),
        _ => {
            let driver = Driver::get();
            (driver.runtime().clone(), Some(driver))
        }
    }
}

/// Waits until a moment, on any executor. On a tokio runtime its timers have to be enabled.
pub async fn sleep_until(at: Instant) {
    if Handle::try_current().is_ok() {
        return tokio::time::sleep_until(at).await;
    }
    let driver = Driver::get();
    let sleep = {
        let _entered = driver.runtime().enter();
        tokio::time::sleep_until(at)
    };
    sleep.await;
}

/// Waits for a time from now on, which may be longer than anybody lives.
pub fn sleep(time: Duration) -> impl Future<Output = ()> + Send + Sync {
    sleep_until(after(time))
}

/// The moment in `time`, or one that nobody lives to see.
pub fn after(time: Duration) -> Instant {
    const FOREVER: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now + FOREVER)
}

/// Waits for `future` at most for `limit`; `None` if it was not ready by then.
pub async fn within<F: Future>(limit: Duration, future: F) -> Option<F::Output> {
    tokio::select! {
        biased;
        output = future => Some(output),
        () = sleep(limit) => None,
    }
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[test]
    fn timer_on_another_executor_ends_in_time() {
        let start = std::time::Instant::now();
        block_on(sleep(SHORT));
        assert!(start.elapsed() >= SHORT);
        assert_eq!(block_on(within(SHORT, std::future::pending::<()>())), None);
        assert_eq!(block_on(within(Duration::MAX, async { 7 })), Some(7));
    }

    #[test]
    fn driver_ends_with_its_last_user() {
        // Of its own, since other tests use the one of the process.
        let thread = Thread::start().expect("the system has a thread left");
        let task = thread.runtime.spawn(std::future::pending::<()>());
        assert!(!task.is_finished());
        drop(thread);
        assert!(block_on(task).is_err_and(|ended| ended.is_cancelled()));
    }

    #[tokio::test(start_paused = true)]
    async fn time_of_day_goes_as_the_timers_do() {
        let before = time_of_day();
        let day = Duration::from_secs(24 * 60 * 60);
        sleep(day).await;
        assert_eq!(time_of_day().duration_since(before).expect("is later"), day);
        let (runtime, driver) = driven();
        assert_eq!(runtime.id(), Handle::current().id());
        assert!(driver.is_none(), "a test keeps its clock");
    }

    #[tokio::test]
    async fn what_must_go_on_is_not_on_the_runtime_of_the_caller() {
        assert!(is_machine_clock());
        let (runtime, driver) = driven();
        assert!(driver.is_some());
        assert_ne!(runtime.id(), Handle::current().id());
    }
}
