//! The etcd backend of coord. Services depend on the crate `coord` with the feature `etcd`; this crate is for
//! those who want nothing else.
//!
//! Everything that must happen in time (renewals, deadlines, clean-up, the connection itself) runs on one
//! thread of this crate's own, where a busy runtime of the user's can not starve it. See
//! [`Client::connect`].

mod auth;
mod background;
mod client;
mod cluster;
mod commit;
mod config;
mod connect;
mod core;
mod credentials;
mod endpoint;
mod error;
mod files;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod group;
mod health;
mod history;
mod ids;
mod keys;
mod lanes;
mod layout;
mod lock;
mod near;
mod options;
mod place;
mod queue;
mod read;
mod records;
mod registry;
mod request;
mod session;
mod telemetry;
mod tls;
mod transport;
mod verify;
mod version;
mod watch;

pub use client::Client;
pub use credentials::{Credentials, CredentialsProvider};
pub use layout::{Layout, Roots};
pub use options::{Connect, EtcdConfig, PlaintextPassword, TlsFiles};
pub use version::{MemberVersion, ServerVersion};
