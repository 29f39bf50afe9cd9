//! The etcd backend of coord. Services depend on the crate `coord` with the feature `etcd`; this crate is for
//! those who want nothing else.
//!
//! Everything that must happen in time (renewals, deadlines, clean-up, the connection itself) runs on one
//! thread of this crate's own, where a busy runtime of the user's can not starve it. See
//! [`Client::connect`].

mod background;
mod client;
mod commit;
mod config;
mod connect;
mod core;
mod endpoint;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod group;
mod ids;
mod keys;
mod layout;
mod lock;
mod options;
mod place;
mod queue;
mod read;
mod records;
mod registry;
mod session;
mod watch;

pub use client::Client;
pub use layout::{Layout, Roots};
pub use options::{Connect, EtcdConfig, TlsFiles};
