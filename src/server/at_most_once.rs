//! The steps of `serve_at_most_once` that the tutorial's loop does not have: an ack before the call, and a reply that
//! goes out though the connection is lost that its request came by.
//!
//! A request that is acked does not come again. So its call goes on whatever becomes of its connection, and when the
//! server is to stop, it waits for it.

use crate::amqp::connection::OpenConnection;
use crate::amqp::presence;
use crate::error::{ErrorKind, Failure};
use crate::procedure;
use crate::protocol::{Reply, ReplyFormat, Request};
use crate::server::isolated::Settled;
use crate::server::worker::{LOOK, Worker, WorkerError, deadline, log_publish};
use crate::terminal::text::short;
use amiquip::{Channel, Consumer, Delivery};
use crossbeam_channel::RecvTimeoutError;
use log::{info, warn};
use std::mem::take;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

/// How many requests are acked and not answered yet, on all connections.
#[derive(Debug, Default)]
pub struct AckedCalls(AtomicUsize);

impl AckedCalls {
    fn begin(&self) -> AckedCall<'_> {
        self.0.fetch_add(1, SeqCst);
        AckedCall(self)
    }

    /// Waits until all of them are answered, or given up since their callers' time is over.
    pub fn wait(&self) {
        while self.0.load(SeqCst) > 0 {
            thread::sleep(LOOK);
        }
    }
}

/// A request that is acked, until this is dropped.
#[derive(Debug)]
pub(super) struct AckedCall<'a>(&'a AckedCalls);

impl Drop for AckedCall<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, SeqCst);
    }
}

/// Shows on `channel` that a server of `queue` is there while its workers are no consumers, as long as what is returned is.
/// None, with a warning: it may not be shown. A lost connection is told to its other users.
pub(super) fn show_presence<'a>(
    connection: &mut OpenConnection,
    channel: &'a Channel,
    queue: &str,
) -> Option<Consumer<'a>> {
    let shown = presence::show(connection, channel, queue).map_err(Failure::from);
    shown.unwrap_or_else(|failure| {
        warn!("while all workers compute, clients will find no server: {failure}");
        None
    })
}

impl Worker<'_> {
    /// Acks a request that is not called yet. Whether the broker has the ack is not known before it answers
    /// [`Worker::await_broker`]: the channel has both in this order.
    pub fn ack_early(&mut self, delivery: &mut Delivery) -> Result<(), WorkerError> {
        info!(
            "ack before the call: correlation_id {}",
            short(delivery.properties.correlation_id().as_deref())
        );
        self.acked = Some(self.service.acked.begin());
        // The library wants all of a delivery for an ack. A body can be large.
        let body = take(&mut delivery.body);
        let acked = delivery.clone().ack(self.channel);
        delivery.body = body;
        Ok(acked?)
    }

    /// Returns the answer to a request that was delivered before.
    pub fn refuse_redelivered(&self, request: &Request<'_>) -> procedure::Error {
        warn!("{request} came redelivered, and is not called: it may have been called before");
        self.service.observer.refused(request, ErrorKind::Redelivered);
        let message = format!(
            "{} may have run already: its request was delivered before, to a server that was lost; this one has \
             --at-most-once and does not run it again, so that only the caller can decide to",
            request.procedure
        );
        procedure::Error::new(ErrorKind::Redelivered, message)
    }

    /// Publishes the reply to a request that is acked, and waits until the broker has it. If this connection is lost, that
    /// goes by another one, to any of the brokers, until the caller's time is over.
    pub fn publish_confirmed(&mut self, request: &Request<'_>, reply_to: &str, reply: &Reply) {
        log_publish(reply_to, reply);
        let arrived = self.current(request).arrived;
        let callers = deadline(arrived, request.expiration);
        let is_over = || callers.is_some_and(|deadline| deadline <= Instant::now());
        if !self.is_confirmed(reply_to, reply, &is_over) {
            self.publish_elsewhere(request, reply_to, reply, &is_over);
        }
        self.acked = None;
    }

    /// Returns whether nothing more is to be done for a reply: the broker has it, or the caller's time is over.
    fn is_confirmed(&mut self, reply_to: &str, reply: &Reply, is_over: &dyn Fn() -> bool) -> bool {
        let number = self.confirms.count_published();
        if self.channel.basic_publish("", reply.to_publish(reply_to)).is_err() {
            return false;
        }
        loop {
            match self.confirms.receiver().recv_timeout(LOOK) {
                Ok(confirm) if self.confirms.take(confirm).is_about(number) => return true,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) if is_over() => return true,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
    }

    fn publish_elsewhere(
        &self,
        request: &Request<'_>,
        reply_to: &str,
        reply: &Reply,
        is_over: &dyn Fn() -> bool,
    ) {
        warn!("{request} has lost its connection: its reply goes out by another one");
        let (brokers, isolated) = (&self.service.brokers, &self.service.isolated);
        let limit = self.service.args.common.connect_timeout;
        let publish =
            |reply: &Reply| isolated.publish(brokers, limit, (request, reply_to, reply), is_over);

        let settled = match publish(reply) {
            Settled::TooLarge { limit } => {
                let length = reply.outcome.as_ref().map_or(0, Vec::len);
                let format = ReplyFormat { most: limit, ..self.reply_format() };
                publish(&Reply::for_request(request, Err(Reply::too_large(length, limit)), format))
            }
            settled => settled,
        };
        if settled != Settled::Done {
            warn!("{request}: its reply could not go out in time");
        }
    }

    /// Returns what the broker has delivered to a worker that is to stop, if anything: given back, it would come
    /// redelivered, and nobody would call it.
    pub(super) fn last_delivery(&mut self) -> Result<Option<Delivery>, WorkerError> {
        let last = self.cancel_consumer()?.pop();
        Ok(last.map(|delivery| self.begin(delivery)))
    }
}
