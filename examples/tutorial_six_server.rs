//! Tutorial six, "Remote procedure call (RPC)", as RabbitMQ's page has it: the server, on the client
//! library alone. `src/bin/rpc_server.rs` is the one that docs/lessons.md compares it with.

use amiquip::{AmqpProperties, AmqpValue, Connection, ConsumerMessage, ConsumerOptions};
use amiquip::{FieldTable, Publish, QueueDeclareOptions, Result};
use std::env;

/// It assumes a small number: this is probably the slowest recursive implementation possible.
fn fib(n: u64) -> u64 {
    match n {
        0 | 1 => n,
        _ => fib(n - 1) + fib(n - 2),
    }
}

fn main() -> Result<()> {
    let url = env::var("AMQP_URL").unwrap_or("amqp://localhost:5672".into());
    let mut connection = Connection::insecure_open(&url)?;
    let channel = connection.open_channel(None)?;

    let mut arguments = FieldTable::new();
    arguments.insert("x-queue-type".into(), AmqpValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, arguments, ..Default::default() };
    let queue = channel.queue_declare("rpc_queue", options)?;

    // We might want to run more than one server: each gets one request at a time.
    channel.qos(0, 1, false)?;
    let consumer = queue.consume(ConsumerOptions::default())?;
    println!(" [x] Awaiting RPC requests");

    for message in consumer.receiver() {
        let ConsumerMessage::Delivery(delivery) = message else { break };
        let n: u64 = String::from_utf8_lossy(&delivery.body).parse().unwrap();
        println!(" [.] fib({n})");
        let response = fib(n).to_string();

        let properties = delivery.properties.clone();
        let reply_to = properties.reply_to().clone().unwrap();
        let correlation_id = properties.correlation_id().clone().unwrap();
        let properties = AmqpProperties::default().with_correlation_id(correlation_id);
        let reply = Publish::with_properties(response.as_bytes(), reply_to, properties);
        channel.basic_publish("", reply)?;
        delivery.ack(&channel)?;
    }
    connection.close()
}
