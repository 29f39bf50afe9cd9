//! The fast path to etcd, where there is one endpoint: a second connection to it, driven by the runtime that
//! the client was made on.
//!
//! The connection that coord's own thread drives can not be starved by anybody. But a request over it wakes
//! that thread, which wakes the caller in turn. In an otherwise idle process this takes a sixth of the time
//! of a request. So a request of a task on that runtime is first tried on the fast path.
//!
//! All else goes over the main connection:
//!
//! - Requests that coord makes by itself.
//! - Requests from another runtime.
//! - Each further attempt.
//! - Everything while this connection is broken or when the runtime is gone.
//!
//! There is no fast path among several endpoints: a member that is away or has no leader would get each first
//! attempt.

use coord_grpc::Connection;
use etcd_client::KvClient;
use tokio::runtime::{Handle, Id};

/// See [the module](self).
pub(crate) struct LocalConnection {
    runtime: Id,
    connection: Connection,
    kv: KvClient,
}

impl LocalConnection {
    /// Takes a connection that was made on `runtime`, and what makes requests over it.
    pub(crate) fn new(runtime: &Handle, connection: Connection, kv: KvClient) -> Self {
        Self { runtime: runtime.id(), connection, kv }
    }

    /// Returns the fast path, if the caller may take it.
    pub(crate) fn kv(&self) -> Option<KvClient> {
        let here = Handle::try_current().is_ok_and(|here| here.id() == self.runtime);
        (here && self.connection.is_ready()).then(|| self.kv.clone())
    }
}
