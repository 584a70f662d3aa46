//! How long to wait before the next attempt to connect.

use std::time::Duration;

/// Exponential backoff with jitter: it doubles, and each delay is a random part between half and
/// all of it, so that the many clients of a broker which comes back do not come at once
/// (AWS Architecture Blog, "Exponential Backoff And Jitter", "equal jitter").
#[derive(Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// Returns a backoff that begins with `first`, and doubles to `longest`.
    pub fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest, next: first }
    }

    /// Returns the next delay.
    pub fn delay(&mut self) -> Duration {
        let whole = self.next;
        self.next = self.longest.min(whole * 2);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// Makes the next delay a short one again, after a success.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_thirty_seconds_with_jitter_and_starts_again() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        for whole in [1, 2, 4, 8, 16, 30, 30] {
            let whole = Duration::from_secs(whole);
            let delay = backoff.delay();
            assert!(delay >= whole / 2 && delay <= whole, "{delay:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= Duration::from_secs(1));
    }
}
