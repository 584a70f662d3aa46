//! How servers show that they are there though they do not always consume from their queue: each consumes from a queue
//! beside it, `QUEUE.servers`, as long as it is connected. Nothing is ever published to that queue, and the broker deletes it
//! when its last consumer is gone.

use crate::amqp::connection::OpenConnection;
use crate::amqp::errors::AmqpError;
use crate::amqp::name;
use amiquip::{Channel, Consumer, ConsumerOptions, QueueDeclareOptions};
use log::info;

/// Returns the name of the queue beside `queue`. None: it would be longer than a name can be.
fn queue_beside(queue: &str) -> Option<String> {
    name(&format!("{queue}.servers")).ok()
}

/// Shows that a server of `queue` is there, as long as what is returned is. None: the queue's name is too long for that.
/// The error, which costs the channel, says why it may not be shown.
pub fn show<'a>(
    connection: &mut OpenConnection,
    channel: &'a Channel,
    queue: &str,
) -> Result<Option<Consumer<'a>>, AmqpError> {
    let Some(beside) = queue_beside(queue) else { return Ok(None) };
    let consumer = connection.call(|| {
        // Should a stranger publish to it, one message comes, and waits.
        channel.qos(0, 1, false)?;
        // RabbitMQ 4 wants queues durable that are not exclusive.
        let options =
            QueueDeclareOptions { durable: true, auto_delete: true, ..Default::default() };
        channel.queue_declare(beside.as_str(), options)?;
        channel.basic_consume(beside.as_str(), ConsumerOptions::default())
    })?;
    info!("consume from {beside}: shows that a server is there");
    Ok(Some(consumer))
}

/// Returns how many servers of `queue` show that they are there. Unless there are any, this may cost the channel.
pub fn count(channel: &Channel, queue: &str) -> u32 {
    let beside = queue_beside(queue);
    let declared = beside.map(|beside| match channel.queue_declare_passive(beside) {
        Ok(queue) => queue.declared_consumer_count().unwrap_or_default(),
        // There is no such queue, or this user may not look at it.
        Err(_) => 0,
    });
    declared.unwrap_or_default()
}
