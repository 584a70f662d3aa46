//! One call of the client, from its argument to its outcome.

use crate::cli;
use crate::client::attempts::Attempts;
use crate::client::deadline::Deadline;
use crate::client::input::Argument;
use crate::client::pace::{Pace, Servers};
use crate::client::reply::Received;
use crate::error::Failure;
use crate::terminal::text::short;
use humantime::format_duration;
use log::info;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};
use uuid::Uuid;

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
    /// How often it was published: 1 unless it failed for the time being, a connection was lost, or the broker refused
    /// or returned it.
    pub attempts: u32,
    /// What tells the reply to the last attempt from others. A reply to an earlier attempt is not awaited any more.
    pub correlation_id: String,
    /// The number of the last attempt's message on its channel, until the broker has confirmed it.
    pub unconfirmed: Option<u64>,
    /// Whether it is to be published again: the broker did not take the last attempt, or that one failed.
    pub is_unsent: bool,
    /// Why an attempt came back: there was no queue for it, or the broker refused it.
    pub returned: Option<Failure>,
    /// What the body of its reply is, as far as that says.
    pub content_type: Option<String>,
    /// How long each attempt may take.
    timeout: Duration,
    /// The attempts that are left, and when the next one is due while the call rests.
    retries: Attempts,
    due: Option<Instant>,
    /// None while the call is pending, or rests.
    outcome: Option<Outcome>,
    share: Share,
}

/// What the calls of a client come to, which each of them keeps up to date.
#[derive(Debug)]
pub struct Tally {
    /// How many calls await a reply.
    pub awaiting: Cell<usize>,
    /// How many calls have an outcome that was not taken.
    pub finished: Cell<usize>,
    /// How many calls rest until their next attempt.
    pub resting: Cell<usize>,
    /// How often a call was made again, or will be after its rest.
    pub retried: Cell<u64>,
    /// How many bytes the results have of calls that were not dropped.
    pub result_bytes: Cell<usize>,
    /// How many calls may await a reply, if nobody has said a number.
    pace: Option<RefCell<Pace>>,
}

impl Tally {
    /// Makes the tally before the first of the calls that `args` ask for.
    pub fn new(args: &cli::Client) -> Tally {
        Tally {
            awaiting: Cell::default(),
            finished: Cell::default(),
            resting: Cell::default(),
            retried: Cell::default(),
            result_bytes: Cell::default(),
            pace: Pace::new(args, Instant::now()).map(RefCell::new),
        }
    }

    /// Returns whether another call may be made beside so many, if nobody has said a number.
    pub fn has_room(&self, beside: usize) -> bool {
        self.pace.as_ref().is_none_or(|pace| pace.borrow().has_room(beside, Instant::now()))
    }

    /// Takes how many servers there are; `again`, if there were none for a while.
    pub fn served_by(&self, servers: Servers, again: bool) {
        let Some(pace) = &self.pace else { return };
        match again {
            true => pace.borrow_mut().begin(servers, Instant::now()),
            false => pace.borrow_mut().count(servers, self.awaiting.get()),
        }
    }

    fn replied(&self) {
        if let Some(pace) = &self.pace {
            pace.borrow_mut().reply(Instant::now());
        }
    }

    fn await_reply(&self) {
        let others = self.awaiting.replace(self.awaiting.get() + 1);
        if others == 0
            && let Some(pace) = &self.pace
        {
            pace.borrow_mut().begins_to_wait(Instant::now());
        }
    }
}

/// What one call adds to the tally, until the call is dropped.
#[derive(Debug)]
struct Share {
    is_awaiting: bool,
    has_outcome: bool,
    is_resting: bool,
    result_bytes: usize,
    tally: Rc<Tally>,
}

impl Share {
    /// Makes the share of a call that awaits a reply.
    fn new(tally: &Rc<Tally>) -> Share {
        tally.await_reply();
        let tally = Rc::clone(tally);
        Share { is_awaiting: true, has_outcome: false, is_resting: false, result_bytes: 0, tally }
    }

    fn awaits(&mut self) {
        if !std::mem::replace(&mut self.is_awaiting, true) {
            self.tally.await_reply();
        }
    }

    fn awaits_no_more(&mut self) {
        if std::mem::take(&mut self.is_awaiting) {
            self.tally.awaiting.update(|awaiting| awaiting - 1);
        }
    }

    fn rests(&mut self) {
        self.awaits_no_more();
        if !std::mem::replace(&mut self.is_resting, true) {
            self.tally.resting.update(|resting| resting + 1);
            self.tally.retried.update(|retried| retried + 1);
        }
    }

    fn wakes(&mut self) {
        if self.rests_no_more() {
            self.awaits();
        }
    }

    /// Takes it that the call does not rest. Returns whether it did.
    fn rests_no_more(&mut self) -> bool {
        let rested = std::mem::take(&mut self.is_resting);
        if rested {
            self.tally.resting.update(|resting| resting - 1);
        }
        rested
    }

    fn set(&mut self, outcome: &Outcome) {
        self.awaits_no_more();
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
        self.rests_no_more();
        self.awaits_no_more();
        self.taken();
        self.tally.result_bytes.update(|total| total - self.result_bytes);
    }
}

impl Call {
    /// Makes a call that was `started` then, and has its whole time from now on and as many attempts as `args` say.
    /// What it comes to is in `tally`.
    pub fn new(
        argument: Argument,
        started: Instant,
        args: &cli::Client,
        tally: &Rc<Tally>,
    ) -> Call {
        Call {
            argument,
            started,
            elapsed: Duration::ZERO,
            deadline: Deadline::after(args.timeout),
            attempts: 0,
            correlation_id: String::new(),
            unconfirmed: None,
            is_unsent: false,
            returned: None,
            content_type: None,
            timeout: args.timeout,
            retries: Attempts::new(args.retries),
            due: None,
            outcome: None,
            share: Share::new(tally),
        }
    }

    /// Returns whether the call still awaits a reply.
    pub fn is_pending(&self) -> bool {
        self.outcome.is_none() && self.due.is_none()
    }

    /// Returns whether the call has an outcome.
    pub fn is_finished(&self) -> bool {
        self.outcome.is_some()
    }

    /// Returns when the next attempt is due, while the call rests after one that failed.
    pub fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Returns when nobody waits any more for the reply to this attempt, or to the next one while the call rests. That one
    /// begins now if it is overdue, having had no turn.
    pub fn last_deadline(&self) -> Deadline {
        let next = self.due.map(|due| due.max(Instant::now()));
        next.map_or(self.deadline, |start| Deadline::since(start, self.timeout))
    }

    /// Returns whether the call has failed.
    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, Some(Err(_)))
    }

    /// Ends an attempt by what it came to. That is the call's outcome, unless it failed for the time being and may be
    /// made again: then it rests. There is no other way in which a call ends.
    pub fn finish(&mut self, outcome: Outcome) {
        let outcome = outcome.and_then(|result| self.argument.store(result));
        if let Err(failure) = &outcome
            && let Some(pause) = self.retries.pause_after(failure)
        {
            return self.rest(pause, failure);
        }
        self.elapsed = self.started.elapsed();
        self.share.set(&outcome);
        self.outcome = Some(outcome);
    }

    /// Lets the call rest for a `pause` after an attempt that failed.
    fn rest(&mut self, pause: Duration, failure: &Failure) {
        let (attempt, id) = (&self.retries, short(Some(&self.correlation_id)));
        let again = format_duration(Duration::from_millis(pause.as_millis() as u64));
        info!("{attempt} failed: {failure}; again in {again}, correlation_id {id}");
        self.due = Some(Instant::now() + pause);
        self.share.rests();
    }

    /// Ends the rest if the next attempt is due `by` then. It has its whole time, and is to be published.
    pub fn wake(&mut self, by: Instant) {
        if self.due.is_some_and(|due| due <= by) {
            self.end_rest();
            self.deadline = Deadline::after(self.timeout);
            self.is_unsent = true;
            // Of the attempt before.
            (self.returned, self.content_type) = (None, None);
        }
    }

    fn end_rest(&mut self) {
        self.due = None;
        self.share.wakes();
    }

    /// Finishes the call with `failure`, whatever attempts it has left, unless it is finished.
    pub fn give_up(&mut self, failure: Failure) {
        if !self.is_finished() {
            self.retries.give_up();
            self.end_rest();
            self.finish(Err(failure));
        }
    }

    /// Takes the call's outcome, if it has one.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        self.share.taken();
        self.outcome.take()
    }

    /// Begins an attempt, whose message has this `number` on its channel.
    pub fn begin_attempt(&mut self, number: u64) {
        self.attempts += 1;
        self.is_unsent = false;
        self.unconfirmed = Some(number);
        // A new id for each attempt: a late reply to an earlier one is a duplicate.
        self.correlation_id = Uuid::new_v4().to_string();
        self.share.awaits();
    }

    /// Takes back the attempt, which no queue has for this `failure`: no reply to it is awaited, until it is published
    /// again. Returns why the one before came back, if it did.
    pub fn take_back(&mut self, failure: Failure) -> Option<Failure> {
        self.share.awaits_no_more();
        self.is_unsent = true;
        self.returned.replace(failure)
    }

    /// Returns why the last attempt came back, if it did and waits to be published again.
    pub fn came_back(&self) -> Option<&Failure> {
        self.returned.as_ref().filter(|_| self.is_unsent)
    }

    /// Finishes the call with what its reply says.
    pub fn finish_with(&mut self, reply: Received) {
        self.share.tally.replied();
        info!("{reply}, correlation_id {}", short(Some(&self.correlation_id)));
        self.content_type = reply.content_type;
        self.finish(reply.outcome);
    }
}
