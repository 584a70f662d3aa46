//! What `rpc_server` has around its loop: it connects, lets workers serve, and connects again when a
//! connection is lost, until a signal asks to stop.

pub mod isolated;
pub mod reconnect;
pub mod supervisor;
pub mod worker;

use crate::amqp::connection::Session;
use crate::amqp::queue;
use crate::amqp::uri::{self, Endpoint};
use crate::cli;
use crate::command::Groups;
use crate::error::{Failure, FailureKind, ProgramError};
use crate::process::signals::{self, Stop};
use crossbeam_channel::{Receiver, bounded, select_biased};
use log::info;
use reconnect::ReconnectState;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use supervisor::{Slots, Supervisor};
use worker::{Serve, Service};

/// Serves by `serve` as `args` say, on as many connections as it takes, until a signal asks to stop.
///
/// # Errors
///
/// What another connection would not change: a malformed URI, a program that is not there, refused
/// credentials at the first start.
pub fn run(args: &cli::Server, serve: Serve) -> Result<ExitCode, ProgramError> {
    let groups = Arc::new(Groups::default());
    let to_kill = Arc::clone(&groups);
    let stop = signals::stop_requests(None, move || to_kill.kill_all())?;
    let served = serve_by(args, serve, &groups, &stop);
    // Programs whose connection was lost had some time left to end by themselves.
    groups.kill_all();
    served
}

fn serve_by(
    args: &cli::Server,
    serve: Serve,
    groups: &Arc<Groups>,
    stop: &Receiver<Stop>,
) -> Result<ExitCode, ProgramError> {
    let brokers = uri::parse_list(&args.common.url)?;
    let service = Arc::new(Service::new(args, brokers.len() > 1, groups)?);
    let slots = Slots::new(args.workers);
    let mut state = ReconnectState::new();
    loop {
        let served = connect(args, &brokers, stop).and_then(|session| match session {
            Some(session) => {
                Supervisor::new(session, &service, serve, &slots)?.run(stop, &mut state)
            }
            None => Ok(()),
        });
        let Err(failure) = served else { return Ok(ExitCode::SUCCESS) };
        if let FailureKind::TooLarge { limit } = failure.kind {
            // The request comes again, to be answered with an error then.
            service.limit_body(limit);
        }
        let delay = state.delay_after(failure)?;
        if stop.recv_timeout(delay).is_ok() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Opens a connection, and makes sure of the queue. None if a signal asks to stop: then the attempt,
/// which can take its time with each of the brokers, is left behind.
fn connect(
    args: &cli::Server,
    brokers: &[Endpoint],
    stop: &Receiver<Stop>,
) -> Result<Option<Session>, Failure> {
    let (brokers, limit) = (brokers.to_vec(), args.common.connect_timeout);
    let (queue, queue_type) = (args.common.queue.clone(), args.queue_type);
    let (sender, opened) = bounded(1);
    let attempt = move || {
        let opened = Session::open(&brokers, limit, "rpc_server").and_then(|mut session| {
            info!("connected to {}", session.name());
            queue::ensure(&mut session, &queue, queue_type)?;
            Ok(session)
        });
        // Nobody receives it if a signal came.
        let _ = sender.send(opened);
    };
    thread::Builder::new().name("connect".into()).spawn(attempt).map_err(|error| {
        Failure::new(FailureKind::Internal, format!("cannot start a thread to connect: {error}"))
    })?;
    select_biased! {
        recv(stop) -> _ => Ok(None),
        recv(opened) -> session => match session {
            Ok(session) => session.map(Some),
            Err(_) => Err(Failure::new(FailureKind::Internal, "the thread that connects panicked")),
        },
    }
}
