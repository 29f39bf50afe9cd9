//! Pool of the leases of one client: where new uses are taken, how many each lease has, and which leases are
//! of no more use. No I/O.
//!
//! Uses are counted one by one. Everything that lives on a lease, or may, holds one use from before its
//! request is sent until it is known to be gone. A lease without a use is kept for the next caller for a
//! while, and of such leases only a few. Callers choose times to live, so without these limits a client could
//! renew any number of leases for ever.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

use coord_api::{Error, Result, Ttl};
use tokio::time::Instant;

/// Limits on the numbers of leases and uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Largest number of uses of one lease. Revoking a lease deletes its keys in one commit, which should
    /// stay bounded.
    pub(super) most_uses: usize,
    /// Number of uses above which the next lease is made ready.
    pub(super) many_uses: usize,
    /// Largest number of leases that are kept without a use.
    pub(super) most_unused: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let most_uses = 1 << 14;
        Self { most_uses, many_uses: most_uses - most_uses / 8, most_unused: 8 }
    }
}

/// Returns how long a lease is kept without a use: one time to live, 10 s at least and a minute at most.
fn kept_unused(ttl: Ttl) -> Duration {
    ttl.as_duration().clamp(Duration::from_secs(10), Duration::from_secs(60))
}

/// Leases of one client that are renewed, each of them an `L`.
#[derive(Debug)]
pub(super) struct Pool<L> {
    limits: Limits,
    leases: BTreeMap<i64, Pooled<L>>,
    classes: HashMap<Ttl, Class>,
}

/// Lease of the pool.
#[derive(Debug)]
struct Pooled<L> {
    lease: L,
    ttl: Ttl,
    uses: usize,
    /// Moment since which it has no use.
    unused_since: Option<Instant>,
}

/// Leases of one time to live.
#[derive(Debug, Default)]
struct Class {
    /// Lease that new uses are taken of.
    current: Option<i64>,
    /// Lease for when the current one has too many uses.
    next: Option<i64>,
    is_preparing: bool,
    /// Number of callers that ask for a lease, one after the other.
    asking: usize,
    turn: Arc<tokio::sync::Mutex<Failed>>,
}

/// Last failure to get a lease of one time to live. Callers that waited for the lease meanwhile share it.
#[derive(Debug, Default)]
pub(super) struct Failed(Option<(Instant, Error)>);

impl Failed {
    /// Takes note of a failure.
    pub(super) fn note(&mut self, now: Instant, error: &Error) {
        self.0 = Some((now, error.duplicate()));
    }

    /// Returns the failure that was found out after `asked`. If each caller tried for itself, the last of
    /// them would wait many times as long as the first.
    pub(super) fn since(&self, asked: Instant) -> Result<()> {
        match &self.0 {
            Some((at, error)) if *at >= asked => Err(error.duplicate()),
            _ => Ok(()),
        }
    }
}

/// Use that was taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken<L> {
    pub(super) lease: L,
    /// Whether the caller has to prepare the next lease; said once.
    pub(super) prepare: bool,
}

/// Need of a lease: whether and until when it is of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Need {
    /// Of use now; to be asked again then.
    Until(Instant),
    /// Of no more use: no use is taken of it from now on.
    Over,
}

impl<L> Default for Pool<L> {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl<L> Pool<L> {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, leases: BTreeMap::new(), classes: HashMap::new() }
    }

    /// Returns every lease.
    pub(super) fn iter(&self) -> impl Iterator<Item = &L> {
        self.leases.values().map(|pooled| &pooled.lease)
    }

    /// Adds a lease that new uses are taken of from now on.
    pub(super) fn add(&mut self, id: i64, ttl: Ttl, lease: L, now: Instant) {
        self.leases.insert(id, Pooled { lease, ttl, uses: 0, unused_since: Some(now) });
        self.classes.entry(ttl).or_default().current = Some(id);
    }

    /// Adds the lease that was prepared, or takes note that there is none.
    pub(super) fn prepared(&mut self, ttl: Ttl, lease: Option<(i64, L)>, now: Instant) {
        let class = self.classes.entry(ttl).or_default();
        class.is_preparing = false;
        class.next = lease.as_ref().map(|(id, _)| *id);
        if let Some((id, lease)) = lease {
            self.leases.insert(id, Pooled { lease, ttl, uses: 0, unused_since: Some(now) });
        }
        self.forget_if_empty(ttl);
    }

    /// Forgets a lease that is lost. Returns whether it had a use.
    pub(super) fn remove(&mut self, id: i64) -> bool {
        let Some(Pooled { ttl, uses, .. }) = self.leases.remove(&id) else { return false };
        if let Some(class) = self.classes.get_mut(&ttl) {
            class.current.take_if(|current| *current == id);
            class.next.take_if(|next| *next == id);
        }
        self.forget_if_empty(ttl);
        uses > 0
    }

    /// Ends a use. Returns whether it was the last one.
    pub(super) fn released(&mut self, id: i64, now: Instant) -> bool {
        let Some(pooled) = self.leases.get_mut(&id) else { return false };
        pooled.uses -= 1;
        let is_unused = pooled.uses == 0;
        pooled.unused_since = is_unused.then_some(now);
        is_unused
    }

    /// Returns whether a lease is of use, and forgets it if not.
    pub(super) fn need(&mut self, id: i64, now: Instant) -> Need {
        let Some(pooled) = self.leases.get(&id) else { return Need::Over };
        let (ttl, limit) = (pooled.ttl, kept_unused(pooled.ttl));
        let Some(since) = pooled.unused_since else { return Need::Until(now + limit) };
        let class = self.classes.get(&ttl);
        let is_wanted = class.is_some_and(|class| [class.current, class.next].contains(&Some(id)));
        if is_wanted && now < since + limit {
            return Need::Until(since + limit);
        }
        self.remove(id);
        Need::Over
    }

    /// Returns the leases that are of no more use: there are too many without a use, or others of their time
    /// to live are used. The tasks that renew them have to ask for their [`need`](Self::need) at once.
    pub(super) fn superfluous(&mut self) -> Vec<&L> {
        let wanted = |id: &i64, pooled: &Pooled<L>| {
            let class = self.classes.get(&pooled.ttl);
            class.is_some_and(|class| [class.current, class.next].contains(&Some(*id)))
        };
        let unused = self.leases.iter().filter_map(|(id, pooled)| Some((pooled.unused_since?, *id, pooled)));
        let (mut kept, mut over): (Vec<_>, Vec<_>) = unused.partition(|(_, id, pooled)| wanted(id, pooled));
        kept.sort_unstable_by_key(|(since, id, _)| (*since, *id));
        let too_many = kept.len().saturating_sub(self.limits.most_unused);
        over.extend(kept.drain(..too_many));
        let over: Vec<_> = over.into_iter().map(|(_, id, _)| id).collect();
        for id in &over {
            // No use is taken of it meanwhile.
            if let Some(class) = self.leases.get(id).and_then(|pooled| self.classes.get_mut(&pooled.ttl)) {
                class.current.take_if(|current| *current == *id);
                class.next.take_if(|next| *next == *id);
            }
        }
        over.iter().filter_map(|id| self.leases.get(id)).map(|pooled| &pooled.lease).collect()
    }

    /// Begins to ask for a lease; [`asked`](Self::asked) follows. Callers take turns by the lock that is
    /// returned.
    pub(super) fn ask(&mut self, ttl: Ttl) -> Arc<tokio::sync::Mutex<Failed>> {
        let class = self.classes.entry(ttl).or_default();
        class.asking += 1;
        class.turn.clone()
    }

    /// Ends what [`ask`](Self::ask) began.
    pub(super) fn asked(&mut self, ttl: Ttl) {
        if let Some(class) = self.classes.get_mut(&ttl) {
            class.asking -= 1;
        }
        self.forget_if_empty(ttl);
    }

    fn forget_if_empty(&mut self, ttl: Ttl) {
        let is_empty = |class: &Class| {
            class.current.is_none() && class.next.is_none() && !class.is_preparing && class.asking == 0
        };
        if self.classes.get(&ttl).is_some_and(is_empty) {
            self.classes.remove(&ttl);
        }
    }
}

impl<L: Clone> Pool<L> {
    /// Takes a use of a lease of `ttl`, if there is one that is good and not used too much.
    pub(super) fn take(&mut self, ttl: Ttl, is_good: impl Fn(&L) -> bool) -> Option<Taken<L>> {
        let class = self.classes.get_mut(&ttl)?;
        let usable = |id: &i64| {
            let pooled = self.leases.get(id);
            pooled.is_some_and(|pooled| pooled.uses < self.limits.most_uses && is_good(&pooled.lease))
        };
        if !class.current.as_ref().is_some_and(usable) {
            class.current = class.next.take().filter(usable);
        }
        let Some(pooled) = class.current.and_then(|id| self.leases.get_mut(&id)) else {
            self.forget_if_empty(ttl);
            return None;
        };
        pooled.uses += 1;
        pooled.unused_since = None;
        let prepare = pooled.uses > self.limits.many_uses && class.next.is_none() && !class.is_preparing;
        class.is_preparing |= prepare;
        Some(Taken { lease: pooled.lease.clone(), prepare })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Limits = Limits { most_uses: 4, many_uses: 3, most_unused: 2 };

    fn ttl(seconds: u64) -> Ttl {
        Ttl::parse(Duration::from_secs(seconds)).expect("is a time to live")
    }

    fn take(pool: &mut Pool<i64>, seconds: u64) -> Option<i64> {
        pool.take(ttl(seconds), |_| true).map(|taken| taken.lease)
    }

    #[test]
    fn lease_with_one_use_left_is_kept_when_the_others_ended() {
        let now = Instant::now();
        let mut pool = Pool::new(SMALL);
        pool.add(1, ttl(10), 1, now);
        for _ in 0..4 {
            assert_eq!(take(&mut pool, 10), Some(1));
        }
        assert_eq!(take(&mut pool, 10), None, "is full");
        pool.add(2, ttl(10), 2, now);
        assert_eq!(take(&mut pool, 10), Some(2));
        for _ in 0..3 {
            pool.released(1, now);
        }
        let later = now + Duration::from_secs(3600);
        assert!(matches!(pool.need(1, later), Need::Until(_)), "an id, a lock or a record lives on it");
        pool.released(1, later);
        assert_eq!(pool.need(1, later), Need::Over, "new places are taken on the other");
        assert!(matches!(pool.need(2, later), Need::Until(_)));
    }

    #[test]
    fn next_lease_is_prepared_once_and_used_when_the_first_is_full() {
        let now = Instant::now();
        let mut pool = Pool::new(SMALL);
        pool.add(1, ttl(10), 1, now);
        let prepare: Vec<_> =
            (0..4).filter_map(|_| pool.take(ttl(10), |_| true)).map(|taken| taken.prepare).collect();
        assert_eq!(prepare, [false, false, false, true]);
        pool.prepared(ttl(10), Some((2, 2)), now);
        assert_eq!(take(&mut pool, 10), Some(2));
        assert!(pool.superfluous().is_empty(), "both are used");
    }

    #[test]
    fn unused_lease_serves_until_it_is_given_back() {
        let now = Instant::now();
        let mut pool = Pool::new(SMALL);
        pool.add(1, ttl(20), 1, now);
        let limit = Duration::from_secs(20);
        assert_eq!(pool.need(1, now), Need::Until(now + limit));
        assert_eq!(take(&mut pool, 20), Some(1));
        let later = now + limit * 3;
        assert_eq!(pool.need(1, later), Need::Until(later + limit));
        pool.released(1, later);
        assert_eq!(pool.need(1, later + limit), Need::Over);
        assert_eq!(take(&mut pool, 20), None);
        assert!(pool.classes.is_empty() && pool.leases.is_empty());
        assert_eq!(kept_unused(ttl(1)), Duration::from_secs(10));
        assert_eq!(kept_unused(ttl(86_400)), Duration::from_secs(60));
    }

    #[test]
    fn of_many_unused_leases_the_last_used_are_kept() {
        let now = Instant::now();
        let mut pool = Pool::new(SMALL);
        for n in 1..=400 {
            let at = now + Duration::from_millis(n);
            let id = n.cast_signed();
            pool.add(id, ttl(n), id, at);
            assert_eq!(take(&mut pool, n), Some(id));
            pool.released(id, at);
            let over: Vec<_> = pool.superfluous().into_iter().copied().collect();
            for id in over {
                assert_eq!(pool.need(id, at), Need::Over);
            }
        }
        let mut left: Vec<_> = pool.iter().copied().collect();
        left.sort_unstable();
        assert_eq!(left, [399, 400]);
        assert_eq!(pool.classes.len(), 2);
    }

    #[test]
    fn lost_lease_is_replaced_and_its_uses_end_later() {
        let now = Instant::now();
        let mut pool = Pool::new(SMALL);
        pool.add(1, ttl(10), 1, now);
        assert_eq!(take(&mut pool, 10), Some(1));
        assert!(pool.remove(1), "it had a use");
        assert!(!pool.remove(1));
        pool.add(2, ttl(10), 2, now);
        pool.released(1, now);
        assert_eq!(take(&mut pool, 10), Some(2));
        assert_eq!(pool.take(ttl(10), |_| false), None, "lost, though nobody has removed it yet");
    }

    #[test]
    fn class_is_forgotten_when_nobody_asks_any_more() {
        let mut pool = Pool::<i64>::new(SMALL);
        let turn = pool.ask(ttl(10));
        let _other = pool.ask(ttl(10));
        pool.asked(ttl(10));
        assert!(Arc::ptr_eq(&turn, &pool.ask(ttl(10))), "they share their turn");
        pool.asked(ttl(10));
        pool.asked(ttl(10));
        assert!(pool.classes.is_empty());
    }
}
