//! coord's own thread: connections, renewals and clean-up run here, where a busy or blocked runtime of the
//! user's cannot starve them.

use std::{fmt, io, thread};

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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn stopping_runs_the_last_work_first() {
        let mut background = Background::start().expect("a thread can be started");
        let (done, is_done) = oneshot::channel();
        background.stop_after(Box::pin(async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            done.send(()).expect("the test waits");
        }));
        is_done.await.expect("ran");
        let answer = background.handle().spawn(async {}).await;
        assert!(answer.is_ok_and(|()| true) || background.stop.is_none(), "never hangs, never panics");
    }
}
