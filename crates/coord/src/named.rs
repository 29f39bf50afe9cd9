//! Memory stores that are found by name within the process.

use std::{
    collections::HashMap,
    sync::{LazyLock, Mutex},
};

use coord_api::backend::lock;

use crate::{
    Error, MemoryConfig, Result,
    config::check_name,
    memory::{Client, Options, Store, WeakStore},
};

/// The stores that something uses now. One that nothing uses is gone, as its name promises: a test that
/// reuses the name of an earlier one finds nothing of it.
static NAMED: LazyLock<Mutex<HashMap<String, WeakStore>>> = LazyLock::new(Mutex::default);

pub(crate) fn client(config: MemoryConfig) -> Result<Client> {
    let MemoryConfig { name, label, instance_id_ttl } = config;
    let mut options = Options::default().instance_id_ttl(instance_id_ttl);
    options.label = label;
    let store = match name {
        Some(name) => {
            check_name(&name).map_err(|reason| Error::InvalidArgument { field: "name", reason })?;
            named(name)
        }
        None => Store::new(),
    };
    store.client_with(options)
}

fn named(name: String) -> Store {
    let mut stores = lock(&NAMED);
    if let Some(store) = stores.get(&name).and_then(WeakStore::upgrade) {
        return store;
    }
    stores.retain(|_, store| store.upgrade().is_some());
    let store = Store::new();
    stores.insert(name, store.downgrade());
    store
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{Config, ConfigExt, Coordinator, MemoryConfig};

    async fn connect(url: &str) -> Coordinator {
        Coordinator::connect(url).await.expect("memory is always there")
    }

    async fn marked(coordinator: &Coordinator) -> bool {
        let mark = coordinator.config().get::<bool>("mark").await;
        mark.expect("memory is always there").is_some()
    }

    async fn mark(coordinator: &Coordinator) {
        coordinator.config().set("mark", &true).await.expect("memory is always there");
    }

    #[tokio::test]
    async fn one_name_is_one_store_and_no_name_is_a_store_of_its_own() {
        let one = connect("memory://named-test").await;
        mark(&one).await;
        assert!(marked(&connect("memory://named-test").await).await);
        assert!(!marked(&connect("memory://named-test-2").await).await);
        assert!(!marked(&connect("memory://").await).await);
    }

    #[tokio::test]
    async fn a_store_is_gone_with_its_last_coordinator() {
        let first = connect("memory://short-lived").await;
        mark(&first).await;
        let clone = first.clone();
        drop(first);
        assert!(marked(&connect("memory://short-lived").await).await, "a clone keeps it");
        drop(clone);
        assert!(!marked(&connect("memory://short-lived").await).await);
    }

    #[tokio::test]
    async fn a_store_stays_as_long_as_anything_of_it() {
        let first = connect("memory://kept").await;
        mark(&first).await;
        let guard = first.lock().acquire("job", Duration::from_secs(30)).await.expect("is free");
        drop(first);
        let second = connect("memory://kept").await;
        assert!(marked(&second).await, "a guard keeps it");
        assert!(second.lock().try_acquire("job", Duration::from_secs(30)).await.expect("answers").is_none());
        let config = second.config();
        drop((second, guard));
        let third = connect("memory://kept").await;
        assert!(marked(&third).await, "an area keeps it");
        let watch = third.config().watch::<bool>("mark").await.expect("is answered");
        drop((third, config));
        assert!(marked(&connect("memory://kept").await).await, "a watch keeps it");
        drop(watch);
        assert!(!marked(&connect("memory://kept").await).await);
    }

    #[tokio::test]
    async fn labels_are_shown_and_bad_fields_refused_by_name() {
        let connect = |config| Coordinator::connect_with(Config::Memory(config));
        let label = |label: &str| MemoryConfig { label: Some(label.into()), ..MemoryConfig::default() };
        let named = connect(label("checkout")).await.expect("is good");
        let _guard = named.lock().acquire("job", Duration::from_secs(30)).await.expect("is free");
        let holders = named.lock().holders("job").await.expect("is answered");
        let owner = holders[0].owner.as_ref().expect("coord says who");
        assert_eq!(owner.label.as_deref(), Some("checkout"));
        assert_eq!(owner.pid, std::process::id());

        let ttl = MemoryConfig { instance_id_ttl: Duration::from_millis(1), ..MemoryConfig::default() };
        let name = MemoryConfig { name: Some("a//b".into()), ..MemoryConfig::default() };
        for (field, config) in [("instance_id_ttl", ttl), ("label", label("")), ("name", name)] {
            let refused = connect(config).await.expect_err(field).to_string();
            assert!(refused.starts_with(&format!("invalid {field}: ")), "{refused}");
        }
    }

    #[tokio::test]
    async fn closing_one_leaves_the_others() {
        let (one, other) = (connect("memory://closing").await, connect("memory://closing").await);
        mark(&one).await;
        one.close().await.expect("nothing is held");
        one.close().await.expect("may be called again");
        assert!(marked(&other).await);
        assert!(one.config().get::<bool>("mark").await.is_err());
    }
}
