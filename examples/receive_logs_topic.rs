//! Tutorial five, "Topics": prints the log messages whose routing keys match some patterns, from
//! the topic exchange `topic_logs`.

mod common;

use amiquip::QueueDeclareOptions;
use amiquip::{ConsumerOptions, ExchangeDeclareOptions, ExchangeType, FieldTable};
use clap::Parser;
use common::{Broker, Deliveries};
use fib_rpc::error::ProgramError;
use fib_rpc::terminal::output;
use std::process::ExitCode;

const EXCHANGE: &str = "topic_logs";

/// Prints what the example emit_log_topic sends with keys that match these, until Ctrl-C.
#[derive(Parser)]
#[command(override_usage = "receive_logs_topic [OPTIONS] BINDING_KEY...")]
#[command(after_help = "Examples:
  receive_logs_topic \"#\"                     everything
  receive_logs_topic \"kern.*\" \"*.critical\"   all of kern, and what is critical anywhere")]
struct Args {
    /// Words with dots between them; * stands for one word, # for any number of words
    #[arg(value_name = "BINDING_KEY", required = true, value_parser = common::key)]
    binding_keys: Vec<String>,

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
    connection.call(|| channel.exchange_declare(ExchangeType::Topic, EXCHANGE, options))?;

    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = connection.call(|| channel.queue_declare("", exclusive))?;
    // A queue gets a message once, however many of its binding keys match.
    for key in &args.binding_keys {
        connection.call(|| channel.queue_bind(queue.name(), EXCHANGE, key, FieldTable::new()))?;
    }

    let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
    let mut deliveries = Deliveries::consume(&mut connection, &channel, queue.name(), no_ack)?;
    output::line(format_args!(" [*] Waiting for logs. To exit press CTRL+C"))?;
    while let Some(delivery) = deliveries.next(&mut connection)? {
        let key = &delivery.routing_key;
        output::line(format_args!(" [x] '{key}':'{}'", String::from_utf8_lossy(&delivery.body)))?;
    }
    connection.close();
    Ok(())
}
