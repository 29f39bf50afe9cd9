//! Streams of watches: each has a queue of answers, and is told of the changes that it watches as they are made.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use coord_kv::store::{Canceled, Change, Header, Range, Revision, WatchAnswer, WatchRequest};
use tokio::sync::Notify;

use super::{changes::Logged, faults::Permission, state::State};

/// A stream, in the order in which they were opened.
pub(crate) type StreamId = u64;

/// A watch of a stream.
type WatchId = (StreamId, i64);

/// All streams of a store.
#[derive(Default)]
pub(crate) struct Watchers {
    streams: BTreeMap<StreamId, Stream>,
    opened: StreamId,
    of_keys: BTreeMap<Arc<str>, BTreeSet<WatchId>>,
    /// Watches of prefixes, by the length of these.
    of_prefixes: BTreeMap<usize, BTreeMap<Arc<str>, BTreeSet<WatchId>>>,
}

struct Stream {
    /// The watches, with the first revision that each is told of.
    watches: BTreeMap<i64, (Range, Revision)>,
    answers: VecDeque<WatchAnswer>,
    /// Signal that there is an answer, or that the time at which something happens is another one.
    wake: Arc<Notify>,
    /// Whether the store has ended it.
    has_ended: bool,
}

/// Result of a look at a stream.
pub(crate) enum Look {
    /// An answer.
    Answer(Box<WatchAnswer>),
    /// Nothing yet.
    Nothing,
    /// The end of the stream.
    End,
}

impl Watchers {
    /// Wakes all streams, to look again.
    pub(super) fn wake_all(&self) {
        self.streams.values().for_each(|stream| stream.wake.notify_one());
    }

    /// Ends all streams.
    pub(super) fn end_all(&mut self) {
        self.of_keys.clear();
        self.of_prefixes.clear();
        for stream in self.streams.values_mut() {
            stream.watches.clear();
            stream.answers.clear();
            stream.has_ended = true;
            stream.wake.notify_one();
        }
    }

    /// Ends all watches, since what they would be told is forgotten.
    pub(super) fn compact_all(&mut self, header: Header) {
        self.of_keys.clear();
        self.of_prefixes.clear();
        for stream in self.streams.values_mut() {
            for id in std::mem::take(&mut stream.watches).into_keys() {
                let (canceled, changes) = (Some(Canceled::Compacted), Vec::new());
                let ended = WatchAnswer { header, id: Some(id), is_created: false, canceled, changes };
                stream.answers.push_back(ended);
            }
            stream.wake.notify_one();
        }
    }

    fn places(&mut self, range: &Range) -> &mut BTreeSet<WatchId> {
        match range {
            Range::Key(key) => self.of_keys.entry(key.clone()).or_default(),
            Range::Prefix(prefix) => {
                let of_length = self.of_prefixes.entry(prefix.len()).or_default();
                of_length.entry(prefix.clone()).or_default()
            }
        }
    }

    fn remove(&mut self, range: &Range, id: WatchId) {
        let places = self.places(range);
        places.remove(&id);
        if !places.is_empty() {
            return;
        }
        match range {
            Range::Key(key) => drop(self.of_keys.remove(key)),
            Range::Prefix(prefix) => {
                if let Some(of_length) = self.of_prefixes.get_mut(&prefix.len()) {
                    of_length.remove(prefix);
                    if of_length.is_empty() {
                        self.of_prefixes.remove(&prefix.len());
                    }
                }
            }
        }
    }

    /// Returns the watches that cover a key.
    fn of(&self, key: &str) -> impl Iterator<Item = WatchId> {
        let of_prefixes = self.of_prefixes.iter().filter_map(|(length, watches)| {
            // A key is cut only where a character begins; no prefix ends elsewhere.
            watches.get(key.get(..*length)?)
        });
        self.of_keys.get(key).into_iter().chain(of_prefixes).flatten().copied()
    }

    /// Returns whether nothing is watched.
    pub(super) fn is_empty(&self) -> bool {
        self.of_keys.is_empty() && self.of_prefixes.is_empty()
    }

    /// Tells those who watch of the changes of one revision.
    pub(super) fn tell<'a>(&mut self, changes: impl Iterator<Item = &'a Logged>, header: Header) {
        let mut told = BTreeMap::<WatchId, Vec<Change>>::new();
        for change in changes {
            let Ok(key) = std::str::from_utf8(&change.key) else { continue };
            for id in self.of(key) {
                told.entry(id).or_default().extend(change.told());
            }
        }
        for ((stream, id), changes) in told {
            let Some(stream) = self.streams.get_mut(&stream) else { continue };
            if stream.watches.get(&id).is_some_and(|(_, from)| *from <= header.revision) {
                let answer = WatchAnswer { header, id: Some(id), is_created: false, canceled: None, changes };
                stream.answers.push_back(answer);
                stream.wake.notify_one();
            }
        }
    }
}

impl State {
    /// Opens a stream, whose client is woken by `wake`.
    pub(crate) fn open_stream(&mut self, wake: Arc<Notify>) -> StreamId {
        let all = &mut self.watchers;
        all.opened += 1;
        let stream = Stream { watches: BTreeMap::new(), answers: VecDeque::new(), wake, has_ended: false };
        all.streams.insert(all.opened, stream);
        all.opened
    }

    /// Closes a stream.
    pub(crate) fn close_stream(&mut self, stream: StreamId) {
        let Some(closed) = self.watchers.streams.remove(&stream) else { return };
        for (id, (range, _)) in closed.watches {
            self.watchers.remove(&range, (stream, id));
        }
    }

    /// Begins a watch on a stream.
    pub(crate) fn watch(&mut self, stream: StreamId, request: WatchRequest) {
        let WatchRequest { id, range, from } = request;
        let (header, after) = (self.header(), self.revision + 1);
        let from = from.unwrap_or(after);
        let canceled = match self.check_permission("watch", Permission::Reading) {
            Err(refused) => Some(Canceled::NotAllowed(refused.error)),
            Ok(()) if from < self.log.compacted() => Some(Canceled::Compacted),
            Ok(()) => None,
        };
        let goes_on = canceled.is_none();
        let missed: Vec<_> = self.log.since(from).filter_map(Logged::told).collect();
        let covers = |change: &Change| match &range {
            Range::Key(key) => change.key == **key,
            Range::Prefix(prefix) => change.key.starts_with(&**prefix),
        };
        let missed: Vec<_> = missed.into_iter().filter(covers).collect();
        let Some(open) = self.watchers.streams.get_mut(&stream).filter(|open| !open.has_ended) else {
            return;
        };
        let begun =
            WatchAnswer { header, id: Some(id), is_created: true, canceled: None, changes: Vec::new() };
        open.answers.push_back(begun);
        if canceled.is_some() {
            let ended =
                WatchAnswer { header, id: Some(id), is_created: false, canceled, changes: Vec::new() };
            open.answers.push_back(ended);
        }
        open.wake.notify_one();
        if !goes_on {
            return;
        }
        if !missed.is_empty() {
            let (is_created, canceled) = (false, None);
            open.answers.push_back(WatchAnswer {
                header,
                id: Some(id),
                is_created,
                canceled,
                changes: missed,
            });
        }
        open.watches.insert(id, (range.clone(), from));
        self.watchers.places(&range).insert((stream, id));
    }

    /// Ends a watch for its client.
    pub(crate) fn cancel(&mut self, stream: StreamId, id: i64) {
        let open = self.watchers.streams.get_mut(&stream);
        if let Some((range, _)) = open.and_then(|open| open.watches.remove(&id)) {
            self.watchers.remove(&range, (stream, id));
        }
    }

    /// Takes the next answer of a stream.
    pub(crate) fn look(&mut self, stream: StreamId) -> Look {
        let Some(stream) = self.watchers.streams.get_mut(&stream) else { return Look::End };
        match stream.answers.pop_front() {
            Some(answer) => Look::Answer(Box::new(answer)),
            None if stream.has_ended => Look::End,
            None => Look::Nothing,
        }
    }
}
