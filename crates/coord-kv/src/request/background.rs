//! Background work: the runtime of a client's own tasks, and work that goes on though its caller is gone.

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
};

use coord_api::{
    Error, Result,
    backend::{Driver, driven, lock},
};
use futures::future::BoxFuture;
use tokio::{runtime::Handle, sync::oneshot, task::JoinHandle};

/// The runtime for all that has to happen in time. Nobody else should keep it busy. Clones are the same.
///
/// It is given by the backend, or found with the first work. Tasks that a client begins with wait until then.
#[derive(Clone)]
pub struct Background(Arc<Shared>);

struct Shared {
    home: OnceLock<Home>,
    /// The tasks that begin with the first work.
    waiting: Mutex<Vec<BoxFuture<'static, ()>>>,
}

struct Home {
    runtime: Handle,
    /// Keeps coord's thread, if the runtime is of that.
    _driver: Option<Driver>,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runtime = self.0.home.get().map(|home| &home.runtime);
        f.debug_struct("Background").field("runtime", &runtime).finish_non_exhaustive()
    }
}

impl Background {
    /// Runs everything on a runtime of the backend's.
    pub fn on(runtime: Handle) -> Self {
        let home = OnceLock::from(Home { runtime, _driver: None });
        Self(Arc::new(Shared { home, waiting: Mutex::default() }))
    }

    /// Runs everything where the first work is asked for, if a test moves the clock of that runtime, and else on a thread
    /// that all clients share. A client of it can be made and used on any executor.
    pub fn from_first_use() -> Self {
        Self(Arc::new(Shared { home: OnceLock::new(), waiting: Mutex::default() }))
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<BoxFuture<'static, ()>>> {
        lock(&self.0.waiting)
    }

    fn home(&self) -> &Home {
        if let Some(home) = self.0.home.get() {
            return home;
        }
        let mut waiting = self.waiting();
        let home = self.0.home.get_or_init(|| {
            let (runtime, driver) = driven();
            Home { runtime, _driver: driver }
        });
        for task in waiting.drain(..) {
            home.runtime.spawn(task);
        }
        home
    }

    /// Begins the tasks that wait for the first work.
    pub fn begin(&self) {
        self.home();
    }

    /// Returns the runtime, which is found now if it was not before.
    pub fn runtime(&self) -> &Handle {
        &self.home().runtime
    }

    /// Begins a task with the first work.
    pub(crate) fn spawn_with_first_use(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut waiting = self.waiting();
        match self.0.home.get() {
            Some(home) => drop(home.runtime.spawn(task)),
            None => waiting.push(Box::pin(task)),
        }
    }

    /// Begins a task.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> JoinHandle<()> {
        self.runtime().spawn(task)
    }
}

/// Runs `work` on `background` to its end, also if the caller goes away. A place that was taken for a caller who
/// does not want it any more is then dropped there, and so given back.
///
/// `work` gets a future that resolves when the caller is gone, so that waiting can stop.
pub(crate) async fn run_detached<T, W, F>(background: &Background, work: W) -> Result<T>
where
    T: Send + 'static,
    W: FnOnce(CallerGone) -> F,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let (_alive, gone) = oneshot::channel();
    let caller = tracing::Span::current();
    let (reply, answer) = oneshot::channel();
    let work = work(CallerGone(gone));
    background.spawn(async move {
        // If nobody listens any more, the result is dropped here.
        let _ = reply.send(tracing::Instrument::instrument(work, caller).await);
    });
    answer.await.unwrap_or(Err(Error::Closed))
}

/// Resolves when the caller of [`run_detached`] dropped its future.
#[derive(Debug)]
pub(crate) struct CallerGone(oneshot::Receiver<()>);

impl CallerGone {
    /// Waits until the caller is gone.
    ///
    /// May be dropped and called again.
    pub(crate) async fn wait(&mut self) {
        // The sender never sends; the error says that it was dropped.
        let _ = (&mut self.0).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, Weak},
        time::Duration,
    };

    use super::*;

    #[tokio::test]
    async fn work_ends_and_its_result_is_dropped_when_the_caller_is_gone() {
        let place = Arc::new(());
        let weak: Weak<()> = Arc::downgrade(&place);
        let (started, has_started) = oneshot::channel();
        let here = Background::on(Handle::current());
        let caller = run_detached(&here, |mut gone| async move {
            started.send(()).expect("the test waits");
            gone.wait().await;
            Ok(place)
        });
        tokio::select! {
            _ = caller => panic!("the work waits for the caller to go"),
            _ = has_started => {}
        }
        while weak.upgrade().is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[test]
    fn first_tasks_begin_with_the_first_work_without_a_runtime() {
        let background = Background::from_first_use();
        let (begun, mut has_begun) = oneshot::channel();
        background.spawn_with_first_use(async move { begun.send(()).expect("the test waits") });
        assert!(has_begun.try_recv().is_err());
        background.begin();
        has_begun.blocking_recv().expect("has begun");
    }
}
