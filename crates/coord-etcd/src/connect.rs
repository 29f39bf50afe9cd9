//! Making the connection, with every setting that keeps it from hanging.

use coord_api::{Error, Result};
use etcd_client::{Certificate, ConnectOptions, Identity, TlsOptions};
use secrecy::{ExposeSecret, SecretString};

use crate::{
    endpoint::{Endpoints, Scheme},
    error::{Failure, classify},
    options::{Connect, EtcdConfig, TlsFiles},
    transport::{self, Timeouts},
};

/// Connects and authenticates, or does so in the background. Must run on the background runtime, which then drives the connection.
pub(crate) async fn connect(config: &EtcdConfig, endpoints: &Endpoints) -> Result<etcd_client::Client> {
    let timeouts = Timeouts { connect: config.connect_timeout, request: config.request_timeout };
    let mut transport = transport::options(endpoints, &timeouts);
    if endpoints.scheme == Scheme::Https {
        transport = transport.tls(tls(config.tls.as_ref()).await?);
    }
    let channel = transport::channel(endpoints, transport)?;
    // A member that lost its leader says so at once, and ends its streams: others may have one.
    let mut options = ConnectOptions::new().with_require_leader(true).with_auto_token_refresh(true);
    let user = config.username.as_ref().zip(config.password.as_ref());
    if let (Some((user, password)), Connect::AtOnce) = (user, config.connect) {
        options = options.with_user(user, password.expose_secret());
    }
    let connecting = etcd_client::Client::from_channel(channel, Some(options));
    let limit = config.connect_timeout;
    let client = match tokio::time::timeout(limit, connecting).await {
        Ok(Ok(client)) => client,
        Ok(Err(error)) => return Err(classify("connect", limit, error).into()),
        Err(_elapsed) => return Err(Failure::timeout("connect", limit).into()),
    };
    if let (Some((user, password)), Connect::Lazily) = (user, config.connect) {
        tokio::spawn(authenticate(client.clone(), user.clone(), password.clone()));
    }
    Ok(client)
}

/// Tries until etcd is there and accepts the user; ends with the client's thread.
async fn authenticate(mut client: etcd_client::Client, user: String, password: SecretString) {
    let mut pauses = crate::watch::pauses();
    while let Err(error) = client.update_user(Some((user.clone(), password.expose_secret().into()))).await {
        tracing::warn!(%error, "not authenticated with etcd yet, trying again");
        tokio::time::sleep(pauses.next().unwrap_or_default()).await;
    }
}

async fn tls(files: Option<&TlsFiles>) -> Result<TlsOptions> {
    let Some(files) = files else {
        return Ok(TlsOptions::new().with_native_roots());
    };
    let mut tls = match &files.ca_file {
        Some(path) => TlsOptions::new().ca_certificate(Certificate::from_pem(read(path).await?)),
        None => TlsOptions::new().with_native_roots(),
    };
    if let (Some(cert), Some(key)) = (&files.cert_file, &files.key_file) {
        tls = tls.identity(Identity::from_pem(read(cert).await?, read(key).await?));
    }
    if let Some(name) = &files.server_name {
        tls = tls.domain_name(name);
    }
    Ok(tls)
}

async fn read(path: &std::path::Path) -> Result<Vec<u8>> {
    let owned = path.to_owned();
    tokio::task::spawn_blocking(move || std::fs::read(owned))
        .await
        .map_err(|error| error.to_string())
        .and_then(|content| content.map_err(|error| error.to_string()))
        .map_err(|error| Error::invalid("tls", format!("{} can not be read: {error}", path.display())))
}
