//! coord's contract as named tests that every backend runs, also those that live outside this workspace.
//!
//! A backend implements [`Backend`] and [`World`], the handles by which the tests make clients, cut them off
//! and look into the store, and hands itself to [`main!`] in a test target of its own:
//!
//! ```toml
//! [[test]]
//! name = "conformance"
//! harness = false
//! ```
//!
//! ```text
//! // tests/conformance.rs
//! coord_conformance::main! { mine: MyBackend::default() }
//! ```
//!
//! `cargo test --test conformance` then runs each test as `mine::lock::first_come_first_served`. There is no
//! way to leave one out: what a backend promises is all of it.
//!
//! | area | promises |
//! |---|---|
//! | `lock` | exclusion, order of arrival, fencing tokens, loss that is told before anyone else is let in |
//! | `elections` | one leader at a time, order of arrival, work that runs while its candidate leads, observers |
//! | `registry` | records, owners, registrations that come back by themselves, watches |
//! | `config` | typed values, versions, atomic batches, watches without a gap |
//! | `ids` | one holder of each id, ranges, loss |
//! | `close` | what is given back, who is woken, what comes afterwards |
//! | `names` | every bad argument is refused by its name before anything is stored |

mod close;
mod config;
mod elections;
mod expect;
mod ids;
mod listener;
mod lock;
mod names;
mod registry;
mod suite;
mod tools;
mod world;

pub use futures::future::BoxFuture;
pub use suite::{Backends, Test, contract};
pub use world::{Backend, Link, Raw, TestClient, World};

/// Prints what coord traces in this process to stderr, from now on, if `RUST_LOG` is set: `RUST_LOG=coord_kv=debug`.
/// Changes nothing if somebody listens already.
#[doc(hidden)]
pub fn print_traces() {
    listener::print_traces();
}

/// Expands to the `fn main` of a test target without harness that runs every test on every listed backend.
///
/// Each entry is `name: backend`, where `backend` is an expression of a type that implements [`Backend`]. It
/// is evaluated when its first test starts, so `--list` starts no server, and dropped before the process
/// exits, so it may own one. The usual arguments of a test program work: filters, `--list`, `--exact`.
#[macro_export]
macro_rules! main {
    ($($name:ident: $backend:expr),+ $(,)?) => {
        fn main() -> ::std::process::ExitCode {
            $crate::Backends::new()$(.with(stringify!($name), || $backend))+.run()
        }
    };
}
