//! The state of the client's calls between input and output: which await a reply, which are finished,
//! and whose turn it is to be written. Nothing here does I/O but for the log, and a result
//! that goes to a file.

use crate::amqp::MAX_BODY;
use crate::amqp::confirms::Confirmed;
use crate::cli;
use crate::client::call::{Call, Outcome};
use crate::client::deadline::Deadline;
use crate::client::diagnosis::{self, Diagnosis};
use crate::client::input::Argument;
use crate::client::pace::Servers;
use crate::client::window::Window;
use crate::error::{Failure, FailureKind};
use crate::terminal::text::{count, short};
use amiquip::Return;
use log::{info, warn};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The calls that are under way, and the state of the input that they come from.
#[derive(Debug)]
pub struct Calls<'a> {
    args: &'a cli::Client,
    window: Window,
    input: InputState,
    /// The broker to which calls are published, and the largest body that each takes which has said so.
    broker: String,
    max_bodies: BTreeMap<String, usize>,
    /// How many replies came that no call awaited.
    discarded: u32,
    has_logged_refusal: bool,
}

/// Where the input stands.
#[derive(Debug)]
enum InputState {
    /// Calls are made: so many more, or with None as many as standard input has. The next one may have waited for
    /// that already.
    Open { left: Option<u64>, waited: Option<Wait> },
    /// No calls are made for now, since nobody would answer them: there is no connection, no queue or no server.
    /// The next one waits.
    Held { left: Option<u64>, wait: Wait },
    /// No more calls are made: there are no more arguments, or something kept calls from being made.
    Closed(Option<Unmade>),
}

/// How long the next call has waited to be made, and when that is long enough.
#[derive(Debug, Clone, Copy)]
struct Wait {
    since: Instant,
    until: Deadline,
}

impl Wait {
    fn begin(timeout: Duration) -> Wait {
        Wait { since: Instant::now(), until: Deadline::after(timeout) }
    }
}

/// Calls that could not be made.
#[derive(Debug, Clone)]
pub struct Unmade {
    /// What kept them from being made.
    pub failure: Failure,
    /// How many they are. None: that depended on standard input.
    pub calls: Option<u64>,
    /// When the first of them began to wait.
    since: Instant,
}

impl Calls<'_> {
    /// Makes the state before the first of the calls that `args` ask for. The time of that one begins now, whatever
    /// it waits for.
    pub fn new(args: &cli::Client) -> Calls<'_> {
        let wait = Wait::begin(args.timeout);
        Calls {
            args,
            window: Window::new(args),
            // Which outputs are there is seen when a call's turn comes.
            input: InputState::Held { left: args.calls().filter(|_| !args.skip_existing), wait },
            broker: String::new(),
            max_bodies: BTreeMap::new(),
            discarded: 0,
            has_logged_refusal: false,
        }
    }

    /// Adds a call, to be published at once. One that is too large for the broker is finished already.
    pub fn start(&mut self, argument: Argument) -> &mut Call {
        if let InputState::Open { left, waited } = &mut self.input {
            *left = left.map(|calls| calls - 1);
            *waited = None;
            if *left == Some(0) {
                // If this waited for the input's end, a lost connection would be opened again with no call left.
                self.end_input(None);
            }
        }

        let mut call = self.call(argument, Instant::now());
        if let Some(obstacle) = call.argument.obstacle.take() {
            call.finish(Err(obstacle));
        }

        let limit = self.max_bodies.get(&self.broker).copied().unwrap_or(MAX_BODY);
        if call.is_pending() && call.argument.body().len() > limit {
            let message =
                format!("the argument has more than the {limit} bytes that a broker takes");
            call.finish(Err(Failure::new(FailureKind::TooLarge { limit }, message)));
        }

        self.window.push(call)
    }

    fn call(&self, argument: Argument, started: Instant) -> Call {
        Call::new(argument, started, self.args, self.window.tally())
    }

    /// Returns what kept calls from being made, if anything did.
    pub fn unmade(&self) -> Option<&Unmade> {
        match &self.input {
            InputState::Closed(unmade) => unmade.as_ref(),
            _ => None,
        }
    }

    /// Makes one of the calls that could not be made, to be told: it has waited since it was wanted.
    pub fn unmade_call(&self, argument: Argument) -> Call {
        let started = match self.unmade() {
            Some(unmade) => unmade.since,
            None => Instant::now(),
        };
        let mut call = self.call(argument, started);
        call.elapsed = started.elapsed();
        call
    }

    /// Returns the calls that await a reply, oldest first.
    pub fn pending_calls(&self) -> impl DoubleEndedIterator<Item = &Call> {
        self.window.pending()
    }

    /// Returns the calls that await a reply, oldest first, to be changed.
    pub fn unanswered(&mut self) -> impl DoubleEndedIterator<Item = &mut Call> {
        self.window.pending_mut()
    }

    /// Returns the calls that are to be published again by now, oldest first.
    pub fn to_resend(&mut self) -> impl Iterator<Item = &mut Call> {
        self.window.wake(Instant::now());
        self.unanswered().filter(|call| call.is_unsent)
    }

    /// Returns when there is more for [`Calls::to_resend`], as far as that depends on time alone.
    pub fn next_due(&self) -> Option<Instant> {
        self.window.next_due()
    }

    /// Returns the call that awaits a reply with this correlation id.
    pub fn pending(&mut self, correlation_id: &Option<String>) -> Option<&mut Call> {
        let id = correlation_id.as_ref()?;
        self.unanswered().find(|call| call.correlation_id == *id)
    }

    /// Discards a reply that no call awaits.
    pub fn discard(&mut self, correlation_id: &Option<String>) {
        let id = short(correlation_id.as_deref());
        info!("discard a reply: correlation_id {id} is not awaited");
        self.discarded = self.discarded.saturating_add(1);
    }

    /// Takes out the calls that are finished and whose turn it is. If the first failure ends the batch, the others
    /// are given up.
    pub fn take_finished(&mut self) -> impl Iterator<Item = (Call, Outcome)> {
        if self.args.fail_fast
            && let Some(given_up) = self.window.end_at_first_failure()
        {
            if given_up > 0 {
                let calls = count(given_up as u64, "call", "calls");
                info!("{calls} after the first failure: given up");
            }
            self.end_input(None);
        }
        std::iter::from_fn(|| self.window.take_next())
    }

    /// Takes out the calls that are finished behind one that is not, and drops the others: before an end at which
    /// they will never have an outcome.
    pub fn take_finished_behind(&mut self) -> impl Iterator<Item = (Call, Outcome)> {
        self.window.take_all()
    }

    /// Returns whether every call was made, finished and taken out.
    pub fn are_over(&self) -> bool {
        self.window.is_empty() && matches!(self.input, InputState::Closed(_))
    }

    /// Returns whether another argument can be taken. A blocked broker would only collect requests whose time
    /// runs out; one at a time still goes, for its time to run out.
    pub fn want_input(&self, is_blocked: bool) -> bool {
        let InputState::Open { .. } = self.input else { return false };
        self.window.is_empty() || self.window.has_room() && !is_blocked
    }

    /// Makes no more calls: there are no more arguments, or there is a `failure`. Calls that were made go on.
    pub fn end_input(&mut self, failure: Option<Failure>) {
        let (calls, since) = match self.input {
            InputState::Open { left, waited: None } => (left, Instant::now()),
            InputState::Open { left, waited: Some(wait) } | InputState::Held { left, wait } => {
                (left, wait.since)
            }
            InputState::Closed(_) => (Some(0), Instant::now()),
        };
        let unmade = failure.map(|failure| Unmade { failure, calls, since });
        self.input = InputState::Closed(unmade);
    }

    /// Makes no more calls, since the input has no more arguments. What it failed with, if it did, is known.
    pub fn input_is_over(&mut self) {
        match self.input {
            InputState::Open { .. } | InputState::Held { .. } => self.end_input(None),
            InputState::Closed(_) => {}
        }
    }

    /// Makes no more calls for now. The next one waits as long as for an answer, and if it has waited before it
    /// could be made, since then.
    fn hold(&mut self) {
        if let InputState::Open { left, waited } = self.input {
            let wait = waited.unwrap_or_else(|| Wait::begin(self.args.timeout));
            self.input = InputState::Held { left, wait };
        }
    }

    /// Returns whether another call would be made if there were more servers.
    pub fn want_servers(&self) -> bool {
        matches!(self.input, InputState::Open { .. }) && self.window.lacks_servers()
    }

    /// Makes calls again, since so many serve the queue.
    pub fn resume(&mut self, servers: Servers) {
        let is_held = matches!(self.input, InputState::Held { .. });
        self.window.served_by(servers, is_held);
        self.open();
    }

    /// Makes calls again. The next one has waited already.
    fn open(&mut self) {
        if let InputState::Held { left, wait } = self.input {
            self.input = InputState::Open { left, waited: Some(wait) };
        }
    }

    /// Makes no calls while there is no connection. If the client was `idle`, it waited for its input until now, and
    /// no call for the client.
    pub fn lose_connection(&mut self, idle: bool) {
        if idle {
            self.renew_wait();
        }
        self.hold();
    }

    /// Gives the next call its whole time from now on, or from when it is wanted.
    fn renew_wait(&mut self) {
        match &mut self.input {
            InputState::Open { waited, .. } => *waited = None,
            InputState::Held { wait, .. } => *wait = Wait::begin(self.args.timeout),
            InputState::Closed(_) => {}
        }
    }

    /// Returns when the first of the pending calls, or without any the next call that is held, has waited for
    /// long enough.
    pub fn deadline(&self) -> Deadline {
        match self.window.first_deadline() {
            Some(first) => first,
            None if self.window.has_resting() => Deadline::NEVER,
            None => self.next_deadline(),
        }
    }

    /// Returns when all calls that were made, or without any the next call that is held, have waited for long
    /// enough, as far as that is known.
    pub fn last_deadline(&self) -> Deadline {
        self.window.last_deadline().unwrap_or_else(|| self.next_deadline())
    }

    fn next_deadline(&self) -> Deadline {
        match self.input {
            InputState::Held { wait, .. } => wait.until,
            _ => Deadline::NEVER,
        }
    }

    /// Finishes the calls whose deadline had passed `by` then, while none can be published.
    pub fn expire(&mut self, by: Instant, failure: &Failure) {
        self.fail(failure, |call| call.deadline.has_passed(by));
        // Those that are finished have made room.
        self.window.wake(by);
    }

    /// Finishes the calls whose deadline had passed `by` then, after a look at the queue which also says whether more
    /// calls can be answered.
    pub fn time_out(&mut self, by: Instant, diagnosis: Diagnosis) {
        let Diagnosis { mut failure, is_unserved, names_key } = diagnosis;
        if self.discarded > 0 {
            let replies = count(self.discarded, "reply", "replies");
            failure.message += &format!("; {replies} came that no call awaits");
        }
        let timeout = self.args.timeout;
        for call in self.unanswered().filter(|call| call.deadline.has_passed(by)) {
            let mut failure = failure.clone();
            match (call.came_back(), &call.argument.routing_key) {
                (Some(returned), Some(_)) => failure = diagnosis::waited(returned, timeout),
                (None, Some(key)) if names_key => {
                    failure.message += &format!("; its routing key was \"{key}\"");
                }
                _ => {}
            }
            call.finish(Err(failure));
        }

        // The next call has waited for a server as long as another waits for its answer.
        let has_waited = self.next_deadline().has_passed(by);
        let waits = self.args.wait && !has_waited || self.window.has_resting();
        if is_unserved && waits {
            self.hold();
        // Of a blocked broker, the next call would have to wait as long.
        } else if is_unserved || self.is_blocked_by(&failure) {
            self.stop_input(failure);
        } else {
            // Somebody serves.
            self.open();
            self.renew_wait();
        }
    }

    /// Returns whether no call is left that was made, and another one could not be published for this `failure`.
    pub fn is_blocked_by(&self, failure: &Failure) -> bool {
        failure.kind == FailureKind::Blocked && self.window.last_deadline().is_none()
    }

    /// Makes no more calls, if there are more to make.
    fn stop_input(&mut self, failure: Failure) {
        match self.input {
            InputState::Open { .. } | InputState::Held { .. } => self.end_input(Some(failure)),
            InputState::Closed(_) => {}
        }
    }

    /// Takes a request that came back, since there is no queue for it. Its call waits for one, if it was asked to.
    pub fn return_request(&mut self, request: &Return, failure: Failure) {
        let id = request.properties.correlation_id();
        let (code, text) = (request.reply_code, &request.reply_text);
        info!("return: {code} {text}, correlation_id {}", short(id.as_deref()));
        let wait = self.args.wait;
        let is_first = !self.unanswered().any(|call| call.is_unsent);
        let Some(call) = self.pending(id) else { return };
        if !wait {
            return call.finish(Err(failure));
        }
        let before = call.take_back(failure.clone());
        if is_first && before.is_none_or(|before| before.kind != failure.kind) {
            warn!("waiting: {failure}");
        }
        // Behind an exchange, the next call may have another queue.
        if self.args.exchange.is_none() {
            self.hold();
        }
    }

    /// Takes what the broker says of requests. Returns whether it refused some that are to be published again. `refusal`
    /// tells that it refused one.
    pub fn confirm(&mut self, confirmed: Confirmed, refusal: impl Fn() -> Failure) -> bool {
        let no_retry = self.args.no_retry;
        let is_about =
            |call: &&mut Call| call.unconfirmed.is_some_and(|number| confirmed.is_about(number));
        let mut again = false;
        for call in self.unanswered().filter(is_about) {
            call.unconfirmed = None;
            if !confirmed.is_ack && no_retry {
                call.finish(Err(refusal()));
            } else if !confirmed.is_ack {
                call.is_unsent = true;
                call.returned = Some(refusal());
                again = true;
            }
        }

        if again && !std::mem::replace(&mut self.has_logged_refusal, true) {
            warn!("{}; trying again", refusal());
        }
        again
    }

    /// Says to which broker calls are published from now on: its name in messages.
    pub fn set_broker(&mut self, name: &str) {
        self.broker = name.into();
    }

    /// Keeps that the broker takes no body of more than `limit` bytes, and finishes the calls with a larger one with
    /// `failure`. The others lost their connection to it.
    pub fn limit_body(&mut self, limit: usize, failure: &Failure) {
        info!("{} takes bodies of at most {limit} bytes", self.broker);
        self.max_bodies.insert(self.broker.clone(), limit);
        self.fail(failure, |call| call.argument.body().len() > limit);
    }

    /// Finishes the pending calls that `which` chooses.
    pub fn fail(&mut self, failure: &Failure, which: impl Fn(&Call) -> bool) {
        for call in self.unanswered().filter(|call| which(call)) {
            call.finish(Err(failure.clone()));
        }
    }

    /// Finishes all pending calls, and makes no more.
    pub fn abort(&mut self, failure: &Failure) {
        self.window.give_up(failure);
        self.stop_input(failure.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::reply::Reading;
    use crate::error::ErrorKind;
    use crate::procedure::Error;
    use crate::protocol::Reply;
    use amiquip::{Confirm, ConfirmPayload};
    use clap::Parser;

    const TIMEOUT: Duration = Duration::from_secs(30);

    /// Returns the calls that a command line with these options asks for, two in flight, once there is a connection.
    fn calls(options: &[&str]) -> Calls<'static> {
        let args =
            [&["rpc_client", "--in-flight=2", "--timeout=30s"], options, &["fib", "-"]].concat();
        let mut calls = Calls::new(Box::leak(Box::new(cli::Client::parse_from(args))));
        calls.resume(Servers::UNKNOWN);
        calls
    }

    fn is_held(calls: &Calls) -> bool {
        matches!(calls.input, InputState::Held { .. })
    }

    fn input_failure(calls: &Calls) -> Option<Failure> {
        Some(calls.unmade()?.failure.clone())
    }

    fn failure(kind: FailureKind) -> Failure {
        Failure::new(kind, "it failed")
    }

    fn argument(text: &str) -> Argument {
        Argument::new(text.into(), None)
    }

    /// Calls with these arguments, published under the arguments as ids, numbered from 1.
    fn published(options: &[&str], arguments: &[&str]) -> Calls<'static> {
        let mut calls = calls(options);
        for (number, text) in (1..).zip(arguments) {
            let call = calls.start(argument(text));
            call.attempts = 1;
            call.correlation_id = (*text).into();
            call.unconfirmed = Some(number);
        }
        calls
    }

    fn finish(calls: &mut Calls, id: &str, outcome: Result<Vec<u8>, Failure>) {
        calls.pending(&Some(id.into())).unwrap().finish(outcome);
    }

    /// The ids of those that are to be published again.
    fn to_resend<'a>(calls: &'a mut Calls) -> Vec<&'a str> {
        calls.to_resend().map(|call| call.correlation_id.as_str()).collect()
    }

    /// What is finished, and the kind of failure or the result.
    fn finished(calls: &mut Calls) -> Vec<(String, Result<Vec<u8>, FailureKind>)> {
        let outcome = |(call, outcome): (Call, Result<Vec<u8>, Failure>)| {
            (
                String::from_utf8(call.argument.bytes.to_vec()).unwrap(),
                outcome.map_err(|failure| failure.kind),
            )
        };
        calls.take_finished().map(outcome).collect()
    }

    fn failed(ids: &[&str], kind: FailureKind) -> Vec<(String, Result<Vec<u8>, FailureKind>)> {
        ids.iter().map(|id| ((*id).into(), Err(kind))).collect()
    }

    fn diagnosis(kind: FailureKind, is_unserved: bool) -> Diagnosis {
        Diagnosis { failure: failure(kind), is_unserved, names_key: false }
    }

    fn after(duration: Duration) -> Instant {
        Instant::now() + duration
    }

    #[test]
    fn results_come_out_in_input_order_and_the_window_is_bounded() {
        let mut calls = published(&[], &["a"]);
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
        calls.end_input(None);
        assert!(calls.are_over() && !calls.want_input(false));
    }

    #[test]
    fn the_last_of_a_known_number_of_calls_ends_the_input() {
        let args = cli::Client::parse_from(["rpc_client", "--in-flight=2", "fib", "1", "2"]);
        let mut calls = Calls::new(&args);
        assert!(!calls.want_input(false), "there is no connection yet");
        calls.resume(Servers::UNKNOWN);
        calls.start(argument("1"));
        assert!(calls.want_input(false));
        calls.start(argument("2"));
        assert!(!calls.want_input(false));
        calls.fail(&failure(FailureKind::ConnectionLost), |_| true);
        assert_eq!(calls.take_finished().count(), 2);
        assert!(calls.are_over());
    }

    #[test]
    fn a_reply_finishes_its_call() {
        let mut calls = published(&[], &["a", "b"]);
        let reply = |outcome| {
            let published = Reply { correlation_id: None, outcome, content_type: None }
                .to_publish("")
                .properties;
            Reading::new(calls.args).read(&published, b"1".into())
        };
        let replies = [Ok("1".into()), Err(Error::new(ErrorKind::OutOfRange, ""))].map(reply);
        for (id, reply) in ["a", "b"].into_iter().zip(replies) {
            calls.pending(&Some(id.into())).unwrap().finish_with(reply);
        }
        let outcomes: Vec<_> = calls.take_finished().map(|(_, outcome)| outcome).collect();
        assert_eq!(
            outcomes,
            [Ok("1".into()), Err(Failure::new(FailureKind::Procedure(ErrorKind::OutOfRange), "1"))]
        );
    }

    #[test]
    fn what_has_waited_for_its_time_ends_and_nothing_else() {
        let mut calls = published(&[], &["a"]);
        let first = calls.deadline();
        std::thread::sleep(Duration::from_millis(2));
        calls.start(argument("b"));
        assert_eq!(calls.deadline(), first, "the oldest call is the first to end");
        assert_ne!(calls.last_deadline(), first);
        calls.expire(after(TIMEOUT / 2), &failure(FailureKind::TimedOut));
        assert_eq!(finished(&mut calls), []);
        calls.window.pending_mut().nth(1).unwrap().deadline = Deadline::after(2 * TIMEOUT);
        calls.time_out(after(TIMEOUT), diagnosis(FailureKind::TimedOut, false));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::TimedOut));
        assert!(calls.want_input(false));
        let mut unlimited = published(&["--timeout=0"], &["a"]);
        unlimited.expire(after(1000 * TIMEOUT), &failure(FailureKind::TimedOut));
        assert_eq!(finished(&mut unlimited), []);
        assert_eq!(unlimited.deadline(), Deadline::NEVER);
    }

    /// However long it rests until then.
    #[test]
    fn a_call_that_is_made_again_has_its_whole_time_from_its_turn_on() {
        let mut calls = published(&["--retries=1", "--unordered", "--timeout=1ms"], &["a"]);
        finish(&mut calls, "a", Err(failure(FailureKind::TimedOut)));
        let due = calls.next_due().unwrap();
        for text in ["b", "c"] {
            calls.start(argument(text));
        }
        assert_eq!(calls.next_due(), None, "two are under way");
        calls.lose_connection(false);
        while due.elapsed() <= Duration::from_millis(1) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let now = Instant::now();
        assert!(!calls.last_deadline().has_passed(now));
        calls.expire(now, &failure(FailureKind::TimedOut));
        let pending: Vec<_> = calls.pending_calls().map(|call| &**call.argument.bytes).collect();
        assert_eq!(pending, [b"a"], "the others rest");
    }

    #[test]
    fn replies_that_nobody_awaits_are_told_with_a_time_out() {
        let mut calls = published(&[], &["a"]);
        calls.discard(&None);
        calls.discard(&Some("late".into()));
        calls.time_out(after(TIMEOUT), diagnosis(FailureKind::TimedOut, false));
        let (_, outcome) = calls.take_finished().next().unwrap();
        let message = "it failed; 2 replies came that no call awaits";
        assert_eq!(outcome, Err(Failure::new(FailureKind::TimedOut, message)));
    }

    /// Else its deadline would pass again and again, or nothing would open the input.
    #[test]
    fn a_call_that_waits_for_a_server_is_made_with_its_whole_time_when_there_is_one() {
        let mut calls = published(&["--wait"], &["a"]);
        calls.time_out(after(TIMEOUT), diagnosis(FailureKind::TimedOut, true));
        assert!(is_held(&calls) && finished(&mut calls).len() == 1);
        let InputState::Held { wait, .. } = &mut calls.input else { unreachable!() };
        wait.until = Deadline::after(Duration::from_nanos(1));
        calls.time_out(after(TIMEOUT), diagnosis(FailureKind::TimedOut, false));
        assert!(calls.want_input(false) && !calls.deadline().has_passed(Instant::now()));
        assert!(matches!(calls.input, InputState::Open { waited: None, .. }));
    }

    #[test]
    fn no_call_is_made_that_nobody_would_answer() {
        let mut calls = published(&[], &["a", "b"]);
        calls.window.pending_mut().nth(1).unwrap().deadline = Deadline::after(2 * TIMEOUT);
        calls.time_out(after(TIMEOUT), diagnosis(FailureKind::TimedOut, true));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::TimedOut));
        assert!(!calls.want_input(false) && !is_held(&calls));
        assert_eq!(input_failure(&calls), Some(failure(FailureKind::TimedOut)));
        assert!(!calls.are_over(), "b is still pending");
        finish(&mut calls, "b", Ok("2".into()));
        assert_eq!(finished(&mut calls).len(), 1);
        assert!(calls.are_over());
        // Unless there are no more calls to make.
        let mut calls = published(&[], &["a"]);
        calls.end_input(None);
        calls.time_out(after(TIMEOUT), diagnosis(FailureKind::TimedOut, true));
        assert_eq!(input_failure(&calls), None);
    }

    #[test]
    fn with_wait_calls_are_held_until_there_is_a_server_or_their_time_is_over() {
        let mut calls = published(&["--wait"], &["a"]);
        calls.time_out(after(TIMEOUT), diagnosis(FailureKind::TimedOut, true));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::TimedOut));
        assert!(is_held(&calls) && !calls.want_input(false) && !calls.are_over());
        assert_ne!(calls.deadline(), Deadline::NEVER, "the next call waits as long as another");
        calls.time_out(after(TIMEOUT / 2), diagnosis(FailureKind::TimedOut, true));
        assert!(is_held(&calls), "its time is not over");
        calls.resume(Servers::UNKNOWN);
        assert!(!is_held(&calls) && calls.want_input(false));
        calls.hold();
        calls.time_out(after(TIMEOUT), diagnosis(FailureKind::TimedOut, true));
        assert!(!is_held(&calls) && calls.are_over());
        assert_eq!(input_failure(&calls), Some(failure(FailureKind::TimedOut)));
    }

    #[test]
    fn a_blocked_broker_ends_a_batch_after_one_time_limit() {
        let mut calls = published(&[], &["a", "b"]);
        calls.window.pending_mut().nth(1).unwrap().deadline = Deadline::after(2 * TIMEOUT);
        calls.time_out(after(TIMEOUT), diagnosis(FailureKind::Blocked, false));
        assert_eq!(input_failure(&calls), None, "b still waits");
        calls.time_out(after(2 * TIMEOUT), diagnosis(FailureKind::Blocked, false));
        assert_eq!(finished(&mut calls), failed(&["a", "b"], FailureKind::Blocked));
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
        let mut calls = published(&[], &["a", "b"]);
        calls.return_request(&returned("a"), failure(FailureKind::QueueMissing));
        calls.return_request(&returned("x"), failure(FailureKind::QueueMissing));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::QueueMissing));
        let mut calls = published(&["--wait"], &["a", "b"]);
        calls.return_request(&returned("a"), failure(FailureKind::QueueMissing));
        assert!(is_held(&calls));
        assert_eq!(to_resend(&mut calls), ["a"]);
        assert_eq!(finished(&mut calls), []);
    }

    /// Where all came back, so would the next one.
    #[test]
    fn a_request_that_an_exchange_returns_holds_no_other() {
        let options = &["--wait", "--exchange=x", "--in-flight=auto"];
        let mut calls = published(options, &["a"]);
        let come_back = |calls: &mut Calls, id: &str| {
            calls.return_request(&returned(id), failure(FailureKind::Unroutable));
        };
        assert!(!calls.want_input(false), "nobody knows of more than one server");
        come_back(&mut calls, "a");
        assert!(calls.want_input(false));
        calls.start(argument("b")).correlation_id = "b".into();
        assert!(!calls.want_input(false));
        come_back(&mut calls, "b");
        assert!(!calls.want_input(false), "nothing has come to a queue");
        let reply = Reading::new(calls.args).read(&Default::default(), Vec::new());
        let call = calls.to_resend().nth(1).unwrap();
        call.begin_attempt(1);
        call.finish_with(reply);
        assert!(calls.want_input(false));
        calls.to_resend().for_each(|call| call.begin_attempt(2));
        assert_eq!(calls.pending_calls().map(|call| call.attempts).collect::<Vec<_>>(), [2]);
    }

    /// The last call waits like any other.
    #[test]
    fn a_request_that_comes_back_waits_though_no_other_call_is_to_be_made() {
        let mut calls = published(&["--wait"], &["a"]);
        calls.end_input(None);
        calls.return_request(&returned("a"), failure(FailureKind::QueueMissing));
        assert!(!calls.are_over());
        calls.resume(Servers::UNKNOWN);
        assert_eq!(to_resend(&mut calls).len(), 1);
        finish(&mut calls, "a", Ok("1".into()));
        assert_eq!(finished(&mut calls).len(), 1);
        assert!(calls.are_over());
    }

    #[test]
    fn a_refused_request_fails_or_goes_out_again() {
        let refused = Confirm::Nack(ConfirmPayload { delivery_tag: 1, multiple: false });
        let taken = Confirm::Ack(ConfirmPayload { delivery_tag: 2, multiple: true });
        let refusal = || failure(FailureKind::Blocked);
        let mut calls = published(&[], &["a", "b"]);
        assert!(calls.confirm(refused.into(), refusal));
        assert!(!calls.confirm(refused.into(), refusal), "it was told before");
        assert_eq!(to_resend(&mut calls), ["a"]);
        assert!(!calls.confirm(taken.into(), refusal));
        assert!(calls.window.pending().all(|call| call.unconfirmed.is_none()));
        let mut calls = published(&["--no-retry"], &["a", "b"]);
        assert!(!calls.confirm(refused.into(), refusal));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::Blocked));
    }

    /// No queue has it.
    #[test]
    fn a_call_that_an_exchange_has_refused_to_the_end_is_told_so() {
        let mut calls = published(&["--exchange=x"], &["a"]);
        calls.unanswered().for_each(|call| call.argument.routing_key = Some("k".into()));
        let refused = Confirm::Nack(ConfirmPayload { delivery_tag: 1, multiple: false });
        assert!(calls.confirm(refused.into(), || failure(FailureKind::Blocked)));
        let unseen = Diagnosis { names_key: true, ..diagnosis(FailureKind::TimedOut, false) };
        calls.time_out(after(TIMEOUT), unseen);
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::Blocked));
    }

    #[test]
    fn the_first_failure_ends_the_batch_if_it_was_told_to() {
        let options = &["--fail-fast", "--in-flight=9"];
        let mut calls = published(options, &["a", "b", "c", "d"]);
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
        let mut calls = published(options, &["a", "b"]);
        calls.abort(&failure(FailureKind::NoConsumer));
        assert_eq!(finished(&mut calls), failed(&["a"], FailureKind::NoConsumer));
        assert_eq!(input_failure(&calls), None, "it is told with the call");
    }

    #[test]
    fn a_request_that_is_too_large_costs_no_other() {
        let mut calls = published(&[], &["large", "b"]);
        let kind = FailureKind::TooLarge { limit: 1 };
        calls.limit_body(1, &failure(kind));
        assert_eq!(finished(&mut calls), failed(&["large"], kind));
        assert!(!calls.start(argument("c2")).is_pending(), "the limit is known");
        assert!(calls.start(argument("d")).is_pending());
    }

    #[test]
    fn an_end_finishes_what_is_pending_and_makes_no_more_calls() {
        let mut calls = published(&[], &["a", "b"]);
        finish(&mut calls, "b", Ok("2".into()));
        calls.abort(&failure(FailureKind::NoConsumer));
        let both =
            [("a".to_owned(), Err(FailureKind::NoConsumer)), ("b".to_owned(), Ok(b"2".to_vec()))];
        assert_eq!(finished(&mut calls), both);
        assert!(calls.are_over());
        assert_eq!(input_failure(&calls), Some(failure(FailureKind::NoConsumer)));
        assert_eq!(calls.unmade_call(argument("c")).attempts, 0);
    }

    #[test]
    fn a_call_that_cannot_be_made_has_waited_since_it_was_wanted() {
        let mut calls = calls(&[]);
        calls.lose_connection(false);
        let first = calls.last_deadline();
        std::thread::sleep(Duration::from_millis(2));
        calls.resume(Servers::UNKNOWN);
        calls.lose_connection(false);
        assert_eq!(calls.last_deadline(), first, "no other deadline for another attempt");
        // A call that is made has its own time, and so has the next one.
        calls.resume(Servers::UNKNOWN);
        calls.start(argument("b")).finish(Ok(Vec::new()));
        calls.lose_connection(false);
        assert_ne!(calls.last_deadline(), first);
        // What an idle client waited for was its input.
        let second = calls.last_deadline();
        std::thread::sleep(Duration::from_millis(2));
        calls.lose_connection(true);
        assert_ne!(calls.last_deadline(), second);
        std::thread::sleep(Duration::from_millis(2));
        calls.abort(&failure(FailureKind::NoConsumer));
        assert!(calls.unmade_call(argument("a")).elapsed >= Duration::from_millis(2));
    }
}
