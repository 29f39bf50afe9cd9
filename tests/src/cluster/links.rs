//! The network between nodes: a line in each direction for each two of them.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result};

use crate::proxy::{Line, Proxy};

use super::NODES;

/// Where a node listens, in its own folder.
pub(super) const LISTEN: &str = "unix://own:1";

/// Over TCP, etcd itself gives up a connection between nodes on which it has heard nothing for this long. On socket
/// files it does not.
const SILENCE: Duration = Duration::from_secs(5);

/// The address of a node, as all members know it.
pub(super) fn url(n: usize) -> String {
    format!("unix://n{n}:1")
}

/// All lines, and the proxies that use them: each carries what its two nodes send to each other over the connections
/// that one of them dialled.
#[derive(Debug)]
pub(super) struct Links {
    /// By sender, then by receiver.
    lines: Vec<Vec<Line>>,
    _proxies: Vec<Proxy>,
}

impl Links {
    /// Opens them between nodes that run in these folders.
    pub(super) fn open(folders: &[PathBuf]) -> Result<Self> {
        let lines: Vec<Vec<Line>> =
            (0..NODES).map(|_| (0..NODES).map(|_| Line::default()).collect()).collect();
        let mut proxies = Vec::new();
        for from in 0..NODES {
            // A node dials itself now and then; with a line that nobody cuts.
            for to in 0..NODES {
                let both = (lines[from][to].clone(), lines[to][from].clone());
                let proxy = proxy(&folders[from], to, &folders[to], both);
                proxies.push(proxy.context("cannot open a socket file among the temporary files")?);
            }
        }
        Ok(Self { lines, _proxies: proxies })
    }

    pub(super) fn line(&self, from: usize, to: usize) -> &Line {
        &self.lines[from][to]
    }
}

fn proxy(dialer: &Path, to: usize, target: &Path, lines: (Line, Line)) -> io::Result<Proxy> {
    Proxy::between(dialer.join(format!("n{to}:1")), target.join("own:1"), lines, SILENCE)
}
