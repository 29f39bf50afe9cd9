//! Registrations: one key per instance, whose value names its owner.

mod guard;
mod owned;
mod release;

pub(crate) use guard::Records;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use coord_api::{
    Error, InstanceId, Registration, Result, ServiceEvent, ServiceInfo, ServiceName, ServiceRegistry,
    ServiceView, Ttl, Watch,
    backend::{Place, Record, registration::Publish, service_events},
};
use tokio::time::Instant;

use crate::{
    registry::release::OwnedKey,
    request::{Kept, background::run_detached, entry, pairs},
    session::{Epoch, Session},
    store::{Compare, CompareOp, Effect, Failure, KeyValue, Op, PutOptions, Range, Txn},
    watch::follow,
};

/// Most leases on which a record is written one after the other. If each is lost at once, the record is left
/// to the recovery of registrations.
const MOST_LEASES: usize = 3;

/// The registry of one client.
#[derive(Debug)]
pub(crate) struct KvRegistry {
    pub(crate) records: Kept<Records>,
}

#[async_trait]
impl ServiceRegistry for KvRegistry {
    async fn register(&self, service: ServiceInfo, ttl: Duration) -> Result<Registration> {
        let ttl = Ttl::parse(ttl)?;
        service.validate()?;
        self.records.check_open()?;
        let publisher = Arc::new(Publisher { records: self.records.clone(), ttl });
        Registration::start(self.records.background.runtime(), publisher, service).await
    }

    async fn discover(&self, service: &str) -> Result<Vec<ServiceInfo>> {
        let service = ServiceName::parse(service)?;
        let records = &self.records;
        records.check_open()?;
        let (_, pairs) =
            records.read("discover", &Range::Prefix(records.keys.instances(&service).into())).await?;
        Ok(instances(records, &service, &pairs))
    }

    async fn services(&self) -> Result<BTreeMap<String, Vec<ServiceInfo>>> {
        let records = &self.records;
        records.check_open()?;
        let all = Range::Prefix(records.keys.services().into());
        let (_, pairs) = records.read("list services", &all).await?;
        let name = |kv: &KeyValue| kv.key_str().ok().and_then(|key| records.keys.service_of(key));
        // The pairs are ordered by key, so all records of one service are together.
        let services = pairs.chunk_by(|one, next| name(one) == name(next)).filter_map(|pairs| {
            let service = name(&pairs[0])?;
            let instances = instances(records, &service, pairs);
            (!instances.is_empty()).then(|| (service.to_string(), instances))
        });
        Ok(services.collect())
    }

    async fn watch(&self, service: &str) -> Result<Watch<ServiceEvent>> {
        let service = ServiceName::parse(service)?;
        let keys = self.records.keys.clone();
        let range = Range::Prefix(keys.instances(&service).into());
        let named = service.clone();
        let rename = Box::new(move |key: &str| keys.instance_name(&named, key));
        Ok(service_events(service, follow(self.records.with(&self.records.hub), range, rename).await?))
    }

    async fn view(&self, service: &str) -> Result<ServiceView> {
        let name = ServiceName::parse(service)?;
        let records = &self.records;
        records.check_open()?;
        records.views.view(records.background.runtime(), name, self.watch(service)).await
    }
}

fn instances(records: &Records, service: &ServiceName, pairs: &[KeyValue]) -> Vec<ServiceInfo> {
    let named = |kv: &KeyValue| Some(entry(kv, records.keys.instance_name(service, kv.key_str().ok()?)?));
    Record::instances(service, pairs.iter().filter_map(named))
}

/// Writes the record of one registration.
struct Publisher {
    records: Kept<Records>,
    ttl: Ttl,
}

#[async_trait]
impl Publish for Publisher {
    async fn publish(&self, service: &ServiceInfo) -> Result<Place> {
        let (records, service, ttl) = (self.records.clone(), service.clone(), self.ttl);
        let work = move |_gone| async move { publish(&records, service, ttl).await };
        tokio::select! {
            biased;
            // An answer that is lost takes longer than closing, and meanwhile nobody would hear of the loss.
            () = self.records.closed() => Err(Error::Closed),
            published = run_detached(&self.records.background, work) => published,
        }
    }
}

async fn publish(records: &Kept<Records>, service: ServiceInfo, ttl: Ttl) -> Result<Place> {
    let (name, id) = service.validate()?;
    let key = records.keys.instance(&name, &id);
    let record = Record::owned(service, &records.owner).to_json();
    // While the store is away this fails at once, and the watch below would not.
    drop(records.sessions.session(ttl).await?);
    let writing = records.begin_record(&name, &key).await?;
    // A write that expects nothing there could take effect late, when the record has been given back.
    let expected = records.revision(&name, &key).unwrap_or(0);
    records.history.leaves(&key);
    let write = |session| write_over_own(records, (&name, &id), &key, &record, session, expected);
    let mut own = records.sessions.on_session(ttl, write).await?;
    // The lease may have been lost while an answer was awaited, and the record goes with it.
    for _ in 0..MOST_LEASES {
        if own.session.lease.loss().is_none() {
            break;
        }
        own = records.sessions.on_session(ttl, write).await?;
    }
    records.history.wrote(&key, own.written, own.session.id);
    Ok(writing.done(own, records))
}

/// Writes the record if the key does not exist, or has what we may replace.
async fn write_over_own(
    records: &Arc<Records>,
    (service, id): (&ServiceName, &InstanceId),
    key: &str,
    record: &Bytes,
    session: Arc<Session>,
    // The expected state: nothing, or the record that we may replace, at this revision.
    mut expected: i64,
) -> Result<OwnedKey> {
    let begun = Instant::now();
    loop {
        match records.write_record(key, record, &session, expected).await? {
            Write::Done(revision) => {
                return Ok(OwnedKey { key: key.to_owned(), written: revision, session });
            }
            Write::Found(None) => expected = 0,
            Write::Found(Some(found)) => {
                let stored = entry(&found, format!("{service}/{id}"));
                Record::check_replaceable(service, &stored, &records.owner)?;
                expected = found.mod_revision;
            }
            Write::Never(error) => records.retry_from_start(begun, error).await?,
            Write::Unknown(error, since) => {
                records.delete_stray(key.into(), record.to_vec(), session, since);
                return Err(error);
            }
        }
    }
}

enum Write {
    /// The record was written at this revision.
    Done(i64),
    /// The record was not written: the key may have another revision than expected, or not exist any more.
    Found(Option<KeyValue>),
    /// The answer was lost. It was not written, and never will be.
    Never(Error),
    /// The answer was lost then. It may have been written, or may be later, unless the key is changed before.
    Unknown(Error, Epoch),
}

impl Records {
    /// Writes a record if the key is at revision `expected`; 0 means that it does not exist.
    ///
    /// A write that is still in flight when its record has been given back would bring it back. So each passes the epoch
    /// of its lease, which is shut when an answer is lost.
    async fn write_record(
        self: &Arc<Self>,
        key: &str,
        record: &Bytes,
        session: &Arc<Session>,
        expected: i64,
    ) -> Result<Write> {
        let put = Op::put(key, record.to_vec(), Some(PutOptions::new().with_lease(session.id)));
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, expected), session.epoch.unchanged()])
            .and_then([put])
            .or_else([Op::get(key, None), session.epoch.reload()]);
        match session.txn(self, "register", txn).await {
            Ok(answer) if answer.succeeded => Ok(Write::Done(answer.header.revision)),
            Ok(answer) => {
                let found = answer.results;
                session.epoch.reloaded(found.get(1));
                Ok(Write::Found(pairs(found.first()).first().cloned()))
            }
            Err(Failure { error, effect: Effect::None }) => Err(error),
            // The record names this client, and its lease the session, so they tell whether it was this write.
            Err(Failure { error, effect: Effect::Unknown }) => {
                let since = session.epoch.now();
                let settled = async {
                    session.advance(self, since).await?;
                    self.get("register", key, None).await
                };
                Ok(match settled.await.map(|mut found| found.kvs.pop()) {
                    Ok(Some(found)) if found.value == record && found.lease == session.id => {
                        Write::Done(found.mod_revision)
                    }
                    Ok(_) => Write::Never(error),
                    Err(_) => Write::Unknown(error, since),
                })
            }
        }
    }
}
