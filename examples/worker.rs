//! Tutorial two, "Work Queues": does the tasks of the queue `task_queue`, one at a time. Start
//! several: each task goes to one of them that is idle, and to another one if that dies.

mod common;

use amiquip::{ConsumerOptions, Delivery, QueueDeclareOptions};
use clap::Parser;
use common::{Broker, Deliveries};
use fib_rpc::error::ProgramError;
use fib_rpc::terminal::output;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

const QUEUE: &str = "task_queue";

/// Does the tasks that the example new_task sends, one second for each dot, until Ctrl-C.
#[derive(Parser)]
#[command(after_help = "Examples:
  worker
  worker & worker &      two, which share the work

Ctrl-C lets a task in hand be finished; a second one leaves it to another worker.")]
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
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    connection.call(|| channel.queue_declare(QUEUE, durable))?;

    // Fair dispatch: no second task for a worker that has not acked its first.
    connection.call(|| channel.qos(0, 1, false))?;
    let with_acks = ConsumerOptions::default();
    let mut deliveries = Deliveries::consume(&mut connection, &channel, QUEUE, with_acks)?;
    output::line(format_args!(" [*] Waiting for messages. To exit press CTRL+C"))?;
    while let Some(delivery) = deliveries.next(&mut connection)? {
        perform(&delivery)?;
        // Only now: the task of a worker that dies goes back to the queue.
        connection.call(|| delivery.ack(&channel))?;
    }
    connection.close();
    Ok(())
}

fn perform(task: &Delivery) -> Result<(), ProgramError> {
    output::line(format_args!(" [x] Received '{}'", String::from_utf8_lossy(&task.body)))?;
    let dots = task.body.iter().filter(|byte| **byte == b'.').count();
    thread::sleep(Duration::from_secs(dots as u64));
    output::line(format_args!(" [x] Done"))
}
