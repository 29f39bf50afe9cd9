//! A run of steps on one store, and what came of it.

use std::{collections::BTreeMap, time::Duration};

use coord_kv::store::{
    Canceled, Change, Header, LeaseDetail, Op, Range, RenewalEnded, Txn, WatchAnswer, WatchRequest,
    WatchStream,
};
use tokio::time::{Instant, timeout_at};

use crate::{
    side::{LIMIT, Side, call, kind},
    steps::{Keys, Step},
};

/// The watch by which a run knows that all changes before its end were told.
const LAST: i64 = 1000;
/// The key that is written last.
const LAST_KEY: &str = "~";

/// Outcome of a run: a line for each step, and what each watch was told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    lines: Vec<String>,
    told: BTreeMap<i64, Vec<String>>,
}

/// When all that a watch will tell has been told.
#[derive(Clone, Copy)]
pub(crate) enum Until<'a> {
    /// When nothing was told for so long.
    Quiet(Duration),
    /// When as much was told as by another store, and nothing for a moment after.
    AsMuchAs(&'a Answers),
}

/// The time in which a store tells what it tells.
const SLOW: Duration = Duration::from_secs(3);
/// The time in which etcd reads what a watch has missed.
const PAST: Duration = Duration::from_millis(250);
const MOMENT: Duration = Duration::from_millis(2);

struct Run<'a> {
    side: Side,
    until: Until<'a>,
    stream: Option<Box<dyn WatchStream>>,
    answers: Answers,
    /// The last revision that each watch has told.
    last: BTreeMap<i64, i64>,
    /// Whether a watch may still have to read what it has missed.
    may_read_past: bool,
}

/// Makes the steps, one after the other.
pub(crate) async fn run(side: Side, steps: &[Step], until: Until<'_>) -> Answers {
    let (stream, answers, last) = (None, Answers::default(), BTreeMap::new());
    let mut run = Run { side, until, stream, answers, last, may_read_past: false };
    for (number, step) in steps.iter().enumerate() {
        let line = run.step(number, step).await;
        run.answers.lines.push(format!("{number}: {line}"));
    }
    run.end().await
}

impl Run<'_> {
    /// Takes note of the revision of an answer.
    fn header(&mut self, header: Header) -> String {
        self.side.now = header.revision;
        format!("{}", self.side.shown(header.revision))
    }

    async fn step(&mut self, number: usize, step: &Step) -> String {
        let store = self.side.store.clone();
        let attempts = store.attempts(None);
        let call = call(&*attempts);
        match step {
            Step::Txn(txn) => match store.txn(call, self.side.txn(txn)).await {
                Ok(answer) => format!("{} {}", self.header(answer.header), self.side.shown_txn(&answer, txn)),
                Err(failure) => kind(&failure),
            },
            Step::Range(get) => {
                let (key, options) = self.side.get(get);
                match store.range(call, key, options).await {
                    Ok(answer) => {
                        format!("{} {}", self.header(answer.header), self.side.shown_get(&answer, get))
                    }
                    Err(failure) => kind(&failure),
                }
            }
            Step::Grant(lease, ttl) => match store.grant(call, self.side.lease(*lease), *ttl).await {
                Ok(granted) => format!("{} granted {}", self.header(granted.header), granted.ttl),
                Err(failure) => kind(&failure),
            },
            Step::Revoke(lease) => match store.revoke(call, self.side.lease(*lease)).await {
                Ok(header) => format!("{} revoked", self.header(header)),
                Err(failure) => kind(&failure),
            },
            Step::Renew(lease) => match store.renewals().renew(self.side.lease(*lease)).await {
                Ok(ttl) => format!("renewed {ttl:?}"),
                Err(RenewalEnded::Broken(failure)) => format!("broken: {}", kind(&failure)),
                Err(RenewalEnded::Refused(failure)) => format!("refused: {}", kind(&failure)),
            },
            Step::Lease(lease) => {
                let lease = self.side.lease(*lease);
                match store.lease(call, lease, LeaseDetail::TimesAndKeys).await {
                    Ok(status) => {
                        let mut keys: Vec<_> =
                            status.keys.iter().map(|key| self.side.shown_key(key)).collect();
                        keys.sort();
                        let (revision, granted) = (self.header(status.header), status.granted);
                        format!("{revision} granted {granted} is left {} {keys:?}", status.left > 0)
                    }
                    Err(failure) => kind(&failure),
                }
            }
            Step::Watch(keys, from) => {
                let from = from.map(|at| self.side.at(at)).filter(|revision| *revision != 0);
                self.watch(i64::try_from(number).expect("is small"), *keys, from).await;
                "watch".into()
            }
            Step::Cancel(nth) => self.cancel(*nth).await,
            Step::Compact => {
                // etcd reads what a watch has missed some time after it began, or may find it compacted.
                if std::mem::take(&mut self.may_read_past) {
                    let read = Instant::now() + PAST;
                    while self.listen(read).await {}
                }
                (self.side.compact)(self.side.now).await;
                "compact".into()
            }
        }
    }

    async fn watch(&mut self, id: i64, keys: Keys, from: Option<i64>) {
        let range = match keys {
            Keys::Key(key) => Range::Key(self.side.key(key).into()),
            Keys::Prefix(prefix) | Keys::Until(prefix, _) => Range::Prefix(self.side.key(prefix).into()),
        };
        self.may_read_past |= from.is_some();
        let request = WatchRequest { id, range, from };
        match &mut self.stream {
            Some(stream) => stream.watch(request).await.expect("the stream is whole"),
            none => {
                let attempts = self.side.store.attempts(None);
                let last = Range::Key(self.side.key(LAST_KEY).into());
                let last = WatchRequest { id: LAST, range: last, from: None };
                let opened = self.side.store.watch(&*attempts, vec![last, request]).await;
                *none = Some(opened.expect("a stream can be opened"));
            }
        }
        let limit = Instant::now() + LIMIT;
        for id in [LAST, id] {
            while !self.answers.told.contains_key(&id) {
                assert!(self.listen(limit).await, "watch {id} was not begun");
            }
        }
    }

    async fn cancel(&mut self, nth: usize) -> String {
        let begun: Vec<_> = self.answers.told.keys().copied().filter(|id| *id != LAST).collect();
        let Some(id) = begun.get(nth).copied() else { return "no such watch".into() };
        self.listen_to(&[id]).await;
        let stream = self.stream.as_mut().expect("a watch was begun");
        stream.cancel(id).await.expect("the stream is whole");
        self.answers.told.get_mut(&id).expect("was begun").push("end".into());
        format!("cancel {id}")
    }

    /// Waits for an answer, and takes note of it; `false` when there was none in time.
    async fn listen(&mut self, limit: Instant) -> bool {
        let Some(stream) = &mut self.stream else { return false };
        let Ok(answer) = timeout_at(limit, stream.next()).await else { return false };
        let answer = answer.expect("the stream is whole").expect("the stream goes on");
        self.take_note(&answer);
        true
    }

    fn take_note(&mut self, answer: &WatchAnswer) {
        let WatchAnswer { header, id, is_created, canceled, changes } = answer;
        // An answer about a watch that was cancelled.
        let Some(id) = *id else { return };
        let is_cancelled =
            self.answers.told.get(&id).is_some_and(|told| told.last().is_some_and(|last| last == "end"));
        // A store may say that it has ended the watch.
        if is_cancelled && changes.is_empty() {
            return;
        }
        let mut lines = Vec::new();
        if *is_created {
            lines.push(format!("begun at {}", self.side.shown(header.revision)));
        }
        let last = self.last.entry(id).or_default();
        if let (Some(first), Some(final_one)) = (changes.first(), changes.last()) {
            if first.revision <= *last {
                lines.push("the changes of a revision are split".into());
            }
            *last = final_one.revision;
        }
        lines.extend(changes.iter().map(|change| self.shown_change(change)));
        match canceled {
            Some(Canceled::Compacted) => lines.push("compacted".into()),
            Some(Canceled::NotAllowed(error)) => lines.push(format!("not allowed: {error}")),
            None => {}
        }
        self.answers.told.entry(id).or_default().extend(lines);
    }

    fn shown_change(&self, change: &Change) -> String {
        let Change { key, revision, created, value } = change;
        let (revision, created) = (self.side.shown(*revision), self.side.shown(*created));
        format!("{}={value:?} c{created} m{revision}", self.side.shown_key(key.as_bytes()))
    }

    fn told(&self, id: i64) -> usize {
        self.answers.told.get(&id).map_or(0, Vec::len)
    }

    /// Waits until these watches have told all.
    async fn listen_to(&mut self, ids: &[i64]) {
        let moment = match self.until {
            Until::Quiet(quiet) => quiet,
            Until::AsMuchAs(other) => {
                let limit = Instant::now() + SLOW;
                // A watch that was cancelled has one line more.
                let all = |told: &[String]| told.iter().filter(|line| *line != "end").count();
                let expected: Vec<_> =
                    ids.iter().map(|id| (*id, other.told.get(id).map_or(0, |told| all(told)))).collect();
                while expected.iter().any(|(id, count)| self.told(*id) < *count) {
                    if !self.listen(limit).await {
                        break;
                    }
                }
                MOMENT
            }
        };
        while self.listen(Instant::now() + moment).await {}
    }

    async fn end(mut self) -> Answers {
        let last = Txn::new().and_then([Op::put(self.side.key(LAST_KEY), "", None)]);
        let attempts = self.side.store.attempts(None);
        self.side.store.txn(call(&*attempts), last).await.expect("the store can be written");
        let ids: Vec<_> = self.answers.told.keys().copied().collect();
        self.listen_to(&ids).await;
        self.answers
    }
}
