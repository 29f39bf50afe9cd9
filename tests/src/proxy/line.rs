//! One direction of a network, and what happens to bytes on it.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

/// After how long a lost packet is sent again at first; doubled each time, as TCP does.
const RETRANSMISSION: Duration = Duration::from_millis(200);

/// As much as one packet carries, so that a narrow or lossy line is felt by small answers as well.
const PACKET: usize = 1_400;

/// What happens to bytes on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conditions {
    /// They pass at once.
    Good,
    /// Nothing passes and nobody is told; what was sent meanwhile arrives when it is over.
    Silent,
    /// Everything takes this much longer, and up to `jitter` more; the order is kept.
    Slow {
        /// What all bytes wait.
        delay: Duration,
        /// What some wait in addition.
        jitter: Duration,
    },
    /// All connections together get no more than this.
    Narrow {
        /// The width.
        bits_per_second: u32,
    },
    /// So many packets of a hundred have to be sent again, which holds up all that comes after them.
    Lossy {
        /// How many.
        percent: u8,
    },
}

/// One direction that connections share. Clones are the same line.
#[derive(Clone, Debug)]
pub struct Line(Arc<State>);

#[derive(Debug)]
struct State {
    conditions: watch::Sender<Conditions>,
    /// When a narrow line has carried all that was given to it so far.
    carried: Mutex<Instant>,
}

impl Default for Line {
    fn default() -> Self {
        let conditions = watch::Sender::new(Conditions::Good);
        Self(Arc::new(State { conditions, carried: Mutex::new(Instant::now()) }))
    }
}

impl Line {
    /// From now on bytes fare like this, also on open connections.
    pub fn set(&self, conditions: Conditions) {
        self.0.conditions.send_replace(conditions);
    }

    /// How they fare now.
    pub fn conditions(&self) -> Conditions {
        *self.0.conditions.borrow()
    }

    /// How much should be read at once.
    pub(super) fn packet(&self) -> usize {
        match self.conditions() {
            Conditions::Narrow { .. } | Conditions::Lossy { .. } => PACKET,
            _ => usize::MAX,
        }
    }

    /// When `bytes` that were sent now may arrive.
    pub(super) fn arrival(&self, bytes: usize) -> Instant {
        let now = Instant::now();
        match self.conditions() {
            Conditions::Good | Conditions::Silent => now,
            Conditions::Slow { delay, jitter } => now + delay + jitter.mul_f64(fastrand::f64()),
            Conditions::Narrow { bits_per_second } => {
                let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
                let takes = Duration::from_secs(8) * bytes / bits_per_second;
                let mut carried = self.0.carried.lock().expect("nothing panics while this is locked");
                *carried = (*carried).max(now) + takes;
                *carried
            }
            Conditions::Lossy { percent } => now + retransmissions(|| fastrand::u8(..100) < percent),
        }
    }

    /// Waits until something passes; also returns when the proxy is gone.
    pub(super) async fn passable(&self) {
        let mut conditions = self.0.conditions.subscribe();
        // An error means that nobody can change it any more.
        let _ = conditions.wait_for(|now| *now != Conditions::Silent).await;
    }

    /// Waits until nothing has passed for this long.
    pub(super) async fn silent_for(&self, patience: Duration) {
        let mut conditions = self.0.conditions.subscribe();
        loop {
            let _ = conditions.wait_for(|now| *now == Conditions::Silent).await;
            if tokio::time::timeout(patience, self.passable()).await.is_err() {
                return;
            }
        }
    }
}

/// How much later a packet arrives that is lost as often as `is_lost` says so in a row.
fn retransmissions(mut is_lost: impl FnMut() -> bool) -> Duration {
    let mut late = Duration::ZERO;
    let mut next = RETRANSMISSION;
    while is_lost() {
        late += next;
        next *= 2;
    }
    late
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_that_is_lost_again_and_again_waits_ever_longer() {
        for (losses, late) in [(0, 0), (1, 200), (2, 600), (4, 3_000)] {
            let mut left = losses;
            let lost = || {
                left -= 1;
                left >= 0
            };
            assert_eq!(retransmissions(lost), Duration::from_millis(late), "{losses}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_narrow_line_carries_one_after_the_other() {
        let line = Line::default();
        line.set(Conditions::Narrow { bits_per_second: 64_000 });
        let start = Instant::now();
        assert_eq!(line.arrival(8_000) - start, Duration::from_secs(1));
        assert_eq!(line.arrival(8_000) - start, Duration::from_secs(2));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(line.arrival(8_000) - start, Duration::from_secs(11), "what was not used is gone");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_counted_from_its_beginning() {
        let line = Line::default();
        let long = Duration::from_secs(5);
        let silent = line.silent_for(long);
        let changes = async {
            for conditions in [Conditions::Silent, Conditions::Good, Conditions::Silent] {
                line.set(conditions);
                tokio::time::sleep(Duration::from_secs(3)).await;
            }
            std::future::pending::<()>().await;
        };
        let start = Instant::now();
        tokio::select! { () = silent => {} () = changes => unreachable!() }
        assert_eq!(start.elapsed(), Duration::from_secs(11));
    }
}
