//! The server of RabbitMQ's tutorial six: takes requests from a queue, computes, replies, acks.
//!
//! `serve` is the tutorial's loop. It runs on a thread for each worker; `fib_rpc::server` opens a
//! connection again whenever one is lost, until a signal asks to stop. `serve_at_most_once` below it
//! has the other order, for `--at-most-once`.

use fib_rpc::cli::Server;
use fib_rpc::drill;
use fib_rpc::program;
use fib_rpc::protocol::{Reply, Request};
use fib_rpc::server;
use fib_rpc::server::worker::{Worker, WorkerError};
use std::process::ExitCode;

fn main() -> ExitCode {
    program::main("rpc_server", |args: Server| match args.drill {
        None if args.at_most_once => server::run(args, serve_at_most_once),
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
            worker.drop_unanswerable(&request);
            worker.ack(delivery)?;
            continue;
        };
        let outcome = worker.call(&request)?;
        // With the request's correlation_id.
        let reply = Reply::for_request(&request, outcome, worker.reply_format());
        worker.publish(&request, reply_to, &reply)?;
        // After the reply: a crash in between means a second reply, never a lost one.
        worker.ack(delivery)?;
    }
    worker.cancel()
}

/// Answers requests as `serve` does, and calls nothing twice: acks before the call, not after the reply.
fn serve_at_most_once(worker: &mut Worker) -> Result<(), WorkerError> {
    worker.consume()?;
    while let Some(mut delivery) = worker.next_delivery()? {
        // Nothing else comes meanwhile: it would wait here, while another server may have nothing to do.
        worker.cancel()?;
        // Before the call, and the broker has it: a crash from here on means no reply, never a second call.
        worker.ack_early(&mut delivery)?;
        worker.await_broker()?;

        let request = Request::from_delivery(&delivery);
        match request.reply_to {
            None => worker.drop_unanswerable(&request),
            Some(reply_to) => {
                // What was delivered before may have been called before.
                let outcome = match request.is_redelivered {
                    true => Err(worker.refuse_redelivered(&request)),
                    false => worker.call(&request)?,
                };
                let reply = Reply::for_request(&request, outcome, worker.reply_format());
                worker.publish_confirmed(&request, reply_to, &reply);
            }
        }
        worker.consume()?;
    }
    worker.cancel()
}
