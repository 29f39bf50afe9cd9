//! Listens to all that coord traces while the tests run, at the finest level: what is stored is traced nowhere.

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    level_filters::LevelFilter,
    span,
    subscriber::SetGlobalDefaultError,
};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::FilterFn,
    fmt as print,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

/// What tests store in place of a secret. Where this is traced, a secret could be.
pub(crate) const SECRET: &str = "c4nary-of-the-conformance-run";

/// What was heard.
static HEARD: Heard =
    Heard { events: AtomicU64::new(0), spans: AtomicU64::new(0), secrets: Mutex::new(Vec::new()) };

struct Heard {
    events: AtomicU64,
    spans: AtomicU64,
    /// The places that traced the secret.
    secrets: Mutex<Vec<String>>,
}

impl Heard {
    /// Each place once.
    fn note(&self, place: String) {
        let mut secrets = self.secrets.lock().expect("nothing panics while this is locked");
        if !secrets.contains(&place) {
            secrets.push(place);
        }
    }
}

/// Listens from now on, in the whole process, and prints what `RUST_LOG` asks for.
pub(crate) fn start() -> Result<(), SetGlobalDefaultError> {
    let listening = tracing_subscriber::registry().with(listener()).with(printed());
    tracing::subscriber::set_global_default(listening)
}

/// Prints what coord traces in this process to stderr, from now on, if `RUST_LOG` is set: `RUST_LOG=coord_kv=debug`.
/// A second call, or one after somebody else listens, changes nothing.
pub(crate) fn print_traces() {
    if let Some(printed) = printed() {
        let printing = tracing_subscriber::registry().with(printed);
        let _ = tracing::subscriber::set_global_default(printing);
    }
}

/// Prints what `RUST_LOG` asks for; `None` if it is not set.
fn printed<S: Subscriber + for<'a> LookupSpan<'a>>() -> Option<impl Layer<S>> {
    std::env::var_os("RUST_LOG").filter(|filter| !filter.is_empty())?;
    // Tests have threads of their names.
    let printed = print::layer().compact().with_thread_names(true).with_writer(io::stderr);
    let printed = printed.with_ansi(io::stderr().is_terminal());
    Some(printed.with_filter(EnvFilter::from_default_env()))
}

/// Listens to what the crates of coord trace.
fn listener<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    let of_coord = FilterFn::new(|metadata| metadata.target().starts_with("coord"));
    Listener.with_filter(of_coord.with_max_level_hint(LevelFilter::TRACE))
}

/// How many events and how many spans were heard, and where the secret was among them.
pub(crate) fn heard() -> (u64, u64, Vec<String>) {
    let secrets = HEARD.secrets.lock().expect("nothing panics while this is locked");
    (HEARD.events.load(Relaxed), HEARD.spans.load(Relaxed), secrets.clone())
}

struct Listener;

impl Listener {
    fn look(metadata: &Metadata<'_>, record: impl FnOnce(&mut Words)) {
        let mut words = Words(String::new());
        record(&mut words);
        if words.0.contains(SECRET) {
            let place = format!("{}:{}", metadata.file().unwrap_or("?"), metadata.line().unwrap_or(0));
            HEARD.note(place);
        }
    }
}

impl<S: Subscriber> Layer<S> for Listener {
    fn on_new_span(&self, span: &span::Attributes<'_>, _id: &span::Id, _context: Context<'_, S>) {
        HEARD.spans.fetch_add(1, Relaxed);
        Self::look(span.metadata(), |words| span.record(words));
    }

    fn on_record(&self, _span: &span::Id, values: &span::Record<'_>, _context: Context<'_, S>) {
        let mut words = Words(String::new());
        values.record(&mut words);
        if words.0.contains(SECRET) {
            let place = format!("a field of a span: {}", words.0.replace(SECRET, "…"));
            HEARD.note(place);
        }
    }

    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        HEARD.events.fetch_add(1, Relaxed);
        Self::look(event.metadata(), |words| event.record(words));
    }
}

/// All fields of an event in one text.
struct Words(String);

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a string never fails.
        let _ = write!(self.0, "{}={value:?} ", field.name());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        // As it is: `Debug` would escape it.
        let _ = write!(self.0, "{}={value} ", field.name());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    #[expect(dead_code, reason = "is only shown")]
    struct Leak(&'static str);

    #[test]
    fn a_secret_is_heard_in_every_kind_of_field() {
        let listening = tracing_subscriber::registry().with(listener());
        tracing::subscriber::with_default(listening, || {
            tracing::trace!(target: "coord_x", key = "limits", "nothing to see");
            assert_eq!(heard().2.len(), 0);
            tracing::trace!(target: "coord_x", value = SECRET, "as text");
            tracing::debug!(target: "coord_x", value = ?Leak(SECRET), "as debug");
            tracing::warn!(target: "coord_x", "in the message: {SECRET}");
            let span = tracing::trace_span!(target: "coord_x", "in a span", value = SECRET, later = tracing::field::Empty);
            span.record("later", SECRET);
            tracing::warn!(target: "other", value = SECRET, "of another crate");
        });
        let (events, spans, secrets) = heard();
        assert!(events >= 4 && spans >= 1, "{events} events, {spans} spans");
        assert_eq!(secrets.len(), 5, "{secrets:?}");
        assert!(secrets.iter().all(|place| !place.contains(SECRET)), "{secrets:?}");
    }
}
