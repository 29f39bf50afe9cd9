//! A process of its own that keeps a lock, a registration and an id, for tests that move its clock.
//!
//! `keeper ENDPOINT TTL_SECONDS`: acquires the lock `job`, registers for `im` and acquires an id of `im`. Then every
//! line that it prints is one look at its wall clock and at what it believes: `SECONDS TOKEN IS_HELD IS_REGISTERED ID`,
//! where an id that it does not hold is `none`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coord_api::{Provider, RegistrationStatus, ServiceInfo};
use coord_etcd::{Client, EtcdConfig};

const LOOK: Duration = Duration::from_millis(100);

#[tokio::main(flavor = "current_thread")]
async fn main() -> coord_api::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().expect("an endpoint is given");
    let ttl = arguments.next().and_then(|ttl| ttl.parse().ok()).expect("a number of seconds is given");
    let ttl = Duration::from_secs(ttl);

    let client = Client::connect(EtcdConfig::new([endpoint]).instance_id_ttl(ttl)).await?;
    let guard = client.lock().acquire("job", ttl).await?;
    let info = ServiceInfo::new("im", "keeper", "10.0.0.1", 80);
    let registration = client.registry().register(info, ttl).await?;
    let ids = client.instance_id_allocator("im", 8)?;
    ids.acquire_id().await?;
    loop {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).expect("is after 1970").as_secs();
        let is_registered = registration.status() == RegistrationStatus::Registered;
        let id = ids.held().map_or_else(|| "none".to_owned(), |held| held.id().to_string());
        println!("{wall} {} {} {is_registered} {id}", guard.token(), !guard.is_lost());
        tokio::time::sleep(LOOK).await;
    }
}
