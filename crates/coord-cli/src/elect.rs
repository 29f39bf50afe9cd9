//! `coord elect`: a command that runs only while it leads an election, and a look at who leads.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::Write,
    time::{Duration, Instant},
};

use clap::{Args, Subcommand};
use coord_api::{
    Candidate, Elections, ElectionsExt, Elector, ElectorOptions, Error, Provider, Result, Term,
    backend::waiting::FIRST_WORD,
};
use serde_json::{Value, json};
use std::sync::Arc;

use crate::{
    child::{self, Signals},
    connect::duration,
    exit::{self, Exit, Failure},
    held::{Held, Kind},
    lock::{Patience, owner_line},
    out::{Out, shown, table},
    watch,
};

const ELECTION: Kind =
    Kind { noun: "election", holding: "leading", variables: ["COORD_ELECTION_NAME", "COORD_ELECTION_TOKEN"] };

/// How long to wait before being a candidate anew.
const PAUSE: Duration = Duration::from_secs(1);

#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_long_help = exit::HELP
)]
pub(crate) struct ElectArgs {
    #[command(subcommand)]
    look: Option<Look>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand, Debug)]
enum Look {
    /// Shows who leads which election, and who waits
    List {
        /// Only this election [default: all that have a candidate]
        name: Option<String>,
    },
    /// Prints who leads an election, then every change, until a signal
    Watch {
        /// The election
        name: String,
    },
    /// Runs a command in an election of any name, also one that is called as a command here
    Run(Box<Run>),
}

#[derive(Args, Debug)]
struct Run {
    /// The election
    #[arg(required = true)]
    name: Option<String>,
    /// Value that others see of this candidate, such as its address
    #[arg(long, default_value = "", hide_default_value = true)]
    value: String,
    /// How long the place outlives a `coord` that is killed or cut off; it is renewed in the meantime
    #[arg(long, default_value = "10s", value_parser = duration)]
    ttl: Duration,
    #[command(flatten)]
    patience: Patience,
    /// How long CMD has between SIGTERM and SIGKILL when it leads no longer
    #[arg(long, default_value = "5s", value_parser = duration)]
    grace: Duration,
    /// Command to run: `COORD_ELECTION_NAME` and `COORD_ELECTION_TOKEN` are in its environment
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl ElectArgs {
    /// Returns the label that others see of the candidate.
    pub(crate) fn label(&self) -> Option<String> {
        match &self.look {
            Some(Look::Run(run)) => child::name(&run.command),
            _ => child::name(&self.run.command),
        }
    }

    pub(crate) async fn call(self, provider: &dyn Provider, out: Out) -> Result<Exit, Failure> {
        let elections = provider.elections();
        match self.look {
            Some(Look::List { name }) => list(&*elections, name, out).await,
            Some(Look::Watch { name }) => {
                let line = |leader: &Option<Candidate>| told(&name, leader.as_ref());
                watch::show(elections.watch_leader(&name), line, out).await
            }
            Some(Look::Run(run)) => run.call(&elections, out).await,
            None => self.run.call(&elections, out).await,
        }
    }
}

impl Run {
    fn name(&self) -> &str {
        self.name.as_deref().expect("clap asks for it where there is no subcommand")
    }

    async fn call(self, elections: &Arc<dyn Elections>, out: Out) -> Result<Exit, Failure> {
        let options = ElectorOptions::new(self.ttl).value(self.value.clone());
        let elector = elections.elector(self.name(), options)?;
        // From here on: a signal that comes while this is a candidate must give the place in the queue back.
        let mut signals = Signals::listen()?;
        let led = tokio::select! {
            biased;
            heard = signals.next() => return Ok(Exit::of_signal(heard.signal.as_raw())),
            led = self.campaign(&elector, out) => led?,
        };
        let Some(term) = led else {
            let leader = elector.candidates().await?.into_iter().next();
            let text =
                format!("election `{}` is led by {}; CMD was not run", self.name(), who(leader.as_ref()));
            let leader = leader.as_ref().map(place);
            out.note(&json!({ "event": "not_acquired", "election": self.name(), "leader": leader }), &text);
            return Ok(Exit::NOT_ACQUIRED);
        };
        let held = Held { kind: ELECTION, name: self.name(), ttl: self.ttl, out };
        let of_term = (term.token(), term.ttl(), term.lost());
        held.run((&self.command, self.grace), of_term, &mut signals, || term.resign()).await
    }

    /// Waits until it leads; `None` if the time is over and etcd says that others are before.
    async fn campaign(&self, elector: &Elector, out: Out) -> Result<Option<Term>, Failure> {
        let wait = if self.patience.is_over_at_once() { Some(Duration::ZERO) } else { self.patience.wait };
        if wait != Some(Duration::ZERO) {
            out.progress(&format!("waiting for election `{}`", self.name()));
        }
        let begun = Instant::now();
        loop {
            let left = wait.map(|wait| wait.saturating_sub(begun.elapsed()));
            let campaigned = match left {
                Some(left) => tokio::time::timeout(left.max(FIRST_WORD), elector.campaign()).await,
                None => Ok(elector.campaign().await),
            };
            match campaigned {
                Err(_elapsed) if elector.candidates().await?.is_empty() => {
                    return Err(Error::Timeout { operation: "campaign", after: begun.elapsed() }.into());
                }
                Err(_elapsed) => return Ok(None),
                // An outage has taken a place in the queue, and the next one is as good.
                Ok(Err(error)) if error.is_retryable() => {
                    out.progress(&format!("waiting on: {error}"));
                    if wait.is_some_and(|wait| begun.elapsed() >= wait) {
                        return Err(error.into());
                    }
                    tokio::time::sleep(left.unwrap_or(PAUSE).min(PAUSE)).await;
                }
                Ok(answer) => return Ok(Some(answer?)),
            }
        }
    }
}

async fn list(elections: &dyn Elections, name: Option<String>, out: Out) -> Result<Exit, Failure> {
    let elections = match name {
        Some(name) => {
            let candidates = elections.candidates(&name).await?;
            BTreeMap::from([(name, candidates)])
        }
        None => elections.elections().await?,
    };
    let json: Vec<Value> = elections.iter().map(|(name, all)| election_json(name, all)).collect();
    out.result(&json, |to| write_elections(to, &elections))?;
    Ok(Exit::OK)
}

fn write_elections(to: &mut dyn Write, elections: &BTreeMap<String, Vec<Candidate>>) -> std::io::Result<()> {
    let rows: Vec<[String; 5]> = elections
        .iter()
        .flat_map(|(name, candidates)| {
            candidates.iter().enumerate().map(move |(at, candidate)| {
                let state = if at == 0 { "leads".into() } else { format!("waits {at}") };
                let token = candidate.token.to_string();
                [shown(name), state, token, value(candidate), who(Some(candidate))]
            })
        })
        .collect();
    if rows.is_empty() {
        return writeln!(to, "nobody leads");
    }
    table(to, ["ELECTION", "STATE", "TOKEN", "VALUE", "BY"], &rows)
}

/// Returns the leader as JSON and as text.
fn told(name: &str, leader: Option<&Candidate>) -> (Value, String) {
    match leader {
        Some(leader) => (
            json!({ "event": "leads", "election": name, "leader": place(leader) }),
            format!("{} leads with token {}: {}", who(Some(leader)), leader.token, value(leader)),
        ),
        None => (json!({ "event": "nobody_leads", "election": name }), "nobody leads".into()),
    }
}

/// An election as it is documented.
pub(crate) fn election_json(name: &str, candidates: &[Candidate]) -> Value {
    let waiting: Vec<Value> = candidates.iter().skip(1).map(place).collect();
    json!({ "election": name, "leader": candidates.first().map(place), "waiting": waiting })
}

fn place(candidate: &Candidate) -> Value {
    let Candidate { token, key, owner, .. } = candidate;
    json!({ "token": token.get(), "key": key, "owner": owner, "value": candidate.text() })
}

/// The value of a candidate in one line.
pub(crate) fn value(candidate: &Candidate) -> String {
    match candidate.text() {
        Some(text) => shown(text),
        None => format!("({} bytes)", candidate.value.len()),
    }
}

/// Returns the owner of a candidate, in one line.
pub(crate) fn who(candidate: Option<&Candidate>) -> String {
    match candidate {
        Some(Candidate { owner: Some(owner), .. }) => owner_line(owner),
        Some(Candidate { key, .. }) => format!("another program ({})", shown(key)),
        None => "nobody any more".into(),
    }
}
