//! Tutorial two, "Work Queues": puts a task into the queue `task_queue`, where it stays until a
//! worker has done it, whatever happens to the broker and the workers meanwhile.

mod common;

use amiquip::{AmqpProperties, Publish, QueueDeclareOptions};
use clap::Parser;
use common::{Broker, Receipts};
use fib_rpc::error::ProgramError;
use fib_rpc::terminal::output;
use std::process::ExitCode;

const QUEUE: &str = "task_queue";

/// The property delivery_mode of a persistent message (AMQP 0-9-1, basic class).
const PERSISTENT: u8 = 2;

/// Sends a task to the queue task_queue, for the example worker.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  new_task A very hard task which takes two seconds..\n  new_task"
)]
struct Args {
    /// Its words; each dot in them is a second of work [default: Hello World!]
    #[arg(value_name = "MESSAGE")]
    message: Vec<String>,

    #[command(flatten)]
    broker: Broker,
}

fn main() -> ExitCode {
    common::main(run)
}

fn run(args: &Args) -> Result<(), ProgramError> {
    let message = common::message(&args.message, "Hello World!");

    let mut connection = args.broker.connect()?;
    let channel = connection.channel()?;
    // A durable queue is there again after a restart of the broker; what is in it, if the messages
    // are persistent as well.
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    connection.call(|| channel.queue_declare(QUEUE, durable))?;

    let receipts = Receipts::ask(&mut connection, &channel)?;
    let persistent = AmqpProperties::default().with_delivery_mode(PERSISTENT);
    let publish = Publish::with_properties(message.as_bytes(), QUEUE, persistent);
    let publish = Publish { mandatory: true, ..publish };
    connection.call(|| channel.basic_publish("", publish))?;
    // The tutorial closes the connection, after which the message may not be on the disk yet.
    receipts.wait(&mut connection)?;
    output::line(format_args!(" [x] Sent '{}'", message))?;
    connection.close();
    Ok(())
}
