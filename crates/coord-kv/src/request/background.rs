//! Work that goes on though its caller is gone.

use coord_api::{Error, Result};
use tokio::{runtime, sync::oneshot};

/// Runs `work` on `handle` to its end, also if the caller goes away. A place that was taken for a caller who
/// does not want it any more is then dropped there, and so given back.
///
/// `work` gets a future that resolves when the caller is gone, so that waiting can stop.
pub(crate) async fn run_detached<T, W, F>(handle: &runtime::Handle, work: W) -> Result<T>
where
    T: Send + 'static,
    W: FnOnce(CallerGone) -> F,
    F: Future<Output = Result<T>> + Send + 'static,
{
    let (_alive, gone) = oneshot::channel();
    let caller = tracing::Span::current();
    let (reply, answer) = oneshot::channel();
    let work = work(CallerGone(gone));
    handle.spawn(async move {
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
        let here = runtime::Handle::current();
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
}
