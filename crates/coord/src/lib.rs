//! Distributed locks, service discovery, live configuration and instance ids for Rust services
