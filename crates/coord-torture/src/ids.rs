//! Workload: ids that are fewer than those who want one, and numbers made with them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coord_api::{
    IdOptions, InstanceIdAllocator, Provider, Snowflake, SnowflakeOptions, backend::time_of_day,
};
use futures::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    Plan,
    history::{Name, What},
    worker::{Outcome, Worker},
};

pub(crate) const SERVICE: &str = "torture/ids";

/// The exclusive upper bound of ids: there is one id fewer than there are tasks.
fn bound(plan: &Plan) -> u32 {
    (plan.processes * plan.tasks).max(2) as u32
}

/// Acquires all ids at the same time, and gives them back: also those whose holders are gone can be had again.
pub(crate) async fn all_can_be_had(plan: &Plan, client: &dyn Provider) -> Result<(), String> {
    let allocators = (1..bound(plan)).map(|_| client.instance_id_allocator(SERVICE, bound(plan)));
    let allocators: Vec<_> =
        allocators.collect::<Result<_, _>>().map_err(|error| format!("there is no allocator: {error}"))?;
    let acquired =
        join_all(allocators.iter().map(|allocator| timeout(plan.patience, allocator.acquire_id())));
    let outcomes = acquired.await;
    for outcome in outcomes {
        match outcome {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Err(format!("an id can not be acquired: {error}")),
            Err(_elapsed) => return Err("an id can not be acquired, though nobody holds it".into()),
        }
    }
    for allocator in allocators {
        allocator.release_id().await.map_err(|error| format!("an id can not be released: {error}"))?;
    }
    Ok(())
}

/// Takes ids and makes numbers with them, until the run is over.
pub(crate) async fn work(mut worker: Worker, clock: Clock) {
    let bound = bound(&worker.world.plan);
    while let Some(client) = worker.next_round().await {
        let mut options = IdOptions::new(SERVICE, bound);
        if worker.random.bool() {
            options = options.quarantine(worker.some_time());
        }
        let Ok(allocator) = client.instance_ids().allocator(options) else { continue };
        for _ in 0..worker.random.usize(1..3) {
            hold_one(&mut worker, &allocator, &clock).await;
        }
    }
}

async fn hold_one(worker: &mut Worker, allocator: &Arc<dyn InstanceIdAllocator>, clock: &Clock) {
    let acquired = if worker.random.bool() {
        worker.call("try_acquire_id", allocator.try_acquire_id()).await
    } else {
        let time = worker.some_time() * 8;
        let waiting = async { timeout(time, allocator.acquire_id()).await.ok().transpose() };
        match worker.call("acquire_id", waiting).await {
            Outcome::Answer(Some(id)) => Outcome::Answer(id),
            _ => Outcome::Dropped,
        }
    };
    let Outcome::Answer(id) = acquired else { return };
    // It may be lost already: then there is nothing to look at.
    let Some(held) = allocator.held() else { return };
    if held.id() != id {
        worker.add(What::Unexpected(format!("{id} was acquired, but {} is held", held.id())));
    }
    let (number, place): (u64, Name) = (worker.fresh(), format!("id {id}").into());
    worker.world.history.acquires(worker.process.number, &place, number, None, held.lost());
    if worker.random.bool() {
        make_numbers(worker, &**allocator, number, clock).await;
    } else {
        worker.pause().await;
    }
    worker.world.history.believes(&place, number);
    if worker.one_in(4) {
        let time = worker.ttl();
        let _ = timeout(time, held.lost()).await;
    }
    worker.world.history.ends(&place, number);
    // Released here, so that no other round of this allocator finds the id held.
    let _ = worker.call("release_id", allocator.release_id()).await;
}

async fn make_numbers(worker: &mut Worker, allocator: &dyn InstanceIdAllocator, hold: u64, clock: &Clock) {
    let Outcome::Answer(snowflake) =
        worker.call("start", Snowflake::start_with(allocator, clock.options(worker.process.number))).await
    else {
        return;
    };
    for _ in 0..worker.random.usize(1..6) {
        if let Outcome::Answer(number) = worker.call("next_id", snowflake.next_id()).await {
            worker.add(What::Number { hold, number });
        }
        if worker.one_in(3) {
            let time = worker.some_time();
            sleep(time).await;
        }
    }
    if worker.random.bool() {
        let _ = worker.call("finish", snowflake.finish()).await;
    }
}

/// The clock of numbers: that of the run, so that it is virtual where the run is, and ahead by another time in each
/// process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    base: SystemTime,
    begun: Instant,
}

/// How far each process is ahead of the one before.
const AHEAD: Duration = Duration::from_millis(700);

impl Clock {
    pub(crate) fn new() -> Self {
        let now = time_of_day().duration_since(UNIX_EPOCH).unwrap_or_default();
        // Numbers count from the base, so that they do not depend on when the run was. Whole seconds: nor do those of
        // its milliseconds.
        Self { base: UNIX_EPOCH + Duration::from_secs(now.as_secs()), begun: Instant::now() }
    }

    fn options(self, process: usize) -> SnowflakeOptions {
        let ahead = AHEAD * process as u32;
        SnowflakeOptions::default().epoch(self.base).clock(move || self.base + ahead + self.begun.elapsed())
    }
}
