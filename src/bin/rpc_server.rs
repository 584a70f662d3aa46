//! The server of RabbitMQ's tutorial six: takes requests from a queue, computes, replies, acks.
//!
//! `serve` is the tutorial's loop. It runs on a thread for each worker; `fib_rpc::server` opens a
//! connection again whenever one is lost, until a signal asks to stop.

use fib_rpc::cli::Server;
use fib_rpc::drill;
use fib_rpc::program;
use fib_rpc::protocol::{Reply, Request};
use fib_rpc::server;
use fib_rpc::server::worker::{Worker, WorkerError};
use log::warn;
use std::process::ExitCode;

fn main() -> ExitCode {
    program::main("rpc_server", |args: Server| match args.drill {
        None => server::run(args, serve),
        // The same loop, with a fault in it.
        Some(drill) => server::run(args, move |worker| drill::serve(worker, drill)),
    })
}

/// Answers requests on a channel of its own, as one of the workers, until it is asked to stop.
fn serve(worker: &mut Worker) -> Result<(), WorkerError> {
    worker.consume()?;
    while let Some(delivery) = worker.next_delivery()? {
        let request = Request::from_delivery(&delivery);
        let Some(reply_to) = request.reply_to else {
            warn!(
                "{request} came without a readable reply_to or correlation_id: nobody to answer; dropped"
            );
            worker.ack(delivery)?;
            continue;
        };
        let outcome = worker.call(&request)?;
        // With the request's correlation_id.
        let reply = Reply::for_request(&request, outcome, worker.max_body());
        worker.publish(&request, reply_to, &reply)?;
        // After the reply: a crash in between means a second reply, never a lost one.
        worker.ack(delivery)?;
    }
    worker.cancel()
}
