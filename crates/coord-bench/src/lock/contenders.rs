//! Those that are written in Rust: coord, etcd's own lock service, and bare requests.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use coord_api::{DistributedLock, LockGuard, Provider};
use etcd_client::{Compare, CompareOp, LockOptions, PutOptions, Txn, TxnOp};

/// Longer than any measurement, so that the bare contenders need no keep-alives.
const LONG: i64 = 300;
const TTL: Duration = Duration::from_secs(30);

/// A held lock.
pub(crate) enum Held {
    Guard(LockGuard),
    Key(Vec<u8>),
}

/// One way to lock.
#[async_trait]
pub(crate) trait Locker: Send + Sync {
    /// What one of several tasks on one name uses: itself, or one with a lease of its own.
    async fn for_task(self: Arc<Self>) -> Result<Arc<dyn Locker>>;
    /// Waits for the lock.
    async fn lock(&self, name: &str) -> Result<Held>;
    /// Gives it back.
    async fn unlock(&self, held: Held) -> Result<()>;
    /// Leaves nothing behind on the server.
    async fn close(&self) -> Result<()>;
}

/// The contender of this name, with one connection; names are below `/<namespace>/locks/` for all.
pub(crate) async fn connect(contender: &str, endpoint: &str, namespace: &str) -> Result<Arc<dyn Locker>> {
    let bare = |kind| async move {
        let client = etcd_client::Client::connect([endpoint], None).await?;
        let prefix = format!("/{namespace}/locks/");
        let lease = client.lease_client().grant(LONG, None).await?.id();
        anyhow::Ok(Arc::new(Bare { kind, client, prefix, lease, others: Mutex::default() }))
    };
    Ok(match contender {
        "coord" => {
            let config = coord_etcd::EtcdConfig::new([endpoint]).namespace(namespace);
            let client = coord_etcd::Client::connect(config).await?;
            Arc::new(Coord { locks: client.lock(), client })
        }
        "rpc" => bare(Kind::LockService).await?,
        "raw" => bare(Kind::Requests).await?,
        other => bail!("no contender `{other}`"),
    })
}

struct Coord {
    client: coord_etcd::Client,
    locks: Arc<dyn DistributedLock>,
}

#[async_trait]
impl Locker for Coord {
    async fn for_task(self: Arc<Self>) -> Result<Arc<dyn Locker>> {
        Ok(self)
    }

    async fn lock(&self, name: &str) -> Result<Held> {
        Ok(Held::Guard(self.locks.acquire(name, TTL).await?))
    }

    async fn unlock(&self, held: Held) -> Result<()> {
        let Held::Guard(guard) = held else { bail!("not ours") };
        Ok(guard.unlock().await?)
    }

    async fn close(&self) -> Result<()> {
        Ok(self.client.close().await?)
    }
}

#[derive(Clone, Copy)]
enum Kind {
    LockService,
    Requests,
}

struct Bare {
    kind: Kind,
    client: etcd_client::Client,
    prefix: String,
    lease: i64,
    /// The leases that `for_task` made.
    others: Mutex<Vec<i64>>,
}

#[async_trait]
impl Locker for Bare {
    async fn for_task(self: Arc<Self>) -> Result<Arc<dyn Locker>> {
        // The lock service names a place after its lease, so each needs one.
        let lease = self.client.lease_client().grant(LONG, None).await?.id();
        self.others.lock().expect("nothing panics while this is locked").push(lease);
        let (kind, client, prefix) = (self.kind, self.client.clone(), self.prefix.clone());
        Ok(Arc::new(Self { kind, client, prefix, lease, others: Mutex::default() }))
    }

    async fn lock(&self, name: &str) -> Result<Held> {
        let key = format!("{}{name}", self.prefix);
        match self.kind {
            Kind::LockService => {
                let options = LockOptions::new().with_lease(self.lease);
                let answer = self.client.lock_client().lock(key, Some(options)).await?;
                Ok(Held::Key(answer.key().to_vec()))
            }
            Kind::Requests => {
                let free = Compare::create_revision(key.as_str(), CompareOp::Equal, 0);
                let put = TxnOp::put(key.as_str(), "", Some(PutOptions::new().with_lease(self.lease)));
                let answer = self.client.kv_client().txn(Txn::new().when([free]).and_then([put])).await?;
                answer.succeeded().then(|| Held::Key(key.into_bytes())).context("is held by someone else")
            }
        }
    }

    async fn unlock(&self, held: Held) -> Result<()> {
        let Held::Key(key) = held else { bail!("not ours") };
        match self.kind {
            Kind::LockService => self.client.lock_client().unlock(key).await.map(|_| ())?,
            Kind::Requests => self.client.kv_client().delete(key, None).await.map(|_| ())?,
        }
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        let others = std::mem::take(&mut *self.others.lock().expect("nothing panics while this is locked"));
        for lease in others.into_iter().chain([self.lease]) {
            self.client.lease_client().revoke(lease).await?;
        }
        Ok(())
    }
}
