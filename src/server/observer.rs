//! What becomes of requests, told to the log, and with `--metrics` counted: both where it is decided, and nowhere else.

use crate::cancellation::Cancelled;
use crate::error::ErrorKind;
use crate::metrics::{CallOutcome, Calls, DropReason, Metrics};
use crate::procedure::Outcome;
use crate::protocol::Request;
use crate::server::worker::Worker;
use log::{Level, info, log, warn};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Sees what becomes of requests, of all workers on all connections.
#[derive(Debug, Clone)]
pub struct Observer(Option<Arc<Metrics>>);

impl Observer {
    /// Returns an observer that counts in `metrics`, if there are any.
    pub fn new(metrics: Option<Arc<Metrics>>) -> Observer {
        Observer(metrics)
    }

    /// Returns what is counted, if anything is.
    pub fn metrics(&self) -> Option<Arc<Metrics>> {
        self.0.clone()
    }

    /// Takes note that a call begins.
    pub fn begin<'a>(&'a self, request: &'a Request<'a>) -> ObservedCall<'a> {
        let count = |metrics: &'a Arc<Metrics>| {
            let calls = metrics.begin_call(request.procedure, request.is_redelivered);
            (&**metrics, calls)
        };
        let counted = self.0.as_ref().map(count);
        ObservedCall { request, started: Instant::now(), counted, ended: None }
    }

    /// Takes note of a request that is answered, with an error of that kind, and not called.
    pub fn refused(&self, request: &Request<'_>, kind: ErrorKind) {
        self.begin(request).ended = Some((CallOutcome::Error(kind), Duration::ZERO));
    }

    /// Takes note of a request that gets no answer, and tells `what` it is about.
    pub fn dropped(&self, reason: DropReason, level: Level, what: fmt::Arguments<'_>) {
        log!(level, "{what}");
        if let Some(metrics) = &self.0 {
            metrics.drop_request(reason);
        }
    }

    /// Takes note that the server is connected to a broker, until what is returned is dropped.
    pub fn connected(&self) -> Connected {
        if let Some(metrics) = &self.0 {
            metrics.connect();
        }
        Connected(self.clone())
    }

    /// Takes note of how many workers consume.
    pub fn consuming(&self, workers: u16) {
        if let Some(metrics) = &self.0 {
            metrics.consume(workers);
        }
    }

    /// Takes note that the server is to stop.
    pub fn stopping(&self) {
        if let Some(metrics) = &self.0 {
            metrics.stop();
        }
    }
}

impl Worker<'_> {
    /// Takes note of a request that cannot be answered, and so is not called.
    pub fn drop_unanswerable(&self, request: &Request<'_>) {
        let what = format_args!(
            "{request} came without a readable reply_to or correlation_id: nobody to answer; dropped"
        );
        self.service.observer.dropped(DropReason::NoReplyTo, Level::Warn, what);
    }
}

/// A connection to a broker.
#[derive(Debug)]
pub struct Connected(Observer);

impl Drop for Connected {
    fn drop(&mut self) {
        if let Some(metrics) = &self.0.0 {
            metrics.disconnect();
        }
    }
}

/// A call under way. One that is dropped before it has ended was cancelled.
#[derive(Debug)]
pub struct ObservedCall<'a> {
    request: &'a Request<'a>,
    /// When it began.
    pub started: Instant,
    counted: Option<(&'a Metrics, &'a Calls)>,
    ended: Option<(CallOutcome, Duration)>,
}

impl ObservedCall<'_> {
    /// Takes note of what the call is answered with.
    pub fn end(mut self, outcome: &Outcome) {
        let (request, duration) = (self.request, self.started.elapsed());
        let milliseconds = duration.as_secs_f64() * 1e3;
        let how = match outcome {
            Ok(_) => {
                info!("{request}: result, {milliseconds:.1} ms");
                CallOutcome::Result
            }
            Err(error) => {
                warn!("{request}: {}, {milliseconds:.1} ms", error.kind.name());
                CallOutcome::Error(error.kind)
            }
        };
        self.ended = Some((how, duration));
    }

    /// Takes note that the call is not answered. Of one whose caller is gone, `is_news` says whether that caller has had no
    /// other such call.
    pub fn cancel(self, reason: Cancelled, is_news: bool) {
        let request = self.request;
        let level = if is_news { Level::Warn } else { Level::Info };
        let given_up = |lost| {
            log!(
                level,
                "{request} is given up with its {lost}; it comes again, if its queue is there"
            )
        };
        match reason {
            Cancelled::ConnectionLost => given_up("connection"),
            Cancelled::ChannelClosed => given_up("channel"),
            Cancelled::CallerGone => {
                let seconds = self.started.elapsed().as_secs_f64();
                log!(level, "{request}: nobody waits for it any more: ended after {seconds:.1} s");
            }
        }
    }
}

impl Drop for ObservedCall<'_> {
    fn drop(&mut self) {
        let Some((metrics, calls)) = self.counted else { return };
        let cancelled = || (CallOutcome::Cancelled, self.started.elapsed());
        let (outcome, duration) = self.ended.unwrap_or_else(cancelled);
        metrics.end_call(calls, outcome, duration);
    }
}
