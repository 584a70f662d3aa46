//! The client of RabbitMQ's tutorial six: publishes a request, then blocks on its exclusive reply
//! queue until the reply with its correlation id comes; others are discarded.

use amiquip::{Channel, ConsumerMessage, ConsumerOptions, Error, QueueDeclareOptions, Return};
use anyhow::{Context, Result};
use crossbeam_channel::{Receiver, after, never, select_biased};
use fib_rpc::connection::Session;
use fib_rpc::exit::{Failure, Kind};
use fib_rpc::message::{Reply, Request};
use fib_rpc::procedure::ErrorKind;
use fib_rpc::text::{excerpt, lines, short};
use fib_rpc::uri::{self, Endpoint};
use fib_rpc::{cli, logging, output, queue};
use humantime::format_duration;
use log::{info, warn};
use std::io::{self, BufRead, IsTerminal};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};
use uuid::Uuid;

const PROGRAM: &str = "rpc_client";

/// How often `--wait` looks again.
const WAIT_INTERVAL: Duration = Duration::from_millis(100);

/// How long a broker may take to help with the diagnosis of a call that timed out.
const DIAGNOSIS_LIMIT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match cli::parse::<cli::Client>() {
        Ok(args) => output::conclude(PROGRAM, run(&args)),
        Err(code) => code,
    }
}

fn run(args: &cli::Client) -> Result<ExitCode> {
    logging::init(PROGRAM, args.common.quiet, args.common.verbose);
    let brokers = uri::parse_list(args.common.url())?;
    let (mut session, channel) =
        reach(args, &brokers).with_context(|| excerpt(args.procedure.as_bytes()))?;

    let returns = session.ask(|| channel.listen_for_returns())?;
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let reply_queue = session.ask(|| channel.queue_declare("", exclusive))?;
    // A reply is of no use to anybody else, so there is nothing to acknowledge.
    let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
    let consumer = session.ask(|| reply_queue.consume(no_ack))?;
    info!("consume replies from {}", reply_queue.name());

    let line = Line {
        channel: &channel,
        reply_to: reply_queue.name(),
        replies: consumer.receiver(),
        returns: &returns,
    };
    let called = call_all(&mut session, &line, args);
    // Before channel and consumer are dropped: each would wait for an answer of its own.
    session.close();
    called
}

/// What calls go out on and replies come in by.
struct Line<'a> {
    channel: &'a Channel,
    reply_to: &'a str,
    replies: &'a Receiver<ConsumerMessage>,
    returns: &'a Receiver<Return>,
}

/// A connection to a broker, and a channel on it, once the request queue has a consumer.
fn reach(args: &cli::Client, brokers: &[Endpoint]) -> Result<(Session, Channel), Failure> {
    let patience = Patience::new(args);
    loop {
        let mut session = patience.retry(|| {
            Session::open(brokers, args.common.connect_timeout.min(patience.left()), PROGRAM)
        })?;
        match patience.retry(|| served(&mut session, &args.common.queue)) {
            Ok(channel) => return Ok((session, channel)),
            Err(lost) if args.wait && lost.kind == Kind::ConnectionLost => continue,
            Err(failure) => return Err(failure),
        }
    }
}

/// A channel, if somebody consumes from the request queue.
fn served(session: &mut Session, queue: &str) -> Result<Channel, Failure> {
    let channel = session.channel()?;
    let state = queue::inspect(session, &channel, queue).map_err(|failure| match failure.kind {
        Kind::QueueMissing => no_queue(session, queue),
        _ => failure,
    })?;
    info!("queue {queue}: {} messages, {} consumers", state.messages, state.consumers);
    if state.consumers > 0 {
        return Ok(channel);
    }
    session.ask(|| channel.close())?;
    let waiting = count(state.messages, "request waits", "requests wait");
    let message = format!(
        "nobody consumes from the queue \"{queue}\" on {}, where {waiting}; start rpc_server (--wait waits for it)",
        session.endpoint()
    );
    Err(Failure::new(Kind::NoConsumer, message))
}

fn no_queue(session: &Session, queue: &str) -> Failure {
    let message = format!(
        "there is no queue \"{queue}\" on {}; start rpc_server, or name its queue with --queue (--wait waits for it)",
        session.endpoint()
    );
    Failure::new(Kind::QueueMissing, message)
}

/// How long `--wait` goes on trying.
struct Patience {
    wait: bool,
    timeout: Duration,
    started: Instant,
}

impl Patience {
    fn new(args: &cli::Client) -> Patience {
        Patience { wait: args.wait, timeout: args.timeout, started: Instant::now() }
    }

    fn left(&self) -> Duration {
        match self.timeout {
            _ if !self.wait => Duration::MAX,
            Duration::ZERO => Duration::MAX,
            timeout => timeout.saturating_sub(self.started.elapsed()),
        }
    }

    /// Tries until there is nothing to wait for any more: a success, a failure that does not pass
    /// by itself, or the end of the time.
    fn retry<T>(&self, mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        let mut told = None;
        loop {
            let failure = match attempt() {
                Err(failure) if self.wait && may_pass(failure.kind) => failure,
                result => return result,
            };
            if self.left().is_zero() {
                let waited = format_duration(self.timeout);
                return Err(Failure::new(failure.kind, format!("{failure} (waited {waited})")));
            }
            if told != Some(failure.kind) {
                warn!("waiting: {failure}");
                told = Some(failure.kind);
            }
            sleep(WAIT_INTERVAL.min(self.left()));
        }
    }
}

fn may_pass(kind: Kind) -> bool {
    matches!(kind, Kind::BrokerUnreachable | Kind::QueueMissing | Kind::NoConsumer)
}

/// Makes the calls, one after another. A failed one does not stop the rest; the first failure
/// gives the exit code.
fn call_all(session: &mut Session, line: &Line<'_>, args: &cli::Client) -> Result<ExitCode> {
    let transcript = !args.common.quiet
        && match args.format {
            cli::Format::Auto => io::stdout().is_terminal(),
            cli::Format::Transcript => true,
            cli::Format::Plain => false,
        };
    let procedure = excerpt(args.procedure.as_bytes());
    let mut code = None;
    for argument in arguments(args) {
        let argument = argument.context("cannot read standard input")?;
        let name = format!("{procedure}({})", excerpt(&argument));
        if transcript {
            output::line(format_args!(" [x] Requesting {name}"))?;
        }
        match call(session, line, args, &argument) {
            Ok(result) if transcript => output::line(format_args!(" [.] Got {}", lines(&result)))?,
            Ok(result) => output::line(format_args!("{result}"))?,
            Err(failure) => {
                let lost = failure.kind == Kind::ConnectionLost;
                code = code.or(Some(failure.kind.code()));
                output::complain(PROGRAM, &anyhow::Error::new(failure).context(name));
                if lost {
                    break;
                }
            }
        }
    }
    Ok(code.map_or(ExitCode::SUCCESS, ExitCode::from))
}

/// The argument of each call: those of the command line, and for `-` each line of standard input.
fn arguments(args: &cli::Client) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let none = args.arguments.is_empty().then(|| Ok(Vec::new()));
    none.into_iter().chain(args.arguments.iter().flat_map(|argument| {
        let given = (argument != "-").then(|| Ok(argument.clone().into_bytes()));
        let lines = (argument == "-").then(|| io::stdin().lock().split(b'\n'));
        given.into_iter().chain(lines.into_iter().flatten())
    }))
}

/// One call: publish, then block until its reply comes.
fn call(
    session: &mut Session,
    line: &Line<'_>,
    args: &cli::Client,
    argument: &[u8],
) -> Result<String, Failure> {
    let queue = &args.common.queue;
    let correlation_id = Uuid::new_v4().to_string();
    let limited = args.timeout > Duration::ZERO;
    let request = Request {
        procedure: &args.procedure,
        argument,
        reply_to: Some(line.reply_to),
        correlation_id: Some(&correlation_id),
        expiration: limited.then_some(args.timeout),
    };
    let id = short(request.correlation_id);
    info!("publish to {queue}, reply_to {}, correlation_id {id}", line.reply_to);
    line.channel
        .basic_publish("", request.to_publish(queue))
        .map_err(|error| session.explain(error))?;

    let timeout = if limited { after(args.timeout) } else { never() };
    loop {
        // Replies first: one that has come counts, whatever came after it.
        let delivery = select_biased! {
            recv(line.replies) -> message => match message {
                Ok(ConsumerMessage::Delivery(delivery)) => delivery,
                other => return Err(cut_off(session, other.ok())),
            },
            recv(line.returns) -> returned => match returned {
                Ok(message) if message.properties.correlation_id().as_ref() == Some(&correlation_id) => {
                    return Err(no_queue(session, queue));
                }
                Ok(_) => continue,
                Err(_) => return Err(cut_off(session, None)),
            },
            recv(session.notices()) -> notice => match notice {
                Ok(notice) => {
                    session.note(notice);
                    match session.blocked() {
                        Some(reason) => warn!("{} blocks publishing ({reason}); waiting", session.endpoint()),
                        None => warn!("{} no longer blocks publishing", session.endpoint()),
                    }
                    continue;
                }
                Err(_) => return Err(cut_off(session, None)),
            },
            recv(timeout) -> _ => return Err(timed_out(session, args)),
        };
        let of = delivery.properties.correlation_id();
        if of.as_ref() != Some(&correlation_id) {
            info!("discard a reply with correlation_id {}: not awaited", short(of.as_deref()));
            continue;
        }
        info!("reply, correlation_id {id}");
        return Reply::from_delivery(delivery)?.outcome.map_err(|error| {
            let kind = match error.kind {
                ErrorKind::Internal => Kind::ProcedureFailed,
                _ => Kind::Rejected,
            };
            // The sentence comes from the server: as little to be trusted as any message.
            Failure::new(kind, lines(&error.to_string()))
        });
    }
}

/// Why no more replies can come.
fn cut_off(session: &mut Session, message: Option<ConsumerMessage>) -> Failure {
    match message {
        Some(ConsumerMessage::ServerCancelled) => {
            let message = format!("{} deleted the reply queue", session.endpoint());
            Failure::new(Kind::ConnectionLost, message)
        }
        Some(ConsumerMessage::ServerClosedChannel(error)) => session.explain(error),
        _ => session.explain(Error::EventLoopDropped),
    }
}

/// Why a call got no reply in time: the rungs of the ladder that show only then.
fn timed_out(session: &mut Session, args: &cli::Client) -> Failure {
    let queue = &args.common.queue;
    let timeout = format_duration(args.timeout);
    if let Some(reason) = session.blocked() {
        let message = format!(
            "no answer within {timeout}: {} blocks publishing: {reason}; free its memory or disk",
            session.endpoint()
        );
        return Failure::new(Kind::Blocked, message);
    }
    session.hurry(DIAGNOSIS_LIMIT);
    // On a channel of its own: if the queue is gone, this costs the channel.
    let state = session.channel().and_then(|channel| {
        let state = queue::inspect(session, &channel, queue)?;
        session.ask(|| channel.close())?;
        Ok(state)
    });
    let reason = match state {
        Ok(queue::State { consumers: 0, messages }) => {
            let waiting = count(messages, "request waits", "requests wait");
            format!(
                "nobody consumes from the queue \"{queue}\" any more, where {waiting}; start rpc_server again"
            )
        }
        Ok(queue::State { consumers, messages }) => {
            let servers = count(consumers, "server consumes", "servers consume");
            let waiting = count(messages, "request waits", "requests wait");
            format!(
                "{servers} from the queue \"{queue}\", where {waiting}; give more time with --timeout, or start more servers"
            )
        }
        Err(failure) if failure.kind == Kind::QueueMissing => {
            format!("the queue \"{queue}\" was deleted; start rpc_server again")
        }
        Err(failure) => failure.message,
    };
    Failure::new(Kind::TimedOut, format!("no answer within {timeout}: {reason}"))
}

fn count(n: u32, one: &str, more: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { more })
}
