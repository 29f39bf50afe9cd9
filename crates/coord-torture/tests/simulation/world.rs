//! One run: a store, its clients, a nemesis, and a look at what is left.

use std::{sync::Arc, time::Duration};

use coord_api::Provider;
use coord_memory::{Client, Options, Store};
use coord_torture::{Outcome, Plan, Promise, Violation, run};
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

/// All that follows from one seed.
pub(crate) fn simulate(seed: u64) -> Outcome {
    // What back-offs choose.
    fastrand::seed(seed);
    runtime(seed).block_on(whole(seed))
}

async fn whole(seed: u64) -> Outcome {
    let mut random = Rng::with_seed(!seed);
    let plan = plan(seed, &mut random);
    let store = Store::new();
    let spare = random.usize(..4);
    let clients: Vec<_> = (0..=plan.processes + spare).map(|_| client(&store, &mut random)).collect();
    let providers = clients.iter().map(|client| Arc::new(client.clone()) as Arc<dyn Provider>).collect();
    let faults = Faults { time: plan.time, ttl: plan.ttl, closing: spare, operator: plan.operator };
    let disturbing = tokio::spawn(disturb(store.clone(), clients, faults, random));
    let mut outcome = run(providers, plan.clone()).await;
    let mut complain = |detail: String| {
        outcome.violations.push(Violation { promise: Promise::Rest, detail });
    };
    if let Err(failure) = disturbing.await {
        complain(format!("the nemesis failed: {failure}"));
    }
    // Ids rest, for whole seconds, and leases of clients that could not be told are over.
    tokio::time::sleep(plan.ttl * 3 + Duration::from_secs(5)).await;
    // What another program wrote stays, and so do values.
    let stays = |key: &String| key.starts_with("config/") || key.ends_with("/foreign");
    let left: Vec<_> = store.keys().into_iter().filter(|key| !stays(key)).collect();
    if !left.is_empty() {
        complain(format!("keys are left: {left:?}"));
    }
    let shown = format!("{store:?}");
    if !shown.contains("clients: 0") || !shown.contains("leases: 0") {
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
    outcome
}

fn client(store: &Store, random: &mut Rng) -> Client {
    let ttl = Duration::from_secs(random.u64(1..4));
    store.client_with(Options::default().instance_id_ttl(ttl)).expect("the options are good")
}

fn plan(seed: u64, random: &mut Rng) -> Plan {
    let plan = Plan::quick(seed);
    let plan = if random.bool() { plan.with_operator() } else { plan };
    plan.processes(random.usize(2..4))
        .pace(Duration::from_millis(random.u64(20..200)))
        .ttl(Duration::from_millis(random.u64(1000..5000)))
        .rounds(random.usize(20..120))
}
