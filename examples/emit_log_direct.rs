//! Tutorial four, "Routing": sends a log message to the receivers of its severity, by the direct
//! exchange `direct_logs`.

mod common;

use amiquip::{ExchangeDeclareOptions, ExchangeType, Publish};
use clap::Parser;
use common::{Broker, Receipts};
use fib_rpc::error::ProgramError;
use fib_rpc::terminal::output;
use std::process::ExitCode;

const EXCHANGE: &str = "direct_logs";

/// Sends a message to every example receive_logs_direct that wants its severity.
#[derive(Parser)]
#[command(after_help = "Examples:
  emit_log_direct error \"Run. Run. Or it will explode.\"
  emit_log_direct warning")]
struct Args {
    /// Routing key: by convention info, warning or error
    #[arg(default_value = "info", value_parser = common::key)]
    severity: String,

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
    let severity = args.severity.as_str();
    let message = common::message(&args.message, "Hello World!");

    let mut connection = args.broker.connect()?;
    let channel = connection.channel()?;
    let options = ExchangeDeclareOptions::default();
    connection.call(|| channel.exchange_declare(ExchangeType::Direct, EXCHANGE, options))?;

    let receipts = Receipts::ask(&mut connection, &channel)?;
    let publish = Publish { mandatory: true, ..Publish::new(message.as_bytes(), severity) };
    connection.call(|| channel.basic_publish(EXCHANGE, publish))?;
    receipts.wait(&mut connection)?;
    output::line(format_args!(" [x] Sent '{severity}':'{message}'"))?;
    connection.close();
    Ok(())
}
