//! Memory stores that are found by name within the process.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, PoisonError, Weak},
};

use async_trait::async_trait;

use crate::{
    ConfigCenter, DistributedLock, Error, InstanceIdAllocator, MemoryConfig, Provider, Result,
    ServiceRegistry,
    config::check_name,
    memory::{Client, Options, Store},
};

/// The stores that have clients now. A store without clients is gone, as its name promises: a test that
/// reuses the name of an earlier one finds nothing of it.
static NAMED: LazyLock<Mutex<HashMap<String, Weak<Store>>>> = LazyLock::new(Mutex::default);

pub(crate) fn provider(config: MemoryConfig) -> Result<Arc<dyn Provider>> {
    let options = Options::default().id_ttl(config.instance_id_ttl);
    let Some(name) = config.name else {
        return Ok(Arc::new(Store::new().client_with(options)));
    };
    check_name(&name).map_err(|reason| Error::InvalidArgument { field: "name", reason })?;
    let store = named(name);
    Ok(Arc::new(NamedClient { client: store.client_with(options), _store: store }))
}

fn named(name: String) -> Arc<Store> {
    // Nothing panics while this is locked; were it otherwise, the map would still be whole.
    let mut stores = NAMED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(store) = stores.get(&name).and_then(Weak::upgrade) {
        return store;
    }
    stores.retain(|_, store| store.strong_count() > 0);
    let store = Arc::new(Store::new());
    stores.insert(name, Arc::downgrade(&store));
    store
}

/// A client that keeps the name of its store.
#[derive(Debug)]
struct NamedClient {
    client: Client,
    _store: Arc<Store>,
}

#[async_trait]
impl Provider for NamedClient {
    fn lock(&self) -> Arc<dyn DistributedLock> {
        self.client.lock()
    }

    fn registry(&self) -> Arc<dyn ServiceRegistry> {
        self.client.registry()
    }

    fn config(&self) -> Arc<dyn ConfigCenter> {
        self.client.config()
    }

    fn instance_id_allocator(&self, service: &str, max_id: u32) -> Result<Arc<dyn InstanceIdAllocator>> {
        self.client.instance_id_allocator(service, max_id)
    }

    async fn close(&self) -> Result<()> {
        self.client.close().await
    }
}

#[cfg(test)]
mod tests {
    use crate::{ConfigExt, Coordinator};

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
    async fn closing_one_leaves_the_others() {
        let (one, other) = (connect("memory://closing").await, connect("memory://closing").await);
        mark(&one).await;
        one.close().await.expect("nothing is held");
        one.close().await.expect("may be called again");
        assert!(marked(&other).await);
        assert!(one.config().get::<bool>("mark").await.is_err());
    }
}
