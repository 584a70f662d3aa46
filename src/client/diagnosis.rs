//! What is wrong, as far as only a look at the request queue can tell: is it there, does anybody consume from
//! it, how many requests wait in it. Where requests go to an exchange there is no queue to look at, and only what is
//! known is told.

use crate::amqp::connection::OpenConnection;
use crate::amqp::errors::AmqpErrorKind;
use crate::amqp::exchange;
use crate::amqp::presence;
use crate::amqp::queue::{self, QueueState};
use crate::cli;
use crate::client::destination::Destination;
use crate::client::pace::Servers;
use crate::error::{Failure, FailureKind};
use crate::terminal::text::count;
use amiquip::Channel;
use humantime::format_duration;
use log::info;
use std::time::Duration;

/// How long a broker may take to help with the diagnosis of a call that timed out.
pub const LIMIT: Duration = Duration::from_secs(1);

const REMEDY_BUSY: &str = "give more time with --timeout, or start more servers";

/// Why a call had no answer in time, and what that means for the next ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Diagnosis {
    /// What to tell of the call.
    pub failure: Failure,
    /// Whether there is no queue, or nobody consumes from it, so that no other call would be answered.
    pub is_unserved: bool,
    /// Whether each call's routing key is to be told with it.
    pub names_key: bool,
}

/// Opens a channel on which to make calls, if there is what they go to, and in the case of a queue somebody consumes from
/// it, and tells how many do as far as that is known. `waits` says whether the client waits for it already. Else the failures
/// of [`queue::inspect`] or [`exchange::inspect`], or [`FailureKind::NoConsumer`].
pub fn served(
    connection: &mut OpenConnection,
    destination: Destination<'_>,
    waits: bool,
) -> Result<(Channel, Servers), Failure> {
    match destination {
        Destination::Queue(queue) => served_queue(connection, queue, waits),
        Destination::Exchange(exchange) => {
            Ok((existing_exchange(connection, exchange, waits)?, Servers::UNKNOWN))
        }
    }
}

fn served_queue(
    connection: &mut OpenConnection,
    queue: &str,
    waits: bool,
) -> Result<(Channel, Servers), Failure> {
    let channel = connection.channel()?;
    let state = queue::inspect(connection, &channel, queue).map_err(|error| match error.kind {
        AmqpErrorKind::QueueMissing => no_queue(connection, queue, waits),
        _ => error.into(),
    })?;
    info!("queue {queue} is there: {state}");
    if state.consumers > 0 {
        return Ok((channel, state.into()));
    }
    let consumers = count_busy(connection, queue)?;
    if consumers > 0 {
        info!("its servers compute");
        return Ok((channel, Servers { consumers, hide: true }));
    }

    connection.call(|| channel.close())?;
    let message = format!(
        "nobody consumes from the queue \"{queue}\" on {}, where {}; start rpc_server{}{}",
        connection.name(),
        waiting(state),
        hint(waits),
        // RabbitMQ counts neither the consumers nor the messages of a stream.
        if state.messages == 0 { "; a stream cannot be a request queue" } else { "" }
    );

    Err(Failure::new(FailureKind::NoConsumer, message))
}

/// Returns how many servers of the queue show that they are there.
fn count_busy(connection: &mut OpenConnection, queue: &str) -> Result<u32, Failure> {
    let apart = connection.channel()?;
    let counted = connection.call(|| {
        let consumers = presence::count(&apart, queue);
        // If it were dropped open, its end would be waited for without a bound.
        match apart.close() {
            Err(error) if consumers > 0 => Err(error),
            // The look may have cost the channel.
            _ => Ok(consumers),
        }
    });
    Ok(counted?)
}

fn existing_exchange(
    connection: &mut OpenConnection,
    exchange: &str,
    waits: bool,
) -> Result<Channel, Failure> {
    let channel = connection.channel()?;
    match exchange::inspect(connection, &channel, exchange) {
        Ok(()) => Ok(channel),
        Err(error) if error.kind == AmqpErrorKind::ExchangeMissing => {
            Err(no_exchange(connection, exchange, waits))
        }
        Err(error) => Err(error.into()),
    }
}

/// Tells that there is no exchange of this name.
pub fn no_exchange(connection: &OpenConnection, exchange: &str, waits: bool) -> Failure {
    let message = format!(
        "there is no exchange \"{exchange}\" on {}; start what declares it, or name another with --exchange{}",
        connection.name(),
        hint(waits)
    );
    Failure::new(FailureKind::ExchangeMissing, message)
}

/// Tells that a request came back, since there is no queue for it.
pub fn unroutable(
    connection: &OpenConnection,
    destination: Destination<'_>,
    routing_key: &str,
    waits: bool,
) -> Failure {
    match destination {
        Destination::Queue(queue) => no_queue(connection, queue, waits),
        Destination::Exchange(_) => {
            let message = format!(
                "{destination} on {} has no queue for the routing key \"{routing_key}\"; start a server whose queue is \
                 bound to it, or name another with --routing-key{}",
                connection.name(),
                hint(waits)
            );
            Failure::new(FailureKind::Unroutable, message)
        }
    }
}

/// Tells that there is no request queue.
pub fn no_queue(connection: &OpenConnection, queue: &str, waits: bool) -> Failure {
    let message = format!(
        "there is no queue \"{queue}\" on {}; start rpc_server, or name its queue with --queue{}",
        connection.name(),
        hint(waits)
    );
    Failure::new(FailureKind::QueueMissing, message)
}

fn hint(waits: bool) -> &'static str {
    if waits { "" } else { " (--wait waits for it)" }
}

/// Tells that the broker has other things to do than to say in what state the queue is, or no longer answers at all.
pub fn no_answer(connection: &OpenConnection) -> Failure {
    let message =
        format!("{} did not say in time whether anybody serves the queue", connection.name());
    Failure::new(FailureKind::TimedOut, message)
}

impl Diagnosis {
    /// Tells that the broker takes no messages at the moment, which is this `failure`.
    pub fn blocked(failure: &Failure, timeout: Duration) -> Diagnosis {
        Diagnosis { failure: not_in_time(failure, timeout), is_unserved: false, names_key: false }
    }
}

/// Returns why a call had no answer in time, by what a look at the queue came to. With `has_confirms`, the
/// broker tells of a request that it refuses. So many `others` of the same client await their replies too.
pub fn timed_out(
    args: &cli::Client,
    queue: &str,
    answer: Result<QueueState, Failure>,
    has_confirms: bool,
    others: usize,
) -> Diagnosis {
    let is_unserved = match &answer {
        Ok(state) => state.consumers == 0,
        Err(failure) => failure.kind == FailureKind::QueueMissing,
    };
    let reason = match answer {
        Ok(state @ QueueState { consumers: 0, .. }) => format!(
            "nobody consumes from the queue \"{queue}\" any more, where {}; start rpc_server again",
            waiting(state)
        ),
        Ok(state) => busy(queue, state, has_confirms, others),
        Err(_) if is_unserved => {
            format!("the queue \"{queue}\" was deleted; start rpc_server again")
        }
        // channel_max allows one channel only, so that the queue cannot be looked at.
        Err(failure) if failure.kind == FailureKind::Configuration => REMEDY_BUSY.into(),
        Err(failure) => failure.message,
    };

    let failure = not_in_time(&Failure::new(FailureKind::TimedOut, reason), args.timeout);
    Diagnosis { failure, is_unserved, names_key: false }
}

/// Returns why a call had no answer in time, where requests go to an exchange: no more is known than that it came to some
/// queue, or it would have come back. So many `others` of the same client await their replies too.
pub fn timed_out_unseen(
    args: &cli::Client,
    destination: Destination<'_>,
    has_confirms: bool,
    others: usize,
) -> Diagnosis {
    let mut reason = format!(
        "{destination} put the request into a queue, whose servers are gone, or busy with earlier calls, or have thrown \
         it away; see rabbitmqctl list_queues name messages consumers"
    );
    reason += &batch(others);
    if !has_confirms {
        reason += REJECTED;
    }
    let failure = not_in_time(&Failure::new(FailureKind::TimedOut, reason), args.timeout);
    Diagnosis { failure, is_unserved: false, names_key: true }
}

/// What a queue with a length limit does.
const REJECTED: &str = "; a queue with a length limit and reject-publish may have rejected the request: --confirm tells";

/// Tells that a call waits for others of its own batch.
fn batch(others: usize) -> String {
    if others == 0 {
        return String::new();
    }
    let others = count(others as u64, "other call", "other calls");
    format!(
        "; {others} of this batch awaited replies too, and this one may have waited behind them: a smaller --in-flight \
         sends each later, when its turn is near, and more rpc_server --workers answer more at a time"
    )
}

/// Tells that somebody consumes, and has not answered.
fn busy(queue: &str, state: QueueState, has_confirms: bool, others: usize) -> String {
    let servers = count(state.consumers, "consumer serves", "consumers serve");
    let mut reason = format!(
        "{servers} the queue \"{queue}\", where {}, and may be busy with earlier calls; {REMEDY_BUSY}",
        waiting(state)
    );
    if state.messages == 0 {
        reason += "; or a server has thrown the request away: see its log";
    }
    reason += &batch(others);
    if state.messages > 0 && !has_confirms {
        reason += REJECTED;
    }
    reason
}

/// Returns what becomes of a call that `failure` kept from being answered within `timeout`.
pub fn not_in_time(failure: &Failure, timeout: Duration) -> Failure {
    let kind = match failure.kind {
        FailureKind::Blocked => FailureKind::Blocked,
        _ => FailureKind::TimedOut,
    };
    Failure::new(kind, format!("no answer within {}: {failure}", format_duration(timeout)))
}

/// Returns what becomes of a call that waited in vain, as long as `timeout`, for the end of what is told by `failure`.
pub fn waited(failure: &Failure, timeout: Duration) -> Failure {
    Failure::new(failure.kind, format!("{failure} (waited {})", format_duration(timeout)))
}

fn waiting(state: QueueState) -> String {
    count(state.messages, "request waits", "requests wait")
}
