//! Tutorial three, "Publish/Subscribe": sends a log message to all receivers, by the fanout
//! exchange `logs`.

mod common;

use amiquip::{ExchangeDeclareOptions, ExchangeType, Publish};
use clap::Parser;
use common::{Broker, Receipts};
use fib_rpc::error::ProgramError;
use fib_rpc::terminal::output;
use std::process::ExitCode;

const EXCHANGE: &str = "logs";

/// Sends a message to every running example receive_logs.
#[derive(Parser)]
#[command(after_help = "Examples:\n  emit_log\n  emit_log info: This is the log message")]
struct Args {
    /// Its words [default: info: Hello World!]
    #[arg(value_name = "MESSAGE")]
    message: Vec<String>,

    #[command(flatten)]
    broker: Broker,
}

fn main() -> ExitCode {
    common::main(run)
}

fn run(args: &Args) -> Result<(), ProgramError> {
    let message = common::message(&args.message, "info: Hello World!");

    let mut connection = args.broker.connect()?;
    let channel = connection.channel()?;
    let options = ExchangeDeclareOptions::default();
    connection.call(|| channel.exchange_declare(ExchangeType::Fanout, EXCHANGE, options))?;

    let receipts = Receipts::ask(&mut connection, &channel)?;
    // A fanout exchange takes no notice of the routing key.
    let publish = Publish { mandatory: true, ..Publish::new(message.as_bytes(), "") };
    connection.call(|| channel.basic_publish(EXCHANGE, publish))?;
    receipts.wait(&mut connection)?;
    output::line(format_args!(" [x] Sent '{}'", message))?;
    connection.close();
    Ok(())
}
