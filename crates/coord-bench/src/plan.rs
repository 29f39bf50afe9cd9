//! What an area measures: scenarios, who takes part in each, and what is aimed at.

use std::collections::BTreeMap;
use std::fmt;

/// Figures by name.
pub(crate) type Numbers = BTreeMap<String, f64>;

/// One who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Contender {
    /// What it is called in the results and on the child's command line.
    pub(crate) id: &'static str,
    /// What it is called in the table.
    pub(crate) title: &'static str,
    /// Whether it is a part of the Go program.
    pub(crate) in_go: bool,
}

/// One thing that is measured.
#[derive(Clone, Debug)]
pub(crate) struct Scenario {
    /// What it is called in the results.
    pub(crate) id: String,
    /// What it is called in the table.
    pub(crate) title: String,
    /// The unit of its rate.
    pub(crate) unit: &'static str,
    /// Those that take part; coord comes first.
    pub(crate) contenders: Vec<Contender>,
    /// How many processes of a contender run at once.
    pub(crate) processes: usize,
    /// How many tasks run in each process.
    pub(crate) tasks: usize,
    /// The load, for the child.
    pub(crate) shape: &'static str,
    /// The measured time is not begun before so many keys are below the prefix.
    pub(crate) after_keys: Option<i64>,
}

/// What is aimed at.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) scenario: &'static str,
    /// Which of our contenders it is about.
    pub(crate) of: &'static str,
    /// The figure of it.
    pub(crate) figure: &'static str,
    /// The peer whose figure is the measure; the figure itself where there is none.
    pub(crate) against: Option<&'static str>,
    pub(crate) bound: Bound,
}

impl Target {
    /// A bound for what coord does once, counted by the server: neither the machine nor the build changes it.
    pub(crate) fn counted(scenario: &'static str, figure: &'static str, most: f64) -> Self {
        Self { scenario, of: "coord", figure, against: None, bound: Bound::AtMost(most) }
    }

    /// A read takes at most 30 ns on each of so many threads.
    pub(crate) fn reads(scenario: &'static str, of: &'static str, threads: f64) -> Self {
        let bound = Bound::AtLeast((threads / 30e-9).round());
        Self { scenario, of, figure: "per_second", against: None, bound }
    }

    /// Whether it is about such counts.
    pub(crate) fn is_counted(&self) -> bool {
        ["each.requests", "each.streams", "each.commits"].iter().any(|name| self.figure.starts_with(name))
    }
}

/// On which side of a number a figure, or what it is beside the peer's, should be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    /// The figure, or its ratio to the peer's.
    AtLeast(f64),
    AtMost(f64),
    /// At most so much above the peer's.
    Excess(f64),
}

impl Bound {
    /// What is compared with the bound.
    pub(crate) fn value(self, ours: f64, peer: Option<f64>) -> f64 {
        match (self, peer) {
            (_, None) => ours,
            (Self::Excess(_), Some(peer)) => ours - peer,
            (Self::AtLeast(_) | Self::AtMost(_), Some(peer)) => ours / peer,
        }
    }

    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) | Self::Excess(bound) => value <= bound,
        }
    }
}

/// All that one area measures.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) area: &'static str,
    pub(crate) scenarios: Vec<Scenario>,
    pub(crate) targets: Vec<Target>,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bound) => write!(f, "at least {bound}"),
            Self::AtMost(bound) => write!(f, "at most {bound}"),
            Self::Excess(bound) => write!(f, "at most +{bound}"),
        }
    }
}
