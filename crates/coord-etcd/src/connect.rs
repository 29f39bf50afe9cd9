//! Making the connection, with every setting that keeps it from hanging.

use std::{sync::Arc, time::Duration};

use coord_api::{Error, Result};
use tonic::transport::Endpoint;

use crate::{
    auth::Auth,
    endpoint::Scheme,
    error::{Failure, classify},
    options::{Checked, Connect, EtcdConfig},
    tls::TlsSource,
};

/// How often an open stream is probed, and how long the answer may take. Without this a frozen server
/// or a cut cable hangs a stream for ever; probing more often than every 5 s is punished by etcd.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection, and who this client is on it.
pub(crate) struct Connection {
    pub(crate) client: etcd_client::Client,
    pub(crate) auth: Option<Arc<Auth>>,
}

/// Connects and authenticates, or does so in the background. Must run on the background runtime, which then drives the connection.
pub(crate) async fn connect(config: &EtcdConfig, checked: &Checked) -> Result<Connection> {
    let limit = config.connect_timeout;
    let tls = match checked.endpoints.scheme {
        Scheme::Https => Some(
            TlsSource::new(config.tls.clone())
                .load()
                .await
                .map_err(|e| Error::invalid("tls", e.to_string()))?,
        ),
        Scheme::Http => None,
    };
    let endpoints = checked.endpoints.urls.iter().map(|url| {
        let endpoint = Endpoint::from_shared(url.clone())?
            .connect_timeout(limit)
            .http2_keep_alive_interval(PROBE_INTERVAL)
            .keep_alive_timeout(PROBE_TIMEOUT)
            // etcd closes connections that probe without an open stream.
            .keep_alive_while_idle(false);
        match &tls {
            Some(tls) => endpoint.tls_config(tls.clone()),
            None => Ok(endpoint),
        }
    });
    let endpoints = endpoints.collect::<Result<Vec<_>, tonic::transport::Error>>();
    let endpoints = endpoints.map_err(|error| Error::invalid("tls", error.to_string()))?;
    let channel = etcd_client::Channel::Tonic(tonic::transport::Channel::balance_list(endpoints.into_iter()));
    let auth = checked
        .credentials
        .clone()
        .map(|source| Auth::start(source, channel.clone(), config.request_timeout));
    let channel = auth.iter().fold(channel, |channel, auth| auth.on(channel));
    let client = etcd_client::Client::from_channel(channel, None).await;
    let client = client.map_err(|error| classify("connect", limit, error).error)?;
    if let (Some(auth), Connect::AtOnce) = (&auth, config.connect) {
        let first = tokio::time::timeout(limit, auth.first()).await;
        first
            .map_err(|_| Failure::timeout("connect", limit))?
            .map_err(|status| classify("connect", limit, status.into()))?;
    }
    Ok(Connection { client, auth })
}
