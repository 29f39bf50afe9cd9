//! In-process backend of coord: the whole contract without a server, for unit tests and single processes.
//!
//! A [`Store`] is what etcd is elsewhere; each [`Client`] of it plays one process. Leases, queues, fencing
//! tokens, watches and losses behave as on etcd, and the same conformance suite says so.
//!
//! ```
//! use std::time::Duration;
//! use coord_api::{DistributedLock, Provider};
//! use coord_memory::Store;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
//! let store = Store::new();
//! let (one, other) = (store.client(), store.client());
//! let guard = one.lock().acquire("nightly-report", Duration::from_secs(30)).await?;
//! assert!(other.lock().try_acquire("nightly-report", Duration::from_secs(30)).await?.is_none());
//! guard.unlock().await?;
//! # Ok(()) }
//! ```
//!
//! # Time
//! Every deadline is on tokio's clock. Under `#[tokio::test(start_paused = true)]` a test that waits for an
//! expiry takes no time. `tokio::time::advance` is a freeze of the whole process: no renewal is sent on the
//! way, so what it jumps over expires, as it should. Let time pass with `tokio::time::sleep` to see renewals.
//!
//! # Executors
//! Every call and every future works on any executor. Leases are renewed on a thread of coord's, also beside a runtime
//! that nobody drives any more. Where a test pauses tokio's clock, everything is on the runtime of that test.
//!
//! # Faults
//! What goes wrong in production can be made to go wrong in a test: cut a client off
//! ([`Client::disconnect`]), stall it ([`Client::stall`]), fail its next calls ([`Client::fail_next`]), lose the
//! answers to its writes ([`Client::lose_answers`]), revoke leases ([`Store::revoke_leases`],
//! [`Client::revoke_leases`]), forget the history of watches ([`Store::compact`]), and write or delete what another program would ([`Store::put_raw`],
//! [`Store::delete_raw`]).
//!
//! # Life of a client
//! A client is closed by [`close`](coord_api::Provider::close), or when the last thing that uses it is
//! dropped: the client itself and its clones, what `lock()`, `registry()`, `config()` and
//! `instance_id_allocator()` returned, guards, registrations and watches. Dropping needs no runtime.

mod client;
mod config;
#[cfg(test)]
mod executors;
mod network;
mod options;
mod store;
#[cfg(test)]
mod tests;

pub use client::Client;
pub use network::NetworkFaults;
pub use options::Options;
pub use store::{
    Store, WeakStore,
    faults::{Permission, Restart, Space},
};
