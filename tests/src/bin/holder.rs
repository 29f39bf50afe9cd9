//! A process of its own that holds a lock, for tests that freeze or kill it.
//!
//! `holder ENDPOINT TTL_SECONDS`: acquires the lock `job`, prints `held TOKEN`, and then every few milliseconds
//! looks at the clock. When more time has passed than it should, it was frozen: it prints what its guard says
//! in that very moment, tries a fenced and an unfenced write, and ends.

use std::time::{Duration, Instant};

use coord_api::{ConfigExt, Error, Provider};
use coord_etcd::{Client, EtcdConfig};

const TICK: Duration = Duration::from_millis(5);

#[tokio::main(flavor = "current_thread")]
async fn main() -> coord_api::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().expect("an endpoint is given");
    let ttl = arguments.next().and_then(|ttl| ttl.parse().ok()).expect("a number of seconds is given");

    let client = Client::connect(EtcdConfig::new([endpoint])).await?;
    let guard = client.lock().acquire("job", Duration::from_secs(ttl)).await?;
    let batch = coord_api::Batch::new().while_held(&guard)?.set("written-by", "the frozen holder")?;
    println!("held {}", guard.token());
    loop {
        let before = Instant::now();
        // Not a timer of the runtime: nothing of coord gets to run between waking and looking.
        std::thread::sleep(TICK);
        if before.elapsed() > Duration::from_secs(ttl) {
            println!("lost {}", guard.is_lost());
            let refused = |outcome: coord_api::Result<_>| matches!(outcome, Err(Error::Lost { .. }));
            // Built before the freeze, so that only the store can refuse it.
            println!(
                "refused by the store {}",
                refused(client.config().commit(batch).await.map(|done| done.version))
            );
            let late = client.config().set_if_held(&guard, "written-by", "the frozen holder").await;
            println!("refused {}", refused(late));
            return Ok(());
        }
    }
}
