//! etcd backend of the coord distributed-coordination toolkit
