//! Watches: the changes of a range, from a revision on, over one stream for all watches of a client.

use async_trait::async_trait;
use bytes::Bytes;
use coord_api::Error;

use super::{Failure, Header, Range, Revision};

/// A watch to begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WatchRequest {
    /// The number by which answers name it; the caller uses each once on a stream.
    pub id: i64,
    /// The keys that are watched.
    pub range: Range,
    /// The first revision whose changes are told; `None` for all changes after the present.
    pub from: Option<Revision>,
}

/// Change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The key. A key that is not UTF-8 is not told, since coord never writes such keys.
    pub key: String,
    /// The revision of the change.
    pub revision: Revision,
    /// The revision at which the key was created; zero if it was deleted.
    pub created: Revision,
    /// The new value; `None` if the key was deleted.
    pub value: Option<Bytes>,
}

/// Answer on a stream of watches.
#[derive(Debug)]
pub struct WatchAnswer {
    /// The origin of the answer.
    pub header: Header,
    /// The watch that it is about; `None` if it is about none that was asked for.
    pub id: Option<i64>,
    /// Whether it says that the watch has begun: every change after its revision will be told.
    pub is_created: bool,
    /// Reason why the watch is over, if it is.
    pub canceled: Option<Canceled>,
    /// Changes, in their order. All changes of one revision are in one answer.
    pub changes: Vec<Change>,
}

/// Reason why the store has ended a watch.
#[derive(Debug)]
pub enum Canceled {
    /// Changes that were asked for are not kept any more, or can not be told for another reason.
    Compacted,
    /// The user may not watch that, or the credentials of the stream are no longer good.
    NotAllowed(Error),
}

/// A stream of watches.
///
/// # Cancel safety
/// [`next`](Self::next) may be dropped and called again.
#[async_trait]
pub trait WatchStream: Send {
    /// Asks for one more watch.
    ///
    /// # Errors
    /// If the stream is broken.
    async fn watch(&mut self, request: WatchRequest) -> Result<(), Failure>;

    /// Asks for the end of a watch.
    ///
    /// # Errors
    /// If the stream is broken.
    async fn cancel(&mut self, id: i64) -> Result<(), Failure>;

    /// Waits for the next answer; `None` at the end of the stream.
    ///
    /// # Errors
    /// If the stream is broken; [`Timeout`](Error::Timeout) if the store has left a request unanswered for too long.
    async fn next(&mut self) -> Result<Option<WatchAnswer>, Failure>;
}
