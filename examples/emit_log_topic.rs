//! Tutorial five, "Topics": sends a log message to the receivers whose patterns match its routing
//! key, by the topic exchange `topic_logs`.

mod common;

use amiquip::{ExchangeDeclareOptions, ExchangeType, Publish};
use clap::Parser;
use common::{Broker, Receipts};
use fib_rpc::error::ProgramError;
use fib_rpc::terminal::output;
use std::process::ExitCode;

const EXCHANGE: &str = "topic_logs";

/// Sends a message to every example receive_logs_topic with a pattern that matches its key.
#[derive(Parser)]
#[command(after_help = "Examples:
  emit_log_topic kern.critical \"A critical kernel error\"
  emit_log_topic quick.orange.rabbit")]
struct Args {
    /// Words with dots between them: by convention FACILITY.SEVERITY
    #[arg(default_value = "anonymous.info", value_parser = common::key)]
    routing_key: String,

    /// Its words [default: Hello World!]
    #[arg(value_name = "MESSAGE")]
    message: Vec<String>,

    #[command(flatten)]
    broker: Broker,
}

fn main() -> ExitCode {
    common::main(run)
}

fn run(args: &Args) -> Result<(), ProgramError> {
    let key = args.routing_key.as_str();
    let message = common::message(&args.message, "Hello World!");

    let mut connection = args.broker.connect()?;
    let channel = connection.channel()?;
    let options = ExchangeDeclareOptions::default();
    connection.call(|| channel.exchange_declare(ExchangeType::Topic, EXCHANGE, options))?;

    let receipts = Receipts::ask(&mut connection, &channel)?;
    let publish = Publish { mandatory: true, ..Publish::new(message.as_bytes(), key) };
    connection.call(|| channel.basic_publish(EXCHANGE, publish))?;
    receipts.wait(&mut connection)?;
    output::line(format_args!(" [x] Sent '{key}':'{message}'"))?;
    connection.close();
    Ok(())
}
