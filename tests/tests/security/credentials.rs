//! Passwords and tokens.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use coord_api::{BoxError, ConfigEvent, ConfigExt, Error, RegistrationStatus, ServiceInfo, Watch};
use coord_etcd::{Connect, Credentials, EtcdConfig, PlaintextPassword};
use coord_tests::{Certs, Clients, EtcdServer};
use tokio::time::{Instant, sleep, timeout};

use crate::{LIMIT, add_users, again, config, connect, refused, with_users};

async fn authentications(server: &EtcdServer) -> u64 {
    server.requests().await.expect("etcd answers").get("Authenticate").copied().unwrap_or_default()
}

async fn next(watch: &mut Watch<ConfigEvent<u32>>) -> ConfigEvent<u32> {
    timeout(LIMIT, watch.next()).await.expect("in time").expect("goes on").expect("is allowed")
}

/// A file of the test's own, gone with it.
struct PasswordFile(std::path::PathBuf);

impl PasswordFile {
    fn new(password: &str) -> Self {
        let path = std::env::temp_dir().join(format!("coord-tests-password-{:016x}", fastrand::u64(..)));
        let file = Self(path);
        file.write(password);
        file
    }

    fn write(&self, password: &str) {
        std::fs::write(&self.0, format!("{password}\n")).expect("temporary files can be written");
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_mistake_with_users_is_told_by_name() {
    let server = with_users(&[]).await;
    let missing = "/no/such/folder/password";
    let file = |path: &str| {
        let json = format!(
            r#"{{"endpoints":["{}"],"namespace":"shop","username":"shop","password_file":"{path}",
                "plaintext_password":"allowed"}}"#,
            server.endpoint()
        );
        serde_json::from_str::<EtcdConfig>(&json).expect("is good")
    };

    let (error, text) = refused(config(&server).user("shop", "wr0ng")).await;
    assert!(matches!(error, Error::Unauthenticated { .. }), "{text}");
    assert!(text.contains("user name or password have to be corrected"), "{text}");
    assert!(!format!("{text} {error:?}").contains("wr0ng"), "{text}");
    let (error, text) = refused(config(&server).user("nobody", "s3cret")).await;
    assert!(matches!(error, Error::Unauthenticated { .. }), "{text}");
    assert!(!format!("{text} {error:?}").contains("s3cret"), "{text}");
    let (error, text) = refused(config(&server)).await;
    assert!(matches!(error, Error::Unauthenticated { .. }), "{text}");

    for foreign in ["other", "shop-2", "sho"] {
        let (error, text) = refused(config(&server).namespace(foreign).user("shop", "s3cret")).await;
        assert!(matches!(error, Error::PermissionDenied { .. }), "{text}");
        assert!(text.contains("a role has to grant it"), "{text}");
    }

    let (error, text) = refused(file(missing)).await;
    assert!(matches!(error, Error::Unavailable { .. }), "{text}");
    assert!(text.contains("password") && text.contains(missing), "{text}");
    let broken = config(&server).credentials(async || Err(BoxError::from("the vault is sealed")));
    let (error, text) = refused(broken).await;
    assert!(matches!(error, Error::Unavailable { .. }), "{text}");
    assert!(text.contains("the vault is sealed"), "{text}");

    // Before anything is sent: nobody listens there.
    let unencrypted = EtcdConfig::new(["127.0.0.1:1"]).user("shop", "s3cret");
    let (error, text) = refused(unencrypted).await;
    assert!(matches!(error, Error::InvalidArgument { field: "password", .. }), "{text}");
    assert!(text.contains("`plaintext_password`") && !text.contains("s3cret"), "{text}");

    let good = PasswordFile::new("s3cret");
    connect(file(&good.0.to_string_lossy())).await.close().await.expect("closes");
}

/// Row "token idle past its life" of the faults.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_idle_past_its_life_is_replaced_under_calls_watches_and_renewals() {
    let server = with_users(&["--auth-token-ttl", "1"]).await;
    all_goes_on_while_tokens_expire(&server, config(&server)).await;
}

/// Such a token is not known to the server, which checks its signature, its end and the revision of the users in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_signed_token_that_expired_or_is_of_older_users_is_replaced_as_well() {
    let certs = Certs::new();
    let args = ["--bcrypt-cost", "4", "--auth-token", &certs.signed_tokens(2)];
    let mut server = EtcdServer::start_tls(&certs, Clients::All, &args).await.expect("starts");
    add_users(&mut server).await;
    let config = || config(&server).tls(certs.trusted());
    all_goes_on_while_tokens_expire(&server, config()).await;

    let client = connect(config().user("shop", "s3cret")).await;
    for n in 0..3 {
        server.add_user(&format!("other-{n}"), "s3cret", "read", "/other/").await.expect("etcdctl works");
        client.config().set("limits", &n).await.expect("is asked for with a token of now");
    }
    client.close().await.expect("closes");
}

/// The tokens of `server` live for less than three seconds.
async fn all_goes_on_while_tokens_expire(server: &EtcdServer, config: EtcdConfig) {
    let client = connect(config.user("shop", "s3cret")).await;
    let (locks, values) = (client.lock(), client.config());
    values.set("first", &0).await.expect("may write");
    let mut first = values.watch::<u32>("first").await.expect("is watched");
    assert!(matches!(next(&mut first).await, ConfigEvent::Snapshot { .. }));
    let lock = locks.acquire("job", Duration::from_secs(9)).await.expect("is free");
    let info = ServiceInfo::new("im", "1", "10.0.0.1", 80);
    let registration = client.registry().register(info, Duration::from_secs(9)).await.expect("registers");

    let (begun, before) = (Instant::now(), authentications(server).await);
    for round in 1..=4 {
        sleep(Duration::from_secs(3)).await;
        // The first that finds the token expired is a call, or a new watch on the stream that is open.
        if round % 2 == 0 {
            values.set("first", &round).await.expect("is written");
        }
        let key = format!("round-{round}");
        let mut watch =
            timeout(LIMIT, values.watch::<u32>(&key)).await.expect("in time").expect("is allowed");
        assert!(matches!(next(&mut watch).await, ConfigEvent::Snapshot { .. }));
        values.set(&key, &round).await.expect("is written");
        assert!(matches!(next(&mut watch).await, ConfigEvent::Set(_)));
        if round % 2 == 0 {
            assert!(matches!(next(&mut first).await, ConfigEvent::Set(set) if set.value == round));
        }
        assert!(!lock.is_lost(), "after {:?}", begun.elapsed());
    }
    assert!(begun.elapsed() > Duration::from_secs(9), "longer than the leases live without renewal");
    assert_eq!(registration.status(), RegistrationStatus::Registered);
    lock.unlock().await.expect("was held all the time");
    let after = authentications(server).await;
    println!("{} authentications in {:?}", after - before, begun.elapsed());
    assert!(after - before >= 3, "the token was expired, so this shows something: {before}, {after}");
    client.close().await.expect("closes");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_calls_whose_token_is_refused_cost_one_authentication() {
    let server = with_users(&["--auth-token-ttl", "1"]).await;
    let client = connect(config(&server).user("shop", "s3cret")).await;
    let values = client.config();
    let before = authentications(&server).await;
    sleep(Duration::from_secs(3)).await;
    let calls = (0..100).map(|n| {
        let values = values.clone();
        async move { values.get::<u32>(&format!("key-{n}")).await }
    });
    let answers = futures::future::join_all(calls).await;
    let failed = answers.into_iter().find_map(Result::err);
    assert!(failed.is_none(), "{failed:?}");
    assert_eq!(authentications(&server).await - before, 1);
}

/// Row "password rotated" of the faults.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_that_is_replaced_is_taken_from_its_file_and_nothing_is_lost() {
    const TTL: Duration = Duration::from_secs(9);
    let server = with_users(&[]).await;
    let file = PasswordFile::new("s3cret");
    let mut by_file = config(&server);
    (by_file.username, by_file.password_file) = (Some("shop".into()), Some(file.0.clone()));
    let client = connect(by_file).await;
    let values = client.config();
    let mut watch = values.watch::<u32>("limits").await.expect("is watched");
    assert!(matches!(next(&mut watch).await, ConfigEvent::Snapshot { .. }));
    let lock = client.lock().acquire("job", TTL).await.expect("is free");
    let waiting = client.lock();
    let waiter = tokio::spawn(async move { waiting.acquire("job", TTL).await });
    let info = ServiceInfo::new("im", "1", "10.0.0.1", 80);
    let registration = client.registry().register(info, TTL).await.expect("registers");

    server.change_password("shop", "n3w").await.expect("etcdctl works");
    let changed = Instant::now();
    let error = values.set("limits", &1).await.expect_err("the secret is not there yet");
    assert!(matches!(error, Error::Unauthenticated { .. }), "{error:?}");
    sleep(Duration::from_secs(2)).await;
    assert!(!waiter.is_finished(), "who waits goes on waiting");
    file.write("n3w");
    again("with the new password", async || values.set("limits", &2).await).await;
    println!("written {:?} after the password was changed", changed.elapsed());
    assert!(matches!(next(&mut watch).await, ConfigEvent::Set(set) if set.value == 2));

    while changed.elapsed() < TTL + Duration::from_secs(1) {
        sleep(Duration::from_millis(100)).await;
        assert!(!lock.is_lost(), "after {:?}", changed.elapsed());
        assert_eq!(registration.status(), RegistrationStatus::Registered);
    }
    let token = lock.token();
    lock.unlock().await.expect("was held all the time");
    let next = timeout(LIMIT, waiter).await.expect("in time").expect("no panic").expect("is its turn");
    assert!(next.token() > token);
    client.close().await.expect("closes");
}

/// What is given back while the password is the old one is given back when the new one is there.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_dropped_while_the_password_is_wrong_is_free_afterwards() {
    const TTL: Duration = Duration::from_secs(600);
    let server = with_users(&[]).await;
    let file = PasswordFile::new("s3cret");
    let mut by_file = config(&server);
    (by_file.username, by_file.password_file) = (Some("shop".into()), Some(file.0.clone()));
    let client = connect(by_file).await;
    let lock = client.lock().acquire("job", TTL).await.expect("is free");
    let info = ServiceInfo::new("im", "1", "10.0.0.1", 80);
    let registration = client.registry().register(info, TTL).await.expect("registers");
    let ids = client.instance_id_allocator("im", 2).expect("is good");
    ids.acquire_id().await.expect("is free");

    server.change_password("shop", "n3w").await.expect("etcdctl works");
    drop((lock, registration, ids));
    sleep(Duration::from_secs(1)).await;
    file.write("n3w");
    let other = connect(config(&server).user("shop", "n3w")).await;
    let free = timeout(LIMIT, other.lock().acquire("job", TTL)).await;
    drop(free.expect("long before its time to live is over").expect("etcd answers"));
    again("the instance is gone", async || match other.registry().discover("im").await?.as_slice() {
        [] => Ok(()),
        _ => Err(Error::Closed),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_provider_is_asked_until_etcd_accepts_what_it_says() {
    let server = with_users(&[]).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let provider = {
        let asked = asked.clone();
        move || {
            let turn = asked.fetch_add(1, Relaxed);
            async move {
                match turn {
                    0 => Err("the vault is sealed".into()),
                    1 | 2 => Ok::<_, BoxError>(Credentials::new("shop", "of yesterday")),
                    _ => Ok(Credentials::new("shop", "s3cret")),
                }
            }
        }
    };
    let client = connect(config(&server).credentials(provider).connect(Connect::Lazily)).await;
    again("the provider has the password", async || client.config().set("limits", &1).await).await;
    assert_eq!(asked.load(Relaxed), 4);
    for n in 0..20 {
        client.config().set("limits", &n).await.expect("is let in");
    }
    assert_eq!(asked.load(Relaxed), 4, "only when it is needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn authentication_may_be_enabled_while_the_service_runs() {
    let mut server = EtcdServer::start_with(&["--bcrypt-cost", "4"]).await.expect("starts");
    let plain = config(&server).user("shop", "s3cret").plaintext_password(PlaintextPassword::Allowed);
    let client = connect(plain).await;
    client.config().set("limits", &1).await.expect("everyone may");
    server.etcdctl(&["user", "add", "shop:s3cret"]).await.expect("etcdctl works");
    server.etcdctl(&["role", "add", "coord-shop"]).await.expect("etcdctl works");
    let grant = ["role", "grant-permission", "coord-shop", "--prefix=true", "readwrite", "/shop/"];
    server.etcdctl(&grant).await.expect("etcdctl works");
    server.etcdctl(&["user", "grant-role", "shop", "coord-shop"]).await.expect("etcdctl works");
    server.enable_auth().await.expect("etcdctl works");
    client.config().set("limits", &2).await.expect("the user may");
    let lock = client.lock().acquire("job", LIMIT).await.expect("is free");
    lock.unlock().await.expect("is held");
}
