//! What the conformance suite runs on.

pub mod etcd;
pub mod memory;
