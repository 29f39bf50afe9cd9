//! coord's own thread: connections, renewals and clean-up run here, where a busy or blocked runtime of the
//! user's cannot starve them.

use std::{fmt, io, thread};

use coord_api::{Error, Result};
use futures::future::BoxFuture;
use tokio::{runtime, sync::oneshot};

/// A thread with a runtime that lives as long as this handle.
pub(crate) struct Background {
    handle: runtime::Handle,
    stop: Option<oneshot::Sender<BoxFuture<'static, ()>>>,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Background").finish_non_exhaustive()
    }
}

impl Background {
    pub(crate) fn start() -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<BoxFuture<'static, ()>>();
        thread::Builder::new().name("coord-etcd".into()).spawn(move || {
            runtime.block_on(async {
                if let Ok(last_work) = stopped.await {
                    last_work.await;
                }
            });
        })?;
        Ok(Self { handle, stop: Some(stop) })
    }

    pub(crate) fn handle(&self) -> &runtime::Handle {
        &self.handle
    }

    /// Ends the thread after `last_work`, without waiting for it.
    pub(crate) fn stop_after(&mut self, last_work: BoxFuture<'static, ()>) {
        if let Some(stop) = self.stop.take() {
            // The thread is only gone if its runtime panicked; there is nothing left to do then.
            let _ = stop.send(last_work);
        }
    }
}

/// Runs `work` on `handle` to its end, also if the caller goes away: a place that was taken for a caller who
/// does not want it any more is then dropped there, and so given back.
///
/// `work` gets a future that resolves when the caller is gone, so that waiting can stop.
pub(crate) async fn owned<T, W, F>(handle: &runtime::Handle, work: W) -> Result<T>
where
    T: Send + 'static,
    W: FnOnce(CallerGone) -> F,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let (_alive, gone) = oneshot::channel();
    let (reply, answer) = oneshot::channel();
    let work = work(CallerGone(gone));
    handle.spawn(async move {
        // If nobody listens any more, the result is dropped here.
        let _ = reply.send(work.await);
    });
    answer.await.unwrap_or(Err(Error::Closed))
}

/// Resolves when the caller of [`owned`] dropped its future.
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
        let background = Background::start().expect("a thread can be started");
        let place = Arc::new(());
        let weak: Weak<()> = Arc::downgrade(&place);
        let (started, has_started) = oneshot::channel();
        let caller = owned(background.handle(), |mut gone| async move {
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

    #[tokio::test]
    async fn stopping_runs_the_last_work_first() {
        let mut background = Background::start().expect("a thread can be started");
        let (done, is_done) = oneshot::channel();
        background.stop_after(Box::pin(async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            done.send(()).expect("the test waits");
        }));
        is_done.await.expect("ran");
        let answer = owned(background.handle(), |_| async { Ok(()) }).await;
        assert!(matches!(answer, Err(Error::Closed) | Ok(())), "never hangs, never panics");
    }
}
