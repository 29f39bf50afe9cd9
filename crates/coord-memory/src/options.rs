//! The options of a client.

use std::{process, time::Duration};

use coord_api::{Error, Owner, Result, Ttl};
use coord_kv::{Background, CheckedRoots};

/// Longest time that a client waits for the store when it is closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// How a client differs from others. [`Store::client_with`](crate::Store::client_with) checks it.
///
/// ```
/// use std::time::Duration;
/// use coord_memory::{Options, Store};
///
/// let options = Options::default().label("billing").instance_id_ttl(Duration::from_secs(5));
/// let client = Store::new().client_with(options)?;
/// assert_eq!(client.owner().to_string(), format!("billing memory/{}/client-1", std::process::id()));
/// # Ok::<(), coord_api::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// The TTL of instance ids; 30 s by default.
    pub instance_id_ttl: Duration,
    /// What operators call the client, for example the name of the service; it is a part of the [`Owner`] in
    /// what the client stores.
    pub label: Option<String>,
    /// Longest time that one request may take, with all its attempts; an hour by default, so that calls wait for the end of a
    /// [`stall`](crate::Client::stall).
    pub request_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let (id_ttl, request_timeout) = (Duration::from_secs(30), Duration::from_secs(3600));
        Self { instance_id_ttl: id_ttl, label: None, request_timeout }
    }
}

impl Options {
    /// Sets the TTL of instance ids.
    #[must_use]
    pub fn instance_id_ttl(mut self, ttl: Duration) -> Self {
        self.instance_id_ttl = ttl;
        self
    }

    /// Sets what operators call the client.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = Some(label.into());
        self
    }

    /// Sets the longest time that one request may take, with all its attempts.
    #[must_use]
    pub fn request_timeout(mut self, limit: Duration) -> Self {
        self.request_timeout = limit;
        self
    }

    /// Checks the options of a client with a number.
    pub(crate) fn check(self, number: u64) -> Result<coord_kv::Options> {
        /// A longer time than anybody waits, which every clock can count.
        const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
        let Self { instance_id_ttl, label, request_timeout } = self;
        let id_ttl = Ttl::parse(instance_id_ttl).map_err(|error| match error {
            Error::InvalidArgument { reason, .. } => Error::invalid("instance_id_ttl", reason),
            other => other,
        })?;
        if let Some(label) = &label {
            Owner::check_label(label)?;
        }
        if request_timeout.is_zero() {
            return Err(Error::invalid("request_timeout", "is zero"));
        }
        Ok(coord_kv::Options {
            roots: CheckedRoots::without_namespace(),
            owner: Owner::new("memory", process::id(), label, format!("client-{number}")),
            request_timeout: request_timeout.min(LONGEST),
            close_timeout: CLOSE_TIMEOUT,
            id_ttl,
            background: Background::from_first_use(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Store;

    #[test]
    fn bad_options_are_refused_by_name() {
        let refused = |options| Store::new().client_with(options).expect_err("is bad").to_string();
        let good = Options::default();
        let table = [
            (refused(good.clone().label("")), "invalid label: "),
            (refused(good.clone().instance_id_ttl(Duration::ZERO)), "invalid instance_id_ttl: "),
            (refused(good.clone().request_timeout(Duration::ZERO)), "invalid request_timeout: "),
        ];
        for (message, expected) in table {
            assert!(message.starts_with(expected), "{message}");
        }
    }
}
