//! The load of one process: it holds, and waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use coord_api::{ConfigEvent, ConfigExt, LockGuard, Provider, Registration, ServiceInfo, Watch};
use coord_etcd::{Client, EtcdConfig};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::json;
use tokio::time::sleep;

use crate::args::Args;
use crate::child::{Runner, resident};

/// Renewals every 3.3 s, so that there are some in the time.
const TTL: Duration = Duration::from_secs(10);
const TIME: u32 = 10;
/// How many things are taken at once.
const IN_FLIGHT: usize = 64;

/// All that is held.
struct Held {
    _guards: Vec<LockGuard>,
    _registrations: Vec<Registration>,
    _watches: Vec<Watch<ConfigEvent<u32>>>,
}

/// Runs one contender as `args` say.
pub(crate) async fn run(args: &Args, runner: &mut Runner) -> Result<()> {
    let (endpoint, namespace) = (args.need::<String>("endpoint")?, args.need::<String>("prefix")?);
    let client = Client::connect(EtcdConfig::new([endpoint.as_str()]).namespace(&namespace)).await?;
    let client: Arc<dyn Provider> = Arc::new(client);
    match args.text("shape") {
        Some("large") => idle(&client, (1_000, 10_000, 0), runner).await?,
        Some("small") => idle(&client, (100, 100, 100), runner).await?,
        Some("close") => {
            let _held = hold(&client, (1_000, 10_000, 0)).await?;
            runner.ready().await?;
            let start = Instant::now();
            client.close().await?;
            let took = start.elapsed();
            let micros = took.as_micros() as u64;
            runner.report(&json!({ "seconds": took.as_secs_f64(), "latencies_us": [micros] })).await?;
        }
        other => bail!("no shape {other:?}"),
    }
    Ok(client.close().await?)
}

/// So many locks, registrations and watches.
async fn hold(
    client: &Arc<dyn Provider>,
    (locks, registrations, watches): (usize, u16, usize),
) -> Result<Held> {
    let (lock, registry, config) = (client.lock(), client.registry(), client.config());
    let guards = stream::iter(0..locks).map(|n| {
        let lock = lock.clone();
        async move { lock.acquire(&format!("job-{n}"), TTL).await }
    });
    let registrations = stream::iter(0..registrations).map(|n| {
        let registry = registry.clone();
        let info = ServiceInfo::new(format!("service-{}", n % 10), n.to_string(), "10.0.0.1", n.max(1));
        async move { registry.register(info, TTL).await }
    });
    let watches = stream::iter(0..watches).map(|n| {
        let config = config.clone();
        async move { config.watch::<u32>(&format!("value-{n}")).await }
    });
    Ok(Held {
        _guards: guards.buffer_unordered(IN_FLIGHT).try_collect().await?,
        _registrations: registrations.buffer_unordered(IN_FLIGHT).try_collect().await?,
        _watches: watches.buffer_unordered(IN_FLIGHT).try_collect().await?,
    })
}

/// Holds and waits; each second is one operation.
async fn idle(client: &Arc<dyn Provider>, what: (usize, u16, usize), runner: &mut Runner) -> Result<()> {
    let _held = hold(client, what).await?;
    runner.ready().await?;
    sleep(Duration::from_secs(u64::from(TIME))).await;
    let megabytes = f64::from(u32::try_from(resident()? >> 10)?) / 1024.0;
    let figures = json!({ "resident_mb": megabytes });
    runner.report(&json!({ "seconds": f64::from(TIME), "count": TIME, "figures": figures })).await
}
