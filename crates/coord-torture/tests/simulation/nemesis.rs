//! What goes wrong: random faults between each client and the store, and in the store.

use std::{sync::Arc, time::Duration};

use coord_api::Provider;
use coord_memory::{Client, NetworkFaults, Permission, Restart, Space, Store};
use coord_torture::{
    Operator,
    history::{History, What},
};
use fastrand::Rng;
use tokio::time::{Instant, advance, sleep};

use crate::restored;

/// What the nemesis may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// When all must be mended.
    pub(crate) time: Duration,
    /// The longest TTL: what lasts longer loses leases.
    pub(crate) ttl: Duration,
    /// Longest time that a client gives one request.
    pub(crate) request_timeout: Duration,
    /// Longest time after which a request may still be executed that was given up.
    pub(crate) lateness: Duration,
    /// How many clients may be closed.
    pub(crate) closing: usize,
    /// Whether leases are revoked and keys are deleted.
    pub(crate) operator: Operator,
    /// When the store comes back with less data than it had, if it does.
    pub(crate) restore: Option<(Duration, Restart)>,
}

/// Disturbs the clients and the store, and mends all in the end.
pub(crate) async fn disturb(
    store: Store,
    clients: Vec<Client>,
    history: Arc<History>,
    mut faults: Faults,
    mut random: Rng,
) {
    let begun = Instant::now();
    let end = begun + faults.time;
    // One in eight runs is calm, but for the restore that was planned.
    let is_calm = random.u8(..8) == 0;
    loop {
        let pause = Duration::from_millis(random.u64(..1500));
        if Instant::now() + pause >= end {
            break;
        }
        sleep(pause).await;
        if let Some((_, how)) = faults.restore.take_if(|(at, _)| begun.elapsed() >= *at) {
            restore(&store, &history, how, &faults);
        } else if !is_calm {
            disturb_once(&store, &clients, &mut faults, &mut random, end).await;
        }
    }
    store.space(Space::Left);
    store.permit(Permission::Everything);
    for client in &clients {
        client.network(NetworkFaults::new());
        client.fail_next(0);
        client.lose_answers(0);
        client.reconnect();
    }
}

/// Restarts the store with other data than it had, and takes note of what it has then.
fn restore(store: &Store, history: &History, how: Restart, faults: &Faults) {
    store.note(|| format!("the nemesis restores: {how:?}"));
    store.restart(how);
    let unheard = faults.ttl + faults.request_timeout * 2;
    history.add(usize::MAX, What::Restored { values: restored::values(store), unheard });
}

async fn disturb_once(
    store: &Store,
    clients: &[Client],
    faults: &mut Faults,
    random: &mut Rng,
    end: Instant,
) {
    let client = &clients[random.usize(..clients.len())];
    // Half of all times are shorter than a TTL, so that leases survive them.
    let left = end.saturating_duration_since(Instant::now());
    let time = faults.ttl.mul_f64(random.f64() * 2.0).min(left);
    let is_operated = faults.operator == Operator::Present;
    let deed = random.u8(..40);
    store.note(|| format!("the nemesis does {deed} to {client:?}, perhaps for {time:?}"));
    match deed {
        0..3 => client.disconnect(),
        3..6 => client.reconnect(),
        6..8 => client.stall(time),
        8 => client.fail_next(random.usize(1..5)),
        9 => client.lose_answers(random.usize(1..5)),
        10..20 => client.network(network(faults, random)),
        20..22 => client.network(NetworkFaults::new()),
        22 => clients.iter().for_each(|client| client.network(network(faults, random))),
        23..25 => client.break_streams(),
        25..27 => store.freeze(time),
        27 => store.restart(Restart::WithData),
        28 => store.prolong_leases(),
        29 => store.space(Space::Full),
        30 => store.permit(if random.bool() { Permission::Reading } else { Permission::Nothing }),
        31 => {
            store.space(Space::Left);
            store.permit(Permission::Everything);
        }
        32 if is_operated => client.revoke_leases(),
        33 if is_operated => store.revoke_leases(),
        34 if is_operated => delete_one(store, random),
        32..35 => {}
        35 => store.compact(),
        36 => {
            let values = ["{", "[]", r#"{"id":"no number"}"#];
            store.put_raw("config/torture/config/foreign", values[random.usize(..values.len())]);
            store.put_raw("services/torture%2Fsvc/foreign", values[random.usize(..values.len())]);
        }
        37 => {
            // The whole process is frozen, with all of its clients.
            advance(time).await;
        }
        _ => {
            // Never the last one, which looks at the store in the end.
            if faults.closing > 0 {
                faults.closing -= 1;
                let closed = clients[random.usize(..clients.len() - 1)].clone();
                // It may take longer than until all must be mended.
                tokio::spawn(async move { closed.close().await });
            }
        }
    }
}

/// A bad network, in some of the ways in which it can be.
fn network(faults: &Faults, random: &mut Rng) -> NetworkFaults {
    let mut network = NetworkFaults::new().seed(random.u64(..));
    let short = faults.request_timeout.mul_f64(random.f64());
    let late = faults.lateness.mul_f64(random.f64());
    let mut one = |random: &mut Rng| {
        let often = random.f64() * 0.4;
        let before = network;
        network = match random.u8(..8) {
            0 => before.refuse(often),
            1 => before.lose_requests(often),
            2 => before.lose_answers(often),
            3 => before.delay(short.mul_f64(0.1)),
            4 => before.delay_answers(often, short),
            5 => before.execute_late(often, if random.bool() { late } else { short }),
            6 => before.lose_renewals(random.f64()),
            _ => before.lose_renewal_answers(random.f64()),
        };
    };
    for _ in 0..random.usize(1..4) {
        one(random);
    }
    network
}

/// Deletes a lock's place, an id or a registration, as an operator would.
fn delete_one(store: &Store, random: &mut Rng) {
    let keys: Vec<_> = store.keys().into_iter().filter(|key| !key.starts_with("config/")).collect();
    if !keys.is_empty() {
        store.delete_raw(&keys[random.usize(..keys.len())]);
    }
}
