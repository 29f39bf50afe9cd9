//! What services do with configuration beyond reading and writing it, over any
//! [`ConfigCenter`](coord_api::ConfigCenter).
//!
//! | to | call | get |
//! |---|---|---|
//! | have a value at hand that follows the store | [`LiveExt::live`] | a [`Live`] value, read in nanoseconds |
//!
//! Values stay plain JSON under their keys. What this crate knows about a value is kept beside it, never in it.

mod live;

pub use live::{
    Change, Changes, Live, LiveBuilder, LiveCounters, LiveExt, LiveState, Origin, Rejection, RejectionCause,
    Verdict, WhenDeleted,
};
