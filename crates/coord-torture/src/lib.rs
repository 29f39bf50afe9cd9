//! Workloads and checkers for any coord backend: they look for broken promises while somebody disturbs the store.
//!
//! Several processes, each with a client of its own, work on all four areas at the same time, write down what they
//! observe, and pure [checkers](check) say what of it can not be if the contract is kept. Whoever disturbs the store is
//! a task of its own, and knows nothing of the workloads.
//!
//! ```
//! use std::sync::Arc;
//! use coord_api::Provider;
//! use coord_torture::{Plan, run};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # tokio::time::pause();
//! let store = coord_memory::Store::new();
//! // Three that work, one that stands by, and one that looks at the store in the end.
//! let clients: Vec<_> = (0..5).map(|_| store.client()).collect();
//! let providers = clients.iter().map(|client| Arc::new(client.clone()) as Arc<dyn Provider>).collect();
//! let disturbing = tokio::spawn(async move {
//!     tokio::time::sleep(std::time::Duration::from_secs(3)).await;
//!     clients[0].revoke_leases();
//! });
//! let outcome = run(providers, Plan::quick(1).with_operator()).await;
//! disturbing.await.expect("nothing can fail");
//! outcome.assert_good("and that is how to run it again");
//! # }
//! ```
//!
//! The choices of the workloads follow from the seed of the [`Plan`]. On a store in the process with virtual time the
//! whole history does, if tokio's own choices do: see `tests/simulation.rs` of this crate.

pub mod check;
mod config;
mod election;
mod fenced;
mod follow;
pub mod history;
mod ids;
mod lock;
mod plan;
mod registry;
mod run;
mod worker;

pub use check::{Promise, Violation};
pub use plan::{Area, Areas, Operator, Plan};
pub use run::{Observed, Outcome, observe, run};
