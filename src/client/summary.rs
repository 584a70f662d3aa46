//! How many calls there were, and how many of them failed, by the kinds of their failures.

use crate::error::{Failure, FailureKind};
use crate::terminal::text::count;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;

/// What the calls came to so far.
#[derive(Debug, Default)]
pub struct Summary {
    /// How many calls were made and have an outcome.
    made: u64,
    /// How many calls could not be made.
    unmade: u64,
    failed: BTreeMap<&'static str, u64>,
    first_failure: Option<FailureKind>,
    /// Whether there may be more calls that could not be made: nobody knows how many.
    has_unread: bool,
}

impl Summary {
    /// Counts a call that was made.
    pub fn count(&mut self, failure: Option<&Failure>) {
        self.made += 1;
        if let Some(failure) = failure {
            self.fail(failure, 1);
        }
    }

    /// Counts so many calls that could not be made for this `failure`.
    pub fn count_unmade(&mut self, calls: u64, failure: &Failure) {
        if calls > 0 {
            self.unmade = self.unmade.saturating_add(calls);
            self.fail(failure, calls);
        }
    }

    fn fail(&mut self, failure: &Failure, calls: u64) {
        self.note(failure);
        let failed = self.failed.entry(failure.kind.name()).or_default();
        *failed = failed.saturating_add(calls);
    }

    /// Keeps the `failure`, if it is the first, which may be that of no call at all.
    pub fn note(&mut self, failure: &Failure) {
        self.first_failure.get_or_insert(failure.kind);
    }

    /// Keeps that the input was not read to its end.
    pub fn note_unread(&mut self) {
        self.has_unread = true;
    }

    /// Returns what kind the first failure was of.
    pub fn first_failure(&self) -> Option<FailureKind> {
        self.first_failure
    }

    /// Returns how many calls there were, made or not.
    pub fn calls(&self) -> u64 {
        self.made.saturating_add(self.unmade)
    }

    /// Returns how many calls could not be made.
    pub fn unmade(&self) -> u64 {
        self.unmade
    }

    /// Returns how many calls failed, made or not.
    pub fn failed(&self) -> u64 {
        self.failed.values().fold(0, |sum, calls| sum.saturating_add(*calls))
    }

    /// Returns whether there is more to say at the end than what was told of each call: several were made, and one
    /// failed.
    pub fn is_worth_telling(&self) -> bool {
        self.made > 0 && self.calls() > 1 && !self.failed.is_empty()
    }
}

/// Tells how many of how many failed, the most frequent kind first, and whether there was more to call.
impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut kinds: Vec<_> = self.failed.iter().collect();
        kinds.sort_by_key(|(name, calls)| (Reverse(**calls), **name));
        let kinds: Vec<_> = kinds.iter().map(|(name, calls)| format!("{calls} {name}")).collect();
        let all = count(self.calls(), "call", "calls");
        write!(f, "{} of {all} failed: {}", self.failed(), kinds.join(", "))?;
        match self.has_unread {
            true => f.write_str("; the input was not read to its end"),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn failure(kind: FailureKind) -> Failure {
        Failure::new(kind, "it failed")
    }

    #[test]
    fn failures_are_told_by_kind() {
        let mut summary = Summary::default();
        let blocked = failure(FailureKind::Blocked);
        for kind in [FailureKind::TimedOut, FailureKind::Procedure(ErrorKind::TimedOut)] {
            summary.count(Some(&blocked));
            summary.count(Some(&failure(kind)));
            summary.count(None);
        }
        summary.count_unmade(0, &failure(FailureKind::NoConsumer));
        assert_eq!(summary.to_string(), "4 of 6 calls failed: 2 blocked, 2 timed-out");
        summary.count_unmade(3, &failure(FailureKind::NoConsumer));
        let told = "7 of 9 calls failed: 3 no-consumer, 2 blocked, 2 timed-out";
        assert_eq!(summary.to_string(), told);
        summary.note_unread();
        assert_eq!(summary.to_string(), format!("{told}; the input was not read to its end"));
        assert_eq!(summary.first_failure(), Some(FailureKind::Blocked));
        assert_eq!((summary.calls(), summary.unmade(), summary.failed()), (9, 3, 7));
        summary.count_unmade(u64::MAX, &blocked);
        assert_eq!((summary.calls(), summary.failed()), (u64::MAX, u64::MAX));
    }

    /// What was told of one call, or of all together, needs no other line.
    #[test]
    fn only_a_batch_with_failures_has_a_summary() {
        let blocked = failure(FailureKind::Blocked);
        let mut summary = Summary::default();
        summary.count_unmade(5, &blocked);
        assert!(!summary.is_worth_telling(), "no call was made");
        summary.count(None);
        assert!(summary.is_worth_telling());

        let mut summary = Summary::default();
        summary.count(Some(&blocked));
        assert!(!summary.is_worth_telling(), "it is one call");
        let mut summary = Summary::default();
        summary.count(None);
        summary.count(None);
        summary.note(&blocked);
        assert!(!summary.is_worth_telling(), "none failed");
    }
}
