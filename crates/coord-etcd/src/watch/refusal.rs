//! Why etcd refuses a watch: for what is watched, or only for the token of the stream.

use coord_api::Error;
use etcd_client::GetOptions;

use crate::{core::Core, error::Failure, keys::Range};

/// Whether a watch was cancelled since it is not allowed.
pub(super) fn is_refusal(reason: &str) -> bool {
    ["permission denied", "PermissionDenied", "user name is empty", "auth token", "auth store is old"]
        .iter()
        .any(|sign| reason.contains(sign))
}

/// The error for it.
pub(super) fn refusal(reason: &str) -> Error {
    let (operation, source) = ("watch", reason.to_owned().into());
    if reason.contains("user name is empty") {
        Error::Unauthenticated { operation, source }
    } else {
        Error::PermissionDenied { operation, source }
    }
}

/// Why a watch is refused.
pub(super) enum Verdict {
    /// The stream was opened with a token that is another one by now.
    OldToken,
    /// There is no token that etcd accepts.
    NoToken(Error),
    /// The user is not allowed to see that.
    Refused,
    /// etcd could not be asked.
    Unknown,
}

impl Core {
    /// Which token requests carry now; `None` for a client without a user.
    pub(super) fn generation(&self) -> Option<u64> {
        self.auth.as_ref().map(|auth| auth.generation())
    }

    /// etcd does not always say whether it refused a watch for its token. A read that needs the same permission finds
    /// out, and gets a new token if so.
    pub(super) async fn judge_refusal(&self, range: &Range, generation: u64) -> Verdict {
        let is_old = || self.generation().is_some_and(|now| now != generation);
        if self.auth.is_none() {
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
