//! One run: workers, then the end, then the checkers.

use std::{collections::VecDeque, fmt::Write as _, sync::Arc, time::Duration};

use coord_api::{ConfigExt, DistributedLockExt, ElectionsExt, ElectorOptions, Error, Provider, Registration};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    Area, Operator, Plan, Promise, Violation,
    check::check,
    config, election, follow,
    history::{Answer, Event, Name, Op, Value, What, fingerprint},
    ids::{self, Clock},
    lock, registry,
    worker::{Process, Worker, World},
};

/// How often something is looked at that has to come true.
const LOOK: Duration = Duration::from_millis(100);

/// What was observed in a run, and not checked yet.
#[derive(Clone, Debug)]
pub struct Observed {
    /// The seed of the run.
    pub seed: u64,
    /// What was observed.
    pub events: Vec<Event>,
    operator: Operator,
    left: Option<String>,
}

impl Observed {
    /// Looks for what is against the contract. How long that takes, and how much memory, depends on the history.
    pub fn check(self) -> Outcome {
        let Self { seed, events, operator, left } = self;
        let mut violations = check(&events, operator);
        violations.extend(left.map(|detail| Violation { promise: Promise::Rest, detail }));
        Outcome { seed, events, violations }
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed of the run.
    pub seed: u64,
    /// What was observed.
    pub events: Vec<Event>,
    /// What of it is against the contract.
    pub violations: Vec<Violation>,
}

impl Outcome {
    /// One number for all that was observed, and when: equal for runs that were the same.
    pub fn fingerprint(&self) -> u64 {
        fingerprint(&self.events)
    }

    /// How many of the events are such.
    pub fn count(&self, is_such: impl Fn(&What) -> bool) -> usize {
        self.events.iter().filter(|event| is_such(&event.what)).count()
    }

    /// How much was done, in one line.
    pub fn summary(&self) -> String {
        let count = |is_such: fn(&What) -> bool| self.count(is_such);
        format!(
            "seed {}: {} events, {} holds, {} config calls ({} unknown), {} watch items, {} numbers",
            self.seed,
            self.events.len(),
            count(|what| matches!(what, What::Acquires { .. })),
            count(|what| matches!(what, What::Answers { .. })),
            count(|what| matches!(what, What::Answers { answer: Answer::Unknown(_), .. })),
            count(|what| matches!(what, What::Told { .. } | What::Sees { .. })),
            count(|what| matches!(what, What::Number { .. })),
        )
    }

    /// Panics if there are violations, with the seed, `again`, which tells how to run it once more, and the last events.
    ///
    /// # Panics
    /// If there are violations.
    pub fn assert_good(&self, again: &str) {
        assert!(self.violations.is_empty(), "{}", self.report(again));
    }

    /// The violations in lines, with the seed and how to run it again.
    pub fn report(&self, again: &str) -> String {
        let mut text = format!("{}\n", self.summary());
        for violation in &self.violations {
            let _ = writeln!(text, "  {violation}");
        }
        let _ = write!(text, "  once more: {again}");
        text
    }
}

/// Lets `clients` work as `plan` says, and [checks](Observed::check) what they [observed](observe).
///
/// # Panics
/// If there are fewer clients than the plan needs.
pub async fn run(clients: Vec<Arc<dyn Provider>>, plan: Plan) -> Outcome {
    observe(clients, plan).await.check()
}

/// Lets `clients` work as `plan` says, and says what they observed.
///
/// The first of them work, the last one looks at the store in the end, those between stand by for what is closed.
/// Whoever disturbs the store has to be done when the plan's time is over. All clients are closed then; what the
/// store still has afterwards is for the caller to look at.
///
/// # Panics
/// If there are fewer clients than the plan needs.
pub async fn observe(clients: Vec<Arc<dyn Provider>>, plan: Plan) -> Observed {
    let mut spare: VecDeque<_> = clients.into();
    assert!(
        spare.len() > plan.processes && plan.processes > 0,
        "a plan needs one client more than processes"
    );
    let observer = spare.pop_back().expect("was just counted");
    let working: Vec<_> = spare.drain(..plan.processes).collect();
    let (seed, operator) = (plan.seed, plan.operator);
    let world = Arc::new(World::new(plan, spare));
    let processes: Vec<_> =
        working.into_iter().enumerate().map(|(n, one)| Arc::new(Process::new(n, one))).collect();

    let mut tasks = Tasks::start(&world, &processes);
    let staying = tasks.join(&world).await;
    let mut last =
        Worker::new(world.clone(), Arc::new(Process::new(world.plan.processes, observer.clone())), 0);
    let stored = end(&world, &*observer).await;
    world.history.add(world.plan.processes, stored);
    tasks.stop().await;
    for registration in staying {
        registry::leave(&mut last, registration).await;
    }
    close(&world, &processes).await;
    let left = rest(&world, &*observer).await;
    let _ = observer.close().await;

    Observed { seed, events: world.history.events(), operator, left }
}

/// All tasks of a run.
struct Tasks {
    working: Vec<JoinHandle<Option<Registration>>>,
    following: Vec<JoinHandle<()>>,
}

impl Tasks {
    fn start(world: &Arc<World>, processes: &[Arc<Process>]) -> Self {
        let (mut working, mut following) = (Vec::new(), Vec::new());
        let (clock, areas) = (Clock::new(), world.plan.areas);
        let (mut number, mut electing) = (0, 1 << 32);
        for _ in 0..world.plan.tasks {
            for process in processes {
                let mut worker = || {
                    number += 1;
                    Worker::new(world.clone(), process.clone(), number)
                };
                // Each gets its number whether it works or not, so that its choices are the same on its own.
                let [locking, writing, publishing, numbering, following_config, following_registry] =
                    std::array::from_fn(|_| worker());
                if areas.contain(Area::Lock) {
                    working.push(tokio::spawn(nothing(lock::work(locking))));
                }
                if areas.contain(Area::Elections) {
                    // Of other numbers, so that the choices of the others stay as they were.
                    electing += 1;
                    let worker = Worker::new(world.clone(), process.clone(), electing);
                    working.push(tokio::spawn(nothing(election::work(worker))));
                }
                if areas.contain(Area::Config) {
                    working.push(tokio::spawn(nothing(config::work(writing))));
                    following.push(tokio::spawn(follow::config(following_config)));
                }
                if areas.contain(Area::Registry) {
                    working.push(tokio::spawn(registry::work(publishing)));
                    following.push(tokio::spawn(follow::registry(following_registry)));
                }
                if areas.contain(Area::Ids) {
                    working.push(tokio::spawn(nothing(ids::work(numbering, clock))));
                }
            }
        }
        Self { working, following }
    }

    /// Waits for all that end by themselves; the registrations that stay.
    async fn join(&mut self, world: &World) -> Vec<Registration> {
        // One call that does not end is told by itself; there are several in a round.
        let limit = world.begun + world.plan.time + world.plan.patience * 4;
        let mut staying = Vec::new();
        for task in &mut self.working {
            match timeout_at(limit, &mut *task).await {
                Ok(Ok(registration)) => staying.extend(registration),
                Ok(Err(failure)) => {
                    let what = format!("a task ended by itself: {failure}");
                    world.history.add(world.plan.processes, What::Unexpected(what));
                }
                Err(_elapsed) => {
                    let what = "a task does not end, though each of its calls should";
                    world.history.add(world.plan.processes, What::Unexpected(what.into()));
                    task.abort();
                }
            }
        }
        for registration in &staying {
            let instance = registration.service().id.as_str().into();
            world.history.add(world.plan.processes, What::Stays { instance });
        }
        staying
    }

    /// Stops those who follow.
    async fn stop(self) {
        for task in self.following {
            task.abort();
            let _ = task.await;
        }
    }
}

async fn nothing(work: impl Future<Output = ()>) -> Option<Registration> {
    work.await;
    None
}

/// What the store has once everything is quiet and all who follow know it, or patience is over.
async fn end(world: &World, observer: &dyn Provider) -> What {
    let limit = Instant::now() + world.plan.patience;
    let keys = follow::keys();
    loop {
        let calls: Vec<_> = keys.iter().map(|_| world.history.fresh()).collect();
        for (call, key) in calls.iter().zip(&keys) {
            let (call, key) = (*call, key.as_str().into());
            world.history.add(world.plan.processes, What::Calls { call, key, op: Op::Get });
        }
        let values = stored_values(observer, &keys).await;
        for (call, key) in calls.iter().zip(&keys) {
            let found = values.as_ref().map(|values| values.iter().find(|(other, ..)| **other == **key));
            let answer = match found {
                Err(_) => Answer::Refused,
                Ok(found) => Answer::Found(found.map(|(_, value, version)| (*value, *version))),
            };
            world.history.add(world.plan.processes, What::Answers { call: *call, answer });
        }
        let instances = observer.registry().discover(registry::SERVICE).await;
        let is_over = Instant::now() >= limit;
        match (values, instances) {
            (Ok(values), Ok(instances)) => {
                let instances: Vec<_> = instances.iter().map(registry::counted).collect();
                if is_over || world.followers.agree(&values, &instances) {
                    return What::End { values, instances };
                }
            }
            (Err(error), _) | (_, Err(error)) if is_over => {
                return What::Unexpected(format!("the store can not be read in the end: {error}"));
            }
            _ => {}
        }
        sleep(LOOK).await;
    }
}

async fn stored_values(observer: &dyn Provider, keys: &[String]) -> Result<Vec<(Name, Value, u64)>, Error> {
    let entries = observer.config().list("torture").await?;
    // Others may have written other keys, and what they like.
    let ours = entries.iter().filter(|entry| keys.iter().any(|key| key == entry.key()));
    ours.map(|entry| Ok((entry.key().into(), entry.decode()?, entry.version().get()))).collect()
}

async fn close(world: &World, processes: &[Arc<Process>]) {
    let mut clients: Vec<_> = processes.iter().filter_map(|process| process.stop()).collect();
    clients.extend(std::iter::from_fn(|| world.spare()));
    for client in clients {
        let patience = world.plan.patience;
        if timeout(patience, client.close()).await.is_err() {
            let what = format!("close has not ended within {patience:?}");
            world.history.add(world.plan.processes, What::Unexpected(what));
        }
    }
}

/// What is left behind once all but the observer are closed.
async fn rest(world: &World, observer: &dyn Provider) -> Option<String> {
    let limit = Instant::now() + world.plan.patience;
    loop {
        match look(observer).await {
            None => break,
            Some(left) if Instant::now() >= limit => return Some(left),
            Some(_) => sleep(LOOK).await,
        }
    }
    for name in election::names() {
        let options = ElectorOptions::new(Duration::from_secs(2));
        let elector = observer.elections().elector(name, options).expect("is a name");
        match timeout(world.plan.patience, elector.campaign()).await {
            Ok(Ok(term)) => drop(term.resign().await),
            Ok(Err(error)) => return Some(format!("nobody can lead {name}: {error}")),
            Err(_elapsed) => return Some(format!("nobody can lead {name}, though nobody leads")),
        }
    }
    for name in lock::names() {
        match observer.lock().acquire_within(name, Duration::from_secs(2), world.plan.patience).await {
            Ok(Some(guard)) => drop(guard.unlock().await),
            Ok(None) => return Some(format!("{name} can not be acquired, though nobody holds it")),
            Err(error) => return Some(format!("{name} can not be acquired: {error}")),
        }
    }
    None
}

async fn look(observer: &dyn Provider) -> Option<String> {
    for name in lock::names() {
        match observer.lock().holders(name).await {
            Ok(queue) if queue.is_empty() => {}
            Ok(queue) => return Some(format!("the queue of {name} has {queue:?}")),
            Err(error) => return Some(format!("the queue of {name} can not be read: {error}")),
        }
    }
    for name in election::names() {
        match observer.elections().candidates(name).await {
            Ok(candidates) if candidates.is_empty() => {}
            Ok(candidates) => return Some(format!("{name} has the candidates {candidates:?}")),
            Err(error) => return Some(format!("the candidates of {name} can not be read: {error}")),
        }
    }
    match observer.instance_ids().holders(ids::SERVICE).await {
        Ok(holders) if holders.is_empty() => {}
        Ok(holders) => return Some(format!("ids are held by {holders:?}")),
        Err(error) => return Some(format!("who holds ids can not be read: {error}")),
    }
    match observer.registry().discover(registry::SERVICE).await {
        Ok(instances) if instances.is_empty() => None,
        Ok(instances) => {
            Some(format!("{} instances are registered, such as {}", instances.len(), instances[0].id))
        }
        Err(error) => Some(format!("instances can not be read: {error}")),
    }
}
