//! Steps, and what comes of them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use coord_api::{
    Batch, ConfigEvent, ConfigExt, IdOptions, InstanceIdAllocator, LockGuard, Provider, Registration, Result,
    ServiceEvent, ServiceInfo, Version, Watch,
};
use proptest::{collection::vec, prelude::*, sample::select};
use tokio::time::{sleep, timeout};

use crate::{
    locks::{LockCall, Stage, lock_calls},
    outcome::{Lines, Log},
};

pub(crate) const TTL: Duration = Duration::from_secs(60);
/// How long something may take on a busy machine that is on its way.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);
const KEYS: [&str; 4] = ["a", "a/b", "c", "bad//key"];
pub(crate) const LOCKS: [&str; 3] = ["l", "l/m", "../l"];
const INSTANCES: [&str; 3] = ["1", "x/y", " bad"];
/// Ids are 1 and 2.
const MAX_ID: u32 = 3;
pub(crate) const SLOTS: usize = 3;

/// One call of one client, which ends before the next one begins. `slot` names what a client holds.
#[derive(Clone, Debug)]
pub(crate) enum Call {
    Get(&'static str),
    Set(&'static str, u8),
    /// To the version that was seen first of all, or last of all, or to none.
    Cas(&'static str, Expected, u8),
    Delete(&'static str),
    List(&'static str),
    /// Two writes, the second of which may be a deletion.
    Both(&'static str, &'static str, Option<u8>),
    Increment(&'static str),
    TryAcquire(&'static str, usize),
    Unlock(usize),
    Drop(usize),
    SetIfHeld(usize, &'static str, u8),
    Holders(&'static str),
    Lock(LockCall),
    Register(&'static str, u8),
    Update(&'static str, u8),
    Deregister(&'static str),
    Discover,
    AcquireId(usize),
    ReleaseId(usize),
    HeldIds,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Expected {
    Absent,
    First,
    Last,
}

/// A call by the first or the second client.
#[derive(Clone, Debug)]
pub(crate) struct Step {
    client: usize,
    call: Call,
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (key, lock, instance) = (|| select(&KEYS[..]), || select(&LOCKS[..]), || select(&INSTANCES[..]));
    let (slot, value) = (|| 0..SLOTS, || 0..10_u8);
    let expected = select(vec![Expected::Absent, Expected::First, Expected::Last]);
    let config = prop_oneof![
        key().prop_map(Call::Get),
        (key(), value()).prop_map(|(key, value)| Call::Set(key, value)),
        (key(), expected, value()).prop_map(|(key, expected, value)| Call::Cas(key, expected, value)),
        key().prop_map(Call::Delete),
        select(vec!["", "a", "a/b", "no/"]).prop_map(Call::List),
        (key(), key(), proptest::option::of(value()))
            .prop_map(|(one, other, value)| Call::Both(one, other, value)),
        key().prop_map(Call::Increment),
    ];
    let locks = prop_oneof![
        3 => (lock(), slot()).prop_map(|(name, slot)| Call::TryAcquire(name, slot)),
        2 => slot().prop_map(Call::Unlock),
        1 => slot().prop_map(Call::Drop),
        2 => (slot(), key(), value()).prop_map(|(slot, key, value)| Call::SetIfHeld(slot, key, value)),
        1 => lock().prop_map(Call::Holders),
        4 => lock_calls().prop_map(Call::Lock),
    ];
    let registry = prop_oneof![
        2 => (instance(), value()).prop_map(|(id, value)| Call::Register(id, value)),
        1 => (instance(), value()).prop_map(|(id, value)| Call::Update(id, value)),
        1 => instance().prop_map(Call::Deregister),
        1 => Just(Call::Discover),
    ];
    let ids = prop_oneof![
        2 => slot().prop_map(Call::AcquireId),
        1 => slot().prop_map(Call::ReleaseId),
        1 => Just(Call::HeldIds),
    ];
    let call = prop_oneof![4 => config, 3 => locks, 2 => registry, 2 => ids];
    let step = (0..2_usize, call).prop_map(|(client, call)| Step { client, call });
    vec(step, 1..40)
}

/// What one client holds.
#[derive(Default)]
struct Held {
    guards: [Option<LockGuard>; SLOTS],
    registrations: BTreeMap<&'static str, Registration>,
    allocators: Vec<Arc<dyn InstanceIdAllocator>>,
}

struct Run<'a> {
    stage: &'a dyn Stage,
    held: [Held; 2],
    seen: Vec<Version>,
    log: Log,
}

/// Runs the steps on a store that nobody else uses, and closes the clients.
pub(crate) async fn run(stage: &dyn Stage, steps: &[Step]) -> Lines {
    let clients = [stage.client(0), stage.client(1)];
    let mut run = Run { stage, held: Default::default(), seen: Vec::new(), log: Log::default() };
    for (client, held) in clients.iter().zip(&mut run.held) {
        for _ in 0..SLOTS {
            let options = IdOptions::new("svc", MAX_ID).quarantine(Duration::ZERO);
            held.allocators.push(client.instance_ids().allocator(options).expect("the options are good"));
        }
    }
    let values = clients[0].config().watch_prefix::<u64>("").await.expect("can be watched");
    let instances = clients[1].registry().watch("svc").await.expect("can be watched");
    for step in steps {
        run.log.step(format!("client {}: {:?}", step.client, step.call));
        if let Err(error) = run.take(step).await {
            run.log.error(&error);
        }
    }
    run.end(values, instances).await;
    for client in clients.into_iter().chain([stage.stranger()]) {
        client.close().await.expect("the store is there");
    }
    run.log.lines()
}

impl Run<'_> {
    fn saw(&mut self, version: Version) {
        self.log.version(version.get());
        self.seen.push(version);
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each call, and nothing else")]
    async fn take(&mut self, step: &Step) -> Result<()> {
        let Step { client: number, call } = step;
        let client = self.stage.client(*number);
        let config = client.config();
        match call {
            Call::Get(key) => match config.get::<u64>(key).await? {
                None => self.log.text("nothing"),
                Some(found) => {
                    self.log.text(format!("{}", found.value));
                    self.saw(found.version);
                }
            },
            Call::Set(key, value) => {
                let version = config.set(key, &u64::from(*value)).await?;
                self.saw(version);
            }
            Call::Cas(key, expected, value) => {
                let expected = match expected {
                    Expected::Absent => None,
                    Expected::First => self.seen.first(),
                    Expected::Last => self.seen.last(),
                };
                let expected = expected.copied().unwrap_or(Version::ABSENT);
                let version = config.compare_and_set(key, expected, &u64::from(*value)).await?;
                self.saw(version);
            }
            Call::Delete(key) => {
                let existed = config.delete(key).await?;
                self.log.text(format!("existed: {existed}"));
            }
            Call::List(prefix) => {
                for entry in config.list(prefix).await? {
                    self.log.text(format!("{}={}", entry.key(), entry.decode::<u64>()?));
                    self.log.version(entry.version().get());
                }
            }
            Call::Both(one, other, value) => {
                let batch = Batch::new().set(one, &1_u64)?;
                let batch = match value {
                    Some(value) => batch.set(other, &u64::from(*value))?,
                    None => batch.delete(other)?,
                };
                let committed = config.commit(batch).await?;
                self.log.text(format!("deleted {}", committed.deleted));
                self.saw(committed.version);
            }
            Call::Increment(key) => {
                let setting = config.update::<u64, _>(key, |old| old.unwrap_or(0) + 1).await?;
                self.log.text(format!("{}", setting.value));
                self.saw(setting.version);
            }
            Call::SetIfHeld(slot, key, value) => {
                let Some(guard) = &self.held[*number].guards[*slot] else { return Ok(()) };
                let version = config.set_if_held(guard, key, &u64::from(*value)).await?;
                self.saw(version);
            }
            Call::Lock(call) => {
                call.take(self.stage, *number, &mut self.held[*number].guards, &mut self.log).await?;
            }
            Call::TryAcquire(name, slot) => self.try_acquire(*number, name, *slot).await?,
            Call::Unlock(slot) => {
                if let Some(guard) = self.held[*number].guards[*slot].take() {
                    guard.unlock().await?;
                    self.log.text("unlocked");
                }
            }
            Call::Drop(slot) => {
                let guard = self.held[*number].guards[*slot].take();
                self.drop_guard(client, guard).await?;
            }
            Call::Holders(name) => {
                for holder in client.lock().holders(name).await? {
                    self.log.token(holder.token.get());
                }
            }
            Call::Register(id, value) => {
                let info = ServiceInfo::new("svc", *id, "10.0.0.1", 80).with("v", value.to_string());
                let registration = client.registry().register(info, TTL).await?;
                // The one before was taken over by this one; dropping it changes nothing.
                self.held[*number].registrations.insert(*id, registration);
                self.log.text("registered");
            }
            Call::Update(id, value) => {
                if let Some(registration) = self.held[*number].registrations.get(id) {
                    registration.update(BTreeMap::from([("v".to_owned(), value.to_string())])).await?;
                    self.log.text("updated");
                }
            }
            Call::Deregister(id) => {
                if let Some(registration) = self.held[*number].registrations.remove(id) {
                    registration.deregister().await?;
                    self.log.text("deregistered");
                }
            }
            Call::Discover => {
                for info in client.registry().discover("svc").await? {
                    self.log.text(shown(&info));
                }
            }
            Call::AcquireId(slot) => {
                // Which of the free ones is not promised.
                self.held[*number].allocators[*slot].try_acquire_id().await?;
                self.log.text("has an id");
            }
            Call::ReleaseId(slot) => {
                self.held[*number].allocators[*slot].release_id().await?;
                self.log.text("released");
            }
            Call::HeldIds => {
                let holders = client.instance_ids().holders("svc").await?;
                self.log.text(format!("{} ids are held", holders.len()));
            }
        }
        Ok(())
    }

    async fn try_acquire(&mut self, number: usize, name: &str, slot: usize) -> Result<()> {
        let slot = &mut self.held[number].guards[slot];
        if slot.is_some() {
            return Ok(());
        }
        *slot = self.stage.client(number).lock().try_acquire(name, TTL).await?;
        match slot {
            None => self.log.text("is held"),
            Some(guard) => {
                self.log.text(format!("{} for {:?}", guard.name(), guard.ttl()));
                self.log.token(guard.token().get());
            }
        }
        Ok(())
    }

    /// Drops a guard and waits until the store has heard of it, which happens in the background.
    async fn drop_guard(&mut self, client: &dyn Provider, guard: Option<LockGuard>) -> Result<()> {
        let Some(guard) = guard else { return Ok(()) };
        let (name, token) = (guard.name().to_owned(), guard.token());
        drop(guard);
        let gone = async {
            while client.lock().holders(&name).await?.iter().any(|holder| holder.token == token) {
                sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        };
        timeout(LIMIT, gone).await.expect("a dropped guard is given back")
    }

    /// What the watches have told, up to a last write that both wait for.
    async fn end(&mut self, mut values: Watch<ConfigEvent<u64>>, mut instances: Watch<ServiceEvent>) {
        self.log.step("values".into());
        self.stage.client(0).config().set("zz-last", &0_u64).await.expect("the store is there");
        loop {
            let item = timeout(LIMIT, values.next()).await.expect("the last write is told").expect("goes on");
            match item.expect("all values are numbers") {
                ConfigEvent::Snapshot { settings, .. } => {
                    self.log.text(format!("snapshot of {}", settings.len()));
                }
                ConfigEvent::Set(setting) => {
                    self.log.text(format!("{}={}", setting.key, setting.value));
                    self.log.version(setting.version.get());
                    if setting.key == "zz-last" {
                        break;
                    }
                }
                ConfigEvent::Deleted { key, version } => {
                    self.log.text(format!("{key} deleted"));
                    self.log.version(version.get());
                }
                other => self.log.text(format!("{other:?}")),
            }
        }
        self.log.step("instances".into());
        let info = ServiceInfo::new("svc", "zz-last", "10.0.0.1", 80);
        let last = self.stage.client(0).registry().register(info, TTL).await.expect("the store is there");
        loop {
            let item =
                timeout(LIMIT, instances.next()).await.expect("the last one is told").expect("goes on");
            match item.expect("all records are good") {
                ServiceEvent::Snapshot { instances, .. } => {
                    self.log.text(format!("snapshot of {}", instances.len()));
                }
                ServiceEvent::Added(info) => {
                    self.log.text(format!("added {}", shown(&info)));
                    if info.id == "zz-last" {
                        break;
                    }
                }
                ServiceEvent::Updated { old, new } => {
                    self.log.text(format!("updated {} to {}", shown(&old), shown(&new)));
                }
                ServiceEvent::Removed(info) => self.log.text(format!("removed {}", shown(&info))),
                other => self.log.text(format!("{other:?}")),
            }
        }
        last.deregister().await.expect("is registered");
    }
}

fn shown(info: &ServiceInfo) -> String {
    format!("{}:{}", info.id, info.metadata.get("v").map_or("", String::as_str))
}
