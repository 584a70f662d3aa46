//! Tutorial one, "Hello World!": puts a message into the queue `hello`.

mod common;

use amiquip::{Publish, QueueDeclareOptions};
use clap::Parser;
use common::{Broker, Receipts};
use fib_rpc::error::ProgramError;
use fib_rpc::terminal::output;
use std::process::ExitCode;

const QUEUE: &str = "hello";

/// Sends 'Hello World!' to the queue hello, from which the example receive prints it.
#[derive(Parser)]
#[command(after_help = "Examples:\n  send\n  AMQP_URL=amqp://user:password@host/vhost send")]
struct Args {
    #[command(flatten)]
    broker: Broker,
}

fn main() -> ExitCode {
    common::main(run)
}

fn run(args: &Args) -> Result<(), ProgramError> {
    let mut connection = args.broker.connect()?;
    let channel = connection.channel()?;
    // Durable, unlike the tutorial's first one: RabbitMQ 4.3 denies queues that are neither durable
    // nor exclusive. Declared in both programs, since nobody knows which is started first.
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    connection.call(|| channel.queue_declare(QUEUE, durable))?;

    let receipts = Receipts::ask(&mut connection, &channel)?;
    let message = "Hello World!";
    // By way of the default exchange, the routing key is the name of a queue.
    let publish = Publish { mandatory: true, ..Publish::new(message.as_bytes(), QUEUE) };
    connection.call(|| channel.basic_publish("", publish))?;
    receipts.wait(&mut connection)?;
    output::line(format_args!(" [x] Sent '{message}'"))?;
    connection.close();
    Ok(())
}
