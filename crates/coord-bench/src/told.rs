//! How long a change takes from its writer to the last of many handles that wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// A change that has not arrived by then never will.
const LIMIT: Duration = Duration::from_secs(10);

/// Where the handles say that they have a change. Changes come one at a time.
#[derive(Debug)]
pub(crate) struct Finish {
    handles: usize,
    arrived: AtomicUsize,
    last: mpsc::UnboundedSender<Instant>,
}

impl Finish {
    /// For so many handles; with what is told of each change when the last of them has it.
    pub(crate) fn of(handles: usize) -> (Arc<Self>, mpsc::UnboundedReceiver<Instant>) {
        let (last, told) = mpsc::unbounded_channel();
        (Arc::new(Self { handles, arrived: AtomicUsize::new(0), last }), told)
    }

    /// One handle has the change.
    pub(crate) fn arrived(&self) {
        if (self.arrived.fetch_add(1, Relaxed) + 1).is_multiple_of(self.handles) {
            // Nobody listens any more when the measured time is over.
            let _ = self.last.send(Instant::now());
        }
    }
}

/// Writes change after change for so long, each when all handles had the one before, from a thread and over a
/// connection of its own. The report: from the request to the last handle, and from etcd's answer to the last handle.
pub(crate) async fn write(
    endpoint: &str,
    key: String,
    value: impl Fn(u64) -> String + Send + 'static,
    seconds: Duration,
    mut told: mpsc::UnboundedReceiver<Instant>,
) -> Result<Value> {
    let endpoint = endpoint.to_owned();
    let writing = async move {
        let client = etcd_client::Client::connect([endpoint], None).await?;
        let (mut all, mut after) = (Vec::new(), Vec::new());
        let start = Instant::now();
        for number in 1.. {
            let asked = Instant::now();
            client.kv_client().put(key.as_str(), value(number), None).await?;
            let answered = Instant::now();
            let last =
                timeout(LIMIT, told.recv()).await.ok().flatten().context("a change does not arrive")?;
            all.push((last - asked).as_micros() as u64);
            // The event may overtake the answer.
            after.push(last.saturating_duration_since(answered).as_micros() as u64);
            if start.elapsed() >= seconds {
                break;
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(json!({ "seconds": seconds, "latencies_us": all, "after_answer_us": after }))
    };
    tokio::task::spawn_blocking(move || {
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(writing)
    })
    .await?
}
