//! Reasons why the store refuses a watch: for the watched keys, or only for the credentials of the stream.

use coord_api::Error;

use super::stream::{Served, Task};
use crate::{
    request::Rpc,
    store::{Failure, GetOptions, Range},
};

/// Reason why a watch is refused.
enum Verdict {
    /// The stream was opened with a token that is another one by now.
    OldToken,
    /// There is no token that the store accepts.
    NoToken(Error),
    /// The user is not allowed to see that.
    Refused,
    /// The store could not be asked.
    Unknown,
}

impl Rpc {
    /// Judges a refusal. The store does not always say whether it refused a watch for its token. A read that
    /// needs the same permission finds out, and gets a new token if so.
    async fn judge_refusal(&self, range: &Range, generation: u64) -> Verdict {
        let is_old = || self.store.credentials().is_some_and(|now| now != generation);
        if self.store.credentials().is_none() {
            return Verdict::Refused;
        }
        if is_old() {
            return Verdict::OldToken;
        }
        let (key, options) = match range {
            Range::Key(key) => (key, GetOptions::new()),
            Range::Prefix(prefix) => (prefix, GetOptions::new().with_prefix()),
        };
        match self.get("watch", &**key, Some(options.with_count_only())).await {
            _ if is_old() => Verdict::OldToken,
            Ok(_) | Err(Failure { error: Error::PermissionDenied { .. }, .. }) => Verdict::Refused,
            Err(Failure { error: error @ Error::Unauthenticated { .. }, .. }) => Verdict::NoToken(error),
            Err(_) => Verdict::Unknown,
        }
    }
}

impl Task {
    /// Finds out why a watch was refused. A watch that was refused for the token of the stream is kept, and
    /// the stream ends. The users of a watch that was refused for itself are told, and decide what to do.
    pub(super) async fn refuse_or_try_again(&mut self, id: i64, reason: Error) -> Option<Served> {
        let watched = self.watches.get(id)?;
        let verdict = match self.rpc.upgrade() {
            Some(rpc) => rpc.judge_refusal(watched.range(), self.generation).await,
            None => return Some(Served::Done),
        };
        let error = match verdict {
            Verdict::OldToken => {
                tracing::debug!("the token of the watch stream is no longer good, opening another");
                return Some(Served::HasOldToken);
            }
            // Watches that have begun go on when there are credentials again.
            Verdict::NoToken(error) if watched.progress.has_started() => {
                tracing::debug!(%error, "watches wait for credentials");
                return Some(Served::Broken { answered: false });
            }
            Verdict::Unknown => return Some(Served::Broken { answered: false }),
            Verdict::NoToken(error) => error,
            Verdict::Refused => reason,
        };
        if let Some(ended) = self.watches.end(id) {
            ended.refuse(&error);
        }
        None
    }

    /// Tells the users of watches that have not begun why the stream was not opened, if waiting would not help.
    pub(super) fn refuse_unbegun(&mut self, error: &Error) {
        tracing::debug!(%error, "watch stream could not be opened, trying again");
        let is_final = self.rpc.upgrade().is_some_and(|rpc| rpc.store.is_final(error));
        if is_final || matches!(error, Error::Unauthenticated { .. }) {
            // Watches that have begun go on when there are credentials again.
            for refused in self.watches.end_unbegun() {
                refused.refuse(error);
            }
        }
    }
}
