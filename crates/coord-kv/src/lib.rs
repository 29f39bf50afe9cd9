//! The implementation of coord over any store: every area over one small trait, [`store::Store`]. Authors of backends use
//! it; services depend on the crate `coord`.
//!
//! Nothing in here does I/O of its own or knows a certain store. [`Client::new`] makes a provider of a store.
//!
//! Each floor imports only the floors below it. From the top:
//!
//! 1. `client`
//! 2. `lock`, `registry`, `config` and `ids`
//! 3. `queue` and `commit`
//! 4. `session` and `watch`
//! 5. `request`
//! 6. `keyspace` and `store`

mod client;
mod commit;
mod config;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod ids;
mod keyspace;
#[cfg(test)]
mod layers;
mod lock;
mod queue;
mod registry;
mod request;
mod session;
pub mod store;
mod watch;

pub use client::{Client, Options};
pub use keyspace::{CheckedRoots, Layout, Roots};
pub use request::Background;
