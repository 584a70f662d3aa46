//! Tutorial three, "Publish/Subscribe": prints every log message that is sent to the fanout
//! exchange `logs` while it runs.

mod common;

use amiquip::QueueDeclareOptions;
use amiquip::{ConsumerOptions, ExchangeDeclareOptions, ExchangeType, FieldTable};
use clap::Parser;
use common::{Broker, Deliveries};
use fib_rpc::error::ProgramError;
use fib_rpc::terminal::output;
use std::process::ExitCode;

const EXCHANGE: &str = "logs";

/// Prints what the example emit_log sends, until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Examples:\n  receive_logs\n  receive_logs > logs_from_rabbit.log")]
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
    let options = ExchangeDeclareOptions::default();
    connection.call(|| channel.exchange_declare(ExchangeType::Fanout, EXCHANGE, options))?;

    // A queue of this program's own: the broker names it, and deletes it with the connection.
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = connection.call(|| channel.queue_declare("", exclusive))?;
    connection.call(|| channel.queue_bind(queue.name(), EXCHANGE, "", FieldTable::new()))?;

    let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
    let mut deliveries = Deliveries::consume(&mut connection, &channel, queue.name(), no_ack)?;
    output::line(format_args!(" [*] Waiting for logs. To exit press CTRL+C"))?;
    while let Some(delivery) = deliveries.next(&mut connection)? {
        output::line(format_args!(" [x] '{}'", String::from_utf8_lossy(&delivery.body)))?;
    }
    connection.close();
    Ok(())
}
