//! A worker: what the tutorial's loop calls, on a channel of its own.

use crate::amqp::confirms::{Confirmed, Confirms};
use crate::amqp::consumer::{self, ConsumerError};
use crate::amqp::inbox::Inbox;
use crate::amqp::uri::Endpoint;
use crate::cancellation::{Cancelled, RunningCalls};
use crate::cli;
use crate::command::Call;
use crate::drill::{self, Drill};
use crate::error::{ErrorKind, Failure};
use crate::procedure::{self, Procedures};
use crate::protocol::{Reply, Request};
use crate::server::isolated::{self, IsolatedPublisher};
use crate::terminal::output::Transcript;
use crate::terminal::text::{short, short_queue};
use amiquip::{Channel, Consumer, ConsumerOptions, Delivery, Error};
use crossbeam_channel::{Receiver, Sender, never, select_biased};
use log::{info, warn};
use std::mem::take;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long a server that was asked to stop waits for the broker.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(2);

/// The tutorial's loop: answers requests until it is asked to stop, or something breaks.
pub type Serve = fn(&mut Worker) -> Result<(), WorkerError>;

/// What a worker tells its supervisor.
#[derive(Debug)]
pub enum Event {
    /// It consumes.
    Ready,
    /// It has ended.
    Ended(Result<(), WorkerError>),
}

/// Why a worker cannot go on.
#[derive(Debug)]
pub enum WorkerError {
    /// Its queue, its channel or its connection is gone.
    Consumer(ConsumerError),
    /// Anything else that ends its connection.
    Failed(Failure),
}

impl From<Error> for WorkerError {
    fn from(error: Error) -> WorkerError {
        WorkerError::Consumer(ConsumerError::Amqp(error))
    }
}

/// What all workers share, on all connections.
pub struct Service {
    pub(super) args: cli::Server,
    pub(super) brokers: Vec<Endpoint>,
    pub(super) serve: Serve,
    pub(super) procedures: Procedures,
    /// Whether requests are acked only when the broker has confirmed their replies: in a cluster, the
    /// node that took a reply can die before it has passed it on.
    pub(super) confirms: bool,
    /// The largest body that the broker takes, in bytes, as far as is known.
    pub(super) max_body: AtomicUsize,
    pub(super) transcript: Transcript,
    /// Full when there are as many workers as may be, on all connections together: each has put a message
    /// in, and takes it out when it ends. One that computes for a lost connection is still there.
    pub(super) slots: (Sender<()>, Receiver<()>),
}

/// What the workers of one connection share.
pub struct Context {
    pub(super) service: Arc<Service>,
    pub(super) endpoint: Endpoint,
    pub(super) inbox: Arc<Inbox>,
    /// The calls that are computed.
    pub(super) calls: RunningCalls,
    /// Has a message for each worker that is to stop.
    pub(super) stop: (Sender<()>, Receiver<()>),
    /// Where workers tell their supervisor how they are.
    pub(super) events: (Sender<Event>, Receiver<Event>),
    /// Set when the server has said that it awaits requests: that comes before any of them.
    pub(super) announced: OnceLock<()>,
}

/// One worker. With prefetch 1 it has one request at a time. Its errors say why its channel is gone.
pub struct Worker<'a> {
    context: &'a Context,
    service: &'a Service,
    channel: &'a Channel,
    consumer: Option<Consumer<'a>>,
    confirms: Confirms,
    /// The number of the last reply to the request in hand, if it is to be confirmed.
    replied: Option<u64>,
    /// Requests whose replies the broker has not confirmed yet, with the replies' numbers.
    unconfirmed: Vec<(u64, Delivery)>,
    isolated: Option<IsolatedPublisher>,
}

impl<'a> Worker<'a> {
    /// One on `channel`, a channel of the connection that `context` is about.
    pub fn new(context: &'a Context, channel: &'a Channel) -> Worker<'a> {
        Worker {
            context,
            service: &context.service,
            channel,
            consumer: None,
            confirms: Confirms::disabled(),
            replied: None,
            unconfirmed: Vec::new(),
            isolated: None,
        }
    }

    /// Begins to consume: qos, basic.consume.
    pub fn consume(&mut self) -> Result<(), WorkerError> {
        let (queue, prefetch) = (&self.service.args.common.queue, self.service.args.prefetch);
        self.confirms = Confirms::new(self.channel, self.service.confirms)?;
        // The fair dispatch of tutorial two: a worker with a call in hand gets no other.
        self.channel.qos(0, prefetch, false)?;
        info!("qos: prefetch {prefetch}");
        let consumer = self.channel.basic_consume(queue.as_str(), ConsumerOptions::default())?;
        info!("consume from {queue}");
        self.consumer = Some(consumer);
        // Nobody receives it if the connection was lost.
        let _ = self.context.events.0.send(Event::Ready);
        self.context.announced.wait();
        Ok(())
    }

    /// Waits for the next delivery. None: the worker is to stop.
    pub fn next_delivery(&mut self) -> Result<Option<Delivery>, WorkerError> {
        let nothing = never();
        loop {
            let messages = self.consumer.as_ref().map_or(&nothing, Consumer::receiver);
            select_biased! {
                recv(self.context.stop.1) -> _ => return Ok(None),
                recv(self.confirms.receiver()) -> confirm => {
                    self.confirmed(confirm.map_err(|_| Error::EventLoopDropped)?.into())?;
                }
                recv(messages) -> message => {
                    self.context.inbox.taken();
                    let mut delivery = consumer::delivery(message).map_err(WorkerError::Consumer)?;
                    if delivery.properties.app_id().is_none() {
                        let name = self.service.procedures.default.clone();
                        delivery.properties = take(&mut delivery.properties).with_app_id(name);
                    }
                    info!(
                        "delivery: {}, correlation_id {}, {}",
                        Request::from_delivery(&delivery),
                        short(delivery.properties.correlation_id().as_deref()),
                        if delivery.redelivered { "redelivered" } else { "not redelivered" }
                    );
                    if !delivery.redelivered {
                        self.isolated = None;
                    }
                    return Ok(Some(delivery));
                }
            }
        }
    }

    /// Calls the procedure that `request` names, and tells so in the transcript and in the log. It fails
    /// if the connection is lost meanwhile: the request comes again.
    pub fn call(&self, request: &Request<'_>) -> Result<procedure::Outcome, WorkerError> {
        self.service.transcript.line(format_args!(" [.] {request}"));
        let started = Instant::now();
        let outcome = self.compute(request, started).map_err(|cancelled| {
            let lost = match cancelled {
                Cancelled::ConnectionLost => "connection",
                Cancelled::ChannelClosed => "channel",
            };
            warn!("{request} is given up with its {lost}; it comes again, if its queue is there");
            Error::EventLoopDropped
        })?;
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        match &outcome {
            Ok(_) => info!("{request}: result, {milliseconds:.1} ms"),
            Err(error) => warn!("{request}: {}, {milliseconds:.1} ms", error.kind.name()),
        }
        Ok(outcome)
    }

    fn compute(
        &self,
        request: &Request<'_>,
        started: Instant,
    ) -> Result<procedure::Outcome, Cancelled> {
        let running = self.context.calls.begin(self.channel.channel_id());
        if let Some(slow @ Drill::Slow(delay)) = self.service.args.drill {
            drill::announce(slow, format_args!("{request} waits"));
            thread::sleep(delay);
        }
        if self.is_active(Drill::Fail, format_args!("{request} fails")) {
            let message = "failed on purpose: --drill fail";
            return Ok(Err(procedure::Error::new(ErrorKind::Internal, message)));
        }
        // An expiration of 0 is no time limit: it says that the request must not wait in the queue.
        let limits = [request.expiration, Some(self.service.args.time_limit)];
        let limit = limits.into_iter().flatten().filter(|limit| !limit.is_zero()).min();
        let call = Call {
            input: request.argument,
            environment: &[
                ("RPC_PROCEDURE", Some(request.procedure)),
                ("RPC_CORRELATION_ID", request.correlation_id),
                ("RPC_CONTENT_TYPE", request.content_type),
                ("RPC_REDELIVERED", Some(if request.is_redelivered { "1" } else { "0" })),
            ],
            most: self.max_body(),
            deadline: limit.and_then(|limit| started.checked_add(limit)),
            handle: &running,
            at_stop: &|| {},
        };
        self.service.procedures.call(request.procedure, &call)
    }

    /// The largest body that the broker takes, in bytes.
    pub fn max_body(&self) -> usize {
        self.service.max_body.load(Ordering::SeqCst)
    }

    /// Publishes the reply to the request in hand, or drops it if that was delivered before, and it shows
    /// now that this reply ends a connection.
    pub fn publish(
        &mut self,
        request: &Request<'_>,
        reply_to: &str,
        mut reply: Reply,
    ) -> Result<(), WorkerError> {
        if self.is_active(Drill::CrashBeforeReply, format_args!("{request} is computed: dies now"))
        {
            drill::crash();
        }
        if self.is_active(Drill::WrongCorrelationId, format_args!("{request} gets another's id")) {
            reply.correlation_id = Some(Uuid::new_v4().to_string());
        }
        let what = format_args!("{request} gets a second reply");
        let copies = if self.is_active(Drill::DuplicateReply, what) { 2 } else { 1 };
        for _ in 0..copies {
            info!(
                "publish to {}: {}, correlation_id {}",
                short_queue(reply_to),
                reply.kind(),
                short(reply.correlation_id.as_deref())
            );
            if request.is_redelivered && self.publish_isolated(request, reply_to, &reply)? {
                continue;
            }
            if self.service.confirms {
                self.replied = Some(self.confirms.count_published());
            }
            self.channel.basic_publish("", reply.to_publish(reply_to))?;
        }
        if self.service.args.drill == Some(Drill::CrashBeforeAck) {
            // The answer to any synchronous method says that the broker has the reply by then.
            self.channel.qos(0, self.service.args.prefetch, false)?;
            drill::announce(Drill::CrashBeforeAck, format_args!("the reply is out: dies now"));
            drill::crash();
        }
        Ok(())
    }

    /// Publishes a reply on a connection of its own. False if there is none to be had.
    fn publish_isolated(
        &mut self,
        request: &Request<'_>,
        reply_to: &str,
        reply: &Reply,
    ) -> Result<bool, WorkerError> {
        let limit = self.service.args.common.connect_timeout;
        let open = || IsolatedPublisher::open(&self.context.endpoint, limit);
        let kept = self.isolated.take();
        let is_new = kept.is_none();
        let mut publisher = match kept.map_or_else(open, Ok) {
            Ok(publisher) => publisher,
            Err(failure) => {
                info!("no second connection: {failure}");
                return Ok(false);
            }
        };
        match publisher.publish(reply.to_publish(reply_to)) {
            Ok(()) => self.isolated = Some(publisher),
            Err(failure) if !isolated::is_at_fault(&failure) => {
                return Err(WorkerError::Failed(failure));
            }
            // It may have been lost since the last reply.
            Err(_) if !is_new => return self.publish_isolated(request, reply_to, reply),
            Err(failure) => {
                // This is answered only if the broker is there: then it was the reply's fault.
                self.channel.qos(0, self.service.args.prefetch, false)?;
                let queue = short_queue(reply_to);
                warn!("{request} dropped: its reply to {queue} ends each connection ({failure})");
            }
        }
        Ok(true)
    }

    /// Acks the request in hand: after the reply and on the same channel, so that the broker takes them
    /// in this order; with confirms, once the broker has the reply.
    pub fn ack(&mut self, delivery: Delivery) -> Result<(), WorkerError> {
        match self.replied.take() {
            Some(number) => self.unconfirmed.push((number, delivery)),
            None => self.ack_now(delivery)?,
        }
        Ok(())
    }

    fn ack_now(&self, delivery: Delivery) -> Result<(), Error> {
        info!("ack: correlation_id {}", short(delivery.properties.correlation_id().as_deref()));
        delivery.ack(self.channel)
    }

    /// Acks the requests whose replies the broker has. It refuses a reply when the node with the reply
    /// queue died. Such a request goes back to the queue once; the second time it is acked, since its
    /// client lost its connection with that node.
    fn confirmed(&mut self, confirmed: Confirmed) -> Result<(), WorkerError> {
        self.context.inbox.taken();
        let is_settled = |(number, _): &mut (u64, Delivery)| confirmed.is_about(*number);
        let settled: Vec<_> = self.unconfirmed.extract_if(.., is_settled).collect();
        for (_, request) in settled {
            if confirmed.is_taken || request.redelivered {
                self.ack_now(request)?;
            } else {
                let id = short(request.properties.correlation_id().as_deref());
                info!("requeue: the broker refused the reply, correlation_id {id}");
                request.nack(self.channel, true)?;
            }
        }
        Ok(())
    }

    /// Stops in good order: the broker delivers what is left to another consumer.
    pub fn cancel(&mut self) -> Result<(), WorkerError> {
        let deadline = Instant::now() + STOP_LIMIT;
        // What is not acked in time is answered a second time, by another server.
        while !self.unconfirmed.is_empty()
            && let Ok(confirm) = self.confirms.receiver().recv_deadline(deadline)
        {
            self.confirmed(confirm.into())?;
        }
        if let Some(consumer) = &self.consumer {
            info!("cancel the consumer of {}", self.service.args.common.queue);
            consumer.cancel()?;
            consumer::remaining(consumer).for_each(drop);
        }
        Ok(())
    }

    fn is_active(&self, drill: Drill, what: std::fmt::Arguments<'_>) -> bool {
        let is_active = self.service.args.drill == Some(drill);
        if is_active {
            drill::announce(drill, what);
        }
        is_active
    }
}
