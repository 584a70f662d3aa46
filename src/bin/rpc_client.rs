//! The client of RabbitMQ's tutorial six: publishes requests, then blocks on its exclusive reply
//! queue until the replies with their correlation ids come; others are discarded.
//!
//! `converse` is the tutorial's part. Around it, `run` opens a connection again when one is
//! lost, and calls that were not answered go out again.

use amiquip::{
    Channel, Confirm, ConsumerMessage, ConsumerOptions, Delivery, QueueDeclareOptions, Return,
};
use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, TryRecvError, after, at, never, select_biased};
use fib_rpc::amqp::connection::{Session, confirm_mode, covers, size_limit};
use fib_rpc::amqp::uri::{self, Endpoint};
use fib_rpc::cli;
use fib_rpc::cli::Format;
use fib_rpc::client::calls::{Batch, Call};
use fib_rpc::client::diagnosis;
use fib_rpc::client::input::{self, Argument};
use fib_rpc::client::report::Report;
use fib_rpc::client::retry::{INTERVAL, Patience};
use fib_rpc::error::{Failure, Kind};
use fib_rpc::process::signals::{self, Stop};
use fib_rpc::program;
use fib_rpc::protocol::{MAX_BODY, Reply, Request};
use fib_rpc::terminal::text::{count, excerpt, short, short_queue};
use log::{info, warn};
use std::cell::Cell;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};
use uuid::Uuid;

const PROGRAM: &str = "rpc_client";

/// How long it may take, asked to stop, to come to an end: it may be waiting for a broker, or for
/// whoever reads its output.
const STOP_LIMIT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    program::main(PROGRAM, run)
}

fn run(args: &cli::Client) -> Result<ExitCode> {
    let brokers = uri::parse_list(args.common.url())?;
    let mut calls = Calls::new(args)?;
    let mut patience = Patience::new(args.wait, args.timeout, calls.deadline_of_one_made_now());
    loop {
        let reached = match reach(args, &brokers, &patience, &mut calls)? {
            Ok(reached) => reached,
            Err(failure) => return calls.end_by(&patience.spent(failure)),
        };
        let began = Instant::now();
        let Err(error) = converse(reached, &mut calls, brokers.len() > 1) else { break };
        calls.waiting_since = Instant::now();
        if let Some(stop) = error.downcast_ref::<Stop>() {
            calls.report.end()?;
            return Ok(stop.end_process());
        }
        // Other errors, and internal ones, are those of standard input or output: no more calls
        // can be made.
        let failure = error.downcast::<Failure>()?;
        match failure.kind {
            Kind::Internal => return Err(failure.into()),
            // A new connection would be refused in the same way.
            Kind::AccessRefused | Kind::Configuration => return calls.end_by(&failure),
            Kind::Blocked if calls.await_nothing() => return calls.end_by(&failure),
            Kind::TooLarge => calls.fail_too_large(&failure),
            _ if args.no_retry => calls.fail(&failure),
            _ => patience.tell(&failure, began.elapsed()),
        }
        if calls.settle()? {
            break;
        }
        patience.pause(calls.last_deadline(), calls.stop()?);
        // There may have been no connection that held until their time was up.
        let late = patience.late(&failure);
        calls.give_up(&late);
        if calls.settle()? {
            break;
        }
        // A broker takes its time to come back, and so does a server; the calls' own time limit
        // is what counts.
        patience.wait_until(calls.last_deadline());
        if patience.left().is_zero() {
            return calls.end_by(&late);
        }
    }
    calls.report.end()
}

/// A connection to a broker, and a channel on it, once the request queue has a consumer. Calls whose
/// time runs out before that are told.
fn reach(
    args: &cli::Client,
    brokers: &[Endpoint],
    patience: &Patience,
    calls: &mut Calls<'_>,
) -> Result<Result<(Session, Channel), Failure>> {
    let mut kept = None;
    let attempt = || {
        // Enough for a last attempt that tells what is wrong.
        let left = patience.left().max(5 * INTERVAL);
        let mut session = match kept.take() {
            Some(session) => session,
            None => Session::open_within(left, brokers, args.common.connect_timeout, PROGRAM)?,
        };
        // For the declares to come, too.
        session.hurry(left);
        match diagnosis::served(&mut session, &args.common.queue, patience.waits()) {
            Ok(channel) => Ok((session, channel)),
            Err(failure) => {
                kept = (failure.kind != Kind::ConnectionLost).then_some(session);
                Err(failure)
            }
        }
    };
    patience.retry(attempt, |failure| {
        calls.give_up(&patience.late(failure));
        calls.settle().map(drop)
    })
}

/// The tutorial's client, on one connection: declares the reply queue, publishes, and receives
/// until there is nothing more to call (`Ok`) or something breaks.
fn converse(
    (mut session, channel): (Session, Channel),
    calls: &mut Calls<'_>,
    in_cluster: bool,
) -> Result<()> {
    // Of each call a reply, and its request's return and confirm.
    session.inbox().expect_at_most(3 * u64::from(calls.args.in_flight));
    let returns = session.ask(|| channel.listen_for_returns())?;
    let confirms = match in_cluster {
        // There, the node that took a request can die before it has passed it on.
        true => session.ask(|| confirm_mode(&channel))?,
        false => never(),
    };
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let reply_queue = session.ask(|| channel.queue_declare("", exclusive))?;
    info!("queue {} declared: exclusive", short_queue(reply_queue.name()));
    // A reply is of no use to anybody else, so there is nothing to acknowledge.
    let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
    let consumer = session.ask(|| reply_queue.consume(no_ack))?;
    info!("consume from {}: replies, without ack", short_queue(reply_queue.name()));
    let line = Line {
        channel: &channel,
        reply_to: reply_queue.name(),
        replies: consumer.receiver(),
        returns,
        confirms,
        in_cluster,
        published: Cell::new(0),
    };
    let stop = calls.stop()?;
    let ended = line.exchange(&mut session, calls, &stop);
    // Before channel and consumer are dropped: each would wait for an answer of its own.
    session.close();
    ended
}

/// What requests go out on and replies come in by.
struct Line<'a> {
    channel: &'a Channel,
    reply_to: &'a str,
    replies: &'a Receiver<ConsumerMessage>,
    returns: Receiver<Return>,
    confirms: Receiver<Confirm>,
    in_cluster: bool,
    /// How many requests went out, which is how publisher confirms count them.
    published: Cell<u64>,
}

impl Line<'_> {
    fn exchange(
        &self,
        session: &mut Session,
        calls: &mut Calls<'_>,
        stop: &Receiver<Stop>,
    ) -> Result<()> {
        calls.next_deadline = None;
        // When what the broker refused goes out again.
        let mut again = never();
        // What an earlier connection left unanswered.
        for call in calls.batch.awaited() {
            self.publish(session, calls.args, call)?;
        }
        loop {
            calls.tell_done()?;
            if calls.are_over() {
                return Ok(());
            }
            if self.replies.is_empty() {
                calls.report.flush()?;
            }
            // A blocked broker would only collect requests whose time runs out. (One at a time
            // still goes, for its time to run out.)
            let nothing = never();
            let open = calls.batch.is_empty() || session.blocked().is_none();
            let input = match open && !calls.input_ended && calls.batch.has_room() {
                true => &calls.input,
                false => &nothing,
            };
            let timeout = calls.batch.deadline().map_or_else(never, at);
            // Replies first: one that has come counts, whatever came after it.
            select_biased! {
                recv(stop) -> stop => {
                    // There may be no time for it after the connection is closed.
                    calls.report.flush()?;
                    return Err(stop?.into());
                }
                recv(self.replies) -> message => match message {
                    Ok(ConsumerMessage::Delivery(delivery)) => {
                        session.inbox().taken();
                        calls.answered(delivery);
                    }
                    Ok(ConsumerMessage::ServerClosedChannel(error)) => {
                        return Err(session.explain(error).into());
                    }
                    Ok(ConsumerMessage::ServerCancelled) => {
                        let message = format!("{} deleted the reply queue", session.endpoint());
                        return Err(Failure::new(Kind::ConnectionLost, message).into());
                    }
                    _ => return Err(session.lost().into()),
                },
                recv(self.returns) -> returned => {
                    let message = returned.map_err(|_| session.lost())?;
                    session.inbox().taken();
                    let id = message.properties.correlation_id().as_deref();
                    let (code, text) = (message.reply_code, &message.reply_text);
                    info!("return: {code} {text}, correlation_id {}", short(id));
                    let args = calls.args;
                    if let Some(call) = calls.batch.find(id) {
                        call.end(Err(diagnosis::no_queue(session, &args.common.queue, args.wait)));
                    }
                }
                recv(self.confirms) -> confirm => {
                    let confirm = confirm.map_err(|_| session.lost())?;
                    session.inbox().taken();
                    if calls.confirmed(confirm, session.endpoint()) {
                        again = after(INTERVAL);
                    }
                }
                recv(again) -> _ => {
                    again = never();
                    for call in calls.batch.awaited().filter(|call| call.refused) {
                        self.publish(session, calls.args, call)?;
                    }
                }
                recv(session.notices()) -> notice => {
                    let notice = notice.map_err(|_| session.lost())?;
                    session.note(notice);
                }
                recv(timeout) -> _ => {
                    let args = calls.args;
                    let mut failure =
                        diagnosis::timed_out(session, &args.common.queue, args.timeout, self.in_cluster);
                    if calls.discarded > 0 {
                        let replies = count(calls.discarded, "reply", "replies");
                        failure.message += &format!("; {replies} came that no call awaits");
                    }
                    calls.give_up(&failure);
                    // The next call would have to wait as long.
                    if failure.kind == Kind::Blocked && calls.await_nothing() {
                        return Err(failure.into());
                    }
                }
                recv(input) -> argument => match argument {
                    Ok(argument) => {
                        let args = calls.args;
                        let call = calls.begin(argument.context("cannot read standard input")?)?;
                        if call.outcome.is_none() {
                            self.publish(session, args, call)?;
                        }
                    }
                    Err(_) => calls.input_ended = true,
                },
            }
        }
    }

    fn publish(
        &self,
        session: &mut Session,
        args: &cli::Client,
        call: &mut Call,
    ) -> Result<(), Failure> {
        let left = call.deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            // Nobody waits for the answer any more: `exchange` is about to tell.
            return Ok(());
        }
        call.attempts += 1;
        call.refused = false;
        self.published.set(self.published.get() + 1);
        call.unconfirmed = Some(self.published.get());
        // A new id for each attempt: a late reply to an earlier one is a duplicate.
        call.correlation_id = Uuid::new_v4().to_string();
        let request = Request {
            procedure: &args.procedure,
            argument: &call.argument,
            reply_to: Some(self.reply_to),
            correlation_id: Some(&call.correlation_id),
            expiration: left,
        };
        let queue = &args.common.queue;
        info!(
            "publish to {queue}: {request}, reply_to {}, correlation_id {}",
            short_queue(self.reply_to),
            short(request.correlation_id)
        );
        let publish = || self.channel.basic_publish("", request.to_publish(queue));
        match left {
            // It may have to wait until the broker takes earlier ones, and a blocked one never does.
            Some(left) => session.within(left.max(INTERVAL), publish),
            None => publish().map_err(|error| session.explain(error)),
        }
    }
}

/// The calls from input to output.
struct Calls<'a> {
    args: &'a cli::Client,
    input: Receiver<io::Result<Argument>>,
    input_ended: bool,
    batch: Batch,
    /// The largest body that the broker takes, as far as is known.
    max_body: usize,
    /// The deadline of a call that could not be made yet, since no connection was good enough.
    next_deadline: Option<Option<Instant>>,
    /// Since when calls that are not made yet wait for a connection.
    waiting_since: Instant,
    /// Replies that no call awaited.
    discarded: u32,
    /// Whether it was told that the broker refuses requests.
    told_refusal: bool,
    report: Report<'a>,
    stop: Option<Receiver<Stop>>,
}

impl<'a> Calls<'a> {
    fn new(args: &'a cli::Client) -> Result<Calls<'a>> {
        let input = input::arguments(&args.arguments, args.repeat);
        Ok(Calls {
            args,
            input: input.context("cannot read the arguments")?,
            input_ended: false,
            batch: Batch::new(args.in_flight.into()),
            max_body: MAX_BODY,
            next_deadline: None,
            waiting_since: Instant::now(),
            discarded: 0,
            told_refusal: false,
            report: Report::new(PROGRAM, args),
            stop: None,
        })
    }

    /// Signals. Until calls are made there is nothing to bring to an end: the first one ends the
    /// process then.
    fn stop(&mut self) -> Result<Receiver<Stop>, Failure> {
        match &self.stop {
            Some(stop) => Ok(stop.clone()),
            None => Ok(self.stop.insert(signals::stop_requests(Some(STOP_LIMIT))?).clone()),
        }
    }

    /// Whether every call was made, and its outcome told.
    fn are_over(&self) -> bool {
        self.input_ended && self.batch.is_empty()
    }

    /// Whether no call awaits an answer.
    fn await_nothing(&mut self) -> bool {
        self.batch.awaited().next().is_none()
    }

    /// A call with this argument that was `started` then.
    fn call(&self, argument: Argument, started: Instant) -> Call {
        Call {
            argument: argument.bytes,
            line: argument.line,
            started,
            ended: started,
            deadline: self.deadline_of_one_made_now(),
            attempts: 0,
            correlation_id: String::new(),
            unconfirmed: None,
            refused: false,
            outcome: None,
        }
    }

    /// Adds a call with this argument, to be published unless it has an outcome already.
    fn begin(&mut self, argument: Argument) -> Result<&mut Call> {
        let size = argument.bytes.len();
        let mut call = self.call(argument, Instant::now());
        self.report.begins(&call)?;
        let most = self.max_body;
        if size > most {
            let message =
                format!("the argument has more than the {most} bytes that a broker takes");
            call.end(Err(Failure::new(Kind::TooLarge, message)));
        }
        Ok(self.batch.push(call))
    }

    fn deadline_of_one_made_now(&self) -> Option<Instant> {
        (self.args.timeout > Duration::ZERO).then(|| Instant::now() + self.args.timeout)
    }

    /// When nobody waits any more: of the calls that are made, or else of the next one, as if it had
    /// been made when this was asked first.
    fn last_deadline(&mut self) -> Option<Instant> {
        let last = self.batch.awaited().last().map(|call| call.deadline);
        let next = self.deadline_of_one_made_now();
        last.unwrap_or_else(|| *self.next_deadline.get_or_insert(next))
    }

    /// Takes a reply, if it is one that a call awaits.
    fn answered(&mut self, delivery: Delivery) {
        let id = delivery.properties.correlation_id().as_deref();
        let Some(call) = self.batch.find(id) else {
            info!("discard a reply: correlation_id {} is not awaited", short(id));
            self.discarded = self.discarded.saturating_add(1);
            return;
        };
        call.end(Reply::decode(&delivery.properties, delivery.body).and_then(|reply| {
            info!("reply: {}, correlation_id {}", reply.kind(), short(id));
            reply.outcome.map_err(|error| Failure::new(error.kind.into(), error.message))
        }));
    }

    /// Takes note of what the broker says of requests. Whether it refused some that go out again.
    fn confirmed(&mut self, confirm: Confirm, endpoint: &str) -> bool {
        let (about, is_taken) = match confirm {
            Confirm::Ack(about) => (about, true),
            Confirm::Nack(about) => (about, false),
        };
        let mut go_again = false;
        for call in self.batch.awaited() {
            if !call.unconfirmed.is_some_and(|number| covers(&about, number)) {
                continue;
            }
            call.unconfirmed = None;
            if is_taken {
                continue;
            }
            let queue = &self.args.common.queue;
            let message =
                format!("{endpoint} refused a request: the queue \"{queue}\" may be full");
            if self.args.no_retry {
                call.end(Err(Failure::new(Kind::Blocked, message)));
                continue;
            }
            if !std::mem::replace(&mut self.told_refusal, true) {
                warn!("{message}; trying again");
            }
            call.refused = true;
            go_again = true;
        }
        go_again
    }

    /// Gives up the calls whose time has run out.
    fn give_up(&mut self, failure: &Failure) {
        let now = Instant::now();
        for call in self.batch.awaited().filter(|call| call.deadline.is_some_and(|d| d <= now)) {
            call.end(Err(failure.clone()));
        }
    }

    /// Gives up all calls that await an answer.
    fn fail(&mut self, failure: &Failure) {
        for call in self.batch.awaited() {
            call.end(Err(failure.clone()));
        }
    }

    /// Gives up the calls that are too large for the broker. The others lost their connection to them.
    fn fail_too_large(&mut self, failure: &Failure) {
        let largest = self.batch.awaited().map(|call| call.argument.len()).max();
        let smaller = largest.unwrap_or_default().saturating_sub(1);
        let most = size_limit(failure).unwrap_or(smaller);
        self.max_body = most;
        for call in self.batch.awaited().filter(|call| call.argument.len() > most) {
            call.end(Err(failure.clone()));
        }
        if self.args.no_retry {
            self.fail(&Failure::new(Kind::ConnectionLost, failure.message.as_str()));
        }
    }

    /// Tells the outcomes whose turn it is.
    fn tell_done(&mut self) -> Result<()> {
        while let Some((call, outcome)) = self.batch.pop_done() {
            self.report.tell(&call, &outcome)?;
        }
        Ok(())
    }

    /// Tells what is done. Whether that was all.
    fn settle(&mut self) -> Result<bool> {
        self.tell_done()?;
        self.report.flush()?;
        Ok(self.are_over())
    }

    /// No more calls can be made, because of `failure`: it is the outcome of those that await
    /// one, and of the program if there are more to come.
    fn end_by(mut self, failure: &Failure) -> Result<ExitCode> {
        self.fail(failure);
        self.tell_done()?;
        let has_begun = self.report.has_begun();
        let mut is_untold = !has_begun;
        // One object a call, made or not, and as many in the statistics. Lines of standard input that
        // may never come are none.
        let is_json = self.args.format == Format::Json;
        if (is_json || self.args.stats) && !input::reads_stdin(&self.args.arguments) {
            for argument in self.input.clone() {
                let mut call = self.call(argument?, self.waiting_since);
                call.ended = Instant::now();
                self.report.not_made(&call, &Err(failure.clone()))?;
                is_untold = !is_json;
            }
        }
        if is_untold || !matches!(self.input.try_recv(), Err(TryRecvError::Disconnected)) {
            let what = match has_begun {
                true => "no more calls are made".into(),
                false => excerpt(self.args.procedure.as_bytes()),
            };
            self.report.complain(format_args!("{what}: {failure}"));
            self.report.count(failure.kind);
        }
        self.report.end()
    }
}
