//! Requests: made within their time, compared with the known history of the store, and made again where that
//! can do no harm.

pub(crate) mod background;
mod backoff;
pub(crate) mod batch;
mod health;
pub(crate) mod history;
mod keep_open;
mod read;
mod refusal;
mod retry;
mod rpc;
pub(crate) mod timer;
mod undo;
pub(crate) mod verify;

pub use background::Background;
pub(crate) use backoff::pauses;
pub(crate) use keep_open::{KeepOpen, Kept};
pub(crate) use read::{Look, Read, entry, pairs, version};
pub(crate) use refusal::Refusal;
pub(crate) use retry::Repeat;
pub(crate) use rpc::{Beliefs, Rpc, RpcOptions};
pub(crate) use undo::heard_again;
