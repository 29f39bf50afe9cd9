//! Service discovery: from the registry's events to changes of a list of instances.

mod endpoint_list;
mod instances;

pub use self::instances::{Channels, Instances};
