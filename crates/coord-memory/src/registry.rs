//! The registry: one entry per instance, on the lease of the client that registered it.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use coord_api::{
    LossReason, Registration, Result, ServiceEvent, ServiceInfo, ServiceName, ServiceRegistry, ServiceView,
    Ttl, Watch,
    backend::{Place, Record, registration::Publish, service_events},
};

use crate::{
    connection::Connection,
    keys,
    store::Item,
    watch::{View, watch},
};

/// The registry of one client.
#[derive(Debug)]
pub(crate) struct Registry(pub(crate) Arc<Connection>);

#[async_trait]
impl ServiceRegistry for Registry {
    async fn register(&self, service: ServiceInfo, ttl: Duration) -> Result<Registration> {
        service.validate()?;
        let publisher = Publisher { connection: self.0.clone(), ttl: Ttl::parse(ttl)? };
        Registration::start(&self.0.driven(), Arc::new(publisher), service).await
    }

    async fn discover(&self, service: &str) -> Result<Vec<ServiceInfo>> {
        let service = ServiceName::parse(service)?;
        let entries = self.0.call().await?.list(&View::service(&service));
        Ok(Record::instances(&service, entries))
    }

    async fn services(&self) -> Result<BTreeMap<String, Vec<ServiceInfo>>> {
        let state = self.0.call().await?;
        let mut services = BTreeMap::new();
        for service in state.services() {
            let instances = Record::instances(&service, state.list(&View::service(&service)));
            if !instances.is_empty() {
                services.insert(service.to_string(), instances);
            }
        }
        Ok(services)
    }

    async fn watch(&self, service: &str) -> Result<Watch<ServiceEvent>> {
        let service = ServiceName::parse(service)?;
        let entries = watch(&self.0, View::service(&service)).await?;
        Ok(service_events(service, entries))
    }

    async fn view(&self, service: &str) -> Result<ServiceView> {
        let name = ServiceName::parse(service)?;
        self.0.check_open()?;
        self.0.views().view(&self.0.driven(), name, self.watch(service)).await
    }
}

/// Writes one client's registrations with one TTL.
struct Publisher {
    connection: Arc<Connection>,
    ttl: Ttl,
}

#[async_trait]
impl Publish for Publisher {
    async fn publish(&self, service: &ServiceInfo) -> Result<Place> {
        let (name, id) = service.validate()?;
        let key = keys::instance(&name, &id);
        let record = Record::owned(service.clone(), self.connection.owner());
        let mut state = self.connection.call().await?;
        if let Some(stored) = state.entries.get(&key) {
            let entry = stored.entry(format!("{name}/{id}"));
            Record::check_replaceable(&name, &entry, self.connection.owner())?;
        }
        state.evict(&key, LossReason::Superseded);
        let grip = state.take(self.connection.id(), self.ttl, Item::Entry(key.clone()));
        state.put(key, record.to_json(), Some(grip.clone()));
        drop(state);
        Ok(self.connection.place(grip))
    }
}
