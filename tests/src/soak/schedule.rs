//! What goes wrong, when, and for how long: all of it follows from a seed.

use std::{fmt, time::Duration};

use fastrand::Rng;

use crate::NODES;

/// One thing that goes wrong, and the quiet time after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub fault: Fault,
    /// For how long.
    pub hold: Duration,
    /// How long nothing else goes wrong afterwards.
    pub rest: Duration,
}

/// What can go wrong. Nodes are numbered from 0, and so are clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// SIGKILL, and a restart afterwards.
    Kill(usize),
    /// SIGKILL for all nodes.
    KillAll,
    /// SIGSTOP.
    Freeze(usize),
    /// SIGSTOP for all nodes, one after the other.
    FreezeAll,
    /// Neither nodes nor clients reach it.
    Isolate(usize),
    /// The other nodes do not reach it.
    CutPeers(usize),
    /// No client reaches it.
    CutClients(usize),
    /// What the first sends does not arrive at the second.
    OneWay(usize, usize),
    /// It hears everybody, and nobody hears it.
    NotHeard(usize),
    /// Clients are refused.
    Refuse(usize),
    /// All connections of clients break at the same moment.
    ResetAll,
    /// Everything from and to it takes longer.
    Slow(usize),
    /// Everything from and to it shares 64 kbit/s.
    Narrow(usize),
    /// A third of its packets are lost.
    Lossy(usize),
    /// Whatever it wants to have on its disk takes a second or more.
    StuckDisk(usize),
    /// Its disk fails, and it ends.
    FailDisk(usize),
    /// All history is compacted.
    Compact,
    /// All nodes are defragmented, which blocks them.
    Defragment,
    /// An operator revokes leases on which no locks are held.
    Revoke,
    /// The store is full, and takes no writes.
    Full,
    /// The password of all clients is replaced, which ends their tokens; they hear of the new one afterwards.
    Rotate,
    /// Every node is cut off in random order, and joined again in another one.
    Swizzle,
    /// A client reaches no node.
    CutClient(usize),
    /// A client's requests arrive, and no answer comes back.
    DeafClient(usize),
    /// Everything from and to a client takes longer.
    SlowClient(usize),
    /// All connections of a client break.
    ResetClient(usize),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Faults for ever; the same for the same seed.
///
/// Every kind comes once before any comes again, so that a run of a few minutes has them all.
pub(super) struct Schedule {
    random: Rng,
    clients: usize,
    deck: Vec<Fault>,
}

impl Schedule {
    pub(super) fn new(seed: u64, clients: usize) -> Self {
        // The workloads draw from the same seed.
        Self { random: Rng::with_seed(seed ^ 0x6e65_6d65_7369_7300), clients, deck: Vec::new() }
    }

    /// Random choices within a fault.
    pub(super) fn random(&mut self) -> &mut Rng {
        &mut self.random
    }

    fn shuffled(&mut self) -> Vec<Fault> {
        let random = &mut self.random;
        let node = |random: &mut Rng| random.usize(..NODES);
        let from = node(random);
        let to = (from + random.usize(1..NODES)) % NODES;
        let client = random.usize(..self.clients);
        let mut deck = vec![
            Fault::Kill(node(random)),
            Fault::Kill(node(random)),
            Fault::KillAll,
            Fault::Freeze(node(random)),
            Fault::Freeze(node(random)),
            Fault::FreezeAll,
            Fault::Isolate(node(random)),
            Fault::CutPeers(node(random)),
            Fault::CutPeers(node(random)),
            Fault::CutClients(node(random)),
            Fault::OneWay(from, to),
            Fault::NotHeard(node(random)),
            Fault::Refuse(node(random)),
            Fault::ResetAll,
            Fault::Slow(node(random)),
            Fault::Narrow(node(random)),
            Fault::Lossy(node(random)),
            Fault::StuckDisk(node(random)),
            Fault::FailDisk(node(random)),
            Fault::Compact,
            Fault::Defragment,
            Fault::Revoke,
            Fault::Full,
            Fault::Rotate,
            Fault::Swizzle,
            Fault::CutClient(client),
            Fault::CutClient((client + 1) % self.clients),
            Fault::DeafClient(random.usize(..self.clients)),
            Fault::SlowClient(random.usize(..self.clients)),
            Fault::ResetClient(random.usize(..self.clients)),
        ];
        random.shuffle(&mut deck);
        deck
    }
}

impl Iterator for Schedule {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        if self.deck.is_empty() {
            self.deck = self.shuffled();
        }
        let fault = self.deck.pop()?;
        // Now and then longer than any TTL.
        let hold = if self.random.u8(..6) == 0 { 5_000..8_000 } else { 300..3_000 };
        let hold = Duration::from_millis(self.random.u64(hold));
        let rest = Duration::from_millis(self.random.u64(100..2_000));
        Some(Step { fault, hold, rest })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, mem::discriminant};

    use super::*;

    #[test]
    fn the_same_seed_is_the_same_misfortune_and_another_one_is_not() {
        let steps = |seed| Schedule::new(seed, 3).take(100).collect::<Vec<_>>();
        assert_eq!(steps(1), steps(1));
        assert_ne!(steps(1), steps(2));
    }

    #[test]
    fn sixty_faults_of_every_kind_fit_into_five_minutes() {
        for seed in 0..200 {
            let steps: Vec<_> = Schedule::new(seed, 3).take(60).collect();
            let time: Duration = steps.iter().map(|step| step.hold + step.rest).sum();
            assert!(time < Duration::from_secs(260), "seed {seed}: {time:?}");
            let kinds: HashSet<_> = steps.iter().map(|step| discriminant(&step.fault)).collect();
            assert_eq!(kinds.len(), 26, "seed {seed}");
            for step in steps {
                if let Fault::OneWay(from, to) = step.fault {
                    assert_ne!(from, to);
                }
            }
        }
    }
}
