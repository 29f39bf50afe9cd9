//! The promises of [`Elections`](coord_api::Elections), its electors and their terms.

pub(crate) mod campaign;
pub(crate) mod hand_over;
pub(crate) mod lead;
pub(crate) mod loss;
pub(crate) mod observe;
pub(crate) mod proclaim;

use std::sync::{Arc, Mutex};

use coord_api::{Elector, Lost, Term};

use crate::{
    World,
    tools::{Task, keys_become, spawn},
};

/// Everybody who ever believed to lead.
#[derive(Clone, Default)]
pub(crate) struct Believers(Arc<Mutex<Vec<(String, Lost)>>>);

impl Believers {
    /// Takes note of one more, and fails if another one believes at this moment.
    pub(crate) fn add(&self, name: &str, term: &Term) {
        let mut all = self.0.lock().expect("nothing panics while this is locked");
        let believe: Vec<_> =
            all.iter().filter(|(_, lost)| lost.reason().is_none()).map(|(name, _)| name.clone()).collect();
        all.push((name.to_owned(), term.lost()));
        drop(all);
        assert!(believe.is_empty() || term.is_lost(), "{name} believes while {believe:?} do");
    }

    /// Returns how often somebody believed.
    pub(crate) fn count(&self) -> usize {
        self.0.lock().expect("nothing panics while this is locked").len()
    }
}

/// A task that campaigns, and is known to be a candidate.
pub(crate) async fn candidate(world: &dyn World, elector: &Elector, before_it: usize) -> Task<Term> {
    let elector = elector.clone();
    let waiter = spawn(async move { elector.campaign().await.expect("leads at last") });
    keys_become(world, before_it + 1).await;
    waiter
}
