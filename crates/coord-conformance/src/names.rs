//! Bad arguments, refused by their name before anything is sent; and odd ones that must work.

use std::{collections::BTreeMap, time::Duration};

use coord_api::{
    Batch, ConfigExt, DistributedLockExt, MAX_BATCH_KEYS, MAX_MAX_ID, MAX_NAME_BYTES, ServiceInfo, Version,
    WEIGHT,
};

use crate::{
    World,
    expect::{expect_invalid, expect_too_large},
    suite::tests,
    tools::{LIMIT, LONG, within},
};

/// Every name that is bad wherever a name is taken.
fn bad_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "/a",
        "a/",
        "/",
        "//",
        "a//b",
        ".",
        "..",
        "a/..",
        "../services/x",
        "a/./b",
        "a/../b",
        "a\0",
        "a\nb",
        "a\tb",
        "\u{7f}",
        "\u{85}",
        " a",
        "a ",
        " ",
        "a/ b",
        "a /b",
        "\u{a0}a",
        "a%2Fb",
        "%",
        "a%b",
    ]
    .map(String::from)
    .into();
    names.push("x".repeat(MAX_NAME_BYTES + 1));
    // 255 characters, but more bytes.
    names.push("\u{65e5}".repeat(86));
    names
}

/// Names that look odd and are good, of which no two may meet.
fn odd_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "a",
        "A",
        "a b",
        "...",
        "a..b",
        "..a",
        ".a",
        "jobs/\u{65e5}\u{62a5}",
        "host:8080",
        "[::1]:80",
        "a-b_c.d~e",
        "*",
        "?",
        "#",
        "\\",
        "\"",
        "'",
        "{}",
        "$HOME",
        "a+b=c&d",
        "\u{1f600}",
        "e\u{301}",
        "\u{e9}",
        "a/b/c/d/e/f/g/h",
        "null",
        "0",
        "config",
        "locks",
        "2F",
    ]
    .map(String::from)
    .into();
    names.push("y".repeat(MAX_NAME_BYTES));
    names.push(["z"; 128].join("/"));
    names
}

/// Nothing was stored, and nothing that was stored before was changed.
async fn nothing_is_stored(world: &dyn World) {
    assert_eq!(world.keys().await, [""; 0]);
}

fn info(name: &str, id: &str) -> ServiceInfo {
    ServiceInfo::new(name, id, "10.0.0.1", 80)
}

tests! { "names";
    /// Contract 11: every bad lock name is refused by every call that takes one, and nothing is stored.
    async fn bad_lock_names_are_refused(world: &dyn World) {
        let locks = world.client().await.lock();
        for name in bad_names().iter().map(String::as_str).chain([""]) {
            expect_invalid("lock name", name, locks.acquire(name, LONG).await);
            expect_invalid("lock name", name, locks.try_acquire(name, LONG).await);
            expect_invalid("lock name", name, locks.acquire_within(name, LONG, LIMIT).await);
            expect_invalid("lock name", name, locks.holders(name).await);
        }
        nothing_is_stored(world).await;
    }

    /// Contract 11: every bad service name is refused by every call that takes one, and nothing is stored.
    async fn bad_service_names_are_refused(world: &dyn World) {
        let client = world.client().await;
        let registry = client.registry();
        for name in bad_names().iter().map(String::as_str).chain([""]) {
            expect_invalid("service name", name, registry.register(info(name, "1"), LONG).await);
            expect_invalid("service name", name, registry.discover(name).await);
            expect_invalid("service name", name, registry.watch(name).await);
            expect_invalid("service name", name, client.provider.instance_id_allocator(name, 10));
        }
        nothing_is_stored(world).await;
    }

    /// Contract 11: every bad instance id is refused, and nothing is stored.
    async fn bad_instance_ids_are_refused(world: &dyn World) {
        let registry = world.client().await.registry();
        for id in bad_names().iter().map(String::as_str).chain([""]) {
            expect_invalid("instance id", id, registry.register(info("svc", id), LONG).await);
        }
        nothing_is_stored(world).await;
    }

    /// Contract 11: every bad config key is refused by every call that takes one, and nothing is stored.
    async fn bad_config_keys_are_refused(world: &dyn World) {
        let config = world.client().await.config();
        for key in bad_names().iter().map(String::as_str).chain([""]) {
            expect_invalid("config key", key, config.get::<u32>(key).await);
            expect_invalid("config key", key, config.get_entry(key).await);
            expect_invalid("config key", key, config.set(key, &1).await);
            expect_invalid("config key", key, config.compare_and_set(key, Version::ABSENT, &1).await);
            expect_invalid("config key", key, config.delete(key).await);
            expect_invalid("config key", key, config.update(key, |old: Option<u32>| old.unwrap_or(0)).await);
            expect_invalid("config key", key, config.watch::<u32>(key).await);
            expect_invalid("config key", key, Batch::new().require(key, Version::ABSENT));
            expect_invalid("config key", key, Batch::new().delete(key));
        }
        nothing_is_stored(world).await;
    }

    /// Contract 11: every bad config prefix is refused by every call that takes one; the empty one is good.
    async fn bad_config_prefixes_are_refused(world: &dyn World) {
        let config = world.client().await.config();
        for prefix in &bad_names() {
            expect_invalid("config prefix", prefix, config.list(prefix).await);
            expect_invalid("config prefix", prefix, config.watch_prefix::<u32>(prefix).await);
        }
        assert_eq!(config.list("").await.expect("is answered"), []);
        drop(config.watch_prefix::<u32>("").await.expect("is answered"));
        nothing_is_stored(world).await;
    }

    /// Contract 1: a TTL below 1 s or above 24 h is refused for locks and registrations, and nothing is
    /// stored.
    async fn bad_ttls_are_refused(world: &dyn World) {
        let client = world.client().await;
        let (locks, registry) = (client.lock(), client.registry());
        for ttl in [
            Duration::ZERO,
            Duration::from_nanos(1),
            Duration::from_millis(500),
            Duration::from_nanos(999_999_999),
            Duration::from_secs(24 * 3600) + Duration::from_nanos(1),
            Duration::from_secs(25 * 3600),
            Duration::MAX,
        ] {
            let shown = format!("{ttl:?}");
            expect_invalid("ttl", &shown, locks.acquire("job", ttl).await);
            expect_invalid("ttl", &shown, locks.try_acquire("job", ttl).await);
            expect_invalid("ttl", &shown, registry.register(info("svc", "1"), ttl).await);
        }
        nothing_is_stored(world).await;
        for ttl in [Duration::from_secs(1), Duration::from_secs(24 * 3600)] {
            let guard = within(LIMIT, locks.acquire("job", ttl)).await.expect("is within the limits");
            assert!(guard.ttl() >= ttl);
            guard.unlock().await.expect("is held");
        }
    }

    /// Contract 11: every bad field of an instance is refused by its name, and nothing is stored.
    async fn bad_instances_are_refused(world: &dyn World) {
        let registry = world.client().await.registry();
        let long = "a".repeat(254);
        for address in [
            "",
            "0.0.0.0",
            "::",
            "[::1]",
            "10.0.0.1:80",
            "host:80",
            "a\nb",
            "a b",
            "http://h",
            "h/x",
            "[::]",
            " h",
            &long,
        ] {
            let bad = ServiceInfo::new("svc", "1", address, 80);
            expect_invalid("address", address, registry.register(bad, LONG).await);
        }
        let bad = ServiceInfo::new("svc", "1", "10.0.0.1", 0);
        expect_invalid("port", "0", registry.register(bad, LONG).await);
        for weight in ["NaN", "inf", "-1", "0", "", "heavy", "1e999"] {
            let bad = info("svc", "1").with(WEIGHT, weight);
            expect_invalid("metadata", weight, registry.register(bad, LONG).await);
        }
        for key in ["", "a\nb", "\0"] {
            expect_invalid("metadata", key, registry.register(info("svc", "1").with(key, "v"), LONG).await);
        }
        expect_too_large(
            "metadata",
            registry.register(info("svc", "1").with("k", "v".repeat(4096)), LONG).await,
        );
        nothing_is_stored(world).await;
    }

    /// Contract 11: bad metadata is refused by an update as by a registration, and the old stays.
    async fn bad_metadata_is_refused_by_updates(world: &dyn World) {
        let registry = world.client().await.registry();
        let good = info("svc", "1").with(WEIGHT, "2.5");
        let registration = within(LIMIT, registry.register(good.clone(), LONG)).await.expect("is free");
        for (key, value) in [(WEIGHT, "NaN"), ("", "v"), ("a\nb", "v")] {
            let metadata = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            expect_invalid("metadata", key, registration.update(metadata).await);
        }
        assert_eq!(registry.discover("svc").await.expect("is answered"), [good]);
    }

    /// Contract 11: a range of ids that is empty or too large is refused.
    async fn bad_ranges_are_refused(world: &dyn World) {
        let client = world.client().await;
        for max_id in [0, 1, MAX_MAX_ID + 1, u32::MAX] {
            expect_invalid(
                "max_id",
                &max_id.to_string(),
                client.provider.instance_id_allocator("svc", max_id),
            );
        }
        for max_id in [2, MAX_MAX_ID] {
            let id = within(LIMIT, client.ids("svc", max_id).acquire_id()).await.expect("is free");
            assert!(id.get() < max_id);
        }
    }

    /// Contract 11: a batch that writes one key twice, or too many, is refused.
    async fn bad_batches_are_refused(world: &dyn World) {
        let twice = Batch::new().set("key", &1).and_then(|batch| batch.delete("key"));
        expect_invalid("batch", "one key twice", twice);
        let twice = Batch::new()
            .require("key", Version::ABSENT)
            .and_then(|batch| batch.require("key", Version::new(1)));
        expect_invalid("batch", "two conditions on one key", twice);
        let guard = within(LIMIT, world.client().await.lock().acquire("job", LONG)).await.expect("is free");
        let conditions = (0..=MAX_BATCH_KEYS).try_fold(Batch::new(), |batch, _| batch.while_held(&guard));
        expect_invalid("batch", "too many conditions", conditions);
        guard.unlock().await.expect("is held");
        for text in ["", "{", "[1,]", "1 2", "NaN", "'a'"] {
            expect_invalid("value", text, Batch::new().set_json("key", text.to_owned()));
        }
        expect_invalid("value", "no UTF-8", Batch::new().set_json("key", vec![b'"', 0xff, b'"']));
        nothing_is_stored(world).await;
    }

    /// Contract 11: odd names work as locks, and no two of them meet.
    async fn odd_lock_names_work(world: &dyn World) {
        let (one, other) = (world.client().await.lock(), world.client().await.lock());
        let mut guards = Vec::new();
        for name in &odd_names() {
            let guard =
                one.try_acquire(name, LONG).await.expect(name).expect("no other name's holder blocks it");
            assert_eq!(guard.name(), name);
            assert!(other.try_acquire(name, LONG).await.expect("is answered").is_none(), "{name}");
            guards.push(guard);
        }
        assert_eq!(world.keys().await.len(), guards.len());
        for guard in guards {
            guard.unlock().await.expect("is held");
        }
        nothing_is_stored(world).await;
    }

    /// Contract 11: odd names work as config keys, and no two of them meet.
    async fn odd_config_keys_work(world: &dyn World) {
        let config = world.client().await.config();
        for key in &odd_names() {
            config.compare_and_set(key, Version::ABSENT, key).await.expect(key);
        }
        let mut expected = odd_names();
        expected.sort_unstable();
        let listed = config.list("").await.expect("is answered");
        assert_eq!(listed.iter().map(coord_api::Entry::key).collect::<Vec<_>>(), expected);
        for key in &expected {
            let found = config.get::<String>(key).await.expect("is read").expect("exists");
            assert_eq!((&found.value, &found.key), (key, key));
            assert!(config.delete(key).await.expect("is answered"));
        }
        nothing_is_stored(world).await;
    }

    /// Contract 11: odd names work as services, instance ids and services of id ranges, and no two of them
    /// meet.
    async fn odd_service_names_and_ids_work(world: &dyn World) {
        let client = world.client().await;
        let (registry, mut registrations, mut allocators) = (client.registry(), Vec::new(), Vec::new());
        for name in &odd_names() {
            registrations.push(within(LIMIT, registry.register(info(name, "1"), LONG)).await.expect(name));
            registrations.push(within(LIMIT, registry.register(info("svc", name), LONG)).await.expect(name));
            let allocator = client.ids_at_once(name, 2);
            assert_eq!(allocator.try_acquire_id().await.expect(name).get(), 1);
            allocators.push(allocator);
        }
        let mut expected = odd_names();
        expected.sort_unstable();
        let found = registry.discover("svc").await.expect("is answered");
        assert_eq!(found.iter().map(|info| info.id.as_str()).collect::<Vec<_>>(), expected);
        for name in &expected {
            assert_eq!(registry.discover(name).await.expect("is answered"), [info(name, "1")]);
        }
        within(LIMIT, client.close()).await;
        nothing_is_stored(world).await;
    }
}
