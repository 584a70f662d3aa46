//! When the client tries again what did not come about, or did not last: a connection, a queue with
//! a server. This decides; nothing here waits or does I/O but for the log.

use crate::amqp::backoff::Backoff;
use crate::cli;
use crate::client::deadline::Deadline;
use crate::client::diagnosis;
use crate::error::{Failure, FailureKind};
use log::{info, warn};
use std::time::Duration;

/// How often a client that waits looks again, on a connection that is open.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// The longest pause when one connection after another is lost.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause while there is no connection to be had: a broker that comes up must bear all the clients
/// that wait for it.
const LONGEST_ABSENCE: Duration = Duration::from_secs(2);

/// The shortest time for an attempt to connect, whatever is left: enough to tell what is wrong.
const SHORTEST_ATTEMPT: Duration = Duration::from_millis(1_500);

/// A connection that held so long was a good one.
const STABLE_AFTER: Duration = Duration::from_secs(10);

/// Whether and when to try again: after which pause, or the failure that ends it all.
#[derive(Debug)]
pub struct RetryPolicy<'a> {
    args: &'a cli::Client,
    was_connected: bool,
    /// The pauses after a lost connection, and those while there is none to be had.
    lost: Backoff,
    unreachable: Backoff,
    /// Why the last connection was lost, and what kept the last attempt from leading to one, as far as
    /// it was logged: each reason is logged once, not for each attempt.
    logged_lost: Option<FailureKind>,
    logged_unreachable: Option<FailureKind>,
}

impl RetryPolicy<'_> {
    /// Makes the policy of a client that was asked by `args` to wait or not, and to try again what was lost or not.
    pub fn new(args: &cli::Client) -> RetryPolicy<'_> {
        RetryPolicy {
            args,
            was_connected: false,
            lost: Backoff::new(INTERVAL, LONGEST_PAUSE),
            unreachable: Backoff::new(INTERVAL, LONGEST_ABSENCE),
            logged_lost: None,
            logged_unreachable: None,
        }
    }

    /// Returns whether the client waits for what is not there: one that does needs no hint that it could.
    pub fn waits(&self) -> bool {
        self.args.wait || self.was_connected
    }

    /// Returns how long an attempt to connect may take altogether, if nobody waits after `deadline`.
    pub fn attempt_limit(deadline: Deadline) -> Duration {
        deadline.left().map_or(Duration::MAX, |left| left.max(SHORTEST_ATTEMPT))
    }

    /// Returns the pause after an attempt that led to no connection on which calls could be made.
    pub fn after_unreachable(
        &mut self,
        failure: &Failure,
        deadline: Deadline,
    ) -> Result<Duration, Failure> {
        let may_pass = match failure.kind {
            FailureKind::BrokerUnreachable
            | FailureKind::ConnectionLost
            | FailureKind::QueueMissing
            | FailureKind::ExchangeMissing
            | FailureKind::NoConsumer => self.waits(),
            // With a configuration that was right it is the broker: one that dies after the TLS
            // handshake looks like one that wants a client certificate, and a vhost can be deleted
            // and made again.
            FailureKind::Configuration | FailureKind::AccessRefused => self.was_connected,
            _ => false,
        };

        if !may_pass {
            return Err(failure.clone());
        }
        if deadline.left() == Some(Duration::ZERO) {
            return Err(self.too_late(failure));
        }
        if self.logged_unreachable.replace(failure.kind) != Some(failure.kind) {
            warn!("waiting: {failure}");
        }
        match failure.kind {
            // The connection is open, and stays so.
            FailureKind::QueueMissing | FailureKind::ExchangeMissing | FailureKind::NoConsumer => {
                self.unreachable.reset();
                Ok(INTERVAL)
            }
            _ => Ok(self.unreachable.delay()),
        }
    }

    /// Returns the pause after the loss of a connection on which calls could be made. It `held` so long, and was
    /// used if any request was published on it.
    pub fn after_lost(
        &mut self,
        failure: &Failure,
        held: Duration,
        was_used: bool,
    ) -> Result<Duration, Failure> {
        let no_retry = self.args.no_retry;
        let is_final = match failure.kind {
            // A new connection would be refused in the same way.
            FailureKind::AccessRefused | FailureKind::Configuration | FailureKind::Internal => true,
            _ => no_retry && !was_used,
        };

        if is_final {
            return Err(failure.clone());
        }
        self.was_connected = true;
        if held > STABLE_AFTER {
            self.lost.reset();
            self.logged_lost = None;
        }
        self.logged_unreachable = None;
        self.unreachable.reset();
        match self.logged_lost.replace(failure.kind) {
            _ if no_retry => {}
            Some(logged) if logged == failure.kind => info!("{failure}; trying again"),
            _ => warn!("{failure}; trying again"),
        }

        Ok(self.lost.delay())
    }

    /// Returns what becomes of the calls that can still not be made at the end of their time: they have waited
    /// for what was never there, or for the end of a failure that interrupted them.
    pub fn too_late(&self, failure: &Failure) -> Failure {
        if self.was_connected {
            return diagnosis::not_in_time(failure, self.args.timeout);
        }
        diagnosis::waited(failure, self.args.timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    const TIMEOUT: Duration = Duration::from_secs(30);
    const HELD: Duration = Duration::from_secs(1);

    fn failure(kind: FailureKind) -> Failure {
        Failure::new(kind, "it failed")
    }

    fn later() -> Deadline {
        Deadline::after(TIMEOUT)
    }

    fn past() -> Deadline {
        let deadline = Deadline::after(Duration::from_nanos(1));
        while deadline.left() != Some(Duration::ZERO) {
            std::hint::spin_loop();
        }
        deadline
    }

    /// Returns the policy of a client with these options.
    fn policy_of(options: &[&str]) -> RetryPolicy<'static> {
        let args = [&["rpc_client", "--timeout=30s"], options, &["fib"]].concat();
        RetryPolicy::new(Box::leak(Box::new(cli::Client::parse_from(args))))
    }

    #[test]
    fn what_was_never_there_is_waited_for_if_that_was_asked_for() {
        for (kind, waits) in [
            (FailureKind::BrokerUnreachable, true),
            (FailureKind::ConnectionLost, true),
            (FailureKind::QueueMissing, true),
            (FailureKind::NoConsumer, true),
            (FailureKind::Configuration, false),
            (FailureKind::AccessRefused, false),
            (FailureKind::QueueUnusable, false),
        ] {
            let mut policy = policy_of(&[]);
            let decision = policy.after_unreachable(&failure(kind), later());
            assert_eq!(decision, Err(failure(kind)));
            let mut policy = policy_of(&["--wait"]);
            let decision = policy.after_unreachable(&failure(kind), later());
            assert_eq!(decision.is_ok(), waits, "{kind:?}");
        }
    }

    #[test]
    fn a_wait_ends_with_the_time_of_the_calls() {
        let mut policy = policy_of(&["--wait"]);
        let decision = policy.after_unreachable(&failure(FailureKind::NoConsumer), past());
        let waited = Failure::new(FailureKind::NoConsumer, "it failed (waited 30s)");
        assert_eq!(decision, Err(waited));
        assert!(policy.after_lost(&failure(FailureKind::ConnectionLost), HELD, true).is_ok());
        let decision = policy.after_unreachable(&failure(FailureKind::NoConsumer), past());
        let late = Failure::new(FailureKind::TimedOut, "no answer within 30s: it failed");
        assert_eq!(decision, Err(late));
        assert!(
            policy.after_unreachable(&failure(FailureKind::NoConsumer), Deadline::NEVER).is_ok()
        );
    }

    #[test]
    fn what_was_there_before_is_waited_for_in_any_case() {
        let mut policy = policy_of(&[]);
        assert!(policy.after_lost(&failure(FailureKind::ConnectionLost), HELD, true).is_ok());
        for kind in
            [FailureKind::BrokerUnreachable, FailureKind::Configuration, FailureKind::AccessRefused]
        {
            assert!(policy.after_unreachable(&failure(kind), later()).is_ok(), "{kind:?}");
        }
        let decision = policy.after_unreachable(&failure(FailureKind::QueueUnusable), later());
        assert_eq!(decision, Err(failure(FailureKind::QueueUnusable)));
    }

    #[test]
    fn what_a_new_connection_would_not_change_is_not_tried_again() {
        for kind in [FailureKind::AccessRefused, FailureKind::Configuration, FailureKind::Internal]
        {
            let mut policy = policy_of(&["--wait"]);
            let decision = policy.after_lost(&failure(kind), HELD, true);
            assert_eq!(decision, Err(failure(kind)));
        }
    }

    #[test]
    fn without_retry_another_connection_is_for_calls_that_were_not_made() {
        let mut policy = policy_of(&["--wait", "--no-retry"]);
        let lost = failure(FailureKind::ConnectionLost);
        assert!(policy.after_lost(&lost, HELD, true).is_ok());
        assert_eq!(policy.after_lost(&lost, HELD, false), Err(lost));
    }

    #[test]
    fn pauses_grow_to_a_second_until_a_connection_holds() {
        let mut policy = policy_of(&[]);
        let lost = failure(FailureKind::ConnectionLost);
        let mut pause = |held| policy.after_lost(&lost, held, true).unwrap();
        let first = pause(HELD);
        assert!(first >= INTERVAL / 2 && first <= INTERVAL, "{first:?}");
        let last = (0..6).map(|_| pause(HELD)).last().unwrap();
        assert!(last >= LONGEST_PAUSE / 2 && last <= LONGEST_PAUSE, "{last:?}");
        assert!(pause(STABLE_AFTER + HELD) <= INTERVAL);
    }

    #[test]
    fn a_broker_that_is_away_is_tried_more_and_more_rarely() {
        let mut policy = policy_of(&["--wait"]);
        let pause = |policy: &mut RetryPolicy, kind| {
            policy.after_unreachable(&failure(kind), later()).unwrap()
        };
        let away = FailureKind::BrokerUnreachable;
        assert!(pause(&mut policy, away) <= INTERVAL);
        let last = (0..8).map(|_| pause(&mut policy, away)).last().unwrap();
        assert!((LONGEST_ABSENCE / 2..=LONGEST_ABSENCE).contains(&last), "{last:?}");
        // On an open connection a look costs little, and another absence is a new one.
        assert_eq!(pause(&mut policy, FailureKind::NoConsumer), INTERVAL);
        assert!(pause(&mut policy, away) <= INTERVAL);
    }

    #[test]
    fn an_attempt_has_the_time_that_is_left_and_enough_to_tell_what_is_wrong() {
        assert_eq!(RetryPolicy::attempt_limit(Deadline::NEVER), Duration::MAX);
        assert_eq!(RetryPolicy::attempt_limit(past()), SHORTEST_ATTEMPT);
        let limit = RetryPolicy::attempt_limit(later());
        assert!(limit <= TIMEOUT && limit > TIMEOUT / 2, "{limit:?}");
    }
}
