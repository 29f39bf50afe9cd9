//! What the clients of a run observed, in one order.
//!
//! Every event gets its place in the history under one lock. So if one call was answered before another one began,
//! the history shows them in that order, whatever thread they were on; that is all that "real time" means here.
//! Whether somebody believes in a hold is asked under the same lock: an answer is true at its place.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use coord_api::Lost;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

/// A config value of the workloads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Value {
    /// No other write of the run writes this number.
    pub id: u64,
    /// How many increments the value has seen.
    pub n: u64,
}

/// A name in the store, or of what is held. Cheap to copy into many events.
pub type Name = Arc<str>;

/// One thing that a client observed.
#[derive(Clone, Debug, PartialEq, Hash)]
pub struct Event {
    /// When, since the run began.
    pub at: Duration,
    /// The process that observed it.
    pub process: usize,
    /// What it was.
    pub what: What,
}

/// What can be observed.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum What {
    /// Somebody asks for a lock; `hold` names what may come of it.
    Asks {
        /// The lock, or the id.
        place: Name,
        /// The hold.
        hold: u64,
    },
    /// A hold begins: the call has returned.
    Acquires {
        /// The lock, or the id.
        place: Name,
        /// The hold.
        hold: u64,
        /// The fencing token of a lock.
        token: Option<u64>,
    },
    /// The holder does not know of a loss, at this very moment.
    Believes {
        /// The lock, or the id.
        place: Name,
        /// The hold.
        hold: u64,
    },
    /// The holder gives the place back from here on, or knows that it lost it.
    Ends {
        /// The lock, or the id.
        place: Name,
        /// The hold.
        hold: u64,
    },
    /// A holder used the fenced register outside the store.
    Fenced {
        /// The register.
        register: Name,
        /// The holder's token.
        token: u64,
        /// What it did.
        access: Access,
        /// Whether the register let it.
        accepted: bool,
    },
    /// A call to the config center begins.
    Calls {
        /// Names the call.
        call: u64,
        /// The key that it is about.
        key: Name,
        /// What is asked.
        op: Op,
    },
    /// The call is answered.
    Answers {
        /// Names the call.
        call: u64,
        /// What came of it.
        answer: Answer,
    },
    /// Two values that are only ever written together, as one read of both showed them.
    Pair(Option<(Value, u64)>, Option<(Value, u64)>),
    /// A watch or a view is asked for; [`Watches`](Self::Watches) follows if it begins.
    AsksToWatch {
        /// Names the watch.
        watcher: u64,
    },
    /// A follower begins: a watch, or a view.
    Watches {
        /// Names the watch.
        watcher: u64,
        /// The keys that it covers.
        scope: Covers,
    },
    /// A follower has had enough, or its client was closed.
    Unwatches {
        /// Names the watch.
        watcher: u64,
    },
    /// A watch of the config told something.
    Told {
        /// Names the watch.
        watcher: u64,
        /// The item.
        item: Item,
    },
    /// Registering an instance, or an update of its record, begins.
    Publishes {
        /// The instance: no two registrations of a run share one.
        instance: Name,
        /// Counts the updates of its record.
        n: u64,
    },
    /// It was answered with success.
    Published {
        /// The instance.
        instance: Name,
        /// The update.
        n: u64,
    },
    /// The instance is deregistered: the answer says that it is no longer there.
    Left {
        /// The instance.
        instance: Name,
    },
    /// The instance is registered when the run is over, and stays so until all have looked.
    Stays {
        /// The instance.
        instance: Name,
    },
    /// A list of the instances is asked for.
    Discovers {
        /// Names the call.
        call: u64,
    },
    /// The list.
    Discovered {
        /// Names the call.
        call: u64,
        /// The instances with the counts in their records.
        instances: Vec<(Name, u64)>,
    },
    /// A watch or a view of the instances told something.
    Sees {
        /// Names the watch.
        watcher: u64,
        /// The item.
        item: Seen,
    },
    /// A number was made with an id.
    Number {
        /// The hold of the id.
        hold: u64,
        /// The number.
        number: u64,
    },
    /// The store has lost its data, or came back with older data. All that was known of it before counts for
    /// nothing: see [`check`](crate::check::check).
    Restored {
        /// The config values that it has now, with their versions.
        values: Vec<(Name, Value, u64)>,
        /// Longest time until every client has heard of it.
        unheard: Duration,
    },
    /// All faults are over, and every process was asked to stop: what the store has now.
    End {
        /// The config values with their versions.
        values: Vec<(Name, Value, u64)>,
        /// The instances with the counts in their records.
        instances: Vec<(Name, u64)>,
    },
    /// Something that no fault explains: an error that can not be, a call that does not end, a panic.
    Unexpected(String),
}

/// An access to the fenced register.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// It showed this number.
    Read(u64),
    /// This number was written, one more than was read.
    Write(u64),
}

/// What is asked of the config center.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// The value.
    Get,
    /// To write, whatever is there.
    Set(Value),
    /// To write if the version is this one; 0 for a key that does not exist.
    Cas(u64, Value),
    /// To delete.
    Delete,
    /// To write one more than is there.
    Increment,
    /// To write one more than was read, as long as a lock is held that whoever increments this key holds.
    Guarded(Value),
}

/// What came of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answer {
    /// The value with its version, or that there is none.
    Found(Option<(Value, u64)>),
    /// The value that was written, and its version.
    Wrote(Value, u64),
    /// Nothing was written, since the version is this one.
    Conflict(u64),
    /// The version of the store then, and whether there was something to delete.
    Deleted(u64, bool),
    /// Certainly nothing was written.
    Refused,
    /// The write may take effect at any later time, or never.
    Unknown(Option<Value>),
}

/// The keys that a watch covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Covers {
    /// One key.
    Key(Name),
    /// The keys below a prefix, without the slash at its end.
    Below(Name),
    /// No keys, but the instances of the service.
    Instances,
}

impl Covers {
    /// Whether a key is among them.
    pub fn covers(&self, key: &str) -> bool {
        match self {
            Self::Key(only) => **only == *key,
            Self::Below(prefix) => key.strip_prefix(&**prefix).is_some_and(|rest| rest.starts_with('/')),
            Self::Instances => false,
        }
    }
}

/// An item of a watch of the config.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Item {
    /// All values at one revision.
    Snapshot(u64, Vec<(Name, Value, u64)>),
    /// A value was written.
    Set(Name, Value, u64),
    /// A key was deleted.
    Deleted(Name, u64),
}

/// An item of a watch of the instances; the counts are those in their records.
#[derive(Clone, Debug, PartialEq, Hash)]
pub enum Seen {
    /// All instances.
    All(Vec<(Name, u64)>),
    /// A new one.
    Added(Name, u64),
    /// One that changed its record, from and to.
    Updated(Name, u64, u64),
    /// One that is gone, with its last record.
    Removed(Name, u64),
}

/// The history of a run while it is made.
#[derive(Debug)]
pub struct History {
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    events: Vec<Event>,
    numbers: u64,
    /// The holds of each place that nobody knows to be over.
    believers: BTreeMap<Name, Vec<(u64, usize, Lost)>>,
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events", self.events.len())
    }
}

impl Default for History {
    fn default() -> Self {
        Self::new()
    }
}

impl History {
    /// An empty one that begins now.
    pub fn new() -> Self {
        Self { begun: Instant::now(), state: Mutex::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A workload that panicked is told as such; the history up to there is good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, state: &mut State, process: usize, what: What) {
        state.events.push(Event { at: self.begun.elapsed(), process, what });
    }

    /// Writes down one event.
    pub fn add(&self, process: usize, what: What) {
        self.push(&mut self.state(), process, what);
    }

    /// A number that names something in this run, and nothing else.
    pub fn fresh(&self) -> u64 {
        let mut state = self.state();
        state.numbers += 1;
        state.numbers
    }

    /// A hold has begun. All other holders of the place are asked whether they know better.
    pub fn acquires(&self, process: usize, place: &Name, hold: u64, token: Option<u64>, lost: Lost) {
        let mut state = self.state();
        self.push(&mut state, process, What::Acquires { place: place.clone(), hold, token });
        let others = state.believers.remove(place).unwrap_or_default();
        let mut left = Vec::new();
        let is_over = lost.reason().is_some();
        if is_over {
            self.push(&mut state, process, What::Ends { place: place.clone(), hold });
        }
        for (other, of, its_loss) in others {
            let place = place.clone();
            if its_loss.reason().is_some() {
                self.push(&mut state, of, What::Ends { place, hold: other });
            } else {
                if !is_over {
                    self.push(&mut state, of, What::Believes { place, hold: other });
                }
                left.push((other, of, its_loss));
            }
        }
        if !is_over {
            left.push((hold, process, lost));
        }
        state.believers.insert(place.clone(), left);
    }

    /// Whether the holder believes in its hold, which is written down.
    pub fn believes(&self, place: &Name, hold: u64) -> bool {
        let mut state = self.state();
        let holds = state.believers.entry(place.clone()).or_default();
        let Some(at) = holds.iter().position(|(other, ..)| *other == hold) else { return false };
        let place = place.clone();
        let (_, process, lost) = &holds[at];
        let (process, believes) = (*process, lost.reason().is_none());
        if believes {
            self.push(&mut state, process, What::Believes { place, hold });
        } else {
            holds.remove(at);
            self.push(&mut state, process, What::Ends { place, hold });
        }
        believes
    }

    /// The holder gives the place back, from now on.
    pub fn ends(&self, place: &Name, hold: u64) {
        if !self.believes(place, hold) {
            return;
        }
        let mut state = self.state();
        let holds = state.believers.entry(place.clone()).or_default();
        if let Some(at) = holds.iter().position(|(other, ..)| *other == hold) {
            let (_, process, _) = holds.remove(at);
            self.push(&mut state, process, What::Ends { place: place.clone(), hold });
        }
    }

    /// All that happened until now.
    pub fn events(&self) -> Vec<Event> {
        self.state().events.clone()
    }
}

/// One number for a whole history: two runs with the same one observed the same at the same times.
pub fn fingerprint(events: &[Event]) -> u64 {
    // Not `RandomState`: the number is compared across runs of one build.
    let mut hasher = DefaultHasher::new();
    events.hash(&mut hasher);
    hasher.finish()
}
