//! Workloads on three nodes that a nemesis disturbs, with checkers that look for broken promises.

mod footprint;
mod nemesis;
mod schedule;
mod user;

use std::{sync::Arc, time::Duration};

use anyhow::Result;
use coord_api::Provider;
use coord_etcd::{Client, EtcdConfig};
use coord_torture::{Observed, Outcome, Plan, Promise, Violation};

use crate::{Certs, Cluster, NODES, Proxy};
use footprint::Footprint;
use nemesis::{Nemesis, Network, Report};
use user::{Known, USER, User};

pub use schedule::{Fault, Step};

const NAMESPACE: &str = "soak";

/// How long tokens are good, in seconds, so that clients meet their end all the time.
const TOKEN_TTL: u32 = 5;

/// How many clients work, and how many more take the place of those that are closed.
const PROCESSES: usize = 3;
const SPARE: usize = 4;

/// How long threads and tasks may take to end: tokio keeps an idle thread for blocking work for ten seconds.
const ENDING: Duration = Duration::from_secs(30);

/// What a soak came to.
#[derive(Debug)]
pub struct Soaked {
    /// What was observed, and what of it is against the contract.
    pub outcome: Outcome,
    /// How many faults there were.
    pub faults: usize,
    /// How often clients authenticated, or tried to.
    pub authentications: usize,
}

/// Disturbs a cluster of its own for `time`, and tells each fault to `print`.
///
/// Whatever of threads, tasks or memory is left once all clients are gone is a violation too, so nothing else of the
/// process may come or go meanwhile.
///
/// # Errors
/// When a fault could not be caused or ended.
pub async fn soak(seed: u64, time: Duration, print: &dyn Fn(&str)) -> Result<Soaked> {
    let before = Footprint::now()?;
    // Where memory grows can only be found afterwards if it was written down.
    let print = &|line: &str| match Footprint::now() {
        Ok(now) => print(&format!("{:>4} MiB  {line}", now.mebibytes())),
        Err(_) => print(line),
    };
    let Disturbed { observed, report, authentications } = disturbed(seed, time, print).await?;
    // Before the checkers come, whose search may take much more.
    let (after, left) = Footprint::settled(&before, observed.events.len(), ENDING).await?;
    print(&format!("before: {before}; after: {after}"));
    let mut outcome = observed.check();
    outcome.violations.retain(|violation| {
        let is_explained = violation.promise == Promise::OneHolder
            && report.freed.iter().any(|lock| violation.detail.contains(lock.as_str()));
        if is_explained {
            print(&format!("explained by a lease that was revoked though it was alive: {violation}"));
        }
        !is_explained
    });
    outcome.violations.extend(left.map(|detail| Violation { promise: Promise::Rest, detail }));
    Ok(Soaked { outcome, faults: report.faults, authentications })
}

/// What was observed while a nemesis raged, and what it did.
struct Disturbed {
    observed: Observed,
    report: Report,
    authentications: usize,
}

async fn disturbed(seed: u64, time: Duration, print: &dyn Fn(&str)) -> Result<Disturbed> {
    // As production.md advises: TLS, users, signed tokens. Passwords are checked cheaply.
    let certs = Certs::new();
    let tokens = certs.signed_tokens(TOKEN_TTL);
    let mut cluster = Cluster::start_tls(&certs, &["--auth-token", &tokens, "--bcrypt-cost", "4"]).await?;
    cluster.enable_auth().await?;
    cluster.add_user(USER, "first", &format!("/{NAMESPACE}/")).await?;
    let user = User::new("first");
    let mut networks: Vec<Network> = Vec::new();
    let mut clients: Vec<Arc<dyn Provider>> = Vec::new();
    for _ in 0..PROCESSES + SPARE {
        let mut network = Network::new();
        for n in 0..NODES {
            network.push(Proxy::start(cluster.endpoint(n)).await?);
        }
        clients.push(client(&user, &certs, network.iter().map(|way| way.address().to_owned())).await?);
        networks.push(network);
    }
    // The one that looks at the store in the end.
    clients.push(client(&user, &certs, cluster.endpoints()).await?);

    let nemesis = Nemesis::new(&cluster, (&networks[..], PROCESSES), NAMESPACE, &user, seed);
    let plan = Plan::new(seed, time).processes(PROCESSES);
    let working = tokio::spawn(coord_torture::observe(clients, plan));
    let report = nemesis.rage(time, print).await;
    let observed = working.await?;
    Ok(Disturbed { observed, report: report?, authentications: user.asked() })
}

async fn client(
    user: &Arc<User>,
    certs: &Certs,
    addresses: impl IntoIterator<Item = String>,
) -> Result<Arc<dyn Provider>> {
    let endpoints = addresses.into_iter().map(|address| format!("https://{address}"));
    let config = EtcdConfig::new(endpoints)
        .tls(certs.trusted())
        .namespace(NAMESPACE)
        .credentials(Known(user.clone()))
        .request_timeout(Duration::from_secs(2))
        .instance_id_ttl(Duration::from_secs(3));
    Ok(Arc::new(Client::connect(config).await?))
}
