//! The records that are still as they were written, by the changes that are seen. No I/O.

use std::collections::BTreeMap;

use coord_api::{Hold, LossReason};

/// The records of one service that this client has written, or is about to, by key.
#[derive(Debug, Default)]
pub(super) struct OwnedRecords(BTreeMap<String, OwnedRecord>);

#[derive(Debug, Default)]
struct OwnedRecord {
    /// Number of writes that have begun and not ended. Meanwhile nobody can say whose a change is.
    writing: usize,
    /// The revision of the latest change.
    seen: i64,
    current: Option<Written>,
}

#[derive(Debug)]
struct Written {
    revision: i64,
    hold: Hold,
}

impl OwnedRecords {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Begins to look at the store after changes may have been missed. Returns what should be there, except
    /// where it is just being written. Revisions that were seen before are forgotten, since a store that lost
    /// its data counts anew.
    pub(super) fn expected(&mut self) -> Vec<(String, Option<i64>)> {
        let expected = self.0.iter_mut().map(|(key, record)| {
            record.seen = 0;
            let settled = record.current.as_ref().filter(|_| record.writing == 0);
            (key.clone(), settled.map(|written| written.revision))
        });
        expected.collect()
    }

    /// Forgets which changes were seen: the store has another history, which counts anew.
    pub(super) fn forget_revisions(&mut self) {
        for record in self.0.values_mut() {
            record.seen = 0;
        }
    }

    /// Takes in a read at revision `now` that was sent after [`expected`](Self::expected) gave the expected
    /// revision.
    pub(super) fn looked(&mut self, key: &str, expected: Option<i64>, found: Option<i64>, now: i64) {
        self.seen(key, found.unwrap_or(now));
        let current = self.0.get(key).and_then(|record| record.current.as_ref());
        if let Some(written) = current
            && expected == Some(written.revision)
            && expected != found
        {
            written.hold.end(LossReason::Deleted);
        }
    }

    /// Returns the revision of a record that is held.
    pub(super) fn revision(&self, key: &str) -> Option<i64> {
        let written = self.0.get(key)?.current.as_ref()?;
        written.hold.loss().is_none().then_some(written.revision)
    }

    /// Returns whether someone relies on a record, or is just writing it.
    pub(super) fn is_wanted(&self, key: &str) -> bool {
        let is_held = |written: &Written| written.hold.loss().is_none();
        self.0
            .get(key)
            .is_some_and(|record| record.writing > 0 || record.current.as_ref().is_some_and(is_held))
    }

    /// Takes note that a write begins; [`wrote`](Self::wrote) or [`gave_up`](Self::gave_up) follows.
    pub(super) fn begin(&mut self, key: &str) {
        let record = self.0.entry(key.to_owned()).or_default();
        if record.writing == 0 {
            // Changes seen before say nothing of this write, and may be of a store that lost its data since.
            record.seen = 0;
        }
        record.writing += 1;
    }

    /// Takes note that a write took effect. If two writes of one record succeed, the larger revision wins. A
    /// lost hold never wins: after a data loss the store counts anew, so the lost hold may have the larger
    /// revision.
    pub(super) fn wrote(&mut self, key: &str, revision: i64, hold: Hold) {
        let Some(record) = self.0.get_mut(key) else { return };
        record.writing -= 1;
        match &record.current {
            Some(later) if later.revision > revision && later.hold.loss().is_none() => {
                hold.end(LossReason::Superseded);
            }
            earlier => {
                if let Some(earlier) = earlier {
                    earlier.hold.end(LossReason::Superseded);
                }
                record.current = Some(Written { revision, hold });
            }
        }
        record.settle();
    }

    /// Takes note that a write failed, or that nobody waits for it any more.
    pub(super) fn gave_up(&mut self, key: &str) {
        let Some(record) = self.0.get_mut(key) else { return };
        record.writing -= 1;
        record.settle();
        self.forget_if_unused(key);
    }

    /// Takes note that a record was changed at this revision, by anybody.
    pub(super) fn seen(&mut self, key: &str, revision: i64) {
        if let Some(record) = self.0.get_mut(key) {
            record.seen = record.seen.max(revision);
            record.settle();
        }
    }

    /// Takes note that nobody relies any more on the record with this hold. The revision does not tell the
    /// hold: a store that lost its data gives the same one again.
    pub(super) fn released(&mut self, key: &str, hold: &Hold) {
        let Some(record) = self.0.get_mut(key) else { return };
        record.current.take_if(|written| written.hold.is_same(hold));
        self.forget_if_unused(key);
    }

    fn forget_if_unused(&mut self, key: &str) {
        if self.0.get(key).is_some_and(|record| record.writing == 0 && record.current.is_none()) {
            self.0.remove(key);
        }
    }
}

impl OwnedRecord {
    /// Ends the hold if someone else came after its write.
    fn settle(&self) {
        if let Some(written) = &self.current
            && self.writing == 0
            && self.seen > written.revision
        {
            written.hold.end(LossReason::Deleted);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use coord_api::Lease;
    use tokio::time::Instant;

    use super::*;

    fn hold() -> Hold {
        Hold::on(Lease::granted(Instant::now(), Duration::from_secs(60)))
    }

    fn written(known: &mut OwnedRecords, revision: i64) -> Hold {
        let hold = hold();
        known.begin("a");
        known.wrote("a", revision, hold.clone());
        hold
    }

    #[test]
    fn a_change_after_the_write_ends_the_hold_and_its_own_event_does_not() {
        let mut known = OwnedRecords::default();
        let hold = written(&mut known, 7);
        known.seen("a", 7);
        known.seen("b", 9);
        assert!(known.is_wanted("a"));
        known.seen("a", 8);
        assert_eq!(hold.loss(), Some(LossReason::Deleted));
        assert!(!known.is_wanted("a"));
        known.released("a", &hold);
        assert!(known.is_empty());
    }

    #[test]
    fn a_change_that_is_seen_before_the_answer_counts() {
        let mut known = OwnedRecords::default();
        let (kept, deleted) = (hold(), hold());
        known.begin("a");
        known.seen("a", 7);
        known.wrote("a", 7, kept.clone());
        assert_eq!(kept.loss(), None);
        known.begin("a");
        known.seen("a", 9);
        assert_eq!(kept.loss(), None, "it may be the write that is in flight");
        known.wrote("a", 8, deleted.clone());
        assert_eq!(kept.loss(), Some(LossReason::Superseded));
        assert_eq!(deleted.loss(), Some(LossReason::Deleted));
    }

    #[test]
    fn a_write_that_failed_but_took_effect_ends_the_hold_before_it() {
        let mut known = OwnedRecords::default();
        let hold = written(&mut known, 7);
        known.begin("a");
        known.seen("a", 8);
        known.gave_up("a");
        assert_eq!(hold.loss(), Some(LossReason::Deleted));
        known.released("a", &hold);
        assert!(known.is_empty());
    }

    #[test]
    fn of_two_holders_the_later_write_counts_whatever_the_order_of_the_answers() {
        let mut known = OwnedRecords::default();
        let (earlier, later) = (hold(), hold());
        known.begin("a");
        known.begin("a");
        known.wrote("a", 9, later.clone());
        known.wrote("a", 8, earlier.clone());
        known.seen("a", 9);
        assert_eq!(earlier.loss(), Some(LossReason::Superseded));
        assert_eq!(later.loss(), None);
        known.released("a", &earlier);
        assert!(known.is_wanted("a"), "the release of the earlier one is not that of the later");
        known.released("a", &later);
        assert!(known.is_empty());
    }

    #[test]
    fn a_look_finds_what_was_missed_but_not_what_is_just_written() {
        let mut known = OwnedRecords::default();
        let hold = written(&mut known, 7);
        let expected = known.expected();
        assert_eq!(expected, [("a".to_owned(), Some(7))]);
        known.looked("a", Some(7), Some(7), 9);
        assert_eq!(hold.loss(), None);
        let later = written(&mut known, 10);
        known.looked("a", Some(7), Some(7), 9);
        assert_eq!(later.loss(), None, "it was written after the look");
        known.looked("a", Some(10), None, 12);
        assert_eq!(later.loss(), Some(LossReason::Deleted));
    }

    #[test]
    fn a_store_that_lost_its_data_counts_anew() {
        let mut known = OwnedRecords::default();
        let before = written(&mut known, 250);
        known.seen("a", 250);
        let expected = known.expected();
        known.looked("a", expected[0].1, None, 2);
        assert_eq!(before.loss(), Some(LossReason::Deleted));
        known.seen("a", 250);
        let after = written(&mut known, 3);
        known.seen("a", 3);
        assert_eq!(after.loss(), None);
        known.released("a", &before);
        known.seen("a", 4);
        assert_eq!(after.loss(), Some(LossReason::Deleted));
    }

    #[test]
    fn changes_of_an_ended_history_end_no_later_hold() {
        let mut known = OwnedRecords::default();
        let before = written(&mut known, 250);
        known.begin("a");
        known.seen("a", 260);
        before.end(LossReason::Revoked);
        known.forget_revisions();
        let after = hold();
        known.wrote("a", 31, after.clone());
        assert_eq!((before.loss(), after.loss()), (Some(LossReason::Revoked), None));
        known.seen("a", 32);
        assert_eq!(after.loss(), Some(LossReason::Deleted));
    }

    #[test]
    fn the_release_of_a_lost_record_is_not_that_of_one_with_the_same_revision() {
        let mut known = OwnedRecords::default();
        let before = written(&mut known, 2);
        before.end(LossReason::Deleted);
        let after = written(&mut known, 2);
        known.released("a", &before);
        known.seen("a", 3);
        assert_eq!(after.loss(), Some(LossReason::Deleted), "it is still guarded");
    }

    #[test]
    fn what_is_being_written_is_wanted() {
        let mut known = OwnedRecords::default();
        assert!(!known.is_wanted("a"));
        known.begin("a");
        assert!(known.is_wanted("a"));
        known.gave_up("a");
        assert!(!known.is_wanted("a"));
    }

    #[test]
    fn a_write_that_came_to_nothing_leaves_nothing() {
        let mut known = OwnedRecords::default();
        known.begin("a");
        known.gave_up("a");
        assert!(known.is_empty());
        known.gave_up("a");
        known.released("a", &hold());
    }
}
