//! Replies that may be deadly: each is published on a connection of its own.
//!
//! A reply can make the broker end the connection with an error: RabbitMQ 3.10 does so for any broken name that
//! begins with `amq.rabbitmq.reply-to.`. Its request comes again, and its next reply would end the next connection, so
//! that no other request would be answered any more. So the replies to all requests that were in hand when a broker ended
//! a connection so go out apart, one at a time, when they come again: there such a reply does no harm, and it is known
//! whose it was.

use crate::amqp::client_properties::ClientProperties;
use crate::amqp::confirms::Confirms;
use crate::amqp::connection::OpenConnection;
use crate::amqp::errors;
use crate::amqp::queue;
use crate::amqp::uri::Endpoint;
use crate::error::{Failure, FailureKind};
use amiquip::{Channel, Error, Publish};
use crossbeam_channel::RecvTimeoutError;
use log::{debug, info};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often whoever waits for a confirm asks whether he still has to.
const CONFIRM_LOOK: Duration = Duration::from_millis(100);

/// The prefix of the names of direct reply-to (RabbitMQ, "Direct Reply-to"). To look for such a queue can be as deadly as
/// to publish to it.
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to";

/// What became of a reply.
pub enum Sent {
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

/// How long a reply queue that was there is taken to be there still: many requests of one client can come again at once.
const FRESH: Duration = Duration::from_secs(1);

/// How many reply queues are remembered.
const QUEUES_MAX: usize = 1024;

/// The one connection of a server for such replies. There is none as long as there is no such reply.
#[derive(Debug)]
pub struct Isolated {
    properties: ClientProperties,
    looks: Mutex<Looks>,
}

/// What the last look at each reply queue told.
#[derive(Debug, Default)]
struct Looks(HashMap<String, Look>);

#[derive(Debug, Clone, Copy)]
enum Look {
    /// It was there then.
    There(Instant),
    /// It was not there. Its name was made up for one client, and does not come back.
    Gone,
}

impl Looks {
    /// Returns whether a queue is gone, as far as a look of late tells.
    fn is_gone(&self, queue: &str) -> Option<bool> {
        match self.0.get(queue)? {
            Look::Gone => Some(true),
            Look::There(at) if at.elapsed() < FRESH => Some(false),
            Look::There(_) => None,
        }
    }

    fn insert(&mut self, queue: &str, look: Look) {
        if self.0.len() >= QUEUES_MAX {
            self.0.clear();
        }
        self.0.insert(queue.into(), look);
    }
}

impl Isolated {
    /// Makes none yet. When there is one, the broker is told these properties.
    pub fn new(properties: ClientProperties) -> Isolated {
        Isolated { properties, looks: Mutex::default() }
    }

    /// Publishes a reply to the broker at `endpoint`, and waits for its confirm until `is_over`.
    pub fn publish(
        &self,
        endpoint: &Endpoint,
        connect_timeout: Duration,
        reply: Publish<'_>,
        is_over: &dyn Fn() -> bool,
    ) -> Sent {
        let _one_at_a_time = self.lock();
        if is_over() {
            return Sent::GivenUp;
        }
        let (mut connection, channel) = match self.open(endpoint, connect_timeout) {
            Ok(opened) => opened,
            Err(failure) => return Sent::Failed(failure),
        };
        let sent = publish(&mut connection, &channel, reply, is_over);
        // Before the channel is dropped, which would wait for an answer of its own.
        connection.close();
        sent
    }

    /// Returns whether the broker at `endpoint` says that there is no such queue, so that nobody awaits a reply there.
    pub fn look(
        &self,
        endpoint: &Endpoint,
        connect_timeout: Duration,
        reply_to: &str,
    ) -> ReplyQueue {
        if reply_to.starts_with(DIRECT_REPLY_TO) {
            return ReplyQueue::MayBeThere;
        }
        let mut looks = self.lock();
        match looks.is_gone(reply_to) {
            Some(true) => return ReplyQueue::Gone { is_news: false },
            Some(false) => return ReplyQueue::MayBeThere,
            None => {}
        }

        let looked = self.open(endpoint, connect_timeout).and_then(|(mut connection, channel)| {
            let looked = queue::inspect(&mut connection, &channel, reply_to);
            connection.close();
            looked.map_err(Failure::from)
        });
        // A queue whose node is down is missing too, and comes back with it.
        let is_missing = |failure: &Failure| {
            failure.kind == FailureKind::QueueMissing && failure.message.contains("no queue")
        };
        match looked {
            Err(failure) if is_missing(&failure) => {
                looks.insert(reply_to, Look::Gone);
                ReplyQueue::Gone { is_news: true }
            }
            _ => {
                looks.insert(reply_to, Look::There(Instant::now()));
                ReplyQueue::MayBeThere
            }
        }
    }

    fn open(
        &self,
        endpoint: &Endpoint,
        connect_timeout: Duration,
    ) -> Result<(OpenConnection, Channel), Failure> {
        let endpoints = std::slice::from_ref(endpoint);
        let mut connection = OpenConnection::open(endpoints, connect_timeout, &self.properties)?;
        debug!("a connection for one reply to {}", connection.name());
        let channel = connection.channel()?;
        Ok((connection, channel))
    }

    fn lock(&self) -> MutexGuard<'_, Looks> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn publish(
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
    fn a_queue_that_is_gone_stays_so_and_one_that_is_there_is_looked_at_again() {
        let mut looks = Looks::default();
        assert_eq!(looks.is_gone("q"), None);
        looks.insert("q", Look::There(Instant::now()));
        assert_eq!(looks.is_gone("q"), Some(false));
        if let Some(before) = Instant::now().checked_sub(2 * FRESH) {
            looks.insert("q", Look::There(before));
            assert_eq!(looks.is_gone("q"), None);
        }
        looks.insert("q", Look::Gone);
        assert_eq!(looks.is_gone("q"), Some(true));
        for number in 0..QUEUES_MAX {
            looks.insert(&number.to_string(), Look::Gone);
        }
        assert!(looks.0.len() <= QUEUES_MAX);
    }
}
