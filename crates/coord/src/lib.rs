//! Distributed locks, leader election, service discovery, live configuration and instance ids for Rust services: over etcd
//! in production, in the process in unit tests, behind the same traits.
//!
//! ```
//! use std::time::Duration;
//! use coord::prelude::*;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> coord::Result<()> {
//! let coordinator = Coordinator::connect("memory://").await?;
//! let guard = coordinator.lock().acquire("nightly-report", Duration::from_secs(30)).await?;
//! guard.run(async { /* work for one process at a time */ }).await?;
//! guard.unlock().await?;
//! coordinator.close().await?;
//! # Ok(()) }
//! ```
//!
//! # Where to go
//! | to | call | get |
//! |---|---|---|
//! | start | [`Coordinator::connect`], [`Coordinator::connect_with`] | the client of one store |
//! | exclude other processes | [`DistributedLock::acquire`] | a [`LockGuard`] that tells when it is lost |
//! | be the one that works | [`Elector::lead`] | work that runs while this process leads |
//! | be found | [`ServiceRegistry::register`] | a [`Registration`] that comes back by itself |
//! | find others | [`ServiceRegistry::view`], [`discover`](ServiceRegistry::discover), [`watch`](ServiceRegistry::watch) | [`ServiceInfo`]s and their changes |
#![cfg_attr(
    feature = "grpc",
    doc = "| call others | [`connection`](grpc::ConnectionExt::connection) | a channel for any tonic client |"
)]
//! | read and change configuration | [`ConfigExt`] | typed values with versions, and their changes |
//! | be one of few | [`InstanceIdAllocator::acquire_id`] | a small number that no other instance has |
//!
//! # Features
//! - `memory` (default): the in-process backend.
//! - `etcd`: the etcd backend. Building it needs `protoc`.
//! - `schema`: coordinators are held to the JSON Schemas that are kept in the store.
//! - `grpc`: connections by service name for tonic clients; `grpc-tls`: the same over TLS.
//!
//! Code that takes an `Arc<dyn` [`Provider`]`>` or a [`Coordinator`] runs on every backend, and is tested
//! without a server.

#![cfg_attr(docsrs, feature(doc_cfg))]

mod config;
mod coordinator;
#[cfg(feature = "memory")]
mod named;
pub mod prelude;

pub use config::Config;
#[cfg(feature = "memory")]
pub use config::MemoryConfig;
pub use coordinator::Coordinator;

pub use coord_api::{
    Batch, BoxError, Candidate, Committed, ConfigCenter, ConfigEvent, ConfigExt, Connectivity,
    DistributedLock, DistributedLockExt, Elections, ElectionsExt, Elector, ElectorOptions, Entry, EntryEvent,
    Error, Fence, FencingToken, Freshness, HEALTH_LIMIT, HandOver, Health, HeldId, HeldLock, Holder, Home,
    IdHolder, IdOptions, InstanceIdAllocator, InstanceIdAllocatorExt, InstanceIds, Instances, Leader,
    LeaderView, LeaseHealth, LockGuard, LossReason, Lost, Owner, Provider, Registration, RegistrationStatus,
    Result, Scope, ServiceEvent, ServiceInfo, ServiceRegistry, ServiceView, Setting, Snowflake,
    SnowflakeOptions, Successor, Term, Ttl, Version, Watch, Write,
};
/// Live values, their history and gray releases.
pub use coord_config as live;
#[cfg(feature = "schema")]
pub use coord_config::SchemaExt;
pub use coord_config::{
    Audience, Change, Changes, GrayExt, HistoryExt, Instance, Live, LiveExt, WhenDeleted,
};
/// The limits of names, ids, values and metadata, and the metadata keys that coord reads.
pub mod limits {
    pub use coord_api::{
        MAX_BATCH_KEYS, MAX_CANDIDATE_BYTES, MAX_IDENTITY_BYTES, MAX_LABEL_BYTES, MAX_MAX_ID,
        MAX_METADATA_BYTES, MAX_NAME_BYTES, MAX_QUARANTINE, MAX_VALUE_BYTES, VERSION, WEIGHT, ZONE,
    };
}

/// The etcd backend.
#[cfg(feature = "etcd")]
pub use coord_etcd as etcd;
/// gRPC connections by service name.
#[cfg(feature = "grpc")]
pub use coord_grpc as grpc;
/// The in-process backend.
#[cfg(feature = "memory")]
pub use coord_memory as memory;

/// Compiles and runs what the documents show.
#[cfg(all(doctest, feature = "memory"))]
mod documents {
    #[doc = include_str!("../../../README.md")]
    mod readme {}
    #[cfg(all(feature = "grpc", feature = "schema"))]
    #[doc = include_str!("../../../docs/guide.md")]
    mod guide {}
    #[cfg(feature = "grpc")]
    #[doc = include_str!("../../../docs/first-service.md")]
    mod first_service {}
}
