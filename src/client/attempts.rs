//! Whether a call that failed is made again, and after which pause. This decides; nothing here waits.

use crate::amqp::backoff::Backoff;
use crate::error::{ErrorKind, Failure, FailureKind};
use std::fmt;
use std::time::Duration;

/// The pause before the second attempt, at the most.
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The attempts of one call.
#[derive(Debug)]
pub struct Attempts {
    /// How many ended so that another one follows, and how many may.
    failed: u32,
    retries: u32,
    pauses: Backoff,
}

/// Tells which attempt it was that ended last, and of how many.
impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "attempt {} of {}", self.failed, u64::from(self.retries) + 1)
    }
}

impl Attempts {
    /// Makes the attempts of a call that may be made again `retries` times.
    pub fn new(retries: u32) -> Attempts {
        Attempts { failed: 0, retries, pauses: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE) }
    }

    /// Returns the pause before the next attempt after one that ended with `failure`; each is twice as long as the one
    /// before it, less a random part, so that calls which failed together do not come back together. None if the call
    /// is over: another attempt would fail too, or there is none left.
    pub fn pause_after(&mut self, failure: &Failure) -> Option<Duration> {
        // EX_TEMPFAIL: "the user is invited to retry" (sysexits(3)).
        let may_pass = failure.kind.code() == FailureKind::Procedure(ErrorKind::Unavailable).code();
        // It may have run, and was to run once: only a person can find out.
        let may_not_run_again = failure.kind == FailureKind::Procedure(ErrorKind::Redelivered);
        if !may_pass || may_not_run_again || self.failed == self.retries {
            return None;
        }
        self.failed += 1;
        Some(self.pauses.delay())
    }

    /// Takes away the attempts that are left.
    pub fn give_up(&mut self) {
        self.retries = self.failed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: FailureKind) -> Failure {
        Failure::new(kind, "it failed")
    }

    #[test]
    fn what_may_pass_is_tried_again_and_nothing_else() {
        let again: Vec<&str> = FailureKind::ALL
            .into_iter()
            .filter(|kind| Attempts::new(1).pause_after(&failure(*kind)).is_some())
            .map(FailureKind::name)
            .collect();
        assert_eq!(again, ["unavailable", "timed-out", "timed-out", "connection-lost", "blocked"]);
    }

    #[test]
    fn pauses_grow_until_no_attempt_is_left() {
        let timed_out = failure(FailureKind::TimedOut);
        let mut attempts = Attempts::new(9);
        let pauses: Vec<_> = std::iter::from_fn(|| attempts.pause_after(&timed_out)).collect();
        let wholes = [200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000];
        assert_eq!(pauses.len(), wholes.len());
        for (pause, whole) in pauses.into_iter().zip(wholes.map(Duration::from_millis)) {
            assert!((whole / 2..=whole).contains(&pause), "{pause:?} of {whole:?}");
        }
    }

    #[test]
    fn a_call_that_is_given_up_is_not_made_again() {
        let mut attempts = Attempts::new(9);
        attempts.give_up();
        assert_eq!(attempts.pause_after(&failure(FailureKind::TimedOut)), None);
    }
}
