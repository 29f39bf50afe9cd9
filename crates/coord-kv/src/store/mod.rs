//! The trait that a backend implements: all that coord needs of a store, in coord's own words.
//!
//! A store keeps keys with values, each with the revisions at which it was created and last written. A revision is a
//! number that grows with each transaction that writes. Keys may live on a lease, and go with it. All that coord builds on
//! it asks for nothing else.

mod failure;
mod observation;
mod range;
mod txn;
mod watch;

use std::{any::Any, fmt, sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{Error, Result as ApiResult};
use futures::{future::BoxFuture, stream::BoxStream};

pub(crate) use failure::is_transient;
pub use failure::{Effect, Failure, RevisionError};
pub use observation::Observation;
pub use range::{Detail, Extent, GetAnswer, GetOptions, KeyValue, Order, Range};
pub use txn::{Compare, CompareOp, Op, OpResult, PutOptions, Target, Txn, TxnAnswer};
pub use watch::{Canceled, Change, WatchAnswer, WatchRequest, WatchStream};

/// A revision of a store. Zero is before all of them.
pub type Revision = i64;

/// The number of a lease, which the client chooses.
pub type LeaseId = i64;

/// Description of a store.
#[derive(Clone, Debug)]
pub struct Description {
    /// Its name in errors, for example `etcd`.
    pub name: &'static str,
    /// An advice for the case that no member can be reached.
    pub if_unreachable: &'static str,
    /// Number of members that can be asked. A store with one member is never behind itself.
    pub members: usize,
    /// The addresses of the members, which tell two stores apart before one of them has answered.
    pub addresses: Vec<String>,
    /// The limits of a transaction.
    pub limits: Limits,
    /// Whether a request may take effect after its caller has given it up.
    pub lateness: Lateness,
    /// Where the store is, and so what a request costs.
    pub distance: Distance,
}

/// Distance to a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distance {
    /// Elsewhere: requests that are about to come are waited for, to share one.
    Network,
    /// In this process: a request costs next to nothing, and none lingers for others.
    Process,
}

/// The limits of one transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The most operations in one of its branches, nested ones included.
    pub operations: usize,
    /// The most bytes of the whole request.
    pub bytes: usize,
}

/// Whether a request may take effect after its caller has given it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lateness {
    /// Never: a request that was given up is over.
    Never,
    /// Possibly at any time later, as by a server that was frozen.
    Possible,
}

/// The origin of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The number of the store, which tells it from another one at the same address; zero if it has none.
    pub cluster: u64,
    /// The revision of the store, zero if that is not told.
    pub revision: Revision,
}

/// The attempts at one request, or at one stream, as the store notes them. Every attempt should go to a member that had none
/// of the others.
pub trait Attempts: fmt::Debug + Send + Sync {
    /// Returns the member that has the last attempt, by a label that nobody takes apart; `None` while it waits for one.
    fn member(&self) -> Option<String>;

    /// Returns how many members were tried.
    fn count(&self) -> usize;

    /// Returns whether the next attempt takes another connection of the store, since the last one was not
    /// sent over the first. The next attempt need not wait then. Told once.
    fn takes_other_route(&self) -> bool {
        false
    }

    /// Returns this, for the store that made it.
    fn as_any(&self) -> &dyn Any;
}

/// The attempts at a request to a store with one member, which has each of them at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OneMember;

impl Attempts for OneMember {
    fn member(&self) -> Option<String> {
        Some(String::new())
    }

    fn count(&self) -> usize {
        1
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// Attempt at a request.
#[derive(Clone, Copy, Debug)]
pub struct Call<'a> {
    /// Name of the operation, for errors.
    pub operation: &'static str,
    /// The time that is left for it, for errors: the caller drops the future when it is over.
    pub limit: Duration,
    /// Made by [`Store::attempts`].
    pub attempts: &'a dyn Attempts,
    /// The connection that it may take.
    pub route: Route,
}

/// The connection that a request takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// The fastest, which may depend on the runtime of the caller.
    Fastest,
    /// The route that nobody else can starve.
    Main,
}

/// A lease that was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The origin of the answer.
    pub header: Header,
    /// The time to live in seconds, which may be another one than was asked for.
    pub ttl: i64,
}

/// State of a lease, as the store knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseStatus {
    /// The origin of the answer.
    pub header: Header,
    /// The granted time to live in seconds.
    pub granted: i64,
    /// The seconds that are left, rounded down; zero or less if the lease is gone.
    pub left: i64,
    /// The keys on it, if they were asked for.
    pub keys: Vec<Vec<u8>>,
}

/// Detail of a look-up of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseDetail {
    /// Its times.
    Times,
    /// Its times and its keys.
    TimesAndKeys,
}

/// An answer to a request for renewal: the time to live, `None` if the store does not know the lease.
pub type Renewed = Result<Option<Duration>, RenewalEnded>;

/// Reason why a request for renewal got no answer.
#[derive(Debug)]
pub enum RenewalEnded {
    /// The stream ended, for whatever reason.
    Broken(Failure),
    /// The store refused this very request.
    Refused(Failure),
}

/// A stream over which leases are renewed. It ends with the last who holds it.
pub trait RenewalStream: fmt::Debug + Send + Sync {
    /// Asks for the renewal of a lease. The request is sent by this call, not by the future.
    fn renew(&self, lease: LeaseId) -> BoxFuture<'static, Renewed>;
}

/// Word of the store that it was not asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A lease of this client has ended without a request of this client.
    LeaseEnded(LeaseId),
    /// A key on a lease of this client was deleted by somebody else.
    KeyDeleted {
        /// The key.
        key: String,
        /// The revision at which it was created.
        created: Revision,
    },
}

/// A store of keys with leases and watches.
///
/// # Contract
/// - Transactions take effect one after the other, each whole or not at all. Each that writes has a revision
///   of its own, larger than all before.
/// - Reads that are not [serializable](GetOptions::with_serializable) tell of every write that was
///   acknowledged before they began. So does a transaction that writes, or has such a read.
/// - A key on a lease is gone once the lease is, with all others on it at one revision.
/// - No lease ends before its time to live is over, counted from the last acknowledged request for it, unless
///   it is revoked.
/// - A failure tells whether the request may have taken effect, now or later. When in doubt it may.
/// - Each call is one attempt: the caller repeats a request that may be repeated. A store may move an attempt
///   that was certainly not sent to another member.
///
/// # Cancel safety
/// Each future may be dropped at any point; whether its request takes effect is open then.
#[async_trait]
pub trait Store: fmt::Debug + Send + Sync + 'static {
    /// Returns what the store is.
    fn description(&self) -> &Description;

    /// Begins to note the attempts at a request; `avoid` is a member that another one is better than. A store with several
    /// members, or whose requests may wait for a connection, has notes of its own.
    fn attempts(&self, _avoid: Option<String>) -> Box<dyn Attempts> {
        Box::new(OneMember)
    }

    /// Reads a key, or all in a range.
    ///
    /// # Errors
    /// With [`RevisionError`] as the source if the revision that was asked for is compacted, or not there yet.
    async fn range(&self, call: Call<'_>, key: Vec<u8>, options: GetOptions) -> Result<GetAnswer, Failure>;

    /// Makes a transaction.
    ///
    /// # Errors
    /// As [`range`](Self::range), and [`Lost`](coord_api::Error::Lost) if it writes on a lease that is gone.
    async fn txn(&self, call: Call<'_>, txn: Txn) -> Result<TxnAnswer, Failure>;

    /// Grants a lease with a number that the caller has chosen.
    ///
    /// # Errors
    /// Fails if the number is taken, and as every request may.
    async fn grant(&self, call: Call<'_>, lease: LeaseId, ttl: i64) -> Result<Granted, Failure>;

    /// Ends a lease, with all keys on it.
    ///
    /// # Errors
    /// [`Lost`](coord_api::Error::Lost) if there is no such lease.
    async fn revoke(&self, call: Call<'_>, lease: LeaseId) -> Result<Header, Failure>;

    /// Looks up a lease. A lease that is gone has nothing left.
    ///
    /// # Errors
    /// As every request.
    async fn lease(
        &self,
        call: Call<'_>,
        lease: LeaseId,
        detail: LeaseDetail,
    ) -> Result<LeaseStatus, Failure>;

    /// Returns the stream on which all leases of this client are renewed; opens it if there is none.
    fn renewals(&self) -> Arc<dyn RenewalStream>;

    /// Opens a stream for one lease, whose requests the store has refused on the shared one.
    fn own_renewals(&self) -> Arc<dyn RenewalStream> {
        self.renewals()
    }

    /// Leaves a stream that does not answer: the next one goes to another member, if one is ready.
    fn leave_renewals(&self, _stream: &Arc<dyn RenewalStream>) {}

    /// Opens a stream of watches, with some to begin with, of which there is one at least. Later ones are added to it.
    ///
    /// # Errors
    /// If the stream can not be opened.
    async fn watch(
        &self,
        attempts: &dyn Attempts,
        first: Vec<WatchRequest>,
    ) -> Result<Box<dyn WatchStream>, Failure>;

    /// Returns a stream with an item whenever a connection was made anew: the process at its other end may be another one,
    /// with other data. It ends with the store.
    fn connections(&self) -> BoxStream<'static, ()>;

    /// Returns the words of the store that nobody asked for, if it has any. A holder who is told nothing learns of its loss by
    /// its next renewal, or by a watch where it has one.
    fn notices(&self) -> Option<BoxStream<'static, Notice>> {
        None
    }

    /// Returns whether a failed request is not to be made again, though its error may pass: the caller is told at once. For
    /// stores that fail on demand.
    fn is_final(&self, _error: &Error) -> bool {
        false
    }

    /// Returns a number that is another one whenever the credentials are that requests carry; `None` without a user.
    fn credentials(&self) -> Option<u64> {
        None
    }

    /// Asks each member to which store it belongs.
    ///
    /// # Errors
    /// [`InvalidArgument`](coord_api::Error::InvalidArgument) if two are of different stores. A member that does not answer
    /// says nothing.
    async fn check_members(&self) -> ApiResult<()> {
        Ok(())
    }

    /// Takes note of something that happened in the client, to count or time it. Must not wait.
    fn observe(&self, _observation: Observation) {}
}

impl dyn Store {
    /// Returns the failure of a request that no member was ready for.
    pub(crate) fn not_sent(&self) -> Failure {
        Failure {
            error: self.unavailable(Some(self.description().if_unreachable.into())),
            effect: Effect::None,
        }
    }

    /// Returns the error of a store that can not be used now.
    pub(crate) fn unavailable(&self, source: Option<coord_api::BoxError>) -> Error {
        Error::Unavailable { what: self.description().name.into(), source }
    }
}
