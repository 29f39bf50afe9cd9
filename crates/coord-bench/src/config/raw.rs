//! Config values by bare requests, as they would be read and written without coord.

use anyhow::{Context, Result};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use serde::{Serialize, de::DeserializeOwned};

/// The values below a prefix of etcd.
#[derive(Clone)]
pub(super) struct Raw {
    pub(super) client: etcd_client::Client,
    root: String,
}

impl Raw {
    pub(super) async fn connect(endpoint: &str, namespace: &str) -> Result<Self> {
        let client = etcd_client::Client::connect([endpoint], None).await?;
        Ok(Self { client, root: format!("/{namespace}/config/") })
    }

    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.root)
    }

    /// A value with the revision that it was written at.
    pub(super) async fn get<T: DeserializeOwned>(&self, name: &str) -> Result<(T, i64)> {
        let found = self.client.kv_client().get(self.key(name), None).await?;
        let kv = found.kvs().first().context("no value")?;
        Ok((serde_json::from_slice(kv.value())?, kv.mod_revision()))
    }

    pub(super) async fn set<T: Serialize>(&self, name: &str, value: &T) -> Result<()> {
        self.client.kv_client().put(self.key(name), serde_json::to_vec(value)?, None).await?;
        Ok(())
    }

    /// Adds one, again at once whenever another came first.
    pub(super) async fn add_one(&self, name: &str) -> Result<()> {
        loop {
            let (number, revision): (u64, _) = self.get(name).await?;
            let key = self.key(name);
            let unchanged = Compare::mod_revision(key.as_str(), CompareOp::Equal, revision);
            let put = TxnOp::put(key, serde_json::to_vec(&(number + 1))?, None);
            let txn = Txn::new().when([unchanged]).and_then([put]);
            if self.client.kv_client().txn(txn).await?.succeeded() {
                return Ok(());
            }
        }
    }
}
