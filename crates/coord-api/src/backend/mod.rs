//! What backends are made of; users of coord need nothing from here.
//!
//! The promises that hold on every backend are kept once, here: the local deadline of a lease
//! ([`Lease`](crate::Lease)), giving back what is held ([`Place`]), waiting in a queue ([`waiting`]), registrations that come back by
//! themselves ([`registration`]), "at most one id" ([`IdAllocator`]), the decoding of watches
//! ([`service_events`]), views ([`Views`]) and whether they are up to date ([`ContactSource`]). A backend adds what
//! differs: how a place is taken, kept alive and given back. What stands on a backend shares by [`Sharing`]. Timers
//! that need no runtime are here as well ([`sleep`], [`within`], [`driven`]).

mod allocator;
mod place;
mod record;
pub mod registration;
mod sharing;
mod views;
pub mod waiting;

pub use crate::{
    contact::ContactSource,
    json::to_json,
    moment::Moment,
    names::{Shown, ShownPath},
    service::is_host,
    timer::{Driver, after, driven, is_machine_clock, sleep, sleep_until, time_of_day, within},
};
pub use allocator::{ClaimedId, IdAllocator, IdRange, IdSource, Stamps, Told};
pub use place::{Place, Release};
pub use record::{Record, service_events};
pub use sharing::Sharing;
pub use views::Views;

/// What an error comes from in the end: those around it often say no more than "transport error".
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
