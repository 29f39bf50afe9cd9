//! JSON Schemas that are kept in the store, so that every writer who looks refuses a bad value.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use coord_api::{
    Batch, Committed, ConfigCenter, ConfigKey, ConfigPrefix, Entry, EntryEvent, Error, Home, Owner, Result,
    Scope, UpdateLocks, Version, Watch, Write, backend::ShownPath, backend::lock,
};
use jsonschema::Validator;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::gray;

/// Schemas of a config center.
pub trait SchemaExt {
    /// The schemas, to set, read and remove them.
    fn schemas(&self) -> Schemas;

    /// Wraps the config center, so that a write is refused when a value does not fit the schema of its key or
    /// of a prefix of it. The schemas are read once, and each commit is on the condition that they are
    /// unchanged. So a schema that was set by another process counts from the next write on, at no further
    /// request.
    ///
    /// Writes around it, by `etcdctl` for example, are not checked: a live value's validator sees them. With
    /// the feature `schema`, the config center of a `coord::Coordinator` is this one already.
    ///
    /// ```
    /// use coord_api::{ConfigExt, Error, Provider, Scope};
    /// use coord_config::SchemaExt;
    /// use schemars::JsonSchema;
    ///
    /// #[derive(JsonSchema)]
    /// #[allow(dead_code)]
    /// struct Limits { #[schemars(range(min = 1))] max_upload_mb: u32 }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # let store = coord_memory::Store::new();
    /// store.client().config().schemas().set::<Limits>(Scope::Key("limits")).await?;
    /// let another_tool = store.client().config().checked();
    /// let refused = another_tool.set("limits", &serde_json::json!({ "max_upload_mb": 0 })).await;
    /// println!("{}", refused.expect_err("does not fit"));
    /// another_tool.set("limits", &serde_json::json!({ "max_upload_mb": 1 })).await?;
    /// # Ok(()) }
    /// ```
    fn checked(&self) -> Arc<dyn ConfigCenter>;
}

impl SchemaExt for Arc<dyn ConfigCenter> {
    fn schemas(&self) -> Schemas {
        Schemas(self.clone())
    }

    fn checked(&self) -> Arc<dyn ConfigCenter> {
        Arc::new(Checked { center: self.clone(), known: Mutex::new(None) })
    }
}

/// The schemas of a config center; from [`SchemaExt::schemas`].
#[derive(Clone, Debug)]
pub struct Schemas(Arc<dyn ConfigCenter>);

impl Schemas {
    /// Sets the schema of a type for a key, or for all keys below a prefix. Stored values are not looked at.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad key or prefix; others as [`ConfigCenter::commit`].
    pub async fn set<T: JsonSchema>(&self, scope: Scope<'_>) -> Result<()> {
        self.set_json(scope, schemars::schema_for!(T).to_value()).await
    }

    /// As [`set`](Self::set), for a schema as JSON.
    ///
    /// # Errors
    /// As [`set`](Self::set), and [`Error::InvalidArgument`] for what is no schema.
    pub async fn set_json(&self, scope: Scope<'_>, schema: Value) -> Result<()> {
        compile(&schema)?;
        self.change(scope, Some(schema)).await
    }

    /// The schema of a key, or of a prefix; not those of prefixes above it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a bad key or prefix; [`Error::Decode`] if another program has overwritten the
    /// schemas; others as [`ConfigCenter::read`].
    pub async fn get(&self, scope: Scope<'_>) -> Result<Option<Value>> {
        let scope = SchemaScope::parse(scope)?;
        let (_, mut stored) = read(&*self.0).await?;
        Ok(stored.map(&scope).remove(&scope.name()))
    }

    /// All schemas: first those of keys, then those of prefixes, ordered by name.
    ///
    /// ```
    /// use coord_api::{Provider, Scope};
    /// use coord_config::{SchemaExt, SchemaScope};
    /// use serde_json::json;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # let config = coord_memory::Store::new().client().config();
    /// config.schemas().set_json(Scope::Prefix("limits"), json!({ "type": "object" })).await?;
    /// let all = config.schemas().list().await?;
    /// assert_eq!(all, [(SchemaScope::Prefix("limits".into()), json!({ "type": "object" }))]);
    /// assert_eq!(config.schemas().get(all[0].0.as_scope()).await?, Some(json!({ "type": "object" })));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub async fn list(&self) -> Result<Vec<(SchemaScope, Value)>> {
        let (_, Stored { keys, prefixes }) = read(&*self.0).await?;
        let prefix =
            |start: String| SchemaScope::Prefix(start.strip_suffix('/').unwrap_or_default().to_owned());
        let keys = keys.into_iter().map(|(key, schema)| (SchemaScope::Key(key), schema));
        Ok(keys.chain(prefixes.into_iter().map(|(start, schema)| (prefix(start), schema))).collect())
    }

    /// Removes a schema, if there is one.
    ///
    /// # Errors
    /// As [`set`](Self::set).
    pub async fn remove(&self, scope: Scope<'_>) -> Result<()> {
        self.change(scope, None).await
    }

    async fn change(&self, scope: Scope<'_>, schema: Option<Value>) -> Result<()> {
        let scope = SchemaScope::parse(scope)?;
        loop {
            let (version, mut stored) = match read(&*self.0).await {
                // An invalid schema of another program stops all writes; this is the way out.
                Err(Error::Decode { version, .. }) => (version, Stored::default()),
                read => read?,
            };
            match &schema {
                Some(schema) => stored.map(&scope).insert(scope.name(), schema.clone()),
                None => stored.map(&scope).remove(&scope.name()),
            };
            let json = serde_json::to_vec(&stored).unwrap_or_default();
            // Nobody could write anything any more.
            if serde_json::from_slice::<Stored>(&json).is_err() {
                return Err(Error::invalid("schema", "is nested too deeply to be kept"));
            }
            let batch = Batch::new().require_at(place(), version)?.set_json_at(place(), json)?;
            match self.0.commit(batch).await {
                Err(Error::Conflict { .. }) => {}
                done => return done.map(|_| ()),
            }
        }
    }
}

/// Target of a stored schema.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SchemaScope {
    /// Single key.
    Key(String),
    /// All keys below a prefix, which is empty for every key.
    Prefix(String),
}

impl SchemaScope {
    /// Returns the target as [`Schemas`] take it.
    pub fn as_scope(&self) -> Scope<'_> {
        match self {
            Self::Key(key) => Scope::Key(key),
            Self::Prefix(prefix) => Scope::Prefix(prefix),
        }
    }

    fn parse(scope: Scope<'_>) -> Result<Self> {
        Ok(match scope {
            Scope::Key(key) => Self::Key(ConfigKey::parse(key)?.as_str().to_owned()),
            Scope::Prefix(prefix) => ConfigPrefix::parse(prefix).map(|_| Self::Prefix(prefix.to_owned()))?,
            Scope::Sidecar(_) => return Err(Error::invalid("scope", "is beside the values")),
        })
    }

    /// As it is stored.
    fn name(&self) -> String {
        match self {
            Self::Key(key) => key.clone(),
            Self::Prefix(prefix) if prefix.is_empty() => String::new(),
            Self::Prefix(prefix) => format!("{prefix}/"),
        }
    }
}

/// All schemas: of keys, and of what begins with a prefix.
#[derive(Default, Serialize, Deserialize)]
struct Stored {
    #[serde(default)]
    keys: BTreeMap<String, Value>,
    #[serde(default)]
    prefixes: BTreeMap<String, Value>,
}

impl Stored {
    fn map(&mut self, scope: &SchemaScope) -> &mut BTreeMap<String, Value> {
        match scope {
            SchemaScope::Key(_) => &mut self.keys,
            SchemaScope::Prefix(_) => &mut self.prefixes,
        }
    }
}

/// In one place, so that a commit needs one condition to know that none has changed.
fn place() -> ConfigKey {
    ConfigKey::parse("all").expect("is a good name").beside("schemas", "")
}

async fn read(center: &dyn ConfigCenter) -> Result<(Version, Stored)> {
    match center.read(Scope::Sidecar(&place())).await?.pop() {
        Some(entry) => Ok((entry.version(), entry.decode()?)),
        None => Ok((Version::ABSENT, Stored::default())),
    }
}

fn compile(schema: &Value) -> Result<Validator> {
    jsonschema::validator_for(schema)
        .map_err(|error| Error::invalid("schema", at(error.instance_path(), &error)))
}

/// Returns where something does not fit, and why.
fn at(path: &impl fmt::Display, words: &impl fmt::Display) -> String {
    format!("at {}: {}", ShownPath(&path.to_string()), plain(words))
}

/// The beginning of what the library says, which repeats names and values, as one line that a terminal survives.
fn plain(words: &impl fmt::Display) -> String {
    let words = words.to_string();
    let mut chars = words.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    let line: String = chars.by_ref().take(200).collect();
    if chars.next().is_some() { line + "…" } else { line }
}

/// Schemas that were read, ready to check with.
struct Known {
    version: Version,
    keys: BTreeMap<String, Compiled>,
    prefixes: BTreeMap<String, Compiled>,
}

/// A schema that can not be used, since another program wrote it, concerns its own keys only.
type Compiled = std::result::Result<Validator, String>;

impl Known {
    async fn read(center: &dyn ConfigCenter) -> Result<Self> {
        let (version, stored) = read(center).await?;
        let all = |schemas: BTreeMap<String, Value>| {
            let compiled = |schema| compile(&schema).map_err(|error| plain(&error));
            schemas.into_iter().map(|(name, schema)| (name, compiled(schema))).collect()
        };
        Ok(Self { version, keys: all(stored.keys), prefixes: all(stored.prefixes) })
    }

    fn check(&self, write: &Write) -> Result<()> {
        let Write::Set(key, json) = write else { return Ok(()) };
        if self.keys.is_empty() && self.prefixes.is_empty() {
            return Ok(());
        }
        let entry = Entry::new(key.as_str(), Version::ABSENT, json.clone());
        let (key, value) = match gray::released(&entry, key) {
            Some(released) => released,
            None if key.is_beside() => return Ok(()),
            None => (key.as_str().to_owned(), entry.decode()?),
        };
        let below =
            self.prefixes.iter().filter(|(prefix, _)| key.starts_with(*prefix)).map(|(_, schema)| schema);
        for schema in self.keys.get(&key).into_iter().chain(below) {
            let schema = schema.as_ref().map_err(|reason| {
                Error::invalid(
                    "value",
                    format!("of `{key}` can not be checked: its stored schema is bad: {reason}"),
                )
            })?;
            if let Err(error) = schema.validate(&value) {
                let at = at(error.instance_path(), &error.masked_with("the value"));
                let reason = format!("of `{key}` does not fit its schema {at}");
                return Err(Error::InvalidArgument { field: "value", reason });
            }
        }
        Ok(())
    }
}

/// See [`SchemaExt::checked`].
struct Checked {
    center: Arc<dyn ConfigCenter>,
    known: Mutex<Option<Arc<Known>>>,
}

impl Checked {
    async fn known(&self) -> Result<Arc<Known>> {
        let known = lock(&self.known).clone();
        if let Some(known) = known {
            return Ok(known);
        }
        let known = Arc::new(Known::read(&*self.center).await?);
        *lock(&self.known) = Some(known.clone());
        Ok(known)
    }
}

impl fmt::Debug for Checked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Checked").field(&self.center).finish()
    }
}

#[async_trait]
impl ConfigCenter for Checked {
    async fn read(&self, scope: Scope<'_>) -> Result<Vec<Entry>> {
        self.center.read(scope).await
    }

    async fn commit(&self, batch: Batch) -> Result<Committed> {
        let place = place();
        let changes_schemas = batch.writes().iter().any(|write| *write.key() == place);
        // Then a checked center around this one has looked.
        let is_checked = batch.requirements().iter().any(|(key, _)| *key == place);
        if changes_schemas || is_checked {
            return self.center.commit(batch).await;
        }
        loop {
            let known = self.known().await?;
            let fits = batch.writes().iter().try_for_each(|write| known.check(write));
            // A value that does not fit may fit schemas that were set since; ask the store before it is
            // refused.
            let condition = Batch::new().require_at(place.clone(), known.version)?;
            let attempt = match &fits {
                Ok(()) => batch.clone().require_at(place.clone(), known.version)?,
                Err(_) => condition,
            };
            match self.center.commit(attempt).await {
                Err(Error::Conflict { key, .. }) if key == place.as_str() => {
                    *lock(&self.known) = None;
                }
                Err(error) if fits.is_ok() => return Err(error),
                done => return fits.and(done),
            }
        }
    }

    async fn watch_entries(&self, scope: Scope<'_>) -> Result<Watch<EntryEvent>> {
        self.center.watch_entries(scope).await
    }

    fn owner(&self) -> Owner {
        self.center.owner()
    }

    fn update_locks(&self) -> &UpdateLocks {
        self.center.update_locks()
    }

    fn home(&self) -> Option<Home> {
        self.center.home()
    }
}
