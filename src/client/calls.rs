//! The state of the client's calls between input and output: which await a reply, which are finished,
//! and whose turn it is to be written. Nothing here does I/O.

use crate::amqp::confirms::Confirmed;
use crate::client::deadline::Deadline;
use crate::client::diagnosis::{Diagnosis, Outlook};
use crate::client::input::Argument;
use crate::error::{Failure, FailureKind};
use crate::protocol::{MAX_BODY, Reply};
use crate::terminal::text::{count, short};
use amiquip::{Delivery, Return};
use log::{info, warn};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a call came to.
pub type Outcome = Result<Vec<u8>, Failure>;

/// One call, from its argument to its outcome.
#[derive(Debug)]
pub struct Call {
    /// The argument, as it is sent.
    pub argument: Arc<[u8]>,
    /// Its line of standard input, from 1, if that is where it came from.
    pub line: Option<u64>,
    /// When it was started, to be published at once.
    pub started: Instant,
    /// When its outcome was known.
    pub ended: Instant,
    /// When nobody waits for its reply any more.
    pub deadline: Deadline,
    /// How often it was published: 1 unless a connection was lost, or the broker refused it.
    pub attempts: u32,
    /// That of the last attempt. An earlier attempt's reply is not awaited any more.
    pub correlation_id: String,
    /// The number of the last attempt's message on its channel, until the broker has confirmed it.
    pub unconfirmed: Option<u64>,
    /// Whether the broker did not take the last attempt: it is to be published again.
    pub is_refused: bool,
    /// None while the call is pending.
    outcome: Option<Outcome>,
}

impl Call {
    /// Whether it still awaits a reply.
    pub fn is_pending(&self) -> bool {
        self.outcome.is_none()
    }

    /// Sets its outcome. There is no other way in which a call ends.
    pub fn finish(&mut self, outcome: Outcome) {
        self.ended = Instant::now();
        self.outcome = Some(outcome);
    }

    /// Finishes it with what its reply says, if it is one.
    pub fn finish_with(&mut self, reply: Result<Reply, Failure>) {
        let id = &self.correlation_id;
        self.finish(reply.and_then(|reply| {
            info!("reply: {}, correlation_id {}", reply.kind(), short(Some(id)));
            reply.outcome.map_err(|error| Failure {
                kind: FailureKind::Procedure(error.kind),
                message: error.message,
                exit_code: error.exit_code,
            })
        }));
    }
}

/// What the options say about calls.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Each call's time limit; zero: none.
    pub timeout: Duration,
    /// The most calls that are between input and output at any time.
    pub in_flight: usize,
    /// Whether calls wait for a queue or a server that is gone.
    pub wait: bool,
    /// Whether a call that the broker refused fails, instead of being published again.
    pub no_retry: bool,
    /// Whether the first failure ends the batch.
    pub fail_fast: bool,
}

/// Where new calls come from.
#[derive(Debug)]
enum Input {
    Open,
    Ended,
    /// No more calls can be made.
    Failed(Failure),
}

/// Calls in input order. The oldest of them is the next to be written, and whatever is finished earlier
/// waits behind it: so there are never more than `in_flight`, whatever the length of the input.
#[derive(Debug)]
pub struct Calls {
    calls: VecDeque<Call>,
    settings: Settings,
    input: Input,
    /// Whether nobody would answer: nothing is published until a look at the queue says otherwise.
    is_held: bool,
    /// The largest body that the broker takes, as far as is known.
    max_body: usize,
    /// When nobody waits any more for the call that would be made next, and since when it waits, while
    /// none can be made.
    next: Option<(Deadline, Instant)>,
    /// How many replies came that no call awaited.
    discarded: u32,
    has_logged_refusal: bool,
}

impl Calls {
    /// No call yet. The time of the first one begins now, whatever it waits for.
    pub fn new(settings: Settings) -> Calls {
        let next = Some((Deadline::after(settings.timeout), Instant::now()));
        Calls {
            calls: VecDeque::new(),
            settings,
            input: Input::Open,
            is_held: false,
            max_body: MAX_BODY,
            next,
            discarded: 0,
            has_logged_refusal: false,
        }
    }

    /// Adds a call, to be published at once. One that is too large for the broker is finished already.
    pub fn start(&mut self, argument: Argument) -> &mut Call {
        self.next = None;
        self.add(argument, Instant::now())
    }

    fn add(&mut self, argument: Argument, started: Instant) -> &mut Call {
        let mut call = Call {
            argument: argument.bytes,
            line: argument.line,
            started,
            ended: started,
            deadline: Deadline::after(self.settings.timeout),
            attempts: 0,
            correlation_id: String::new(),
            unconfirmed: None,
            is_refused: false,
            outcome: None,
        };
        let limit = self.max_body;
        if call.argument.len() > limit {
            let message =
                format!("the argument has more than the {limit} bytes that a broker takes");
            call.finish(Err(Failure::new(FailureKind::TooLarge { limit }, message)));
        }
        self.calls.push_back(call);
        let newest = self.calls.len() - 1;
        &mut self.calls[newest]
    }

    /// Adds a call that cannot be made because of `failure`.
    pub fn add_unmade(&mut self, argument: Argument, failure: &Failure) {
        let started = self.next.map_or_else(Instant::now, |(_, since)| since);
        self.add(argument, started).finish(Err(failure.clone()));
    }

    /// The calls that await a reply, oldest first.
    pub fn unanswered(&mut self) -> impl Iterator<Item = &mut Call> {
        self.calls.iter_mut().filter(|call| call.is_pending())
    }

    /// Those of them that the broker did not take.
    pub fn refused(&mut self) -> impl Iterator<Item = &mut Call> {
        self.unanswered().filter(|call| call.is_refused)
    }

    /// The call that awaits a reply with this correlation id.
    pub fn pending(&mut self, correlation_id: &Option<String>) -> Option<&mut Call> {
        let id = correlation_id.as_ref()?;
        self.unanswered().find(|call| call.correlation_id == *id)
    }

    /// Discards a reply that no call awaits.
    pub fn discard(&mut self, reply: &Delivery) {
        let id = short(reply.properties.correlation_id().as_deref());
        info!("discard a reply: correlation_id {id} is not awaited");
        self.discarded = self.discarded.saturating_add(1);
    }

    /// Takes out the oldest calls that are finished, in input order. If the first failure ends the batch,
    /// there are no calls after one that failed.
    pub fn take_finished(&mut self) -> impl Iterator<Item = (Call, Outcome)> {
        let failed = |call: &Call| matches!(call.outcome, Some(Err(_)));
        if self.settings.fail_fast
            && let Some(first) = self.calls.iter().position(failed)
        {
            let given_up = self.calls.len() - first - 1;
            if given_up > 0 {
                info!(
                    "{} after the first failure: given up",
                    count(given_up as u64, "call", "calls")
                );
            }
            self.calls.truncate(first + 1);
            self.input = Input::Ended;
        }
        std::iter::from_fn(|| {
            let outcome = self.calls.front_mut()?.outcome.take()?;
            Some((self.calls.pop_front()?, outcome))
        })
    }

    /// Whether every call was made, finished and taken out.
    pub fn are_over(&self) -> bool {
        self.calls.is_empty() && matches!(self.input, Input::Ended | Input::Failed(_))
    }

    /// Whether another argument can be taken. A blocked broker would only collect requests whose time
    /// runs out; one at a time still goes, for its time to run out.
    pub fn want_input(&self, is_blocked: bool) -> bool {
        let has_room = self.calls.len() < self.settings.in_flight;
        let is_open = matches!(self.input, Input::Open) && !self.is_held;
        is_open && has_room && (self.calls.is_empty() || !is_blocked)
    }

    /// There are no more arguments.
    pub fn end_input(&mut self) {
        self.input = Input::Ended;
    }

    /// No more calls can be made, because of `failure`. Those that were made go on.
    pub fn fail_input(&mut self, failure: Failure) {
        self.input = Input::Failed(failure);
    }

    /// Why no more calls could be made.
    pub fn input_failure(&self) -> Option<&Failure> {
        match &self.input {
            Input::Failed(failure) => Some(failure),
            _ => None,
        }
    }

    /// Whether no call is made until a look at the queue says that somebody would answer.
    pub fn are_held(&self) -> bool {
        self.is_held
    }

    /// Makes no more calls until [`Calls::release`], and waits for that as long as for an answer.
    pub fn hold(&mut self) {
        self.is_held = true;
        self.next_deadline();
    }

    /// Makes calls again: there is a queue, and somebody consumes from it.
    pub fn release(&mut self) {
        self.is_held = false;
    }

    /// When the first of the pending calls, or without any the next call that is held, has waited for
    /// long enough. All calls have the same time limit, so that the oldest is the first.
    pub fn deadline(&self) -> Deadline {
        match self.calls.iter().find(|call| call.is_pending()) {
            Some(call) => call.deadline,
            None if self.are_held() => self.next.map_or(Deadline::NEVER, |(deadline, _)| deadline),
            None => Deadline::NEVER,
        }
    }

    /// When nobody waits any more: for the calls that are made, or else for the next one, as if that had
    /// been made when this was asked first.
    pub fn last_deadline(&mut self) -> Deadline {
        let last = self.calls.iter().rev().find(|call| call.is_pending());
        last.map(|call| call.deadline).unwrap_or_else(|| self.next_deadline())
    }

    fn next_deadline(&mut self) -> Deadline {
        let timeout = self.settings.timeout;
        self.next.get_or_insert_with(|| (Deadline::after(timeout), Instant::now())).0
    }

    /// Finishes the calls whose deadline had passed `by` then.
    pub fn expire(&mut self, by: Instant, failure: &Failure) {
        for call in self.unanswered().filter(|call| call.deadline.has_passed(by)) {
            call.finish(Err(failure.clone()));
        }
    }

    /// The same after a look at the queue, which also says whether more calls can be answered.
    pub fn time_out(&mut self, by: Instant, diagnosis: Diagnosis) {
        let Diagnosis { mut failure, outlook } = diagnosis;
        if self.discarded > 0 {
            let replies = count(self.discarded, "reply", "replies");
            failure.message += &format!("; {replies} came that no call awaits");
        }
        // The next call has waited for a server as long as another waits for its answer.
        let is_over = self.are_held() && self.next.is_some_and(|(next, _)| next.has_passed(by));
        self.expire(by, &failure);
        let is_idle = self.unanswered().next().is_none();
        match outlook {
            Outlook::Open => {}
            Outlook::Unserved if self.settings.wait && !is_over => self.hold(),
            // The next call would have to wait as long.
            Outlook::Blocked if !is_idle => {}
            Outlook::Unserved | Outlook::Blocked => self.stop_input(failure),
        }
    }

    /// Makes no more calls, if there are more to make.
    fn stop_input(&mut self, failure: Failure) {
        self.is_held = false;
        if !matches!(self.input, Input::Ended) {
            self.fail_input(failure);
        }
    }

    /// A request came back: there is no queue. The call waits for one, if it was asked to.
    pub fn return_request(&mut self, request: &Return, failure: Failure) {
        let id = request.properties.correlation_id();
        let (code, text) = (request.reply_code, &request.reply_text);
        info!("return: {code} {text}, correlation_id {}", short(id.as_deref()));
        let wait = self.settings.wait;
        let Some(call) = self.pending(id) else { return };
        if !wait {
            return call.finish(Err(failure));
        }
        call.is_refused = true;
        if !self.are_held() {
            warn!("waiting: {failure}");
        }
        self.hold();
    }

    /// Takes what the broker says of requests. Whether it refused some that are to be published again:
    /// the others that it refused end with `refusal`, which is made up only then.
    pub fn confirm(&mut self, confirmed: Confirmed, refusal: impl Fn() -> Failure) -> bool {
        let (no_retry, mut has_logged) = (self.settings.no_retry, self.has_logged_refusal);
        let mut again = false;
        for call in self.unanswered() {
            if !call.unconfirmed.is_some_and(|number| confirmed.acknowledges(number)) {
                continue;
            }
            call.unconfirmed = None;
            if confirmed.is_taken {
                continue;
            }
            if no_retry {
                call.finish(Err(refusal()));
                continue;
            }
            if !std::mem::replace(&mut has_logged, true) {
                warn!("{}; trying again", refusal());
            }
            call.is_refused = true;
            again = true;
        }
        self.has_logged_refusal = has_logged;
        again
    }

    /// The broker takes no body of more than `limit` bytes: the calls with a larger one end with
    /// `failure`. The others lost their connection to it.
    pub fn limit_body(&mut self, limit: usize, failure: &Failure) {
        info!("the broker takes bodies of at most {limit} bytes");
        self.max_body = limit;
        for call in self.unanswered().filter(|call| call.argument.len() > limit) {
            call.finish(Err(failure.clone()));
        }
    }

    /// Finishes all pending calls.
    pub fn fail(&mut self, failure: &Failure) {
        for call in self.unanswered() {
            call.finish(Err(failure.clone()));
        }
    }

    /// Finishes all pending calls, and makes no more.
    pub fn abort(&mut self, failure: &Failure) {
        self.fail(failure);
        self.stop_input(failure.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::procedure::Error;
    use amiquip::{Confirm, ConfirmPayload};

    const TIMEOUT: Duration = Duration::from_secs(30);
    const SETTINGS: Settings =
        Settings { timeout: TIMEOUT, in_flight: 2, wait: false, no_retry: false, fail_fast: false };

    fn failure(kind: FailureKind) -> Failure {
        Failure::new(kind, "it failed")
    }

    fn argument(text: &str) -> Argument {
        Argument { bytes: text.as_bytes().into(), line: None }
    }

    /// Calls with these arguments, published under the arguments as ids, numbered from 1.
    fn published(settings: Settings, arguments: &[&str]) -> Calls {
        let mut calls = Calls::new(settings);
        for (number, text) in (1..).zip(arguments) {
            let call = calls.start(argument(text));
            call.attempts = 1;
            call.correlation_id = (*text).into();
            call.unconfirmed = Some(number);
        }
        calls
    }

    fn finish(calls: &mut Calls, id: &str, outcome: Outcome) {
        calls.pending(&Some(id.into())).unwrap().finish(outcome);
    }

    /// What is finished, and the kind of failure or the result.
    fn finished(calls: &mut Calls) -> Vec<(String, Result<Vec<u8>, FailureKind>)> {
        let outcome = |(call, outcome): (Call, Outcome)| {
            (
                String::from_utf8(call.argument.to_vec()).unwrap(),
                outcome.map_err(|failure| failure.kind),
            )
        };
        calls.take_finished().map(outcome).collect()
    }

    fn failed(ids: &[&str], kind: FailureKind) -> Vec<(String, Result<Vec<u8>, FailureKind>)> {
        ids.iter().map(|id| ((*id).into(), Err(kind))).collect()
    }

    fn diagnosis(outlook: Outlook) -> Diagnosis {
        Diagnosis { failure: failure(FailureKind::TimedOut), outlook }
    }

    fn after(duration: Duration) -> Instant {
        Instant::now() + duration
    }

    #[test]
    fn results_come_out_in_input_order_and_the_window_is_bounded() {
        let mut calls = published(SETTINGS, &["a"]);
        assert!(calls.want_input(false));
        assert!(!calls.want_input(true), "the broker is blocked, and one call waits for that");
        let second = calls.start(argument("b"));
        second.correlation_id = "b".into();
        assert!(!calls.want_input(false));

        finish(&mut calls, "b", Ok("2".into()));
        assert!(calls.pending(&Some("b".into())).is_none(), "a second reply is a duplicate");
        assert!(calls.pending(&Some("x".into())).is_none() && calls.pending(&None).is_none());
        assert_eq!(finished(&mut calls), [], "a comes first");
        assert!(!calls.want_input(false), "b waits behind a");
        finish(&mut calls, "a", Ok("1".into()));
        let both = [("a".to_owned(), Ok(b"1".to_vec())), ("b".to_owned(), Ok(b"2".to_vec()))];
        assert_eq!(finished(&mut calls), both);
        assert!(calls.want_input(true), "one call goes though the broker is blocked");
        assert!(!calls.are_over());
        calls.end_input();
        assert!(calls.are_over() && !calls.want_input(false));
    }

    #[test]
    fn a_reply_finishes_its_call() {
        let mut calls = published(SETTINGS, &["a", "b"]);
        let reply = |outcome| Ok(Reply { correlation_id: None, outcome });
        let error = Error::new(ErrorKind::OutOfRange, "too large");
        calls.pending(&Some("a".into())).unwrap().finish_with(reply(Ok("1".into())));
        calls.pending(&Some("b".into())).unwrap().finish_with(reply(Err(error)));
        let outcomes: Vec<Outcome> = calls.take_finished().map(|(_, outcome)| outcome).collect();
        assert_eq!(
            outcomes,
            [
                Ok("1".into()),
                Err(Failure::new(FailureKind::Procedure(ErrorKind::OutOfRange), "too large"))
            ]
        );
    }

    #[test]
    fn what_has_waited_for_its_time_ends_and_nothing_else() {
        let mut calls = published(SETTINGS, &["a"]);
        let first = calls.deadline();
        std::thread::sleep(Duration::from_millis(2));
        calls.start(argument("b"));
        assert_eq!(calls.deadline(), first, "the oldest call is the first to end");
        assert_ne!(calls.last_deadline(), first);
        calls.expire(after(TIMEOUT / 2), &failure(FailureKind::TimedOut));
        assert_eq!(finished(&mut calls), []);
        calls.calls[1].deadline = Deadline::after(2 * TIMEOUT);
        calls.time_out(after(TIMEOUT), diagnosis(Outlook::Open));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::TimedOut));
        assert!(calls.want_input(false));
        let mut unlimited = published(Settings { timeout: Duration::ZERO, ..SETTINGS }, &["a"]);
        unlimited.expire(after(1000 * TIMEOUT), &failure(FailureKind::TimedOut));
        assert_eq!(finished(&mut unlimited), []);
        assert_eq!(unlimited.deadline(), Deadline::NEVER);
    }

    #[test]
    fn replies_that_nobody_awaits_are_told_with_a_time_out() {
        let mut calls = published(SETTINGS, &["a"]);
        calls.discarded = 2;
        calls.time_out(after(TIMEOUT), diagnosis(Outlook::Open));
        let (_, outcome) = calls.take_finished().next().unwrap();
        let message = "it failed; 2 replies came that no call awaits";
        assert_eq!(outcome, Err(Failure::new(FailureKind::TimedOut, message)));
    }

    #[test]
    fn no_call_is_made_that_nobody_would_answer() {
        let mut calls = published(SETTINGS, &["a", "b"]);
        calls.calls[1].deadline = Deadline::after(2 * TIMEOUT);
        calls.time_out(after(TIMEOUT), diagnosis(Outlook::Unserved));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::TimedOut));
        assert!(!calls.want_input(false) && !calls.are_held());
        assert_eq!(calls.input_failure(), Some(&failure(FailureKind::TimedOut)));
        assert!(!calls.are_over(), "b is still pending");
        finish(&mut calls, "b", Ok("2".into()));
        assert_eq!(finished(&mut calls).len(), 1);
        assert!(calls.are_over());
        // Unless there are no more calls to make.
        let mut calls = published(SETTINGS, &["a"]);
        calls.end_input();
        calls.time_out(after(TIMEOUT), diagnosis(Outlook::Unserved));
        assert_eq!(calls.input_failure(), None);
    }

    #[test]
    fn with_wait_calls_are_held_until_there_is_a_server_or_their_time_is_over() {
        let settings = Settings { wait: true, ..SETTINGS };
        let mut calls = published(settings, &["a"]);
        calls.time_out(after(TIMEOUT), diagnosis(Outlook::Unserved));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::TimedOut));
        assert!(calls.are_held() && !calls.want_input(false) && !calls.are_over());
        assert_ne!(calls.deadline(), Deadline::NEVER, "the next call waits as long as another");
        calls.time_out(after(TIMEOUT / 2), diagnosis(Outlook::Unserved));
        assert!(calls.are_held(), "its time is not over");
        calls.release();
        assert!(!calls.are_held() && calls.want_input(false));
        calls.hold();
        calls.time_out(after(TIMEOUT), diagnosis(Outlook::Unserved));
        assert!(!calls.are_held() && calls.are_over());
        assert_eq!(calls.input_failure(), Some(&failure(FailureKind::TimedOut)));
    }

    #[test]
    fn a_blocked_broker_ends_a_batch_after_one_time_limit() {
        let mut calls = published(SETTINGS, &["a", "b"]);
        calls.calls[1].deadline = Deadline::after(2 * TIMEOUT);
        calls.time_out(after(TIMEOUT), diagnosis(Outlook::Blocked));
        assert_eq!(calls.input_failure(), None, "b still waits");
        calls.time_out(after(2 * TIMEOUT), diagnosis(Outlook::Blocked));
        assert_eq!(finished(&mut calls), failed(&["a", "b"], FailureKind::TimedOut));
        assert!(calls.are_over());
    }

    fn returned(id: &str) -> Return {
        Return {
            reply_code: 312,
            reply_text: "NO_ROUTE".into(),
            exchange: String::new(),
            routing_key: "rpc_queue".into(),
            content: Vec::new(),
            properties: amiquip::AmqpProperties::default().with_correlation_id(id.into()),
        }
    }

    #[test]
    fn a_request_that_comes_back_fails_or_waits() {
        let mut calls = published(SETTINGS, &["a", "b"]);
        calls.return_request(&returned("a"), failure(FailureKind::QueueMissing));
        calls.return_request(&returned("x"), failure(FailureKind::QueueMissing));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::QueueMissing));
        let mut calls = published(Settings { wait: true, ..SETTINGS }, &["a", "b"]);
        calls.return_request(&returned("a"), failure(FailureKind::QueueMissing));
        assert!(calls.are_held());
        let again: Vec<&str> = calls.refused().map(|call| call.correlation_id.as_str()).collect();
        assert_eq!(again, ["a"]);
        assert_eq!(finished(&mut calls), []);
    }

    /// The last call waits like any other.
    #[test]
    fn a_request_that_comes_back_waits_though_no_other_call_is_to_be_made() {
        let mut calls = published(Settings { wait: true, ..SETTINGS }, &["a"]);
        calls.end_input();
        calls.return_request(&returned("a"), failure(FailureKind::QueueMissing));
        assert!(calls.are_held() && !calls.are_over());
        calls.release();
        assert_eq!(calls.refused().count(), 1);
        finish(&mut calls, "a", Ok("1".into()));
        assert_eq!(finished(&mut calls).len(), 1);
        assert!(calls.are_over());
    }

    #[test]
    fn a_refused_request_fails_or_goes_out_again() {
        let refused = Confirm::Nack(ConfirmPayload { delivery_tag: 1, multiple: false });
        let taken = Confirm::Ack(ConfirmPayload { delivery_tag: 2, multiple: true });
        let refusal = || failure(FailureKind::Blocked);
        let mut calls = published(SETTINGS, &["a", "b"]);
        assert!(calls.confirm(refused.into(), refusal));
        assert!(!calls.confirm(refused.into(), refusal), "it was told before");
        let again: Vec<&str> = calls.refused().map(|call| call.correlation_id.as_str()).collect();
        assert_eq!(again, ["a"]);
        assert!(!calls.confirm(taken.into(), refusal));
        assert!(calls.calls.iter().all(|call| call.unconfirmed.is_none()));
        let mut calls = published(Settings { no_retry: true, ..SETTINGS }, &["a", "b"]);
        assert!(!calls.confirm(refused.into(), refusal));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::Blocked));
    }

    #[test]
    fn the_first_failure_ends_the_batch_if_it_was_told_to() {
        let settings = Settings { fail_fast: true, in_flight: 9, ..SETTINGS };
        let mut calls = published(settings, &["a", "b", "c", "d"]);
        finish(&mut calls, "d", Ok("4".into()));
        finish(&mut calls, "c", Err(failure(FailureKind::Blocked)));
        assert_eq!(finished(&mut calls), [], "a and b come first");
        assert!(!calls.want_input(false) && !calls.are_over());
        finish(&mut calls, "a", Ok("1".into()));
        assert_eq!(finished(&mut calls), [("a".to_owned(), Ok(b"1".to_vec()))]);
        finish(&mut calls, "b", Err(failure(FailureKind::TimedOut)));
        assert_eq!(finished(&mut calls), failed(&["b"], FailureKind::TimedOut));
        assert!(calls.are_over(), "c is given up like d");
        // A batch that cannot go on has as many failures.
        let mut calls = published(settings, &["a", "b"]);
        calls.abort(&failure(FailureKind::NoConsumer));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::NoConsumer));
        assert_eq!(calls.input_failure(), None, "it is told with the call");
    }

    #[test]
    fn a_request_that_is_too_large_costs_no_other() {
        let mut calls = published(SETTINGS, &["large", "b"]);
        let kind = FailureKind::TooLarge { limit: 1 };
        calls.limit_body(1, &failure(kind));
        assert_eq!(finished(&mut calls), failed(&["large"], kind));
        assert!(!calls.start(argument("c2")).is_pending(), "the limit is known");
        assert!(calls.start(argument("d")).is_pending());
    }

    #[test]
    fn an_end_finishes_what_is_pending_and_makes_no_more_calls() {
        let mut calls = published(SETTINGS, &["a", "b"]);
        finish(&mut calls, "b", Ok("2".into()));
        calls.abort(&failure(FailureKind::NoConsumer));
        let both =
            [("a".to_owned(), Err(FailureKind::NoConsumer)), ("b".to_owned(), Ok(b"2".to_vec()))];
        assert_eq!(finished(&mut calls), both);
        assert!(calls.are_over());
        calls.add_unmade(argument("c"), &failure(FailureKind::NoConsumer));
        let (call, outcome) = calls.take_finished().next().unwrap();
        assert_eq!((call.attempts, outcome), (0, Err(failure(FailureKind::NoConsumer))));
    }

    #[test]
    fn a_call_that_cannot_be_made_has_waited_since_it_was_wanted() {
        let mut calls = Calls::new(SETTINGS);
        let first = calls.last_deadline();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(calls.last_deadline(), first, "no other deadline for another attempt");
        calls.add_unmade(argument("a"), &failure(FailureKind::NoConsumer));
        let (call, _) = calls.take_finished().next().unwrap();
        assert!(call.ended - call.started >= Duration::from_millis(2));
        // A call that is made has its own time, and so has the next one.
        calls.start(argument("b")).finish(Ok(Vec::new()));
        assert_ne!(calls.last_deadline(), first);
    }
}
