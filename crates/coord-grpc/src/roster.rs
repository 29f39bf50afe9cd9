//! Every known instance and what is under way with it: which to connect and when, which calls may go to.
//! Pure: a connection is whatever `C` is, and the driver and the calls tell what happens.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use coord_api::{ServiceInfo, Version};
use tokio::time::Instant;
use tower::discover::Change;

use crate::{
    Policy,
    hash::{Ring, rank},
    outlier::{Failure, OutlierDetection, Record, Verdict},
    peak_ewma::PoolLatency,
    picker::{Shared, Slot, Table},
    slow_start::SlowStart,
    stats::Node,
};

/// How many connections are opened at a time.
const DIALS: usize = 32;
/// The first pause after a failed try to connect, doubled with each that follows,
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// up to this, unless the options say otherwise.
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A connection that ends before this age was hardly accepted.
const YOUNG: Duration = Duration::from_secs(1);

/// What a roster is told by the options.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) policy: Policy,
    pub(crate) zone: Option<String>,
    pub(crate) only: BTreeMap<String, String>,
    pub(crate) subset: Option<usize>,
    pub(crate) outlier_detection: Option<OutlierDetection>,
    pub(crate) longest_pause: Duration,
    /// The name that the health service of each instance is asked for, if it is.
    pub(crate) health_check: Option<String>,
    pub(crate) slow_start: Option<SlowStart>,
}

impl Plan {
    /// The health of an instance of which nothing was heard.
    fn health(&self) -> Serving {
        if self.health_check.is_some() { Serving::Unknown } else { Serving::Yes }
    }
}

/// An order to connect to an instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dial {
    pub(crate) id: String,
    pub(crate) turn: u64,
    pub(crate) authority: String,
}

#[derive(Clone, Debug)]
pub(crate) enum Phase<C> {
    /// To be connected at this time.
    Due(Instant),
    Connecting,
    Ready(C),
}

/// Whether an instance wants calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Serving {
    Yes,
    /// Its health service was asked and has not answered yet.
    Unknown,
    No,
}

#[derive(Debug)]
pub(crate) struct Member<C> {
    pub(crate) node: Arc<Node>,
    pub(crate) phase: Phase<C>,
    /// Until then it is ejected; afterwards it is connected anew and on trial.
    pub(crate) ejected: Option<Instant>,
    info: ServiceInfo,
    turn: u64,
    /// Since when its connection is there, if it is.
    since: Instant,
    /// Without a connection that lasted between them.
    failed_dials: u32,
    record: Record,
    /// As its health service says.
    health: Serving,
    /// Since when calls may go to it, for the slow start.
    started: Option<Instant>,
}

impl<C> Member<C> {
    /// Whether calls may go to it.
    fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready(_)) && self.serving() == Serving::Yes
    }

    /// Whether it wants calls, by its record and by its health service.
    pub(crate) fn serving(&self) -> Serving {
        if self.info.is_serving() { self.health } else { Serving::No }
    }

    /// Whether it has calls, or soon may: it is not ejected, and nothing is known that speaks against it.
    fn may_have_calls(&self) -> bool {
        let may_be_reached = matches!(self.phase, Phase::Ready(_)) || self.failed_dials == 0;
        self.ejected.is_none() && may_be_reached && self.serving() != Serving::No
    }

    /// Takes in that it may have calls now, if it may.
    fn start(&mut self, now: Instant) {
        if self.is_ready() {
            self.started.get_or_insert(now);
        } else if self.serving() == Serving::No {
            self.started = None;
        }
    }

    /// How long to wait with the next connection; not at all before the first failure.
    fn pause(&self, longest: Duration) -> Option<Duration> {
        let doublings = self.failed_dials.checked_sub(1)?.min(16);
        Some(FIRST_PAUSE.saturating_mul(1 << doublings).min(longest).mul_f64(0.8 + 0.4 * fastrand::f64()))
    }
}

/// What the list says of one id.
#[derive(Debug)]
struct Known {
    info: ServiceInfo,
    /// The larger, the newer: by the store's revision, else in the order in which they were told.
    age: (Option<Version>, u64),
}

/// See [the module](self).
#[derive(Debug)]
pub(crate) struct Roster<C> {
    plan: Plan,
    /// All that match the filter, used or not, by id.
    known: BTreeMap<String, Known>,
    /// The ids that do not match it.
    unmatched: BTreeSet<String>,
    members: BTreeMap<String, Member<C>>,
    shared: Shared,
    seed: u64,
    turns: u64,
    dials: usize,
    /// Why the last connection could not be made.
    pub(crate) last_error: Option<String>,
}

impl<C: Clone> Roster<C> {
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            plan,
            known: BTreeMap::new(),
            unmatched: BTreeSet::new(),
            members: BTreeMap::new(),
            // Clients that start together do not begin with the same instance.
            shared: Shared { rotation: Arc::new(fastrand::usize(..1 << 20).into()), ..Shared::default() },
            seed: fastrand::u64(..),
            turns: 0,
            dials: 0,
            last_error: None,
        }
    }

    /// Takes in changes of the list.
    pub(crate) fn apply(
        &mut self,
        changes: impl IntoIterator<Item = Change<String, ServiceInfo>>,
        now: Instant,
    ) {
        for change in changes {
            match change {
                Change::Insert(id, info) => self.learn(id, info),
                Change::Remove(id) => {
                    self.known.remove(&id);
                    self.unmatched.remove(&id);
                }
            }
        }
        let chosen = self.subset();
        let mut left: BTreeMap<_, _> = std::mem::take(&mut self.members);
        let stay: Vec<_> = chosen.iter().filter_map(|id| left.remove_entry(id)).collect();
        self.members.extend(stay);
        // A process that comes under another id keeps its connection.
        let mut left: BTreeMap<_, _> =
            left.into_values().map(|member| (place(&member.info), member)).collect();
        for id in chosen {
            let info = self.known[&id].info.clone();
            match self.members.get_mut(&id) {
                // New metadata alone must not cut a connection.
                Some(member) if place(&member.info) == place(&info) => {
                    member.info = info;
                    member.start(now);
                }
                _ => {
                    let member = match left.remove(&place(&info)) {
                        Some(member) => {
                            let node = Arc::new(member.node.renamed(id.clone()));
                            Member { node, info, ..member }
                        }
                        None => self.stranger(&id, info, now),
                    };
                    self.members.insert(id, member);
                }
            }
        }
        if self.plan.policy == Policy::ConsistentHash {
            self.shared.ring = Arc::new(Ring::new(self.members.keys().map(String::as_str)));
        }
    }

    fn learn(&mut self, id: String, info: ServiceInfo) {
        if !self.matches(&info) {
            self.known.remove(&id);
            self.unmatched.insert(id);
            return;
        }
        self.unmatched.remove(&id);
        self.turns += 1;
        let age = (info.revision(), self.turns);
        self.known.insert(id, Known { info, age });
    }

    /// An instance that is to be connected.
    fn stranger(&mut self, id: &str, info: ServiceInfo, now: Instant) -> Member<C> {
        self.turns += 1;
        Member {
            node: Arc::new(Node::new(id.to_owned(), info.authority())),
            phase: Phase::Due(now),
            ejected: None,
            info,
            turn: self.turns,
            since: now,
            failed_dials: 0,
            record: Record::default(),
            health: self.plan.health(),
            started: None,
        }
    }

    /// The ids that count, with what is known of them. Of several at one address, such as those of a process that crashed
    /// and of its successor, it is the one that was written last: they are one process.
    fn newest(&self) -> BTreeMap<&String, &ServiceInfo> {
        let mut newest: HashMap<String, (&String, &Known)> = HashMap::with_capacity(self.known.len());
        for (id, known) in &self.known {
            let best = newest.entry(place(&known.info)).or_insert((id, known));
            if best.1.age < known.age {
                *best = (id, known);
            }
        }
        newest.into_values().map(|(id, known)| (id, &known.info)).collect()
    }

    fn matches(&self, info: &ServiceInfo) -> bool {
        self.plan.only.iter().all(|(key, value)| info.metadata.get(key) == Some(value))
    }

    fn is_local(&self, info: &ServiceInfo) -> bool {
        self.plan.zone.is_some() && info.zone() == self.plan.zone.as_deref()
    }

    /// Those of the own zone first, then by the client's own order, which hardly changes with the list.
    fn subset(&self) -> BTreeSet<String> {
        let newest = self.newest();
        let Some(size) = self.plan.subset.filter(|size| *size < newest.len()) else {
            return newest.into_keys().cloned().collect();
        };
        let mut ranked: Vec<_> =
            newest.into_iter().map(|(id, info)| (!self.is_local(info), rank(self.seed, id), id)).collect();
        ranked.sort_unstable();
        ranked.into_iter().take(size).map(|(_, _, id)| id.clone()).collect()
    }

    /// Ends the ejections when no other instance is left to which calls could go: whatever an ejected one answers, it is
    /// better than nobody.
    fn recall(&mut self, now: Instant) {
        if self.members.values().any(Member::may_have_calls) {
            return;
        }
        for member in self.members.values_mut() {
            // One that was tried again since and could not be reached has pauses of its own.
            if let Phase::Due(at) = member.phase
                && member.ejected == Some(at)
                && now < at
            {
                member.phase = Phase::Due(now);
                tracing::info!(id = member.node.id, "an ejected instance is tried, since no other is left");
            }
        }
    }

    /// The instances to connect to now, as many at a time as is good.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<Dial> {
        self.recall(now);
        let free = DIALS.saturating_sub(self.dials);
        let due =
            self.members.iter_mut().filter(|(_, member)| matches!(member.phase, Phase::Due(at) if at <= now));
        let dials: Vec<_> = due
            .take(free)
            .map(|(id, member)| {
                member.phase = Phase::Connecting;
                Dial { id: id.clone(), turn: member.turn, authority: member.node.authority.clone() }
            })
            .collect();
        self.dials += dials.len();
        dials
    }

    /// When [`due`](Self::due) has something again, if nothing happens before.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        if self.dials >= DIALS {
            return None;
        }
        let due = self.members.values().filter_map(|member| match member.phase {
            Phase::Due(at) => Some(at),
            _ => None,
        });
        due.min()
    }

    /// What came of a [`Dial`]. Of one that nobody waits for any more the connection is dropped.
    pub(crate) fn dialled(&mut self, dial: &Dial, outcome: Result<C, String>, now: Instant) {
        self.dials -= 1;
        let (longest, health) = (self.plan.longest_pause, self.plan.health());
        let Some(member) = member(&mut self.members, &dial.id, dial.turn) else { return };
        match outcome {
            Ok(link) => {
                if member.ejected.take().is_some() {
                    member.node.put_on_trial();
                    tracing::info!(
                        id = dial.id,
                        address = dial.authority,
                        "an instance is back after an ejection"
                    );
                }
                member.since = now;
                // An error of before says nothing about what comes now.
                self.last_error = None;
                member.health = health;
                // A process that was away is a new one, most likely.
                if member.failed_dials > 0 {
                    member.started = None;
                }
                // What broke with the connection before tells nothing of this one.
                member.node.in_a_row.store(0, Relaxed);
                member.phase = Phase::Ready(link);
                member.start(now);
            }
            Err(error) => {
                let is_first = member.failed_dials == 0;
                member.failed_dials = member.failed_dials.saturating_add(1);
                member.phase = Phase::Due(now + member.pause(longest).unwrap_or_default());
                if is_first {
                    tracing::debug!(
                        id = dial.id,
                        address = dial.authority,
                        error,
                        "an instance can not be reached"
                    );
                }
                self.last_error = Some(error);
            }
        }
    }

    /// A connection ended. Calls no longer go there, and it is tried again at once; with growing pauses if
    /// one connection after the other ends as soon as it is made, before it was of use, for which there is a `suspicion`.
    pub(crate) fn lost(&mut self, id: &str, turn: u64, suspicion: Option<&str>, now: Instant) -> bool {
        self.turns += 1;
        let next = self.turns;
        let longest = self.plan.longest_pause;
        let Some(member) = member(&mut self.members, id, turn) else { return false };
        let Phase::Ready(_) = member.phase else { return false };
        member.turn = next;
        if let Some(suspicion) = suspicion.filter(|_| now < member.since + YOUNG) {
            member.phase = Phase::Due(now + member.pause(longest).unwrap_or_default());
            member.failed_dials = member.failed_dials.saturating_add(1);
            self.last_error = Some(suspicion.to_owned());
        } else {
            member.phase = Phase::Due(now);
            member.failed_dials = 0;
        }
        true
    }

    /// The health service of an instance has answered over this connection; says whether that changes anything.
    pub(crate) fn heard(&mut self, id: &str, turn: u64, health: Serving, now: Instant) -> bool {
        let Some(member) = member(&mut self.members, id, turn) else { return false };
        if member.health == health {
            return false;
        }
        let address = &member.node.authority;
        match health {
            Serving::Yes => tracing::info!(id, address, "an instance says that it serves"),
            Serving::No => tracing::warn!(id, address, "an instance says that it does not serve"),
            Serving::Unknown => tracing::debug!(id, address, "an instance no longer says whether it serves"),
        }
        member.health = health;
        member.start(now);
        true
    }

    /// The connections there are, for those who look after them.
    pub(crate) fn connections(&self) -> impl Iterator<Item = (&str, u64, &C)> {
        self.members.iter().filter_map(|(id, member)| match &member.phase {
            Phase::Ready(link) => Some((id.as_str(), member.turn, link)),
            _ => None,
        })
    }

    /// Why no instance is ready, though one was waited for so long.
    pub(crate) fn why_nobody(&self, waited: Duration) -> String {
        let (known, unmatched) = (self.members.len(), self.unmatched.len());
        let unmarked = self.members.values().filter(|member| member.info.is_serving()).count();
        let connected = self.members.values().filter(|member| matches!(member.phase, Phase::Ready(_)));
        let asked = connected.filter(|member| member.serving() == Serving::No).count();
        let of_last = self.last_error.as_ref().map_or_else(String::new, |last| format!(": {last}"));
        match known {
            0 if unmatched == 0 => format!("no instance was registered within {waited:?}"),
            0 => {
                let only = self.plan.only.iter().map(|(key, value)| format!("{key}={value}"));
                let only: Vec<_> = only.collect();
                format!("of {unmatched} instances none has the metadata {}", only.join(", "))
            }
            _ if unmarked == 0 => format!("all {known} instances are marked as not serving"),
            _ if asked == known => format!("all {known} instances say that they are not serving"),
            _ if asked > 0 => {
                format!(
                    "none of {known} instances was ready within {waited:?}, {asked} say that they are not serving{of_last}"
                )
            }
            _ => format!("none of {known} instances was ready within {waited:?}{of_last}"),
        }
    }

    pub(crate) fn pool(&self) -> Arc<PoolLatency> {
        self.shared.pool.clone()
    }

    /// A call over this connection failed; says whether calls go on to it.
    pub(crate) fn failed(&mut self, id: &str, turn: u64, failure: Failure, now: Instant) -> Verdict {
        let known = self.members.len();
        let Some(failing) = find(&self.members, id, turn).map(|(_, it)| it).filter(|it| it.is_ready()) else {
            return Verdict::Stay;
        };
        let others = self.members.values().filter(|member| member.is_ready() && member.turn != turn);
        let others = others.map(|member| &**member.node);
        let rules = self.plan.outlier_detection.as_ref();
        let outlier = rules.filter(|rules| rules.ejects(&failing.node, failure, known, others, now));
        let Some(failing) = member(&mut self.members, id, turn) else { return Verdict::Stay };
        let verdict = match outlier {
            Some(rules) => Verdict::Eject { until: failing.record.eject(rules, now, fastrand::f64()) },
            None if failure == Failure::Silence => Verdict::Renew,
            None => Verdict::Stay,
        };
        self.turns += 1;
        match verdict {
            Verdict::Stay => return verdict,
            Verdict::Renew => failing.phase = Phase::Due(now),
            Verdict::Eject { until } => {
                failing.phase = Phase::Due(until);
                failing.ejected = Some(until);
                failing.node.ejections.fetch_add(1, Relaxed);
                failing.node.in_a_row.store(0, Relaxed);
                tracing::warn!(
                    id, address = failing.node.authority, ?failure, cool_off = ?until - now,
                    "an instance is ejected"
                );
            }
        }
        failing.turn = self.turns;
        verdict
    }

    pub(crate) fn known(&self) -> usize {
        self.members.len()
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Member<C>> {
        self.members.values()
    }

    /// What calls choose from.
    pub(crate) fn table(&self) -> Table<C> {
        let (mut local, mut elsewhere, mut known_in_zone) = (Vec::new(), Vec::new(), 0);
        for (info, number) in self.members.values().zip(0..) {
            let is_local = self.is_local(&info.info);
            known_in_zone += usize::from(is_local);
            if let Phase::Ready(link) = &info.phase
                && info.is_ready()
            {
                let (node, weight) = (info.node.clone(), info.info.weight());
                let (turn, link, started) = (info.turn, link.clone(), info.started);
                let slot = Slot { node, turn, link, weight, member: number, started };
                if is_local { local.push(slot) } else { elsewhere.push(slot) }
            }
        }
        let slow_start = self.plan.slow_start;
        Table::new(self.plan.policy, elsewhere, (local, known_in_zone), self.shared.clone(), slow_start)
    }
}

/// The address, written in one way.
fn place(info: &ServiceInfo) -> String {
    let host = match info.address.parse::<IpAddr>() {
        Ok(ip) => ip.to_canonical().to_string(),
        Err(_) => info.address.trim_end_matches('.').to_ascii_lowercase(),
    };
    format!("{host} {}", info.port)
}

/// The instance, if it is still at that turn: what comes from a connection before it is late.
fn member<'a, C>(
    members: &'a mut BTreeMap<String, Member<C>>,
    id: &str,
    turn: u64,
) -> Option<&'a mut Member<C>> {
    let id = find(members, id, turn)?.0.clone();
    members.get_mut(&id)
}

/// The same with its id, which may be another one than when the connection was made.
fn find<'a, C>(
    members: &'a BTreeMap<String, Member<C>>,
    id: &str,
    turn: u64,
) -> Option<(&'a String, &'a Member<C>)> {
    let is_it = |(_, member): &(&String, &Member<C>)| member.turn == turn;
    members.get_key_value(id).filter(is_it).or_else(|| members.iter().find(is_it))
}

#[cfg(test)]
mod tests {
    use coord_api::{WEIGHT, ZONE};

    use super::*;

    /// Each has an address of its own.
    fn info(id: &str) -> ServiceInfo {
        ServiceInfo::new("svc", id, format!("{id}.local"), 80)
    }

    fn inserted(ids: &[&str]) -> Vec<Change<String, ServiceInfo>> {
        ids.iter().map(|id| Change::Insert((*id).into(), info(id))).collect()
    }

    fn plan() -> Plan {
        Plan {
            policy: Policy::default(),
            zone: None,
            only: BTreeMap::new(),
            subset: None,
            outlier_detection: Some(OutlierDetection::new().consecutive_failures(2)),
            longest_pause: LONGEST_PAUSE,
            health_check: None,
            slow_start: None,
        }
    }

    /// A roster whose instances are all ready.
    fn ready(plan: Plan, ids: &[&str]) -> Roster<u64> {
        let mut roster = Roster::new(plan);
        roster.apply(inserted(ids), Instant::now());
        connect(&mut roster);
        roster
    }

    fn connect(roster: &mut Roster<u64>) -> usize {
        let now = Instant::now();
        let dials = roster.due(now);
        for dial in &dials {
            roster.dialled(dial, Ok(dial.turn), now);
        }
        dials.len()
    }

    fn fail(roster: &mut Roster<u64>, id: &str, failure: Failure) -> Verdict {
        let member = &roster.members[id];
        member.node.failed(OutlierDetection::INTERVAL, Instant::now());
        let turn = member.turn;
        roster.failed(id, turn, failure, Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_opened_ahead_a_few_at_a_time() {
        let ids: Vec<_> = (0..100).map(|n| format!("{n:03}")).collect();
        let ids: Vec<_> = ids.iter().map(String::as_str).collect();
        let mut roster: Roster<u64> = Roster::new(plan());
        roster.apply(inserted(&ids), Instant::now());
        let first = roster.due(Instant::now());
        assert_eq!(first.len(), DIALS);
        assert!(roster.due(Instant::now()).is_empty() && roster.next_due().is_none());
        roster.dialled(&first[0], Ok(0), Instant::now());
        assert_eq!(roster.due(Instant::now()).len(), 1, "one place is free");
        assert_eq!(roster.table().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn refused_connections_are_tried_again_more_and_more_seldom() {
        let mut roster = Roster::<u64>::new(plan());
        roster.apply(inserted(&["a"]), Instant::now());
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let dial = roster.due(Instant::now()).pop().expect("is due");
            roster.dialled(&dial, Err("refused".into()), Instant::now());
            let at = roster.next_due().expect("is tried again");
            pauses.push(at - Instant::now());
            tokio::time::sleep_until(at).await;
        }
        assert!(pauses[0] <= Duration::from_millis(60), "{pauses:?}");
        assert!(pauses[11] >= Duration::from_secs(4) && pauses[11] <= Duration::from_secs(6), "{pauses:?}");
        assert_eq!(roster.last_error.as_deref(), Some("refused"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_connection_is_left_at_once_and_what_is_late_changes_nothing() {
        let mut roster = ready(plan(), &["a", "b"]);
        let turn = roster.members["a"].turn;
        assert!(roster.lost("a", turn, Some(""), Instant::now()));
        assert!(!roster.lost("a", turn, Some(""), Instant::now()), "is told twice");
        assert_eq!(roster.table().len(), 1);
        assert_eq!(connect(&mut roster), 1);
        assert_eq!(roster.table().len(), 2);
        assert!(!roster.lost("a", turn, Some(""), Instant::now()), "that was the connection before");
        for _ in 0..9 {
            assert_eq!(roster.failed("a", turn, Failure::Silence, Instant::now()), Verdict::Stay);
        }
        // Removed while it is being connected.
        tokio::time::sleep(YOUNG).await;
        let turn = roster.members["a"].turn;
        roster.lost("a", turn, Some(""), Instant::now());
        let dial = roster.due(Instant::now()).pop().expect("is due");
        roster.apply([Change::Remove("a".into())], Instant::now());
        roster.dialled(&dial, Ok(9), Instant::now());
        assert_eq!((roster.known(), roster.table().len()), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn connections_that_end_at_once_are_made_more_and_more_seldom() {
        let mut roster = ready(plan(), &["a"]);
        let mut pauses = Vec::new();
        for _ in 0..10 {
            let begun = Instant::now();
            assert!(roster.lost("a", roster.members["a"].turn, Some("closed at once"), begun));
            assert_eq!(roster.last_error.as_deref(), Some("closed at once"));
            tokio::time::sleep_until(roster.next_due().expect("is tried again")).await;
            pauses.push(begun.elapsed());
            assert_eq!(connect(&mut roster), 1);
        }
        assert!(pauses[0].is_zero() && pauses[1] > Duration::from_millis(30), "{pauses:?}");
        assert!(pauses[9] > Duration::from_secs(3), "{pauses:?}");
        assert_eq!(roster.last_error, None, "it is connected");
        assert!(roster.lost("a", roster.members["a"].turn, None, Instant::now()));
        assert_eq!(roster.next_due(), Some(Instant::now()), "that one was of use");
        assert_eq!(connect(&mut roster), 1);
        tokio::time::sleep(YOUNG).await;
        roster.lost("a", roster.members["a"].turn, Some(""), Instant::now());
        assert_eq!(roster.next_due(), Some(Instant::now()), "that one lasted");
    }

    #[tokio::test(start_paused = true)]
    async fn an_ejected_instance_cools_off_and_comes_back_on_trial() {
        let mut roster = ready(plan(), &["a", "b", "c"]);
        assert_eq!(fail(&mut roster, "a", Failure::Answer), Verdict::Stay);
        let Verdict::Eject { until } = fail(&mut roster, "a", Failure::Answer) else {
            panic!("two in a row")
        };
        assert_eq!(roster.table().len(), 2);
        assert_eq!(connect(&mut roster), 0, "not before its time");
        assert_eq!(roster.next_due(), Some(until));

        tokio::time::sleep_until(until).await;
        let dial = roster.due(Instant::now()).pop().expect("is due");
        roster.dialled(&dial, Err("silent".into()), Instant::now());
        assert!(roster.members["a"].ejected.is_some(), "is still away");
        tokio::time::sleep_until(roster.next_due().expect("is tried again")).await;
        assert_eq!(connect(&mut roster), 1);
        let node = roster.members["a"].node.clone();
        assert!(roster.members["a"].ejected.is_none() && node.on_trial.load(Relaxed));
        assert_eq!(roster.table().len(), 3);

        let first = until;
        let now = Instant::now();
        let Verdict::Eject { until } = fail(&mut roster, "a", Failure::Answer) else { panic!("is on trial") };
        assert!(until - now > Duration::from_millis(1500), "{:?}", until - first);
        assert_eq!(node.ejections.load(Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn ejected_instance_comes_back_when_no_other_can_have_calls() {
        let mut roster = ready(plan(), &["a", "b"]);
        fail(&mut roster, "a", Failure::Answer);
        let Verdict::Eject { until } = fail(&mut roster, "a", Failure::Answer) else {
            panic!("two in a row")
        };
        assert!(roster.due(Instant::now()).is_empty(), "the other one is there");
        roster.lost("b", roster.members["b"].turn, None, Instant::now());
        let dial = roster.due(Instant::now()).pop().expect("is due");
        assert_eq!(dial.id, "b", "a connection that ends may be made again at once");
        roster.dialled(&dial, Err("refused".into()), Instant::now());
        let dial = roster.due(Instant::now()).pop().expect("nobody else is left");
        assert_eq!(dial.id, "a");
        roster.dialled(&dial, Err("refused".into()), Instant::now());
        assert!(roster.due(Instant::now()).is_empty(), "it has its pause like any other");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(connect(&mut roster) > 0 && Instant::now() < until);
        assert!(roster.table().len() > 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_last_one_is_connected_anew_rather_than_ejected() {
        let mut roster = ready(plan(), &["a"]);
        assert_eq!(fail(&mut roster, "a", Failure::Silence), Verdict::Renew);
        assert_eq!(roster.table().len(), 0);
        assert_eq!(connect(&mut roster), 1);
        for _ in 0..9 {
            assert_eq!(fail(&mut roster, "a", Failure::Answer), Verdict::Stay);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn lists_are_filtered_and_metadata_cuts_nothing() {
        let plan = Plan { only: BTreeMap::from([("version".into(), "2".into())]), ..plan() };
        let with = |id: &str, version: &str| Change::Insert(id.into(), info(id).with("version", version));
        let mut roster = Roster::<u64>::new(plan);
        roster.apply([with("a", "1"), with("b", "2")], Instant::now());
        assert_eq!(connect(&mut roster), 1);
        let node = roster.members["b"].node.clone();
        let heavier = info("b").with("version", "2").with(WEIGHT, "3");
        roster.apply([Change::Insert("b".into(), heavier), with("a", "2")], Instant::now());
        assert!(Arc::ptr_eq(&node, &roster.members["b"].node));
        assert_eq!((roster.table().len(), roster.known()), (1, 2));
        roster.apply([with("b", "3")], Instant::now());
        assert_eq!(roster.known(), 1, "no longer matches");
        let mut moved = info("a").with("version", "2");
        moved.port = 81;
        connect(&mut roster);
        roster.apply([Change::Insert("a".into(), moved)], Instant::now());
        assert_eq!(roster.table().len(), 0, "is elsewhere now");
    }

    #[tokio::test(start_paused = true)]
    async fn address_under_two_ids_is_one_instance_and_the_newer_counts() {
        let at = |id: &str, address: &str| ServiceInfo::new("svc", id, address, 80);
        let insert = |info: ServiceInfo| Change::Insert(info.id.clone(), info);
        let mut roster = ready(plan(), &["other"]);
        roster.apply([insert(at("crashed", "0::1"))], Instant::now());
        assert_eq!(connect(&mut roster), 1);
        let before = roster.members["crashed"].node.clone();
        before.load.begin();
        roster.apply([insert(at("successor", "::1").with(WEIGHT, "3"))], Instant::now());
        assert_eq!((roster.known(), roster.table().len()), (2, 2), "no connection was cut");
        assert_eq!(connect(&mut roster), 0, "none is made");
        let successor = &roster.members["successor"];
        assert_eq!((successor.node.load.pending(), successor.info.weight().to_string()), (1, "3".into()));
        // The record of the crashed one is only gone when its lease is over; the end of the connection is told of the id
        // that it was made for.
        roster.apply([Change::Remove("crashed".into())], Instant::now());
        assert_eq!((roster.known(), roster.table().len()), (2, 2));
        let turn = roster.members["successor"].turn;
        assert!(roster.lost("crashed", turn, None, Instant::now()));
        assert_eq!(roster.table().len(), 1);
        // If the newer one goes first, the older stands in.
        roster.apply([insert(at("crashed", "::1"))], Instant::now());
        roster.apply([Change::Remove("crashed".into())], Instant::now());
        assert!(roster.members.contains_key("successor"));
        // A process that moves away leaves the address to the other id.
        connect(&mut roster);
        roster.apply([insert(at("late", "::1")), insert(at("successor", "::2"))], Instant::now());
        assert_eq!(roster.members.keys().collect::<Vec<_>>(), ["late", "other", "successor"]);
    }

    #[tokio::test(start_paused = true)]
    async fn instances_that_do_not_serve_get_no_calls_and_are_told() {
        let limit = Duration::from_secs(5);
        let mut roster = ready(plan(), &["a", "b"]);
        let marked = |id: &str| Change::Insert(id.to_owned(), info(id).not_serving());
        roster.apply([marked("a")], Instant::now());
        assert_eq!((roster.known(), roster.table().len()), (2, 1));
        roster.apply([marked("b")], Instant::now());
        assert_eq!(roster.table().len(), 0);
        assert_eq!(roster.why_nobody(limit), "all 2 instances are marked as not serving");
        roster.apply(inserted(&["a"]), Instant::now());
        assert_eq!(roster.table().len(), 1, "its connection stayed");

        let plan = Plan { health_check: Some(String::new()), ..plan() };
        let mut roster = ready(plan, &["a"]);
        assert_eq!(roster.table().len(), 0, "it was not heard yet");
        let turn = roster.members["a"].turn;
        assert!(roster.heard("a", turn, Serving::Yes, Instant::now()));
        assert!(!roster.heard("a", turn, Serving::Yes, Instant::now()), "is told twice");
        assert_eq!(roster.table().len(), 1);
        assert!(roster.heard("a", turn, Serving::No, Instant::now()));
        assert_eq!(roster.table().len(), 0);
        assert_eq!(roster.why_nobody(limit), "all 1 instances say that they are not serving");
        assert!(!roster.heard("a", turn + 1, Serving::Yes, Instant::now()), "another connection");
        // The next connection is asked anew.
        roster.heard("a", turn, Serving::Yes, Instant::now());
        roster.lost("a", turn, None, Instant::now());
        tokio::time::sleep(YOUNG).await;
        connect(&mut roster);
        assert_eq!(roster.table().len(), 0);
    }

    #[test]
    fn filter_that_matches_nobody_is_told() {
        let plan = Plan { only: BTreeMap::from([("version".into(), "2".into())]), ..plan() };
        let (mut roster, limit) = (Roster::<u64>::new(plan), Duration::from_secs(5));
        assert_eq!(roster.why_nobody(limit), "no instance was registered within 5s");
        roster.apply(inserted(&["a", "b", "c"]), Instant::now());
        assert_eq!(roster.why_nobody(limit), "of 3 instances none has the metadata version=2");
        roster.apply([Change::Remove("a".into()), Change::Remove("b".into())], Instant::now());
        assert_eq!(roster.why_nobody(limit), "of 1 instances none has the metadata version=2");
    }

    #[tokio::test(start_paused = true)]
    async fn a_subset_is_filled_up_and_prefers_the_zone() {
        let ids: Vec<_> = (0..50).map(|n| format!("{n:03}")).collect();
        let near = |id: &String| {
            let zone = if id.ends_with('7') { "near" } else { "far" };
            Change::Insert(id.clone(), info(id).with(ZONE, zone))
        };
        let plan = Plan { subset: Some(10), zone: Some("near".into()), ..plan() };
        let mut roster = Roster::<u64>::new(plan);
        roster.apply(ids.iter().map(near), Instant::now());
        let before: BTreeSet<_> = roster.members.keys().cloned().collect();
        assert_eq!(before.len(), 10);
        assert_eq!(before.iter().filter(|id| id.ends_with('7')).count(), 5);
        let gone = before.iter().find(|id| !id.ends_with('7')).expect("five are").clone();
        roster.apply([Change::Remove(gone.clone())], Instant::now());
        let after: BTreeSet<_> = roster.members.keys().cloned().collect();
        assert_eq!(after.len(), 10);
        assert_eq!(before.difference(&after).collect::<Vec<_>>(), [&gone], "the others stay");
    }
}
