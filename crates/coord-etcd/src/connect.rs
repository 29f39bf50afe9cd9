//! Making the connection, with every setting that keeps it from hanging.

use std::sync::Arc;

use coord_api::{Error, Result};
use coord_grpc::Made;
use coord_kv::store::Failure;
use etcd_client::{Channel, ConnectOptions};
use tokio::runtime::Handle;

use crate::{
    error::classify,
    options::{Checked, Connect, EtcdConfig},
    store::requests_of,
    transport::{
        auth::Auth,
        channel::{self, Timeouts},
        endpoint::Scheme,
        local_connection::LocalConnection,
        tls::TlsSource,
        version::Versions,
    },
};

/// A connection, and who this client is on it.
pub(crate) struct Connection {
    pub(crate) client: etcd_client::Client,
    /// The way of its requests, for calls that the library does not make.
    pub(crate) channel: Channel,
    pub(crate) local: Option<LocalConnection>,
    pub(crate) auth: Option<Arc<Auth>>,
    pub(crate) versions: Versions,
    pub(crate) made: Made,
}

/// Connects and authenticates, or does so in the background. Must run on the background runtime, which then drives the
/// connection; `home` drives the fast path.
pub(crate) async fn connect(
    config: &EtcdConfig,
    checked: &Checked,
    home: Option<Handle>,
) -> Result<Connection> {
    let limit = config.connect_timeout;
    let timeouts = Timeouts { connect: limit, request: config.request_timeout };
    let mut transport = channel::options(&checked.endpoints, &timeouts);
    let mut versions = Versions { endpoints: checked.endpoints.clone(), tls: None };
    if checked.endpoints.scheme == Scheme::Https {
        let tls = TlsSource::new(config.tls.clone());
        // Files that can not be used now are a mistake; later ones are waited out.
        tls.load().await.map_err(|error| Error::invalid("tls", error.to_string()))?;
        versions.tls = Some(tls.clone());
        transport = transport.tls_from(move || {
            let tls = tls.clone();
            async move { tls.load().await }
        });
    }
    let all = &checked.endpoints.all;
    let members = channel::connection("etcd", all, transport.clone())?;
    let made = members.made();
    let members = channel::channel(members);
    let source = checked.credentials.clone();
    let auth = source.map(|source| Auth::start(source, members.clone(), config.request_timeout));
    let as_user = |channel| auth.iter().fold(channel, |channel, auth| auth.on(channel));
    let client_on = async |channel| {
        // A member that lost its leader says so at once, and ends its streams: others may have one. Tokens are not the
        // library's matter, which would get new ones for some requests and with the first password only.
        let options = ConnectOptions::new().with_require_leader(true);
        let client = etcd_client::Client::from_channel(channel, Some(options)).await;
        client.map_err(|error| classify("connect", limit, error).error)
    };
    let channel = as_user(members);
    let client = client_on(channel.clone()).await?;
    let mut local = None;
    if let (Some(home), [_]) = (home, &all[..]) {
        let connection = {
            let _driver = home.enter();
            channel::connection("etcd-near", all, channel::local(transport, &timeouts))?
        };
        let client = client_on(as_user(channel::channel(connection.clone()))).await?;
        local = Some(LocalConnection::new(&home, connection, requests_of(&client)));
    }
    if let (Some(auth), Connect::AtOnce) = (&auth, config.connect) {
        let first = tokio::time::timeout(limit, auth.first()).await;
        first
            .map_err(|_| Failure::timeout("connect", limit))?
            .map_err(|status| classify("connect", limit, status.into()))?;
    }
    Ok(Connection { client, channel, local, auth, versions, made })
}
