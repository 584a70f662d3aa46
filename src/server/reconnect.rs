//! When the server connects again after the loss of a connection. This decides; nothing here waits.

use crate::amqp::backoff::Backoff;
use crate::error::{Failure, FailureKind};
use crate::terminal::text;
use log::{info, warn};
use std::time::Duration;

/// What one connection leaves to the next.
#[derive(Debug)]
pub struct ReconnectState {
    last_logged: Option<FailureKind>,
    has_served: bool,
    backoff: Backoff,
}

impl ReconnectState {
    pub fn new() -> ReconnectState {
        let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
        ReconnectState { last_logged: None, has_served: false, backoff }
    }

    /// Takes note that the server serves. Returns whether this ends a failure that was logged.
    pub fn serves(&mut self) -> bool {
        self.has_served = true;
        self.backoff.reset();
        self.last_logged.take().is_some()
    }

    /// Returns how long to wait before connecting again, or the failure, if that would not change it. Warns of a
    /// failure once, not at each attempt.
    pub fn delay_after(&mut self, failure: Failure) -> Result<Duration, Failure> {
        let is_final = match failure.kind {
            // A server that has served may be let in again, or have enough descriptors and threads again.
            FailureKind::Internal
            | FailureKind::AccessRefused
            | FailureKind::Configuration
            | FailureKind::ExchangeMissing
            | FailureKind::QueueUnusable => !self.has_served,
            _ => false,
        };

        if is_final {
            return Err(failure);
        }
        let delay = self.backoff.delay();
        if self.last_logged.replace(failure.kind) == Some(failure.kind) {
            info!("{failure}; again in {}", text::duration(delay));
        } else {
            warn!("{failure}; trying again");
        }

        Ok(delay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: FailureKind) -> Failure {
        Failure::new(kind, "it failed")
    }

    #[test]
    fn what_was_right_once_is_tried_again() {
        for kind in [
            FailureKind::Internal,
            FailureKind::AccessRefused,
            FailureKind::Configuration,
            FailureKind::ExchangeMissing,
            FailureKind::QueueUnusable,
        ] {
            let mut state = ReconnectState::new();
            assert_eq!(state.delay_after(failure(kind)), Err(failure(kind)));
            state.serves();
            assert!(state.delay_after(failure(kind)).is_ok());
        }
    }

    #[test]
    fn delays_grow_until_the_server_serves() {
        let mut state = ReconnectState::new();
        let delay = |state: &mut ReconnectState| {
            state.delay_after(failure(FailureKind::BrokerUnreachable)).unwrap()
        };
        let delays: Vec<Duration> = (0..7).map(|_| delay(&mut state)).collect();
        assert!(delays[0] >= Duration::from_millis(500) && delays[0] <= Duration::from_secs(1));
        assert!(delays[6] >= Duration::from_secs(15) && delays[6] <= Duration::from_secs(30));
        assert!(state.serves(), "a failure was logged");
        assert!(!state.serves(), "and is over");
        assert!(delay(&mut state) <= Duration::from_secs(1));
    }
}
