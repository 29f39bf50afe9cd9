//! `coord config`: values, their history, and files of them.

mod diff;
mod edit;
mod export;
mod folder;
mod history;
mod import;
mod values;

use std::{borrow::Cow, sync::Arc};

use clap::{Args, Subcommand};
use coord_api::{ConfigCenter, Entry, Owner, Provider, Version};
use coord_config::{HistoryExt, MAX_COMMENT_BYTES, Recorder, SchemaExt};
use serde::Serialize;
use serde_json::{json, value::RawValue};

use crate::{
    exit::{Exit, Failure},
    out::{Out, shown},
};

#[derive(Args, Debug)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    command: ConfigCommand,
}

#[derive(Subcommand, Debug)]
enum ConfigCommand {
    /// Prints a value
    Get {
        /// The key
        key: String,
        /// A version from the history, in place of the current one
        #[arg(long = "at", value_name = "VERSION")]
        version: Option<u64>,
    },
    /// Writes a value, if it is JSON and fits the schema of its key
    Set {
        /// The key
        key: String,
        /// The value as JSON; - reads it from stdin
        #[arg(allow_negative_numbers = true)]
        value: String,
        #[command(flatten)]
        write: Write,
    },
    /// Opens a value in $VISUAL or $EDITOR, and writes it if nobody else has in the meantime
    Edit {
        /// The key; one that does not exist begins as null
        key: String,
        #[command(flatten)]
        why: Why,
    },
    /// Deletes a value
    Delete {
        /// The key
        key: String,
        #[command(flatten)]
        write: Write,
    },
    /// Lists keys with their versions and values
    List {
        /// Only the keys below this path
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Shows a value, then every change of it, until a signal
    Watch {
        /// The key, or the path with --prefix
        #[arg(default_value = "", required_unless_present = "prefix")]
        key: String,
        /// Watch all keys below the path; all there are without one
        #[arg(long)]
        prefix: bool,
    },
    /// Shows who changed a value, when and why
    History {
        /// The key
        key: String,
    },
    /// Shows what is different between two versions
    Diff {
        /// The key
        key: String,
        /// A version from the history
        from: u64,
        /// Another one [default: the latest]
        to: Option<u64>,
    },
    /// Writes what a version of the history was, as a new version
    Rollback {
        /// The key
        key: String,
        /// A version from the history
        version: u64,
        #[command(flatten)]
        write: Write,
    },
    /// Writes the values of all files NAME.json below a folder that differ from what is stored
    Import(import::Import),
    /// Writes each value to a file NAME.json below a folder
    Export(export::Export),
}

/// Who writes, and why.
#[derive(Args, Clone, Debug)]
pub(crate) struct Why {
    /// Who writes [default: $USER]
    #[arg(long, env = "COORD_AUTHOR", value_name = "NAME")]
    author: Option<String>,
    /// Why, for the history
    #[arg(long, short = 'm', value_name = "TEXT")]
    comment: Option<String>,
}

/// How to write.
#[derive(Args, Clone, Debug)]
struct Write {
    /// Only if the key is at this version; `absent` (or 0): only if it does not exist
    #[arg(long, value_name = "VERSION", value_parser = version)]
    if_version: Option<Version>,
    #[command(flatten)]
    why: Why,
}

fn version(text: &str) -> Result<Version, String> {
    match text {
        "absent" => Ok(Version::ABSENT),
        number => number.parse().map(Version::new).map_err(|_| "write a version, or `absent`".into()),
    }
}

impl Why {
    fn author(&self) -> Option<String> {
        let user = || ["USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok());
        self.author.clone().or_else(user).filter(|author| !author.is_empty())
    }

    /// Refuses what the history would refuse, before anything is sent.
    fn check(&self) -> Result<(), Failure> {
        if let Some(author) = self.author() {
            let refused = |error| Failure::usage(format!("the author can not be recorded: {error}"));
            Owner::check_label(&author).map_err(refused)?;
        }
        let bad = |c: char| c.is_control() && c != '\n';
        if self
            .comment
            .as_ref()
            .is_some_and(|comment| comment.len() > MAX_COMMENT_BYTES || comment.contains(bad))
        {
            let words = format!("a comment has at most {MAX_COMMENT_BYTES} bytes and no control characters");
            return Err(Failure::usage(words));
        }
        Ok(())
    }

    /// A write that is recorded in the history.
    fn record(&self, center: &Arc<dyn ConfigCenter>, key: &str) -> Recorder {
        let mut recorder = center.record(key);
        if let Some(author) = self.author() {
            recorder = recorder.author(author);
        }
        match &self.comment {
            Some(comment) => recorder.comment(comment),
            None => recorder,
        }
    }
}

impl Write {
    fn record(&self, center: &Arc<dyn ConfigCenter>, key: &str) -> Recorder {
        let recorder = self.why.record(center, key);
        match self.if_version {
            Some(version) => recorder.expecting(version),
            None => recorder,
        }
    }
}

impl ConfigArgs {
    pub(crate) async fn call(self, provider: &dyn Provider, out: Out) -> Result<Exit, Failure> {
        // Held to the schemas in the store.
        let center = provider.config().checked();
        match self.command {
            ConfigCommand::Get { key, version } => values::get(&center, &key, version, out).await,
            ConfigCommand::Set { key, value, write } => values::set(&center, &key, &value, &write, out).await,
            ConfigCommand::Edit { key, why } => edit::edit(&center, &key, &why, out).await,
            ConfigCommand::Delete { key, write } => values::delete(&center, &key, &write, out).await,
            ConfigCommand::List { prefix } => values::list(&center, &prefix, out).await,
            ConfigCommand::Watch { key, prefix } => values::watch(&center, &key, prefix, out).await,
            ConfigCommand::History { key } => history::history(&center, &key, out).await,
            ConfigCommand::Diff { key, from, to } => diff::diff(&center, &key, from, to, out).await,
            ConfigCommand::Rollback { key, version, write } => {
                history::rollback(&center, &key, version, &write, out).await
            }
            ConfigCommand::Import(import) => import.call(&center, out).await,
            ConfigCommand::Export(export) => export.call(&center, out).await,
        }
    }
}

/// An entry as it is documented. What is not JSON, since another program wrote it, is told as text.
#[derive(Serialize)]
struct EntryJson<'a> {
    key: &'a str,
    version: Version,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<&'a RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_json: Option<Cow<'a, str>>,
}

fn entry_json(entry: &Entry) -> EntryJson<'_> {
    let value = serde_json::from_slice::<&RawValue>(entry.as_bytes()).ok();
    let not_json = value.is_none().then(|| String::from_utf8_lossy(entry.as_bytes()));
    EntryJson { key: entry.key(), version: entry.version(), value, not_json }
}

/// Says that something was written.
fn written(key: &str, version: Version, out: Out) -> Result<Exit, Failure> {
    let json = json!({ "key": key, "version": version });
    out.result(&json, |to| writeln!(to, "{} is at version {version}", shown(key)))?;
    Ok(Exit::OK)
}

fn absent(key: &str) -> Failure {
    Failure::absent(format!("config key `{key}` does not exist"))
}
