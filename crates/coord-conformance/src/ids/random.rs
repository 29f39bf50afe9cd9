//! Holders that crash, freeze, are cut off or revoked at random, while others want their ids.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use coord_api::{Error, HeldId, Snowflake};
use futures::future::join_all;
use tokio::time::Instant;

use super::snowflake::options;
use crate::{
    World,
    suite::tests,
    tools::{LIMIT, spawn},
};

/// Ids of the range, fewer than there are parties.
const IDS: u32 = 12;
const PARTIES: usize = 16;
const FAULTS: usize = 100;

/// What every party has said.
#[derive(Clone, Default)]
struct Claims(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    holds: HashMap<u32, Vec<HeldId>>,
    last: HashMap<u32, u64>,
    numbers: usize,
}

impl Claims {
    /// Nobody else believes in the id that someone just got.
    fn held(&self, held: &HeldId) {
        let mut state = self.0.lock().expect("nothing panics while this is locked");
        let holds = state.holds.entry(held.id().get()).or_default();
        holds.retain(|other| !other.is_lost());
        holds.push(held.clone());
        // The new one counts only if it was still held when the others were looked at.
        let believers = holds.iter().filter(|other| !other.is_lost()).count();
        assert!(
            believers <= 1 || held.is_lost(),
            "{believers} parties hold {} by their own belief",
            held.id()
        );
    }

    /// A number is larger than every one before that was made with the same id.
    fn made(&self, id: u32, number: u64) {
        let mut state = self.0.lock().expect("nothing panics while this is locked");
        let last = state.last.entry(id).or_default();
        assert!(number > *last, "worker {id} made {number} after {last}");
        *last = number;
        state.numbers += 1;
    }

    fn numbers(&self) -> usize {
        self.0.lock().expect("nothing panics while this is locked").numbers
    }
}

/// One client for one life: it takes an id and makes numbers until it is lost.
async fn live(client: crate::TestClient, claims: Claims) {
    let allocator = client.ids("svc", IDS + 1);
    let mut last: Option<HeldId> = None;
    loop {
        match allocator.acquire_id().await {
            Ok(_) => {}
            Err(Error::Closed) => return,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        }
        let Some(held) = allocator.held() else { continue };
        // While the store is away an id can be held by which no numbers can be made. It is no other one then.
        if last.is_none_or(|last| last.is_lost()) {
            claims.held(&held);
        }
        last = Some(held.clone());
        let Ok(snowflake) = Snowflake::start_with(&*allocator, options()).await else { continue };
        while let Ok(number) = snowflake.next_id().await {
            // Numbers that were made before the loss, but are looked at late, are in order as well.
            claims.made(held.id().get(), number);
            tokio::time::sleep(Duration::from_millis(fastrand::u64(5..30))).await;
        }
        tokio::task::yield_now().await;
    }
}

/// Lets parties live, and does something to one of them again and again.
async fn with_faults(world: &dyn World, fault: &str) {
    let claims = Claims::default();
    let mut parties = Vec::new();
    for client in join_all((0..PARTIES).map(|_| world.client())).await {
        parties.push((client.clone(), Some(spawn(live(client, claims.clone())))));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..FAULTS {
        let at = fastrand::usize(0..PARTIES);
        match fault {
            "cut" => {
                // Some of the cuts are shorter than a TTL, others longer.
                let client = parties[at].0.clone();
                client.link.cut();
                let away = Duration::from_millis(fastrand::u64(100..4000));
                drop(tokio::spawn(async move {
                    tokio::time::sleep(away).await;
                    client.link.restore();
                }));
            }
            "crash" => {
                // As kill -9: nothing of it is given back, since nothing that it sends arrives.
                let (client, party) = &mut parties[at];
                client.link.cut();
                party.take().expect("lives").cancel().await;
                let client = world.client().await;
                parties[at] = (client.clone(), Some(spawn(live(client, claims.clone()))));
            }
            _ => world.revoke_leases().await,
        }
        tokio::time::sleep(Duration::from_millis(fastrand::u64(20..250))).await;
    }
    let before = claims.numbers();
    let start = Instant::now();
    for (client, _) in &parties {
        client.link.restore();
    }
    while claims.numbers() == before {
        assert!(start.elapsed() < LIMIT * 2, "nobody holds an id any more");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for (_, party) in &mut parties {
        assert!(!party.as_ref().expect("lives").is_finished(), "a party failed");
    }
    assert!(before > FAULTS, "only {before} numbers were made");
}

tests! { "ids";
    /// Contract 2: a hundred cuts at random make no two holders of one id, and no number twice.
    async fn a_hundred_cuts(world: &dyn World) {
        with_faults(world, "cut").await;
    }

    /// Contract 2: a hundred crashes at random make no two holders of one id, and no number twice.
    async fn a_hundred_crashes(world: &dyn World) {
        with_faults(world, "crash").await;
    }

    /// Contract 2: an operator who revokes all leases a hundred times makes no two holders of one id, and no number
    /// twice.
    async fn a_hundred_revocations(world: &dyn World) {
        with_faults(world, "revoke").await;
    }
}
