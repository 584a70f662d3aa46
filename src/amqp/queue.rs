//! The request queue: found as it is, or created.

use crate::amqp::connection::OpenConnection;
use crate::amqp::errors::{AmqpError, AmqpErrorKind, Remedy};
use crate::terminal::text::count;
use amiquip::{AmqpValue, Channel, FieldTable, Queue, QueueDeclareOptions};
use log::info;
use std::fmt;

/// The type of a queue that the server creates (RabbitMQ, "Queues", "Queue Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueType {
    /// The queue is on one node.
    Classic,
    /// The queue is replicated over a cluster.
    Quorum,
}

impl QueueType {
    fn name(self) -> &'static str {
        match self {
            QueueType::Classic => "classic",
            QueueType::Quorum => "quorum",
        }
    }
}

/// What a passive declare tells of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueState {
    /// Messages that wait for a consumer; those which one has, unacknowledged, do not count.
    pub messages: u32,
    /// Consumers.
    pub consumers: u32,
    /// Whether those are servers that do not consume at the moment, and show beside the queue that they are there
    /// ([`super::presence`]).
    pub hides: bool,
}

impl QueueState {
    /// Returns what the answer to a passive declare says.
    pub(super) fn of(declared: &Queue<'_>) -> QueueState {
        QueueState {
            messages: declared.declared_message_count().unwrap_or_default(),
            consumers: declared.declared_consumer_count().unwrap_or_default(),
            hides: false,
        }
    }
}

impl fmt::Display for QueueState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages = count(self.messages, "message", "messages");
        write!(f, "{messages} ready, {}", count(self.consumers, "consumer", "consumers"))
    }
}

/// Returns the state of `queue`, which is neither created nor changed (AMQP 0-9-1, queue.declare with
/// `passive`). An error costs the channel: [`AmqpErrorKind::QueueMissing`], [`AmqpErrorKind::QueueUnusable`]
/// if it is exclusive to another connection, [`AmqpErrorKind::AccessRefused`].
pub fn inspect(
    connection: &mut OpenConnection,
    channel: &Channel,
    queue: &str,
) -> Result<QueueState, AmqpError> {
    let declared = connection.call(|| channel.queue_declare_passive(queue));
    match declared {
        Ok(declared) => Ok(QueueState::of(&declared)),
        Err(error) => Err(unusable(connection.name(), queue, error)),
    }
}

/// Says more of an `error` of a look at `queue` on the broker `name`, if it is exclusive to another connection.
pub(super) fn unusable(name: &str, queue: &str, error: AmqpError) -> AmqpError {
    if error.kind != AmqpErrorKind::QueueUnusable {
        return error;
    }
    let message = format!("the queue \"{queue}\" on {name} is another connection's alone");
    AmqpError::new(error.kind, message).with_remedy(Remedy::NameAnotherQueue)
}

/// Returns whether an `error` of a look at a queue says that it is gone. A queue whose node is down is missing too, and
/// comes back with it.
pub fn is_gone(error: &AmqpError) -> bool {
    error.kind == AmqpErrorKind::QueueMissing && error.message.contains("no queue")
}

/// Returns the state of `queue` as [`inspect`] does, by a channel of its own, which is closed afterwards.
pub fn inspect_on_new_channel(
    connection: &mut OpenConnection,
    queue: &str,
) -> Result<QueueState, AmqpError> {
    let channel = connection.channel()?;
    let state = inspect(connection, &channel, queue)?;
    connection.call(|| channel.close())?;
    Ok(state)
}

/// Makes sure that `queue` is there. One that exists is used as it is, whatever its type and
/// durability: declaring it in another way than it was would be refused (406). One that does not
/// is created, durable, of type `queue_type`.
pub fn ensure(
    connection: &mut OpenConnection,
    queue: &str,
    queue_type: QueueType,
) -> Result<(), AmqpError> {
    match inspect_on_new_channel(connection, queue) {
        Ok(state) => {
            info!("queue {queue} is there: {state}");
            return Ok(());
        }
        Err(error) if error.kind == AmqpErrorKind::QueueMissing => {}
        Err(error) => return Err(error),
    }

    let channel = connection.channel()?;
    let name = queue_type.name();
    let queue_type = ("x-queue-type".into(), AmqpValue::LongString(name.into()));
    let arguments = FieldTable::from([queue_type]);
    let options = QueueDeclareOptions { durable: true, arguments, ..Default::default() };
    let declared =
        connection.call(|| Ok(channel.queue_declare(queue, options)?.declared_consumer_count()));
    match declared {
        Ok(consumers) => {
            let consumers = count(consumers.unwrap_or_default(), "consumer", "consumers");
            info!("queue {queue} declared: {name}, durable, {consumers}");
            connection.call(|| channel.close())
        }
        // Another server created it in the meantime, in another way (406), or it may not be created.
        Err(error) if error.kind == AmqpErrorKind::Configuration => {
            inspect_on_new_channel(connection, queue).map(drop).map_err(|other| match other.kind {
                AmqpErrorKind::QueueMissing => error,
                _ => other,
            })
        }
        Err(error) => Err(error),
    }
}
