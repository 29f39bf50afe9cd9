//! HTTP/2 transport: one connection to one instance, from the socket up.

mod address;
mod body_sender;
mod connection;
mod h2_client;
mod http2;
mod ping_backoff;
mod pings;
mod request_body;
mod socket;

pub(crate) use self::{
    connection::{Connection, connect},
    http2::{SendError, SendErrorKind, error_chain},
    ping_backoff::PingBackoff,
    request_body::RecoverableBody,
};
