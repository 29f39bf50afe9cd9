//! Whether each area can be read and written, and how long a commit takes. Nothing that is tried stays in the store.

use std::time::{Duration, Instant};

use coord_api::{
    Batch, ConfigKey, DistributedLock, Error, IdOptions, Provider, Result, Scope, ServiceInfo, Version,
};

use super::finding::{Finding, Level, of_area};

/// What is tried is called so.
const NAME: &str = "coord-doctor";

/// Whatever goes wrong, what was tried is gone after this.
const TTL: Duration = Duration::from_secs(10);

/// Above this, TTLs of a few seconds are not safe, and everything that coord does feels slow.
const SLOW_COMMIT: Duration = Duration::from_millis(100);

pub(super) async fn examine(provider: &dyn Provider, commits: u16, findings: &mut Vec<Finding>) {
    let mut tell = |area, tried: Result<()>| match tried {
        Ok(()) => findings.push(Finding::ok(area, "can be read and written")),
        Err(error) => findings.push(of_area(area, &error)),
    };
    // Two who ask at the same time do not meet.
    let unique = format!("{NAME}-{}", provider.config().owner().client);
    let locks = try_locks(provider, &unique).await;
    let may_lock = locks.is_ok();
    tell("locks", locks);
    tell("services", try_services(provider, &unique).await);
    tell("config", try_config(provider).await);
    tell("ids", try_ids(provider, &unique).await);
    if !may_lock {
        findings.push(Finding::new(Level::Skipped, "latency", "was not measured", "mend the locks first"));
        return;
    }
    findings.push(match time_commits(&*provider.lock(), &unique, commits).await {
        Ok(times) => of_latency(times),
        Err(error) => of_area("latency", &error),
    });
}

async fn try_locks(provider: &dyn Provider, name: &str) -> Result<()> {
    let locks = provider.lock();
    locks.queues().await?;
    match locks.try_acquire(name, TTL).await? {
        Some(guard) => guard.unlock().await,
        None => Ok(()),
    }
}

async fn try_services(provider: &dyn Provider, name: &str) -> Result<()> {
    let registry = provider.registry();
    registry.services().await?;
    let nowhere = ServiceInfo::new(name, "probe", "127.0.0.1", 9);
    registry.register(nowhere, TTL).await?.deregister().await
}

/// A write on a condition that is not met: etcd looks at the permissions first, and nobody who watches sees anything.
async fn try_config(provider: &dyn Provider) -> Result<()> {
    let (config, key) = (provider.config(), ConfigKey::parse(NAME)?);
    config.read(Scope::Key(NAME)).await?;
    let beside = key.beside("doctor", "");
    let batch = Batch::new().require_at(key.clone(), Version::new(1))?;
    match config.commit(batch.set_at(key, &())?.set_at(beside, &())?).await {
        Err(Error::Conflict { .. }) => Ok(()),
        answer => answer.map(|_| ()),
    }
}

async fn try_ids(provider: &dyn Provider, service: &str) -> Result<()> {
    let ids = provider.instance_ids();
    ids.holders(service).await?;
    let allocator = ids.allocator(IdOptions::new(service, 2).quarantine(Duration::ZERO))?;
    allocator.try_acquire_id().await?;
    allocator.release_id().await
}

/// An acquired lock is one commit.
async fn time_commits(locks: &dyn DistributedLock, name: &str, commits: u16) -> Result<Vec<Duration>> {
    let mut times = Vec::new();
    for _ in 0..commits {
        let begun = Instant::now();
        let guard = locks.try_acquire(name, TTL).await?;
        times.push(begun.elapsed());
        if let Some(guard) = guard {
            guard.unlock().await?;
        }
    }
    Ok(times)
}

fn of_latency(mut times: Vec<Duration>) -> Finding {
    times.sort_unstable();
    let Some((median, longest)) = times.get(times.len() / 2).zip(times.last()) else {
        return Finding::new(Level::Skipped, "latency", "was not measured", "ask for at least one commit");
    };
    let said = format!("a commit takes {median:.1?}, the longest of {} took {longest:.1?}", times.len());
    if *median < SLOW_COMMIT {
        return Finding::ok("latency", said);
    }
    let advice = "is etcd's disk fast enough, and near? See etcd_disk_wal_fsync_duration_seconds in its metrics; use \
                  TTLs of at least 10 s until then";
    Finding::new(Level::Warning, "latency", said, advice)
}

#[cfg(test)]
mod tests {
    use coord_memory::Store;

    use super::*;

    #[tokio::test]
    async fn a_good_store_has_no_problem_and_nothing_of_this_stays() {
        let store = Store::new();
        let mut findings = Vec::new();
        examine(&store.client(), 3, &mut findings).await;
        assert_eq!(findings.len(), 5);
        assert!(findings.iter().all(|finding| finding.level == Level::Ok), "{findings:?}");
        assert_eq!(store.keys(), [""; 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_away_is_told_for_each_area() {
        let store = Store::new();
        let client = store.client();
        client.disconnect();
        let mut findings = Vec::new();
        examine(&client, 3, &mut findings).await;
        let problems = findings.iter().filter(|finding| finding.level == Level::Problem).count();
        assert_eq!((problems, findings[4].level), (4, Level::Skipped), "{findings:?}");
    }

    #[test]
    fn slow_commits_are_a_warning() {
        let times = |ms: u64| vec![Duration::from_millis(ms); 5];
        assert_eq!(of_latency(times(2)).level, Level::Ok);
        assert_eq!(of_latency(times(250)).level, Level::Warning);
        assert_eq!(of_latency(Vec::new()).level, Level::Skipped);
    }
}
