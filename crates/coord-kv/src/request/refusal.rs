//! Members of two stores: a client of both would believe what neither has, so it refuses to go on, and says which.

use std::sync::Mutex;

use coord_api::{Error, Result, backend::lock};

/// Reason why a client does not go on, as long as its members are of two stores.
#[derive(Debug, Default)]
pub(crate) struct Refusal(Mutex<Option<Error>>);

impl Refusal {
    /// Answers `Ok` while all members are of one store, as far as that is known.
    pub(crate) fn check(&self) -> Result<()> {
        let reason = lock(&self.0);
        reason.as_ref().map_or(Ok(()), |reason| Err(reason.duplicate()))
    }

    /// Takes what is known now; whether it is refused from here on.
    pub(crate) fn set(&self, reason: Option<Error>) -> bool {
        let mut current = lock(&self.0);
        let begins = current.is_none() && reason.is_some();
        *current = reason;
        begins
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusal_lasts_until_members_are_of_one_store() {
        let refusal = Refusal::default();
        refusal.check().expect("nothing is known");
        let reason = || Some(Error::invalid("endpoints", "are of two stores"));
        assert!(refusal.set(reason()) && !refusal.set(reason()));
        let error = refusal.check().expect_err("is refused");
        assert!(matches!(error, Error::InvalidArgument { field: "endpoints", .. }), "{error:?}");
        refusal.set(None);
        refusal.check().expect("they are of one store");
    }
}
