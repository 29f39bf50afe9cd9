//! Traits, guards, errors and names of coord, the distributed-coordination toolkit.
//!
//! Services depend on the crate `coord`, which re-exports all of this and picks a backend from a URL. This
//! crate does no I/O and knows no backend; authors of a backend start at [`backend`].
//!
//! | to | call | get |
//! |---|---|---|
//! | exclude other processes | [`DistributedLock::acquire`] | a [`LockGuard`] that tells when it is lost |
//! | be the one that works | [`Elector::lead`] | work that runs while this process leads |
//! | be found | [`ServiceRegistry::register`] | a [`Registration`] that comes back by itself |
//! | find others | [`ServiceRegistry::view`], [`discover`](ServiceRegistry::discover), [`watch`](ServiceRegistry::watch) | [`ServiceInfo`]s and their changes |
//! | read and change configuration | [`ConfigExt`] | typed values with versions, and their changes |
//! | be one of few | [`InstanceIdAllocator::acquire_id`] | a small number that no other instance has |
//!
//! All of them come from one [`Provider`].

pub mod backend;
mod backoff;
mod batch;
mod config;
mod connectivity;
mod election;
mod entry;
mod error;
mod fence;
mod health;
mod home;
mod id_waits;
mod ids;
mod json;
mod lease;
mod lease_instant;
mod lock;
mod mutex;
mod names;
mod owner;
mod provider;
mod pulse;
mod registration;
mod registry;
mod service;
mod snowflake;
mod timer;
mod ttl;
mod update_locks;
mod version;
mod view;
mod watch;

pub use batch::{Batch, Committed, HeldLock, MAX_BATCH_KEYS, MAX_VALUE_BYTES, Write};
pub use config::{ConfigCenter, ConfigEvent, ConfigExt, Covered, Scope, Setting};
pub use connectivity::{Connectivity, Freshness};
pub use election::{
    Candidate, Elections, ElectionsExt, Elector, ElectorOptions, HandOver, Leader, LeaderView,
    MAX_CANDIDATE_BYTES, Successor, Term,
};
pub use entry::{Entry, EntryEvent};
pub use error::{BoxError, Error, Result};
pub use fence::Fence;
pub use health::{HEALTH_LIMIT, Health};
pub use home::Home;
pub use id_waits::InstanceIdAllocatorExt;
pub use ids::{
    HeldId, IdHolder, IdOptions, InstanceIdAllocator, InstanceIds, MAX_IDENTITY_BYTES, MAX_MAX_ID,
    MAX_QUARANTINE, check_max_id,
};
pub use lease::{Hold, Lease, LeaseHealth, LossReason, Lost};
pub use lock::{DistributedLock, DistributedLockExt, FencingToken, Holder, LockGuard};
pub use names::{
    ConfigKey, ConfigPrefix, ElectionName, InstanceId, LockName, MAX_NAME_BYTES, Namespace, ServiceName,
};
pub use owner::{MAX_LABEL_BYTES, Owner};
pub use provider::Provider;
pub use registration::{Registration, RegistrationStatus};
pub use registry::{ServiceEvent, ServiceRegistry};
pub use service::{MAX_METADATA_BYTES, MAX_WEIGHT, MIN_WEIGHT, ServiceInfo, VERSION, WEIGHT, ZONE};
pub use snowflake::{Snowflake, SnowflakeOptions};
pub use ttl::Ttl;
pub use update_locks::UpdateLocks;
pub use version::Version;
pub use view::{Instances, ServiceView};
pub use watch::Watch;
