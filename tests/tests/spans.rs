//! The spans of coord: what a call waits for, each request, and the life of each lease. A subscriber records all of them,
//! with all fields and events, on every thread.

use std::{
    collections::BTreeMap,
    fmt::{Debug, Write as _},
    sync::{Mutex, MutexGuard, Once},
    time::Duration,
};

use coord::{Coordinator, LossReason, ServiceInfo, prelude::*};
use coord_tests::{EtcdServer, Proxy};
use tokio::time::{sleep, timeout};
use tracing::{
    Event, Instrument, Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{
    Layer,
    layer::{Context, SubscriberExt},
    registry::LookupSpan,
};

const LIMIT: Duration = Duration::from_secs(30);

/// All spans of this process.
static SPANS: Mutex<BTreeMap<u64, Recorded>> = Mutex::new(BTreeMap::new());

/// Span as it was made, with all that happened in it.
#[derive(Clone, Debug, Default)]
struct Recorded {
    name: &'static str,
    fields: BTreeMap<&'static str, String>,
    parent: Option<u64>,
    events: Vec<String>,
    is_closed: bool,
}

impl Recorded {
    fn has(&self, event: &str) -> bool {
        self.events.iter().any(|it| it.contains(event))
    }

    fn is_below(&self, above: u64) -> bool {
        self.parent.is_some_and(|parent| parent == above || spans()[&parent].is_below(above))
    }
}

fn locked() -> MutexGuard<'static, BTreeMap<u64, Recorded>> {
    SPANS.lock().expect("nothing panics while this is locked")
}

fn spans() -> BTreeMap<u64, Recorded> {
    locked().clone()
}

fn named(name: &str) -> Vec<Recorded> {
    spans().into_values().filter(|span| span.name == name).collect()
}

/// The requests that were made below a span, by operation.
fn requests_below(above: u64) -> Vec<String> {
    let below = named("txn").into_iter().filter(|span| span.is_below(above));
    below.map(|span| span.fields["operation"].clone()).collect()
}

struct Recorder;

/// Records from now on, in the whole process.
fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let listening = tracing_subscriber::registry().with(Recorder);
        tracing::subscriber::set_global_default(listening).expect("nobody else listens");
    });
}

struct Fields<'a>(&'a mut BTreeMap<&'static str, String>);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, span: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let parent = match span.parent() {
            Some(parent) => Some(parent.into_u64()),
            None if span.is_contextual() => context.lookup_current().map(|span| span.id().into_u64()),
            None => None,
        };
        let mut recorded = Recorded { name: span.metadata().name(), parent, ..Recorded::default() };
        span.record(&mut Fields(&mut recorded.fields));
        // Ids are used again: what was recorded of a closed span goes out of the way.
        let mut spans = locked();
        if let Some(before) = spans.insert(id.into_u64(), recorded) {
            assert!(before.is_closed);
            let free = spans.keys().next_back().map_or(0, |last| (*last).max(1 << 63) + 1);
            spans.insert(free, before);
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _context: Context<'_, S>) {
        if let Some(span) = locked().get_mut(&id.into_u64()) {
            values.record(&mut Fields(&mut span.fields));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let Some(id) = context.event_span(event).map(|span| span.id().into_u64()) else { return };
        let mut fields = BTreeMap::new();
        event.record(&mut Fields(&mut fields));
        let mut text = fields.remove("message").unwrap_or_default();
        for (name, value) in fields {
            let _ = write!(text, " {name}={value}");
        }
        if let Some(span) = locked().get_mut(&id) {
            span.events.push(text);
        }
    }

    fn on_close(&self, id: Id, _context: Context<'_, S>) {
        if let Some(span) = locked().get_mut(&id.into_u64()) {
            span.is_closed = true;
        }
    }
}

/// Waits until a span is there of which `is_it` says so.
async fn seen(what: &str, is_it: impl Fn(&Recorded) -> bool) -> Recorded {
    let look = async {
        loop {
            if let Some(span) = spans().into_values().find(&is_it) {
                return span;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LIMIT, look).await.unwrap_or_else(|_| panic!("no span {what}: {:#?}", spans()))
}

fn span_of(caller: &tracing::Span) -> u64 {
    caller.id().expect("is listened to").into_u64()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_on_etcd_has_its_span_and_each_request_its_operation() {
    let server = EtcdServer::start().await.unwrap_or_else(|error| panic!("{error:#}"));
    each_call_has_its_span_and_each_request_its_operation(&server.coord_url("calls")).await;
}

/// For any backend on coord-kv.
async fn each_call_has_its_span_and_each_request_its_operation(url: &str) {
    listen();
    let coordinator = Coordinator::connect(url).await.expect("the store answers");
    let caller = tracing::info_span!("caller");
    let calls = async {
        let guard = coordinator.lock().acquire("calls", Duration::from_secs(2)).await.expect("is free");
        let none =
            coordinator.lock().try_acquire("calls", Duration::from_secs(2)).await.expect("etcd answers");
        assert!(none.is_none());
        let info = ServiceInfo::new("calls", "1", "10.0.0.1", 80);
        let registration =
            coordinator.registry().register(info, Duration::from_secs(20)).await.expect("registers");
        coordinator.config().set("calls", &"a value").await.expect("is written");
        let ids = coordinator.instance_id_allocator("calls-ids", 4).expect("is good");
        ids.acquire_id().await.expect("is free");
        (guard, registration, ids)
    };
    let held = calls.instrument(caller.clone()).await;

    let acquires: Vec<_> = named("acquire").into_iter().filter(|it| it.fields["name"] == "calls").collect();
    assert_eq!(acquires.len(), 2, "{acquires:#?}");
    for acquire in acquires {
        assert_eq!(acquire.fields["kind"], "lock");
        assert!(acquire.is_closed && acquire.has("answered waited="), "{acquire:#?}");
        assert!(acquire.is_below(span_of(&caller)));
    }
    let id = seen("of an id", |it| it.name == "acquire" && it.fields["name"] == "calls-ids").await;
    assert_eq!(id.fields["kind"], "id");
    assert!(id.is_below(span_of(&caller)), "{id:#?}");

    // Requests of locks are sent by a task that all callers share, and so are below none of them.
    let below = requests_below(span_of(&caller));
    for operation in ["grant a lease", "register", "write config values", "claim an id"] {
        assert!(below.iter().any(|it| it == operation), "{operation}: {below:?}");
    }
    let all = named("txn");
    assert!(all.iter().any(|it| it.fields["operation"] == "lock"), "{all:#?}");
    for request in &all {
        assert!(!request.fields["operation"].is_empty(), "{request:#?}");
        assert!(!request.is_closed || request.has("answered") || request.has("failed"), "{request:#?}");
    }

    // A lease is of no call, and is there until it is revoked.
    let renewed = seen("of a renewed lease", |it| it.name == "lease" && it.has("lease renewed")).await;
    assert!(renewed.parent.is_none() && renewed.has("lease granted lease="), "{renewed:#?}");
    let id = renewed.fields["id"].clone();
    drop(held);
    coordinator.close().await.expect("etcd answers");
    let ended = seen("of that lease at its end", |it| {
        it.name == "lease" && it.fields["id"] == id && it.has("lease revoked") && it.is_closed
    });
    assert!(!ended.await.has("lease lost"));
}

#[tokio::test(flavor = "multi_thread")]
async fn lost_lease_tells_in_its_span_why() {
    listen();
    let server = EtcdServer::start().await.unwrap_or_else(|error| panic!("{error:#}"));
    let coordinator = Coordinator::connect(&server.coord_url("lost")).await.expect("etcd answers");
    let guard = coordinator.lock().acquire("lost", Duration::from_secs(20)).await.expect("is free");
    let lease = guard.key().rsplit('/').next().expect("has a last part").split('-').next();
    let lease = lease.expect("begins with its lease").to_owned();
    server.etcdctl(&["lease", "revoke", &lease]).await.expect("etcdctl works");
    server.etcdctl(&["del", guard.key()]).await.expect("etcdctl works");
    timeout(LIMIT, guard.lost()).await.expect("is told");
    let ended = seen("of a lost lease", |it| it.name == "lease" && it.has("lease lost")).await;
    assert!(ended.has(&format!("reason={}", LossReason::Revoked)), "{ended:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn repeated_attempt_tells_in_its_span_why() {
    listen();
    let server = EtcdServer::start().await.unwrap_or_else(|error| panic!("{error:#}"));
    let target = server.endpoint().trim_start_matches("http://").to_owned();
    let way = Proxy::start(target).await.expect("a port is free");
    let url = format!("etcd://{}/again", way.address());
    let coordinator = Coordinator::connect(&url).await.expect("etcd answers");
    let caller = tracing::info_span!("caller");
    way.refuse();
    let reading = async move { coordinator.config().get::<u32>("again").await };
    let reading = tokio::spawn({
        let caller = caller.clone();
        reading.instrument(caller)
    });
    let above = span_of(&caller);
    let again = |it: &Recorded| it.name == "txn" && it.is_below(above) && it.has("a request is made again");
    let told = timeout(LIMIT, async {
        while !spans().values().any(again) {
            sleep(Duration::from_millis(20)).await;
        }
    });
    let told = told.await;
    way.restore();
    assert!(told.is_ok(), "{:#?}", spans());
    assert_eq!(reading.await.expect("no panic").expect("etcd answers again"), None);
    let span = spans().into_values().find(again).expect("was there");
    let event = span.events.iter().find(|it| it.contains("a request is made again")).expect("is there");
    assert!(event.contains("error=") && event.contains("operation=read config values"), "{event}");
}
