//! What `rpc_server` has around its loop: it connects, lets workers serve, and connects again when a
//! connection is lost, until a signal asks to stop.

mod at_most_once;
mod callers;
mod isolated;
mod lifetime;
mod observer;
mod probes;
mod reconnect;
mod remembered;
mod supervisor;
mod sync;
pub mod worker;

use crate::amqp::connection::OpenConnection;
use crate::amqp::{binding, queue, uri};
use crate::cli;
use crate::command::memory;
use crate::error::{Failure, FailureKind, ProgramError};
use crate::metrics::{self, Metrics};
use crate::procedure::Procedures;
use crate::remedies;
use crate::signals::{self, Stop};
use crate::terminal::output;
use at_most_once::AckedCalls;
use callers::GoneCallers;
use crossbeam_channel::{Receiver, bounded, select_biased};
use isolated::Isolated;
use lifetime::Lifetime;
use log::info;
use observer::Observer;
use reconnect::ReconnectState;
use remembered::Remembered;
use std::net::TcpListener;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use supervisor::supervise;
use sync::Semaphore;
use worker::{Service, Worker, WorkerError};

const PROGRAM: &str = "rpc_server";

/// Serves by `serve` as `args` say, on as many connections as it takes, until a signal asks to stop. It
/// fails where another connection would change nothing: a malformed URI, a program that is not there,
/// refused credentials at the first start.
pub fn run(
    args: cli::Server,
    serve: impl Fn(&mut Worker) -> Result<(), WorkerError> + Send + Sync + 'static,
) -> Result<ExitCode, ProgramError> {
    memory::share_arenas();
    let transcript = output::write_by_threads(PROGRAM, !args.common.quiet)?;
    let brokers = uri::parse_list(&args.common.url)?;
    let listener = args.metrics.map(metrics::listen).transpose()?;
    let procedures = Procedures::new(&args.offers.0, args.settings())?;
    let counted = listener.as_ref().map(|_| Metrics::new(procedures.each_name(), args.workers));
    let observer = Observer::new(counted.map(Arc::new));
    let service = Arc::new(Service {
        serve: Box::new(serve),
        procedures,
        confirms: brokers.len() > 1 || args.common.confirm || args.at_most_once,
        remembered: Remembered::default(),
        isolated: Isolated::new(args.common.client_properties(PROGRAM), observer.clone()),
        observer,
        gone: GoneCallers::default(),
        acked: AckedCalls::default(),
        lifetime: Lifetime::new(args.max_calls, args.idle_exit),
        transcript,
        slots: Semaphore::new(args.workers.into()),
        brokers,
        args,
    });

    if let Some(listener) = listener {
        serve_metrics(listener, Arc::clone(&service))?;
    }
    signals::handle_sigchld()?;
    service.procedures.programs.adopt_orphans()?;
    let to_kill = Arc::clone(&service);
    let at_end = move || {
        to_kill.procedures.programs.kill_all();
        output::finish();
    };
    let stop = signals::stop_requests(None, at_end)?;
    let (workers, kill_delay) = (service.args.workers.into(), service.args.kill_delay);
    let started = service.procedures.start(workers, kill_delay);
    let served = started.and_then(|()| serve_until(&stop, &service));

    // Their requests do not come again.
    service.acked.wait();
    service.procedures.end(workers, kill_delay);
    // Programs whose connection was lost had some time left to end by themselves.
    service.procedures.programs.kill_all();
    served?;
    Ok(ExitCode::SUCCESS)
}

/// Answers who asks for numbers or health, until the process ends.
fn serve_metrics(listener: TcpListener, service: Arc<Service>) -> Result<(), Failure> {
    let Some(counted) = service.observer.metrics() else { return Ok(()) };
    metrics::http::serve(listener, move |request| {
        metrics::respond(request, &counted, &service.procedures)
    })
}

fn serve_until(stop: &Receiver<Stop>, service: &Arc<Service>) -> Result<(), Failure> {
    let mut state = ReconnectState::new();
    loop {
        let served = match connect(service, stop) {
            Ok(Some(connection)) => supervise(connection, Arc::clone(service), stop, &mut state),
            Ok(None) => Ok(()),
            Err(failure) => Err(failure),
        };
        let Err(failure) = served else { return Ok(()) };
        // Time without a connection is not idle: nobody knows whether there are requests.
        if service.lifetime.is_used_up() {
            return Ok(());
        }
        let delay = state.delay_after(failure)?;
        if stop.recv_timeout(delay).is_ok() {
            return Ok(());
        }
    }
}

/// Opens a connection, and makes sure of the queue. None if a signal asks to stop: then the attempt,
/// which can take its time with each of the brokers, is left behind.
fn connect(
    service: &Arc<Service>,
    stop: &Receiver<Stop>,
) -> Result<Option<OpenConnection>, Failure> {
    let service = Arc::clone(service);
    let (sender, opened) = bounded(1);
    let attempt = move || {
        // Nobody receives it if a signal came.
        let _ = sender.send(open(&service));
    };
    let spawned = thread::Builder::new().name("connect".into()).spawn(attempt);
    spawned.map_err(Failure::internal("cannot start a thread to connect"))?;

    select_biased! {
        recv(stop) -> _ => Ok(None),
        recv(opened) -> connection => match connection {
            Ok(connection) => connection.map(Some),
            Err(_) => Err(Failure::new(FailureKind::Internal, "the thread that connects panicked")),
        },
    }
}

fn open(service: &Service) -> Result<OpenConnection, Failure> {
    let common = &service.args.common;
    let (limit, properties) = (common.connect_timeout, common.client_properties(PROGRAM));
    let mut connection = OpenConnection::open(&service.brokers, limit, &properties)?;
    remedies::log_failed_attempts(&connection);
    info!("connected to {}", connection.name());

    queue::ensure(&mut connection, &common.queue, service.args.queue_type.into())?;
    binding::bind(&mut connection, &common.queue, &service.args.bind)?;
    Ok(connection)
}
