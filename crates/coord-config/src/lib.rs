//! Configuration beyond reading and writing it, over any [`ConfigCenter`](coord_api::ConfigCenter).
//!
//! | to | call | get |
//! |---|---|---|
//! | have a value at hand that follows the store | [`LiveExt::live`] | a [`Live`] value, read in nanoseconds |
//! | know who changed a value, and go back | [`HistoryExt::record`], [`HistoryExt::history`] | records beside the value |
//! | give a value to some instances first | [`GrayExt::gray`], [`LiveBuilder::instance`] | a release that is promoted or discarded |
//! | refuse values that do not fit | `SchemaExt::checked`, with the feature `schema` | JSON Schemas in the store |
//!
//! Values stay plain JSON under their keys. Data of this crate about a value is kept in sidecar keys, never
//! in the value.

mod diff;
mod gray;
mod history;
mod live;
#[cfg(feature = "schema")]
mod schema;
// For the command, which lays values out for people.
#[doc(hidden)]
pub mod text;

pub use diff::Difference;
pub use gray::{Audience, GrayExt, GrayRelease, GrayValue, Instance};
pub use history::{HistoryExt, MAX_COMMENT_BYTES, MAX_HISTORY, MAX_RECORDED_BYTES, Record, Recorder};
pub use live::{
    Change, Changes, CheckResult, Live, LiveBuilder, LiveCounters, LiveExt, LiveState, Origin, Rejection,
    RejectionCause, WhenDeleted, Whole, whole,
};
#[cfg(feature = "schema")]
pub use schema::{SchemaExt, SchemaScope, Schemas};
