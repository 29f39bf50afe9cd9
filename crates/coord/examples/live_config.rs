//! A value that follows the config center: a bad update is refused, the last good value stays.
//!
//! ```sh
//! cargo run --example live_config                                                     # in memory
//! cargo run --example live_config --features etcd -- etcd://127.0.0.1:2379/demo       # over etcd
//! ```

use coord::{Config, prelude::*};
use serde::{Deserialize, Serialize};

#[derive(Debug, Serialize, Deserialize)]
struct Limits {
    max_upload_mb: u32,
    max_rooms: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let url = std::env::args().nth(1);
    let url = url.as_deref().unwrap_or("memory://live-config");
    // Lazily: with the snapshot file the second start needs no store.
    let coordinator = Coordinator::connect_with(Config::from_url(url)?.lazily()).await?;
    let config = coordinator.config();

    let mut limits = config
        .live("demo/limits")
        .default_fields(Limits { max_upload_mb: 10, max_rooms: 100 })
        .validate(|limits| if limits.max_upload_mb > 0 { Ok(()) } else { Err("max_upload_mb is 0") })
        .on_change(|old, new| println!("the hook sees {old:?} become {new:?}"))
        .snapshot_file(std::env::temp_dir().join("coord-demo-limits.json"))
        .start()
        .await?;
    println!("at the start: {:?} from {:?}", limits.current(), limits.origin());

    // Someone else writes. What is missing is the default's.
    let mut changes = limits.changes();
    config.set("demo/limits", &serde_json::json!({ "max_upload_mb": 50 })).await?;
    println!("changed: {:?}", limits.changed().await?);
    if let Some(change) = changes.next().await {
        println!("from {:?} to {:?}", change.old, change.new);
    }

    // A mistake harms nobody.
    let mut state = limits.counters();
    config.set("demo/limits", &serde_json::json!({ "max_upload_mb": "plenty" })).await?;
    while state.rejections == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        state = limits.counters();
    }
    if let Some(rejection) = limits.state().rejection {
        println!("refused: {rejection}");
    }
    println!("still in use: {:?}", limits.current());

    config.delete("demo/limits").await?;
    coordinator.close().await?;
    Ok(())
}
