//! The traits whose methods services call, and the types that their signatures name.
//!
//! [`Result`](crate::Result) and [`Error`](crate::Error) are left out, so that a glob import never hides the
//! names of the standard library or of the service itself.
//!
//! ```
//! use coord::prelude::*;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> coord::Result<()> {
//! let coordinator = Coordinator::connect("memory://").await?;
//! let version: Version = coordinator.config().set("limits/upload", &10).await?;
//! let found: Option<Setting<u32>> = coordinator.config().get("limits/upload").await?;
//! assert_eq!(found.map(|setting| setting.version), Some(version));
//! # Ok(()) }
//! ```

pub use crate::{
    ConfigCenter, ConfigEvent, ConfigExt, Coordinator, DistributedLock, DistributedLockExt, Elections,
    ElectionsExt, Elector, ElectorOptions, Fence, GrayExt, HistoryExt, IdOptions, InstanceIdAllocator,
    InstanceIdAllocatorExt, InstanceIds, LeaderView, Live, LiveExt, LockGuard, Lost, Provider, Registration,
    RegistrationStatus, ServiceEvent, ServiceInfo, ServiceRegistry, ServiceView, Setting, Snowflake, Term,
    Version, Watch,
};

#[cfg(feature = "schema")]
pub use crate::SchemaExt;
#[cfg(feature = "grpc")]
pub use crate::grpc::{Connection, ConnectionExt};
