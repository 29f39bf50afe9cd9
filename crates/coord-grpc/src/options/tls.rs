//! TLS of the connections, and the options as tonic's `Endpoint` takes them.

use std::fmt;
#[cfg(feature = "tls")]
use std::sync::Arc;

use coord_api::{BoxError, Error, Result};
#[cfg(feature = "tls")]
use futures::future::BoxFuture;
#[cfg(feature = "tls")]
use tonic::transport::ClientTlsConfig;
use tonic::transport::Endpoint;

use super::{ConnectOptions, KeepAlive};
use crate::pick::outlier::FAR;

/// Configuration of TLS. Its `Debug` keeps certificates and keys out of logs.
#[derive(Clone)]
pub(super) enum Tls {
    #[cfg(feature = "tls")]
    Fixed(Arc<ClientTlsConfig>),
    #[cfg(feature = "tls")]
    Asked(TlsSource),
}

#[cfg(feature = "tls")]
type TlsSource = Arc<dyn Fn() -> BoxFuture<'static, Result<ClientTlsConfig, BoxError>> + Send + Sync>;

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Compares by identity: tonic's configurations can not be compared.
impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            #[cfg(feature = "tls")]
            (Self::Fixed(one), Self::Fixed(other)) => Arc::ptr_eq(one, other),
            #[cfg(feature = "tls")]
            (Self::Asked(one), Self::Asked(other)) => Arc::ptr_eq(one, other),
            #[allow(unreachable_patterns, reason = "there is no TLS without the feature")]
            _ => false,
        }
    }
}

impl Eq for Tls {}

impl ConnectOptions {
    /// Encrypts all connections of this service. Instances are checked against their registered address. If their
    /// certificates have a name instead, give it with `domain_name`.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(mut self, config: ClientTlsConfig) -> Self {
        self.tls = Some(Tls::Fixed(Arc::new(config)));
        self
    }

    /// As [`tls`](Self::tls), with a configuration that is asked for anew whenever an instance is connected. Certificates can
    /// so be replaced while the process runs. While `source` fails, no connection is made.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls_from<F, A>(mut self, source: F) -> Self
    where
        F: Fn() -> A + Send + Sync + 'static,
        A: Future<Output = Result<ClientTlsConfig, BoxError>> + Send + 'static,
    {
        self.tls = Some(Tls::Asked(Arc::new(move || Box::pin(source()))));
        self
    }

    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.is_tls() { "https" } else { "http" }
    }

    /// Checks that the configuration of TLS is known now, and not only when a connection is made.
    pub(crate) fn check_fixed(&self) -> Result<()> {
        #[cfg(feature = "tls")]
        if let Some(Tls::Asked(_)) = self.tls {
            return Err(Error::invalid("tls", "is asked for anew, which channels of one's own can not"));
        }
        Ok(())
    }

    /// Applies the options to an endpoint, with the present configuration of TLS.
    #[cfg_attr(not(feature = "tls"), allow(clippy::unused_async, reason = "TLS may be asked for"))]
    pub(crate) async fn apply_now(&self, endpoint: Endpoint) -> Result<Endpoint, BoxError> {
        let endpoint = self.apply(endpoint)?;
        #[cfg(feature = "tls")]
        if let Some(Tls::Asked(source)) = &self.tls {
            return Ok(endpoint.tls_config(source().await?)?);
        }
        Ok(endpoint)
    }

    /// Applies the options to an endpoint, except for TLS that is asked for at each connection.
    #[cfg_attr(not(feature = "tls"), allow(clippy::unnecessary_wraps, reason = "TLS can fail"))]
    pub(crate) fn apply(&self, endpoint: Endpoint) -> Result<Endpoint, BoxError> {
        // hyper adds these to instants, and a sum that no clock reaches ends its task.
        let mut endpoint = endpoint.connect_timeout(self.connect_timeout.min(FAR));
        if let Some(KeepAlive { interval, timeout }) = &self.keep_alive {
            let (interval, timeout) = ((*interval).min(FAR), (*timeout).min(FAR));
            endpoint = endpoint.http2_keep_alive_interval(interval).keep_alive_timeout(timeout);
        }
        #[cfg(feature = "tls")]
        if let Some(Tls::Fixed(config)) = &self.tls {
            endpoint = endpoint.tls_config(config.as_ref().clone())?;
        }
        Ok(endpoint)
    }
}

/// Formats an error and all its sources, in one line.
pub(super) fn error_with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(error), |error| error.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(all(test, feature = "tls"))]
mod tests {
    use super::*;

    #[test]
    fn invalid_configuration_is_refused_and_a_valid_one_not_shown() {
        use tonic::transport::{Certificate, ClientTlsConfig};
        let with = |config| ConnectOptions::new().tls(config);
        let bad = with(ClientTlsConfig::new().domain_name("a b"));
        let error = bad.check().expect_err("is no domain").to_string();
        assert!(error.starts_with("invalid tls: "), "{error}");

        let secret = with(ClientTlsConfig::new().ca_certificate(Certificate::from_pem("secret")));
        assert!(!format!("{secret:?}").contains("secret"));
        assert_eq!(secret, secret.clone());
        assert_ne!(secret, with(ClientTlsConfig::new()));

        let asked = ConnectOptions::new().tls_from(|| async { Err("not now".into()) });
        asked.check().expect("it is asked later");
        assert!(asked.is_tls() && asked == asked.clone() && asked != secret);
        assert!(asked.check_fixed().is_err());
    }
}
