//! What a server does wrong on purpose, for teaching and for tests: `rpc_server --drill`.
//!
//! A drill is a fault that other systems have by accident. `serve` is the tutorial's loop, as in `src/bin/rpc_server.rs`,
//! with each fault at the place where it strikes, beside what is right.

pub use crate::cli::Drill;

use crate::error::ErrorKind;
use crate::procedure::Error;
use crate::protocol::{Reply, Request};
use crate::server::worker::{Worker, WorkerError};
use crate::terminal::output;
use log::warn;
use signal_hook::consts::SIGKILL;
use signal_hook::low_level;
use std::fmt;
use std::thread;
use uuid::Uuid;

/// Answers requests with a fault, as one of the workers, until it is asked to stop.
pub fn serve(worker: &mut Worker, drill: Drill) -> Result<(), WorkerError> {
    worker.consume()?;
    while let Some(delivery) = worker.next_delivery()? {
        let request = Request::from_delivery(&delivery);
        let Some(reply_to) = request.reply_to else {
            worker.drop_unanswerable(&request);
            worker.ack(delivery)?;
            continue;
        };

        let outcome = worker.call_by(&request, |procedures, invocation| {
            match drill {
                // Right: computes at once.
                Drill::Slow(delay) => {
                    announce(drill, format_args!("{request} waits"));
                    thread::sleep(delay);
                }
                // Right: what the procedure answers.
                Drill::Fail => {
                    announce(drill, format_args!("{request} fails"));
                    let message = "failed on purpose: --drill fail";
                    return Ok(Err(Error::new(ErrorKind::Internal, message)));
                }
                _ => {}
            }
            procedures.call(request.procedure, invocation)
        })?;

        let mut reply = Reply::for_request(&request, outcome, worker.reply_format());
        match drill {
            Drill::CrashBeforeReply => {
                announce(drill, format_args!("{request} is computed: dies now"));
                crash();
            }
            // Right: with the request's.
            Drill::WrongCorrelationId => {
                announce(drill, format_args!("{request} gets another's id"));
                reply.correlation_id = Some(Uuid::new_v4().to_string());
            }
            // Right: once.
            Drill::DuplicateReply => {
                announce(drill, format_args!("{request} gets a second reply"));
                worker.publish(&request, reply_to, &reply)?;
            }
            _ => {}
        }
        worker.publish(&request, reply_to, &reply)?;

        if drill == Drill::CrashBeforeAck {
            worker.await_broker()?;
            announce(drill, format_args!("the reply is out: dies now"));
            crash();
        }
        worker.ack(delivery)?;
    }
    worker.cancel()
}

/// Logs that `drill` strikes, and how.
fn announce(drill: Drill, what: fmt::Arguments<'_>) {
    warn!("drill {drill}: {what}");
}

/// Ends the process as `kill -9` does: nothing is finished, nothing given back, nobody told, apart from what
/// [`announce`] told.
fn crash() -> ! {
    output::finish();
    let _ = low_level::raise(SIGKILL);
    // Should the system take its time, or spare the first process of a container (pid_namespaces(7)).
    std::process::abort()
}
