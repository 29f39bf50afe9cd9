//! Linearizability after Wing and Gong, with Lowe's memory of what was tried.
//!
//! Searches an order of the operations in which each takes effect between its beginning and its end, and the
//! model allows all. An operation that changes nothing is taken as soon as it fits, which never hurts: any order that has
//! it later is as good with it now. One whose outcome is unknown may be left out, and is only tried where another one
//! does not fit without it: where all fit without it, the order without it is as good.

use std::{collections::HashSet, hash::Hash};

/// What operations do. What a state is after an operation may depend on the state before only by whether it fits: those
/// that change anything know what they leave.
pub trait Model {
    /// The state of the object.
    type State: Clone + Eq + Hash;
    /// An operation with its outcome.
    type Op;

    /// The state after `op`; `None` if that can not have had its outcome in this state.
    fn step(&self, state: &Self::State, op: &Self::Op) -> Option<Self::State>;

    /// Whether two operations of unknown outcome have the same effect whenever they take it. The one that began
    /// first is tried then, since any order with the other one is as good with it.
    fn alike(&self, one: &Self::Op, other: &Self::Op) -> bool;

    /// Of several operations that may be next, those with the smallest rank are tried first. A good guess
    /// saves time, a bad one changes nothing else.
    fn rank(&self, op: &Self::Op) -> u64;
}

/// An operation and the time in which it took effect, by places in the history.
#[derive(Clone, Debug)]
pub struct Interval<O> {
    /// The operation.
    pub op: O,
    /// Where it began.
    pub begun: usize,
    /// Where it had taken effect for sure; `None` if it may do so at any time from its beginning on, or never.
    pub ended: Option<usize>,
}

/// What the search came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none: no order goes beyond the operation that begins here.
    Broken {
        /// Where the operation begins that could not be placed.
        stuck_at: usize,
    },
    /// The search was given up.
    Undecided,
}

/// More steps than any history needs that is not made to be hard.
const STEPS: usize = 2_000_000;

/// Whether the operations are as if each had taken effect at one moment.
pub fn linearizable<M: Model>(model: &M, initial: M::State, mut ops: Vec<Interval<M::Op>>) -> Verdict {
    ops.sort_by_key(|op| op.begun);
    let (required, optional): (Vec<_>, Vec<_>) = ops.into_iter().partition(|op| op.ended.is_some());
    Search { model, required, optional, seen: HashSet::new() }.run(initial)
}

struct Search<'m, M: Model> {
    model: &'m M,
    /// In the order of their beginnings.
    required: Vec<Interval<M::Op>>,
    optional: Vec<Interval<M::Op>>,
    /// What was tried, by state and a hash of what has been placed.
    seen: HashSet<(u128, M::State)>,
}

/// A point in the search from which something else can be tried.
struct Branch<S> {
    state: S,
    placed: usize,
    /// What is left to be tried; the last one is next.
    untried: Vec<usize>,
}

/// What has been placed so far. Operations are numbered through, the optional ones after the others.
struct Placed {
    is: Vec<bool>,
    /// In order, to take them back.
    order: Vec<usize>,
    /// All required ones before this one are placed.
    first: usize,
    hash: u128,
}

impl Placed {
    fn put(&mut self, op: usize) {
        self.is[op] = true;
        self.order.push(op);
        self.hash ^= zobrist(op);
        while self.is.get(self.first).copied().unwrap_or(false) {
            self.first += 1;
        }
    }

    fn take_back_to(&mut self, count: usize) {
        for op in self.order.drain(count..) {
            self.is[op] = false;
            self.hash ^= zobrist(op);
            self.first = self.first.min(op);
        }
    }
}

/// A random number for each operation, so that sets of them have hashes that do not meet.
fn zobrist(op: usize) -> u128 {
    let mut random = fastrand::Rng::with_seed(op as u64);
    u128::from(random.u64(..)) << 64 | u128::from(random.u64(..))
}

impl<M: Model> Search<'_, M> {
    fn run(mut self, mut state: M::State) -> Verdict {
        let (required, all) = (self.required.len(), self.required.len() + self.optional.len());
        let mut placed = Placed { is: vec![false; all], order: Vec::new(), first: 0, hash: 0 };
        // So that `first` stops at the optional ones.
        placed.is.push(false);
        let mut branches: Vec<Branch<M::State>> = Vec::new();
        let mut farthest = 0;
        for _ in 0..STEPS {
            state = self.place_what_changes_nothing(state, &mut placed);
            if placed.first >= required {
                return Verdict::Linearizable;
            }
            farthest = farthest.max(placed.first);
            let untried = if self.seen.insert((placed.hash, state.clone())) {
                self.candidates(&state, &placed)
            } else {
                Vec::new()
            };
            branches.push(Branch { state, placed: placed.order.len(), untried });
            let (op, before) = loop {
                let Some(branch) = branches.last_mut() else {
                    return Verdict::Broken { stuck_at: self.required[farthest].begun };
                };
                if let Some(op) = branch.untried.pop() {
                    placed.take_back_to(branch.placed);
                    break (op, &branch.state);
                }
                branches.pop();
            };
            state = self.model.step(before, &self.op(op).op).expect("it was a candidate in this state");
            placed.put(op);
        }
        Verdict::Undecided
    }

    fn op(&self, op: usize) -> &Interval<M::Op> {
        self.required.get(op).unwrap_or_else(|| &self.optional[op - self.required.len()])
    }

    /// The required operations that may be next: those that begin before any other that is not placed has ended.
    fn next<'a>(&'a self, placed: &'a Placed) -> (impl Iterator<Item = usize> + 'a, usize) {
        let mut horizon = usize::MAX;
        let mut last = placed.first;
        while let Some(op) = self.required.get(last).filter(|op| op.begun < horizon) {
            if !placed.is[last] {
                horizon = horizon.min(op.ended.unwrap_or(usize::MAX));
            }
            last += 1;
        }
        (
            (placed.first..last).filter(move |op| !placed.is[*op] && self.required[*op].begun < horizon),
            horizon,
        )
    }

    fn place_what_changes_nothing(&self, state: M::State, placed: &mut Placed) -> M::State {
        loop {
            let fits = |op: &usize| self.model.step(&state, &self.required[*op].op).as_ref() == Some(&state);
            let fitting = self.next(placed).0.find(fits);
            match fitting {
                Some(op) => placed.put(op),
                None => return state,
            }
        }
    }

    /// What may be next in this state, the best guess last.
    fn candidates(&self, state: &M::State, placed: &Placed) -> Vec<usize> {
        let fits = |state: &M::State, op: usize| self.model.step(state, &self.op(op).op);
        let (next, horizon) = self.next(placed);
        let (mut required, mut unfit): (Vec<_>, Vec<_>) = next.partition(|op| fits(state, *op).is_some());
        required.sort_by_key(|op| std::cmp::Reverse(self.model.rank(&self.required[*op].op)));
        let optional = (0..self.optional.len())
            .take_while(|op| self.optional[*op].begun < horizon)
            .map(|op| op + self.required.len())
            .filter(|op| !placed.is[*op]);
        let (fitting, useless): (Vec<_>, Vec<_>) = optional.partition(|op| fits(state, *op).is_some());
        unfit.extend(useless);
        let helps = |op: &usize| {
            let after = fits(state, *op).expect("was just found to fit");
            unfit.iter().any(|other| fits(&after, *other).is_some())
        };
        let mut optional = Vec::new();
        for op in fitting.into_iter().filter(helps) {
            if !optional.iter().any(|first| self.model.alike(&self.op(*first).op, &self.op(op).op)) {
                optional.push(op);
            }
        }
        optional.into_iter().chain(required).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register of numbers.
    struct Register;

    #[derive(Clone, Copy, Debug)]
    enum Op {
        Read(u64),
        Write(u64),
    }

    impl Model for Register {
        type State = u64;
        type Op = Op;

        fn step(&self, state: &u64, op: &Op) -> Option<u64> {
            match op {
                Op::Read(value) => (value == state).then_some(*state),
                Op::Write(value) => Some(*value),
            }
        }

        fn alike(&self, _one: &Op, _other: &Op) -> bool {
            false
        }

        fn rank(&self, _op: &Op) -> u64 {
            0
        }
    }

    fn verdict(ops: &[(Op, usize, Option<usize>)]) -> Verdict {
        let ops = ops.iter().map(|(op, begun, ended)| Interval { op: *op, begun: *begun, ended: *ended });
        linearizable(&Register, 0, ops.collect())
    }

    #[test]
    fn the_order_of_answers_counts() {
        use Op::{Read, Write};
        assert_eq!(verdict(&[(Write(1), 0, Some(1)), (Read(1), 2, Some(3))]), Verdict::Linearizable);
        let stale = verdict(&[(Write(1), 0, Some(1)), (Read(0), 2, Some(3))]);
        assert_eq!(stale, Verdict::Broken { stuck_at: 2 });
        // At the same time, both are right, but not one after the other and back.
        let concurrent = [(Write(1), 0, Some(5)), (Read(1), 1, Some(2)), (Read(1), 3, Some(4))];
        assert_eq!(verdict(&concurrent), Verdict::Linearizable);
        let back = [(Write(1), 0, Some(5)), (Read(1), 1, Some(2)), (Read(0), 3, Some(4))];
        assert!(matches!(verdict(&back), Verdict::Broken { .. }));
    }

    #[test]
    fn what_is_unknown_may_come_late_or_never_but_not_twice_and_not_early() {
        use Op::{Read, Write};
        assert_eq!(verdict(&[(Write(1), 0, None), (Read(0), 1, Some(2))]), Verdict::Linearizable);
        let late = [(Write(1), 0, None), (Read(0), 1, Some(2)), (Read(1), 3, Some(4)), (Read(1), 5, Some(6))];
        assert_eq!(verdict(&late), Verdict::Linearizable);
        let twice =
            [(Write(1), 0, None), (Read(1), 1, Some(2)), (Write(2), 3, Some(4)), (Read(1), 5, Some(6))];
        assert!(matches!(verdict(&twice), Verdict::Broken { .. }));
        let early = [(Read(1), 0, Some(1)), (Write(1), 2, None)];
        assert!(matches!(verdict(&early), Verdict::Broken { .. }));
    }

    /// Runs a register in one order, and gives each operation some time around its moment.
    fn made(seed: u64, count: usize) -> Vec<Interval<Op>> {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut state = 0;
        let mut ops = Vec::new();
        for n in 0..count {
            let moment = 100 + n * 10;
            let (begun, ended) = (moment - random.usize(..40), Some(moment + random.usize(1..40)));
            match random.u8(..100) {
                0..50 => ops.push(Interval { op: Op::Read(state), begun, ended }),
                50..52 => {
                    // It is not known whether this one took effect.
                    let value = random.u64(1..);
                    if random.bool() {
                        state = value;
                    }
                    ops.push(Interval { op: Op::Write(value), begun, ended: None });
                }
                _ => {
                    state = random.u64(1..);
                    ops.push(Interval { op: Op::Write(state), begun, ended });
                }
            }
        }
        ops
    }

    #[test]
    fn ten_thousand_operations_are_decided_and_one_stale_read_among_them_is_seen() {
        for seed in 0..3 {
            let mut ops = made(seed, 10_000);
            assert_eq!(linearizable(&Register, 0, ops.clone()), Verdict::Linearizable, "seed {seed}");
            let stale = ops.iter().position(|op| matches!(op.op, Op::Write(_)) && op.ended.is_some());
            let Op::Write(value) = ops[stale.expect("there are writes")].op else { unreachable!() };
            let at = ops.last().expect("there are many").begun + 500;
            ops.push(Interval { op: Op::Read(value), begun: at, ended: Some(at + 1) });
            assert!(matches!(linearizable(&Register, 0, ops), Verdict::Broken { .. }), "seed {seed}");
        }
    }
}
