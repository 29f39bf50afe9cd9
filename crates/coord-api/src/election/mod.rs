//! Elections: of all candidates, one leads at a time.

mod elector;
mod term;
mod view;

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{ElectionName, Error, FencingToken, Owner, Result, Ttl, Watch};

pub use elector::{Elector, ElectorOptions};
pub use term::{HandOver, LeaderEntry, Succession, Successor, Term};
pub use view::{Leader, LeaderView};

/// The largest value of a candidate in bytes: an address, a name, some facts, but no state.
pub const MAX_CANDIDATE_BYTES: usize = 4096;

/// Leader election between processes, and between tasks of one process.
///
/// Users make an [`Elector`] with [`ElectionsExt::elector`].
///
/// # Contract
/// - **At most one leads**, as far as the candidates themselves believe. A leader is told of its loss before anyone else can
///   lead.
/// - **Order of arrival.** The candidate that came first leads first, across processes and across tasks of one process.
///   [`Term::hand_over`] is the only exception.
/// - **Waiting holds nothing.** A candidate outlasts outages and lost leases: it takes another place, behind those who came
///   meanwhile. It never leads by a place that is gone.
/// - **Leased and fenced**, as a [lock](crate::DistributedLock) is. Each term has a [`FencingToken`] larger than
///   every term's before it, and fences writes as a [`LockGuard`](crate::LockGuard) does.
/// - **Known.** Each candidate has a value that everybody can read, such as its address. It is no place for secrets.
/// - Names follow the rule of [`ElectionName`]. An election and a lock of one name are two things.
///
/// # Cancel safety
/// Every future here may be dropped at any point: no candidate stays behind.
#[async_trait]
pub trait Elections: fmt::Debug + Send + Sync {
    /// Waits as a candidate until it leads.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] and [`Error::TooLarge`] before anything is sent;
    /// - [`Error::Closed`];
    /// - [`Error::Unavailable`] or [`Error::Timeout`] if the store could not be reached when it was asked
    ///   first. No candidate stays behind then.
    ///
    /// A candidate that waits outlasts outages. It answers only errors that waiting does not mend, as
    /// [`Error::PermissionDenied`].
    async fn campaign(&self, election: &str, ttl: Duration, value: Bytes) -> Result<Term>;

    /// Returns the candidates of an election as they are now, in order: the first leads, the others wait.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::Closed`], [`Error::Unavailable`], [`Error::Timeout`].
    async fn candidates(&self, election: &str) -> Result<Vec<Candidate>>;

    /// Returns every election that has a candidate, with its candidates, as they were at one moment. For people who look
    /// after a store: it reads all candidates.
    ///
    /// # Errors
    /// As [`candidates`](Self::candidates).
    async fn elections(&self) -> Result<BTreeMap<String, Vec<Candidate>>>;

    /// Watches who leads: the leader now, then each change of leader or of its value. `None` is told while nobody leads.
    /// Changes that come together may be told as their last one. Users call [`observe`](ElectionsExt::observe).
    ///
    /// # Errors
    /// [`Error::InvalidArgument`], [`Error::Closed`], [`Error::Unavailable`], [`Error::Timeout`],
    /// [`Error::PermissionDenied`].
    async fn watch_leader(&self, election: &str) -> Result<Watch<Option<Candidate>>>;
}

/// Sugar over every [`Elections`].
pub trait ElectionsExt {
    /// Makes a candidate for an election, without asking the store.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad name or option; [`Error::TooLarge`] for a value above
    /// [`MAX_CANDIDATE_BYTES`].
    fn elector(&self, election: &str, options: ElectorOptions) -> Result<Elector>;

    /// Opens a view of who leads an election, without being a candidate. The leader is known when this returns.
    ///
    /// # Errors
    /// As [`Elections::watch_leader`].
    ///
    /// # Cancel safety
    /// May be dropped at any point.
    fn observe(&self, election: &str) -> impl Future<Output = Result<LeaderView>> + Send;
}

impl ElectionsExt for Arc<dyn Elections> {
    fn elector(&self, election: &str, options: ElectorOptions) -> Result<Elector> {
        Elector::new(self.clone(), election, options)
    }

    async fn observe(&self, election: &str) -> Result<LeaderView> {
        LeaderView::open(self.watch_leader(election).await?).await
    }
}

/// Candidate of an election, as the store has it.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Candidate {
    /// Owner; `None` for a candidate of another program, which does not say.
    pub owner: Option<Owner>,
    /// Its key in the store.
    pub key: String,
    /// The fencing token that it has, or will have when it leads.
    pub token: FencingToken,
    /// Its value.
    pub value: Bytes,
}

impl Candidate {
    /// A candidate as a backend found it.
    pub fn new(owner: Option<Owner>, key: impl Into<String>, token: FencingToken, value: Bytes) -> Self {
        Self { owner, key: key.into(), token, value }
    }

    /// Its value as text; `None` if it is not UTF-8.
    pub fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.value).ok()
    }
}

impl fmt::Debug for Candidate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Candidate")
            .field("owner", &self.owner)
            .field("key", &self.key)
            .field("token", &self.token)
            .field("bytes", &self.value.len())
            .finish()
    }
}

/// Arguments of a campaign, checked before any I/O.
#[derive(Clone)]
pub struct Candidacy {
    /// The election.
    pub election: ElectionName,
    /// The time to live of the candidate's lease.
    pub ttl: Ttl,
    /// The candidate's value.
    pub value: Bytes,
}

impl Candidacy {
    /// Checks the arguments of [`Elections::campaign`], for backends.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`]; [`Error::TooLarge`] for a value above [`MAX_CANDIDATE_BYTES`].
    pub fn parse(election: &str, ttl: Duration, value: Bytes) -> Result<Self> {
        let (election, ttl) = (ElectionName::parse(election)?, Ttl::parse(ttl)?);
        check_value(&value)?;
        Ok(Self { election, ttl, value })
    }
}

impl fmt::Debug for Candidacy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { election, ttl, value } = self;
        write!(f, "Candidacy({election:?}, {ttl:?}, {} bytes)", value.len())
    }
}

/// Checks the size of a candidate's value.
pub(crate) fn check_value(value: &[u8]) -> Result<()> {
    if value.len() > MAX_CANDIDATE_BYTES {
        return Err(Error::TooLarge { field: "value", size: value.len(), limit: MAX_CANDIDATE_BYTES });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_candidacies_are_refused_by_name() {
        const TTL: Duration = Duration::from_secs(5);
        let refused = |election: &str, ttl, size| {
            Candidacy::parse(election, ttl, vec![b'x'; size].into()).expect_err("is bad").to_string()
        };
        let table = [
            (refused("", TTL, 1), "invalid election name: is empty"),
            (refused("a%b", TTL, 1), "invalid election name: `a%b` contains `%`"),
            (refused("a", Duration::ZERO, 1), "invalid ttl: "),
            (refused("a", TTL, MAX_CANDIDATE_BYTES + 1), "value has 4097 bytes, the limit is 4096"),
        ];
        for (message, expected) in table {
            assert!(message.starts_with(expected), "{message}");
        }
        assert!(Candidacy::parse("a/b", TTL, vec![0; MAX_CANDIDATE_BYTES].into()).is_ok());
    }

    #[test]
    fn debug_hides_the_value() {
        let candidacy = Candidacy::parse("a", Duration::from_secs(5), "s3cret".into()).expect("is good");
        let candidate = Candidate::new(None, "k", FencingToken::new(7), "s3cret".into());
        assert!(!format!("{candidacy:?} {candidate:?}").contains("s3cret"));
        assert_eq!(candidate.text(), Some("s3cret"));
    }
}
