//! Times to live, parsed once at the edge.

use std::time::Duration;

use crate::{Error, Result};

/// How long a lease outlives its last renewal: whole seconds, 1 s to 24 h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ttl(u32);

impl Ttl {
    /// The shortest time to live.
    pub const MIN: Duration = Duration::from_secs(1);
    /// The longest time to live.
    pub const MAX: Duration = Duration::from_secs(24 * 60 * 60);

    /// Takes a duration and rounds a fraction up to the next whole second, never down: a holder must not
    /// get less than it asked for.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] below 1 s or above 24 h.
    ///
    /// ```
    /// use std::time::Duration;
    /// use coord_api::Ttl;
    /// assert_eq!(Ttl::parse(Duration::from_millis(1900))?.as_secs(), 2);
    /// assert!(Ttl::parse(Duration::from_millis(500)).is_err());
    /// # Ok::<(), coord_api::Error>(())
    /// ```
    pub fn parse(ttl: Duration) -> Result<Self> {
        if ttl < Self::MIN || ttl > Self::MAX {
            return Err(Error::invalid("ttl", format!("{ttl:?} is not within 1s and 24h")));
        }
        // At most 86,400, so the cast is exact.
        Ok(Self(ttl.as_secs() as u32 + u32::from(ttl.subsec_nanos() > 0)))
    }

    /// The time as a duration.
    pub fn as_duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }

    /// The time in seconds.
    pub fn as_secs(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_rounding() {
        let table = [
            (Duration::ZERO, None),
            (Duration::from_millis(500), None),
            (Duration::from_nanos(999_999_999), None),
            (Duration::from_secs(1), Some(1)),
            (Duration::from_millis(1_900), Some(2)),
            (Duration::new(1, 1), Some(2)),
            (Ttl::MAX, Some(86_400)),
            (Ttl::MAX + Duration::from_nanos(1), None),
            (Duration::from_secs(25 * 3600), None),
            (Duration::MAX, None),
        ];
        for (asked, granted) in table {
            assert_eq!(Ttl::parse(asked).ok().map(Ttl::as_secs), granted, "{asked:?}");
        }
    }
}
