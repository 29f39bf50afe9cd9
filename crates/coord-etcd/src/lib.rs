//! The etcd backend of coord. Services depend on the crate `coord` with the feature `etcd`; this crate is for
//! users who want nothing else.
//!
//! Everything that must happen in time (renewals, deadlines, clean-up, the connection itself) runs on one
//! thread of this crate's own. A busy runtime of the user's can not starve it there. See [`Client::connect`].

mod background;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod bare;
mod client;
mod connect;
mod error;
#[cfg(feature = "fuzz")]
#[doc(hidden)]
pub mod fuzz;
mod options;
mod store;
mod telemetry;
mod transport;

pub use client::Client;
pub use coord_kv::{Layout, Roots};
pub use options::{Connect, EtcdConfig, PlaintextPassword, TlsFiles};
pub use transport::{
    credentials::{Credentials, CredentialsProvider},
    version::{MemberVersion, ServerVersion},
};
