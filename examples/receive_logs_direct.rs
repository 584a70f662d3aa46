//! Tutorial four, "Routing": prints the log messages of some severities, from the direct exchange
//! `direct_logs`.

mod common;

use amiquip::QueueDeclareOptions;
use amiquip::{ConsumerOptions, ExchangeDeclareOptions, ExchangeType, FieldTable};
use clap::Parser;
use common::{Broker, Deliveries};
use fib_rpc::error::ProgramError;
use fib_rpc::terminal::output;
use std::process::ExitCode;

const EXCHANGE: &str = "direct_logs";

/// Prints what the example emit_log_direct sends with these severities, until Ctrl-C.
#[derive(Parser)]
#[command(override_usage = "receive_logs_direct [OPTIONS] SEVERITY...")]
#[command(after_help = "Examples:
  receive_logs_direct info warning error
  receive_logs_direct warning error > logs_from_rabbit.log")]
struct Args {
    /// Binding keys: by convention info, warning, error
    #[arg(value_name = "SEVERITY", required = true, value_parser = common::key)]
    severities: Vec<String>,

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
    connection.call(|| channel.exchange_declare(ExchangeType::Direct, EXCHANGE, options))?;

    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let queue = connection.call(|| channel.queue_declare("", exclusive))?;
    // A binding for each severity. A message goes to the queues with a binding key that is its
    // routing key.
    for severity in &args.severities {
        connection
            .call(|| channel.queue_bind(queue.name(), EXCHANGE, severity, FieldTable::new()))?;
    }

    let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
    let mut deliveries = Deliveries::consume(&mut connection, &channel, queue.name(), no_ack)?;
    output::line(format_args!(" [*] Waiting for logs. To exit press CTRL+C"))?;
    while let Some(delivery) = deliveries.next(&mut connection)? {
        let severity = &delivery.routing_key;
        output::line(format_args!(
            " [x] '{severity}':'{}'",
            String::from_utf8_lossy(&delivery.body)
        ))?;
    }
    connection.close();
    Ok(())
}
