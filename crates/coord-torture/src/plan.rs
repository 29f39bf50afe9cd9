//! How long and how hard a run is.

use std::time::Duration;

/// How long and how hard a run is. The defaults suit a real store; [`Plan::quick`] suits virtual time.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Plan {
    /// All random choices of the workloads follow from it.
    pub seed: u64,
    /// How many of the clients work at the same time. Those beyond stand by: a process whose client was closed
    /// starts again with the next of them. One more is needed, which looks at the store in the end.
    pub processes: usize,
    /// How many tasks of a process work on each area at the same time.
    pub tasks: usize,
    /// How long operations are begun. Whoever disturbs the store must have mended all by then.
    pub time: Duration,
    /// How many rounds a task makes at most.
    pub rounds: usize,
    /// The mean pause between two steps of a task.
    pub pace: Duration,
    /// The longest TTL; others are shorter, down to one second.
    pub ttl: Duration,
    /// After how long a call that has not ended never will, and what must come true in the end is not going to.
    pub patience: Duration,
    /// Which areas are worked on.
    pub areas: Areas,
    /// Whether somebody may revoke leases, or delete what is held, by hand.
    pub operator: Operator,
}

/// Whether somebody may revoke leases, or delete what is held, by hand. Then the next one gets a lock at once, and two
/// may believe in it until the first one hears of it. What the lock protects is protected by its fence all the same, and
/// of ids nothing else is promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operator {
    /// Nobody does.
    Absent,
    /// Somebody may.
    Present,
}

/// Which areas are worked on; all of them by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Areas {
    /// All of them.
    All,
    /// One of them.
    Only(Area),
}

/// A part of what the store does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Area {
    /// Locks, with a fenced register outside the store and counters within.
    Lock,
    /// Elections, with a fenced register outside the store.
    Elections,
    /// Config values and their watches.
    Config,
    /// Registrations, and those who follow them.
    Registry,
    /// Instance ids and numbers made with them.
    Ids,
}

impl Areas {
    pub(crate) fn contain(self, area: Area) -> bool {
        match self {
            Self::All => true,
            Self::Only(only) => only == area,
        }
    }
}

impl Plan {
    /// A run of `time` on a real store.
    pub fn new(seed: u64, time: Duration) -> Self {
        Self {
            seed,
            processes: 3,
            tasks: 1,
            time,
            rounds: usize::MAX,
            pace: Duration::from_millis(20),
            ttl: Duration::from_secs(5),
            patience: Duration::from_secs(60),
            areas: Areas::All,
            operator: Operator::Absent,
        }
    }

    /// A short run on a store in the process, whose time is virtual.
    pub fn quick(seed: u64) -> Self {
        Self { pace: Duration::from_millis(150), ..Self::new(seed, Duration::from_secs(20)) }
    }

    /// Sets how many of the clients work at the same time.
    #[must_use]
    pub fn processes(mut self, processes: usize) -> Self {
        self.processes = processes;
        self
    }

    /// Sets how many tasks of a process work on each area.
    #[must_use]
    pub fn tasks(mut self, tasks: usize) -> Self {
        self.tasks = tasks;
        self
    }

    /// Sets the mean pause between two steps of a task.
    #[must_use]
    pub fn pace(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    /// Sets the longest TTL.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = ttl;
        self
    }

    /// Sets how many rounds a task makes at most.
    #[must_use]
    pub fn rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Sets after how long something is taken for stuck.
    #[must_use]
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Somebody may revoke leases, or delete what is held, by hand; see [`Operator`].
    #[must_use]
    pub fn with_operator(mut self) -> Self {
        self.operator = Operator::Present;
        self
    }

    /// Works on one area only.
    #[must_use]
    pub fn only(mut self, area: Area) -> Self {
        self.areas = Areas::Only(area);
        self
    }
}
