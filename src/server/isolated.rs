//! Replies that may be deadly: each is published on a connection of its own.
//!
//! A reply can make the broker end the connection with an error: RabbitMQ 3.10 does so for any broken name that
//! begins with `amq.rabbitmq.reply-to.`. Its request comes again, and its next reply would end the next connection, so
//! that no other request would be answered any more. So the replies to all requests that were in hand when a broker ended
//! a connection so go out apart, one at a time, when they come again: there such a reply does no harm, and it is known
//! whose it was.

use crate::amqp::backoff::Backoff;
use crate::amqp::client_properties::ClientProperties;
use crate::amqp::confirms::Confirms;
use crate::amqp::connection::OpenConnection;
use crate::amqp::errors::{self, AmqpError, AmqpErrorKind};
use crate::amqp::inspector::Answer;
use crate::amqp::queue;
use crate::amqp::uri::Endpoint;
use crate::error::{Failure, FailureKind};
use crate::metrics::DropReason;
use crate::mutex::lock;
use crate::protocol::{Reply, Request};
use crate::server::callers::{GoneCallers, is_direct_reply_to};
use crate::server::observer::Observer;
use crate::terminal::text::short_queue;
use amiquip::{Channel, Error, Publish};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use log::{Level, debug, info, warn};
use std::collections::HashMap;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

/// How many connections of its own a reply has to end until it is known as deadly.
const DEADLY: u32 = 2;

/// How often whoever waits before another attempt asks whether he still has to.
const PAUSE_LOOK: Duration = Duration::from_millis(20);

/// How often whoever waits for a confirm asks whether he still has to.
const CONFIRM_LOOK: Duration = Duration::from_millis(100);

/// What became of a reply in the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settled {
    /// The broker has it or refused it, or it was dropped since it ends each connection.
    Done,
    /// The broker takes no body as large as that.
    TooLarge {
        /// The largest body that it takes, in bytes.
        limit: usize,
    },
    /// Whoever published it needs to wait no longer.
    GivenUp,
}

/// What became of one attempt to publish a reply.
enum Sent {
    /// The broker has it, or refused it: its queue is full, or its node is gone.
    Confirmed,
    /// The broker ended the connection with an error.
    Deadly(Failure),
    /// Something else kept it from going out, of which the reply is not to blame.
    Failed(Failure),
    /// Whoever published it needs to wait no longer.
    GivenUp,
}

/// What is known of a reply queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplyQueue {
    /// Somebody may await a reply there.
    MayBeThere,
    /// It is gone, and nobody does.
    Gone {
        /// Whether that was not known before.
        is_news: bool,
    },
}

/// How long what a look at a reply queue told is taken to hold: many requests of one client can come again at once.
const FRESH: Duration = Duration::from_secs(1);

/// How many reply queues are remembered.
const QUEUES_MAX: usize = 1024;

/// The one connection of a server for such replies. There is none as long as there is no such reply.
#[derive(Debug)]
pub struct Isolated {
    properties: ClientProperties,
    observer: Observer,
    looks: Mutex<Looks>,
}

/// The last look at each reply queue: when it was, and whether the queue was gone then.
#[derive(Debug, Default)]
struct Looks(HashMap<String, (Instant, bool)>);

impl Looks {
    /// Returns whether a queue is gone, as far as a look of late tells.
    fn is_gone(&self, queue: &str) -> Option<bool> {
        let (at, is_gone) = self.0.get(queue)?;
        (at.elapsed() < FRESH).then_some(*is_gone)
    }

    fn insert(&mut self, queue: &str, at: Instant, is_gone: bool) {
        if self.0.len() >= QUEUES_MAX {
            self.0.clear();
        }
        self.0.insert(queue.into(), (at, is_gone));
    }
}

impl Isolated {
    /// Makes none yet. When there is one, the broker is told these properties.
    pub fn new(properties: ClientProperties, observer: Observer) -> Isolated {
        Isolated { properties, observer, looks: Mutex::default() }
    }

    /// Publishes the reply to `request` on connections of its own, to the first of `endpoints` that accepts one, as often
    /// as it takes until the broker has it, or has ended two of these for it, or `is_over`.
    pub fn publish(
        &self,
        endpoints: &[Endpoint],
        connect_timeout: Duration,
        (request, reply_to, reply): (&Request<'_>, &str, &Reply),
        is_over: &dyn Fn() -> bool,
    ) -> Settled {
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
        let (mut ended, mut is_told) = (0, false);
        while !is_over() {
            let reply = reply.to_publish(reply_to);
            match self.publish_once(endpoints, connect_timeout, reply, is_over) {
                Sent::Confirmed => return Settled::Done,
                Sent::Deadly(failure) => {
                    ended += 1;
                    if ended == DEADLY {
                        let queue = short_queue(reply_to);
                        let what = format_args!(
                            "{request} dropped: its reply to {queue} ends each connection ({failure})"
                        );
                        self.observer.dropped(DropReason::DeadlyReply, Level::Warn, what);
                        return Settled::Done;
                    }
                }
                Sent::Failed(Failure { kind: FailureKind::TooLarge { limit }, .. }) => {
                    return Settled::TooLarge { limit };
                }
                Sent::Failed(failure) => {
                    if !is_told {
                        warn!("the reply to {request} waits: {failure}");
                    }
                    is_told = true;
                    pause(backoff.delay(), is_over);
                }
                Sent::GivenUp => {}
            }
        }
        Settled::GivenUp
    }

    fn publish_once(
        &self,
        endpoints: &[Endpoint],
        connect_timeout: Duration,
        reply: Publish<'_>,
        is_over: &dyn Fn() -> bool,
    ) -> Sent {
        let _one_at_a_time = self.lock();
        if is_over() {
            return Sent::GivenUp;
        }
        let (mut connection, channel) = match open(endpoints, connect_timeout, &self.properties) {
            Ok(opened) => opened,
            Err(failure) => return Sent::Failed(failure),
        };
        let sent = publish_on(&mut connection, &channel, reply, is_over);
        // Before the channel is dropped, which would wait for an answer of its own.
        connection.close();
        sent
    }

    /// Returns whether the broker at `endpoint` says that there is no such queue, so that nobody awaits a reply there. Such
    /// a caller is added to those that are `gone`.
    pub fn look(
        &self,
        endpoint: &Endpoint,
        connect_timeout: Duration,
        reply_to: &str,
        gone: &GoneCallers,
    ) -> ReplyQueue {
        // To look at such a name can be as deadly as to publish to it.
        if is_direct_reply_to(reply_to) {
            return ReplyQueue::MayBeThere;
        }
        let mut looks = self.lock();
        match looks.is_gone(reply_to) {
            Some(true) => return ReplyQueue::Gone { is_news: false },
            Some(false) => return ReplyQueue::MayBeThere,
            None => {}
        }

        let endpoints = slice::from_ref(endpoint);
        let opened = open(endpoints, connect_timeout, &self.properties).ok();
        let looked = opened.map(|(mut connection, channel)| {
            let looked = queue::inspect(&mut connection, &channel, reply_to);
            connection.close();
            looked
        });
        let is_gone = matches!(looked, Some(Err(error)) if queue::is_gone(&error));
        let now = Instant::now();
        looks.insert(reply_to, now, is_gone);
        match is_gone {
            true => ReplyQueue::Gone { is_news: gone.insert(reply_to, now) },
            false => ReplyQueue::MayBeThere,
        }
    }

    /// Returns who looks at queues of that broker apart, without a connection yet.
    pub fn inspector(&self, endpoint: &Endpoint, connect_timeout: Duration) -> IsolatedInspector {
        let (endpoint, properties) = (endpoint.clone(), self.properties.clone());
        IsolatedInspector { endpoint, connect_timeout, properties, questions: None }
    }

    fn lock(&self) -> MutexGuard<'_, Looks> {
        lock(&self.looks)
    }
}

/// How long a connection for looks is kept that nobody needs.
const KEPT: Duration = Duration::from_secs(10);

/// How long such a connection may take for its answer, before it is given up.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// Looks at queues as an [`crate::amqp::inspector::Inspector`] does, on a connection of its own: what costs a connection
/// costs no other. There is none until the first question, nor when there was none for some time.
pub struct IsolatedInspector {
    endpoint: Endpoint,
    connect_timeout: Duration,
    properties: ClientProperties,
    questions: Option<Sender<(String, Sender<Answer>)>>,
}

impl IsolatedInspector {
    /// Asks for the state of `queue`. The answer comes to the receiver, if ever: [`AmqpErrorKind::ConnectionLost`] if the
    /// look cost the connection. None: there are questions enough without an answer.
    pub fn ask(&mut self, queue: &str) -> Option<Receiver<Answer>> {
        if self.questions.is_none() {
            self.questions = self.start();
        }
        let (sender, answer) = bounded(1);
        self.questions.as_ref()?.try_send((queue.into(), sender)).ok()?;
        Some(answer)
    }

    /// Starts the thread that has the connection. It ends when nobody can ask any more.
    fn start(&self) -> Option<Sender<(String, Sender<Answer>)>> {
        let (sender, questions) = bounded::<(String, Sender<Answer>)>(1);
        let (endpoint, properties) = (self.endpoint.clone(), self.properties.clone());
        let connect_timeout = self.connect_timeout;
        let open = move || open(slice::from_ref(&endpoint), connect_timeout, &properties);
        let answer_all = move || {
            let mut kept = None;
            loop {
                match questions.recv_timeout(KEPT) {
                    Ok((queue, answer)) => {
                        let looked = look(&mut kept, &queue, &open);
                        // Nobody receives it if the question was given up.
                        let _ = answer.send(looked);
                    }
                    Err(RecvTimeoutError::Timeout) => kept = None,
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        thread::Builder::new().name("inspector".into()).spawn(answer_all).ok().map(|_| sender)
    }
}

/// Looks at a queue on the connection that is kept, or on a new one, which is kept if it survives that.
fn look(
    kept: &mut Option<OpenConnection>,
    queue: &str,
    open: &dyn Fn() -> Result<(OpenConnection, Channel), Failure>,
) -> Answer {
    // One that has ended meanwhile says nothing about the queue.
    let reopened = kept.take().and_then(|mut connection| {
        let channel = connection.channel().ok()?;
        Some((connection, channel))
    });
    let (mut connection, channel) = match reopened {
        Some(reopened) => reopened,
        // Neither does what keeps a connection from being opened.
        None => open()
            .map_err(|failure| AmqpError::new(AmqpErrorKind::BrokerUnreachable, failure.message))?,
    };

    connection.set_call_timeout(ANSWER_LIMIT);
    let answer = queue::inspect(&mut connection, &channel, queue);
    match &answer {
        Err(error) if error.kind == AmqpErrorKind::ConnectionLost => {}
        _ => *kept = Some(connection),
    }
    answer
}

fn open(
    endpoints: &[Endpoint],
    connect_timeout: Duration,
    properties: &ClientProperties,
) -> Result<(OpenConnection, Channel), Failure> {
    let mut connection = OpenConnection::open(endpoints, connect_timeout, properties)?;
    debug!("a connection apart to {}", connection.name());
    let channel = connection.channel()?;
    Ok((connection, channel))
}

fn pause(delay: Duration, is_over: &dyn Fn() -> bool) {
    let until = Instant::now() + delay;
    while !is_over() && Instant::now() < until {
        thread::sleep(PAUSE_LOOK);
    }
}

fn publish_on(
    connection: &mut OpenConnection,
    channel: &Channel,
    reply: Publish<'_>,
    is_over: &dyn Fn() -> bool,
) -> Sent {
    let inbox = Arc::clone(connection.inbox());
    let published = connection.call(|| {
        let mut confirms = Confirms::enable(channel, &inbox)?;
        confirms.count_published();
        channel.basic_publish("", reply)?;
        Ok(confirms)
    });

    let confirms = match published {
        Ok(confirms) => confirms,
        Err(error) => return ended(connection, error.into()),
    };
    loop {
        match confirms.receiver().recv_timeout(CONFIRM_LOOK) {
            Ok(confirm) => {
                info!("the broker has the reply: {confirm:?}");
                return Sent::Confirmed;
            }
            Err(RecvTimeoutError::Timeout) if is_over() => return Sent::GivenUp,
            // A broker that is slow, or blocks the connection, says nothing about the reply.
            Err(RecvTimeoutError::Timeout) => {}
            // The channel is gone. A method that is called on it brings out the cause.
            Err(RecvTimeoutError::Disconnected) => {
                let cause = match channel.enable_publisher_confirms() {
                    Ok(()) => Error::EventLoopDropped,
                    Err(cause) => cause,
                };
                let error = connection.classify(cause);
                return ended(connection, error.into());
            }
        }
    }
}

/// Returns what became of a reply, if its connection or channel has ended.
fn ended(connection: &OpenConnection, failure: Failure) -> Sent {
    match connection.inbox().connection_close() {
        Some(close) if errors::is_connection_fault(close) => Sent::Deadly(failure),
        _ => Sent::Failed(failure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_look_told_holds_for_a_second() {
        let (mut looks, now) = (Looks::default(), Instant::now());
        assert_eq!(looks.is_gone("q"), None);
        for is_gone in [true, false] {
            looks.insert("q", now, is_gone);
            assert_eq!(looks.is_gone("q"), Some(is_gone));
            if let Some(before) = now.checked_sub(2 * FRESH) {
                looks.insert("q", before, is_gone);
                assert_eq!(looks.is_gone("q"), None);
            }
        }
        for number in 0..QUEUES_MAX {
            looks.insert(&number.to_string(), now, true);
        }
        assert!(looks.0.len() <= QUEUES_MAX);
    }
}
