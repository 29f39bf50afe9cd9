//! The first value of a live value.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use coord_api::{ConfigKey, Error, Result, Version, backend::ConnectivitySource};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;

use super::{
    Live, LiveBuilder, Shared, Task, WhenDeleted,
    current::{Counters, Current, Origin, Rejection, RejectionCause, count},
    file::{Audience, Claim, File, Part, State},
    follow::{Feed, Follower, Source},
    held::Held,
    layers::Layers,
    share_key::ShareKey,
    wakeups::{Notifier, Wakeups},
};
use crate::gray;

/// How many changes a slow consumer of them may be behind before it misses some.
const CHANGES: usize = 32;

pub(super) async fn start<T>(mut builder: LiveBuilder<T>) -> Result<Live<T>>
where
    T: DeserializeOwned + Send + Sync + 'static,
{
    let sources = sources(&builder)?;
    if builder.reconcile_every.is_some_and(|interval| interval < Duration::from_millis(100)) {
        return Err(Error::invalid("reconcile_every", "is below 100ms"));
    }
    let share_key = ShareKey::of(&builder);
    let merge = builder.merge()?;
    let file = match builder.file.take() {
        Some(path) => Some(File::open(path).await?),
        None => None,
    };
    let mut layers = Layers::new(sources.len(), merge);
    let mut saved = layers.clone();

    let opening = tokio::time::timeout(builder.start_within, Feed::open(&*builder.center, &sources));
    let opened = opening.await.unwrap_or(Err(Error::Timeout {
        operation: "start a live config value",
        after: builder.start_within,
    }));
    let mut feed = None;
    let mut rejection = None;
    let first = match opened {
        Ok((opened, entries)) => {
            feed = Some(opened);
            for (layer, entry) in entries.into_iter().enumerate() {
                layers.put(layer, entry);
            }
            match usable(&mut builder, &layers) {
                Ok(Some((value, version))) => First { value, origin: Origin::Store(version), saved: None },
                Ok(None) => match default(&builder) {
                    Some(default) => default,
                    None => return Err(Error::Missing { what: format!("config key {}", builder.key) }),
                },
                Err(refused) => {
                    tracing::warn!(reason = %refused, "the stored value can not be used");
                    let fallback = from_file(&mut builder, &sources, file.as_ref(), &mut saved).await;
                    let Some(first) = fallback.or_else(|| default(&builder)) else {
                        return Err(to_error(refused));
                    };
                    rejection = Some(Arc::new(refused));
                    first
                }
            }
        }
        Err(error) if error.is_retryable() => {
            let fallback = from_file(&mut builder, &sources, file.as_ref(), &mut saved).await;
            let default = || default(&builder).filter(|_| builder.default_while_away);
            let Some(first) = fallback.or_else(default) else { return Err(error) };
            tracing::warn!(%error, key = builder.key, origin = ?first.origin, "started without the store");
            first
        }
        Err(error) => return Err(error),
    };
    let (center, version) = (builder.center.clone(), layers.version());
    let launch = || launch(builder, sources, layers, feed, first, rejection, file);
    Ok(Live::of(match share_key {
        Some(share_key) => share_key.share(&center, version, launch),
        None => launch(),
    }))
}

/// The value that a live value begins with.
struct First<T> {
    value: Held<T>,
    origin: Origin,
    /// State in the snapshot file, if that decided.
    saved: Option<State>,
}

fn default<T>(builder: &LiveBuilder<T>) -> Option<First<T>> {
    let value = Held::new(builder.default.clone()?);
    Some(First { value, origin: Origin::Default, saved: None })
}

fn sources<T>(builder: &LiveBuilder<T>) -> Result<Vec<Source>> {
    let keys = builder.over.iter().chain([&builder.key]);
    let mut sources: Vec<_> =
        keys.map(|key| Ok(Source::Key(ConfigKey::parse(key)?))).collect::<Result<_>>()?;
    if let Some(instance) = &builder.instance {
        instance.check()?;
        let key = ConfigKey::parse(&builder.key)?;
        sources.push(Source::Gray { place: gray::place_of(&key), key, instance: instance.clone() });
    }
    Ok(sources)
}

/// The value that the layers make, if the validators agree.
fn usable<T: DeserializeOwned>(
    builder: &mut LiveBuilder<T>,
    layers: &Layers,
) -> Result<Option<(Held<T>, Version)>, Rejection> {
    let Some(made) = layers.compose::<T>()? else { return Ok(None) };
    builder.check(made.value.get()).map_err(|reason| Rejection {
        key: builder.key.clone(),
        version: made.version,
        cause: RejectionCause::Validator,
        reason,
    })?;
    Ok(Some((made.value, made.version)))
}

/// Returns the value that was last saved, if it can be used.
async fn from_file<T: DeserializeOwned>(
    builder: &mut LiveBuilder<T>,
    sources: &[Source],
    file: Option<&Claim>,
    layers: &mut Layers,
) -> Option<First<T>> {
    let (home, key) = (builder.center.home(), builder.key.clone());
    let saved = file?.load(Audience { home, key, instance: builder.instance.clone() }).await?;
    // Nothing was stored, or it was deleted and is not kept.
    let is_gone = saved.deleted && builder.when_deleted == WhenDeleted::Default;
    if saved.entries.is_empty() || is_gone && builder.default.is_some() {
        let saved = State { entries: Vec::new(), ..saved };
        return default(builder).map(|first| First { saved: Some(saved), ..first });
    }
    for Part { gray, entry } in &saved.entries {
        let is_it = |source: &Source| source.is_gray() == *gray && source.key() == entry.key();
        if let Some(layer) = sources.iter().position(is_it) {
            layers.put(layer, Some(entry.clone()));
        }
    }
    match usable(builder, layers) {
        Ok(found) => {
            let (value, version) = found?;
            Some(First { value, origin: Origin::File(version), saved: Some(saved) })
        }
        Err(refused) => {
            tracing::warn!(reason = %refused, "the snapshot file can not be used");
            None
        }
    }
}

fn to_error(refused: Rejection) -> Error {
    let Rejection { key, version, cause, reason } = refused;
    match cause {
        RejectionCause::Decode { path } => Error::Decode { key, version, path, source: reason.into() },
        RejectionCause::Validator | RejectionCause::Hook => {
            Error::invalid("value", format!("of {key} at version {version} is refused: {reason}"))
        }
    }
}

/// Starts the task that follows the sources.
fn launch<T>(
    builder: LiveBuilder<T>,
    sources: Vec<Source>,
    layers: Layers,
    feed: Option<Feed>,
    First { value, origin, saved }: First<T>,
    rejection: Option<Arc<Rejection>>,
    file: Option<Claim>,
) -> Arc<Task<T>>
where
    T: DeserializeOwned + Send + Sync + 'static,
{
    let source = ConnectivitySource::of_this_runtime();
    if feed.is_none() {
        source.lost();
    }
    let wakeups = Arc::new(Wakeups::default());
    let (each, idle) = broadcast::channel(CHANGES);
    let counters = Counters::default();
    if rejection.is_some() {
        count(&counters.rejections);
    }
    let saver = file.as_ref().map(|file| file.keep(counters.file_errors.clone()));
    let value = value.counting(&counters.rejections);
    let shared = Arc::new(Shared {
        key: builder.key.clone(),
        center: builder.center.clone(),
        now: ArcSwap::from_pointee(Current { number: 0, value, origin, rejection }),
        wakeups: wakeups.clone(),
        counters,
        connectivity: source.connectivity(),
        each: idle,
    });
    let follower =
        Follower::new(builder, sources, layers, shared.clone(), source, (Notifier(wakeups), each), saver);
    let follower = tokio::spawn(follower.run(feed, saved)).abort_handle();
    Arc::new(Task { shared, follower, _file: file })
}
