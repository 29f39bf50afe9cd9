//! A service that writes a report under a lock, and its unit tests: what happens when the lock is lost, when the store is
//! away, when another instance was faster. No server, and no waiting: with a paused clock a TTL passes at once.
//!
//! ```sh
//! cargo run --example testing         # the service
//! cargo test --example testing        # its tests
//! ```

use std::time::Duration;

use coord::{Error, prelude::*};

const TTL: Duration = Duration::from_secs(10);

/// How long a report takes.
const WORK: Duration = Duration::from_secs(60);

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Written,
    /// Another instance is at it.
    LeftToAnother,
    /// Another instance may be at it; nothing was written.
    Stopped,
}

/// What the service does. It takes any provider, so that tests can give it one with faults.
async fn report(coordinator: &Coordinator, text: &str) -> coord::Result<Outcome> {
    let Some(guard) = coordinator.lock().try_acquire("report", TTL).await? else {
        return Ok(Outcome::LeftToAnother);
    };
    let outcome = guard.run(tokio::time::sleep(WORK)).await;
    let written = match outcome {
        Ok(()) => coordinator.config().set_if_held(&guard, "report", text).await,
        Err(lost) => Err(lost),
    };
    match written {
        Ok(_) => {
            guard.unlock().await?;
            Ok(Outcome::Written)
        }
        Err(Error::Lost { .. }) => Ok(Outcome::Stopped),
        Err(error) => Err(error),
    }
}

#[tokio::main]
async fn main() -> coord::Result<()> {
    let coordinator = Coordinator::connect("memory://").await?;
    tokio::select! {
        outcome = report(&coordinator, "all is well") => println!("{:?}", outcome?),
        () = tokio::time::sleep(Duration::from_secs(1)) => println!("the report takes a minute; see the tests"),
    }
    coordinator.close().await
}

#[cfg(test)]
mod tests {
    use coord::memory::{Client, Store};

    use super::*;

    /// An instance of the service, and the handle by which a test breaks its connection.
    fn instance(store: &Store) -> (Coordinator, Client) {
        let client = store.client();
        (Coordinator::new(client.clone()), client)
    }

    async fn stored(coordinator: &Coordinator) -> Option<String> {
        coordinator.config().get("report").await.expect("is connected").map(|found| found.value)
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_is_written() {
        let (one, _) = instance(&Store::new());
        assert_eq!(report(&one, "fine").await.expect("is connected"), Outcome::Written);
        assert_eq!(stored(&one).await.as_deref(), Some("fine"));
    }

    #[tokio::test(start_paused = true)]
    async fn only_one_instance_writes_it() {
        let store = Store::new();
        let ((one, _), (other, _)) = (instance(&store), instance(&store));
        let (first, second) = tokio::join!(report(&one, "mine"), report(&other, "yours"));
        // Which of two that ask at the same moment is the first is not promised.
        let written = match (first.expect("is connected"), second.expect("is connected")) {
            (Outcome::Written, Outcome::LeftToAnother) => "mine",
            (Outcome::LeftToAnother, Outcome::Written) => "yours",
            both => panic!("one writes it, and not {both:?}"),
        };
        assert_eq!(stored(&one).await.as_deref(), Some(written));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_cut_off_stops_and_another_takes_over() {
        let store = Store::new();
        let ((one, link), (other, _)) = (instance(&store), instance(&store));
        let takes_over = async {
            tokio::time::sleep(WORK / 2).await;
            link.disconnect();
            // The lock of the one that is cut off is free after the TTL.
            tokio::time::sleep(TTL * 2).await;
            report(&other, "from the other").await
        };
        let (cut_off, second) = tokio::join!(report(&one, "too late"), takes_over);
        assert_eq!(cut_off.expect("is told by its own clock"), Outcome::Stopped);
        assert_eq!(second.expect("is connected"), Outcome::Written);
        link.reconnect();
        assert_eq!(stored(&one).await.as_deref(), Some("from the other"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lock_that_an_operator_revokes_writes_nothing() {
        let store = Store::new();
        let (one, _) = instance(&store);
        let revoked = async {
            tokio::time::sleep(WORK / 2).await;
            store.revoke_leases();
        };
        let (outcome, ()) = tokio::join!(report(&one, "no"), revoked);
        assert_eq!(outcome.expect("is connected"), Outcome::Stopped);
        assert_eq!(stored(&one).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn while_the_store_is_away_the_error_says_that_it_is_worth_another_try() {
        let (one, link) = instance(&Store::new());
        link.disconnect();
        let error = report(&one, "no").await.expect_err("can not be reached");
        assert!(error.is_retryable(), "{error}");
    }
}
