//! A run: a store, its clients, a nemesis, and a look at what is left.

use std::{
    sync::Arc,
    time::{Duration, UNIX_EPOCH},
};

use coord_api::{Provider, backend::set_time_of_day};
use coord_memory::{Client, Options, Restart, Store};
use coord_torture::{Outcome, Plan, Promise, Violation, history::History, observe_into};
use fastrand::Rng;
use tokio::runtime::{Builder, Handle, Runtime};

use crate::nemesis::{Faults, disturb};

fn runtime(seed: u64) -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().start_paused(true);
    #[cfg(tokio_unstable)]
    builder.rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    let _ = seed;
    builder.build().expect("a runtime without I/O")
}

/// Outcome of a run, and the last requests that the store had.
pub(crate) struct Simulated {
    pub(crate) outcome: Outcome,
    pub(crate) requests: Vec<String>,
}

/// All that follows from one seed. The last requests are told if so many are asked for.
pub(crate) fn simulate(seed: u64, requests: Option<usize>) -> Simulated {
    // Back-offs choose by it.
    fastrand::seed(seed);
    runtime(seed).block_on(whole(seed, requests))
}

async fn whole(seed: u64, requests: Option<usize>) -> Simulated {
    set_time_of_day(UNIX_EPOCH + START);
    let mut random = Rng::with_seed(!seed);
    let plan = plan(seed, &mut random);
    let store = Store::new();
    if let Some(most) = requests {
        store.trace_requests(most);
    }
    let spare = random.usize(..4);
    let request_timeout = Duration::from_millis(random.u64(500..5000));
    let clients: Vec<_> =
        (0..=plan.processes + spare).map(|_| client(&store, request_timeout, &mut random)).collect();
    let providers = clients.iter().map(|client| Arc::new(client.clone()) as Arc<dyn Provider>).collect();
    let faults = Faults {
        time: plan.time,
        ttl: plan.ttl,
        request_timeout,
        lateness: Duration::from_secs(if random.bool() { 10 } else { 180 }),
        closing: spare,
        operator: plan.operator,
        restore: restore(&plan, &mut random),
    };
    let lateness = faults.lateness;
    let is_restored = faults.restore.is_some();
    let history = Arc::new(History::new());
    let disturbing = tokio::spawn(disturb(store.clone(), clients, history.clone(), faults, random));
    let mut outcome = observe_into(history, providers, plan.clone()).await.check();
    let mut complain = |detail: String| {
        outcome.violations.push(Violation { promise: Promise::Rest, detail });
    };
    if let Err(failure) = disturbing.await {
        complain(format!("the nemesis failed: {failure}"));
    }
    // Ids rest, and leases of clients that could not be told are over.
    tokio::time::sleep(plan.ttl.max(LONGEST_ID_TTL) * 3).await;
    // Foreign values stay, and so does config.
    let stays = |key: &String| key.starts_with("config/") || key.ends_with("/foreign");
    let left: Vec<_> = store.keys().into_iter().filter(|key| !stays(key)).collect();
    if !left.is_empty() {
        complain(format!("keys are left: {left:?}"));
    }
    // "A lease whose grant was not answered carries nothing": one that is granted late ends by itself.
    tokio::time::sleep(lateness + LONGEST_MARKER).await;
    if is_restored {
        // A lease that was given back before is there again, and its client knows nothing of it: it ends by itself.
        tokio::time::sleep(LONGEST_LEASE).await;
    }
    let shown = format!("{store:?}");
    // The end of a note may be executed after its client has closed. Its lease carries nothing, and ends after a week.
    let is_left = |ttl: &Duration| *ttl < NOTE;
    if !shown.contains("clients: 0") || store.granted().iter().any(is_left) {
        complain(format!("something is left: {shown}"));
    }
    // Tasks that were aborted end when they are polled the next time.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let tasks = Handle::current().metrics().num_alive_tasks();
    if tasks != 0 {
        complain(format!("{tasks} tasks are left"));
    }
    Simulated { outcome, requests: store.traced() }
}

/// The time of day at which each run begins, since 1970.
const START: Duration = Duration::from_secs(1_800_000_000);

/// The longest time to live of a lease that coord grants for itself, and some more.
const LONGEST_LEASE: Duration = Duration::from_secs(8 * 24 * 3600);

/// The time to live of the lease of a note about a vanished holder is longer than this; that of no other lease is.
const NOTE: Duration = Duration::from_secs(24 * 3600);

/// The time to live of the lease that commit markers are on, and some more.
const LONGEST_MARKER: Duration = Duration::from_secs(61);

/// The longest time to live of ids.
const LONGEST_ID_TTL: Duration = Duration::from_secs(3);

fn client(store: &Store, request_timeout: Duration, random: &mut Rng) -> Client {
    let ttl = Duration::from_secs(random.u64(1..=LONGEST_ID_TTL.as_secs()));
    let options = Options::default().instance_id_ttl(ttl).request_timeout(request_timeout);
    store.client_with(options).expect("the options are good")
}

/// In one of eight runs the store comes back with older data, or without any.
fn restore(plan: &Plan, random: &mut Rng) -> Option<(Duration, Restart)> {
    let at = plan.time.mul_f64(0.1 + 0.5 * random.f64());
    let how = if random.u8(..4) == 0 { Restart::Empty } else { Restart::Older(random.u64(1..200)) };
    (random.u8(..8) == 0).then_some((at, how))
}

fn plan(seed: u64, random: &mut Rng) -> Plan {
    let plan = Plan::quick(seed);
    let plan = if random.bool() { plan.with_operator() } else { plan };
    plan.processes(random.usize(2..4))
        .pace(Duration::from_millis(random.u64(20..200)))
        .ttl(Duration::from_millis(random.u64(1000..5000)))
        .rounds(random.usize(20..120))
}
