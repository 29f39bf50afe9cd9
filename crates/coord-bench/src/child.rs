//! The side of a contender: a process of its own, started by the runner and driven by lines of text.
//!
//! `ready` out, `go` in, the result as one line of JSON out, `stop` in. Contenders in other languages speak the
//! same, so all are measured by the same clock and the same counters of the server.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines, Stdin, stdin};

/// The runner, as its contender sees it.
#[derive(Debug)]
pub(crate) struct Runner {
    commands: Lines<BufReader<Stdin>>,
}

impl Runner {
    pub(crate) fn new() -> Self {
        Self { commands: BufReader::new(stdin()).lines() }
    }

    /// Says that the load is running and waits for the start of the measured time.
    pub(crate) async fn ready(&mut self) -> Result<()> {
        println!("ready");
        self.expect("go").await
    }

    /// Hands over the result and waits until the counters were read; the clean-up comes after.
    pub(crate) async fn report(&mut self, result: &Value) -> Result<()> {
        println!("{result}");
        self.expect("stop").await
    }

    async fn expect(&mut self, command: &str) -> Result<()> {
        // The end of the input means that the runner is gone, and with it the need for this process.
        let line = self.commands.next_line().await?.context("the runner is gone")?;
        if line != command {
            bail!("`{line}` instead of `{command}`");
        }
        Ok(())
    }
}

/// Microseconds on a clock that all processes of the machine share.
pub(crate) fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    // Good for half a million years.
    since.as_micros() as u64
}

/// The memory that this process has in RAM, in bytes.
pub(crate) fn resident() -> Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1024)
}
