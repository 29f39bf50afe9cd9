//! Keeper of registrations: publishes a record, and publishes it again with a backoff when it is lost.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::Instant,
};

use super::Place;
use crate::{
    Error, LossReason, Registration, RegistrationStatus, Result, ServiceInfo,
    backoff::Backoff,
    registration::{Change, Command},
};

/// Publisher of registrations, for backends.
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

impl Registration {
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
        Ok(Self::new(service, ttl, commands, status))
    }
}

/// Task behind a [`Registration`]. It ends with its handle, with the provider, or when superseded.
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
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
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
            let pause = tokio::time::sleep(backoff.pause());
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
    use std::{collections::BTreeMap, sync::Mutex};

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
