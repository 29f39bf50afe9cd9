//! Faults on demand, so that users can test what their code does about them.

use std::time::Duration;

use coord_api::backend::after;

use super::NetworkFaults;
use crate::Client;

/// What goes wrong between one client and its store.
impl Client {
    /// Cuts the client off: every call answers [`Unavailable`](coord_api::Error::Unavailable) at once, no
    /// renewal arrives, watches stand still, and what is held is lost at its local deadline.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{DistributedLock, LossReason, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # tokio::time::pause();
    /// let store = Store::new();
    /// let (cut_off, other) = (store.client(), store.client());
    /// let guard = cut_off.lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// cut_off.disconnect();
    /// let next = other.lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// assert_eq!(guard.lost().await, LossReason::Expired);
    /// assert!(next.token() > guard.token());
    /// # Ok(()) }
    /// ```
    pub fn disconnect(&self) {
        self.peer().disconnect();
    }

    /// Ends a [`disconnect`](Self::disconnect): the leases that are left are renewed and watches go on.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{DistributedLock, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # tokio::time::pause();
    /// let client = Store::new().client();
    /// let guard = client.lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// client.disconnect();
    /// tokio::time::sleep(Duration::from_secs(8)).await;
    /// client.reconnect();
    /// tokio::time::sleep(Duration::from_secs(8)).await;
    /// guard.unlock().await?;
    /// # Ok(()) }
    /// ```
    pub fn reconnect(&self) {
        self.peer().reconnect();
    }

    /// Lets the client stand still for `time`, as a process that is frozen or whose network is slow: what it
    /// sends, renewals and all, arrives afterwards, so its calls wait in place of failing, and watches stand
    /// still. What it holds is lost if its local deadline passes meanwhile.
    ///
    /// A stall that begins during another one ends with the later of the two; one of a client that is cut off
    /// changes nothing. [`reconnect`](Self::reconnect) ends it early. `close` does not wait for its end: it
    /// answers [`Unavailable`](coord_api::Error::Unavailable), as while cut off.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{ConfigExt, DistributedLock, Error, LossReason, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # tokio::time::pause();
    /// let client = Store::new().client();
    /// let guard = client.lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// client.stall(Duration::from_secs(5));
    /// client.config().set("reports/last", &"2026-11-22").await?; // takes five seconds
    /// assert!(!guard.is_lost(), "there was time enough");
    ///
    /// client.stall(Duration::from_secs(60));
    /// assert_eq!(guard.lost().await, LossReason::Expired);
    /// assert!(matches!(guard.unlock().await, Err(Error::Lost { .. })));
    /// # Ok(()) }
    /// ```
    pub fn stall(&self, time: Duration) {
        self.peer().stall(after(time));
    }

    /// Makes the next `calls` calls of the client answer [`Unavailable`](coord_api::Error::Unavailable).
    /// Renewals are no calls.
    ///
    /// ```
    /// use coord_api::{ConfigExt, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let client = Store::new().client();
    /// client.fail_next(1);
    /// assert!(client.config().set("limits/upload", &10).await.is_err());
    /// client.config().set("limits/upload", &10).await?;
    /// # Ok(()) }
    /// ```
    pub fn fail_next(&self, calls: usize) {
        self.peer().set_failing(calls);
    }

    /// Lets the next `calls` writes to the config center take effect, if nothing is against them, and loses their
    /// answers: they answer [`Timeout`](coord_api::Error::Timeout) after 5 s.
    ///
    /// ```
    /// use coord_api::{ConfigExt, Error, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # tokio::time::pause();
    /// let client = Store::new().client();
    /// client.lose_answers(1);
    /// let written = client.config().set("limits/upload", &10).await;
    /// assert!(matches!(written, Err(Error::Timeout { .. })));
    /// let found = client.config().get::<u32>("limits/upload").await?;
    /// assert_eq!(found.expect("took effect").value, 10);
    /// # Ok(()) }
    /// ```
    pub fn lose_answers(&self, calls: usize) {
        self.peer().set_losing(calls);
    }

    /// Revokes every lease of the client, as an operator would. Locks and ids are lost, registrations come
    /// back. A client that is cut off learns of it when it is connected again.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{DistributedLock, LossReason, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let client = Store::new().client();
    /// let guard = client.lock().acquire("nightly-report", Duration::from_secs(10)).await?;
    /// client.revoke_leases();
    /// assert_eq!(guard.lost().await, LossReason::Revoked);
    /// # Ok(()) }
    /// ```
    pub fn revoke_leases(&self) {
        self.shared().lock_now().0.revoke_leases(Some(self.peer().id()));
    }

    /// Sets the faults of the network between the client and its store, in place of those before.
    pub fn network(&self, faults: NetworkFaults) {
        self.peer().set_faults(faults);
    }

    /// Breaks the connection, which is made anew at once. Watches and renewals go on over the new one.
    ///
    /// ```
    /// use coord_api::{ConfigEvent, ConfigExt, Provider};
    /// use coord_memory::Store;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let client = Store::new().client();
    /// let mut watch = client.config().watch::<u32>("limits/upload").await?;
    /// assert!(matches!(watch.next().await, Some(Ok(ConfigEvent::Snapshot { .. }))));
    /// client.break_streams();
    /// client.config().set("limits/upload", &10).await?;
    /// assert!(matches!(watch.next().await, Some(Ok(ConfigEvent::Set(_)))));
    /// # Ok(()) }
    /// ```
    pub fn break_streams(&self) {
        self.peer().reconnect_anew();
    }
}
