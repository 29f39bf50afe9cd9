//! Registrations: one key per instance, whose value names its owner.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use coord_api::{
    Error, Hold, LossReason, Registration, Result, ServiceEvent, ServiceInfo, ServiceName, ServiceRegistry,
    Ttl, Watch,
    backend::{Place, Record, registration::Publish, service_events},
};
use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};

use crate::{
    background::owned,
    core::{Core, Shared},
    error::{Effect, Failure},
    keys::Range,
    place::OwnKey,
    read::revision,
    session::Session,
    watch::{entry, follow, hub::Delivery},
};

/// The registry of one client.
#[derive(Debug)]
pub(crate) struct EtcdRegistry {
    pub(crate) shared: Arc<Shared>,
}

#[async_trait]
impl ServiceRegistry for EtcdRegistry {
    async fn register(&self, service: ServiceInfo, ttl: Duration) -> Result<Registration> {
        let ttl = Ttl::parse(ttl)?;
        service.validate()?;
        self.shared.core.check_open()?;
        let publisher = Arc::new(Publisher { shared: self.shared.clone(), ttl });
        Registration::start(&self.shared.core.runtime, publisher, service).await
    }

    async fn discover(&self, service: &str) -> Result<Vec<ServiceInfo>> {
        let service = ServiceName::parse(service)?;
        let core = &self.shared.core;
        core.check_open()?;
        let (_, pairs) = core.read("discover", &Range::Prefix(core.keys.instances(&service))).await?;
        let mut instances = Vec::with_capacity(pairs.len());
        for kv in &pairs {
            let Ok(key) = kv.key_str() else { continue };
            match Record::from_entry(&service, &entry(kv, core.keys.instance_name(&service, key))) {
                Ok(record) => instances.push(record.service),
                Err(error) => tracing::warn!(%service, %error, "record left out of discovery"),
            }
        }
        instances.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(instances)
    }

    async fn watch(&self, service: &str) -> Result<Watch<ServiceEvent>> {
        let service = ServiceName::parse(service)?;
        let keys = self.shared.core.keys.clone();
        let range = Range::Prefix(keys.instances(&service));
        let named = service.clone();
        let rename = Box::new(move |key: &str| keys.instance_name(&named, key));
        Ok(service_events(service, follow(self.shared.clone(), range, rename).await?))
    }
}

/// Writes the record of one registration.
struct Publisher {
    shared: Arc<Shared>,
    ttl: Ttl,
}

#[async_trait]
impl Publish for Publisher {
    async fn publish(&self, service: &ServiceInfo) -> Result<Place> {
        let (shared, service, ttl) = (self.shared.clone(), service.clone(), self.ttl);
        owned(&self.shared.core.runtime, move |_gone| async move { publish(&shared, service, ttl).await })
            .await
    }
}

async fn publish(shared: &Arc<Shared>, service: ServiceInfo, ttl: Ttl) -> Result<Place> {
    let core = &shared.core;
    let (name, id) = service.validate()?;
    let key = core.keys.instance(&name, &id);
    let record = Record { service, owner: Some(core.owner.to_string()) }.to_json();
    let write = |session| write_over_own(core, &name, &key, &record, session);
    let own = core.on_session(ttl, write).await?;
    let written = own.written;
    let place = own.into_place(shared);
    let hold = Arc::new(place.hold().clone());
    if let Some(earlier) =
        core.registrations().insert(key.clone(), Arc::downgrade(&hold)).and_then(|w| w.upgrade())
    {
        earlier.end(LossReason::Superseded);
    }
    core.runtime.spawn(guard_record(core.clone(), key, hold, written));
    Ok(place)
}

/// Writes the record if the key does not exist, or is a record that we wrote ourselves.
async fn write_over_own(
    core: &Arc<Core>,
    service: &ServiceName,
    key: &str,
    record: &Bytes,
    session: Arc<Session>,
) -> Result<OwnKey> {
    // What we expect to find: nothing, or our own record at this revision.
    let mut expected = 0;
    loop {
        match core.write_record(key, record, &session, expected).await? {
            Write::Done(revision) => {
                return Ok(OwnKey { key: key.to_owned(), written: revision, session });
            }
            Write::Found(None) => expected = 0,
            Write::Found(Some(found)) => expected = own_revision(core, service, &found)?,
        }
    }
}

/// The revision of a record that we may replace, since we wrote it ourselves.
fn own_revision(core: &Core, service: &ServiceName, found: &KeyValue) -> Result<i64> {
    let name = core.keys.instance_name(service, found.key_str().unwrap_or_default());
    let id = name.strip_prefix(service.as_str()).unwrap_or(&name).trim_start_matches('/').to_owned();
    let owner = Record::from_entry(service, &entry(found, name)).ok().and_then(|record| record.owner);
    if owner == Some(core.owner.to_string()) {
        return Ok(found.mod_revision());
    }
    let owner = owner.unwrap_or_else(|| "another program".into());
    Err(Error::AlreadyRegistered { service: service.to_string(), id, owner })
}

enum Write {
    /// Written at this revision.
    Done(i64),
    /// Not written: the key has another revision than expected, or does not exist any more.
    Found(Option<KeyValue>),
}

impl Core {
    /// Writes a record if the key is at revision `expected`; 0 means that it does not exist.
    async fn write_record(
        self: &Arc<Self>,
        key: &str,
        record: &Bytes,
        session: &Arc<Session>,
        expected: i64,
    ) -> Result<Write> {
        let put = TxnOp::put(key, record.to_vec(), Some(PutOptions::new().with_lease(session.id)));
        let txn = Txn::new()
            .when([Compare::mod_revision(key, CompareOp::Equal, expected)])
            .and_then([put])
            .or_else([TxnOp::get(key, None)]);
        match self.txn_on(session, "register", txn).await {
            Ok(answer) if answer.succeeded() => Ok(Write::Done(revision(answer.header()))),
            Ok(answer) => Ok(Write::Found(match answer.op_responses().first() {
                Some(TxnOpResponse::Get(found)) => found.kvs().first().cloned(),
                _ => None,
            })),
            Err(Failure { error, effect: Effect::None }) => Err(error),
            // The answer was lost. The record names this client, so reading it tells whether it is there.
            Err(Failure { error, effect: Effect::Unknown }) => {
                match self.call("register", async { self.kv().get(key, None).await }).await {
                    Ok(found) if found.kvs().first().is_some_and(|kv| kv.value() == record) => {
                        Ok(Write::Done(found.kvs()[0].mod_revision()))
                    }
                    _ => {
                        self.delete_stray(key.into(), record.to_vec(), session.clone());
                        Err(error)
                    }
                }
            }
        }
    }
}

/// Ends the hold when the record is deleted or overwritten, so that its registration is written again.
async fn guard_record(core: Arc<Core>, key: String, hold: Arc<Hold>, written: i64) {
    tokio::select! {
        _ = hold.lost() => {}
        reason = core.record_ends(&key, written) => hold.end(reason),
    }
    let mut registrations = core.registrations();
    if registrations.get(&key).is_some_and(|current| std::ptr::eq(current.as_ptr(), Arc::as_ptr(&hold))) {
        registrations.remove(&key);
    }
}

impl Core {
    /// Waits until the record is no longer the one that was written at revision `written`.
    async fn record_ends(&self, key: &str, written: i64) -> LossReason {
        let mut after = written;
        loop {
            let mut changes = self.hub.subscribe(Range::Key(key.to_owned()), Some(after));
            loop {
                match changes.next().await {
                    Some(Delivery::Started) => {}
                    Some(Delivery::Changes(changes)) => {
                        let value = changes.into_iter().next_back().and_then(|change| change.value);
                        return self.how_it_ended(value.as_deref());
                    }
                    Some(Delivery::Refused(error)) => {
                        tracing::warn!(key, %error, "a registration can not be guarded against deletion");
                        break;
                    }
                    None => break,
                }
            }
            // Changes may have been missed: look, and go on from there.
            match self.read("register", &Range::Key(key.to_owned())).await {
                Ok((now, found)) => match found.first() {
                    Some(kv) if kv.mod_revision() == written => after = now,
                    other => return self.how_it_ended(other.map(KeyValue::value)),
                },
                Err(failure) => tracing::debug!(key, error = %failure.error, "registration not checked"),
            }
            tokio::time::sleep(Duration::from_millis(fastrand::u64(100..500))).await;
        }
    }

    /// Why a record is no longer the one that was written, from the value that is there now.
    fn how_it_ended(&self, value: Option<&[u8]>) -> LossReason {
        let record = value.and_then(|value| serde_json::from_slice::<Record>(value).ok());
        if record.and_then(|record| record.owner) == Some(self.owner.to_string()) {
            LossReason::Superseded
        } else {
            LossReason::Deleted
        }
    }
}
