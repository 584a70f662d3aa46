//! Asks the broker whether those who wait for the running calls are still there, and ends the calls of those who are not.
//!
//! The supervisor drives it: nothing here blocks. A question goes out by a thread of its own, on a channel of its own, and
//! is given up when the broker takes too long. No worker knows of it.

use crate::amqp::connection::OpenConnection;
use crate::amqp::errors::{AmqpError, AmqpErrorKind};
use crate::amqp::inspector::Answer;
use crate::amqp::queue;
use crate::cancellation::Cancelled;
use crate::error::Failure;
use crate::server::callers::{Callers, Look, is_direct_reply_to, is_made_up};
use crate::server::isolated::IsolatedInspector;
use crate::server::worker::ConnectionContext;
use crate::terminal::text::short_queue;
use crossbeam_channel::{Receiver, RecvError, never};
use log::{debug, info, warn};
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often it is looked whose calls run, while there are any.
const SAMPLE: Duration = Duration::from_millis(250);

/// How long a question waits for its answer.
const LIMIT: Duration = Duration::from_secs(1);

/// The looks for the callers of one connection, one at a time.
pub struct Probes {
    callers: Callers,
    /// When it is looked next whose calls run. None: there were none.
    sample_at: Option<Instant>,
    question: Option<Question>,
    /// What there is to wait for without a question.
    no_answer: Receiver<Answer>,
    /// For names that could cost a connection.
    isolated: IsolatedInspector,
    /// Whether the connection has no channel for looks. Should it have one later, that will be a worker's.
    has_no_channel: bool,
}

struct Question {
    reply_to: Arc<str>,
    asked: Instant,
    answer: Receiver<Answer>,
}

impl Probes {
    /// Returns the looks that are made beside a connection, with `isolated` for those that must not be made on it.
    pub fn new(isolated: IsolatedInspector) -> Probes {
        Probes {
            callers: Callers::default(),
            sample_at: None,
            question: None,
            no_answer: never(),
            isolated,
            has_no_channel: false,
        }
    }

    /// Returns where the answer to the question comes; what is received is to be handed to [`Probes::take`].
    pub fn answer(&self) -> &Receiver<Answer> {
        self.question.as_ref().map_or(&self.no_answer, |question| &question.answer)
    }

    /// Takes note that calls begin again ([`crate::cancellation::RunningCalls::begun`]). Not at once is it looked whose they
    /// are: of short calls, each would wake the supervisor.
    pub fn resume(&mut self) {
        self.sample_at.get_or_insert(Instant::now() + SAMPLE);
    }

    /// Does what is to be done now. Returns when it is to be called again, at the latest. None: after [`Probes::resume`].
    pub fn advance(
        &mut self,
        connection: &OpenConnection,
        context: &ConnectionContext,
    ) -> Option<Instant> {
        let now = Instant::now();
        if self.question.as_ref().is_some_and(|question| question.asked + LIMIT <= now) {
            debug!("the broker has not told in time whether a caller is there");
            self.question = None;
        }
        // Before it is looked for a caller, it has to be seen that a call of its still runs.
        let is_due =
            self.question.is_none() && self.callers.next().is_some_and(|(_, at)| at <= now);
        if is_due || self.sample_at.is_some_and(|at| at <= now) {
            self.sample(context, now);
        }
        if is_due {
            self.ask(connection, now);
        }
        for report in context.service.gone.reports_of_quiet(now) {
            warn!("{report}");
        }
        self.wake_at()
    }

    /// Takes note of whose calls run.
    fn sample(&mut self, context: &ConnectionContext, now: Instant) {
        let running = context.calls.reply_queues();
        self.callers.sample(&running, now);
        let is_idle = running.is_empty() && !context.service.gone.have_reports();
        self.sample_at = (!is_idle).then_some(now + SAMPLE);
    }

    /// Asks for the caller that is to be looked for now, if one is.
    fn ask(&mut self, connection: &OpenConnection, now: Instant) {
        let Some((reply_to, due)) = self.callers.next() else { return };
        if now < due {
            return;
        }
        self.callers.look(&reply_to, now);
        let answer = match is_direct_reply_to(&reply_to) {
            true => self.isolated.ask(&reply_to),
            false if self.has_no_channel => None,
            false => connection.inspector().ask(&reply_to),
        };
        // None: there is no channel, or the broker still owes an answer that was given up. This caller has its turn again
        // in a second.
        self.question = answer.map(|answer| Question { reply_to, asked: now, answer });
    }

    fn wake_at(&self) -> Option<Instant> {
        let sample_at = self.sample_at?;
        let other = match &self.question {
            Some(question) => Some(question.asked + LIMIT),
            None => self.callers.next().map(|(_, due)| due),
        };
        Some(other.map_or(sample_at, |other| sample_at.min(other)))
    }

    /// Takes what was received from [`Probes::answer`], and ends the calls of a caller that is gone.
    pub fn take(&mut self, received: Result<Answer, RecvError>, context: &ConnectionContext) {
        let Some(Question { reply_to, asked, .. }) = self.question.take() else { return };
        let (look, error) = match received {
            Ok(answer) => (told(&answer), answer.err()),
            Err(RecvError) => (Look::Unknown, None),
        };
        debug!("look for the caller at {}: {look:?}", short_queue(&reply_to));

        let is_first_refusal = self.callers.looked(&reply_to, look);
        let has_no_channel = matches!(&error, Some(error) if is_without_channel(error));
        let is_first_without = has_no_channel && !mem::replace(&mut self.has_no_channel, true);
        if let (true, Some(error)) = (is_first_refusal || is_first_without, error) {
            let error = Failure::from(error);
            info!("calls go on when their callers are gone, which the server may not see: {error}");
        }
        match look {
            Look::Gone => end_calls(&reply_to, asked, context),
            Look::There => context.service.gone.remove(&reply_to),
            Look::Refused | Look::Deadly | Look::Unknown => {}
        }
    }
}

/// Ends the calls of a caller that was gone when it was `asked` for.
fn end_calls(reply_to: &str, asked: Instant, context: &ConnectionContext) {
    let now = Instant::now();
    context.service.gone.insert(reply_to, now);
    // Another client with a queue of the same name may have made later ones.
    let latest = if is_made_up(reply_to) { now } else { asked };
    context.calls.cancel_for(reply_to, latest, Cancelled::CallerGone);
}

/// Returns what the answer says of a caller. A queue that is another connection's alone is there.
fn told(answer: &Answer) -> Look {
    match answer {
        Ok(_) => Look::There,
        Err(error) if queue::is_gone(error) => Look::Gone,
        Err(error) => match error.kind {
            AmqpErrorKind::QueueUnusable => Look::There,
            AmqpErrorKind::AccessRefused => Look::Refused,
            AmqpErrorKind::ConnectionLost => Look::Deadly,
            _ => Look::Unknown,
        },
    }
}

/// Returns whether a look failed since its connection has as many channels as it may have.
fn is_without_channel(error: &AmqpError) -> bool {
    error.kind == AmqpErrorKind::Configuration
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::queue::QueueState;

    #[test]
    fn what_an_answer_says_of_a_caller() {
        let failed = |kind, message: &str| told(&Err(AmqpError::new(kind, message)));
        let own = QueueState { messages: 0, consumers: 1, hides: false };
        assert_eq!(told(&Ok(own)), Look::There);
        assert_eq!(failed(AmqpErrorKind::QueueUnusable, "RESOURCE_LOCKED"), Look::There);
        assert_eq!(failed(AmqpErrorKind::QueueMissing, "NOT_FOUND - no queue 'q'"), Look::Gone);
        let down = "NOT_FOUND - home node 'x' of durable queue 'q' in vhost '/' is down";
        assert_eq!(failed(AmqpErrorKind::QueueMissing, down), Look::Unknown);
        assert_eq!(failed(AmqpErrorKind::AccessRefused, "ACCESS_REFUSED"), Look::Refused);
        assert_eq!(failed(AmqpErrorKind::ConnectionLost, "INTERNAL_ERROR"), Look::Deadly);
        assert_eq!(failed(AmqpErrorKind::Configuration, "no more channels"), Look::Unknown);
    }
}
