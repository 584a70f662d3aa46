//! Looks at queues while their connection is used for something else. Whoever asks does not wait for the
//! broker: behind a long upload, or at a broker that is frozen, an answer may take any time, and is then
//! given up without harm to the connection.

use crate::amqp::connection::SharedConnection;
use crate::amqp::errors::{self, AmqpError, AmqpErrorKind};
use crate::amqp::presence;
use crate::amqp::queue::{self, QueueState};
use crate::mutex::lock;
use amiquip::{Channel, Error};
use crossbeam_channel::{Receiver, bounded};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread;

/// What is known of a queue: its state, or an error of [`queue::inspect`]. The error says nothing about
/// the connection as a whole, which tells its own end to those who use it.
pub type Answer = Result<QueueState, AmqpError>;

/// Asks a broker for the state of queues, one question at a time. It costs nothing until the first one: a
/// thread for each question, and a channel that is kept for the next.
pub struct Inspector(Arc<InspectorState>);

struct InspectorState {
    connection: SharedConnection,
    /// The broker, as messages name it.
    name: String,
    /// A channel that is good for another question. An error costs it.
    channel: Mutex<Option<Channel>>,
    is_busy: AtomicBool,
}

impl Inspector {
    /// Makes an inspector of a connection to the broker that messages call `name`.
    pub(super) fn new(connection: SharedConnection, name: String) -> Inspector {
        let (channel, is_busy) = (Mutex::default(), AtomicBool::new(false));
        Inspector(Arc::new(InspectorState { connection, name, channel, is_busy }))
    }

    /// Asks for the state of `queue`. The answer comes to the receiver, if ever; whoever waits no longer
    /// drops it. None: the broker owes the answer to an earlier question, and until that has come there is
    /// no other.
    pub fn ask(&self, queue: &str) -> Option<Receiver<Answer>> {
        if self.0.is_busy.swap(true, SeqCst) {
            return None;
        }
        let (sender, answer) = bounded(1);
        let (shared, queue) = (Arc::clone(&self.0), queue.to_owned());
        let to_fail = sender.clone();
        let ask = move || {
            let answer = shared.inspect(&queue);
            // Before the answer is there: whoever has it may ask again.
            shared.is_busy.store(false, SeqCst);
            // Nobody receives it if the question was given up.
            let _ = sender.send(answer);
        };

        if let Err(error) = thread::Builder::new().name("inspector".into()).spawn(ask) {
            self.0.is_busy.store(false, SeqCst);
            let message = format!("cannot start a thread to look at the queue: {error}");
            let _ = to_fail.send(Err(AmqpError::new(AmqpErrorKind::Internal, message)));
        }

        Some(answer)
    }
}

impl InspectorState {
    fn inspect(&self, queue: &str) -> Answer {
        let mut kept = lock(&self.channel);
        let channel = match kept.take() {
            Some(channel) => channel,
            None => self.open_channel().map_err(|error| self.classify(&error))?,
        };
        let state = match channel.queue_declare_passive(queue) {
            Ok(declared) => QueueState::of(&declared),
            Err(error) => return Err(queue::unusable(&self.name, queue, self.classify(&error))),
        };
        if state.consumers > 0 {
            *kept = Some(channel);
            return Ok(state);
        }

        // Its servers may be there all the same. The broker may allow no other channel to ask for them.
        let consumers = presence::count(&channel, queue);
        if consumers > 0 {
            // Otherwise the question may have cost the channel.
            *kept = Some(channel);
        }
        Ok(QueueState { consumers, hides: consumers > 0, ..state })
    }

    fn open_channel(&self) -> Result<Channel, Error> {
        let mut connection = lock(&self.connection);
        match connection.as_mut() {
            Some(connection) => connection.open_channel(None),
            None => Err(Error::ClientClosedConnection),
        }
    }

    fn classify(&self, error: &Error) -> AmqpError {
        errors::of_channel(&self.name, error).unwrap_or_else(|| {
            let message = format!("the connection to {} failed: {error}", self.name);
            AmqpError::new(AmqpErrorKind::ConnectionLost, message)
        })
    }
}
