//! One secret in every place where there may be one, and everything that can be seen from outside: nothing shows it.
//!
//! All crates are listened to here, at the finest level, and on every thread: what the connection and the TLS library
//! trace goes to the same logs.

use std::{
    fmt::{Debug, Write as _},
    io,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use coord::{Config, Coordinator, Error, ServiceInfo, prelude::*};
use coord_api::BoxError;
use coord_etcd::{Connect, Credentials, EtcdConfig, PlaintextPassword};
use coord_tests::{Cert, Certs, Clients, EtcdServer};
use tracing_subscriber::fmt::format::FmtSpan;

/// In base64 and alike this would not be found, but nobody encodes what leaks by mistake.
const SECRET: &str = "c4nary-s3cret";
const TTL: Duration = Duration::from_secs(20);

/// All that was traced in this process.
static TRACED: LazyLock<Traced> = LazyLock::new(|| {
    let traced = Traced::default();
    let writer = traced.clone();
    let listener = tracing_subscriber::fmt().with_ansi(false).with_max_level(tracing::Level::TRACE);
    // Each span as well, with all its fields, though nothing should happen in it.
    let listener = listener.with_span_events(FmtSpan::NEW | FmtSpan::CLOSE);
    listener.with_writer(move || writer.clone()).init();
    traced
});

#[derive(Clone, Default)]
struct Traced(Arc<Mutex<Vec<u8>>>);

impl io::Write for Traced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nothing panics while this is locked").extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Traced {
    fn text(&self) -> String {
        let bytes = self.0.lock().expect("nothing panics while this is locked");
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

/// Everything that was shown in another way.
#[derive(Default)]
struct Shown(String);

impl Shown {
    fn debug(&mut self, what: impl Debug) {
        // Writing into a string never fails.
        let _ = writeln!(self.0, "{what:?} {what:#?}");
    }

    fn outcome<T: Debug>(&mut self, outcome: Result<T, Error>) -> Option<T> {
        self.debug(&outcome);
        let error = match outcome {
            Ok(done) => return Some(done),
            Err(error) => error,
        };
        let mut cause: Option<&dyn std::error::Error> = Some(&error);
        while let Some(error) = cause {
            let _ = writeln!(self.0, "{error} {error:?}");
            cause = error.source();
        }
        None
    }
}

fn is_clean(what: &str, text: &str, secret: &str) {
    let line = text.lines().find(|line| line.contains(secret));
    assert_eq!(line, None, "{what} shows a secret");
}

/// The main operations with the secret as value, and their failures.
async fn use_it(shown: &mut Shown, coordinator: &Coordinator) {
    let (config, registry, locks) = (coordinator.config(), coordinator.registry(), coordinator.lock());
    shown.debug((coordinator, &config, &registry, &locks, coordinator.instance_ids()));
    shown.outcome(config.set("k", &SECRET).await);
    shown.outcome(config.get_entry("k").await);
    shown.outcome(config.get::<u32>("k").await);
    shown.outcome(config.compare_and_set("k", Version::ABSENT, &SECRET).await);
    shown.outcome(config.set("k", &SECRET.repeat(100_000)).await);
    let live = config.live::<u32>("k").default(1).start().await;
    let live = shown.outcome(live).expect("has a default");
    shown.debug((live.state(), live.origin()));
    let guard = shown.outcome(locks.acquire("job", TTL).await).expect("is free");
    shown.outcome(config.set_if_held(&guard, "k", &SECRET).await);
    shown.outcome(locks.holders("job").await);
    shown.outcome(guard.unlock().await);
    let info = ServiceInfo::new("im", "1", "10.0.0.1", 80);
    let registration = shown.outcome(registry.register(info, TTL).await).expect("registers");
    shown.outcome(registry.discover("im").await);
    shown.outcome(registration.deregister().await);
    let ids = shown.outcome(coordinator.instance_id_allocator("im", 16)).expect("is good");
    shown.outcome(ids.acquire_id().await);
    shown.outcome(ids.release_id().await);
    shown.outcome(coordinator.close().await);
    shown.outcome(config.set("k", &SECRET).await);
}

fn check(shown: &Shown, secret: &str) {
    tracing::trace!("the finest level is listened to");
    let traced = TRACED.text();
    assert!(traced.contains("the finest level is listened to"));
    is_clean("a trace", &traced, secret);
    is_clean("a Debug, a Display or an error", &shown.0, secret);
}

#[tokio::test]
async fn on_memory_nothing_shows_a_value() {
    LazyLock::force(&TRACED);
    let mut shown = Shown::default();
    let config = Config::from_url("memory://").expect("is good");
    shown.debug(&config);
    let coordinator = Coordinator::connect_with(config).await.expect("is there");
    use_it(&mut shown, &coordinator).await;
    check(&shown, SECRET);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_etcd_nothing_shows_a_value_or_a_password() {
    LazyLock::force(&TRACED);
    let mut server =
        EtcdServer::start_with(&["--bcrypt-cost", "4", "--auth-token-ttl", "1"]).await.expect("starts");
    server.enable_auth().await.expect("etcdctl works");
    server.add_user("shop", SECRET, "readwrite", "/shop/").await.expect("etcdctl works");
    let path = std::env::temp_dir().join(format!("coord-tests-secret-{:016x}", fastrand::u64(..)));
    let mut shown = Shown::default();
    let unchecked = || EtcdConfig::new([server.endpoint()]).namespace("shop");
    let config = || unchecked().plaintext_password(PlaintextPassword::Allowed);

    // Good ones, each used to the end.
    std::fs::write(&path, SECRET).expect("is written");
    let mut by_file = config();
    (by_file.username, by_file.password_file) = (Some("shop".into()), Some(path.clone()));
    let provider = async || Ok::<_, BoxError>(Credentials::new("shop", SECRET));
    shown.debug(Credentials::new("shop", SECRET));
    for config in [config().user("shop", SECRET), by_file.clone(), config().credentials(provider)] {
        let config = Config::Etcd(config);
        shown.debug(&config);
        let coordinator = Coordinator::connect_with(config).await;
        let coordinator = shown.outcome(coordinator).expect("is let in");
        // So that the token has to be got anew under way.
        tokio::time::sleep(Duration::from_secs(2)).await;
        use_it(&mut shown, &coordinator).await;
    }

    // Mistakes.
    let connect = async |shown: &mut Shown, config: EtcdConfig| {
        shown.debug(&config);
        let outcome = Coordinator::connect_with(Config::Etcd(config)).await;
        assert!(shown.outcome(outcome).is_none(), "is refused");
    };
    connect(&mut shown, unchecked().user("shop", SECRET)).await;
    connect(&mut shown, config().user("shop", format!("{SECRET}-wrong"))).await;
    connect(&mut shown, config().user("nobody", SECRET)).await;
    connect(&mut shown, config().user("", SECRET)).await;
    connect(&mut shown, config().namespace("other").user("shop", SECRET)).await;
    connect(&mut shown, EtcdConfig::new([format!("shop:{SECRET}@127.0.0.1:1")])).await;
    connect(&mut shown, EtcdConfig::new(["127.0.0.1:1"]).user("shop", SECRET)).await;
    shown.outcome(Config::from_url(&format!("etcd://shop:{SECRET}@127.0.0.1:1/shop")));
    // Nothing that a label must not have is told back.
    let labelled = Coordinator::connect_with(Config::Etcd(config().label(format!("{SECRET}\n")))).await;
    assert!(shown.outcome(labelled).is_none(), "is refused");
    let unread = serde_json::from_str::<Config>(&format!(
        r#"{{"backend":"etcd","endpoints":["h:1"],"username":"shop","password":["{SECRET}"]}}"#
    ));
    shown.debug(unread.expect_err("is no password"));

    // A password that is wrong for a while.
    std::fs::write(&path, format!("{SECRET}-not-yet")).expect("is written");
    let late = Coordinator::connect_with(Config::Etcd(by_file.connect(Connect::Lazily))).await;
    let late = shown.outcome(late).expect("needs no etcd");
    assert!(shown.outcome(late.config().set("k", &SECRET).await).is_none());
    std::fs::write(&path, SECRET).expect("is written");
    while shown.outcome(late.config().set("k", &SECRET).await).is_none() {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    use_it(&mut shown, &late).await;
    std::fs::remove_file(&path).expect("is removed");
    check(&shown, SECRET);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_tls_nothing_shows_a_private_key() {
    LazyLock::force(&TRACED);
    let certs = Certs::new();
    let server = EtcdServer::start_tls(&certs, Clients::WithCertificate, &[]).await.expect("starts");
    let key = std::fs::read_to_string(certs.path("client.key")).expect("is there");
    let secret = key.lines().nth(1).expect("has lines").to_owned();
    let mut shown = Shown::default();
    let config = || EtcdConfig::new([server.endpoint()]).namespace("shop").tls(certs.mutual());
    shown.debug(config());
    let coordinator = Coordinator::connect_with(Config::Etcd(config())).await;
    let coordinator = shown.outcome(coordinator).expect("is let in");
    use_it(&mut shown, &coordinator).await;
    for kind in [Cert::Expired, Cert::Untrusted, Cert::WrongName] {
        certs.server(kind);
        let outcome = Coordinator::connect_with(Config::Etcd(config())).await;
        assert!(shown.outcome(outcome).is_none(), "{kind:?}");
    }
    // A key where a certificate should be, and one that is cut off.
    let mut files = certs.mutual();
    files.ca_file = Some(certs.path("client.key"));
    assert!(shown.outcome(Coordinator::connect_with(Config::Etcd(config().tls(files))).await).is_none());
    std::fs::write(certs.path("client.key"), &key[..key.len() / 2]).expect("is written");
    assert!(shown.outcome(Coordinator::connect_with(Config::Etcd(config())).await).is_none());
    check(&shown, &secret);
    check(&shown, SECRET);
}
