//! Two instances of a service make numbers that never meet, without asking anyone for each.
//!
//! ```sh
//! cargo run --example snowflake                                                     # in memory
//! cargo run --example snowflake --features etcd -- etcd://127.0.0.1:2379/demo       # over etcd
//! ```

use coord::prelude::*;

#[tokio::main]
async fn main() -> coord::Result<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "memory://snowflake".into());

    // Two instances in one program. In production they are two processes.
    let one = instance(&url, "web-1:8080").await?;
    let other = instance(&url, "web-2:8080").await?;
    for number in 0..3 {
        println!("[web-1] message {number}: {}", one.snowflake.next_id().await?);
        println!("[web-2] message {number}: {}", other.snowflake.next_id().await?);
    }
    for holder in one.coordinator.instance_ids().holders("im-message").await? {
        println!("worker {} is {}", holder.id, holder.identity.unwrap_or_default());
    }
    one.stop().await?;
    other.stop().await
}

struct Instance {
    coordinator: Coordinator,
    ids: std::sync::Arc<dyn InstanceIdAllocator>,
    snowflake: Snowflake,
}

async fn instance(url: &str, identity: &str) -> coord::Result<Instance> {
    let coordinator = Coordinator::connect(url).await?;
    // With an identity, an instance has the same worker id after a restart.
    let options = IdOptions::new("im-message", 1024).identity(identity);
    let ids = coordinator.instance_ids().allocator(options)?;
    println!("{identity} is worker {}", ids.acquire_id().await?);
    // It refuses to make numbers as soon as the id is lost.
    let snowflake = Snowflake::start(&*ids).await?;
    Ok(Instance { coordinator, ids, snowflake })
}

impl Instance {
    async fn stop(self) -> coord::Result<()> {
        self.snowflake.finish().await?;
        self.ids.release_id().await?;
        self.coordinator.close().await
    }
}
