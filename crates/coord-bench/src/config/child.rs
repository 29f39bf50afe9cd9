//! The load of one process.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use coord_api::{ConfigCenter, ConfigExt, Provider};
use coord_config::{Live, LiveExt};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::task::JoinSet;

use super::raw::Raw;
use crate::args::Args;
use crate::child::{Runner, resident};
use crate::load::{self, repeat};
use crate::told::{self, Finish};

/// A value as services have them: some 150 bytes of JSON.
#[derive(Debug, Serialize, Deserialize)]
struct Settings {
    brokers: Vec<String>,
    topic: String,
    retries: u64,
    timeout_ms: u64,
    is_enabled: bool,
}

impl Settings {
    fn new(retries: u64) -> Self {
        let brokers = ["kafka-1:9092", "kafka-2:9092", "kafka-3:9092"].map(Into::into).into();
        Self { brokers, topic: "messages".into(), retries, timeout_ms: 500, is_enabled: true }
    }
}

/// Runs one contender as `args` say.
pub(crate) async fn run(args: &Args, runner: &mut Runner) -> Result<()> {
    let (contender, endpoint, namespace) =
        (args.need::<String>("contender")?, args.need::<String>("endpoint")?, args.need::<String>("prefix")?);
    let (tasks, seconds) = (args.need("tasks")?, Duration::from_secs_f64(args.need("seconds")?));
    let config = coord_etcd::EtcdConfig::new([endpoint.as_str()]).namespace(&namespace);
    let client = coord_etcd::Client::connect(config).await?;
    let raw = Raw::connect(&endpoint, &namespace).await?;
    let party = Arc::new(Party { contender, config: client.config(), raw });
    match args.text("shape") {
        Some("get") => party.calls(Call::Get, tasks, seconds, runner).await?,
        Some("set") => party.calls(Call::Set, tasks, seconds, runner).await?,
        Some("update") => party.updates(tasks, seconds, runner).await?,
        Some("read") => party.read(tasks, seconds, runner).await?,
        Some("event") => party.event(&endpoint, tasks, seconds, runner).await?,
        Some("live") => party.memory(tasks, runner).await?,
        other => bail!("no shape {other:?}"),
    }
    Ok(client.close().await?)
}

struct Party {
    contender: String,
    config: Arc<dyn ConfigCenter>,
    raw: Raw,
}

#[derive(Clone, Copy)]
enum Call {
    Get,
    Set,
    Update,
}

impl Party {
    async fn call(&self, call: Call, key: &str) -> Result<()> {
        match (call, self.contender.as_str()) {
            (Call::Get, "coord") => {
                black_box(self.config.get::<Settings>(key).await?.context("no value")?);
            }
            (Call::Get, "raw") => drop(black_box(self.raw.get::<Settings>(key).await?)),
            (Call::Set, "coord") => {
                self.config.set(key, &Settings::new(3)).await?;
            }
            (Call::Set, "raw") => self.raw.set(key, &Settings::new(3)).await?,
            (Call::Update, "coord") => {
                self.config.update(key, |number: Option<u64>| number.unwrap_or_default() + 1).await?;
            }
            (Call::Update, "naive") => self.raw.add_one(key).await?,
            (_, other) => bail!("no contender `{other}`"),
        }
        Ok(())
    }

    /// Each task has a key of its own.
    async fn calls(
        self: &Arc<Self>,
        call: Call,
        tasks: usize,
        seconds: Duration,
        runner: &mut Runner,
    ) -> Result<()> {
        let keys: Vec<_> = (0..tasks).map(|task| format!("bench/{task}")).collect();
        for key in &keys {
            self.raw.set(key, &Settings::new(3)).await?;
        }
        self.repeat(call, &keys, seconds / 5).await?;
        runner.ready().await?;
        let start = Instant::now();
        let latencies = self.repeat(call, &keys, seconds).await?;
        runner.report(&json!({ "seconds": start.elapsed().as_secs_f64(), "latencies_us": latencies })).await
    }

    /// All tasks have one key, and no update is lost.
    async fn updates(self: &Arc<Self>, tasks: usize, seconds: Duration, runner: &mut Runner) -> Result<()> {
        self.raw.set("number", &0_u64).await?;
        let keys = vec!["number".to_owned(); tasks];
        let before = self.repeat(Call::Update, &keys, seconds / 5).await?.len();
        runner.ready().await?;
        let start = Instant::now();
        let latencies = self.repeat(Call::Update, &keys, seconds).await?;
        let took = start.elapsed().as_secs_f64();
        let (number, made) = (self.raw.get::<usize>("number").await?.0, before + latencies.len());
        anyhow::ensure!(number == made, "{made} updates made {number}");
        runner.report(&json!({ "seconds": took, "latencies_us": latencies })).await
    }

    /// A task for each key; how long each call took, in microseconds.
    async fn repeat(self: &Arc<Self>, call: Call, keys: &[String], seconds: Duration) -> Result<Vec<u64>> {
        let calls = keys.iter().map(|key| {
            let (party, key) = (self.clone(), Arc::<str>::from(key.as_str()));
            move || {
                let (party, key) = (party.clone(), key.clone());
                async move { party.call(call, &key).await }
            }
        });
        repeat(calls, seconds).await
    }

    async fn live(&self) -> Result<Live<Settings>> {
        let live = self.config.live("settings");
        let live = if self.contender == "ruled" { live.validate(|_: &Settings| ()) } else { live };
        Ok(live.start().await?)
    }

    /// Threads read one live value.
    async fn read(&self, threads: usize, seconds: Duration, runner: &mut Runner) -> Result<()> {
        self.raw.set("settings", &Settings::new(0)).await?;
        let live = self.live().await?;
        let read: fn(&Live<Settings>) -> u64 = match self.contender.as_str() {
            "coord" => |live| live.current().retries,
            "look" => |live| live.look(|settings| settings.retries),
            other => bail!("no contender `{other}`"),
        };
        runner.ready().await?;
        let (reads, took) = load::read(threads, seconds, move || {
            black_box(read(black_box(&live)));
        })
        .await?;
        runner.report(&json!({ "seconds": took.as_secs_f64(), "count": reads })).await
    }

    /// The value changes, and all live values tell it. With rules, each follows the key itself.
    async fn event(
        &self,
        endpoint: &str,
        handles: usize,
        seconds: Duration,
        runner: &mut Runner,
    ) -> Result<()> {
        self.raw.set("settings", &Settings::new(0)).await?;
        let key = self.raw.key("settings");
        let handles = if matches!(self.contender.as_str(), "one" | "raw") { 1 } else { handles };
        let (finish, told) = Finish::of(handles);
        let mut waiting = JoinSet::new();
        if self.contender == "raw" {
            let mut watch = self.raw.client.watch_client().watch(key.as_str(), None).await?;
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
            for _ in 0..handles {
                let mut live = self.live().await?;
                let finish = finish.clone();
                waiting.spawn(async move {
                    loop {
                        live.changed().await?;
                        finish.arrived();
                    }
                });
            }
        }
        runner.ready().await?;
        let value = |number| {
            serde_json::to_string(&Settings::new(number)).expect("has only strings, numbers and a flag")
        };
        let report = told::write(endpoint, key, value, seconds, told).await?;
        runner.report(&report).await?;
        waiting.shutdown().await;
        Ok(())
    }

    /// What a live value more costs, when there is one.
    async fn memory(&self, count: usize, runner: &mut Runner) -> Result<()> {
        self.raw.set("settings", &Settings::new(0)).await?;
        // With one of each the stream and what belongs to it is there.
        let (mut lives, mut watches, mut bare) = (vec![self.live().await?], Vec::new(), Vec::new());
        watches.push(self.config.watch::<Settings>("first").await?);
        bare.push(self.raw.client.watch_client().watch("first", None).await?);
        runner.ready().await?;
        let before = resident()?;
        for n in 0..count {
            match self.contender.as_str() {
                "coord" | "ruled" => lives.push(self.live().await?),
                "watches" => watches.push(self.config.watch::<Settings>(&format!("key-{n}")).await?),
                "raw" => bare.push(self.raw.client.watch_client().watch(format!("key-{n}"), None).await?),
                other => bail!("no contender `{other}`"),
            }
        }
        let after = resident()?;
        let figures = json!({ "seconds": 1.0, "bytes": [before, after] });
        runner.report(&figures).await
    }
}
