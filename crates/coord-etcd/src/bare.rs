//! The store without coord over it, for tests that compare stores; no part of what is promised to users.

use std::sync::Arc;

use coord_api::Result;
use coord_kv::store::Store;

use crate::{connect, options::EtcdConfig, store::EtcdStore, transport::channel::try_limit};

/// Connects to etcd as a store. The runtime of the caller drives it, and has to live as long.
///
/// # Errors
/// As those of [`Client::connect`](crate::Client::connect).
pub async fn store(config: EtcdConfig) -> Result<Arc<dyn Store>> {
    let checked = config.check()?;
    let connection = connect::connect(&config, &checked, None).await?;
    let timeout = config.request_timeout;
    let limit = try_limit(&checked.endpoints, timeout);
    Ok(Arc::new(EtcdStore::new(connection, checked.roots.probe(), timeout, limit)))
}
