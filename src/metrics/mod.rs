//! A server's numbers and its health, for `rpc_server --metrics`. Here is what is counted; [`exposition`] writes it as
//! Prometheus reads it, [`http`] answers who asks.
//!
//! Whoever counts touches numbers and nothing else: no lock, no wait. A server without `--metrics` has no [`Metrics`].

pub mod exposition;
mod histogram;
pub mod http;

use crate::error::{ErrorKind, Failure, FailureKind};
use crate::procedure::{self, Procedures};
use clap::ValueEnum;
use exposition::Format;
use histogram::Histogram;
use http::{Request, Response};
use log::info;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What all calls are counted under that name a procedure which is not offered: callers choose such names, and each
/// would be one more number for ever.
pub const UNKNOWN: &str = "unknown";

/// How a call can end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallOutcome {
    /// With a result.
    Result,
    /// With an error of this kind.
    Error(ErrorKind),
    /// It was ended by the server: its channel or its connection was lost, so that its request comes again, or its
    /// caller is gone.
    Cancelled,
}

impl CallOutcome {
    fn all() -> impl Iterator<Item = CallOutcome> {
        let errors = ErrorKind::value_variants().iter().copied().map(CallOutcome::Error);
        [CallOutcome::Result, CallOutcome::Cancelled].into_iter().chain(errors)
    }

    fn index(self) -> usize {
        match self {
            CallOutcome::Result => 0,
            CallOutcome::Cancelled => 1,
            CallOutcome::Error(kind) => 2 + kind as usize,
        }
    }

    fn name(self) -> &'static str {
        match self {
            CallOutcome::Result => "result",
            CallOutcome::Cancelled => "cancelled",
            CallOutcome::Error(kind) => kind.name(),
        }
    }
}

/// Why a request has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DropReason {
    /// It names no queue that awaits its reply, or none that can be read.
    NoReplyTo,
    /// The queue that awaits its reply is gone.
    CallerGone,
    /// Its reply ends each connection that it goes out by.
    DeadlyReply,
}

impl DropReason {
    fn name(self) -> &'static str {
        match self {
            DropReason::NoReplyTo => "no-reply-to",
            DropReason::CallerGone => "caller-gone",
            DropReason::DeadlyReply => "deadly-reply",
        }
    }
}

/// The calls of one procedure.
#[derive(Debug)]
pub struct Calls {
    /// By [`CallOutcome::index`].
    outcomes: Vec<AtomicU64>,
    durations: Histogram,
}

impl Default for Calls {
    fn default() -> Calls {
        let outcomes = CallOutcome::all().map(|_| AtomicU64::new(0)).collect();
        Calls { outcomes, durations: Histogram::default() }
    }
}

/// What one server counts of itself, from its start.
#[derive(Debug)]
pub struct Metrics {
    /// By procedure, [`UNKNOWN`] among them unless all names are offered.
    calls: BTreeMap<String, Calls>,
    calls_in_progress: AtomicU64,
    calls_redelivered: AtomicU64,
    /// By [`DropReason`].
    dropped: [AtomicU64; 3],
    /// How many workers there are to be.
    workers: u64,
    workers_consuming: AtomicU64,
    is_connected: AtomicBool,
    connections: AtomicU64,
    is_stopping: AtomicBool,
}

impl Metrics {
    /// Returns the numbers, all 0, of a server with so many workers that offers these procedures.
    pub fn new<'a>(procedures: impl Iterator<Item = &'a str>, workers: u16) -> Metrics {
        let by_name = procedures.map(|name| (name.to_owned(), Calls::default()));
        let mut calls: BTreeMap<_, _> = by_name.collect();
        // Where all names are offered, none is unknown.
        if !calls.contains_key(procedure::ANY) {
            calls.entry(UNKNOWN.into()).or_default();
        }
        Metrics {
            calls,
            calls_in_progress: AtomicU64::new(0),
            calls_redelivered: AtomicU64::new(0),
            dropped: Default::default(),
            workers: workers.into(),
            workers_consuming: AtomicU64::new(0),
            is_connected: AtomicBool::new(false),
            connections: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
        }
    }

    /// Takes note that a call begins, of the procedure that a request names. It ends by [`Metrics::end_call`].
    pub fn begin_call(&self, procedure: &str, is_redelivered: bool) -> &Calls {
        self.calls_in_progress.fetch_add(1, Relaxed);
        if is_redelivered {
            self.calls_redelivered.fetch_add(1, Relaxed);
        }
        let calls = self.calls.get(procedure).or_else(|| self.calls.get(procedure::ANY));
        // `new` has put one of the two there.
        calls.unwrap_or_else(|| &self.calls[UNKNOWN])
    }

    /// Counts a call that [`Metrics::begin_call`] has begun.
    pub fn end_call(&self, calls: &Calls, outcome: CallOutcome, duration: Duration) {
        calls.outcomes[outcome.index()].fetch_add(1, Relaxed);
        calls.durations.observe(duration);
        self.calls_in_progress.fetch_sub(1, Relaxed);
    }

    /// Counts a request that has no answer.
    pub fn drop_request(&self, reason: DropReason) {
        self.dropped[reason as usize].fetch_add(1, Relaxed);
    }

    /// Takes note that the server is connected to a broker.
    pub fn connect(&self) {
        self.connections.fetch_add(1, Relaxed);
        self.is_connected.store(true, Relaxed);
    }

    /// Takes note that the server is not connected any more.
    pub fn disconnect(&self) {
        self.is_connected.store(false, Relaxed);
        self.workers_consuming.store(0, Relaxed);
    }

    /// Takes note of how many workers consume.
    pub fn consume(&self, workers: u16) {
        self.workers_consuming.store(workers.into(), Relaxed);
    }

    /// Takes note that the server is to stop.
    pub fn stop(&self) {
        self.is_stopping.store(true, Relaxed);
    }

    /// Returns that all workers consume, as a sentence. The error says, as a sentence, why not.
    pub fn health(&self) -> Result<String, String> {
        let (all, consuming) = (self.workers, self.workers_consuming.load(Relaxed));
        match self.is_connected.load(Relaxed) {
            _ if self.is_stopping.load(Relaxed) => Err("The server stops.".into()),
            false => Err("The server is not connected to a broker; its log says why.".into()),
            true if consuming < all => Err(format!("{consuming} of {all} workers consume.")),
            true => Ok(format!("{consuming} of {all} workers consume.")),
        }
    }
}

/// Listens on an address. [`FailureKind::Configuration`] if the system does not allow that: another process has the port,
/// say.
pub fn listen(address: SocketAddr) -> Result<TcpListener, Failure> {
    let listener = TcpListener::bind(address).map_err(|error| {
        let message =
            format!("cannot listen on {address}: {error}; --metrics names another port or address");
        Failure::new(FailureKind::Configuration, message)
    })?;
    // With port 0, the system chooses one.
    info!("metrics: http://{}/metrics", listener.local_addr().unwrap_or(address));
    Ok(listener)
}

/// Returns what a request for the numbers or the health of a server is answered with.
pub fn respond(request: &Request<'_>, metrics: &Metrics, procedures: &Procedures) -> Response {
    match request.path {
        "/metrics" => {
            let format = Format::accepted(request.accept);
            let body = exposition::write(metrics, procedures, format);
            Response { status: "200 OK", content_type: format.content_type(), body }
        }
        "/healthz" => match metrics.health() {
            Ok(sentence) => Response::text("200 OK", &sentence),
            Err(sentence) => Response::text("503 Service Unavailable", &sentence),
        },
        _ => Response::text("404 Not Found", "There are /metrics and /healthz."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_outcome_and_each_reason_has_a_place_and_a_name_of_its_own() {
        let indices: Vec<usize> = CallOutcome::all().map(CallOutcome::index).collect();
        assert_eq!(indices, (0..indices.len()).collect::<Vec<_>>());
        let mut names: Vec<&str> = CallOutcome::all().map(CallOutcome::name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), indices.len());
        let reasons = DropReason::value_variants();
        let metrics = Metrics::new([].into_iter(), 1);
        reasons.iter().for_each(|reason| metrics.drop_request(*reason));
        assert!(metrics.dropped.iter().all(|dropped| dropped.load(Relaxed) == 1));
    }

    #[test]
    fn what_is_not_offered_is_counted_as_unknown() {
        let metrics = Metrics::new(["fib", UNKNOWN].into_iter(), 1);
        for name in ["fib", "fibb", "", UNKNOWN] {
            let calls = metrics.begin_call(name, false);
            metrics.end_call(calls, CallOutcome::Result, Duration::ZERO);
        }
        let results = |name: &str| metrics.calls[name].outcomes[0].load(Relaxed);
        assert_eq!((results("fib"), results(UNKNOWN), metrics.calls.len()), (1, 3, 2));

        let metrics = Metrics::new(["fib", procedure::ANY].into_iter(), 1);
        for name in ["fibb", "", UNKNOWN] {
            let by_any = metrics.begin_call(name, false);
            assert!(std::ptr::eq(by_any, &metrics.calls[procedure::ANY]), "{name}");
        }
    }

    #[test]
    fn a_server_is_well_while_all_its_workers_consume() {
        let metrics = Metrics::new([].into_iter(), 2);
        let not_connected = "The server is not connected to a broker; its log says why.";
        assert_eq!(metrics.health(), Err(not_connected.into()));
        metrics.connect();
        metrics.consume(1);
        assert_eq!(metrics.health(), Err("1 of 2 workers consume.".into()));
        metrics.consume(2);
        assert_eq!(metrics.health(), Ok("2 of 2 workers consume.".into()));
        metrics.disconnect();
        assert_eq!(metrics.health(), Err(not_connected.into()));
        metrics.connect();
        assert_eq!(metrics.health(), Err("0 of 2 workers consume.".into()));
        metrics.stop();
        assert_eq!(metrics.health(), Err("The server stops.".into()));
    }
}
