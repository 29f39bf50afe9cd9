//! Whether the store still has the history that this client has seen: asked whenever a connection was made anew, and when
//! an answer raises a doubt. Where it has another one, all that was believed of the store ends here.

use std::sync::{
    Weak,
    atomic::{AtomicU64, Ordering},
};

use coord_api::{Error, LossReason, Result};
use coord_grpc::{Attempts, Made};
use etcd_client::{
    DeleteResponse, GetOptions, GetResponse, LeaseGrantResponse, LeaseRevokeResponse,
    LeaseTimeToLiveResponse, PutResponse, ResponseHeader, TxnOp, TxnOpResponse, TxnResponse,
};

use crate::{
    core::Core,
    error::{Failure, is_compacted, is_future},
    history::{Consistency, Heard, Marks, Seen, Sent},
    keys::Range,
    read::{Look, pairs, revision},
    request::Repeat,
    watch::{Read, pauses},
};

const OPERATION: &str = "verify the history";

/// The most keys of one watch that are compared with what was read of them.
const MOST_READ: i64 = 10_000;

/// How often marks are looked for that changed while they were looked for.
const MOST_LOOKS: usize = 3;

/// An answer of etcd, whatever it was asked.
pub(crate) trait Answered {
    /// Its header.
    fn header(&self) -> Option<&ResponseHeader>;

    /// Whether it is given after all that was answered before; `None` if that depends on what was asked.
    fn is_linearizable(&self) -> Option<bool> {
        Some(true)
    }
}

macro_rules! answered {
    ($($answer:ty, $linearizable:expr;)*) => {$(
        impl Answered for $answer {
            fn header(&self) -> Option<&ResponseHeader> {
                self.header()
            }

            fn is_linearizable(&self) -> Option<bool> {
                $linearizable
            }
        }
    )*};
}

answered! {
    GetResponse, Some(true);
    PutResponse, Some(true);
    DeleteResponse, Some(true);
    LeaseGrantResponse, Some(true);
    LeaseRevokeResponse, Some(false);
    LeaseTimeToLiveResponse, Some(false);
    // Any member answers one alone that only looks and need not be the latest.
    TxnResponse, None;
}

impl<S, T: Answered> Answered for (S, T) {
    fn header(&self) -> Option<&ResponseHeader> {
        self.1.header()
    }

    fn is_linearizable(&self) -> Option<bool> {
        self.1.is_linearizable()
    }
}

/// Verifications that share one request.
#[derive(Debug, Default)]
pub(crate) struct Verifications {
    /// How many began,
    begun: AtomicU64,
    /// and which of them was done last, with the revision up to which the history is known to be the store's; locked
    /// while one is made.
    done: tokio::sync::Mutex<(u64, i64)>,
}

/// What a look at the marks tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The store has this history up to a revision.
    Same(i64),
    Replaced,
    /// Marks changed meanwhile.
    Again,
}

impl Core {
    /// Compares an answer with what is known. All that was believed ends if it is of another history.
    ///
    /// # Errors
    /// When it is of another cluster, beside the one that is known.
    pub(crate) async fn heard<T: Answered>(
        &self,
        sent: Sent,
        answer: &T,
        repeat: Repeat,
        tries: &Attempts,
    ) -> Result<(), Failure> {
        let Some(header) = answer.header() else { return Ok(()) };
        let is_linearizable = answer.is_linearizable().unwrap_or(repeat == Repeat::WithoutEffect);
        let consistency = if is_linearizable { Consistency::Linearizable } else { Consistency::Local };
        let member = if self.members > 1 { tries.instance() } else { None };
        let from = (header.cluster_id(), member.as_deref());
        match self.history.heard(sent, from, header.revision(), consistency) {
            // One that is alone is never behind.
            Heard::Behind if self.members == 1 => self.history.doubts.notify_one(),
            Heard::Same | Heard::Behind => {}
            Heard::Replaced => self.end_beliefs("an answer is of an earlier revision"),
            Heard::OtherCluster { member: known, .. } => {
                return self.judge_cluster(sent, (&known, member.as_deref())).await;
            }
        }
        Ok(())
    }

    /// Compares an answer on a stream with what is known. It may be overtaken by others, so its revision raises no doubt.
    pub(crate) fn heard_on_stream(&self, header: Option<&ResponseHeader>, tries: &Attempts) {
        let Some(header) = header else { return };
        let member = if self.members > 1 { tries.instance() } else { None };
        let from = (header.cluster_id(), member.as_deref());
        let sent = self.history.now();
        let heard = self.history.heard(sent, from, header.revision(), Consistency::Local);
        if matches!(heard, Heard::OtherCluster { .. }) {
            self.history.has_stranger.store(true, Ordering::Relaxed);
            self.history.doubts.notify_one();
        }
    }

    /// Makes sure that the store has the history that is known, or ends what was believed. The revision up to which that
    /// is shown. Those who ask at the same time share one request.
    pub(crate) async fn verify(&self) -> Result<i64, Failure> {
        let verifications = &self.verifications;
        let mark = verifications.begun.load(Ordering::SeqCst);
        let mut done = verifications.done.lock().await;
        // Only one that began after the mark was certainly sent after whatever raised the doubt.
        if done.0 > mark {
            return Ok(done.1);
        }
        let this = verifications.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let shown = self.look_for_marks().await?;
        *done = (this, shown);
        Ok(shown)
    }

    async fn look_for_marks(&self) -> Result<i64, Failure> {
        for _ in 0..MOST_LOOKS {
            let sent = self.history.now();
            let held = self.sessions.held();
            let marks = self.history.marks(|lease| held.contains(&lease));
            let verdict = match self.find(&marks, true).await {
                Err(failure) if is_future(&failure) => Verdict::Replaced,
                Err(failure) if is_compacted(&failure) => self.without_past(&marks).await?,
                // A role that was changed shows nothing.
                Err(Failure { error: Error::PermissionDenied { .. }, .. }) => Verdict::Same(0),
                found => judged(&marks, &found?),
            };
            match verdict {
                Verdict::Same(shown) if self.history.now().epoch() == sent.epoch() => return Ok(shown),
                // It ended with one of these answers.
                Verdict::Same(_) => return Ok(0),
                Verdict::Again => {}
                Verdict::Replaced => {
                    if self.history.end(sent) {
                        self.end_beliefs("it does not have what this client wrote or saw");
                    }
                    return Ok(0);
                }
            }
        }
        Ok(0)
    }

    /// Looks for marks in what the store has now, since it has compacted what it had when they were made.
    async fn without_past(&self, marks: &Marks) -> Result<Verdict, Failure> {
        let found = self.find(marks, false).await?;
        Ok(match judged(marks, &found) {
            // A key that this client gives back or writes again at this moment is not found as it was either.
            Verdict::Again if self.history.still_keeps(marks) => {
                tracing::warn!("etcd has compacted what could tell whether its history is another one");
                Verdict::Replaced
            }
            verdict => verdict,
        })
    }

    /// Returns whether the store had what was read of a range, at the revision of the read. If it had something else, it has
    /// another history. It may have compacted that, or not tell it in one answer.
    pub(crate) async fn has_read(&self, range: &Range, read: Option<Read>) -> Result<bool, Failure> {
        let Some(read) = read else { return Ok(false) };
        let sent = self.history.now();
        let options = GetOptions::new().with_keys_only().with_revision(read.revision).with_limit(MOST_READ);
        let (key, options) = match range {
            Range::Key(key) => (key, options),
            Range::Prefix(prefix) => (prefix, options.with_prefix()),
        };
        let is_same = match self.get(OPERATION, &**key, Some(options)).await {
            Err(failure) if is_compacted(&failure) => return Ok(false),
            Err(Failure { error: Error::PermissionDenied { .. }, .. }) => return Ok(false),
            Err(failure) if is_future(&failure) => false,
            found => {
                let found = found?;
                if found.more() {
                    return Ok(false);
                }
                Read::of(read.revision, found.kvs()) == read
            }
        };
        if !is_same && self.history.end(sent) {
            self.end_beliefs("it does not have what this client read");
        }
        Ok(is_same)
    }

    /// Asks for marks; with `past` also for what was at their revisions.
    async fn find(&self, marks: &Marks, past: bool) -> Result<Found, Failure> {
        let keys_only = || GetOptions::new().with_keys_only();
        let mut looks = Vec::new();
        if let Some((key, kept)) = &marks.kept {
            looks.push(TxnOp::get(key.as_str(), Some(keys_only())));
            if past {
                looks.push(TxnOp::get(key.as_str(), Some(keys_only().with_revision(kept.revision))));
            }
        }
        for given_back in &marks.given_back {
            looks.push(TxnOp::get(given_back.key.as_str(), Some(keys_only())));
        }
        if past {
            for Seen { key, revision, .. } in &marks.seen {
                looks.push(TxnOp::get(key.as_str(), Some(GetOptions::new().with_revision(*revision))));
            }
            // A deletion is shown by what was there before it.
            let seen = marks.seen.iter().filter(|seen| seen.is_deletion());
            let deletions = seen.map(|seen| (&seen.key, seen.revision));
            let given_back = marks.last_given_back.iter().map(|last| (&last.key, last.revision));
            for (key, revision) in deletions.chain(given_back) {
                looks.push(TxnOp::get(key.as_str(), Some(keys_only().with_revision(revision - 1))));
            }
        }
        looks.push(TxnOp::get(self.keys.probe(), Some(keys_only())));
        let answer = self.look(OPERATION, Look::of(looks)).await?;
        Ok(Found { answers: answer.op_responses(), past, now: revision(answer.header()) })
    }

    /// Verifies once; `false` if that has to be tried again.
    async fn is_verified(&self) -> bool {
        let has_stranger = self.history.has_stranger.swap(false, Ordering::Relaxed);
        if self.refusal.check().is_err() || has_stranger && self.members > 1 {
            return self.check_clusters().await.is_ok();
        }
        match self.verify().await {
            Ok(_) => true,
            Err(failure) => {
                tracing::debug!(error = %failure.error, "the history of etcd is not verified");
                self.refusal.check().is_ok() && !failure.error.is_retryable()
            }
        }
    }

    /// Ends all that was believed of the store, whose history is another one now.
    pub(crate) fn end_beliefs(&self, why: &str) {
        tracing::warn!(why, "etcd has another history, as after a restore: all that was held is lost");
        self.sessions.lose_all(LossReason::Revoked);
        self.forget_slots();
        self.records.forget_revisions();
        self.hub.begin_anew();
    }
}

/// What was found of marks.
struct Found {
    answers: Vec<TxnOpResponse>,
    past: bool,
    now: i64,
}

/// Judges what was found of marks, in the order in which [`Core::find`] asks for them.
fn judged(marks: &Marks, found: &Found) -> Verdict {
    let mut answers = found.answers.iter();
    let mut next = || pairs(answers.next()).first();
    let mut shown = 0;
    if let Some((_, kept)) = &marks.kept {
        let is_kept = kept.is(next());
        // One that somebody deleted was there all the same.
        let was_kept = if found.past { kept.is(next()) } else { is_kept };
        if !was_kept {
            return if found.past { Verdict::Replaced } else { Verdict::Again };
        }
        shown = kept.revision;
    }
    if marks.given_back.iter().any(|given_back| given_back.is_back(next())) {
        return Verdict::Replaced;
    }
    if found.past {
        for seen in &marks.seen {
            if !seen.is(next()) {
                return Verdict::Replaced;
            }
            shown = shown.max(seen.revision);
        }
        for _ in marks.seen.iter().filter(|seen| seen.is_deletion()) {
            if next().is_none() {
                return Verdict::Replaced;
            }
        }
        if let Some(last) = &marks.last_given_back {
            if next().is_none() {
                return Verdict::Replaced;
            }
            shown = shown.max(last.revision);
        }
    }
    Verdict::Same(shown.min(found.now))
}

/// Verifies the history whenever a connection was made anew or there is a doubt; ends with the client.
pub(crate) async fn keep_verified(core: Weak<Core>, mut made: Made) {
    let Some(history) = core.upgrade().map(|core| core.history.clone()) else { return };
    loop {
        tokio::select! {
            is_there = made.next() => match is_there {
                true if history.has_marks() => {}
                // Each answer is compared with what else is known.
                true => continue,
                false => return,
            },
            () = history.doubts.notified() => {}
        }
        let mut pauses = pauses();
        while let Some(core) = core.upgrade().filter(|core| !core.is_closed()) {
            if core.is_verified().await {
                break;
            }
            drop(core);
            tokio::time::sleep(pauses.next().unwrap_or_default()).await;
        }
    }
}
