//! Registrations that come back by themselves.

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use backon::{BackoffBuilder, ExponentialBuilder};
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use super::Place;
use crate::{Error, LossReason, Result, ServiceInfo, service::check_metadata, timer};

/// How a backend writes a registration.
#[async_trait]
pub trait Publish: Send + Sync + 'static {
    /// Writes the record under a live lease and returns the place it takes. A record that this client wrote
    /// before is replaced, and its earlier place ends as [`LossReason::Superseded`]. If the future is
    /// dropped, nothing stays behind.
    ///
    /// # Errors
    /// [`Error::AlreadyRegistered`] when the id belongs to another client; [`Error::Closed`] after close.
    async fn publish(&self, service: &ServiceInfo) -> Result<Place>;
}

/// Where a registration stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistrationStatus {
    /// Clients can discover it.
    Registered,
    /// It was lost and is being registered again.
    Recovering {
        /// Since when.
        since: Instant,
        /// How it was lost.
        reason: LossReason,
    },
    /// It is over for good.
    Ended(LossReason),
}

/// A kept registration: renewed, and registered again when it is lost. Dropping it deregisters in the
/// background.
#[must_use = "dropping the registration deregisters the instance"]
pub struct Registration {
    service: ServiceInfo,
    ttl: Duration,
    /// Boxed, because a channel has room for 32 from its beginning, and a process may have many registrations.
    commands: mpsc::Sender<Box<Command>>,
    status: watch::Receiver<RegistrationStatus>,
}

enum Command {
    Update(Change, oneshot::Sender<Result<()>>),
    Deregister(oneshot::Sender<Result<()>>),
}

/// A change of the record.
enum Change {
    Metadata(BTreeMap<String, String>),
    Serving(bool),
}

impl Change {
    fn apply(self, service: &mut ServiceInfo) {
        match self {
            Self::Metadata(metadata) => service.metadata = metadata,
            Self::Serving(serving) => service.mark(serving),
        }
    }
}

impl Registration {
    /// How long [`drain`](Self::drain) waits: 3 s, which covers a watch that is just being opened again.
    pub const DRAIN: Duration = Duration::from_secs(3);

    /// Publishes `service` and keeps it on `runtime` until the handle is dropped; for backends.
    ///
    /// # Errors
    /// As the first [`Publish::publish`].
    pub async fn start(runtime: &Handle, publisher: Arc<dyn Publish>, service: ServiceInfo) -> Result<Self> {
        let place = publisher.publish(&service).await?;
        let ttl = place.hold().lease().ttl();
        let (status_sender, status) = watch::channel(RegistrationStatus::Registered);
        let (commands, inbox) = mpsc::channel(8);
        let keeper = Keeper { publisher, service: service.clone(), status: status_sender, inbox };
        runtime.spawn(keeper.run(place));
        Ok(Self { service, ttl, commands, status })
    }

    /// The record as it was registered first.
    pub fn service(&self) -> &ServiceInfo {
        &self.service
    }

    /// The time to live that the store granted.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Where the registration stands now.
    pub fn status(&self) -> RegistrationStatus {
        *self.status.borrow()
    }

    /// Waits for the next change of the status and returns what it is then. Once ended, waits for ever.
    ///
    /// # Cancel safety
    /// No change is lost when this is dropped and called again; quick changes are seen as one.
    pub async fn status_changed(&mut self) -> RegistrationStatus {
        if self.status.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.status.borrow_and_update()
    }

    /// Whether the registration is over for good. One that is being recovered is not.
    pub fn is_lost(&self) -> bool {
        matches!(self.status(), RegistrationStatus::Ended(_))
    }

    /// Waits until the registration is over for good.
    pub fn lost(&self) -> impl Future<Output = LossReason> + Send + 'static {
        let mut status = self.status.clone();
        async move {
            let ended = status.wait_for(|status| matches!(status, RegistrationStatus::Ended(_))).await;
            match ended.as_deref() {
                Ok(RegistrationStatus::Ended(reason)) => *reason,
                // The keeper's runtime was shut down, and the keeper with it.
                _ => LossReason::Closed,
            }
        }
    }

    /// Replaces the metadata. While the registration is being recovered the new metadata goes out with it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] or [`Error::TooLarge`] before anything is sent; [`Error::Lost`] when the
    /// registration is over; [`Error::Unavailable`] or [`Error::Timeout`], after which the new metadata goes
    /// out with the next registration at the latest.
    ///
    /// # Cancel safety
    /// Once called the update may take effect, also if this future is dropped.
    pub async fn update(&self, metadata: BTreeMap<String, String>) -> Result<()> {
        check_metadata(&metadata)?;
        self.ask(|reply| Command::Update(Change::Metadata(metadata), reply)).await
    }

    /// Marks the instance as one that clients shall choose or leave out, for as long as it stays registered: while it
    /// warms up, loads, or is being looked at. It stays in the list, with the mark
    /// ([`ServiceInfo::is_serving`]); connections of coord-grpc give it no new calls. Updates of the metadata keep the
    /// mark, and so does a recovery.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    ///
    /// # Cancel safety
    /// As [`update`](Self::update).
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{Provider, ServiceInfo, ServiceRegistry};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let registry = coord_memory::Store::new().client().registry();
    /// let me = ServiceInfo::new("im-logic", "im-logic-1", "10.0.1.10", 8080);
    /// let registration = registry.register(me, Duration::from_secs(30)).await?;
    /// registration.serving(false).await?;
    /// assert!(!registry.discover("im-logic").await?[0].is_serving());
    /// registration.serving(true).await?;
    /// # Ok(()) }
    /// ```
    pub async fn serving(&self, serving: bool) -> Result<()> {
        self.ask(|reply| Command::Update(Change::Serving(serving), reply)).await
    }

    /// Deregisters and waits until the store has done it.
    ///
    /// # Errors
    /// [`Error::Lost`] when it was not registered at this moment; it is not registered again. On any other
    /// error the removal goes on in the background.
    ///
    /// # Cancel safety
    /// Once called the instance is deregistered, also if this future is dropped.
    pub async fn deregister(self) -> Result<()> {
        self.ask(Command::Deregister).await
    }

    /// Leaves without failed calls: [`drain_for`](Self::drain_for) [`DRAIN`](Self::DRAIN).
    ///
    /// # Errors
    /// As [`deregister`](Self::deregister), after the same wait.
    ///
    /// # Cancel safety
    /// As [`drain_for`](Self::drain_for).
    pub async fn drain(self) -> Result<()> {
        self.drain_for(Self::DRAIN).await
    }

    /// Deregisters, then waits for `grace`, so that clients see that the instance is gone and call others. Go on
    /// serving until this returns, then shut the server down; the calls that have come in until then are its own
    /// to finish.
    ///
    /// Nobody can tell when every client has seen it. Those that hear from the store see it within milliseconds;
    /// those whose watch is just being opened again, within two seconds after they reach the store. One that is
    /// cut off goes on calling until it hears from the store again.
    ///
    /// # Errors
    /// As [`deregister`](Self::deregister), after the same wait: clients may still know the instance from before.
    ///
    /// # Cancel safety
    /// Once called the instance is deregistered, also if this future is dropped; only the wait ends.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{Provider, ServiceInfo, ServiceRegistry};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # tokio::time::pause();
    /// let registry = coord_memory::Store::new().client().registry();
    /// let me = ServiceInfo::new("im-logic", "im-logic-1", "10.0.1.10", 8080);
    /// let registration = registry.register(me, Duration::from_secs(30)).await?;
    /// let view = registry.view("im-logic").await?;
    /// // … on SIGTERM:
    /// registration.drain_for(Duration::from_secs(5)).await?;
    /// assert!(view.instances().is_empty());
    /// // now the server can stop
    /// # Ok(()) }
    /// ```
    pub async fn drain_for(self, grace: Duration) -> Result<()> {
        let outcome = self.deregister().await;
        timer::sleep(grace).await;
        outcome
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<Result<()>>) -> Command) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        if self.commands.send(Box::new(command(reply))).await.is_ok()
            && let Ok(result) = answer.await
        {
            return result;
        }
        let reason = match self.status() {
            RegistrationStatus::Ended(reason) => reason,
            _ => LossReason::Closed,
        };
        Err(Error::Lost { reason })
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("service", &self.service.name)
            .field("id", &self.service.id)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// The task behind a [`Registration`]; ends with its handle, with the provider, or when superseded.
struct Keeper {
    publisher: Arc<dyn Publish>,
    service: ServiceInfo,
    status: watch::Sender<RegistrationStatus>,
    inbox: mpsc::Receiver<Box<Command>>,
}

impl Keeper {
    async fn run(mut self, mut place: Place) {
        let reason = loop {
            tokio::select! {
                biased;
                // Boxed as well: seldom needed, and then large.
                reason = place.hold().lost() => match Box::pin(self.recover(reason, place.hold().cause())).await {
                    Ok(recovered) => place = recovered,
                    Err(reason) => break reason,
                },
                command = self.inbox.recv() => match command.map(|command| *command) {
                    Some(Command::Update(change, reply)) => {
                        let result = Box::pin(self.update(change, &mut place)).await;
                        let _ = reply.send(result);
                    }
                    Some(Command::Deregister(reply)) => {
                        let result = place.give_back().await;
                        let _ = reply.send(result);
                        break LossReason::Released;
                    }
                    // The handle was dropped; dropping the place frees it in the background.
                    None => break LossReason::Released,
                },
            }
        };
        self.status.send_replace(RegistrationStatus::Ended(reason));
    }

    async fn update(&mut self, change: Change, place: &mut Place) -> Result<()> {
        change.apply(&mut self.service);
        let updated = self.publisher.publish(&self.service).await?;
        // The entry now belongs to the new place alone.
        std::mem::replace(place, updated).forget();
        Ok(())
    }

    /// Registers again and again until it succeeds; answers commands meanwhile.
    async fn recover(&mut self, reason: LossReason, cause: Option<Arc<str>>) -> Result<Place, LossReason> {
        if matches!(reason, LossReason::Closed | LossReason::Superseded) {
            return Err(reason);
        }
        let (service, id) = (self.service.name.clone(), self.service.id.clone());
        metrics::counter!("coord_registrations_lost_total", "service" => service.clone()).increment(1);
        let cause = cause.as_deref();
        tracing::warn!(service, id, %reason, cause, "registration lost, registering again");
        self.status.send_replace(RegistrationStatus::Recovering { since: Instant::now(), reason });
        // Instances should be back within two seconds after the store is.
        let longest = Duration::from_millis(500);
        let mut pauses = ExponentialBuilder::default()
            .with_min_delay(Duration::from_millis(50))
            .with_max_delay(longest)
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            match self.publisher.publish(&self.service).await {
                Ok(place) => {
                    metrics::counter!("coord_registrations_recovered_total", "service" => service.clone())
                        .increment(1);
                    tracing::info!(service, id, "registered again");
                    self.status.send_replace(RegistrationStatus::Registered);
                    return Ok(place);
                }
                Err(Error::Closed) => return Err(LossReason::Closed),
                Err(error) => tracing::warn!(service, id, %error, "registering again failed, trying on"),
            }
            let pause = tokio::time::sleep(pauses.next().unwrap_or(longest));
            tokio::pin!(pause);
            loop {
                tokio::select! {
                    () = &mut pause => break,
                    command = self.inbox.recv() => match command.map(|command| *command) {
                        Some(Command::Update(change, reply)) => {
                            change.apply(&mut self.service);
                            let _ = reply.send(Ok(()));
                        }
                        Some(Command::Deregister(reply)) => {
                            let _ = reply.send(Err(Error::Lost { reason }));
                            return Err(reason);
                        }
                        None => return Err(LossReason::Released),
                    },
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::{Hold, Lease, backend::Release};

    /// A store of one record that remembers every publication and fails when told to.
    #[derive(Default)]
    struct Fake {
        published: Mutex<Vec<BTreeMap<String, String>>>,
        serving: Mutex<bool>,
        last: Mutex<Option<Hold>>,
        failures: Mutex<Vec<Error>>,
    }

    struct Nothing;

    #[async_trait]
    impl Release for Nothing {
        async fn release(&self) -> Result<()> {
            Ok(())
        }
        fn release_in_background(&self) {}
    }

    #[async_trait]
    impl Publish for Fake {
        async fn publish(&self, service: &ServiceInfo) -> Result<Place> {
            if let Some(error) = self.failures.lock().expect("no panic").pop() {
                return Err(error);
            }
            self.published.lock().expect("no panic").push(service.metadata.clone());
            *self.serving.lock().expect("no panic") = service.is_serving();
            let hold = Hold::on(Lease::granted(Instant::now(), Duration::from_secs(86_400)));
            *self.last.lock().expect("no panic") = Some(hold.clone());
            Ok(Place::new(hold, Nothing))
        }
    }

    impl Fake {
        fn lose(&self, reason: LossReason) {
            self.last.lock().expect("no panic").take().expect("is published").end(reason);
        }
        fn fail_next(&self, error: Error) {
            self.failures.lock().expect("no panic").push(error);
        }
        fn is_serving(&self) -> bool {
            *self.serving.lock().expect("no panic")
        }
        fn count(&self) -> usize {
            self.published.lock().expect("no panic").len()
        }
    }

    async fn start() -> (Arc<Fake>, Registration) {
        let fake = Arc::new(Fake::default());
        let service = ServiceInfo::new("svc", "1", "10.0.0.1", 80);
        let registration = Registration::start(&Handle::current(), fake.clone(), service).await;
        (fake, registration.expect("nothing fails"))
    }

    fn down() -> Error {
        Error::Unavailable { what: "store".into(), source: None }
    }

    #[tokio::test(start_paused = true)]
    async fn comes_back_after_every_loss_with_its_latest_metadata() {
        let (fake, mut registration) = start().await;
        let latest = BTreeMap::from([("v".to_owned(), "2".to_owned())]);
        registration.update(latest.clone()).await.expect("is registered");
        for _ in 0..3 {
            fake.fail_next(down());
            fake.lose(LossReason::Revoked);
            assert!(matches!(registration.status_changed().await, RegistrationStatus::Recovering { .. }));
            assert_eq!(registration.status_changed().await, RegistrationStatus::Registered);
        }
        assert_eq!(fake.count(), 5);
        assert_eq!(fake.published.lock().expect("no panic").last(), Some(&latest));
        assert!(!registration.is_lost());
    }

    #[tokio::test(start_paused = true)]
    async fn an_update_during_recovery_goes_out_with_it() {
        let (fake, mut registration) = start().await;
        fake.fail_next(down());
        fake.lose(LossReason::Deleted);
        registration.status_changed().await;
        let latest = BTreeMap::from([("v".to_owned(), "3".to_owned())]);
        registration.update(latest.clone()).await.expect("is kept for later");
        assert_eq!(registration.status_changed().await, RegistrationStatus::Registered);
        assert_eq!(fake.published.lock().expect("no panic").last(), Some(&latest));
    }

    #[tokio::test(start_paused = true)]
    async fn mark_during_recovery_goes_out_with_it_and_an_update_keeps_it() {
        let (fake, mut registration) = start().await;
        fake.fail_next(down());
        fake.lose(LossReason::Deleted);
        registration.status_changed().await;
        registration.serving(false).await.expect("is kept for later");
        assert_eq!(registration.status_changed().await, RegistrationStatus::Registered);
        assert!(!fake.is_serving());
        registration.update(BTreeMap::new()).await.expect("is registered");
        assert!(!fake.is_serving());
        registration.serving(true).await.expect("is registered");
        assert!(fake.is_serving());
    }

    #[tokio::test(start_paused = true)]
    async fn deregister_while_lost_answers_lost_and_stays_away() {
        let (fake, mut registration) = start().await;
        fake.fail_next(down());
        fake.lose(LossReason::Expired);
        registration.status_changed().await;
        let answer = registration.deregister().await;
        assert!(matches!(answer, Err(Error::Lost { reason: LossReason::Expired })), "{answer:?}");
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(fake.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn ends_when_closed_superseded_or_dropped() {
        for reason in [LossReason::Closed, LossReason::Superseded] {
            let (fake, registration) = start().await;
            fake.lose(reason);
            assert_eq!(registration.lost().await, reason);
            assert!(matches!(registration.update(BTreeMap::new()).await, Err(Error::Lost { .. })));
        }
        let (_fake, registration) = start().await;
        let lost = registration.lost();
        drop(registration);
        assert_eq!(lost.await, LossReason::Released);
    }
}
