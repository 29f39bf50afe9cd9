//! The way to the members of etcd: connections, TLS, who this client is, and what each member says of itself.

pub(crate) mod auth;
pub(crate) mod channel;
pub(crate) mod cluster;
pub(crate) mod credentials;
pub(crate) mod endpoint;
mod files;
pub(crate) mod local_connection;
pub(crate) mod tls;
pub(crate) mod version;
