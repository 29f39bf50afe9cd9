//! The promises of [`ServiceRegistry`](coord_api::ServiceRegistry) and its registrations.

use coord_api::{ServiceInfo, ServiceRegistry};

pub(crate) mod marks;
pub(crate) mod owners;
pub(crate) mod records;
pub(crate) mod recovery;
pub(crate) mod view;
pub(crate) mod watch;

/// An instance of the service `svc`.
fn instance(id: &str) -> ServiceInfo {
    ServiceInfo::new("svc", id, "10.0.1.10", 8080)
}

/// The ids that a client discovers.
async fn ids(registry: &dyn ServiceRegistry, service: &str) -> Vec<String> {
    let found = registry.discover(service).await.expect("is answered");
    found.into_iter().map(|instance| instance.id).collect()
}

/// The JSON that another program writes.
fn foreign_record(service: &str, id: &str) -> String {
    format!(r#"{{"id":"{id}","name":"{service}","address":"10.9.9.9","port":9000,"metadata":null}}"#)
}
