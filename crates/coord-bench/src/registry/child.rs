//! The load of one process.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coord_api::{Provider, Registration, ServiceRegistry, ServiceView};
use etcd_client::WatchOptions;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::raw::{Raw, instance};
use crate::args::Args;
use crate::child::{Runner, resident};
use crate::load;
use crate::told::{self, Finish};

/// How many register at the same time.
const IN_FLIGHT: usize = 64;
/// How many instances a view shows.
const SHOWN: usize = 1000;
const TTL: Duration = Duration::from_secs(30);
/// Of the registrations whose keep-alives are counted.
const KEPT_TTL: Duration = Duration::from_secs(10);

/// Runs one contender as `args` say.
pub(crate) async fn run(args: &Args, runner: &mut Runner) -> Result<()> {
    let (contender, endpoint, namespace) =
        (args.need::<String>("contender")?, args.need::<String>("endpoint")?, args.need::<String>("prefix")?);
    let (tasks, seconds) = (args.need("tasks")?, Duration::from_secs_f64(args.need("seconds")?));
    let config = coord_etcd::EtcdConfig::new([endpoint.as_str()]).namespace(&namespace);
    let client = coord_etcd::Client::connect(config).await?;
    let raw = Arc::new(Raw::connect(&endpoint, &namespace).await?);
    let party = Party { contender, endpoint, registry: client.registry(), raw };
    match args.text("shape") {
        Some("register") => party.register(tasks, seconds, runner).await?,
        Some("kept") => party.kept(tasks, runner).await?,
        Some("discover") => party.discover(tasks, seconds, runner).await?,
        Some("read") => party.read(tasks, seconds, runner).await?,
        Some("event") => party.event(tasks, seconds, runner).await?,
        Some("views") => party.memory_of_views(tasks, runner).await?,
        Some("registrations") => party.memory_of_registrations(tasks, runner).await?,
        other => bail!("no shape {other:?}"),
    }
    party.raw.clear().await?;
    Ok(client.close().await?)
}

struct Party {
    contender: String,
    endpoint: String,
    registry: Arc<dyn ServiceRegistry>,
    raw: Arc<Raw>,
}

/// How someone registers.
#[derive(Clone)]
enum Registrar {
    Coord(Arc<dyn ServiceRegistry>, Duration),
    Raw(Arc<Raw>),
}

/// What is to be given back.
enum Registered {
    Coord(Registration),
    Raw(Arc<Raw>, String),
}

impl Registrar {
    async fn register(&self, number: usize) -> Result<Registered> {
        Ok(match self {
            Self::Coord(registry, ttl) => {
                Registered::Coord(registry.register(instance(number, 80), *ttl).await?)
            }
            Self::Raw(raw) => Registered::Raw(raw.clone(), raw.register(number).await?),
        })
    }

    /// Registers `count` instances, some at once; with how long each took, in microseconds.
    async fn register_all(&self, count: usize) -> Result<(Vec<Registered>, Vec<u64>)> {
        let next = Arc::new(AtomicUsize::new(0));
        let mut running = JoinSet::new();
        for _ in 0..IN_FLIGHT.min(count) {
            let (next, registrar) = (next.clone(), self.clone());
            running.spawn(async move {
                let mut done = Vec::new();
                loop {
                    let number = next.fetch_add(1, Relaxed);
                    if number >= count {
                        return anyhow::Ok(done);
                    }
                    let start = Instant::now();
                    let registered = registrar.register(number).await?;
                    done.push((registered, start.elapsed().as_micros() as u64));
                }
            });
        }
        let mut all = Vec::with_capacity(count);
        while let Some(done) = running.join_next().await {
            all.extend(done??);
        }
        Ok(all.into_iter().unzip())
    }
}

impl Registered {
    async fn deregister(self) -> Result<()> {
        match self {
            Self::Coord(registration) => registration.deregister().await?,
            Self::Raw(raw, key) => drop(raw.client.kv_client().delete(key, None).await?),
        }
        Ok(())
    }
}

async fn deregister_all(all: Vec<Registered>) -> Result<()> {
    let mut running = JoinSet::new();
    for one in all {
        if running.len() == IN_FLIGHT {
            running.join_next().await.context("some are running")???;
        }
        running.spawn(one.deregister());
    }
    while let Some(done) = running.join_next().await {
        done??;
    }
    Ok(())
}

impl Party {
    fn registrar(&self, ttl: Duration) -> Result<Registrar> {
        Ok(match self.contender.as_str() {
            "coord" => Registrar::Coord(self.registry.clone(), ttl),
            "raw" => Registrar::Raw(self.raw.clone()),
            other => bail!("no contender `{other}`"),
        })
    }

    /// All register, and deregister outside of the time; again and again.
    async fn register(&self, count: usize, seconds: Duration, runner: &mut Runner) -> Result<()> {
        let registrar = self.registrar(TTL)?;
        // In a service that the client knows.
        let first = registrar.register(count).await?;
        runner.ready().await?;
        let (mut latencies, mut busy) = (Vec::new(), Duration::ZERO);
        while busy < seconds {
            let start = Instant::now();
            let (registered, some) = registrar.register_all(count).await?;
            busy += start.elapsed();
            latencies.extend(some);
            deregister_all(registered).await?;
        }
        runner.report(&json!({ "seconds": busy.as_secs_f64(), "latencies_us": latencies })).await?;
        first.deregister().await
    }

    /// From the first registration on for one TTL, which is the one operation that is counted. Where registering takes
    /// longer, for as many whole TTLs as that takes.
    async fn kept(&self, count: usize, runner: &mut Runner) -> Result<()> {
        let registrar = self.registrar(KEPT_TTL)?;
        runner.ready().await?;
        let start = Instant::now();
        let (registered, _) = registrar.register_all(count).await?;
        let ttls = 1 + (start.elapsed().as_secs() / KEPT_TTL.as_secs()) as u32;
        let time = KEPT_TTL * ttls;
        sleep(time.saturating_sub(start.elapsed())).await;
        runner.report(&json!({ "seconds": time.as_secs_f64(), "count": ttls })).await?;
        deregister_all(registered).await
    }

    async fn discover(&self, count: usize, seconds: Duration, runner: &mut Runner) -> Result<()> {
        self.raw.fill(count).await?;
        self.list(count).await?;
        runner.ready().await?;
        let (start, mut latencies) = (Instant::now(), Vec::new());
        while start.elapsed() < seconds {
            let start = Instant::now();
            self.list(count).await?;
            latencies.push(start.elapsed().as_micros() as u64);
        }
        runner.report(&json!({ "seconds": start.elapsed().as_secs_f64(), "latencies_us": latencies })).await
    }

    async fn list(&self, count: usize) -> Result<()> {
        let found = match self.contender.as_str() {
            "coord" => self.registry.discover("bench").await?,
            "raw" => self.raw.discover().await?,
            other => bail!("no contender `{other}`"),
        };
        anyhow::ensure!(found.len() == count, "{} instances instead of {count}", found.len());
        Ok(())
    }

    /// Threads read one view.
    async fn read(&self, threads: usize, seconds: Duration, runner: &mut Runner) -> Result<()> {
        self.raw.fill(SHOWN).await?;
        let view = self.registry.view("bench").await?;
        let read: fn(&ServiceView) -> usize = match self.contender.as_str() {
            "coord" => |view| view.instances().len(),
            "look" => |view| view.look(|instances| instances.len()),
            other => bail!("no contender `{other}`"),
        };
        runner.ready().await?;
        let (reads, took) = load::read(threads, seconds, move || {
            black_box(read(black_box(&view)));
        })
        .await?;
        runner.report(&json!({ "seconds": took.as_secs_f64(), "count": reads })).await
    }

    /// One instance changes, and all views tell it.
    async fn event(&self, views: usize, seconds: Duration, runner: &mut Runner) -> Result<()> {
        self.raw.fill(SHOWN).await?;
        let views = if self.contender == "coord" { views } else { 1 };
        let (finish, told) = Finish::of(views);
        let mut waiting = JoinSet::new();
        for _ in 0..views {
            let finish = finish.clone();
            if self.contender == "raw" {
                let options = WatchOptions::new().with_prefix();
                let mut watch =
                    self.raw.client.watch_client().watch(self.raw.prefix(), Some(options)).await?;
                waiting.spawn(async move {
                    while let Some(answer) = watch.message().await? {
                        // The first only says that the watch was created.
                        if !answer.events().is_empty() {
                            finish.arrived();
                        }
                    }
                    anyhow::Ok(())
                });
            } else {
                let mut view = self.registry.view("bench").await?;
                waiting.spawn(async move {
                    loop {
                        view.changed().await?;
                        finish.arrived();
                    }
                });
            }
        }
        runner.ready().await?;
        let value = |number: u64| {
            let port = u16::try_from(number % 60_000).expect("is below 60,000") + 1;
            serde_json::to_string(&instance(0, port)).expect("has only strings and numbers")
        };
        let report = told::write(&self.endpoint, self.raw.key(0), value, seconds, told).await?;
        runner.report(&report).await?;
        waiting.shutdown().await;
        Ok(())
    }

    /// What a view more costs, when there is one.
    async fn memory_of_views(&self, count: usize, runner: &mut Runner) -> Result<()> {
        self.raw.fill(SHOWN).await?;
        let first = self.registry.view("bench").await?;
        runner.ready().await?;
        let before = resident()?;
        let mut views = Vec::with_capacity(count);
        for _ in 0..count {
            views.push(self.registry.view("bench").await?);
        }
        let after = resident()?;
        drop(first);
        runner.report(&json!({ "seconds": 1.0, "bytes": [before, after] })).await
    }

    /// What a registration more costs, with all that keeps it.
    async fn memory_of_registrations(&self, count: usize, runner: &mut Runner) -> Result<()> {
        let registrar = self.registrar(TTL)?;
        let first = registrar.register(count).await?;
        runner.ready().await?;
        let before = resident()?;
        let (registered, _) = registrar.register_all(count).await?;
        let after = resident()?;
        runner.report(&json!({ "seconds": 1.0, "bytes": [before, after] })).await?;
        deregister_all(registered).await?;
        first.deregister().await
    }
}
