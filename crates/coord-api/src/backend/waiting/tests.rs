use std::{
    collections::VecDeque,
    future::pending,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use tokio::time::sleep;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// Fate of one place.
enum Fate {
    /// The store does not answer.
    Silent,
    Refused(Error),
    /// It is at the head after this time.
    Turn(Duration),
    /// It is gone after this time.
    Gone(Duration),
    /// Others are before, and stay.
    Behind,
    /// It stands there, and the store has not said where.
    Somewhere,
}

/// A queue with a fate for each place that is taken.
#[derive(Default)]
struct Fake {
    fates: Mutex<VecDeque<Fate>>,
    entered: AtomicUsize,
}

struct FakePlace(Fate);

impl Fake {
    fn new(fates: impl IntoIterator<Item = Fate>) -> Self {
        Self { fates: Mutex::new(fates.into_iter().collect()), ..Self::default() }
    }

    fn entered(&self) -> usize {
        self.entered.load(Ordering::SeqCst)
    }
}

impl Queue for Fake {
    type Place = FakePlace;

    async fn enter(&self) -> Result<FakePlace> {
        self.entered.fetch_add(1, Ordering::SeqCst);
        let fate = self.fates.lock().expect("no panic").pop_front().expect("nobody enters more often");
        match fate {
            Fate::Silent => pending().await,
            Fate::Refused(error) => Err(error),
            fate => Ok(FakePlace(fate)),
        }
    }

    async fn pause(&self) {
        sleep(SECOND / 10).await;
    }
}

impl QueuedPlace for FakePlace {
    async fn turn(&mut self) -> Result<()> {
        match self.0 {
            Fate::Turn(after) => {
                sleep(after).await;
                Ok(())
            }
            Fate::Gone(after) => {
                sleep(after).await;
                Err(Error::Lost { reason: LossReason::Expired })
            }
            _ => pending().await,
        }
    }

    fn is_behind(&self) -> bool {
        matches!(self.0, Fate::Behind | Fate::Turn(_) | Fate::Gone(_))
    }
}

fn away() -> Error {
    Error::Unavailable { what: "store".into(), source: None }
}

fn full() -> Error {
    Error::NoSpace { what: "store".into(), hint: "make room", source: "full".into() }
}

fn denied() -> Error {
    Error::PermissionDenied { operation: "lock", source: "no".into() }
}

async fn within(fates: impl IntoIterator<Item = Fate>, wait: Duration) -> (Result<bool>, Duration) {
    let begun = Instant::now();
    let had = wait_within(&Fake::new(fates), wait).await;
    (had.map(|place| place.is_some()), begun.elapsed())
}

#[tokio::test(start_paused = true)]
async fn none_is_told_on_the_stores_word_alone() {
    let (had, took) = within([Fate::Behind], SECOND * 3).await;
    assert!(matches!(had, Ok(false)), "{had:?}");
    assert_eq!(took, SECOND * 3);
    for fate in [Fate::Silent, Fate::Somewhere] {
        let (had, took) = within([fate], SECOND * 3).await;
        assert!(matches!(had, Err(Error::Timeout { .. })), "{had:?}");
        assert_eq!(took, SECOND * 3);
    }
}

#[tokio::test(start_paused = true)]
async fn a_short_wait_gives_the_store_time_for_its_first_word() {
    let tiny = Duration::from_nanos(1);
    let (had, took) = within([Fate::Silent], tiny).await;
    assert!(matches!(had, Err(Error::Timeout { after, .. }) if after == FIRST_WORD), "{had:?}");
    // The clock counts in milliseconds.
    assert!(took < FIRST_WORD + Duration::from_millis(2), "{took:?}");
    let (had, took) = within([Fate::Behind], tiny).await;
    assert!(matches!(had, Ok(false)) && took < Duration::from_millis(2), "{had:?} after {took:?}");
    let (had, _) = within([Fate::Turn(Duration::ZERO)], tiny).await;
    assert!(matches!(had, Ok(true)), "{had:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_place_is_replaced_for_as_long_as_the_caller_waits() {
    let fates = || [Fate::Gone(SECOND), Fate::Refused(away()), Fate::Gone(SECOND), Fate::Turn(SECOND)];
    let queue = Fake::new(fates());
    assert!(wait_for_turn(&queue).await.is_ok());
    assert_eq!(queue.entered(), 4);
    let (had, took) = within(fates(), SECOND * 9).await;
    assert!(matches!(had, Ok(true)) && took < SECOND * 4, "{had:?} after {took:?}");
    // It has no place when its time is over.
    let (had, _) = within([Fate::Gone(SECOND), Fate::Silent], SECOND * 2).await;
    assert!(matches!(had, Err(Error::Timeout { .. })), "{had:?}");
    let (had, _) = within([Fate::Gone(SECOND), Fate::Refused(away()), Fate::Silent], SECOND * 2).await;
    assert!(matches!(had, Err(Error::Unavailable { .. })), "{had:?}");
}

#[tokio::test(start_paused = true)]
async fn first_entry_that_is_refused_tells_its_error() {
    for error in [away(), full(), denied(), Error::Closed] {
        let told = error.to_string();
        let queue = Fake::new([Fate::Refused(error)]);
        let error = wait_for_turn(&queue).await.err().expect("is refused");
        assert_eq!((error.to_string(), queue.entered()), (told, 1));
    }
    let (had, _) = within([Fate::Refused(full())], SECOND).await;
    assert!(matches!(had, Err(Error::NoSpace { .. })), "{had:?}");
    let (had, _) = within([Fate::Refused(away()), Fate::Turn(SECOND)], SECOND * 2).await;
    assert!(matches!(had, Ok(true)), "it has time of its own: {had:?}");
}

#[tokio::test(start_paused = true)]
async fn waiter_outlasts_what_passes_and_nothing_else() {
    let queue = Fake::new([Fate::Gone(SECOND), Fate::Refused(full()), Fate::Turn(SECOND)]);
    assert!(wait_for_turn(&queue).await.is_ok());
    let queue = Fake::new([Fate::Gone(SECOND), Fate::Refused(denied())]);
    assert!(matches!(wait_for_turn(&queue).await, Err(Error::PermissionDenied { .. })));
    let closed = || Error::Lost { reason: LossReason::Closed };
    let queue = Fake::new([Fate::Gone(SECOND), Fate::Refused(closed())]);
    assert!(matches!(wait_for_turn(&queue).await, Err(Error::Closed)));
}

#[tokio::test(start_paused = true)]
async fn the_longest_wait_there_is_does_not_overflow() {
    let (had, _) = within([Fate::Gone(SECOND), Fate::Turn(SECOND)], Duration::MAX).await;
    assert!(matches!(had, Ok(true)), "{had:?}");
}
