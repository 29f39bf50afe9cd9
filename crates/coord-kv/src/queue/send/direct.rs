//! The direct way: a caller sends its request itself, where a store in the process answers at once.
//!
//! Nothing is gained by a batch then, and a task on another thread would cost far more than the request. A request
//! that is not answered at once goes on in the task, and later ones of its queue wait there.

use std::sync::{
    Arc, Mutex, MutexGuard, Weak,
    atomic::{AtomicUsize, Ordering},
};

use coord_api::backend::lock;
use futures::{FutureExt, future::BoxFuture};
use tokio::task::unconstrained;

use super::{Answered, Request, Work, send_batch};
use crate::request::Rpc;

/// The direct way of one client.
#[derive(Debug)]
pub(super) struct Direct {
    rpc: Weak<Rpc>,
    /// Number of requests that the task has.
    with_task: Arc<AtomicUsize>,
    turn: Mutex<()>,
}

impl Direct {
    pub(super) fn new(rpc: &Arc<Rpc>, with_task: Arc<AtomicUsize>) -> Self {
        Self { rpc: Arc::downgrade(rpc), with_task, turn: Mutex::new(()) }
    }

    /// Lets one caller after the other ask, so that requests are sent in the order in which they were made.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    /// Sends a request, unless the task has others. Returns what is left to do.
    pub(super) fn send(&self, request: Request) -> Option<Work> {
        let (0, Some(rpc)) = (self.with_task.load(Ordering::SeqCst), self.rpc.upgrade()) else {
            return Some(Work::Request(request));
        };
        request.reply.sent();
        let lane = request.queue.clone();
        let mut sending: BoxFuture<'static, Answered> =
            Box::pin(unconstrained(send_batch(rpc, vec![request], false)));
        match (&mut sending).now_or_never() {
            Some(_answered) => None,
            None => Some(Work::Begun(lane, sending)),
        }
    }
}
