//! Running a plan: every contender of a scenario in turn, round after round, on one server.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use etcd_client::GetOptions;
use serde_json::Value;
use tokio::time::sleep;

use crate::figures;
use crate::party::Party;
use crate::plan::{Contender, Numbers, Plan, Scenario};
use crate::server::Counters;

/// How a plan is run.
#[derive(Debug)]
pub(crate) struct Runner {
    /// `host:port` of etcd.
    pub(crate) endpoint: String,
    /// The Go program, where there is one.
    pub(crate) go: Option<PathBuf>,
    pub(crate) rounds: usize,
    pub(crate) seconds: f64,
    /// Only the scenarios whose id contains this.
    pub(crate) only: Option<String>,
}

/// The figures of one contender in one scenario.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) contender: Contender,
    pub(crate) rounds: Vec<Numbers>,
    pub(crate) median: Numbers,
}

/// One scenario with a row for each of its contenders.
#[derive(Debug)]
pub(crate) struct Measured {
    pub(crate) scenario: Scenario,
    pub(crate) rows: Vec<Row>,
}

impl Measured {
    /// The medians of a contender.
    pub(crate) fn of(&self, contender: &str) -> Option<&Numbers> {
        self.rows.iter().find(|row| row.contender.id == contender).map(|row| &row.median)
    }
}

impl Runner {
    /// Measures all; `shown` sees each scenario as soon as it is complete.
    pub(crate) async fn run(&self, plan: &Plan, shown: impl Fn(&Measured)) -> Result<Vec<Measured>> {
        let mut all = Vec::new();
        for scenario in &plan.scenarios {
            if self.only.as_ref().is_some_and(|only| !scenario.id.contains(only.as_str())) {
                continue;
            }
            let here = scenario.contenders.iter().filter(|one| !one.in_go || self.go.is_some());
            let mut rows: Vec<Row> = here
                .map(|&contender| Row { contender, rounds: Vec::new(), median: Numbers::new() })
                .collect();
            for round in 0..self.rounds {
                // Each is first once, so that no one always meets the server that another has warmed up.
                let count = rows.len();
                for turn in 0..count {
                    let row = &mut rows[(round + turn) % count];
                    let numbers = self.measure(plan.area, scenario, row.contender, round).await;
                    let id = row.contender.id;
                    row.rounds.push(numbers.with_context(|| format!("{id} in {}", scenario.id))?);
                }
            }
            for row in &mut rows {
                row.median = figures::medians(&row.rounds);
            }
            let measured = Measured { scenario: scenario.clone(), rows };
            shown(&measured);
            all.push(measured);
        }
        Ok(all)
    }

    async fn measure(
        &self,
        area: &str,
        scenario: &Scenario,
        contender: Contender,
        round: usize,
    ) -> Result<Numbers> {
        let unique = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let prefix = format!("bench/{unique:x}{round}");
        let own;
        let program: &Path = match &self.go {
            Some(go) if contender.in_go => go,
            _ => {
                own = std::env::current_exe()?;
                &own
            }
        };
        let args = self.args(area, scenario, contender, &prefix);
        let mut parties = Vec::with_capacity(scenario.processes);
        for _ in 0..scenario.processes {
            parties.push(Party::start(program, &args)?);
        }
        for party in &mut parties {
            party.ready().await?;
        }
        if let Some(keys) = scenario.after_keys {
            self.wait_for_keys(&format!("/{prefix}/"), keys).await?;
        }
        let cpu = |parties: &[Party]| parties.iter().map(Party::cpu_seconds).sum::<f64>();
        let (before, cpu_before) = (Counters::read(&self.endpoint).await?, cpu(&parties));
        for party in &mut parties {
            party.go().await?;
        }
        let mut reports: Vec<Value> = Vec::new();
        for party in &mut parties {
            reports.push(party.report().await?);
        }
        let (cpu_after, after) = (cpu(&parties), Counters::read(&self.endpoint).await?);
        let mut numbers = figures::of_reports(&reports)?;
        if let Some(&operations) = numbers.get("operations") {
            let counted = after.since(&before, operations);
            let requests = counted.iter().filter(|(name, _)| name.starts_with("requests."));
            numbers.insert("each.requests".into(), requests.map(|(_, count)| count).sum());
            numbers.extend(counted.into_iter().map(|(name, value)| (format!("each.{name}"), value)));
            numbers.insert("each.client_cpu_seconds".into(), (cpu_after - cpu_before) / operations.max(1.0));
        }
        if let (Some(&bytes), Ok(tasks)) = (numbers.get("bytes"), u32::try_from(scenario.tasks)) {
            numbers.insert("bytes_each".into(), bytes / f64::from(tasks));
        }
        for party in parties {
            party.stop().await?;
        }
        // What the last one left to the server to do is not the next one's.
        sleep(Duration::from_millis(300)).await;
        Ok(numbers)
    }

    fn args(&self, area: &str, scenario: &Scenario, contender: Contender, prefix: &str) -> Vec<String> {
        let words = if contender.in_go { vec![] } else { vec!["child".to_owned(), area.to_owned()] };
        let options = [
            ("contender", contender.id.to_owned()),
            ("endpoint", self.endpoint.clone()),
            ("prefix", prefix.to_owned()),
            ("shape", scenario.shape.to_owned()),
            ("tasks", scenario.tasks.to_string()),
            ("seconds", self.seconds.to_string()),
        ];
        words
            .into_iter()
            .chain(options.into_iter().flat_map(|(name, value)| [format!("--{name}"), value]))
            .collect()
    }

    async fn wait_for_keys(&self, prefix: &str, keys: i64) -> Result<()> {
        let mut client = etcd_client::Client::connect([&self.endpoint], None).await?;
        let counting = async {
            loop {
                let options = GetOptions::new().with_prefix().with_count_only();
                if client.get(prefix, Some(options)).await?.count() >= keys {
                    return anyhow::Ok(());
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), counting).await.context("the keys do not come")?
    }
}
