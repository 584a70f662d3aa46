//! One call of the client, from its argument to its outcome.

use crate::client::deadline::Deadline;
use crate::client::input::Argument;
use crate::error::Failure;
use crate::protocol::Reply;
use crate::terminal::text::short;
use log::info;
use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// What a call comes to: the bytes of its result, or why there is none.
pub type Outcome = Result<Vec<u8>, Failure>;

/// One call, from its argument to its outcome.
#[derive(Debug)]
pub struct Call {
    /// The argument, as it is sent.
    pub argument: Argument,
    /// When it was started, to be published at once.
    pub started: Instant,
    /// How long it took until its outcome was known.
    pub elapsed: Duration,
    /// When nobody waits for its reply any more.
    pub deadline: Deadline,
    /// How often it was published: 1 unless a connection was lost, or the broker refused or returned it.
    pub attempts: u32,
    /// What tells the reply to the last attempt from others. A reply to an earlier attempt is not awaited any more.
    pub correlation_id: String,
    /// The number of the last attempt's message on its channel, until the broker has confirmed it.
    pub unconfirmed: Option<u64>,
    /// Whether the broker did not take the last attempt: it is to be published again.
    pub is_refused: bool,
    /// None while the call is pending.
    outcome: Option<Outcome>,
    share: Share,
}

/// What the finished calls of a client come to, which each of them keeps up to date.
#[derive(Debug, Default)]
pub struct Tally {
    /// How many calls have an outcome that was not taken.
    pub finished: Cell<usize>,
    /// How many bytes the results have of calls that were not dropped.
    pub result_bytes: Cell<usize>,
}

/// What one call adds to the tally, until the call is dropped.
#[derive(Debug, Default)]
struct Share {
    has_outcome: bool,
    result_bytes: usize,
    tally: Rc<Tally>,
}

impl Share {
    fn set(&mut self, outcome: &Outcome) {
        if !std::mem::replace(&mut self.has_outcome, true) {
            self.tally.finished.update(|finished| finished + 1);
        }
        let bytes = outcome.as_ref().map_or(0, Vec::len);
        self.result_bytes += bytes;
        self.tally.result_bytes.update(|total| total + bytes);
    }

    fn taken(&mut self) {
        if std::mem::take(&mut self.has_outcome) {
            self.tally.finished.update(|finished| finished - 1);
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.taken();
        self.tally.result_bytes.update(|total| total - self.result_bytes);
    }
}

impl Call {
    /// Makes a call that was `started` then and has its whole time from now on. What it comes to is in `tally`.
    pub fn new(argument: Argument, started: Instant, timeout: Duration, tally: &Rc<Tally>) -> Call {
        Call {
            argument,
            started,
            elapsed: Duration::ZERO,
            deadline: Deadline::after(timeout),
            attempts: 0,
            correlation_id: String::new(),
            unconfirmed: None,
            is_refused: false,
            outcome: None,
            share: Share { tally: Rc::clone(tally), ..Share::default() },
        }
    }

    /// Returns whether the call still awaits a reply.
    pub fn is_pending(&self) -> bool {
        self.outcome.is_none()
    }

    /// Returns whether the call has failed.
    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, Some(Err(_)))
    }

    /// Sets the call's outcome. There is no other way in which a call ends.
    pub fn finish(&mut self, outcome: Outcome) {
        self.elapsed = self.started.elapsed();
        self.share.set(&outcome);
        self.outcome = Some(outcome);
    }

    /// Takes the call's outcome, if it has one.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        self.share.taken();
        self.outcome.take()
    }

    /// Finishes the call with what its reply says, if it is one.
    pub fn finish_with(&mut self, reply: Result<Reply, Failure>) {
        match reply {
            Ok(reply) => {
                let id = short(Some(&self.correlation_id));
                info!("reply: {}, correlation_id {id}", reply.kind());
                self.finish(reply.outcome.map_err(Failure::from));
            }
            Err(failure) => self.finish(Err(failure)),
        }
    }
}
