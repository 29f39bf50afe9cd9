//! Registration: the handle of an instance in the registry.

use std::{collections::BTreeMap, fmt, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::Instant,
};

use crate::{Error, LossReason, Result, ServiceInfo, service::check_metadata, timer};

/// Status of a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistrationStatus {
    /// Clients can discover it.
    Registered,
    /// Lost, and being registered again.
    Recovering {
        /// Time of the loss.
        since: Instant,
        /// Reason of the loss.
        reason: LossReason,
    },
    /// Over for good.
    Ended(LossReason),
}

/// Registration that is renewed, and registered again when it is lost. Dropping it deregisters in the background.
#[must_use = "dropping the registration deregisters the instance"]
pub struct Registration {
    service: ServiceInfo,
    ttl: Duration,
    /// Boxed, because a channel has room for 32 from its beginning, and a process may have many registrations.
    commands: mpsc::Sender<Box<Command>>,
    status: watch::Receiver<RegistrationStatus>,
}

/// Order of a handle to its keeper.
pub(crate) enum Command {
    Update(Change, oneshot::Sender<Result<()>>),
    Deregister(oneshot::Sender<Result<()>>),
}

/// Change of the record.
pub(crate) enum Change {
    Metadata(BTreeMap<String, String>),
    Serving(bool),
}

impl Change {
    pub(crate) fn apply(self, service: &mut ServiceInfo) {
        match self {
            Self::Metadata(metadata) => service.metadata = metadata,
            Self::Serving(serving) => service.mark(serving),
        }
    }
}

impl Registration {
    /// Time that [`drain`](Self::drain) waits: 3 s, which covers a watch that is just being opened again.
    pub const DRAIN: Duration = Duration::from_secs(3);

    /// Returns the record as it was first registered.
    pub fn service(&self) -> &ServiceInfo {
        &self.service
    }

    /// Returns the time to live that the store granted.
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// Returns where the registration stands now.
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

    /// Returns whether the registration is over for good. A registration that is being recovered is not.
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
    /// - [`Error::InvalidArgument`] or [`Error::TooLarge`] before anything is sent;
    /// - [`Error::Lost`] when the registration is over;
    /// - [`Error::Unavailable`] or [`Error::Timeout`], after which the new metadata goes out with the next
    ///   registration at the latest.
    ///
    /// # Cancel safety
    /// Once called the update may take effect, also if this future is dropped.
    pub async fn update(&self, metadata: BTreeMap<String, String>) -> Result<()> {
        check_metadata(&metadata)?;
        self.ask(|reply| Command::Update(Change::Metadata(metadata), reply)).await
    }

    /// Marks whether clients shall choose the instance, for as long as it stays registered: while it warms
    /// up, loads, or is being looked at. It stays in the list, with the mark ([`ServiceInfo::is_serving`]);
    /// connections of coord-grpc give it no new calls. Updates of the metadata keep the mark, and so does a
    /// recovery.
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
    /// Nobody can tell when every client has seen it. Clients that hear from the store see it within
    /// milliseconds. Clients whose watch is just being opened again see it within two seconds after they
    /// reach the store. A client that is cut off goes on calling until it hears from the store again.
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

    pub(crate) fn new(
        service: ServiceInfo,
        ttl: Duration,
        commands: mpsc::Sender<Box<Command>>,
        status: watch::Receiver<RegistrationStatus>,
    ) -> Self {
        Self { service, ttl, commands, status }
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
