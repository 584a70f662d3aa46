//! Tutorial one, "Hello World!": prints the messages that come to the queue `hello`.

mod common;

use amiquip::{ConsumerOptions, QueueDeclareOptions};
use clap::Parser;
use common::{Broker, Deliveries};
use fib_rpc::error::ProgramError;
use fib_rpc::terminal::output;
use std::process::ExitCode;

const QUEUE: &str = "hello";

/// Prints what the example send sends, until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Examples:\n  receive\n  receive > messages.txt")]
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
    // As in send: to declare a queue that exists changes nothing.
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    connection.call(|| channel.queue_declare(QUEUE, durable))?;

    // The broker forgets each message as it sends it; tutorial two does otherwise.
    let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
    let mut deliveries = Deliveries::consume(&mut connection, &channel, QUEUE, no_ack)?;
    output::line(format_args!(" [*] Waiting for messages. To exit press CTRL+C"))?;
    while let Some(delivery) = deliveries.next(&mut connection)? {
        output::line(format_args!(" [x] Received '{}'", String::from_utf8_lossy(&delivery.body)))?;
    }
    connection.close();
    Ok(())
}
