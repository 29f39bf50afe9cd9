//! A candidate of one election, which leads again and again.

use std::{fmt, ops::ControlFlow, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    Candidate, Elections, LeaderView, Term,
    term::{Succession, Successor},
};
use crate::{Error, LossReason, Owner, Result, backoff::Backoff, election::Candidacy, timer};

/// Pauses between two terms, and between attempts to be a candidate.
const SHORTEST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_secs(1);

/// Time in which a mistake in the configuration shows itself.
const FIRST: Duration = Duration::from_secs(10);

/// Options of an [`Elector`].
#[derive(Clone)]
pub struct ElectorOptions {
    ttl: Duration,
    value: Bytes,
    successor: Option<String>,
}

impl ElectorOptions {
    /// The options of a candidate without a value, on leases of `ttl`. So long it takes until another candidate leads when
    /// the leader's process was killed.
    pub fn new(ttl: Duration) -> Self {
        Self { ttl, value: Bytes::new(), successor: None }
    }

    /// Sets the value that others see of this candidate, such as its address. It is no place for secrets.
    #[must_use]
    pub fn value(mut self, value: impl Into<Bytes>) -> Self {
        self.value = value.into();
        self
    }

    /// Sets the label of the client to which [`Elector::lead`] hands over when its work has ended, if that one waits then.
    #[must_use]
    pub fn successor(mut self, label: impl Into<String>) -> Self {
        self.successor = Some(label.into());
        self
    }
}

impl fmt::Debug for ElectorOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ElectorOptions")
            .field("ttl", &self.ttl)
            .field("bytes", &self.value.len())
            .field("successor", &self.successor)
            .finish()
    }
}

/// A candidate of one election; from [`ElectionsExt::elector`](crate::ElectionsExt::elector). It holds nothing of the
/// store until it campaigns. Clones are other candidates with the same options.
///
/// # Example
/// ```
/// use std::{ops::ControlFlow, time::Duration};
/// use coord_api::{ElectionsExt, ElectorOptions, Provider};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// let elections = coord_memory::Store::new().client().elections();
/// let options = ElectorOptions::new(Duration::from_secs(10)).value("10.0.1.10:8080");
/// let elector = elections.elector("report", options)?;
/// let token = elector
///     .lead(|term| async move {
///         // Work for one process at a time. It is dropped at an await point if the term is lost.
///         ControlFlow::Break(term.token())
///     })
///     .await?;
/// assert!(token.get() > 0);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Elector {
    elections: Arc<dyn Elections>,
    election: String,
    options: ElectorOptions,
}

/// Term that a candidate leads for; its place is given back when this is dropped, whoever else has the term.
struct Led(Arc<Term>);

impl Drop for Led {
    fn drop(&mut self) {
        drop(self.0.take_place());
    }
}

impl Elector {
    /// Makes a candidate over any elections.
    ///
    /// # Errors
    /// As [`ElectionsExt::elector`](crate::ElectionsExt::elector).
    pub fn new(elections: Arc<dyn Elections>, election: &str, options: ElectorOptions) -> Result<Self> {
        Candidacy::parse(election, options.ttl, options.value.clone())?;
        if let Some(label) = &options.successor {
            Owner::check_label(label)?;
        }
        Ok(Self { elections, election: election.to_owned(), options })
    }

    /// The election's name.
    pub fn election(&self) -> &str {
        &self.election
    }

    /// Waits in order of arrival until this candidate leads.
    ///
    /// # Errors
    /// As [`Elections::campaign`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the candidate is gone.
    pub async fn campaign(&self) -> Result<Term> {
        let ElectorOptions { ttl, value, .. } = &self.options;
        self.elections.campaign(&self.election, *ttl, value.clone()).await
    }

    /// Leads again and again: campaigns, and runs `work` for each term until it says `Break`.
    ///
    /// - The work is dropped at its current await point as soon as the term is lost, which is before anyone else can
    ///   lead. Then this candidate campaigns again, after a pause.
    /// - The place is given back only when the work has ended or was dropped. Work that does not end leads for as long as its
    ///   lease is renewed.
    /// - `Continue` resigns, and campaigns again behind all candidates that wait.
    /// - `Break` resigns, and ends this call. It counts also if the term was lost in the same moment.
    /// - Clones of the term that the work has left elsewhere are lost from then on.
    /// - Outages are waited out. After ten seconds, or the first term, so is every other error but [`Error::Closed`].
    ///
    /// # Errors
    /// [`Error::Closed`] once the provider is closed. Before the first term and within ten seconds also errors that waiting
    /// does not mend, as [`Error::PermissionDenied`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the work is dropped first, and then the place is given back in the background.
    pub async fn lead<T, F, W>(&self, mut work: F) -> Result<T>
    where
        F: FnMut(Arc<Term>) -> W,
        W: Future<Output = ControlFlow<T>>,
    {
        let mut backoff = Backoff::new(SHORTEST, LONGEST);
        let begun = timer::after(Duration::ZERO);
        let mut has_led = false;
        loop {
            match self.campaign().await {
                Ok(term) => {
                    has_led = true;
                    let since = timer::after(Duration::ZERO);
                    if let Some(output) = self.serve(Led(Arc::new(term)), &mut work).await? {
                        return Ok(output);
                    }
                    if since.elapsed() > LONGEST {
                        backoff.reset();
                    }
                }
                Err(Error::Closed) => return Err(Error::Closed),
                Err(error) if error.is_retryable() => {
                    tracing::debug!(election = self.election, %error, "campaigns again");
                }
                Err(error) if has_led || begun.elapsed() > FIRST => {
                    tracing::warn!(election = self.election, %error, "campaigns again");
                }
                Err(error) => return Err(error),
            }
            timer::sleep(backoff.pause()).await;
        }
    }

    /// Runs the work for one term, and gives the place back after its end. Returns its output if that is the last one.
    async fn serve<T, F, W>(&self, led: Led, work: &mut F) -> Result<Option<T>>
    where
        F: FnMut(Arc<Term>) -> W,
        W: Future<Output = ControlFlow<T>>,
    {
        // No work begins for a term that is over already.
        if led.0.is_lost() {
            return Ok(None);
        }
        let ended = {
            let work = pin!(work(led.0.clone()));
            tokio::select! {
                biased;
                reason = led.0.lost() => Err(reason),
                output = work => Ok(output),
            }
        };
        match ended {
            Err(LossReason::Closed) => Err(Error::Closed),
            Err(reason) => {
                tracing::debug!(election = self.election, %reason, "leads no longer");
                Ok(None)
            }
            Ok(ControlFlow::Continue(())) => {
                self.step_down(&led.0).await;
                Ok(None)
            }
            Ok(ControlFlow::Break(output)) => {
                self.step_down(&led.0).await;
                Ok(Some(output))
            }
        }
    }

    /// Resigns, in favour of the successor if it waits. A resignation that fails goes on in the background.
    async fn step_down(&self, term: &Term) {
        if let Some(label) = &self.options.successor {
            match term.make_next(&Successor::Label(label.clone())).await {
                Ok(Succession::Next(_)) => {}
                Ok(other) => tracing::debug!(election = self.election, ?other, "hands over to nobody"),
                Err(error) => tracing::debug!(election = self.election, %error, "hands over to nobody"),
            }
        }
        if let Err(error) = term.end().await {
            tracing::debug!(election = self.election, %error, "resigned");
        }
    }

    /// Returns the candidates as they are now, in order: the first leads, the others wait.
    ///
    /// # Errors
    /// As [`Elections::candidates`].
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn candidates(&self) -> Result<Vec<Candidate>> {
        self.elections.candidates(&self.election).await
    }

    /// Opens a view of who leads. The leader is known when this returns.
    ///
    /// # Errors
    /// As [`Elections::watch_leader`].
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    pub async fn observe(&self) -> Result<LeaderView> {
        LeaderView::open(self.elections.watch_leader(&self.election).await?).await
    }
}
