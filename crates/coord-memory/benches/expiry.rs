//! What the end of a lease costs among few and among many: `cargo bench -p coord-memory`.
//!
//! Time stands still and is moved, so that all leases end at the same moment.

use std::time::{Duration, Instant};

use coord_api::{LockGuard, Provider, Result};
use coord_memory::{Client, Store};

const TTL: Duration = Duration::from_secs(30);
/// Each has one lease for each time to live.
const CLIENTS: u32 = 1000;

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("can be made").block_on(async {
        // The first run is not counted: the memory comes from the system then.
        for leases_each in [1, 1, 10, 100, 1000] {
            let (took, count) = expire(leases_each).await?;
            println!("{count:>8} leases end in {took:>12.3?}: {:>6.0?} each", took / count);
        }
        Ok(())
    })
}

/// All clients are cut off while they hold so many locks, each on a lease of its own, and time passes.
async fn expire(leases_each: u32) -> Result<(Duration, u32)> {
    let store = Store::new();
    let clients: Vec<Client> = (0..CLIENTS).map(|_| store.client()).collect();
    let mut guards: Vec<LockGuard> = Vec::new();
    for (n, client) in clients.iter().enumerate() {
        let locks = client.lock();
        for lease in 0..leases_each {
            let ttl = TTL + Duration::from_secs(lease.into());
            guards.extend(locks.try_acquire(&format!("job-{n}-{lease}"), ttl).await?);
        }
    }
    clients.iter().for_each(Client::disconnect);
    let begun = Instant::now();
    tokio::time::advance(TTL + Duration::from_secs(u64::from(leases_each) + 1)).await;
    assert!(store.keys().is_empty(), "all have expired");
    let took = begun.elapsed();
    assert!(guards.iter().all(LockGuard::is_lost));
    Ok((took, CLIENTS * leases_each))
}
