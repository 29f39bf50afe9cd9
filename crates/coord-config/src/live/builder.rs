//! How a live value is made.

use std::{fmt, path::PathBuf, sync::Arc, time::Duration};

use coord_api::{ConfigCenter, Error, Result, backend::to_json};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::value::RawValue;

use super::{CheckResult, Live, check_result::run_check, layers::Merge, start::start};
use crate::Instance;

type Check<T> = Box<dyn FnMut(&T) -> Result<(), String> + Send>;
type Hook<T> = Box<dyn FnMut(&T, &T) -> Result<(), String> + Send>;

/// Consequence of the deletion of a live value's key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenDeleted {
    /// It stays as it is: a deletion by mistake harms nobody.
    #[default]
    Keep,
    /// It becomes the default; without a default it stays.
    Default,
}

/// A live value to be; from [`live`](super::LiveExt::live).
#[must_use = "nothing is followed until `start`"]
pub struct LiveBuilder<T> {
    pub(super) center: Arc<dyn ConfigCenter>,
    pub(super) key: String,
    pub(super) over: Vec<String>,
    pub(super) instance: Option<Instance>,
    pub(super) default: Option<Arc<T>>,
    pub(super) fill: Option<Result<Box<RawValue>>>,
    pub(super) checks: Vec<Check<T>>,
    pub(super) hook: Option<Hook<T>>,
    pub(super) when_deleted: WhenDeleted,
    pub(super) file: Option<PathBuf>,
    pub(super) default_while_away: bool,
    pub(super) start_within: Duration,
    pub(super) reconcile_every: Option<Duration>,
}

impl<T> LiveBuilder<T> {
    pub(super) fn new(center: Arc<dyn ConfigCenter>, key: &str) -> Self {
        Self {
            center,
            key: key.into(),
            over: Vec::new(),
            instance: None,
            default: None,
            fill: None,
            checks: Vec::new(),
            hook: None,
            when_deleted: WhenDeleted::default(),
            file: None,
            default_while_away: false,
            start_within: Duration::from_secs(5),
            reconcile_every: Some(Duration::from_secs(300)),
        }
    }

    /// Sets the value to use while the key does not exist. Without it, [`start`](Self::start) answers
    /// [`Error::Missing`] then.
    pub fn default(mut self, value: T) -> Self {
        self.default = Some(Arc::new(value));
        self
    }

    /// As [`default`](Self::default), and fields that are missing in the stored value are the default's, also
    /// those of structs within structs. Anything else is taken whole; see [`over`](Self::over).
    ///
    /// ```
    /// use coord_api::{ConfigExt, Provider};
    /// use coord_config::LiveExt;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Limits { max_upload_mb: u32, max_rooms: u32 }
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
    /// # let config = coord_memory::Store::new().client().config();
    /// config.set("common/limits", &serde_json::json!({ "max_rooms": 500 })).await?;
    /// config.set("im-logic/limits", &serde_json::json!({ "max_upload_mb": 50 })).await?;
    /// let limits = config
    ///     .live("im-logic/limits")
    ///     .over("common/limits")
    ///     .default_fields(Limits { max_upload_mb: 10, max_rooms: 100 })
    ///     .start()
    ///     .await?;
    /// let now = limits.current();
    /// assert_eq!((now.max_upload_mb, now.max_rooms), (50, 500));
    /// # Ok(()) }
    /// ```
    pub fn default_fields(mut self, value: T) -> Self
    where
        T: Serialize,
    {
        let json = to_json(&self.key, &value).map_err(|error| match error {
            Error::InvalidArgument { reason, .. } => Error::invalid("default", reason),
            other => other,
        });
        self.fill = Some(json.and_then(|json| {
            let wrong = |error| Error::invalid("default", format!("can not be written as JSON: {error}"));
            RawValue::from_string(json).map_err(wrong)
        }));
        self.default(value)
    }

    /// Lays the value over that of another key, such as one that the whole environment shares: missing fields
    /// are taken from the other. May be called again; what was named last is above.
    ///
    /// Only where the type asks for a struct are fields taken one by one. Enums, maps, lists, structs with
    /// flattened fields, untyped JSON and a [`Whole`](crate::Whole) are one unit: the highest that is there
    /// counts. A complete value is read as [`get`](coord_api::ConfigExt::get) reads it.
    pub fn over(mut self, key: &str) -> Self {
        self.over.push(key.into());
        self
    }

    /// Names this instance, so that a [gray release](crate::GrayExt::gray) of the key counts if it is for
    /// this instance.
    pub fn instance(mut self, instance: Instance) -> Self {
        self.instance = Some(instance);
        self
    }

    /// Refuses values for which `check` returns an error. May be called again; all have to agree. The default is
    /// not asked about.
    pub fn validate<V: CheckResult>(mut self, mut check: impl FnMut(&T) -> V + Send + 'static) -> Self {
        self.checks.push(Box::new(move |value| check(value).check_result()));
        self
    }

    /// Calls `hook` with the old and the new value before the new one is used. It may return an error to refuse
    /// the new value, for example because a pool could not be opened with it. It must not block.
    ///
    /// It is not called for the value that [`start`](Self::start) finds.
    pub fn on_change<V: CheckResult>(mut self, mut hook: impl FnMut(&T, &T) -> V + Send + 'static) -> Self {
        self.hook = Some(Box::new(move |old, new| hook(old, new).check_result()));
        self
    }

    /// Sets the consequence of a deletion of the key. By default the value stays.
    pub fn when_deleted(mut self, what: WhenDeleted) -> Self {
        self.when_deleted = what;
        self
    }

    /// Saves each value that comes into use in this file, so that the service can start while the store is
    /// away. The file is readable for this user only. Its folder must exist. [`start`](Self::start) refuses a
    /// file that another live value of this process has.
    ///
    /// The file names the store, the namespace, the key and the instance that it was written for, and is not used for
    /// others. A deletion is saved as well: what was in use last is what is used.
    ///
    /// The file has the value in plain text. For etcd, connect
    /// [lazily](https://docs.rs/coord/latest/coord/enum.Config.html#method.lazily).
    pub fn snapshot_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Starts with the default while the store is away. By default [`start`](Self::start) fails then, unless
    /// there is a snapshot file, since the value in the store may be a very different one.
    pub fn default_while_away(mut self) -> Self {
        self.default_while_away = true;
        self
    }

    /// How long [`start`](Self::start) waits for the store. Default: 5 s.
    pub fn start_within(mut self, limit: Duration) -> Self {
        self.start_within = limit;
        self
    }

    /// Sets how often to compare the value with the store, in case that a change was never told. It costs one
    /// read, at up to a tenth more or less, so that a fleet does not ask at once. Default: 5 minutes.
    pub fn reconcile_every(mut self, interval: Duration) -> Self {
        self.reconcile_every = Some(interval);
        self
    }

    /// Returns how entries are laid over each other, if they are.
    pub(super) fn merge(&mut self) -> Result<Option<Merge>> {
        match self.fill.take() {
            Some(lowest) => Ok(Some(Merge { lowest: Some(lowest?) })),
            None if self.over.is_empty() => Ok(None),
            None => Ok(Some(Merge { lowest: None })),
        }
    }

    /// Asks the validators.
    pub(super) fn check(&mut self, value: &T) -> Result<(), String> {
        self.checks.iter_mut().try_for_each(|check| run_check(|| check(value)))
    }

    /// Asks the hook.
    pub(super) fn ask_hook(&mut self, old: &T, new: &T) -> Result<(), String> {
        self.hook.as_mut().map_or(Ok(()), |hook| run_check(|| hook(old, new)))
    }
}

impl<T: DeserializeOwned + Send + Sync + 'static> LiveBuilder<T> {
    /// Reads the value and follows it from then on.
    ///
    /// The first of these is used: the stored value; the default, if the key does not exist; the snapshot
    /// file's value or else the default, if the stored value can not be used. While the store is away: the
    /// snapshot file's, then the default if [chosen so](Self::default_while_away). Either is stale until the
    /// store is heard.
    ///
    /// # Errors
    /// - [`Error::InvalidArgument`] for a bad key, file or interval;
    /// - [`Error::Missing`] if the key does not exist and there is no default;
    /// - [`Error::Decode`] or [`Error::InvalidArgument`] if the value can not be used and there is nothing
    ///   else;
    /// - [`Error::Unavailable`], [`Error::Timeout`] and others as [`ConfigCenter::watch_entries`].
    ///
    /// # Cancel safety
    /// Dropping this future leaves nothing behind.
    pub async fn start(self) -> Result<Live<T>> {
        start(self).await
    }
}

impl<T> fmt::Debug for LiveBuilder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveBuilder")
            .field("key", &self.key)
            .field("over", &self.over)
            .finish_non_exhaustive()
    }
}
