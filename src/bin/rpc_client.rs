//! The client of RabbitMQ's tutorial six: publishes requests, then blocks on its exclusive reply
//! queue until the replies with their correlation ids come; others are discarded.
//!
//! `exchange` is the tutorial's loop. It runs on one connection; `fib_rpc::client` opens a connection
//! again when one is lost, and calls `exchange` again with the calls that are unanswered.

use fib_rpc::client;
use fib_rpc::client::calls::Calls;
use fib_rpc::client::channel::{Event, Interrupted, RpcChannel};
use fib_rpc::client::report::Report;
use fib_rpc::program;
use std::process::ExitCode;

fn main() -> ExitCode {
    program::main("rpc_client", |args| client::run(&args, exchange))
}

/// Makes calls on one channel until they are over.
fn exchange(
    rpc: &mut RpcChannel,
    calls: &mut Calls,
    report: &mut Report,
) -> Result<(), Interrupted> {
    // What a lost connection left unanswered.
    for call in calls.unanswered() {
        rpc.publish(call)?;
    }
    loop {
        report.write(calls.take_finished())?;
        if calls.are_over() {
            return Ok(());
        }
        if rpc.is_idle() {
            report.flush()?;
        }
        match rpc.next_event(calls)? {
            Event::Argument(argument) => {
                let call = calls.start(argument);
                report.announce(call)?;
                rpc.publish(call)?;
            }
            Event::Reply(delivery) => match calls.pending(delivery.properties.correlation_id()) {
                Some(call) => call.finish_with(rpc.read(delivery)),
                // A duplicate, a late one, a stranger's.
                None => calls.discard(delivery.properties.correlation_id()),
            },
            Event::Returned(request) => calls.return_request(&request, rpc.unroutable(&request)),
            Event::Confirmed(confirmed) => {
                if calls.confirm(confirmed, || rpc.refusal()) {
                    rpc.resend_later();
                }
            }
            Event::Served(servers) => calls.resume(servers),
            Event::Resend => {
                for call in calls.to_resend() {
                    rpc.publish(call)?;
                }
            }
            Event::TimedOut(by, diagnosis) => calls.time_out(by, diagnosis),
            Event::InputEnded(failure) => calls.end_input(failure),
        }
    }
}
