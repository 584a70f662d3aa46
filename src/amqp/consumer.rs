//! What comes from a consumer, and how it ends.

use crate::amqp::connection::OpenConnection;
use crate::error::{Failure, FailureKind};
use amiquip::{Consumer, ConsumerMessage, Delivery, Error};
use crossbeam_channel::RecvError;

/// Why a consumer gets nothing more.
#[derive(Debug)]
pub enum ConsumerError {
    /// The broker cancelled it: its queue was deleted (RabbitMQ, "Consumer Cancel Notification").
    QueueDeleted,
    /// The channel or the connection is gone.
    Amqp(Error),
}

impl ConsumerError {
    /// Returns the failure that this error of a consumer of `queue` is.
    pub fn classify(self, connection: &mut OpenConnection, queue: &str) -> Failure {
        match self {
            ConsumerError::Amqp(error) => connection.classify(error),
            ConsumerError::QueueDeleted => {
                let message = format!("the queue \"{queue}\" is gone");
                Failure::new(FailureKind::QueueMissing, message)
            }
        }
    }
}

/// Returns the delivery in what was received from [`Consumer::receiver`], or why none comes any more.
pub fn delivery(received: Result<ConsumerMessage, RecvError>) -> Result<Delivery, ConsumerError> {
    match received {
        Ok(ConsumerMessage::Delivery(delivery)) => Ok(delivery),
        Ok(ConsumerMessage::ServerCancelled) => Err(ConsumerError::QueueDeleted),
        Ok(ConsumerMessage::ServerClosedChannel(error)) => Err(ConsumerError::Amqp(error)),
        // The library tells the cause when the connection is closed.
        _ => Err(ConsumerError::Amqp(Error::EventLoopDropped)),
    }
}

/// Returns the deliveries that a consumer still has after it was cancelled. They must be taken to the end: the
/// library's thread sends a last message, and ends the connection if the receiver is gone by then.
pub fn remaining<'a>(consumer: &'a Consumer<'_>) -> impl Iterator<Item = Delivery> + 'a {
    consumer.receiver().iter().filter_map(|message| delivery(Ok(message)).ok())
}

/// Returns why a consumer got nothing more, of which the broker has closed the channel: waits until that is told. None if
/// it was told already.
pub fn end(consumer: &Consumer<'_>) -> Option<ConsumerError> {
    consumer.receiver().iter().find_map(|message| delivery(Ok(message)).err())
}
