//! The channel on which requests go out and replies come in, and where the client waits while it is connected.

use crate::amqp::confirms::{Confirmed, Confirms};
use crate::amqp::connection::OpenConnection;
use crate::amqp::consumer::{ConsumerError, CountedConsumer};
use crate::amqp::errors::{AmqpError, AmqpErrorKind};
use crate::amqp::inbox::Inbox;
use crate::amqp::inspector::Answer;
use crate::amqp::queue::QueueState;
use crate::cli;
use crate::client::call::Call;
use crate::client::calls::Calls;
use crate::client::deadline::Deadline;
use crate::client::destination::Destination;
use crate::client::diagnosis::{self, Diagnosis};
use crate::client::input::{Argument, Input};
use crate::client::pace::Servers;
use crate::client::reply::{Reading, Received};
use crate::client::retry::INTERVAL;
use crate::error::{Failure, FailureKind, ProgramError};
use crate::header;
use crate::protocol::Request;
use crate::signals::Stop;
use crate::terminal::text::{short, short_queue};
use amiquip::{
    Channel, Confirm, ConsumerOptions, Delivery, Error, FieldTable, QueueDeclareOptions, Return,
};
use crossbeam_channel::{Receiver, RecvError, after, at, never, select_biased};
use log::info;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is looked how many servers there are, while that keeps calls from being made.
const COUNT_EVERY: Duration = Duration::from_secs(1);

/// How long a broker may refuse all requests to an exchange before it is asked by another connection, at least and at most.
const LONGEST_REFUSAL: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(10)];

/// Why there is an end before the calls are over.
#[derive(Debug)]
pub enum Interrupted {
    /// A signal asks to stop.
    Stopped(Stop),
    /// There is no connection on which calls can be made, or not any more.
    Disconnected(Failure),
    /// Standard output takes nothing more.
    Output(ProgramError),
}

impl From<Failure> for Interrupted {
    fn from(failure: Failure) -> Interrupted {
        Interrupted::Disconnected(failure)
    }
}

impl From<AmqpError> for Interrupted {
    fn from(error: AmqpError) -> Interrupted {
        Interrupted::Disconnected(error.into())
    }
}

impl From<ProgramError> for Interrupted {
    fn from(error: ProgramError) -> Interrupted {
        Interrupted::Output(error)
    }
}

/// What the client has to deal with next.
pub enum Event {
    /// There is another call to make.
    Argument(Argument),
    /// Something came to the reply queue.
    Reply(Delivery),
    /// A request came back, since there is no queue for it (basic.return).
    Returned(Return),
    /// The broker says of requests whether it took them (publisher confirms).
    Confirmed(Confirmed),
    /// So many serve the queue, perhaps again, so that calls which were held can be made.
    Served(Servers),
    /// What the broker did not take may be taken now, or it is time for another attempt.
    Resend,
    /// There are no more arguments, or standard input cannot be read any more.
    InputEnded(Option<Failure>),
    /// There was no reply in time to the calls whose deadline had passed by then: this is why.
    TimedOut(Instant, Diagnosis),
}

/// A channel with an exclusive reply queue. Dropping it closes its connection. Its failures are those
/// of [`OpenConnection::classify`].
pub struct RpcChannel<'a> {
    args: &'a cli::Client,
    destination: Destination<'a>,
    /// What each request has of headers.
    headers: Option<FieldTable>,
    connection: &'a mut OpenConnection,
    channel: &'a Channel,
    reply_to: String,
    replies: CountedConsumer<'a>,
    returns: Receiver<Return>,
    confirms: Confirms,
    has_confirms: bool,
    input: &'a Input,
    stop: Receiver<Stop>,
    /// Whether a request was published on it.
    pub was_used: bool,
    /// Gets a message, once, when it is time to publish again what the broker refused.
    resend: Receiver<Instant>,
    /// Since when the broker has refused all requests.
    refused_since: Option<Instant>,
    /// The look at the queue that is under way.
    look: Option<Look>,
    /// Whether nobody served the queue when it was last known, and calls wait for it: it is looked at until somebody
    /// does.
    awaits_server: bool,
    /// When it was last looked how many servers there are.
    counted: Instant,
}

/// A question about the request queue that the broker has not answered yet.
struct Look {
    answer: Receiver<Answer>,
    /// Which calls the question is for, if calls are late: why there was no reply to them. Otherwise it is only whether
    /// somebody serves the queue again, or how many do.
    late: Option<Late>,
}

/// The calls whose deadline had passed `by` then. For them the question is given up when its own limit passes.
#[derive(Clone, Copy)]
struct Late {
    by: Instant,
    limit: Deadline,
}

impl<'a> RpcChannel<'a> {
    /// Declares a reply queue and consumes from it. With `has_confirms`, the broker confirms requests.
    pub fn open(
        args: &'a cli::Client,
        connection: &'a mut OpenConnection,
        channel: &'a Channel,
        has_confirms: bool,
        input: &'a Input,
        stop: Receiver<Stop>,
    ) -> Result<RpcChannel<'a>, Failure> {
        // Of each call a reply, and its request's return and confirm.
        let inbox = Arc::clone(connection.inbox());
        inbox.expect_at_most(3 * args.in_flight.most() as u64);
        check_headers(args, &inbox)?;
        let returns = connection.call(|| channel.listen_for_returns())?;
        let confirms = connection.call(|| Confirms::new(channel, &inbox, has_confirms))?;
        let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
        let reply_queue = connection.call(|| channel.queue_declare("", exclusive))?;
        let reply_to = reply_queue.name().to_owned();
        info!("queue {} declared: exclusive", short_queue(&reply_to));

        // A reply is of no use to anybody else, so there is nothing to acknowledge.
        let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
        let replies = connection.call(|| reply_queue.consume(no_ack))?;
        let replies = CountedConsumer::new(replies, &inbox);
        info!("consume from {}: replies, without ack", short_queue(&reply_to));

        // The attempt to connect is over, and its time limit with it.
        connection.set_call_timeout(Duration::MAX);
        Ok(RpcChannel {
            args,
            destination: Destination::of(args),
            headers: header::table(&args.headers),
            connection,
            channel,
            reply_to,
            replies,
            returns,
            confirms,
            has_confirms,
            input,
            stop,
            was_used: false,
            resend: never(),
            refused_since: None,
            look: None,
            awaits_server: false,
            counted: Instant::now(),
        })
    }

    /// Returns whether nothing has come yet, so that [`RpcChannel::next_event`] may have to wait.
    pub fn is_idle(&self) -> bool {
        self.replies.receiver().is_empty()
    }

    /// Publishes the request of a pending call. One whose time has run out is not published.
    pub fn publish(&mut self, call: &mut Call) -> Result<(), Failure> {
        let left = call.deadline.left();
        // One that comes back again so late would not be told from one that somebody has.
        let is_last_moment = call.came_back().is_some() && left.is_some_and(|left| left < INTERVAL);
        if !call.is_pending() || left == Some(Duration::ZERO) || is_last_moment {
            return Ok(());
        }
        self.was_used = true;
        call.begin_attempt(self.confirms.count_published());
        let request = Request {
            procedure: &self.args.procedure,
            argument: call.argument.body(),
            reply_to: Some(&self.reply_to),
            correlation_id: Some(&call.correlation_id),
            expiration: left,
            content_type: self.args.content_type.as_deref(),
            ..Request::default()
        };

        let (exchange, key) = self.destination.address(&call.argument);
        self.log_publish(&request, key);
        let channel = self.channel;
        let mut message = request.to_publish(key);
        if let Some(headers) = &self.headers {
            message.properties = message.properties.with_headers(headers.clone());
        }
        let publish = || channel.basic_publish(exchange, message);
        match left {
            // It may have to wait until the broker takes earlier ones, and a blocked one never does.
            Some(left) => self.connection.call_within(left.max(INTERVAL), publish),
            None => publish().map_err(|error| self.connection.classify(error)),
        }
        .map_err(|error| self.lost_channel(error))
    }

    fn log_publish(&self, request: &Request<'_>, key: &str) {
        let route: Cow<'_, str> = match self.destination {
            Destination::Queue(queue) => queue.into(),
            destination => format!("{destination}, routing key \"{key}\"").into(),
        };
        info!(
            "publish to {route}: {request}, reply_to {}, correlation_id {}",
            short_queue(&self.reply_to),
            short(request.correlation_id)
        );
    }

    /// Waits for what comes next. Replies come first: one that is there counts, whatever else there is.
    pub fn next_event(&mut self, calls: &Calls) -> Result<Event, Interrupted> {
        let (no_argument, no_answer) = (never(), never());
        loop {
            let input = match calls.want_input(self.connection.is_blocked()) {
                true => self.input.arguments(),
                false => &no_argument,
            };
            let (answer, alarm) = match &self.look {
                None => (&no_answer, calls.deadline()),
                Some(Look { answer, late: None }) => (answer, calls.deadline()),
                Some(Look { answer, late: Some(late) }) => (answer, late.limit),
            };
            let next_look = match self.look {
                None if self.awaits_server => after(INTERVAL),
                None if self.destination.queue().is_some() && calls.want_servers() => {
                    at(self.counted + COUNT_EVERY)
                }
                _ => never(),
            };
            let due = calls.next_due().map_or_else(never, at);
            select_biased! {
                recv(self.stop) -> stop => match stop {
                    Ok(stop) => return Err(Interrupted::Stopped(stop)),
                    Err(RecvError) => self.stop = never(),
                },
                recv(self.replies.receiver()) -> message => {
                    let delivery = self.replies.take(message);
                    return Ok(Event::Reply(delivery.map_err(|error| self.lost_replies(error))?));
                }
                recv(self.returns) -> returned => {
                    self.awaits_server |= self.args.wait;
                    return Ok(Event::Returned(self.connection.returned(returned)?));
                }
                recv(self.confirms.receiver()) -> confirm => return match confirm {
                    Ok(confirm) => Ok(Event::Confirmed(self.confirmed(confirm))),
                    Err(RecvError) => Err(self.connection.classify(Error::EventLoopDropped).into()),
                },
                recv(self.resend) -> _ => {
                    self.check_refusals(calls)?;
                    return Ok(Event::Resend);
                }
                recv(due) -> _ => return Ok(Event::Resend),
                recv(self.connection.blocked_notifications()) -> notification => {
                    self.connection.set_blocked(notification)?;
                }
                recv(answer) -> answer => {
                    let answer = answer.ok().map(|answer| answer.map_err(Failure::from));
                    if let Some(event) = self.looked(answer, calls)? {
                        return Ok(event);
                    }
                }
                recv(alarm.receiver()) -> _ => if let Some(event) = self.is_late(calls)? {
                    return Ok(event);
                },
                recv(next_look) -> _ => match self.destination.queue() {
                    Some(queue) => {
                        self.counted = Instant::now();
                        self.look = self.ask(queue, None);
                    }
                    // Only another attempt can tell.
                    None => return Ok(self.served(Servers::UNKNOWN)),
                },
                recv(input) -> argument => return Ok(match argument {
                    Ok(Ok(argument)) => Event::Argument(argument),
                    Ok(Err(failure)) => Event::InputEnded(Some(failure)),
                    Err(RecvError) => Event::InputEnded(None),
                }),
            }
        }
    }

    /// Takes a confirm. After an ack, the broker does not refuse all requests.
    fn confirmed(&mut self, confirm: Confirm) -> Confirmed {
        let confirmed = self.confirms.take(confirm);
        if confirmed.is_ack {
            self.refused_since = None;
        }
        confirmed
    }

    /// Asks for [`Event::Resend`] when there may be room for what the broker refused.
    pub fn resend_later(&mut self) {
        self.refused_since.get_or_insert_with(Instant::now);
        self.resend = after(INTERVAL);
    }

    /// Gives the connection up if the broker refuses all that goes to an exchange, and goes on to. It may be this channel's
    /// fault: RabbitMQ 3.10 refuses, for as long as the channel is there, what it publishes to a quorum queue whose leader
    /// was lost before the first request. No reply is lost, since none is on its way.
    fn check_refusals(&mut self, calls: &Calls) -> Result<(), Failure> {
        let Some(since) = self.refused_since else { return Ok(()) };
        if self.destination.queue().is_some() || calls.pending_calls().any(|call| !call.is_unsent) {
            self.refused_since = None;
            return Ok(());
        }
        let oldest = calls.pending_calls().next();
        let age = oldest.map_or(Duration::ZERO, |call| call.started.elapsed());
        match since.elapsed() < longest_refusal(age) {
            true => Ok(()),
            false => Err(Failure { kind: FailureKind::ConnectionLost, ..self.refusal() }),
        }
    }

    /// Returns the failure that there is no queue for a request that came back.
    pub fn unroutable(&self, request: &Return) -> Failure {
        let key = &request.routing_key;
        diagnosis::unroutable(self.connection, self.destination, key, self.args.wait)
    }

    /// Takes the replies that are there, before the channel is given up: their calls are answered.
    pub fn take_arrived(&self, calls: &mut Calls) {
        // No more than that: others may come without end.
        for _ in 0..self.replies.receiver().len() {
            let message = self.replies.receiver().recv();
            let Ok(delivery) = self.replies.take(message) else { return };
            match calls.pending(delivery.properties.correlation_id()) {
                Some(call) => call.finish_with(self.read(delivery)),
                None => calls.discard(delivery.properties.correlation_id()),
            }
        }
    }

    /// Reads a reply as the options say.
    pub fn read(&self, reply: Delivery) -> Received {
        Reading::new(self.args).read(&reply.properties, reply.body)
    }

    /// Asks for the state of the queue. None if the broker still owes the answer to an earlier question.
    fn ask(&self, queue: &str, late: Option<Late>) -> Option<Look> {
        let answer = self.connection.inspector().ask(queue)?;
        Some(Look { answer, late })
    }

    /// Takes it that a deadline has passed: of calls, so that the question is why; or of that question.
    fn is_late(&mut self, calls: &Calls) -> Result<Option<Event>, Failure> {
        if let Some(Look { late: Some(_), .. }) = self.look {
            return self.looked(None, calls);
        }

        let by = Instant::now();
        if let Some(error) = self.connection.blocked() {
            let diagnosis = Diagnosis::blocked(&error.into(), self.args.timeout);
            return Ok(Some(Event::TimedOut(by, diagnosis)));
        }

        let Some(queue) = self.destination.queue() else {
            let (destination, others) = (self.destination, others(calls));
            let diagnosis =
                diagnosis::timed_out_unseen(self.args, destination, self.has_confirms, others);
            return Ok(Some(Event::TimedOut(by, diagnosis)));
        };
        let late = Some(Late { by, limit: Deadline::after(diagnosis::LIMIT) });
        self.look = match self.look.take() {
            // The question is another one, and the answer is the same.
            Some(Look { answer, .. }) => Some(Look { answer, late }),
            None => self.ask(queue, late),
        };

        match self.look {
            Some(_) => Ok(None),
            None => Ok(Some(self.timed_out(queue, by, None, calls))),
        }
    }

    /// Ends the look at the queue: with an answer, or without.
    fn looked(
        &mut self,
        answer: Option<Result<QueueState, Failure>>,
        calls: &Calls,
    ) -> Result<Option<Event>, Failure> {
        // Only a queue is looked at.
        let queue = self.destination.queue().unwrap_or_default();
        if let Some(Look { late: Some(Late { by, .. }), .. }) = self.look.take() {
            return Ok(Some(self.timed_out(queue, by, answer, calls)));
        }
        let servers = match answer {
            Some(Ok(state)) if state.consumers > 0 => state.into(),
            Some(Err(failure)) if self.awaits_server => match failure.kind {
                // channel_max allows one channel only. A request will show it.
                FailureKind::Configuration => Servers::UNKNOWN,
                // Of a lost connection, whoever waits for replies is told.
                FailureKind::QueueMissing | FailureKind::ConnectionLost => return Ok(None),
                _ => return Err(failure),
            },
            // It is not worth more than the calls that are under way.
            _ => return Ok(None),
        };

        Ok(Some(self.served(servers)))
    }

    /// Lets held calls go on, and those go out again that came back.
    fn served(&mut self, servers: Servers) -> Event {
        if std::mem::take(&mut self.awaits_server) {
            self.resend = after(Duration::ZERO);
        }
        Event::Served(servers)
    }

    fn timed_out(
        &mut self,
        queue: &str,
        by: Instant,
        answer: Option<Result<QueueState, Failure>>,
        calls: &Calls,
    ) -> Event {
        let answer = answer.unwrap_or_else(|| {
            // The connection is worth keeping for the calls that are under way on it.
            let keep = calls.pending_calls().any(|call| !call.deadline.has_passed(by));
            Err(match keep {
                true => diagnosis::no_answer(self.connection),
                false => self.connection.abort().into(),
            })
        });
        let (has_confirms, others) = (self.has_confirms, others(calls));
        let diagnosis = diagnosis::timed_out(self.args, queue, answer, has_confirms, others);
        let waits = self.args.wait || self.args.retries > 0;
        self.awaits_server |= waits && diagnosis.is_unserved;
        Event::TimedOut(by, diagnosis)
    }

    /// Returns the failure that the broker refused a request.
    pub fn refusal(&self) -> Failure {
        let (name, destination) = (self.connection.name(), self.destination);
        let full = match destination {
            Destination::Queue(_) => destination.to_string(),
            Destination::Exchange(_) => format!("a queue of {destination}"),
        };
        let message = format!("{name} refused a request: {full} may be full");
        Failure::new(FailureKind::Blocked, message)
    }

    fn lost_replies(&mut self, error: ConsumerError) -> Failure {
        match error {
            ConsumerError::Amiquip(error) => {
                let error = self.connection.classify(error);
                self.lost_channel(error)
            }
            ConsumerError::QueueDeleted => {
                let message = format!("{} deleted the reply queue", self.connection.name());
                Failure::new(FailureKind::ConnectionLost, message)
            }
        }
    }

    /// Returns the failure that the channel or its connection has ended. It ends too if it publishes to an exchange that was
    /// deleted.
    fn lost_channel(&self, error: AmqpError) -> Failure {
        match (error.kind, self.destination) {
            (AmqpErrorKind::QueueMissing, Destination::Exchange(exchange)) => {
                diagnosis::no_exchange(self.connection, exchange, self.args.wait)
            }
            _ => error.into(),
        }
    }
}

/// Makes sure that the headers of a request fit into the broker's largest frame: one that they do not fit into would end
/// the connection.
fn check_headers(args: &cli::Client, inbox: &Inbox) -> Result<(), Failure> {
    let (size, most) = (header::size(&args.headers), inbox.headers_max());
    if size <= most {
        return Ok(());
    }
    let message = format!(
        "the headers have {size} bytes, and the broker's frames have room for {most}: send less by --header, or raise \
         the broker's frame_max"
    );
    Err(Failure::new(FailureKind::Configuration, message))
}

/// Returns how long a broker may refuse all requests where the oldest call has this `age`. Most likely a queue is full: then
/// all its clients ask by other connections, and the longer it is, the more rarely.
fn longest_refusal(age: Duration) -> Duration {
    let [least, most] = LONGEST_REFUSAL;
    (age / 2).clamp(least, most)
}

/// Returns how many calls await replies beside one that is late.
fn others(calls: &Calls) -> usize {
    calls.pending_calls().count().saturating_sub(1)
}

/// The connection is closed before the consumer is dropped, which would wait for an answer of its own.
impl Drop for RpcChannel<'_> {
    fn drop(&mut self) {
        self.connection.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_connections_for_refused_calls_become_rarer() {
        let seconds = |age| longest_refusal(Duration::from_secs(age)).as_secs();
        assert_eq!([0, 2, 4, 10, 20, 600].map(seconds), [2, 2, 2, 5, 10, 10]);
    }
}
