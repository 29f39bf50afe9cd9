//! What goes wrong: random faults between each client and the store, and in the store.

use std::time::Duration;

use coord_api::Provider;
use coord_memory::{Client, Store};
use coord_torture::Operator;
use fastrand::Rng;
use tokio::time::{Instant, advance, sleep};

/// What the nemesis may do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// When all must be mended.
    pub(crate) time: Duration,
    /// The longest TTL: what lasts longer loses leases.
    pub(crate) ttl: Duration,
    /// How many clients may be closed.
    pub(crate) closing: usize,
    /// Whether leases are revoked and keys are deleted.
    pub(crate) operator: Operator,
}

/// Disturbs the clients and the store, and mends all in the end.
pub(crate) async fn disturb(store: Store, clients: Vec<Client>, mut faults: Faults, mut random: Rng) {
    let end = Instant::now() + faults.time;
    // One in eight runs is calm.
    while random.u64(..) > u64::MAX / 8 || Instant::now() > end {
        let pause = Duration::from_millis(random.u64(..1500));
        if Instant::now() + pause >= end {
            break;
        }
        sleep(pause).await;
        disturb_once(&store, &clients, &mut faults, &mut random, end).await;
    }
    for client in &clients {
        client.fail_next(0);
        client.lose_answers(0);
        client.reconnect();
    }
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
    let time = faults.ttl.mul_f64(random.f64() * 2.0);
    let is_operated = faults.operator == Operator::Present;
    match random.u8(..20) {
        13 | 14 | 16 if !is_operated => {}
        0..4 => client.disconnect(),
        4..8 => client.reconnect(),
        8..11 => client.stall(time),
        11 => client.fail_next(random.usize(1..5)),
        12 => client.lose_answers(random.usize(1..5)),
        13 => client.revoke_leases(),
        14 => store.revoke_leases(),
        15 => store.compact(),
        16 => delete_one(store, random),
        17 => {
            let values = ["{", "[]", r#"{"id":"no number"}"#];
            store.put_raw("config/torture/config/foreign", values[random.usize(..values.len())]);
            store.put_raw("services/torture%2Fsvc/foreign", values[random.usize(..values.len())]);
        }
        18 => {
            // The whole process is frozen, with all of its clients.
            let left = end.saturating_duration_since(Instant::now());
            advance(time.min(left)).await;
        }
        _ => {
            // Never the last one, which looks at the store in the end.
            if faults.closing > 0 {
                faults.closing -= 1;
                let closed = &clients[random.usize(..clients.len() - 1)];
                let _ = closed.close().await;
            }
        }
    }
}

/// Deletes a lock's place, an id or a registration, as an operator would.
fn delete_one(store: &Store, random: &mut Rng) {
    let keys: Vec<_> = store.keys().into_iter().filter(|key| !key.starts_with("config/")).collect();
    if !keys.is_empty() {
        store.delete_raw(&keys[random.usize(..keys.len())]);
    }
}
