//! The rungs of the client's diagnosis ladder that only a look at the request queue can tell
//! apart: is it there, does anybody consume from it, how many requests wait in it.

use crate::amqp::connection::Session;
use crate::amqp::queue::{self, State};
use crate::error::{Failure, Kind};
use crate::terminal::text::count;
use amiquip::Channel;
use humantime::format_duration;
use log::info;
use std::time::Duration;

/// How long a broker may take to help with the diagnosis of a call that timed out.
const LIMIT: Duration = Duration::from_secs(1);

/// What helps where servers are busy.
const MORE: &str = "give more time with --timeout, or start more servers";

/// A channel on which to make calls, if there is the queue and somebody consumes from it.
///
/// # Errors
///
/// [`Kind::QueueMissing`], [`Kind::NoConsumer`], and those of [`queue::inspect`].
pub fn served(session: &mut Session, queue: &str) -> Result<Channel, Failure> {
    let channel = session.channel()?;
    let state = queue::inspect(session, &channel, queue).map_err(|failure| match failure.kind {
        Kind::QueueMissing => no_queue(session, queue),
        _ => failure,
    })?;
    info!("queue {queue} is there: {state}");
    if state.consumers > 0 {
        return Ok(channel);
    }
    session.ask(|| channel.close())?;
    let message = format!(
        "nobody consumes from the queue \"{queue}\" on {}, where {}; start rpc_server (--wait waits for it)",
        session.endpoint(),
        waiting(state)
    );
    Err(Failure::new(Kind::NoConsumer, message))
}

/// There is no request queue.
pub fn no_queue(session: &Session, queue: &str) -> Failure {
    let message = format!(
        "there is no queue \"{queue}\" on {}; start rpc_server, or name its queue with --queue (--wait waits for it)",
        session.endpoint()
    );
    Failure::new(Kind::QueueMissing, message)
}

/// Why a call had no answer within `timeout`.
pub fn timed_out(session: &mut Session, queue: &str, timeout: Duration) -> Failure {
    if let Some(failure) = session.obstruction() {
        return late(&failure, timeout);
    }
    let before = session.hurry(LIMIT);
    let state = queue::inspect_apart(session, queue);
    session.hurry(before);
    let reason = match state {
        Ok(state @ State { consumers: 0, .. }) => format!(
            "nobody consumes from the queue \"{queue}\" any more, where {}; start rpc_server again",
            waiting(state)
        ),
        Ok(state) => format!(
            "{} from the queue \"{queue}\", where {}; {MORE}",
            count(state.consumers, "server consumes", "servers consume"),
            waiting(state)
        ),
        Err(failure) if failure.kind == Kind::QueueMissing => {
            format!("the queue \"{queue}\" was deleted; start rpc_server again")
        }
        // The channel on which calls are made is the only one.
        Err(failure) if failure.kind == Kind::Configuration => MORE.into(),
        Err(failure) => failure.message,
    };
    late(&Failure::new(Kind::TimedOut, reason), timeout)
}

/// What becomes of a call that `failure` kept from being answered within `timeout`.
pub fn late(failure: &Failure, timeout: Duration) -> Failure {
    let kind = match failure.kind {
        Kind::Blocked => Kind::Blocked,
        _ => Kind::TimedOut,
    };
    Failure::new(kind, format!("no answer within {}: {failure}", format_duration(timeout)))
}

fn waiting(state: State) -> String {
    count(state.messages, "request waits", "requests wait")
}
