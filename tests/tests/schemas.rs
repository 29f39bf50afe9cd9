//! Every coordinator is held to the schemas in its store, without asking.

use std::sync::Arc;

use coord::Coordinator;
use coord_api::{ConfigExt, Error, Provider, Scope};
use coord_config::{HistoryExt, SchemaExt};
use coord_etcd::{Client, EtcdConfig};
use coord_tests::EtcdServer;

/// From the next write on, whoever set them and by whichever handle it writes; a check that is asked for on top
/// changes nothing.
async fn a_coordinator_is_held(admin: Arc<dyn Provider>, service: Arc<dyn Provider>) {
    let (admin, coordinator) = (Coordinator::from(admin), Coordinator::from(service));
    coordinator.config().set("limits", &-1).await.expect("there is no schema yet");
    admin.config().schemas().set::<u32>(Scope::Key("limits")).await.expect("is set");
    let (again, nested) = (coordinator.clone().config(), Coordinator::from(coordinator.provider()).config());
    for config in [coordinator.config(), again, nested, coordinator.config().checked()] {
        let refused = [
            config.set("limits", &-1).await.err(),
            config.update("limits", |_: Option<i32>| -1).await.err(),
            config.record("limits").set(&-1).await.err(),
        ];
        let is_refused =
            |error: &Option<Error>| matches!(error, Some(Error::InvalidArgument { field: "value", .. }));
        assert!(refused.iter().all(is_refused), "{refused:?}");
        config.set("limits", &1).await.expect("fits");
        config.record("limits").set(&2).await.expect("fits");
    }
    coordinator.close().await.expect("the store is there");
    assert!(matches!(coordinator.config().set("limits", &1).await, Err(Error::Closed)));
}

#[tokio::test]
async fn on_memory() {
    let store = coord_memory::Store::new();
    a_coordinator_is_held(Arc::new(store.client()), Arc::new(store.client())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn on_etcd() {
    let server = EtcdServer::start().await.expect("starts");
    let connect = async || Client::connect(EtcdConfig::new([server.endpoint()])).await.expect("etcd answers");
    a_coordinator_is_held(Arc::new(connect().await), Arc::new(connect().await)).await;
}
