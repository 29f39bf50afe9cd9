//! Whoever disturbs a cluster and its clients, step by step, and mends everything in the end.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use anyhow::{Context, Result};
use etcd_client::{GetOptions, KeyValue, LeaseTimeToLiveOptions, WatchOptions};
use tokio::time::{Instant, sleep, timeout_at};

use super::{
    schedule::{Fault, Schedule, Step},
    user::{USER, User},
};
use crate::{Cluster, Conditions, NODES, Proxy, SlowDisk};

/// How much time is kept for mending.
const MENDING: Duration = Duration::from_secs(5);

/// For how long a leader that woke may still end leases that are alive. Half a second is not enough: etcd 3.5.30 was seen to
/// end one 7 s after its leader woke, when the election and the revocations that it had asked for before were through.
const WAKING: Duration = Duration::from_secs(8);

/// How long it is waited before a watch that broke meanwhile is opened again.
const LOOK: Duration = Duration::from_millis(250);

const SLOW: Conditions =
    Conditions::Slow { delay: Duration::from_millis(150), jitter: Duration::from_millis(300) };
const NARROW: Conditions = Conditions::Narrow { bits_per_second: 64_000 };
const LOSSY: Conditions = Conditions::Lossy { percent: 30 };

/// A client's own way to each node.
pub(super) type Network = Vec<Proxy>;

pub(super) struct Nemesis<'a> {
    cluster: &'a Cluster,
    networks: &'a [Network],
    /// How many clients work at the same time.
    working: usize,
    user: &'a User,
    /// Where locks are in the store.
    locks: String,
    schedule: Schedule,
    /// What began and has to be ended by dropping it.
    disk: Option<SlowDisk>,
    report: Report,
}

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) faults: usize,
    /// The locks that were freed because etcd ended a lease that was alive: that their holder is told first is not promised then.
    pub(super) freed: Vec<String>,
}

impl<'a> Nemesis<'a> {
    pub(super) fn new(
        cluster: &'a Cluster,
        (networks, working): (&'a [Network], usize),
        namespace: &str,
        user: &'a User,
        seed: u64,
    ) -> Self {
        let schedule = Schedule::new(seed, working);
        let locks = format!("/{namespace}/locks/");
        Self { cluster, networks, working, user, locks, schedule, disk: None, report: Report::default() }
    }

    /// Disturbs for this long; everything is mended then.
    pub(super) async fn rage(mut self, time: Duration, print: &dyn Fn(&str)) -> Result<Report> {
        let begun = Instant::now();
        let end = begun + time.saturating_sub(MENDING);
        while let Some(step) = self.schedule.next() {
            let left = end.saturating_duration_since(Instant::now());
            if left < step.hold {
                break;
            }
            let Step { fault, hold, rest } = step;
            self.report.faults += 1;
            print(&format!(
                "{:>6.1} s  {:>3}  {fault} for {} ms",
                begun.elapsed().as_secs_f64(),
                self.report.faults,
                hold.as_millis()
            ));
            self.strike(fault, hold).await.with_context(|| format!("cannot cause {fault}"))?;
            self.relieve().await.with_context(|| format!("cannot end {fault}"))?;
            sleep(rest).await;
        }
        self.cluster.mend().await?;
        Ok(self.report)
    }

    /// The ways of a client, and of those that may have taken the place of a closed one.
    fn ways(&self, client: usize) -> impl Iterator<Item = &Proxy> {
        self.networks.iter().skip(client).step_by(self.working).flatten()
    }

    /// Causes a fault and lets it last.
    async fn strike(&mut self, fault: Fault, hold: Duration) -> Result<()> {
        let cluster = self.cluster;
        match fault {
            Fault::Kill(n) => cluster.kill9(n)?,
            Fault::KillAll => (0..NODES).try_for_each(|n| cluster.kill9(n))?,
            Fault::Freeze(n) => return self.freeze(n, hold).await,
            Fault::FreezeAll => (0..NODES).try_for_each(|n| cluster.freeze(n))?,
            Fault::Isolate(n) => cluster.isolate(n),
            Fault::CutPeers(n) => cluster.cut_peers(n),
            Fault::CutClients(n) => cluster.cut_clients(n),
            Fault::OneWay(from, to) => cluster.cut_one_way(from, to),
            Fault::NotHeard(n) => cluster.silence(n),
            Fault::Refuse(n) => cluster.clients(n).refuse(),
            Fault::ResetAll => (0..NODES).for_each(|n| cluster.clients(n).reset()),
            Fault::Slow(n) => cluster.set_conditions(n, SLOW),
            Fault::Narrow(n) => cluster.set_conditions(n, NARROW),
            Fault::Lossy(n) => cluster.set_conditions(n, LOSSY),
            Fault::StuckDisk(n) => {
                let delay = Duration::from_millis(self.schedule.random().u64(1_000..10_000));
                self.disk = Some(cluster.slow_disk(n, delay).await?);
            }
            Fault::FailDisk(n) => cluster.fail_disk(n).await?,
            Fault::Compact => self.compact().await,
            Fault::Defragment => self.defragment().await,
            Fault::Revoke => self.revoke().await?,
            Fault::Full => cluster.alarm().await?,
            Fault::Rotate => return self.rotate(hold).await,
            Fault::Swizzle => return self.swizzle(hold).await,
            Fault::CutClient(c) => self.ways(c).for_each(Proxy::cut),
            Fault::DeafClient(c) => self.ways(c).for_each(|way| way.down().set(Conditions::Silent)),
            Fault::SlowClient(c) => self.ways(c).for_each(|way| way.set(SLOW)),
            Fault::ResetClient(c) => self.ways(c).for_each(Proxy::reset),
        }
        sleep(hold).await;
        Ok(())
    }

    /// Ends whatever was caused, without waiting until it is overcome.
    async fn relieve(&mut self) -> Result<()> {
        if let Some(disk) = self.disk.take() {
            disk.stop().await?;
        }
        self.networks.iter().flatten().for_each(Proxy::restore);
        self.cluster.relieve()?;
        self.cluster.disarm().await
    }

    /// A leader that wakes may revoke leases that ran out by its own clock, though its successor renewed them.
    async fn freeze(&mut self, n: usize, hold: Duration) -> Result<()> {
        let led = self.cluster.leader().await.is_ok_and(|leader| leader == n);
        self.cluster.freeze(n)?;
        sleep(hold).await;
        let admin = self.cluster.admin().await;
        let (true, Ok(admin)) = (led, admin) else { return self.cluster.thaw(n) };
        // However short a lock is held, the lease that it is on is seen.
        let watch = async || {
            let below = Some(WatchOptions::new().with_prefix());
            admin.watch_client().watch(self.locks.as_str(), below).await
        };
        let Ok(mut changes) = watch().await else { return self.cluster.thaw(n) };
        let mut locked = HashMap::new();
        self.look_for_locks(&admin, &mut locked).await?;
        self.cluster.thaw(n)?;
        let end = Instant::now() + WAKING;
        while let Ok(answer) = timeout_at(end, changes.message()).await {
            if let Ok(Some(answer)) = answer {
                for kv in answer.events().iter().filter_map(etcd_client::Event::kv) {
                    locked.entry(kv.lease()).or_default().insert(self.lock_of(kv)?);
                }
                continue;
            }
            sleep(LOOK).await;
            self.look_for_locks(&admin, &mut locked).await?;
            if let Ok(again) = watch().await {
                changes = again;
            }
        }
        // Deletions name no lease.
        locked.remove(&0);
        for (lease, locks) in locked {
            // It is -1 for a lease that is gone.
            let left = admin.lease_client().time_to_live(lease, None).await;
            if left.is_ok_and(|left| left.ttl() < 0) {
                self.report.freed.extend(locks);
            }
        }
        Ok(())
    }

    /// Takes note of the locks that are held now, by lease. A cluster that does not answer is asked later.
    async fn look_for_locks(
        &self,
        admin: &etcd_client::Client,
        locked: &mut HashMap<i64, HashSet<String>>,
    ) -> Result<()> {
        let below = Some(GetOptions::new().with_prefix());
        let Ok(found) = admin.kv_client().get(self.locks.as_str(), below).await else { return Ok(()) };
        for kv in found.kvs() {
            locked.entry(kv.lease()).or_default().insert(self.lock_of(kv)?);
        }
        Ok(())
    }

    /// Clients have the old password until the time is over, and no token that is good.
    async fn rotate(&mut self, hold: Duration) -> Result<()> {
        let password = format!("{:016x}", self.schedule.random().u64(..));
        self.cluster.change_password(USER, &password).await?;
        sleep(hold).await;
        self.user.set(password);
        Ok(())
    }

    async fn swizzle(&mut self, hold: Duration) -> Result<()> {
        let mut order: Vec<usize> = (0..NODES).collect();
        let pause = hold / 6;
        self.schedule.random().shuffle(&mut order);
        for &n in &order {
            self.cluster.isolate(n);
            sleep(pause).await;
        }
        self.schedule.random().shuffle(&mut order);
        for &n in &order {
            self.cluster.heal_node(n);
            sleep(pause).await;
        }
        Ok(())
    }

    /// A cluster without a leader can not be asked, and then nothing is compacted.
    async fn compact(&mut self) {
        let Ok(admin) = self.cluster.admin().await else { return };
        let Ok(now) = admin.kv_client().get("now", None).await else { return };
        let revision = now.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
        let _ = admin.kv_client().compact(revision, None).await;
    }

    async fn defragment(&mut self) {
        for n in 0..NODES {
            // One that is not up yet is not defragmented.
            let _ = self.cluster.gateway(n, "/v3/maintenance/defragment", "{}").await;
        }
    }

    /// Revokes some leases. Where a lock is held on one, it would be freed while its holder has not heard.
    async fn revoke(&mut self) -> Result<()> {
        let Ok(admin) = self.cluster.admin().await else { return Ok(()) };
        let Ok(leases) = admin.lease_client().leases().await else { return Ok(()) };
        let with_keys = || Some(LeaseTimeToLiveOptions::new().with_keys());
        for lease in leases.leases() {
            let id = lease.id();
            let Ok(lease) = admin.lease_client().time_to_live(id, with_keys()).await else { continue };
            let has_lock = lease.keys().iter().any(|key| key.starts_with(self.locks.as_bytes()));
            if has_lock || self.schedule.random().bool() {
                continue;
            }
            if let Ok(revoked) = admin.lease_client().revoke(id).await {
                let at = revoked.header().map(etcd_client::ResponseHeader::revision).unwrap_or_default();
                // One may have been taken in between.
                self.freed_by(&admin, id, at - 1).await?;
            }
        }
        Ok(())
    }

    async fn freed_by(&mut self, admin: &etcd_client::Client, lease: i64, before: i64) -> Result<()> {
        let options = GetOptions::new().with_prefix().with_revision(before);
        let found = admin.kv_client().get(self.locks.as_str(), Some(options)).await;
        let Ok(found) = found else { return Ok(()) };
        for kv in found.kvs().iter().filter(|kv| kv.lease() == lease) {
            self.report.freed.push(self.lock_of(kv)?);
        }
        Ok(())
    }

    /// The name of the lock that one has, or waits for, with this key.
    fn lock_of(&self, kv: &KeyValue) -> Result<String> {
        let key = kv.key_str()?.trim_start_matches(&self.locks);
        let name = key.rsplit_once('/').map_or(key, |(name, _)| name);
        Ok(name.replace("%2F", "/"))
    }
}
