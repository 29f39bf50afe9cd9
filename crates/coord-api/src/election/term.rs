//! Term of a leader.

use std::{fmt, pin::pin, sync::Mutex, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Candidate, check_value};
use crate::{
    ElectionName, Error, Fence, FencingToken, Hold, Lost, Owner, Result,
    backend::Place,
    fence::{Fenced, HasFence},
    mutex::lock,
};

/// Entry of a leader in the store, for backends.
#[async_trait]
pub trait LeaderEntry: Send + Sync + 'static {
    /// Writes another value into the leader's own entry. May be dropped and called again.
    ///
    /// # Errors
    /// [`Error::Lost`] if the entry is gone. [`Error::Timeout`] if it is not known whether the value was written; a later
    /// call is never overtaken by it.
    async fn proclaim(&self, value: Bytes) -> Result<()>;

    /// Makes a candidate that waits the next one after the leader, which goes on to lead. May be dropped.
    ///
    /// # Errors
    /// [`Error::Lost`] if the leader's entry is gone; others as the store answers.
    async fn make_next(&self, successor: &Successor) -> Result<Succession>;
}

/// Candidate that a leader names as the next one.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Successor {
    /// The candidate of this client.
    Owner(Owner),
    /// The first candidate of a client with this label.
    Label(String),
    /// The first candidate with this value, which may be of another program.
    Value(Bytes),
}

impl Successor {
    /// Returns whether a candidate is meant.
    pub fn is(&self, candidate: &Candidate) -> bool {
        match self {
            Self::Owner(owner) => candidate.owner.as_ref() == Some(owner),
            Self::Label(label) => {
                candidate.owner.as_ref().is_some_and(|owner| owner.label.as_ref() == Some(label))
            }
            Self::Value(value) => candidate.value == *value,
        }
    }
}

/// Answer of a backend to [`LeaderEntry::make_next`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Succession {
    /// The candidate is the next one.
    Next(Candidate),
    /// No such candidate waits.
    NotWaiting,
    /// Candidates of other programs wait before it. They can not be told to stand behind it.
    Blocked,
}

/// Outcome of [`Term::hand_over`].
#[derive(Debug)]
#[must_use = "the term goes on if the successor does not lead"]
#[non_exhaustive]
pub enum HandOver {
    /// The term is over, and this candidate leads next, unless it is gone by then.
    To(Candidate),
    /// No such candidate waits. The term goes on.
    NotWaiting(Term),
    /// Candidates of other programs wait before the successor. The term goes on.
    Blocked(Term),
}

/// Time in which a candidate leads. [`resign`](Self::resign) ends it and says whether it lasted until then. Dropping
/// it ends it as well, in the background.
///
/// It fences writes as a [`LockGuard`](crate::LockGuard) does; see [`Fence`].
#[must_use = "dropping the term resigns"]
pub struct Term {
    election: ElectionName,
    key: String,
    token: FencingToken,
    hold: Hold,
    /// `None` once it is given back.
    place: Mutex<Option<Place>>,
    entry: Box<dyn LeaderEntry>,
}

impl Term {
    /// A term over a place that a backend holds.
    pub fn new(
        election: ElectionName,
        key: String,
        token: FencingToken,
        place: Place,
        entry: impl LeaderEntry,
    ) -> Self {
        let hold = place.hold().clone();
        Self { election, key, token, hold, place: Mutex::new(Some(place)), entry: Box::new(entry) }
    }

    /// The election's name.
    pub fn election(&self) -> &str {
        self.election.as_str()
    }

    /// The key of the leader in the store. The caller may make writes depend on the token. So the next candidate leads only
    /// when the store has deleted it, also within a process.
    pub fn key(&self) -> &str {
        self.hold.fences();
        &self.key
    }

    /// The fencing token of this term.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// The time to live that the store granted; at least what was asked for.
    pub fn ttl(&self) -> Duration {
        self.hold.lease().ttl()
    }

    /// Returns how long the term certainly lasts without another renewal; zero once it is over.
    pub fn remaining(&self) -> Duration {
        if self.is_lost() { Duration::ZERO } else { self.hold.lease().remaining() }
    }

    /// A future of the term's end, to be selected against work that runs elsewhere.
    pub fn lost(&self) -> Lost {
        self.hold.lost()
    }

    /// Returns whether the term is over. Exact at the moment of the call, also right after a freeze.
    pub fn is_lost(&self) -> bool {
        self.hold.loss().is_some()
    }

    /// `Ok` while the term lasts.
    ///
    /// # Errors
    /// [`Error::Lost`] once it is over.
    pub fn check(&self) -> Result<()> {
        self.hold.check()
    }

    /// Runs `work` as long as the term lasts.
    ///
    /// # Errors
    /// [`Error::Lost`] as soon as the term is over; `work` is dropped at its current await point then.
    ///
    /// # Cancel safety
    /// Dropping this future drops `work`; the term goes on.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output> {
        let work = pin!(work);
        tokio::select! {
            biased;
            reason = self.lost() => Err(Error::Lost { reason }),
            output = work => self.check().map(|()| output),
        }
    }

    /// Changes the leader's value, which observers are told. Of two calls the later one counts, whatever answers get lost.
    ///
    /// # Errors
    /// - [`Error::TooLarge`] above [`MAX_CANDIDATE_BYTES`](crate::MAX_CANDIDATE_BYTES), before anything is sent;
    /// - [`Error::Lost`] if the term is over, whether the leader knew it or not; nothing is written then;
    /// - [`Error::Timeout`] if it is not known whether the value was written.
    ///
    /// # Cancel safety
    /// If the future is dropped, the value was written or not.
    pub async fn proclaim(&self, value: impl Into<Bytes>) -> Result<()> {
        let value = value.into();
        check_value(&value)?;
        self.check()?;
        self.entry.proclaim(value).await
    }

    /// Ends the term and waits until the store knows. The next candidate need not wait for that if it is a task of
    /// the same client. It does wait if the term was used as a [`Fence`], or its [`key`](Self::key) was asked for.
    ///
    /// # Errors
    /// [`Error::Lost`] if it was over already. On any other error the resignation goes on in the background
    /// until the store has it or the lease is over. It never ends a later term.
    ///
    /// # Cancel safety
    /// Once called the term is over, also if this future is dropped.
    pub async fn resign(self) -> Result<()> {
        self.end().await
    }

    /// Resigns in favour of a candidate that waits. Candidates before it have to stand behind it: they take new places in
    /// the queue. Candidates of other programs can not be asked to do so.
    ///
    /// # Errors
    /// As [`resign`](Self::resign). On every error the term ends in the background.
    ///
    /// # Cancel safety
    /// If the future is dropped, the term ends in the background; the successor leads next or not.
    ///
    /// # Example
    /// ```
    /// use std::time::Duration;
    /// use coord_api::{ElectionsExt, ElectorOptions, HandOver, Provider, Successor};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// let elections = coord_memory::Store::new().client().elections();
    /// let elector = elections.elector("report", ElectorOptions::new(Duration::from_secs(10)))?;
    /// let term = elector.campaign().await?;
    /// match term.hand_over(&Successor::Label("blue".into())).await? {
    ///     HandOver::To(next) => println!("{:?} leads", next.owner),
    ///     HandOver::NotWaiting(term) | HandOver::Blocked(term) => term.resign().await?,
    ///     _ => {}
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn hand_over(self, to: &Successor) -> Result<HandOver> {
        self.check()?;
        Ok(match self.make_next(to).await? {
            Succession::Next(candidate) => {
                self.end().await?;
                HandOver::To(candidate)
            }
            Succession::NotWaiting => HandOver::NotWaiting(self),
            Succession::Blocked => HandOver::Blocked(self),
        })
    }

    pub(super) async fn make_next(&self, to: &Successor) -> Result<Succession> {
        self.entry.make_next(to).await
    }

    /// Gives the place back, whoever else has this term.
    pub(super) async fn end(&self) -> Result<()> {
        match self.take_place() {
            Some(place) => place.give_back().await,
            None => self.check(),
        }
    }

    /// Takes the place, which is given back by being dropped.
    pub(super) fn take_place(&self) -> Option<Place> {
        lock(&self.place).take()
    }
}

impl Fence for Term {}

impl HasFence for Term {
    fn fenced(&self) -> Fenced<'_> {
        Fenced { key: &self.key, token: self.token, hold: &self.hold }
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Term")
            .field("election", &self.election)
            .field("token", &self.token)
            .field("lost", &self.hold.loss())
            .finish_non_exhaustive()
    }
}
