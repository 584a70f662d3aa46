//! Tutorial six, "Remote procedure call (RPC)", as RabbitMQ's page has it: the client, on the client
//! library alone. `src/bin/rpc_client.rs` is the one that docs/lessons.md compares it with.
//!
//! `tutorial_six_client [N…]`; without a number, 30.

use amiquip::{AmqpProperties, Channel, Connection, Consumer, ConsumerMessage, ConsumerOptions};
use amiquip::{Publish, QueueDeclareOptions, Result};
use std::env;
use uuid::Uuid;

/// Sends a request, and blocks until the reply with its correlation id comes.
fn call(channel: &Channel, reply_to: &str, replies: &Consumer, n: &str) -> Result<String> {
    let correlation_id = Uuid::new_v4().to_string();
    let properties = AmqpProperties::default()
        .with_reply_to(reply_to.into())
        .with_correlation_id(correlation_id.clone());
    channel.basic_publish("", Publish::with_properties(n.as_bytes(), "rpc_queue", properties))?;
    loop {
        match replies.receiver().recv() {
            Ok(ConsumerMessage::Delivery(delivery)) => {
                if delivery.properties.correlation_id().as_ref() == Some(&correlation_id) {
                    return Ok(String::from_utf8_lossy(&delivery.body).into());
                }
            }
            ended => panic!("no more replies: {ended:?}"),
        }
    }
}

fn main() -> Result<()> {
    let url = env::var("AMQP_URL").unwrap_or("amqp://localhost:5672".into());
    let mut connection = Connection::insecure_open(&url)?;
    let channel = connection.open_channel(None)?;

    // The callback queue. The broker makes up its name, and deletes it with the connection.
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = channel.queue_declare("", exclusive)?;
    let replies = queue.consume(ConsumerOptions { no_ack: true, ..Default::default() })?;

    let mut numbers: Vec<String> = env::args().skip(1).collect();
    if numbers.is_empty() {
        numbers.push("30".into());
    }
    for n in numbers {
        println!(" [x] Requesting fib({n})");
        let response = call(&channel, queue.name(), &replies, &n)?;
        println!(" [.] Got {response}");
    }
    connection.close()
}
