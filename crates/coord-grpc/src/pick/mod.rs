//! Load balancing: the choice of an instance for each call. Pure: no socket, no task, no lock.

pub(crate) mod outlier;
pub(crate) mod peak_ewma;
pub(crate) mod picker;
pub(crate) mod policy;
pub(crate) mod ring;
pub(crate) mod slow_start;
pub(crate) mod stats;

pub use self::{
    outlier::OutlierDetection,
    policy::{HashKey, Policy},
};
