//! The end of a wait that may be without end.

use crossbeam_channel::{Receiver, at, never};
use std::time::{Duration, Instant};

/// When to stop waiting, if ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Never passes: the deadline of a wait without end.
    pub const NEVER: Deadline = Deadline(None);

    /// Makes the deadline of a wait that begins now and lasts for `timeout`; zero: without end.
    pub fn after(timeout: Duration) -> Deadline {
        Deadline((!timeout.is_zero()).then(|| Instant::now() + timeout))
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

#[cfg(test)]
mod tests {
    use super::*;

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
