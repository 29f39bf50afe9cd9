//! Faults of the network between a client and the store, drawn for each request.

use std::time::Duration;

use coord_api::Error;
use coord_kv::store::{Effect, Failure};
use fastrand::Rng;

/// Faults of the network between one client and its store; none at first. Each request draws whether it meets them.
///
/// Probabilities are between 0 and 1. A request that fails so is repeated as over any network, within the
/// [`request_timeout`](crate::Options::request_timeout) of the client.
///
/// ```
/// use std::time::Duration;
/// use coord_api::{ConfigExt, Provider};
/// use coord_memory::{NetworkFaults, Options, Store};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> coord_api::Result<()> {
/// # tokio::time::pause();
/// let options = Options::default().request_timeout(Duration::from_secs(2));
/// let client = Store::new().client_with(options)?;
/// client.network(NetworkFaults::new().seed(7).refuse(0.5).delay(Duration::from_millis(10)));
/// client.config().set("limits/upload", &10).await?;
/// # Ok(()) }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct NetworkFaults {
    seed: Option<u64>,
    refuse: f64,
    lose_requests: f64,
    lose_answers: f64,
    delay: Duration,
    delay_answers: (f64, Duration),
    execute_late: (f64, Duration),
    lose_renewals: f64,
    lose_renewal_answers: f64,
}

impl NetworkFaults {
    /// Returns a network without faults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes all draws follow from a seed. Without one they go on from those before, which follow from the seed of
    /// `fastrand` in the thread that made the client.
    #[must_use]
    pub fn seed(self, seed: u64) -> Self {
        Self { seed: Some(seed), ..self }
    }

    /// Refuses requests: they are not executed, and answer [`Unavailable`](Error::Unavailable) at once.
    #[must_use]
    pub fn refuse(self, probability: f64) -> Self {
        Self { refuse: probability, ..self }
    }

    /// Loses requests on their way: they are not executed, and not answered.
    #[must_use]
    pub fn lose_requests(self, probability: f64) -> Self {
        Self { lose_requests: probability, ..self }
    }

    /// Loses answers of requests that are executed. Half of the callers are told so at once, as by a connection that breaks.
    #[must_use]
    pub fn lose_answers(self, probability: f64) -> Self {
        Self { lose_answers: probability, ..self }
    }

    /// Delays each request by up to a time, so that some overtake others.
    #[must_use]
    pub fn delay(self, longest: Duration) -> Self {
        Self { delay: longest, ..self }
    }

    /// Delays answers by up to a time; the requests are executed at once.
    #[must_use]
    pub fn delay_answers(self, probability: f64, longest: Duration) -> Self {
        Self { delay_answers: (probability, longest), ..self }
    }

    /// Executes requests up to a time later, whether their callers have given them up meanwhile or not.
    #[must_use]
    pub fn execute_late(self, probability: f64, longest: Duration) -> Self {
        Self { execute_late: (probability, longest), ..self }
    }

    /// Loses renewals of leases on their way.
    #[must_use]
    pub fn lose_renewals(self, probability: f64) -> Self {
        Self { lose_renewals: probability, ..self }
    }

    /// Loses answers to renewals: the store renews the lease, and its holder does not hear of it.
    #[must_use]
    pub fn lose_renewal_answers(self, probability: f64) -> Self {
        Self { lose_renewal_answers: probability, ..self }
    }

    fn are_none(&self) -> bool {
        Self { seed: None, ..*self } == Self::default()
    }
}

/// Fate of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fate {
    /// Time after which it arrives; `None` if it never does.
    pub(super) arrives: Option<Duration>,
    pub(super) answer: Answer,
}

/// Fate of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It comes that much later.
    After(Duration),
    /// It is lost, and the caller is told that.
    Broken,
    /// It is lost.
    Lost,
}

impl Fate {
    pub(super) const GOOD: Self =
        Self { arrives: Some(Duration::ZERO), answer: Answer::After(Duration::ZERO) };
}

/// Draws of one client, and the failures that were asked for.
#[derive(Debug)]
pub(super) struct Chances {
    faults: NetworkFaults,
    random: Rng,
    /// Number of the next requests that fail.
    pub(super) failing: usize,
    /// Number of the next config writes whose answers are lost.
    pub(super) losing: usize,
}

impl Chances {
    pub(super) fn new() -> Self {
        Self { faults: NetworkFaults::new(), random: Rng::new(), failing: 0, losing: 0 }
    }

    pub(super) fn set(&mut self, faults: NetworkFaults) {
        self.faults = faults;
        if let Some(seed) = faults.seed {
            self.random.seed(seed);
        }
    }

    pub(super) fn are_good(&self) -> bool {
        self.faults.are_none()
    }

    fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.random.f64() < probability
    }

    /// Draws a time up to `longest`.
    fn up_to(&mut self, longest: Duration) -> Duration {
        if longest.is_zero() { longest } else { longest.mul_f64(self.random.f64()) }
    }

    /// Draws the fate of a request. Every draw is made for each, so that one fault changes nothing about others.
    pub(super) fn draw(&mut self) -> Result<Fate, Failure> {
        if self.are_good() {
            return Ok(Fate::GOOD);
        }
        let faults = self.faults;
        let (is_refused, is_lost) = (self.happens(faults.refuse), self.happens(faults.lose_requests));
        let mut arrives = self.up_to(faults.delay);
        if self.happens(faults.execute_late.0) {
            arrives += self.up_to(faults.execute_late.1);
        }
        let mut answer = Answer::After(Duration::ZERO);
        if self.happens(faults.delay_answers.0) {
            answer = Answer::After(self.up_to(faults.delay_answers.1));
        }
        if self.happens(faults.lose_answers) {
            answer = if self.random.bool() { Answer::Broken } else { Answer::Lost };
        }
        if is_refused {
            return Err(refused());
        }
        Ok(Fate { arrives: (!is_lost).then_some(arrives), answer })
    }

    /// Draws the fate of a renewal.
    pub(super) fn draw_renewal(&mut self) -> Fate {
        if self.are_good() {
            return Fate::GOOD;
        }
        let faults = self.faults;
        let (is_lost, is_unheard) =
            (self.happens(faults.lose_renewals), self.happens(faults.lose_renewal_answers));
        let arrives = self.up_to(faults.delay);
        let answer = if is_unheard { Answer::Lost } else { Answer::After(Duration::ZERO) };
        Fate { arrives: (!is_lost).then_some(arrives), answer }
    }
}

fn unavailable(source: Option<&'static str>) -> Error {
    Error::Unavailable { what: "memory store".into(), source: source.map(Into::into) }
}

/// Returns the error of a client that is cut off, or whose next calls are to fail: it is not tried again.
pub(super) fn cut_off() -> Failure {
    Failure { error: unavailable(None), effect: Effect::None }
}

/// Returns whether an error is that of a client that is cut off.
pub(super) fn is_cut_off(error: &Error) -> bool {
    matches!(error, Error::Unavailable { source: None, .. })
}

fn refused() -> Failure {
    Failure { error: unavailable(Some("the request was refused")), effect: Effect::None }
}

/// Returns the failure of a request whose connection broke.
pub(super) fn broken() -> Failure {
    Failure { error: unavailable(Some("the connection broke")), effect: Effect::Unknown }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_from_the_seed() {
        let faults = NetworkFaults::new()
            .seed(7)
            .refuse(0.2)
            .lose_requests(0.2)
            .lose_answers(0.2)
            .delay(Duration::from_secs(1))
            .execute_late(0.2, Duration::from_secs(60));
        let drawn = || {
            let mut chances = Chances::new();
            chances.set(faults);
            (0..100).map(|_| chances.draw().map_err(|failure| failure.error.to_string())).collect::<Vec<_>>()
        };
        let fates = drawn();
        assert_eq!(fates, drawn());
        assert!(fates.iter().any(Result::is_err));
        assert!(fates.iter().flatten().any(|fate| fate.arrives.is_none()));
        assert!(fates.iter().flatten().any(|fate| fate.arrives > Some(Duration::from_secs(1))));
    }

    #[test]
    fn network_without_faults_draws_nothing() {
        let mut chances = Chances::new();
        chances.set(NetworkFaults::new().seed(7));
        assert!((0..10).all(|_| chances.draw().is_ok_and(|fate| fate == Fate::GOOD)));
        assert_eq!(chances.draw_renewal(), Fate::GOOD);
    }
}
