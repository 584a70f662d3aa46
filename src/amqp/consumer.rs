//! What comes from a consumer, and how it ends.

use crate::amqp::connection::OpenConnection;
use crate::amqp::errors::{AmqpError, AmqpErrorKind};
use crate::amqp::inbox::Inbox;
use amiquip::{Consumer, ConsumerMessage, Delivery, Error};
use crossbeam_channel::{Receiver, RecvError};
use std::sync::Arc;

/// Why a consumer gets nothing more.
#[derive(Debug)]
pub enum ConsumerError {
    /// The broker cancelled it: its queue was deleted (RabbitMQ, "Consumer Cancel Notification").
    QueueDeleted,
    /// The channel or the connection is gone: what the client library says.
    Amiquip(Error),
}

impl ConsumerError {
    /// Returns what this error of a consumer of `queue` says of the queue, the channel or the connection.
    pub fn classify(self, connection: &mut OpenConnection, queue: &str) -> AmqpError {
        match self {
            ConsumerError::Amiquip(error) => connection.classify(error),
            ConsumerError::QueueDeleted => {
                let message = format!("the queue \"{queue}\" is gone");
                AmqpError::new(AmqpErrorKind::QueueMissing, message)
            }
        }
    }
}

/// A consumer that counts in its connection's [`Inbox`] what is taken from it.
pub struct CountedConsumer<'a> {
    consumer: Consumer<'a>,
    inbox: Arc<Inbox>,
}

impl<'a> CountedConsumer<'a> {
    /// Returns `consumer`, which is one of the connection of that `inbox`.
    pub fn new(consumer: Consumer<'a>, inbox: &Arc<Inbox>) -> CountedConsumer<'a> {
        CountedConsumer { consumer, inbox: Arc::clone(inbox) }
    }

    /// Returns where messages come from; what is received is to be handed to [`CountedConsumer::take`].
    pub fn receiver(&self) -> &Receiver<ConsumerMessage> {
        self.consumer.receiver()
    }

    /// Returns the delivery in what was received from [`CountedConsumer::receiver`], or why none comes any more.
    pub fn take(
        &self,
        received: Result<ConsumerMessage, RecvError>,
    ) -> Result<Delivery, ConsumerError> {
        match received {
            Ok(ConsumerMessage::Delivery(delivery)) => {
                self.inbox.taken();
                Ok(delivery)
            }
            Ok(ConsumerMessage::ServerCancelled) => Err(ConsumerError::QueueDeleted),
            Ok(ConsumerMessage::ServerClosedChannel(error)) => Err(ConsumerError::Amiquip(error)),
            // The library tells the cause when the connection is closed.
            _ => Err(ConsumerError::Amiquip(Error::EventLoopDropped)),
        }
    }

    /// Cancels the consumer: waits until the broker agrees, unless the channel or the connection is gone.
    pub fn cancel(&self) -> Result<(), Error> {
        self.consumer.cancel()
    }

    /// Returns the deliveries that a consumer still has after it was cancelled. They must be taken to the end: the
    /// library's thread sends a last message, and ends the connection if the receiver is gone by then.
    pub fn remaining(&self) -> impl Iterator<Item = Delivery> {
        self.receiver().iter().filter_map(|message| self.take(Ok(message)).ok())
    }

    /// Returns why a consumer got nothing more, of which the broker has closed the channel: waits until that is told.
    /// None if it was told already.
    pub fn end(&self) -> Option<ConsumerError> {
        self.receiver().iter().find_map(|message| self.take(Ok(message)).err())
    }
}
