//! Reasons why the store refuses a watch: for the watched keys, or only for the credentials of the stream.

use coord_api::Error;

use crate::{
    request::Rpc,
    store::{Failure, GetOptions, Range},
};

/// Reason why a watch is refused.
pub(super) enum Verdict {
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
    pub(super) async fn judge_refusal(&self, range: &Range, generation: u64) -> Verdict {
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
