//! How long to wait before the next attempt to connect.

use std::time::Duration;

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// Exponential backoff with jitter: 1 s, doubling to 30 s, each delay a random part between half
/// and all of that, so that the many clients of a broker which comes back do not come at once
/// (AWS Architecture Blog, "Exponential Backoff And Jitter", "equal jitter").
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Backoff {
        Backoff { next: FIRST }
    }
}

impl Backoff {
    /// The next delay, from 0.5 to 30 s.
    pub fn delay(&mut self) -> Duration {
        let whole = self.next;
        self.next = LONGEST.min(whole * 2);
        whole.mul_f64(0.5 + fastrand::f64() / 2.0)
    }

    /// After a success: the next delay is a short one again.
    pub fn reset(&mut self) {
        *self = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_thirty_seconds_with_jitter_and_starts_again() {
        let mut backoff = Backoff::default();
        for whole in [1, 2, 4, 8, 16, 30, 30] {
            let whole = Duration::from_secs(whole);
            let delay = backoff.delay();
            assert!(delay >= whole / 2 && delay <= whole, "{delay:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.delay() <= FIRST);
    }
}
