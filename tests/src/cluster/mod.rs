//! Three etcd nodes with a network of proxies between everything, and all that can go wrong with them.
//!
//! ```text
//! client ─► proxy of n1 ─► n1 ─► proxy n1 to n2 ─► n2
//! ```
//!
//! It needs no rights: nodes talk to each other over socket files. Every node runs in a folder of its own, where the
//! address of node 2, `unix://n2:1`, is a file `n2:1`. So all members agree on the addresses, and still the way from each
//! node to each other one has a proxy of its own.

mod arguments;
mod disk;
mod links;
mod users;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures::future::join_all;
use tokio::time::{sleep, timeout};

use arguments::{arguments, listening_with};
pub use disk::SlowDisk;
use links::Links;

use crate::{
    Certs,
    proxy::{Conditions, Proxy},
    server::{self, Process, http},
};

/// How many nodes there are; they are numbered from 0.
pub const NODES: usize = 3;

const READY: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(20);

/// How long a node may take to say how it is. One that does not is taken for dead.
const PATIENCE: Duration = Duration::from_secs(1);

/// Three nodes on loopback. Dropping it removes processes and data.
///
/// Every method that causes a fault returns when the fault is there. [`heal`](Self::heal) ends those of the network.
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
    links: Links,
    /// Whether the requests of the harness are those of the user `root`.
    has_users: bool,
}

#[derive(Debug)]
struct Node {
    process: Process,
    /// Where etcd itself listens, past all proxies.
    address: String,
    clients: Proxy,
}

/// What one node says about itself.
#[derive(Clone, Copy, Debug)]
struct Status {
    id: u64,
    leader: u64,
    term: u64,
}

impl Cluster {
    /// Three fresh nodes that have a leader, of the program `COORD_TEST_ETCD_BIN` or `etcd` on PATH.
    ///
    /// # Errors
    /// When there is no such program, or the nodes do not get ready.
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// As [`start`](Self::start), with more arguments for all nodes: `&["--quota-backend-bytes", "3000000"]`.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_with(args: &[&str]) -> Result<Self> {
        Self::start_listening(args, None).await
    }

    /// As [`start_with`](Self::start_with), but clients come over TLS, and find the certificates of `certs`. The harness
    /// still does not.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_tls(certs: &Certs, args: &[&str]) -> Result<Self> {
        Self::start_listening(args, Some(certs)).await
    }

    async fn start_listening(args: &[&str], certs: Option<&Certs>) -> Result<Self> {
        coord_conformance::print_traces();
        let mut tries = 3;
        loop {
            tries -= 1;
            match Self::try_start(args, certs).await {
                // Somebody took a port between the look for a free one and the start.
                Err(error) if tries > 0 && server::port_taken(&error) => {}
                result => return result,
            }
        }
    }

    async fn try_start(args: &[&str], certs: Option<&Certs>) -> Result<Self> {
        let program = server::program()?;
        // Short, since the path of a socket file has about 100 bytes.
        let name = format!("coord-c{}-{:06x}", std::process::id(), fastrand::u32(..1 << 24));
        let folder = std::env::temp_dir().join(name);
        let folders: Vec<PathBuf> = (0..NODES).map(|n| folder.join(format!("n{n}"))).collect();
        for folder in &folders {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("cannot create `{}`", folder.display()))?;
        }
        let links = Links::open(&folders)?;
        let mut nodes = Vec::new();
        for (n, folder) in folders.into_iter().enumerate() {
            let address = format!("127.0.0.1:{}", crate::ports::free_port()?);
            let mut args = arguments(n, &address, args);
            let outside = match certs {
                Some(certs) => {
                    let secured = format!("127.0.0.1:{}", crate::ports::free_port()?);
                    args.extend(listening_with(certs, &address, &secured));
                    secured
                }
                None => address.clone(),
            };
            let process = Process::new(program.clone(), folder, args);
            process.start_again()?;
            let clients = Proxy::start(outside).await?;
            nodes.push(Node { process, address, clients });
        }
        let cluster = Self { nodes, links, has_users: false };
        for n in 0..NODES {
            cluster.wait_until_ready(n).await?;
        }
        Ok(cluster)
    }

    /// Where clients find all nodes, as `host:port` of their proxies.
    pub fn endpoints(&self) -> Vec<String> {
        (0..NODES).map(|n| self.endpoint(n)).collect()
    }

    /// Where clients find one node.
    pub fn endpoint(&self, n: usize) -> String {
        self.clients(n).address().to_owned()
    }

    /// Where the harness finds one node, past all faults of the network.
    pub fn direct(&self, n: usize) -> String {
        format!("http://{}", self.nodes[n].address)
    }

    /// The network between clients and one node.
    pub fn clients(&self, n: usize) -> &Proxy {
        &self.nodes[n].clients
    }

    /// The process id of a node.
    ///
    /// # Errors
    /// When it was killed.
    pub fn pid(&self, n: usize) -> Result<u32> {
        self.nodes[n].process.pid()
    }

    /// Waits for a leader and returns which node it is.
    ///
    /// # Errors
    /// When there is none after a minute.
    pub async fn leader(&self) -> Result<usize> {
        self.leader_among(&[0, 1, 2]).await
    }

    /// Waits until one of these nodes is the leader: after another one was cut off, which may take itself for the
    /// leader for a while.
    ///
    /// # Errors
    /// When none is after a minute.
    pub async fn leader_among(&self, nodes: &[usize]) -> Result<usize> {
        let end = Instant::now() + READY;
        loop {
            let all = join_all(nodes.iter().map(async |&n| Some((self.status(n).await.ok()?, n)))).await;
            let leading = all.into_iter().flatten().filter(|(status, _)| status.id == status.leader);
            if let Some((_, n)) = leading.max_by_key(|(status, _)| status.term) {
                return Ok(n);
            }
            if Instant::now() >= end {
                bail!("no leader among the nodes {nodes:?} after {} s", READY.as_secs());
            }
            sleep(TICK).await;
        }
    }

    /// A node that is not the leader.
    ///
    /// # Errors
    /// When there is no leader after a minute.
    pub async fn follower(&self) -> Result<usize> {
        Ok((self.leader().await? + 1) % NODES)
    }

    async fn status(&self, n: usize) -> Result<Status> {
        let asked = self.gateway(n, "/v3/maintenance/status", "{}");
        let answer: serde_json::Value = serde_json::from_str(&timeout(PATIENCE, asked).await??)?;
        // 64-bit numbers are strings in this JSON, and a zero is left out.
        let number = |pointer: &str| -> Result<u64> {
            answer.pointer(pointer).map_or(Ok(0), |at| Ok(at.as_str().unwrap_or("0").parse()?))
        };
        Ok(Status {
            id: number("/header/member_id")?,
            leader: number("/leader")?,
            term: number("/header/raft_term")?,
        })
    }

    /// SIGKILL; returns when the process is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn kill9(&self, n: usize) -> Result<()> {
        self.nodes[n].process.kill9()
    }

    /// Starts a node again on its data, after a SIGKILL if it still runs; does not wait until it is ready.
    ///
    /// # Errors
    /// When the program can not be started.
    pub fn restart(&self, n: usize) -> Result<()> {
        self.kill9(n)?;
        self.nodes[n].process.start_again()
    }

    /// SIGSTOP: connections stay open, and nothing is answered.
    ///
    /// # Errors
    /// When it does not run.
    pub fn freeze(&self, n: usize) -> Result<()> {
        self.nodes[n].process.signal("STOP")
    }

    /// SIGCONT.
    ///
    /// # Errors
    /// When it does not run.
    pub fn thaw(&self, n: usize) -> Result<()> {
        self.nodes[n].process.signal("CONT")
    }

    /// Cuts a node off from everything.
    pub fn isolate(&self, n: usize) {
        self.cut_peers(n);
        self.cut_clients(n);
    }

    /// Cuts a node off from the other nodes; clients still reach it.
    pub fn cut_peers(&self, n: usize) {
        for other in (0..NODES).filter(|&other| other != n) {
            self.cut_one_way(n, other);
            self.cut_one_way(other, n);
        }
    }

    /// Cuts a node off from all clients; the other nodes still reach it.
    pub fn cut_clients(&self, n: usize) {
        self.clients(n).cut();
    }

    /// Nothing arrives any more at `to` that `from` sends; the other direction is as it was.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.links.line(from, to).set(Conditions::Silent);
    }

    /// Nobody hears any more what a node says; it hears everybody.
    pub fn silence(&self, n: usize) {
        for other in (0..NODES).filter(|&other| other != n) {
            self.cut_one_way(n, other);
        }
        self.clients(n).down().set(Conditions::Silent);
    }

    /// The same conditions for all that a node sends to and gets from other nodes and clients.
    pub fn set_conditions(&self, n: usize, conditions: Conditions) {
        for other in (0..NODES).filter(|&other| other != n) {
            self.links.line(n, other).set(conditions);
            self.links.line(other, n).set(conditions);
        }
        self.clients(n).set(conditions);
    }

    /// Ends all faults of the network.
    pub fn heal(&self) {
        for n in 0..NODES {
            self.heal_node(n);
        }
    }

    /// Ends all faults of the network around one node.
    pub fn heal_node(&self, n: usize) {
        self.set_conditions(n, Conditions::Good);
        self.clients(n).restore();
    }

    /// Ends all faults but those of disks: heals the network, lets frozen nodes go on, and starts dead ones.
    ///
    /// # Errors
    /// When one can not be started.
    pub fn relieve(&self) -> Result<()> {
        self.heal();
        for (n, node) in self.nodes.iter().enumerate() {
            if node.process.pid().is_err() || node.process.ended()?.is_some() {
                self.restart(n)?;
            } else {
                self.thaw(n)?;
            }
        }
        Ok(())
    }

    /// As [`relieve`](Self::relieve), and waits until all nodes are ready.
    ///
    /// # Errors
    /// When one does not get ready.
    pub async fn mend(&self) -> Result<()> {
        self.relieve()?;
        for n in 0..NODES {
            self.wait_until_ready(n).await?;
        }
        Ok(())
    }

    /// Waits until a node is healthy: it runs, knows a leader, and has no alarm.
    ///
    /// # Errors
    /// When it is not after a minute, or ended by itself.
    pub async fn wait_until_ready(&self, n: usize) -> Result<()> {
        let end = Instant::now() + READY;
        loop {
            let reason = match timeout(PATIENCE, http::get(&self.direct(n), "/health")).await {
                Ok(Ok(body)) if body.contains(r#""health":"true""#) => return Ok(()),
                Ok(Ok(body)) => body,
                Ok(Err(error)) => format!("{error:#}"),
                Err(_elapsed) => "no answer".to_owned(),
            };
            if let Some(last_words) = self.nodes[n].process.ended()? {
                bail!("node {n} ended: {last_words}");
            }
            if Instant::now() >= end {
                bail!("node {n} was not healthy after {} s: {reason}", READY.as_secs());
            }
            sleep(TICK).await;
        }
    }

    /// Lets the store take itself for full, as when its quota is used up.
    ///
    /// # Errors
    /// When there is no leader after a minute.
    pub async fn alarm(&self) -> Result<()> {
        self.post_to_any("/v3/maintenance/alarm", r#"{"action":"ACTIVATE","alarm":"NOSPACE"}"#)
            .await
            .map(drop)
    }

    /// Ends the alarm of a store that is full, at all nodes that raised it.
    ///
    /// # Errors
    /// When there is no leader after a minute.
    pub async fn disarm(&self) -> Result<()> {
        let answer = self.post_to_any("/v3/maintenance/alarm", r#"{"action":"GET"}"#).await?;
        let answer: serde_json::Value = serde_json::from_str(&answer)?;
        let raised = answer.pointer("/alarms").and_then(|alarms| alarms.as_array());
        for alarm in raised.into_iter().flatten() {
            let member = alarm.pointer("/memberID").and_then(|id| id.as_str()).unwrap_or("0");
            let request = format!(r#"{{"action":"DEACTIVATE","memberID":"{member}","alarm":"NOSPACE"}}"#);
            self.post_to_any("/v3/maintenance/alarm", &request).await?;
        }
        Ok(())
    }

    /// Posts to the JSON gateways until one node answers.
    async fn post_to_any(&self, path: &str, json: &str) -> Result<String> {
        let end = Instant::now() + READY;
        loop {
            for n in 0..NODES {
                match timeout(PATIENCE * 2, self.gateway(n, path, json)).await {
                    Ok(Ok(answer)) => return Ok(answer),
                    Ok(Err(error)) if Instant::now() >= end => return Err(error),
                    _ => {}
                }
            }
            if Instant::now() >= end {
                bail!("no node answers {path} after {} s", READY.as_secs());
            }
            sleep(TICK).await;
        }
    }

    /// Posts to the JSON gateway of a node, past all faults of the network: `/v3/kv/compaction`. It is root who does, once
    /// there are users.
    ///
    /// # Errors
    /// When it does not answer, or with anything but 200.
    pub async fn gateway(&self, n: usize, path: &str, json: &str) -> Result<String> {
        let token = if self.has_users { Some(self.token(n).await?) } else { None };
        http::post_as(token.as_deref(), &self.direct(n), path, json).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The nodes remove their own folders afterwards; what is left is the one around them.
        let around = self.nodes.first().and_then(|node| node.process.folder().parent().map(PathBuf::from));
        self.nodes.clear();
        if let Some(around) = around {
            // A failure leaves a folder among the temporary files, which no test result should depend on.
            let _ = std::fs::remove_dir_all(around);
        }
    }
}
