//! Verification that the store still has the history that this client has seen, and was not restored. It is
//! made whenever a connection was made anew, and when an answer raises a doubt. If the store has another
//! history, all that was believed of the store ends here.

use std::sync::{
    Weak,
    atomic::{AtomicU64, Ordering},
};

use coord_api::{Error, Result};
use futures::{StreamExt, stream::BoxStream};

use crate::{
    request::{
        Look, Read, Repeat, Rpc, backoff,
        history::{Consistency, Heard, Marks, Seen, Sent},
        pairs, timer,
    },
    store::{
        Attempts, Effect, Failure, GetAnswer, GetOptions, Granted, Header, LeaseStatus, Op, OpResult, Range,
        TxnAnswer,
    },
};

const OPERATION: &str = "verify the history";

/// The most keys of one watch that are compared with an earlier read.
const MOST_READ: i64 = 10_000;

/// Most looks for marks that changed while they were looked for.
const MOST_LOOKS: usize = 3;

/// Answer of the store, to any request.
pub(crate) trait Answered {
    /// Returns its origin.
    fn header(&self) -> Header;

    /// Returns whether the answer is given after all that was answered before; `None` if that depends on the
    /// question.
    fn is_linearizable(&self) -> Option<bool> {
        Some(true)
    }
}

macro_rules! answered {
    ($($answer:ty, $linearizable:expr;)*) => {$(
        impl Answered for $answer {
            fn header(&self) -> Header {
                self.header
            }

            fn is_linearizable(&self) -> Option<bool> {
                $linearizable
            }
        }
    )*};
}

answered! {
    GetAnswer, Some(true);
    Granted, Some(true);
    LeaseStatus, Some(false);
    // Any member answers one alone that only looks and need not be the latest.
    TxnAnswer, None;
}

/// The answer to a revocation.
impl Answered for Header {
    fn header(&self) -> Header {
        *self
    }

    fn is_linearizable(&self) -> Option<bool> {
        Some(false)
    }
}

impl<S, T: Answered> Answered for (S, T) {
    fn header(&self) -> Header {
        self.1.header()
    }

    fn is_linearizable(&self) -> Option<bool> {
        self.1.is_linearizable()
    }
}

/// Verifications that share one request.
#[derive(Debug, Default)]
pub(crate) struct Verifications {
    /// Number of verifications that began.
    begun: AtomicU64,
    /// Number of the verification that was done last, with the revision up to which the known history is the
    /// store's. Locked while a verification is made.
    done: tokio::sync::Mutex<(u64, i64)>,
}

/// Outcome of a look at the marks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// The store has this history up to a revision.
    Same(i64),
    Replaced,
    /// Marks changed meanwhile.
    Again,
}

impl Rpc {
    /// Compares an answer with the known history. All that was believed ends if it is of another history.
    ///
    /// # Errors
    /// Fails if the answer is of another cluster while the known cluster is still there.
    pub(crate) async fn heard<T: Answered>(
        &self,
        sent: Sent,
        answer: &T,
        repeat: Repeat,
        attempts: &dyn Attempts,
    ) -> Result<(), Failure> {
        let header = answer.header();
        let is_linearizable = answer.is_linearizable().unwrap_or(repeat == Repeat::WithoutEffect);
        let consistency = if is_linearizable { Consistency::Linearizable } else { Consistency::Local };
        let member = if self.members() > 1 { attempts.member() } else { None };
        let from = (header.cluster, member.as_deref());
        match self.history.heard(sent, from, header.revision, consistency) {
            // The only member of a store is never behind.
            Heard::Behind if self.members() == 1 => self.history.doubts.notify_one(),
            Heard::Same | Heard::Behind => {}
            Heard::Replaced => self.end_beliefs("an answer is of an earlier revision"),
            Heard::OtherCluster { member: known, .. } => {
                return self.judge_cluster(sent, (&known, member.as_deref())).await;
            }
        }
        Ok(())
    }

    /// Compares an answer on a stream with the known history. It may be overtaken by others, so its revision
    /// raises no doubt.
    pub(crate) fn heard_on_stream(&self, header: Header, attempts: &dyn Attempts) {
        let member = if self.members() > 1 { attempts.member() } else { None };
        let from = (header.cluster, member.as_deref());
        let sent = self.history.now();
        let heard = self.history.heard(sent, from, header.revision, Consistency::Local);
        if matches!(heard, Heard::OtherCluster { .. }) {
            self.history.has_stranger.store(true, Ordering::Relaxed);
            self.history.doubts.notify_one();
        }
    }

    /// Makes sure that the store has the known history, or ends what was believed. Returns the revision up to
    /// which the history is shown. Callers that ask at the same time share one request.
    pub(crate) async fn verify(&self) -> Result<i64, Failure> {
        let verifications = &self.verifications;
        let mark = verifications.begun.load(Ordering::SeqCst);
        let mut done = verifications.done.lock().await;
        // Only a verification that began after the mark was certainly sent after the doubt was raised.
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
            let held = self.beliefs.upgrade().map(|beliefs| beliefs.leases()).unwrap_or_default();
            let marks = self.history.marks(|lease| held.contains(&lease));
            let verdict = match self.find(&marks, true).await {
                Err(failure) if failure.is_future() => Verdict::Replaced,
                Err(failure) if failure.is_compacted() => self.without_past(&marks).await?,
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
                tracing::warn!("the store has compacted what could tell whether its history is another one");
                Verdict::Replaced
            }
            verdict => verdict,
        })
    }

    /// Returns whether the store had the pairs that were read of a range, at the revision of the read. If it
    /// had something else, it has another history. It may have compacted that, or not tell it in one answer.
    pub(crate) async fn has_read(&self, range: &Range, read: Option<Read>) -> Result<bool, Failure> {
        let Some(read) = read else { return Ok(false) };
        let sent = self.history.now();
        let options = GetOptions::new().with_keys_only().with_revision(read.revision).with_limit(MOST_READ);
        let (key, options) = match range {
            Range::Key(key) => (key, options),
            Range::Prefix(prefix) => (prefix, options.with_prefix()),
        };
        let is_same = match self.get(OPERATION, &**key, Some(options)).await {
            Err(failure) if failure.is_compacted() => return Ok(false),
            Err(Failure { error: Error::PermissionDenied { .. }, .. }) => return Ok(false),
            Err(failure) if failure.is_future() => false,
            found => {
                let found = found?;
                if found.more {
                    return Ok(false);
                }
                Read::of(read.revision, &found.kvs) == read
            }
        };
        if !is_same && self.history.end(sent) {
            self.end_beliefs("it does not have what this client read");
        }
        Ok(is_same)
    }

    /// Asks for marks; with `past` also for the state at their revisions.
    async fn find(&self, marks: &Marks, past: bool) -> Result<Found, Failure> {
        let keys_only = || GetOptions::new().with_keys_only();
        let mut looks = Vec::new();
        for (key, kept) in marks.kept.iter().chain(&marks.kept_for_certain) {
            looks.push(Op::get(key.as_str(), Some(keys_only())));
            if past {
                looks.push(Op::get(key.as_str(), Some(keys_only().with_revision(kept.revision))));
            }
        }
        for given_back in &marks.given_back {
            looks.push(Op::get(given_back.key.as_str(), Some(keys_only())));
        }
        if past {
            for Seen { key, revision, .. } in &marks.seen {
                looks.push(Op::get(key.as_str(), Some(GetOptions::new().with_revision(*revision))));
            }
            // A deletion is shown by the state before it.
            let seen = marks.seen.iter().filter(|seen| seen.is_deletion());
            let deletions = seen.map(|seen| (&seen.key, seen.revision));
            let given_back = marks.last_given_back.iter().map(|last| (&last.key, last.revision));
            for (key, revision) in deletions.chain(given_back) {
                looks.push(Op::get(key.as_str(), Some(keys_only().with_revision(revision - 1))));
            }
        }
        looks.push(Op::get(self.keys.probe(), Some(keys_only())));
        let answer = self.look(OPERATION, Look::of(looks)).await?;
        Ok(Found { answers: answer.results, past, now: answer.header.revision })
    }

    /// Verifies once; `false` if that has to be tried again.
    async fn is_verified(&self) -> bool {
        let has_stranger = self.history.has_stranger.swap(false, Ordering::Relaxed);
        if self.refusal.check().is_err() || has_stranger && self.members() > 1 {
            return self.check_clusters().await.is_ok();
        }
        match self.verify().await {
            Ok(_) => true,
            Err(failure) => {
                tracing::debug!(error = %failure.error, "the history of the store is not verified");
                self.refusal.check().is_ok() && !failure.error.is_retryable()
            }
        }
    }

    /// Asks every member of which store it is, and goes on or not.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if two are of different stores.
    pub(crate) async fn check_clusters(&self) -> Result<()> {
        let reason = self.store.check_members().await.err();
        if self.refusal.set(reason) {
            self.end_beliefs("its endpoints are of two clusters");
            self.history.doubts.notify_one();
        }
        self.refusal.check()
    }

    /// Judges an answer of another store than the known one: the store was replaced, or two of the members
    /// are of different stores. The members are the one that answered for the known store, and the one that
    /// answered now.
    async fn judge_cluster(&self, sent: Sent, (known, now): (&str, Option<&str>)) -> Result<(), Failure> {
        if self.members() > 1 && now != Some(known) {
            self.check_clusters().await.map_err(|error| Failure { error, effect: Effect::None })?;
        }
        if self.history.end(sent) {
            self.end_beliefs("it is another cluster");
        }
        Ok(())
    }

    /// Ends all that was believed of the store, whose history is another one now.
    pub(crate) fn end_beliefs(&self, why: &str) {
        tracing::warn!(why, "the store has another history, as after a restore: all that was held is lost");
        if let Some(beliefs) = self.beliefs.upgrade() {
            beliefs.end();
        }
    }
}

/// Answers to a look at the marks.
struct Found {
    answers: Vec<OpResult>,
    past: bool,
    now: i64,
}

/// Judges the answers to a look at the marks, in the order in which [`Rpc::find`] asks for them.
fn judged(marks: &Marks, found: &Found) -> Verdict {
    let mut answers = found.answers.iter();
    let mut next = || pairs(answers.next()).first();
    let mut shown = 0;
    for (_, kept) in marks.kept.iter().chain(&marks.kept_for_certain) {
        let is_kept = kept.is(next());
        // A key that somebody deleted was there all the same.
        let was_kept = if found.past { kept.is(next()) } else { is_kept };
        if !was_kept {
            return if found.past { Verdict::Replaced } else { Verdict::Again };
        }
        shown = kept.revision;
    }
    if !marks.is_kept_certain && marks.kept_for_certain.is_none() {
        shown = 0;
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
pub(crate) async fn keep_verified(rpc: Weak<Rpc>, mut made: BoxStream<'static, ()>) {
    let Some(history) = rpc.upgrade().map(|rpc| rpc.history.clone()) else { return };
    loop {
        tokio::select! {
            is_made = made.next() => match is_made {
                Some(()) if history.has_marks() => {}
                // Each answer is compared with what else is known.
                Some(()) => continue,
                None => return,
            },
            () = history.doubts.notified() => {}
        }
        let mut backoff = backoff();
        while let Some(strong) = rpc.upgrade().filter(|rpc| !rpc.is_closed()) {
            if strong.is_verified().await {
                break;
            }
            drop(strong);
            timer::sleep(backoff.pause()).await;
        }
    }
}
