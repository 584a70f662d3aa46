//! What `rpc_client` has around its loop: it connects, and connects again when a connection is lost,
//! until every call has its outcome.

pub mod attempts;
pub mod call;
pub mod calls;
pub mod channel;
pub mod deadline;
pub mod destination;
pub mod diagnosis;
pub mod input;
pub mod outputs;
pub mod pace;
pub mod progress;
pub mod reply;
pub mod report;
pub mod retry;
pub mod summary;
pub mod window;

use crate::amqp::connection::OpenConnection;
use crate::amqp::uri::{self, Endpoint};
use crate::cli::{self, Format};
use crate::error::{Failure, FailureKind, ProgramError};
use crate::remedies;
use crate::signals::{self, Stop};
use amiquip::Channel;
use anyhow::Context;
use calls::{Calls, Unmade};
use channel::{Interrupted, RpcChannel};
use crossbeam_channel::{Receiver, TryRecvError, never};
use destination::Destination;
use input::Input;
use log::info;
use report::{PROGRAM, Report};
use retry::RetryPolicy;
use std::process::ExitCode;
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
    let input = Input::open(args, report.skipped()).context("cannot read the arguments")?;
    let mut client = Client {
        args,
        brokers,
        input,
        stop: None,
        connection: None,
        calls: Calls::new(args),
        retry: RetryPolicy::new(args),
        report,
    };

    if args.skip_existing {
        client.await_work();
    }
    while !client.calls.are_over() {
        let ended = client.attempt(exchange);
        client.recover(ended)?;
    }
    client.finish()
}

struct Client<'a> {
    args: &'a cli::Client,
    brokers: Vec<Endpoint>,
    input: Input,
    /// Where signals come from, once they are handled.
    stop: Option<Receiver<Stop>>,
    /// A connection that is good, while there is no queue or no server.
    connection: Option<OpenConnection>,
    calls: Calls<'a>,
    retry: RetryPolicy<'a>,
    report: Report<'a>,
}

/// How a connection, or the attempt to open one, ended.
enum ConnectionEnd {
    /// The calls are over.
    Finished,
    /// A signal asks to stop.
    Stopped(Stop),
    /// Standard output takes nothing more.
    Output(ProgramError),
    /// There is no connection on which calls can be made.
    Unreachable(Failure),
    /// A connection was lost on which calls could be made. It `held` so long; any request that was published on it
    /// may have been computed.
    Lost { failure: Failure, held: Duration, was_used: bool },
}

impl Client<'_> {
    /// Waits until there is a call to make. If all outputs are there, no broker is needed.
    fn await_work(&mut self) {
        self.input.await_first();
        if self.input.is_over() {
            self.calls.input_is_over();
        }
    }

    /// Opens a connection, and makes calls on it until it ends.
    fn attempt(&mut self, exchange: Exchange) -> ConnectionEnd {
        match self.connect() {
            Ok((connection, channel)) => self.make_calls(connection, &channel, exchange),
            Err(failure) => ConnectionEnd::Unreachable(failure),
        }
    }

    /// Connects, and looks whether somebody consumes from the queue.
    fn connect(&mut self) -> Result<(OpenConnection, Channel), Failure> {
        let common = &self.args.common;
        let limit = RetryPolicy::attempt_limit(self.calls.last_deadline());
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let (brokers, own_limit) = (&self.brokers, common.connect_timeout);
                let properties = common.client_properties(PROGRAM);
                let opened = OpenConnection::open_within(limit, brokers, own_limit, &properties)?;
                remedies::log_failed_attempts(&opened);
                info!("connected to {}", opened.name());
                opened
            }
        };

        // The declares to come are part of the attempt.
        connection.set_call_timeout(limit);
        let destination = Destination::of(self.args);
        match diagnosis::served(&mut connection, destination, self.retry.waits()) {
            Ok((channel, servers)) => {
                self.calls.resume(servers);
                // Until calls are made there is nothing to bring to an end, and a signal ends the process.
                if self.stop.is_none() {
                    self.stop = Some(signals::stop_requests(Some(STOP_LIMIT), || {})?);
                }
                Ok((connection, channel))
            }
            Err(failure) => {
                if failure.kind != FailureKind::ConnectionLost {
                    self.connection = Some(connection);
                }
                Err(failure)
            }
        }
    }

    fn make_calls(
        &mut self,
        mut connection: OpenConnection,
        channel: &Channel,
        exchange: Exchange,
    ) -> ConnectionEnd {
        let opened = Instant::now();
        let mut was_used = false;
        self.calls.set_broker(connection.name());

        // With several brokers: the node that took a request can die before it has passed it on.
        let has_confirms = self.brokers.len() > 1 || self.args.common.confirm;
        let stop = self.stop.clone().unwrap_or_else(never);
        let (args, input) = (self.args, &self.input);
        let rpc = RpcChannel::open(args, &mut connection, channel, has_confirms, input, stop);
        let ended = rpc.map_err(Interrupted::from).and_then(|mut rpc| {
            let ended = exchange(&mut rpc, &mut self.calls, &mut self.report);
            was_used = rpc.was_used;
            if let Err(Interrupted::Stopped(_) | Interrupted::Disconnected(_)) = ended {
                rpc.take_arrived(&mut self.calls);
            }
            // Before the connection is closed.
            match ended {
                // Whoever reads the results needs nothing of the connection any more.
                Ok(()) => self.report.flush()?,
                // There may be no time for it afterwards.
                Err(Interrupted::Stopped(_)) => report_stopped(&mut self.calls, &mut self.report)?,
                Err(_) => {}
            }
            ended
        });

        match ended {
            Ok(()) => ConnectionEnd::Finished,
            Err(Interrupted::Stopped(stop)) => ConnectionEnd::Stopped(stop),
            Err(Interrupted::Output(error)) => ConnectionEnd::Output(error),
            Err(Interrupted::Disconnected(failure)) => {
                ConnectionEnd::Lost { failure, held: opened.elapsed(), was_used }
            }
        }
    }

    /// Brings the calls to an end for which no other attempt can do anything, and waits before it, if there is one.
    fn recover(&mut self, ended: ConnectionEnd) -> Result<(), ProgramError> {
        let (failure, pause) = match ended {
            ConnectionEnd::Finished => return Ok(()),
            ConnectionEnd::Stopped(stop) => return self.stop(stop),
            ConnectionEnd::Output(error) => return Err(error),
            ConnectionEnd::Unreachable(failure) => {
                if self.args.retries > 0 && self.retry.waits() {
                    // The attempt to connect may have taken all the time that was left to the calls. Those that are
                    // made again have new time.
                    self.calls.expire(Instant::now(), &self.retry.too_late(&failure));
                }
                let pause = self.retry.after_unreachable(&failure, self.calls.last_deadline());
                (failure, pause)
            }
            ConnectionEnd::Lost { failure, held, was_used } => {
                self.calls.lose_connection(self.input.is_empty());
                self.fail_unrepeatable(&failure);
                let pause = self.retry.after_lost(&failure, held, was_used);
                (failure, pause)
            }
        };

        match pause {
            Ok(pause) => self.wait(pause, &failure),
            Err(last) => self.abort(&last),
        }
    }

    /// Finishes the calls that must not be published again after a connection was lost by this `failure`.
    fn fail_unrepeatable(&mut self, failure: &Failure) {
        let mut kind = failure.kind;
        if let FailureKind::TooLarge { limit } = kind {
            self.calls.limit_body(limit, failure);
            kind = FailureKind::ConnectionLost;
        }
        if self.args.no_retry {
            self.calls.fail(&Failure { kind, ..failure.clone() }, |_| true);
        }
    }

    /// Waits until the `pause` before the next attempt is over, which this `failure` made necessary, and finishes the
    /// calls whose time has run out by then.
    fn wait(&mut self, pause: Duration, failure: &Failure) -> Result<(), ProgramError> {
        self.report_finished()?;
        if self.input.is_over() {
            self.calls.input_is_over();
        }
        if self.calls.are_over() {
            return Ok(());
        }

        let left = self.calls.last_deadline().left().unwrap_or(Duration::MAX);
        if let Ok(stop) = self.stop.as_ref().unwrap_or(&never()).recv_timeout(pause.min(left)) {
            return self.stop(stop);
        }

        let now = Instant::now();
        self.calls.expire(now, &diagnosis::not_in_time(failure, self.args.timeout));
        self.report_finished()?;

        // The next call could not be made either, or would have to wait as long.
        if self.calls.last_deadline().has_passed(now) || self.calls.is_blocked_by(failure) {
            return self.abort(&self.retry.too_late(failure));
        }
        Ok(())
    }

    /// Finishes all calls with `failure`, and makes no more.
    fn abort(&mut self, failure: &Failure) -> Result<(), ProgramError> {
        self.calls.abort(failure);
        self.report_finished()
    }

    /// Ends the process by a signal.
    fn stop(&mut self, stop: Stop) -> Result<(), ProgramError> {
        report_stopped(&mut self.calls, &mut self.report)?;
        self.report.end()?;
        stop.end_process()
    }

    /// Reports what is finished, to be read before a wait.
    fn report_finished(&mut self) -> Result<(), ProgramError> {
        self.report.write(self.calls.take_finished())?;
        self.report.flush()
    }

    /// Reports what is left to report.
    fn finish(mut self) -> Result<ExitCode, ProgramError> {
        self.report.write(self.calls.take_finished())?;
        if let Some(unmade) = self.calls.unmade().cloned() {
            self.report_unmade(&unmade)?;
        }
        self.report.end()
    }

    /// Reports calls that could not be made.
    fn report_unmade(
        &mut self,
        Unmade { failure, calls, .. }: &Unmade,
    ) -> Result<(), ProgramError> {
        let is_untold = match calls {
            Some(calls) if self.args.stdins() == 0 => {
                let wanted = if self.args.fail_fast { 1.min(*calls) } else { *calls };
                self.write_unmade(wanted, failure)? < wanted
            }
            // Lines of standard input may never come.
            _ => {
                let read = self.input.arguments().try_recv();
                let is_unread = !matches!(read, Err(TryRecvError::Disconnected));
                if is_unread {
                    self.report.count_unread();
                }
                is_unread || !self.report.has_begun()
            }
        };

        if is_untold || failure.kind == FailureKind::Internal {
            self.report.no_more_calls(failure);
        }
        Ok(())
    }

    /// Counts so many calls that could not be made for this `failure`. JSON has an object for each of them, up to a
    /// number that can be read: returns how many.
    fn write_unmade(&mut self, calls: u64, failure: &Failure) -> Result<u64, ProgramError> {
        self.report.count_unmade(calls, failure);
        if self.args.format != Format::Json {
            return Ok(0);
        }
        let told = calls.min(MOST_UNMADE);
        for argument in self.input.arguments().iter().take(told as usize) {
            self.report.write_unmade(&self.calls.unmade_call(argument?), failure)?;
        }
        Ok(told)
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
