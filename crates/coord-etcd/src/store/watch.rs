//! The stream of watches of etcd, no matter whether the client or the server numbers them.

use std::{collections::HashMap, time::Duration};

use coord_api::Error;
use coord_grpc::Attempts;
use coord_kv::store::{Canceled, Failure, Range, WatchAnswer, WatchRequest, WatchStream};
use etcd_client::{WatchClient, WatchOptions, WatchRequestSender, WatchResponse, WatchResponseStream};
use tokio::time::{Instant, sleep_until};

use super::{
    convert::{self, header},
    watch_ids::Asked,
};
use crate::{error::classify, transport::channel::noted};

const OPERATION: &str = "watch";

/// The time that is told when the stream could not be opened.
const OPENING: Duration = Duration::from_secs(5);

/// A stream of watches.
pub(super) struct Stream {
    requests: WatchRequestSender,
    answers: WatchResponseStream,
    /// The requests for watches on the stream, and how the server numbers them.
    asked: Asked,
    /// The watches that the stream was not asked for yet, by their ids.
    unsent: HashMap<i64, WatchRequest>,
    /// The watch to ask for now. Kept until that is sent, since a caller may drop the future that does it.
    sending: Option<WatchRequest>,
}

fn failure(error: etcd_client::Error) -> Failure {
    classify(OPERATION, OPENING, error)
}

/// Returns the key of a watch, and how it is asked for.
fn options(request: &WatchRequest) -> (&str, WatchOptions) {
    let options = WatchOptions::new().with_watch_id(request.id);
    let (key, options) = match &request.range {
        Range::Key(key) => (key, options),
        Range::Prefix(prefix) => (prefix, options.with_prefix()),
    };
    let options = match request.from {
        Some(revision) => options.with_start_revision(revision),
        None => options,
    };
    (key, options)
}

impl Stream {
    /// Opens a stream with the request for one watch. Requests for the others follow.
    pub(super) async fn open(
        mut client: WatchClient,
        tries: &Attempts,
        watches: Vec<WatchRequest>,
    ) -> Result<Self, Failure> {
        let mut asked = Asked::new(watches.iter().map(|watch| watch.id));
        let mut unsent: HashMap<_, _> = watches.into_iter().map(|watch| (watch.id, watch)).collect();
        let first = asked.next(Instant::now()).and_then(|id| unsent.remove(&id));
        let first = first.expect("a stream is opened when something is watched");
        let (key, options) = options(&first);
        let opened = noted(tries, client.watch(key, Some(options))).await.map_err(failure)?;
        let (requests, answers) = opened.split();
        Ok(Self { requests, answers, asked, unsent, sending: None })
    }

    /// Asks for the watches that may begin now.
    async fn send(&mut self) -> Result<(), Failure> {
        loop {
            if self.sending.is_none() {
                let Some(id) = self.asked.next(Instant::now()) else { return Ok(()) };
                self.sending = self.unsent.remove(&id);
            }
            if let Some(request) = &self.sending {
                let (key, options) = options(request);
                self.requests.watch(key, Some(options)).await.map_err(failure)?;
            }
            self.sending = None;
        }
    }

    /// Reads one answer.
    fn read(&mut self, answer: &WatchResponse) -> WatchAnswer {
        let number = answer.watch_id();
        let id = if answer.created() { self.asked.created(number) } else { self.asked.id(number) };
        let canceled = answer.canceled().then(|| canceled(answer.cancel_reason()));
        if let Some(id) = id.filter(|_| canceled.is_some()) {
            // The server has ended it.
            let _ = self.asked.end(id);
        }
        WatchAnswer {
            header: header(answer.header()),
            id,
            is_created: answer.created(),
            canceled,
            changes: answer.events().iter().filter_map(convert::change).collect(),
        }
    }
}

#[async_trait::async_trait]
impl WatchStream for Stream {
    async fn watch(&mut self, request: WatchRequest) -> Result<(), Failure> {
        self.asked.want(request.id);
        self.unsent.insert(request.id, request);
        self.send().await
    }

    async fn cancel(&mut self, id: i64) -> Result<(), Failure> {
        self.unsent.remove(&id);
        match self.asked.end(id) {
            Some(number) => self.requests.cancel(number).await.map_err(failure),
            None => Ok(()),
        }
    }

    async fn next(&mut self) -> Result<Option<WatchAnswer>, Failure> {
        self.send().await?;
        let overdue = self.asked.overdue_at();
        tokio::select! {
            answer = self.answers.message() => {
                let answer = answer.map_err(failure)?;
                Ok(answer.map(|answer| self.read(&answer)))
            }
            () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => {
                tracing::debug!("a watch was not begun in time");
                Err(Failure::timeout(OPERATION, OPENING))
            }
        }
    }
}

/// Returns why a watch was cancelled.
fn canceled(reason: &str) -> Canceled {
    let is_refusal =
        ["permission denied", "PermissionDenied", "user name is empty", "auth token", "auth store is old"]
            .iter()
            .any(|sign| reason.contains(sign));
    if !is_refusal {
        return Canceled::Compacted;
    }
    let (operation, source) = (OPERATION, reason.to_owned().into());
    Canceled::NotAllowed(if reason.contains("user name is empty") {
        Error::Unauthenticated { operation, source }
    } else {
        Error::PermissionDenied { operation, source }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_told_from_compaction_by_their_words() {
        assert!(matches!(canceled("mvcc: required revision has been compacted"), Canceled::Compacted));
        for denied in ["rpc error: code = PermissionDenied", "etcdserver: invalid auth token"] {
            assert!(matches!(canceled(denied), Canceled::NotAllowed(Error::PermissionDenied { .. })));
        }
        let no_user = canceled("etcdserver: user name is empty");
        assert!(matches!(no_user, Canceled::NotAllowed(Error::Unauthenticated { .. })));
    }
}
