//! Workload: values that many write in every way there is, and pairs that are written together.

use std::sync::Mutex;

use coord_api::{Batch, ConfigCenter, ConfigExt, Entry, Error, Result, Version};

use crate::{
    history::{Answer, Name, Op, Value, What},
    worker::{Fate, Outcome, Worker},
};

pub(crate) const PREFIX: &str = "torture/config";
const KEYS: [&str; 4] =
    ["torture/config/a", "torture/config/a/b", "torture/config/c", "torture/config/deep/d"];
const PAIR: [&str; 2] = ["torture/pair/one", "torture/pair/other"];
pub(crate) const PAIRS: &str = "torture/pair";
/// What only `update` writes: a counter.
const COUNTER: &str = "torture/config/counter";

/// The keys that are only written together.
pub(crate) fn pair_keys() -> impl Iterator<Item = &'static str> {
    PAIR.into_iter()
}

/// A call that has been written down.
pub(crate) struct Asked(u64);

impl Asked {
    pub(crate) fn begin(worker: &Worker, key: &str, op: Op) -> Self {
        let call = worker.fresh();
        worker.add(What::Calls { call, key: key.into(), op });
        Self(call)
    }

    pub(crate) fn answer(self, worker: &Worker, answer: Answer) {
        worker.add(What::Answers { call: self.0, answer });
    }
}

/// The keys that are written one by one.
pub(crate) fn keys() -> impl Iterator<Item = &'static str> {
    KEYS.into_iter().chain([COUNTER])
}

/// Reads and writes, until the run is over.
pub(crate) async fn work(mut worker: Worker) {
    // The version that each key had when this task saw it last.
    let mut seen = [0; KEYS.len()];
    while let Some(client) = worker.next_round().await {
        let config = client.config();
        let at = worker.random.usize(..KEYS.len());
        let value = Value { id: worker.fresh(), n: 0 };
        match worker.random.u8(..16) {
            0..4 => {
                if let Some(version) = get(&mut worker, &*config, KEYS[at]).await {
                    seen[at] = version;
                }
            }
            4..6 => {
                let written = async { config.set(KEYS[at], &value).await };
                write(&mut worker, KEYS[at], Op::Set(value), value, written).await;
            }
            6..10 => {
                let expected = Version::new(seen[at]);
                let written = config.compare_and_set(KEYS[at], expected, &value);
                let version = write(&mut worker, KEYS[at], Op::Cas(seen[at], value), value, written).await;
                seen[at] = version.unwrap_or(seen[at]);
            }
            10..12 => delete(&mut worker, &*config, KEYS[at]).await,
            12..14 => increment(&mut worker, &*config).await,
            _ => pair(&mut worker, &*config, value).await,
        }
    }
}

async fn get(worker: &mut Worker, config: &dyn ConfigCenter, key: &str) -> Option<u64> {
    let asked = Asked::begin(worker, key, Op::Get);
    let read = worker.call("get", config.get::<Value>(key)).await;
    let Outcome::Answer(found) = read else {
        asked.answer(worker, Answer::Refused);
        return None;
    };
    let found = found.map(|found| (found.value, found.version.get()));
    asked.answer(worker, Answer::Found(found));
    Some(found.map_or(0, |(_, version)| version))
}

/// Writes one value to one key; the version that the key has then, as far as that is known.
async fn write(
    worker: &mut Worker,
    key: &str,
    op: Op,
    value: Value,
    written: impl Future<Output = Result<Version>>,
) -> Option<u64> {
    let asked = Asked::begin(worker, key, op);
    let answered = async {
        match written.await {
            Ok(version) => Ok(Answer::Wrote(value, version.get())),
            Err(Error::Conflict { actual, .. }) => Ok(Answer::Conflict(actual.get())),
            Err(error) => Err(error),
        }
    };
    let answer = match worker.call("set", answered).await {
        Outcome::Answer(answer) => answer,
        Outcome::Failed(Fate::Refused) => Answer::Refused,
        Outcome::Failed(_) | Outcome::Dropped => Answer::Unknown(Some(value)),
    };
    asked.answer(worker, answer);
    match answer {
        Answer::Wrote(_, version) | Answer::Conflict(version) => Some(version),
        _ => None,
    }
}

async fn delete(worker: &mut Worker, config: &dyn ConfigCenter, key: &str) {
    let asked = Asked::begin(worker, key, Op::Delete);
    let deleting = async { config.commit(Batch::new().delete(key)?).await };
    let answer = match worker.call("delete", deleting).await {
        Outcome::Answer(done) => Answer::Deleted(done.version.get(), done.deleted > 0),
        Outcome::Failed(Fate::Refused) => Answer::Refused,
        Outcome::Failed(_) | Outcome::Dropped => Answer::Unknown(None),
    };
    asked.answer(worker, answer);
}

/// Counts with `update`, which may try several times.
async fn increment(worker: &mut Worker, config: &dyn ConfigCenter) {
    let asked = Asked::begin(worker, COUNTER, Op::Increment);
    // Of several tries only the last one can have been written without this being known.
    let last = Mutex::new(None);
    let world = worker.world.clone();
    let updating = config.update::<Value, _>(COUNTER, |old| {
        let value = Value { id: world.history.fresh(), n: old.map_or(0, |old| old.n) + 1 };
        *last.lock().expect("nothing panics while this is locked") = Some(value);
        value
    });
    let answer = match worker.call("update", updating).await {
        Outcome::Answer(setting) => Answer::Wrote(setting.value, setting.version.get()),
        Outcome::Failed(Fate::Refused) => Answer::Refused,
        Outcome::Failed(_) | Outcome::Dropped => {
            match *last.lock().expect("nothing panics while this is locked") {
                None => Answer::Refused,
                tried => Answer::Unknown(tried),
            }
        }
    };
    asked.answer(worker, answer);
}

/// Writes two keys at once, or reads both.
async fn pair(worker: &mut Worker, config: &dyn ConfigCenter, value: Value) {
    if worker.random.bool() {
        if let Outcome::Answer(entries) = worker.call("list", config.list(PAIRS)).await {
            let one = |key: &str| {
                let found = entries.iter().find(|entry| entry.key() == key)?;
                decode(worker, found)
            };
            worker.add(What::Pair(one(PAIR[0]), one(PAIR[1])));
        }
        return;
    }
    let both = async {
        let batch = Batch::new().set(PAIR[0], &value)?.set(PAIR[1], &value)?;
        Ok(config.commit(batch).await?.version)
    };
    let calls = PAIR.map(|key| Asked::begin(worker, key, Op::Set(value)));
    let answer = match worker.call("commit", both).await {
        Outcome::Answer(version) => Answer::Wrote(value, version.get()),
        Outcome::Failed(Fate::Refused) => Answer::Refused,
        Outcome::Failed(_) | Outcome::Dropped => Answer::Unknown(Some(value)),
    };
    for asked in calls {
        asked.answer(worker, answer);
    }
}

/// A value with its version, of an entry that only workloads write.
pub(crate) fn decode(worker: &Worker, entry: &Entry) -> Option<(Value, u64)> {
    match entry.decode() {
        Ok(value) => Some((value, entry.version().get())),
        Err(error) => {
            worker.add(What::Unexpected(format!("a value can not be read: {error}")));
            None
        }
    }
}

/// A name for the history.
pub(crate) fn name(key: &str) -> Name {
    key.into()
}
