//! What `rpc_client` has around its loop: it connects, and connects again when a connection is lost,
//! until every call has its outcome.

pub mod calls;
pub mod channel;
pub mod deadline;
pub mod diagnosis;
pub mod input;
pub mod progress;
pub mod report;
pub mod retry;

use crate::amqp::connection::Session;
use crate::amqp::uri::{self, Endpoint};
use crate::cli::{self, Format};
use crate::error::{Failure, FailureKind, ProgramError};
use crate::signals::{self, Stop};
use anyhow::Context;
use calls::Calls;
use channel::{Interrupted, RpcChannel};
use crossbeam_channel::{Receiver, TryRecvError, never};
use input::Input;
use log::info;
use report::{PROGRAM, Report};
use retry::RetryPolicy;
use std::process::ExitCode;
use std::sync::Weak;
use std::time::{Duration, Instant};

/// How long the process goes on after a signal: it may be waiting for a broker, or for whoever reads
/// its output.
const STOP_LIMIT: Duration = Duration::from_millis(500);

/// How many calls that could not be made have objects in JSON. There may be any number of them.
const MOST_UNMADE: u64 = 1_000;

/// The tutorial's loop: makes calls on a channel until they are over, or something ends it.
pub type Exchange = fn(&mut RpcChannel, &mut Calls, &mut Report) -> Result<(), Interrupted>;

/// Makes the calls that `args` ask for by `exchange`, on as many connections as it takes. The exit code
/// is that of the first call that failed; an error keeps the program from making or reporting calls.
pub fn run(args: &cli::Client, exchange: Exchange) -> Result<ExitCode, ProgramError> {
    let brokers = uri::parse_list(&args.common.url)?;
    // Before anything of the input is read.
    let report = Report::new(args);
    let (input, is_read) = input::arguments(args).context("cannot read the arguments")?;
    let mut client = Client {
        args,
        brokers,
        report,
        input,
        is_read,
        stop: None,
        session: None,
        calls: Calls::new(args),
        retry: RetryPolicy::new(args),
        opened: None,
        was_used: false,
    };
    while !client.calls.are_over() {
        let attempted = client.attempt(exchange);
        match attempted.or_else(|interrupted| client.recover(interrupted)) {
            Ok(()) => {}
            Err(Interrupted::Stopped(stop)) => {
                report_stopped(&mut client.calls, &mut client.report)?;
                client.report.end()?;
                stop.end_process();
            }
            Err(Interrupted::Output(error)) => return Err(error),
            Err(Interrupted::Disconnected(failure)) => {
                client.calls.abort(&failure);
                break;
            }
        }
    }
    client.finish()
}

struct Client<'a> {
    args: &'a cli::Client,
    brokers: Vec<Endpoint>,
    input: Input,
    /// Can be upgraded as long as more may come to `input`.
    is_read: Weak<()>,
    /// Where signals come from, once they are handled.
    stop: Option<Receiver<Stop>>,
    /// A connection that is good, while there is no queue or no server.
    session: Option<Session>,
    calls: Calls<'a>,
    retry: RetryPolicy<'a>,
    /// When the connection was opened on which calls could be made, and whether requests were
    /// published on it.
    opened: Option<Instant>,
    was_used: bool,
    report: Report<'a>,
}

impl Client<'_> {
    /// Connects, looks whether somebody consumes from the queue, and makes calls.
    fn attempt(&mut self, exchange: Exchange) -> Result<(), Interrupted> {
        let (args, common) = (self.args, &self.args.common);
        let limit = RetryPolicy::attempt_limit(self.calls.last_deadline());
        let mut session = match self.session.take() {
            Some(session) => session,
            None => Session::open_within(limit, &self.brokers, common.connect_timeout, PROGRAM)
                .inspect(|session| info!("connected to {}", session.name()))?,
        };
        self.calls.set_broker(session.name());
        // The declares to come are part of the attempt.
        session.set_call_timeout(limit);
        let channel = match diagnosis::served(&mut session, &common.queue, self.retry.waits()) {
            Ok(channel) => channel,
            Err(failure) => {
                self.session = (failure.kind != FailureKind::ConnectionLost).then_some(session);
                return Err(failure.into());
            }
        };
        (self.opened, self.was_used) = (Some(Instant::now()), false);
        // Until calls are made there is nothing to bring to an end, and a signal ends the process.
        if self.stop.is_none() {
            self.stop = Some(signals::stop_requests(Some(STOP_LIMIT), || {})?);
        }
        let stop = self.stop.clone().unwrap_or_else(never);
        self.calls.resume();
        let input = &self.input;
        // With several brokers: the node that took a request can die before it has passed it on.
        let has_confirms = self.brokers.len() > 1 || common.confirm;
        let mut rpc = RpcChannel::open(args, &mut session, &channel, has_confirms, input, stop)?;
        let ended = exchange(&mut rpc, &mut self.calls, &mut self.report);
        self.was_used = rpc.was_used;
        if let Err(Interrupted::Stopped(_)) = ended {
            // There may be no time for it after the connection is closed.
            report_stopped(&mut self.calls, &mut self.report)?;
        }
        ended
    }

    /// Waits before the next attempt, if another one may help, and finishes the calls whose time has run
    /// out by then.
    fn recover(&mut self, interrupted: Interrupted) -> Result<(), Interrupted> {
        let Interrupted::Disconnected(failure) = interrupted else { return Err(interrupted) };
        let delay = match self.opened.take() {
            Some(opened) => {
                if self.input.is_empty() {
                    // What an idle client waited for was its input.
                    self.calls.restart_next();
                }
                // First, finish the calls that must not be published again.
                let mut kind = failure.kind;
                if let FailureKind::TooLarge { limit } = kind {
                    self.calls.limit_body(limit, &failure);
                    kind = FailureKind::ConnectionLost;
                }
                if self.args.no_retry {
                    self.calls.fail(&Failure { kind, ..failure.clone() }, |_| true);
                }
                self.retry.after_lost(&failure, opened.elapsed(), self.was_used)?
            }
            None => self.retry.after_unreachable(&failure, self.calls.last_deadline())?,
        };
        self.report_finished()?;
        if self.is_read.strong_count() == 0 && self.input.is_empty() {
            self.calls.input_is_over();
        }
        if self.calls.are_over() {
            return Ok(());
        }
        let left = self.calls.last_deadline().left().unwrap_or(Duration::MAX);
        if let Ok(stop) = self.stop.as_ref().unwrap_or(&never()).recv_timeout(delay.min(left)) {
            return Err(Interrupted::Stopped(stop));
        }
        let now = Instant::now();
        self.calls.expire(now, &diagnosis::not_in_time(&failure, self.args.timeout));
        self.report_finished()?;
        // The next call could not be made either, or would have to wait as long.
        if self.calls.last_deadline().has_passed(now) || self.calls.is_blocked_by(&failure) {
            return Err(self.retry.too_late(&failure).into());
        }
        Ok(())
    }

    /// Reports what is finished, to be read before a wait.
    fn report_finished(&mut self) -> Result<(), Interrupted> {
        self.report.write(self.calls.take_finished())?;
        Ok(self.report.flush()?)
    }

    /// Reports what is left to report.
    fn finish(mut self) -> Result<ExitCode, ProgramError> {
        self.report.write(self.calls.take_finished())?;
        let Some(failure) = self.calls.input_failure.clone() else { return self.report.end() };
        let untold = match self.unmade() {
            Some(calls) => self.report_unmade(calls, &failure)?,
            None => u64::from(self.input_has_more() || !self.report.has_begun()),
        };
        if untold > 0 || failure.kind == FailureKind::Internal {
            self.report.no_more_calls(&failure);
        }
        self.report.end()
    }

    /// How many calls were not made of which a word is to be said. None: as many as standard input has, which
    /// may never end.
    fn unmade(&self) -> Option<u64> {
        let calls = self.calls.unmade_count().filter(|_| self.args.stdins() == 0)?;
        Some(if self.args.fail_fast { calls.min(1) } else { calls })
    }

    /// Reports so many calls that could not be made for this `failure`: JSON has an object for each of them, up
    /// to a number that can be read. Returns how many have none.
    fn report_unmade(&mut self, calls: u64, failure: &Failure) -> Result<u64, ProgramError> {
        self.report.count_unmade(calls, failure);
        if self.args.format != Format::Json {
            return Ok(calls);
        }
        let told = calls.min(MOST_UNMADE);
        for argument in self.input.iter().take(told as usize) {
            self.report.write_unmade(&self.calls.unmade(argument?), failure)?;
        }
        Ok(calls - told)
    }

    fn input_has_more(&self) -> bool {
        !matches!(self.input.try_recv(), Err(TryRecvError::Disconnected))
    }
}

/// Reports what is finished when a signal came, to be read at once: where it shows whose each result is, also
/// what waited for a call before it.
fn report_stopped(calls: &mut Calls, report: &mut Report) -> Result<(), ProgramError> {
    report.write(calls.take_finished())?;
    if report.tells_whose() {
        report.write(calls.take_finished_behind())?;
    }
    report.flush()
}
