//! Replies to requests that were delivered before: each is published on a connection of its own.
//!
//! If it was a request's reply that ended the connection, the next reply to it would end the next one,
//! and no other request would be answered any more: RabbitMQ 3.10 does so for any broken name that
//! begins with `amq.rabbitmq.reply-to.`. On a connection of its own such a reply does no harm, and it
//! is known whose it was.

use crate::amqp::confirms::Confirms;
use crate::amqp::connection::Session;
use crate::amqp::uri::Endpoint;
use crate::error::{Failure, FailureKind};
use amiquip::{Channel, Error, Publish};
use crossbeam_channel::RecvTimeoutError;
use log::debug;
use std::time::Duration;

/// How long the broker may take to confirm a reply.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);

/// A connection for the replies to redelivered requests, one after another.
pub struct IsolatedPublisher {
    session: Session,
    channel: Channel,
    confirms: Confirms,
}

impl IsolatedPublisher {
    /// Opens one to the broker at `endpoint`.
    pub fn open(endpoint: &Endpoint, connect_timeout: Duration) -> Result<Self, Failure> {
        let endpoints = std::slice::from_ref(endpoint);
        let mut session = Session::open(endpoints, connect_timeout, "rpc_server")?;
        debug!("a connection for one reply to {}", session.name());
        let channel = session.channel()?;
        let confirms = session.call(|| Confirms::enable(&channel))?;
        Ok(IsolatedPublisher { session, channel, confirms })
    }

    /// Publishes a reply, and waits until the broker has taken or refused it. It fails if the connection
    /// or the channel is lost.
    pub fn publish(&mut self, reply: Publish<'_>) -> Result<(), Failure> {
        self.session.call(|| self.channel.basic_publish("", reply))?;
        match self.confirms.receiver().recv_timeout(CONFIRM_LIMIT) {
            // A reply that is refused is not tried again: its queue's node is gone, or it is full.
            Ok(_) => Ok(()),
            // A broker that is slow says nothing about the reply.
            Err(RecvTimeoutError::Timeout) => {
                Err(Failure::new(FailureKind::TimedOut, self.session.abort().message))
            }
            // The channel is gone. A method that is called on it brings out the cause.
            Err(RecvTimeoutError::Disconnected) => {
                self.session.call(|| self.channel.enable_publisher_confirms())?;
                Err(self.session.classify(Error::EventLoopDropped))
            }
        }
    }
}

/// Whether a failure of an [`IsolatedPublisher`] says that the reply itself is at fault, provided that
/// the server's other connection is still good.
pub fn is_at_fault(failure: &Failure) -> bool {
    use FailureKind::{Blocked, Internal, TimedOut, TooLarge};
    !matches!(failure.kind, TooLarge { .. } | Blocked | TimedOut | Internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_or_full_broker_says_nothing_about_a_reply() {
        let is_at_fault = |kind| is_at_fault(&Failure::new(kind, "it failed"));
        assert!(is_at_fault(FailureKind::ConnectionLost));
        assert!(is_at_fault(FailureKind::AccessRefused));
        assert!(!is_at_fault(FailureKind::TimedOut));
        assert!(!is_at_fault(FailureKind::Blocked));
        assert!(!is_at_fault(FailureKind::TooLarge { limit: 1 }));
    }
}
