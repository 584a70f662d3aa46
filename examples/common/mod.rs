//! What the examples have in common, so that each of them is left with its pattern: the frame of
//! a program, the wait for the broker's word on a published message, the wait for deliveries.
//!
//! What they print, and the arguments they take, are those of RabbitMQ's tutorials in their Python
//! form, with names and messages in single quotes as in the tutorials' text.

#![allow(dead_code, reason = "no example uses all of it")]

use amiquip::{Channel, Confirm, ConsumerOptions, Delivery, Error, Return};
use clap::{Args, Parser};
use crossbeam_channel::{Receiver, after, select, select_biased};
use fib_rpc::amqp::MAX_NAME;
use fib_rpc::amqp::client_properties::ClientProperties;
use fib_rpc::amqp::confirms::Confirms;
use fib_rpc::amqp::connection::OpenConnection;
use fib_rpc::amqp::consumer::CountedConsumer;
use fib_rpc::amqp::uri;
use fib_rpc::cli;
use fib_rpc::error::{Failure, FailureKind, ProgramError};
use fib_rpc::program;
use fib_rpc::remedies;
use fib_rpc::signals::{Stop, stop_requests};
use fib_rpc::terminal::logging;
use log::warn;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_CRATE_NAME");

/// How long the broker may take to confirm a message.
const CONFIRM_LIMIT: Duration = Duration::from_secs(10);

/// How long a program that was asked to stop waits for the broker.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// A whole program: parses the command line, runs `run` with it, tells an error.
pub fn main<T: Parser>(run: fn(&T) -> Result<(), ProgramError>) -> ExitCode {
    let parsed = T::command().name(PROGRAM).max_term_width(100).try_get_matches();
    let arguments = match parsed.and_then(|matches| T::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(error) => return program::show_parse_error(PROGRAM, &error),
    };
    logging::init(PROGRAM, false, 0);
    program::conclude(PROGRAM, run(&arguments).map(|()| ExitCode::SUCCESS))
}

/// Where the broker is.
#[derive(Args)]
pub struct Broker {
    /// Brokers, tried in order; a password is better kept in the environment
    #[arg(long, value_name = "URI[,URI…]", env = "AMQP_URL", hide_env_values = true)]
    #[arg(default_value = cli::DEFAULT_URL, value_parser = cli::url_or_default)]
    url: String,

    /// Bound on opening a connection, handshake included
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    #[arg(value_parser = cli::positive_duration)]
    connect_timeout: Duration,
}

impl Broker {
    pub fn connect(&self) -> Result<OpenConnection, Failure> {
        let brokers = uri::parse_list(&self.url)?;
        let properties = ClientProperties::new(PROGRAM);
        let connection = OpenConnection::open(&brokers, self.connect_timeout, &properties)?;
        remedies::log_failed_attempts(&connection);
        Ok(connection)
    }
}

/// The words of a message, or what the tutorial sends without any.
pub fn message(words: &[String], default: &str) -> String {
    let message = words.join(" ");
    if message.is_empty() { default.into() } else { message }
}

/// A routing or binding key that AMQP can carry; a longer one would cost the connection.
pub fn key(text: &str) -> Result<String, String> {
    match text.len() {
        0..=MAX_NAME => Ok(text.into()),
        length => Err(format!("a key has at most {MAX_NAME} bytes, and this one has {length}")),
    }
}

/// What the broker tells of a published message: that it has it (RabbitMQ, "Consumer
/// Acknowledgements and Publisher Confirms"), or that no queue took it (basic.return, if the message
/// was published as `mandatory`).
pub struct Receipts<'a> {
    channel: &'a Channel,
    confirms: Confirms,
    returns: Receiver<Return>,
}

impl Receipts<'_> {
    /// To be asked for before the message is published.
    pub fn ask<'a>(
        connection: &mut OpenConnection,
        channel: &'a Channel,
    ) -> Result<Receipts<'a>, Failure> {
        let returns = connection.call(|| channel.listen_for_returns())?;
        let inbox = Arc::clone(connection.inbox());
        let confirms = connection.call(|| Confirms::enable(channel, &inbox))?;
        Ok(Receipts { channel, confirms, returns })
    }

    /// Waits until the broker has the message that was published: on its disk, if the message is
    /// persistent and its queue durable.
    pub fn wait(&self, connection: &mut OpenConnection) -> Result<(), Failure> {
        let too_late = after(CONFIRM_LIMIT);
        loop {
            select! {
                recv(self.confirms.receiver()) -> confirm => match confirm {
                    Ok(Confirm::Ack(_)) => break,
                    Ok(Confirm::Nack(_)) => {
                        let message = format!("{} refused the message", connection.name());
                        return Err(Failure::new(FailureKind::ConnectionLost, message));
                    }
                    // Of a channel that was closed, the next method tells why.
                    Err(_) => {
                        connection.call(|| self.channel.enable_publisher_confirms())?;
                        return Err(connection.classify(Error::EventLoopDropped).into());
                    }
                },
                recv(connection.blocked_notifications()) -> notification => {
                    connection.set_blocked(notification)?;
                }
                recv(too_late) -> _ => return Err(unconfirmed(connection)),
            }
        }
        // Of a message that comes back, the broker tells so before it confirms it.
        match self.returns.try_recv() {
            Ok(returned) => Err(unroutable(&returned)),
            Err(_) => Ok(()),
        }
    }
}

fn unconfirmed(connection: &mut OpenConnection) -> Failure {
    let kind = if connection.is_blocked() { FailureKind::Blocked } else { FailureKind::TimedOut };
    let endpoint = connection.name().to_owned();
    connection.abort();
    let limit = CONFIRM_LIMIT.as_secs();
    let message = format!(
        "{endpoint} did not confirm the message within {limit} s; whether it took it is not known"
    );
    Failure::new(kind, message)
}

/// The tutorials let such a message vanish. Here it is a failure, of the kind that a call without a
/// server is: nobody got what was sent, and only the exit code can tell a script so.
fn unroutable(returned: &Return) -> Failure {
    let Return { exchange, routing_key, .. } = returned;
    let message = match (exchange.as_str(), routing_key.as_str()) {
        ("", queue) => format!("the queue \"{queue}\" is gone, and the message with it"),
        (exchange, "") => format!(
            "nobody got the message: no queue is bound to the exchange \"{exchange}\"; start a \
             receiver first"
        ),
        (exchange, key) => format!(
            "nobody got the message: no queue is bound to the exchange \"{exchange}\" for the \
             routing key \"{key}\"; start a receiver with that key first"
        ),
    };
    Failure::new(FailureKind::NoConsumer, message)
}

/// What comes from a queue.
pub struct Deliveries<'a> {
    queue: String,
    no_ack: bool,
    consumer: CountedConsumer<'a>,
    stop: Receiver<Stop>,
    cancelled: bool,
}

impl Deliveries<'_> {
    /// Begins to consume (basic.consume), until SIGINT or SIGTERM comes.
    pub fn consume<'a>(
        connection: &mut OpenConnection,
        channel: &'a Channel,
        queue: &str,
        options: ConsumerOptions,
    ) -> Result<Deliveries<'a>, Failure> {
        let stop = stop_requests(None, || {})?;
        let no_ack = options.no_ack;
        let consumer = connection.call(|| channel.basic_consume(queue, options))?;
        let consumer = CountedConsumer::new(consumer, connection.inbox());
        Ok(Deliveries { queue: queue.into(), no_ack, consumer, stop, cancelled: false })
    }

    /// Waits for the next one. None: a signal asked to stop. What the broker forgot as it sent it
    /// still comes then; what it awaits an ack for does not, and goes back to the queue.
    pub fn next(&mut self, connection: &mut OpenConnection) -> Result<Option<Delivery>, Failure> {
        let incoming = self.consumer.receiver();
        while !self.cancelled {
            select_biased! {
                recv(self.stop) -> _ => {
                    self.cancelled = true;
                    connection.set_call_timeout(STOP_LIMIT);
                    if let Err(error) = connection.call(|| self.consumer.cancel()) {
                        warn!("while stopping: {}", Failure::from(error));
                    }
                }
                recv(incoming) -> message => return match self.consumer.take(message) {
                    Ok(delivery) => Ok(Some(delivery)),
                    Err(error) => Err(error.classify(connection, &self.queue).into()),
                },
            }
        }
        let mut remaining = self.consumer.remaining();
        // What is not acked goes back to the queue; the receiver must be empty all the same.
        let next = remaining.next().filter(|_| self.no_ack);
        if next.is_none() {
            remaining.for_each(drop);
        }
        Ok(next)
    }
}
