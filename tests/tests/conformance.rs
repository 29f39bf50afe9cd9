//! The contract on every backend. `cargo test --test conformance -- --list --format terse` names its tests
//! without starting a server; `-- memory::` runs those that need none.

use coord_tests::worlds::{etcd::EtcdBackend, memory::MemoryBackend};

coord_conformance::main! { memory: MemoryBackend, etcd: EtcdBackend::default() }
