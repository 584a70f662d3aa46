//! The end of a wait that may be without end.

use crossbeam_channel::{Receiver, at, never};
use std::cmp::Ordering;
use std::time::{Duration, Instant};

/// When to stop waiting, if ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Never passes: the deadline of a wait without end.
    pub const NEVER: Deadline = Deadline(None);

    /// Makes the deadline of a wait that begins now and lasts for `timeout`; zero: without end.
    pub fn after(timeout: Duration) -> Deadline {
        Deadline::since(Instant::now(), timeout)
    }

    /// Makes the deadline of a wait that begins at `start` and lasts for `timeout`; zero: without end.
    pub fn since(start: Instant, timeout: Duration) -> Deadline {
        Deadline((!timeout.is_zero()).then(|| start + timeout))
    }

    /// Returns whether the deadline had passed `by` then.
    pub fn has_passed(self, by: Instant) -> bool {
        self.0.is_some_and(|deadline| deadline <= by)
    }

    /// Returns how long it is until then, and zero afterwards. None: without end.
    pub fn left(self) -> Option<Duration> {
        self.0.map(|deadline| deadline.saturating_duration_since(Instant::now()))
    }

    /// Returns a receiver that gets a message then.
    pub fn receiver(self) -> Receiver<Instant> {
        match self.0 {
            Some(time) => at(time),
            None => never(),
        }
    }
}

/// The one that passes first is the least, and one that never passes the greatest.
impl Ord for Deadline {
    fn cmp(&self, other: &Deadline) -> Ordering {
        let key = |deadline: &Deadline| (deadline.0.is_none(), deadline.0);
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Deadline {
    fn partial_cmp(&self, other: &Deadline) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_to_pass_is_the_least() {
        let [sooner, later] =
            [1, 2].map(|hours| Deadline::after(hours * Duration::from_secs(3600)));
        assert!(sooner < later && later < Deadline::NEVER);
    }

    #[test]
    fn it_passes_when_its_time_comes_or_never() {
        let now = Instant::now();
        let hour = Duration::from_secs(3600);
        let deadline = Deadline::after(hour);
        assert!(!deadline.has_passed(now) && deadline.has_passed(now + 2 * hour));
        assert!(deadline.left().is_some_and(|left| left <= hour && left > hour / 2));
        assert!(Deadline(Some(now)).has_passed(now));
        assert_eq!(Deadline(Some(now)).left(), Some(Duration::ZERO));
        assert_eq!(Deadline::after(Duration::ZERO), Deadline::NEVER);
        assert!(!Deadline::NEVER.has_passed(now + hour) && Deadline::NEVER.left().is_none());
    }
}
