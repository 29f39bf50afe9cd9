//! A service in etcd by bare requests, as it would be written without coord.

use anyhow::Result;
use coord_api::ServiceInfo;
use etcd_client::{GetOptions, PutOptions, Txn, TxnOp};

/// Longer than any measurement.
const LONG: i64 = 300;

/// How many writes a transaction may have.
const SOME: usize = 100;

/// The instances of a service.
pub(super) struct Raw {
    pub(super) client: etcd_client::Client,
    prefix: String,
    lease: i64,
}

/// One instance of the service that is measured.
pub(super) fn instance(number: usize, port: u16) -> ServiceInfo {
    ServiceInfo::new("bench", format!("bench-{number:05}"), "10.0.1.10", port).with("region", "eu-1")
}

impl Raw {
    pub(super) async fn connect(endpoint: &str, namespace: &str) -> Result<Self> {
        let client = etcd_client::Client::connect([endpoint], None).await?;
        let lease = client.lease_client().grant(LONG, None).await?.id();
        Ok(Self { client, prefix: format!("/{namespace}/services/bench/"), lease })
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    pub(super) fn key(&self, number: usize) -> String {
        format!("{}{}", self.prefix, instance(number, 80).id)
    }

    fn on_lease(&self) -> PutOptions {
        PutOptions::new().with_lease(self.lease)
    }

    pub(super) async fn register(&self, number: usize) -> Result<String> {
        let (key, json) = (self.key(number), serde_json::to_vec(&instance(number, 80))?);
        self.client.kv_client().put(key.as_str(), json, Some(self.on_lease())).await?;
        Ok(key)
    }

    /// Registers `count` instances in few transactions, for what does not measure that.
    pub(super) async fn fill(&self, count: usize) -> Result<()> {
        let all: Vec<_> = (0..count).collect();
        for some in all.chunks(SOME) {
            let put = |number: &usize| {
                let json = serde_json::to_vec(&instance(*number, 80))?;
                anyhow::Ok(TxnOp::put(self.key(*number), json, Some(self.on_lease())))
            };
            let puts = some.iter().map(put).collect::<Result<Vec<_>>>()?;
            self.client.kv_client().txn(Txn::new().and_then(puts)).await?;
        }
        Ok(())
    }

    pub(super) async fn discover(&self) -> Result<Vec<ServiceInfo>> {
        let options = GetOptions::new().with_prefix();
        let found = self.client.kv_client().get(self.prefix.as_str(), Some(options)).await?;
        Ok(found.kvs().iter().map(|kv| serde_json::from_slice(kv.value())).collect::<Result<_, _>>()?)
    }

    /// Gives back everything.
    pub(super) async fn clear(&self) -> Result<()> {
        self.client.lease_client().revoke(self.lease).await?;
        Ok(())
    }
}
