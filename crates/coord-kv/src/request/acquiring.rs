//! The span `acquire`: a wait for a lock or an id, from the call to its answer, and the note that a wait is long.
//!
//! The other spans of this crate are `txn`, one request with its attempts (`retry.rs`), and `lease`, the life of
//! a lease (`session/`). All are at the level debug, and no field has a value that a user stores.

use std::{fmt::Display, future::pending, pin::Pin, time::Duration};

use coord_api::Result;
use tokio::time::Instant;
use tracing::{Instrument, Level};

use crate::request::timer::sleep;

/// Time after which a wait is told of at the level info, once.
const LONG: Duration = Duration::from_secs(10);

/// Runs `wait`, the wait of one caller for the lock or the id that is named, within a span.
///
/// May be dropped: `wait` is as it was then.
pub(crate) async fn acquiring<T>(
    kind: &'static str,
    name: &(impl Display + Sync),
    wait: Pin<&mut (impl Future<Output = Result<T>> + Send)>,
) -> Result<T> {
    let span = tracing::debug_span!("acquire", kind, %name);
    tell_if_long(kind, name, wait).instrument(span).await
}

async fn tell_if_long<T>(
    kind: &'static str,
    name: &(impl Display + Sync),
    mut wait: Pin<&mut (impl Future<Output = Result<T>> + Send)>,
) -> Result<T> {
    let begun = Instant::now();
    // Boxed, and only where somebody listens: thousands may wait.
    let long = tracing::enabled!(Level::INFO).then(|| Box::pin(sleep(LONG)));
    let is_long = async {
        match long {
            Some(long) => long.await,
            None => pending().await,
        }
    };
    let early = tokio::select! {
        biased;
        answer = &mut wait => Some(answer),
        () = is_long => None,
    };
    let answer = if let Some(answer) = early {
        answer
    } else {
        tracing::info!(kind, %name, waited = ?begun.elapsed(), "still waiting");
        wait.await
    };
    let waited = begun.elapsed();
    match &answer {
        Ok(_) => tracing::debug!(?waited, "answered"),
        Err(error) => tracing::debug!(?waited, %error, "failed"),
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::{
        fmt, io,
        pin::pin,
        sync::{Arc, Mutex},
    };

    use tokio::time::timeout;

    use super::*;

    #[derive(Clone, Default)]
    struct Printed(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Printed {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("nothing panics while this is locked").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Printed {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().expect("nothing panics while this is locked").clone())
                .expect("is UTF-8")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn long_wait_is_told_once_with_the_name() {
        let printed = Printed::default();
        let writer = printed.clone();
        let listener = tracing_subscriber::fmt().with_max_level(Level::INFO).with_ansi(false);
        let _listening =
            tracing::subscriber::set_default(listener.with_writer(move || writer.clone()).finish());
        let short = async {
            sleep(LONG / 2).await;
            Ok(())
        };
        acquiring("lock", &"quick", pin!(short)).await.expect("is answered");
        let mut long = pin!(pending::<Result<()>>());
        assert!(timeout(LONG * 3, acquiring("lock", &"slow", long.as_mut())).await.is_err());
        let text = printed.text();
        assert_eq!(text.matches("still waiting").count(), 1, "{text}");
        assert!(text.contains("slow") && text.contains("10s") && !text.contains("quick"), "{text}");
    }

    struct NeverShown;

    impl fmt::Display for NeverShown {
        fn fmt(&self, _f: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("nobody listens");
        }
    }

    #[tokio::test]
    async fn name_is_not_formatted_while_nobody_listens() {
        let nobody = tracing::subscriber::NoSubscriber::default();
        let _listening = tracing::subscriber::set_default(nobody);
        acquiring("lock", &NeverShown, pin!(async { Ok(()) })).await.expect("is answered");
    }
}
