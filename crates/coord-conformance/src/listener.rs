//! Listens to all that coord traces while the tests run, at the finest level: what is stored is traced nowhere.

use std::{
    fmt::{self, Write as _},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
    span,
    subscriber::{Interest, SetGlobalDefaultError},
};

/// What tests store in place of a secret. Where this is traced, a secret could be.
pub(crate) const SECRET: &str = "c4nary-of-the-conformance-run";

/// What was heard.
static HEARD: Heard = Heard { events: AtomicU64::new(0), secrets: Mutex::new(Vec::new()) };

struct Heard {
    events: AtomicU64,
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

/// Listens from now on, in the whole process.
pub(crate) fn start() -> Result<(), SetGlobalDefaultError> {
    tracing::subscriber::set_global_default(Listener { spans: AtomicU64::new(1) })
}

/// How many events were heard, and where the secret was among them.
pub(crate) fn heard() -> (u64, Vec<String>) {
    let secrets = HEARD.secrets.lock().expect("nothing panics while this is locked");
    (HEARD.events.load(Relaxed), secrets.clone())
}

struct Listener {
    spans: AtomicU64,
}

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

impl Subscriber for Listener {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("coord")
    }

    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        Self::look(span.metadata(), |words| span.record(words));
        span::Id::from_u64(self.spans.fetch_add(1, Relaxed))
    }

    fn record(&self, _span: &span::Id, values: &span::Record<'_>) {
        let mut words = Words(String::new());
        values.record(&mut words);
        if words.0.contains(SECRET) {
            let place = format!("a field of a span: {}", words.0.replace(SECRET, "…"));
            HEARD.note(place);
        }
    }

    fn record_follows_from(&self, _span: &span::Id, _follows: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        HEARD.events.fetch_add(1, Relaxed);
        Self::look(event.metadata(), |words| event.record(words));
    }

    fn enter(&self, _span: &span::Id) {}

    fn exit(&self, _span: &span::Id) {}
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
        let listener = Listener { spans: AtomicU64::new(1) };
        tracing::subscriber::with_default(listener, || {
            tracing::trace!(target: "coord_x", key = "limits", "nothing to see");
            assert_eq!(heard().1.len(), 0);
            tracing::trace!(target: "coord_x", value = SECRET, "as text");
            tracing::debug!(target: "coord_x", value = ?Leak(SECRET), "as debug");
            tracing::warn!(target: "coord_x", "in the message: {SECRET}");
            let span = tracing::trace_span!(target: "coord_x", "in a span", value = SECRET, later = tracing::field::Empty);
            span.record("later", SECRET);
            tracing::warn!(target: "other", value = SECRET, "of another crate");
        });
        let (events, secrets) = heard();
        assert!(events >= 4, "{events}");
        assert_eq!(secrets.len(), 5, "{secrets:?}");
        assert!(secrets.iter().all(|place| !place.contains(SECRET)), "{secrets:?}");
    }
}
