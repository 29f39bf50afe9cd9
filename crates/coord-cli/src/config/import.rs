//! `coord config import`: all files are checked before anything is written, with the checks of the write itself.

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use coord_api::{Batch, ConfigCenter, ConfigExt, ConfigKey, Entry, Error, Version};
use coord_config::MAX_RECORDED_BYTES;
use serde_json::{Value, json, value::RawValue};

use super::{
    Why,
    folder::{Folder, Found},
};
use crate::{
    exit::{Exit, Failure},
    json::{Layout, compact, text_of},
    out::{Out, shown},
};

#[derive(Args, Debug)]
pub(super) struct Import {
    /// The folder
    dir: PathBuf,
    /// Below which path the values are written [default: as the files are named]
    #[arg(long, default_value = "", value_name = "PATH")]
    prefix: String,
    /// Only check, and say what would be written
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    why: Why,
}

/// A value of the folder beside what is stored.
#[derive(Debug)]
struct Planned {
    key: String,
    path: PathBuf,
    state: State,
    /// The version that is stored, then the one that was written.
    version: Option<Version>,
    /// Text to write.
    value: Box<RawValue>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Added,
    Changed,
    Unchanged,
    /// It would have been written after one that failed.
    Skipped,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Changed => "changed",
            Self::Unchanged => "unchanged",
            Self::Skipped => "skipped",
        }
    }

    fn is_write(self) -> bool {
        matches!(self, Self::Added | Self::Changed)
    }
}

impl Import {
    /// Each value is a write of its own, on the condition that nobody has written it since it was looked at.
    pub(super) async fn call(self, center: &Arc<dyn ConfigCenter>, out: Out) -> Result<Exit, Failure> {
        self.why.check()?;
        let prefix = self.prefix.trim_end_matches('/');
        let folder = Folder::read(&self.dir, prefix);
        let stored = center.list(prefix).await?;
        let mut bad = folder.bad;
        let mut plan: Vec<Planned> =
            folder.values.into_iter().map(|(key, found)| Planned::new(key, found, &stored)).collect();
        for planned in plan.iter().filter(|planned| planned.state.is_write()) {
            if let Some(reason) = planned.refusal(center).await? {
                bad.push(format!("`{}`: {reason}", planned.path.display()));
            }
        }
        if !bad.is_empty() {
            return Err(Failure::usage(format!("nothing was imported:\n  {}", bad.join("\n  "))));
        }
        let failure = if self.dry_run { None } else { self.write(center, &mut plan).await };
        self.show(&plan, out)?;
        failure.map_or(Ok(Exit::OK), Err)
    }

    /// Writes all that differ, until one can not be written.
    async fn write(&self, center: &Arc<dyn ConfigCenter>, plan: &mut [Planned]) -> Option<Failure> {
        let mut failed: Option<Failure> = None;
        let (mut written, mut left) = (0, 0);
        for planned in plan.iter_mut().filter(|planned| planned.state.is_write()) {
            if failed.is_some() {
                (planned.state, left) = (State::Skipped, left + 1);
                continue;
            }
            let mut recorder = self.why.record(center, &planned.key);
            if self.why.comment.is_none() {
                recorder = recorder.comment(self.comment());
            }
            let recorder = recorder.expecting(planned.version.unwrap_or(Version::ABSENT));
            match recorder.set(&*planned.value).await {
                Ok(version) => (planned.version, written) = (Some(version), written + 1),
                Err(error) => {
                    let mut failure = Failure::from(error);
                    let path = planned.path.display();
                    failure.message = format!("`{path}` was not written: {failure}");
                    (planned.state, left, failed) = (State::Skipped, left + 1, Some(failure));
                }
            }
        }
        failed.map(|mut failure| {
            failure.message = format!("{failure}\n  {written} values were written, {left} were not");
            failure
        })
    }

    /// Short enough for a comment, whatever the folder is called.
    fn comment(&self) -> String {
        let name: String = self.dir.display().to_string().chars().filter(|c| !c.is_control()).collect();
        format!("import of {}", name.chars().take(100).collect::<String>())
    }

    fn show(&self, plan: &[Planned], out: Out) -> Result<(), Failure> {
        let json: Vec<Value> = plan
            .iter()
            .map(|planned| json!({ "key": planned.key, "state": planned.state.word(), "version": planned.version }))
            .collect();
        out.result(&json, |to| {
            for planned in plan.iter().filter(|planned| planned.state.is_write()) {
                writeln!(to, "{} {}", planned.state.word(), shown(&planned.key))?;
            }
            let changed = plan.iter().filter(|planned| planned.state.is_write()).count();
            let verb = if self.dry_run { "would be written" } else { "written" };
            writeln!(to, "{changed} of {} values {verb}", plan.len())
        })
    }
}

impl Planned {
    fn new(key: String, found: Found, stored: &[Entry]) -> Self {
        let entry = stored.iter().find(|entry| entry.key() == key);
        let old = entry.and_then(|entry| text_of(entry.as_bytes()));
        let text = found.value.get();
        let state = match (entry, old) {
            (None, _) => State::Added,
            (_, Some(old)) if compact(old) == compact(text) => State::Unchanged,
            _ => State::Changed,
        };
        // A folder has a line for each value; what is stored in one line stays so.
        let text = old.map_or_else(|| text.to_owned(), |old| Layout::of(old).apply(text));
        let value = RawValue::from_string(text).expect("was JSON before it was laid out");
        Self { key, path: found.path, state, version: entry.map(Entry::version), value }
    }

    /// Returns why the value would be refused.
    async fn refusal(&self, center: &Arc<dyn ConfigCenter>) -> Result<Option<String>, Failure> {
        let size = self.value.get().len();
        if size > MAX_RECORDED_BYTES {
            return Ok(Some(Error::TooLarge { field: "value", size, limit: MAX_RECORDED_BYTES }.to_string()));
        }
        // A write with all its checks, and a condition that never holds: no key is ever at this version.
        let never = Version::new(i64::MAX.unsigned_abs());
        let key = ConfigKey::parse(&self.key)?;
        let batch =
            Batch::new().require_at(key.clone(), never).and_then(|batch| batch.set_at(key, &*self.value));
        let refused = match batch {
            Ok(batch) => center.commit(batch).await.map(|_| ()),
            Err(error) => Err(error),
        };
        match refused {
            Err(Error::Conflict { .. }) | Ok(()) => Ok(None),
            Err(
                error @ (Error::InvalidArgument { .. }
                | Error::TooLarge { .. }
                | Error::PermissionDenied { .. }),
            ) => Ok(Some(crate::exit::with_causes(&error))),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn values_after_one_that_fails_are_told_as_not_written() {
        let center = coord_api::Provider::config(&coord_memory::Store::new().client()).clone();
        let planned = |key: &str, version: Option<u64>| {
            let found = Found { path: format!("{key}.json").into(), value: crate::json::parse("1").unwrap() };
            let mut planned = Planned::new(key.into(), found, &[]);
            planned.version = version.map(Version::new);
            planned
        };
        let mut plan = [planned("a", None), planned("b", Some(7)), planned("c", None)];
        let why = Why { author: Some("ann".into()), comment: None };
        let import = Import { dir: "x\n".repeat(1000).into(), prefix: String::new(), dry_run: false, why };
        let failure = import.write(&center, &mut plan).await.expect("somebody has written it meanwhile");
        assert_eq!(failure.exit, Exit::CONFLICT);
        assert!(failure.message.contains("`b.json` was not written"), "{failure}");
        assert!(failure.message.contains("1 values were written, 2 were not"), "{failure}");
        assert_eq!(plan.map(|planned| planned.state), [State::Added, State::Skipped, State::Skipped]);
        assert!(
            center.get_entry("a").await.unwrap().is_some() && center.get_entry("c").await.unwrap().is_none()
        );
    }
}
