//! A process of its own that holds an id and makes numbers with it, for tests that freeze or kill it.
//!
//! `stamper ENDPOINT SERVICE MAX_ID TTL_SECONDS`: acquires an id of the service again and again. Every line that
//! it prints is one look at what it believes, with times of a clock that all processes of the machine share, in
//! nanoseconds: `ID HOLD BEFORE AFTER NUMBER`. It believed in the id at some moment between the two times; `HOLD` counts
//! its holds.

use std::{
    io::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use coord_api::{Provider, Snowflake};
use coord_etcd::{Client, EtcdConfig};

fn now() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("is after 1970").as_nanos()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> coord_api::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let endpoint = arguments.next().expect("an endpoint is given");
    let service = arguments.next().expect("a service is given");
    let mut number =
        || arguments.next().and_then(|number| number.parse::<u32>().ok()).expect("a number is given");
    let (max_id, ttl) = (number(), Duration::from_secs(number().into()));
    let config = EtcdConfig::new([endpoint]).instance_id_ttl(ttl).request_timeout(Duration::from_secs(2));
    let client = Client::connect(config).await?;
    let ids = client.instance_id_allocator(&service, max_id)?;
    for hold in 0.. {
        if ids.acquire_id().await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        let Ok(snowflake) = Snowflake::start(&*ids).await else { continue };
        loop {
            let before = now();
            let Ok(number) = snowflake.next_id().await else { break };
            // What was frozen between these two lines tells nothing.
            let is_held = ids.held().is_some_and(|held| held.id() == snowflake.worker());
            let after = now();
            if is_held {
                let line = format!("{} {hold} {before} {after} {number}\n", snowflake.worker());
                std::io::stdout().write_all(line.as_bytes()).expect("somebody reads");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    Ok(())
}
