//! Parts of backends; users of coord need nothing from here.
//!
//! The promises of every backend are kept once, here:
//! - the local deadline of a lease ([`Lease`](crate::Lease)), and its release ([`Place`]),
//! - waiting in a queue ([`waiting`]),
//! - registrations that come back by themselves ([`registration`]),
//! - "at most one id" ([`IdAllocator`]),
//! - decoding of watches ([`service_events`]), views ([`Views`]), and whether they are up to date
//!   ([`ConnectivitySource`]).
//!
//! A backend adds how a place is taken, kept alive and given back. Crates above a backend share objects in a
//! [`WeakCache`]. Timers that need no runtime are here as well ([`sleep`], [`within`], [`driven`]).

mod allocator;
mod place;
mod record;
pub mod registration;
mod views;
pub mod waiting;
mod weak_cache;

pub use crate::{
    backoff::Backoff,
    connectivity::ConnectivitySource,
    election::{Candidacy, LeaderEntry, Succession},
    json::to_json,
    lease_instant::LeaseInstant,
    mutex::lock,
    names::{Shown, ShownPath},
    service::is_host,
    timer::{
        Driver, after, driven, is_machine_clock, set_time_of_day, sleep, sleep_until, time_of_day, within,
    },
};
pub use allocator::{ClaimedId, Delivered, IdAllocator, IdRange, IdSource, Stamps};
pub use place::{Place, Release};
pub use record::{Record, service_events};
pub use views::Views;
pub use weak_cache::WeakCache;

/// Returns the innermost source of an error. The errors around it often say no more than "transport error".
///
/// ```
/// use coord_api::{Error, backend::innermost};
/// let error = Error::Unavailable { what: "etcd".into(), source: Some("connection refused".into()) };
/// assert_eq!(innermost(&error).to_string(), "connection refused");
/// ```
pub fn innermost<'a>(error: &'a (dyn std::error::Error + 'static)) -> &'a (dyn std::error::Error + 'static) {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner
}
