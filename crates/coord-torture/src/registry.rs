//! Workload: instances that come, change and go.

use std::{collections::BTreeMap, sync::Arc};

use coord_api::{Provider, Registration, RegistrationStatus, ServiceInfo};

use crate::{
    history::{Name, What},
    worker::{Outcome, Worker},
};

pub(crate) const SERVICE: &str = "torture/svc";
/// Where the record counts its updates.
const COUNT: &str = "n";

/// The count in a record.
pub(crate) fn counted(info: &ServiceInfo) -> (Name, u64) {
    let n = info.metadata.get(COUNT).and_then(|n| n.parse().ok());
    (info.id.as_str().into(), n.expect("only workloads write records, which count their updates"))
}

/// Registers instances, until the run is over; what is registered then stays, and is returned.
pub(crate) async fn work(mut worker: Worker) -> Option<Registration> {
    while let Some(client) = worker.next_round().await {
        let instance: Name = format!("i{}", worker.fresh()).into();
        let Some(registration) = register(&mut worker, &*client, &instance).await else { continue };
        let mut n = 0;
        for _ in 0..worker.random.usize(..6) {
            match worker.random.u8(..4) {
                0 => discover(&mut worker, &*client).await,
                1 | 2 => {
                    n += 1;
                    update(&mut worker, &registration, &instance, n).await;
                }
                _ => worker.pause().await,
            }
        }
        if worker.is_over() && !registration.is_lost() {
            return Some(registration);
        }
        if worker.one_in(4) {
            drop(registration);
        } else {
            leave(&mut worker, registration).await;
        }
    }
    None
}

async fn register(worker: &mut Worker, client: &dyn Provider, instance: &Name) -> Option<Registration> {
    let info = ServiceInfo::new(SERVICE, &**instance, "10.0.0.1", 80).with(COUNT, "0");
    let ttl = worker.ttl();
    worker.add(What::Publishes { instance: instance.clone(), n: 0 });
    match worker.call("register", client.registry().register(info, ttl)).await {
        Outcome::Answer(registration) => {
            worker.add(What::Published { instance: instance.clone(), n: 0 });
            Some(registration)
        }
        Outcome::Failed(_) | Outcome::Dropped => None,
    }
}

async fn update(worker: &mut Worker, registration: &Registration, instance: &Name, n: u64) {
    worker.add(What::Publishes { instance: instance.clone(), n });
    let metadata = BTreeMap::from([(COUNT.to_owned(), n.to_string())]);
    if let Outcome::Answer(()) = worker.call("update", registration.update(metadata)).await
        // While it is recovered, the new record goes out later, and the old one may be listed until then.
        && registration.status() == RegistrationStatus::Registered
    {
        worker.add(What::Published { instance: instance.clone(), n });
    }
}

async fn discover(worker: &mut Worker, client: &dyn Provider) {
    let call = worker.fresh();
    worker.add(What::Discovers { call });
    if let Outcome::Answer(found) = worker.call("discover", client.registry().discover(SERVICE)).await {
        let instances = found.iter().map(counted).collect();
        worker.add(What::Discovered { call, instances });
    }
}

/// Deregisters. Only a success says that the instance is gone: one that was lost may be listed until the store knows.
pub(crate) async fn leave(worker: &mut Worker, registration: Registration) {
    let instance: Name = registration.service().id.as_str().into();
    if let Outcome::Answer(()) = worker.call("deregister", registration.deregister()).await {
        worker.add(What::Left { instance });
    }
}

/// The instances with their counts, as a list of records shows them.
pub(crate) fn all(records: &[Arc<ServiceInfo>]) -> Vec<(Name, u64)> {
    records.iter().map(|info| counted(info)).collect()
}
