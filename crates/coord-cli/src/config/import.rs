//! `coord config import`: all files are checked before anything is written, with the checks of the write itself.

use std::{path::PathBuf, sync::Arc};

use clap::Args;
use coord_api::{Batch, ConfigCenter, ConfigExt, ConfigKey, Entry, Error, Version};
use coord_config::{MAX_RECORDED_BYTES, Recorder};
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
    /// All values are one transaction where they fit into one. Else each is a write of its own. Nothing is written over
    /// that somebody else has written since it was looked at.
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

    /// Writes all that differ: at once, or until one can not be written.
    async fn write(&self, center: &Arc<dyn ConfigCenter>, plan: &mut [Planned]) -> Option<Failure> {
        match self.batch(center, plan).await {
            Ok(Some(batch)) => self.commit(center, batch, plan).await,
            Ok(None) => self.write_in_turn(center, plan).await,
            Err(error) => Some(nothing_written(error, plan)),
        }
    }

    /// Returns one transaction for all, if they fit into one.
    async fn batch(&self, center: &Arc<dyn ConfigCenter>, plan: &[Planned]) -> Result<Option<Batch>, Error> {
        let mut batch = Batch::new();
        for planned in plan.iter().filter(|planned| planned.state.is_write()) {
            batch = match self.recorder(center, planned).add_to(batch, &*planned.value).await {
                Ok(batch) => batch,
                // Each of them was checked alone.
                Err(Error::TooLarge { .. } | Error::InvalidArgument { .. }) => return Ok(None),
                Err(error) => return Err(error),
            };
        }
        Ok(Some(batch))
    }

    async fn commit(
        &self,
        center: &Arc<dyn ConfigCenter>,
        batch: Batch,
        plan: &mut [Planned],
    ) -> Option<Failure> {
        let writes = || plan.iter().filter(|planned| planned.state.is_write());
        writes().next()?;
        match center.commit(batch).await {
            Ok(committed) => {
                for planned in plan.iter_mut().filter(|planned| planned.state.is_write()) {
                    planned.version = Some(committed.version);
                }
                None
            }
            Err(error) => Some(nothing_written(error, plan)),
        }
    }

    fn recorder(&self, center: &Arc<dyn ConfigCenter>, planned: &Planned) -> Recorder {
        let mut recorder = self.why.record(center, &planned.key);
        if self.why.comment.is_none() {
            recorder = recorder.comment(self.comment());
        }
        recorder.expecting(planned.version.unwrap_or(Version::ABSENT))
    }

    async fn write_in_turn(&self, center: &Arc<dyn ConfigCenter>, plan: &mut [Planned]) -> Option<Failure> {
        let mut failed: Option<Failure> = None;
        let (mut written, mut left) = (0, 0);
        for planned in plan.iter_mut().filter(|planned| planned.state.is_write()) {
            if failed.is_some() {
                (planned.state, left) = (State::Skipped, left + 1);
                continue;
            }
            match self.recorder(center, planned).set(&*planned.value).await {
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

/// Tells that an import of one transaction failed, and of which file.
fn nothing_written(error: Error, plan: &mut [Planned]) -> Failure {
    let of = match &error {
        Error::Conflict { key, .. } => plan.iter().find(|planned| planned.key == *key),
        _ => None,
    };
    let of = of.map(|planned| format!("`{}`: ", planned.path.display())).unwrap_or_default();
    let is_known = !matches!(error, Error::Timeout { .. });
    let mut failure = Failure::from(error);
    let what =
        if is_known { "nothing was imported" } else { "whether all or nothing was imported is not known" };
    failure.message = format!("{what}: {of}{failure}");
    for planned in plan.iter_mut().filter(|planned| planned.state.is_write()) {
        planned.state = State::Skipped;
    }
    failure
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

    fn planned(key: &str, version: Option<u64>) -> Planned {
        let found = Found { path: format!("{key}.json").into(), value: crate::json::parse("1").unwrap() };
        let mut planned = Planned::new(key.into(), found, &[]);
        planned.version = version.map(Version::new);
        planned
    }

    fn import() -> Import {
        let why = Why { author: Some("ann".into()), comment: None };
        Import { dir: "x\n".repeat(1000).into(), prefix: String::new(), dry_run: false, why }
    }

    fn center() -> Arc<dyn ConfigCenter> {
        coord_api::Provider::config(&coord_memory::Store::new().client()).clone()
    }

    #[tokio::test]
    async fn import_that_fits_into_one_transaction_is_all_or_nothing() {
        let center = center();
        // Somebody has written `b` meanwhile: it is not at this version.
        let mut plan = [planned("a", None), planned("b", Some(7)), planned("c", None)];
        let failure = import().write(&center, &mut plan).await.expect("is refused");
        assert_eq!(failure.exit, Exit::CONFLICT);
        assert!(failure.message.starts_with("nothing was imported: `b.json`: "), "{failure}");
        assert!(plan.iter().all(|planned| planned.state == State::Skipped));
        assert!(center.list("").await.unwrap().is_empty());

        let mut plan = [planned("a", None), planned("c", None)];
        assert!(import().write(&center, &mut plan).await.is_none());
        assert_eq!(plan[0].version, plan[1].version, "one transaction");
        assert_eq!(center.list("").await.unwrap().len(), 2);
        let history = coord_config::HistoryExt::history(&center, "c").await.unwrap();
        assert_eq!((history.len(), history[0].author.as_deref()), (1, Some("ann")));
    }

    #[tokio::test]
    async fn import_of_more_than_a_transaction_takes_is_written_in_turn() {
        let center = center();
        let mut plan: Vec<_> = (0..50).map(|n| planned(&format!("k{n}"), None)).collect();
        assert!(import().write(&center, &mut plan).await.is_none());
        assert_eq!(center.list("").await.unwrap().len(), 50);
        assert_ne!(plan[0].version, plan[1].version);
    }

    #[tokio::test]
    async fn values_after_one_that_fails_are_told_as_not_written() {
        let center = center();
        let mut plan = [planned("a", None), planned("b", Some(7)), planned("c", None)];
        let failure =
            import().write_in_turn(&center, &mut plan).await.expect("somebody has written it meanwhile");
        assert_eq!(failure.exit, Exit::CONFLICT);
        assert!(failure.message.contains("`b.json` was not written"), "{failure}");
        assert!(failure.message.contains("1 values were written, 2 were not"), "{failure}");
        assert_eq!(plan.map(|planned| planned.state), [State::Added, State::Skipped, State::Skipped]);
        assert!(
            center.get_entry("a").await.unwrap().is_some() && center.get_entry("c").await.unwrap().is_none()
        );
    }
}
