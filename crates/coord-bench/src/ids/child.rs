//! The load of one process: claims in a range of which a part is taken, or numbers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coord_api::{IdOptions, InstanceIdAllocator, Provider, Snowflake};
use etcd_client::{Compare, CompareOp, DeleteOptions, PutOptions, Txn, TxnOp};
use serde_json::json;
use tokio::task::JoinSet;

use crate::args::Args;
use crate::child::Runner;

const MAX_ID: u32 = 1024;
/// Longer than any measurement.
const LONG: i64 = 300;

/// Runs one contender as `args` say.
pub(crate) async fn run(args: &Args, runner: &mut Runner) -> Result<()> {
    let (contender, endpoint, namespace) =
        (args.need::<String>("contender")?, args.need::<String>("endpoint")?, args.need::<String>("prefix")?);
    let (tasks, seconds) = (args.need("tasks")?, Duration::from_secs_f64(args.need("seconds")?));
    let shape = args.text("shape").unwrap_or_default();
    if shape == "numbers" {
        return numbers(&endpoint, &namespace, tasks, seconds, runner).await;
    }
    let taken: u32 = shape.strip_prefix("taken-").and_then(|taken| taken.parse().ok()).context("no shape")?;
    let range = Range::new(&endpoint, &namespace, taken).await?;
    let mut claimants = Vec::new();
    for _ in 0..tasks {
        claimants.push(match contender.as_str() {
            "coord" => Claimant::coord(&endpoint, &namespace).await?,
            "scan" => Claimant::Scan(Box::new(range.copy(&endpoint).await?)),
            other => bail!("no contender `{other}`"),
        });
    }
    wave(&mut claimants).await?;
    runner.ready().await?;
    let mut latencies = Vec::new();
    let mut busy = Duration::ZERO;
    let start = Instant::now();
    while start.elapsed() < seconds {
        let (wave, took) = wave(&mut claimants).await?;
        latencies.extend(wave);
        busy += took;
    }
    // Giving back is not a part of the time, but of the requests: one each.
    runner.report(&json!({ "seconds": busy.as_secs_f64(), "latencies_us": latencies })).await?;
    for claimant in claimants {
        claimant.close().await?;
    }
    range.clear().await
}

/// All claim one id each at the same moment, and give it back afterwards.
async fn wave(claimants: &mut Vec<Claimant>) -> Result<(Vec<u64>, Duration)> {
    let start = Instant::now();
    let mut running = JoinSet::new();
    for mut claimant in claimants.drain(..) {
        running.spawn(async move {
            let start = Instant::now();
            claimant.claim().await?;
            anyhow::Ok((claimant, start.elapsed().as_micros() as u64))
        });
    }
    let mut latencies = Vec::new();
    while let Some(claimed) = running.join_next().await {
        let (claimant, latency) = claimed??;
        claimants.push(claimant);
        latencies.push(latency);
    }
    let took = start.elapsed();
    for claimant in claimants {
        claimant.release().await?;
    }
    Ok((latencies, took))
}

/// One who claims an id.
enum Claimant {
    Coord(coord_etcd::Client, Arc<dyn InstanceIdAllocator>),
    Scan(Box<Range>),
}

impl Claimant {
    async fn coord(endpoint: &str, namespace: &str) -> Result<Self> {
        let config = coord_etcd::EtcdConfig::new([endpoint]).namespace(namespace);
        let client = coord_etcd::Client::connect(config).await?;
        let options = IdOptions::new("svc", MAX_ID).quarantine(Duration::ZERO);
        let ids = client.instance_ids().allocator(options)?;
        Ok(Self::Coord(client, ids))
    }

    async fn claim(&mut self) -> Result<()> {
        match self {
            Self::Coord(_, ids) => ids.acquire_id().await.map(|_| ())?,
            Self::Scan(range) => {
                for id in 1..MAX_ID {
                    let key = format!("{}{id}", range.prefix);
                    let free = Compare::mod_revision(key.as_str(), CompareOp::Equal, 0);
                    let put = TxnOp::put(key, "", Some(PutOptions::new().with_lease(range.lease)));
                    let txn = Txn::new().when([free]).and_then([put]);
                    if range.client.kv_client().txn(txn).await?.succeeded() {
                        range.claimed = Some(id);
                        return Ok(());
                    }
                }
                bail!("no id is free");
            }
        }
        Ok(())
    }

    async fn release(&mut self) -> Result<()> {
        match self {
            Self::Coord(_, ids) => ids.release_id().await?,
            Self::Scan(range) => {
                let id = range.claimed.take().context("none is held")?;
                range.client.kv_client().delete(format!("{}{id}", range.prefix), None).await?;
            }
        }
        Ok(())
    }

    async fn close(self) -> Result<()> {
        match self {
            Self::Coord(client, _) => client.close().await?,
            Self::Scan(_) => {}
        }
        Ok(())
    }
}

/// The ids of a service in etcd.
struct Range {
    client: etcd_client::Client,
    prefix: String,
    lease: i64,
    claimed: Option<u32>,
}

impl Range {
    /// One of which the first `taken` ids are taken.
    async fn new(endpoint: &str, namespace: &str, taken: u32) -> Result<Self> {
        let client = etcd_client::Client::connect([endpoint], None).await?;
        let lease = client.lease_client().grant(LONG, None).await?.id();
        let prefix = format!("/{namespace}/ids/svc/ids/");
        let all: Vec<_> = (1..=taken).collect();
        for some in all.chunks(100) {
            let put = |id| TxnOp::put(format!("{prefix}{id}"), "", Some(PutOptions::new().with_lease(lease)));
            client.kv_client().txn(Txn::new().and_then(some.iter().map(put).collect::<Vec<_>>())).await?;
        }
        Ok(Self { client, prefix, lease, claimed: None })
    }

    /// The same with a connection of its own.
    async fn copy(&self, endpoint: &str) -> Result<Self> {
        let client = etcd_client::Client::connect([endpoint], None).await?;
        Ok(Self { client, prefix: self.prefix.clone(), lease: self.lease, claimed: None })
    }

    async fn clear(self) -> Result<()> {
        let options = DeleteOptions::new().with_prefix();
        self.client.kv_client().delete(self.prefix, Some(options)).await?;
        self.client.lease_client().revoke(self.lease).await?;
        Ok(())
    }
}

/// Threads make numbers with one id; the latencies are of a thousand numbers each.
async fn numbers(
    endpoint: &str,
    namespace: &str,
    threads: usize,
    seconds: Duration,
    runner: &mut Runner,
) -> Result<()> {
    let config = coord_etcd::EtcdConfig::new([endpoint]).namespace(namespace);
    let client = coord_etcd::Client::connect(config).await?;
    let ids = client.instance_id_allocator("svc", MAX_ID)?;
    ids.acquire_id().await?;
    let snowflake = Arc::new(Snowflake::start(&*ids).await?);
    runner.ready().await?;
    let start = Instant::now();
    let making = (0..threads).map(|_| {
        let snowflake = snowflake.clone();
        tokio::task::spawn_blocking(move || {
            let mut made = 0_u64;
            while start.elapsed() < seconds {
                for _ in 0..1000 {
                    made += u64::from(snowflake.try_next_id()?.is_some());
                }
            }
            anyhow::Ok(made)
        })
    });
    let mut made = 0;
    for thread in making.collect::<Vec<_>>() {
        made += thread.await??;
    }
    runner.report(&json!({ "seconds": start.elapsed().as_secs_f64(), "count": made })).await?;
    ids.release_id().await?;
    Ok(client.close().await?)
}
