//! How long the client waits for what is not there yet, or not there any more: a broker, a queue, a
//! server, a connection that holds.

use crate::amqp::backoff::Backoff;
use crate::client::diagnosis;
use crate::error::{Failure, Kind};
use crate::process::signals::Stop;
use crossbeam_channel::{Receiver, never};
use humantime::format_duration;
use log::{info, warn};
use std::time::{Duration, Instant};

/// How often a client that waits looks again.
pub const INTERVAL: Duration = Duration::from_millis(100);

/// The longest pause when one connection after another is lost.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A connection that held so long was a good one.
const GOOD: Duration = Duration::from_secs(10);

/// What the client waits for, until when, and what it has said of it.
pub struct Patience {
    /// Whether it waits at all.
    wait: bool,
    /// Whether there was a connection before.
    was_connected: bool,
    /// The time limit of each call; zero: none.
    timeout: Duration,
    deadline: Option<Instant>,
    /// Cuts a wait short.
    stop: Receiver<Stop>,
    backoff: Backoff,
    /// Why the last connection was lost, as far as that was told.
    told: Option<Kind>,
}

impl Patience {
    /// That of a client whose calls have this `timeout`, before its first connection: it does not
    /// wait unless it was asked to `wait`, and then until `deadline`; None: without end.
    pub fn new(wait: bool, timeout: Duration, deadline: Option<Instant>) -> Patience {
        Patience {
            wait,
            was_connected: false,
            timeout,
            deadline,
            stop: never(),
            backoff: Backoff::new(INTERVAL, LONGEST_PAUSE),
            told: None,
        }
    }

    /// Tells that a connection was lost which had held for so long, once for each reason and not for
    /// each connection.
    pub fn tell(&mut self, failure: &Failure, held: Duration) {
        if held > GOOD {
            self.backoff.reset();
            self.told = None;
        }
        match self.told.replace(failure.kind) {
            Some(told) if told == failure.kind => info!("{failure}; trying again"),
            _ => warn!("{failure}; trying again"),
        }
    }

    /// After the loss of a connection, waits a moment, and from now on in any case; one of `stop` ends
    /// the process in a wait, since what is done was told before.
    pub fn pause(&mut self, deadline: Option<Instant>, stop: Receiver<Stop>) {
        self.wait = true;
        self.was_connected = true;
        self.deadline = deadline;
        self.stop = stop;
        let delay = self.backoff.delay();
        self.sleep(delay);
    }

    /// Whether it waits for what is not there: a client that does needs no hint that it could.
    pub fn waits(&self) -> bool {
        self.wait
    }

    /// Waits until `deadline` from now on.
    pub fn wait_until(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    /// The time that is left. Not to wait at all leaves any attempt all of its time.
    pub fn left(&self) -> Duration {
        match self.deadline {
            Some(deadline) if self.wait => deadline.saturating_duration_since(Instant::now()),
            _ => Duration::MAX,
        }
    }

    /// Tries until there is nothing to wait for any more: a success, a failure that does not pass
    /// by itself, or the end of the time; then the last attempt's result. `meanwhile` has its turn after
    /// each attempt that failed.
    ///
    /// # Errors
    ///
    /// Those of `meanwhile`.
    pub fn retry<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Failure>,
        mut meanwhile: impl FnMut(&Failure) -> anyhow::Result<()>,
    ) -> anyhow::Result<Result<T, Failure>> {
        let mut told = None;
        loop {
            let failure = match attempt() {
                Err(failure) if self.waits_for(failure.kind) => failure,
                result => return Ok(result),
            };
            if told.replace(failure.kind) != Some(failure.kind) {
                warn!("waiting: {failure}");
            }
            meanwhile(&failure)?;
            self.sleep(INTERVAL);
            if self.left().is_zero() {
                return Ok(Err(failure));
            }
        }
    }

    /// What a failure of [`Patience::retry`] comes to: of one that was waited for, how long it was.
    pub fn spent(&self, failure: Failure) -> Failure {
        if !self.waits_for(failure.kind) {
            return failure;
        }
        if self.was_connected {
            return self.late(&failure);
        }
        let timeout = format_duration(self.timeout);
        Failure::new(failure.kind, format!("{failure} (waited {timeout})"))
    }

    /// What becomes of a call that `failure` kept from being answered in time.
    pub fn late(&self, failure: &Failure) -> Failure {
        diagnosis::late(failure, self.timeout)
    }

    /// Whether it waits for such a failure to pass by itself.
    fn waits_for(&self, kind: Kind) -> bool {
        use Kind::{BrokerUnreachable, Configuration, ConnectionLost, NoConsumer, QueueMissing};
        match kind {
            BrokerUnreachable | ConnectionLost | QueueMissing | NoConsumer => self.wait,
            // With a configuration that was right it is the broker: one that dies after the TLS
            // handshake looks like one that wants a client certificate.
            Configuration => self.wait && self.was_connected,
            _ => false,
        }
    }

    fn sleep(&self, delay: Duration) {
        if let Ok(stop) = self.stop.recv_timeout(delay.min(self.left())) {
            stop.end_process();
        }
    }
}
