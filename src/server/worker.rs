//! A worker: what the tutorial's loop calls, on a channel of its own.

use crate::amqp::confirms::{Confirmed, Confirms};
use crate::amqp::consumer::{ConsumerError, CountedConsumer};
use crate::amqp::errors;
use crate::amqp::inbox::{Close, Inbox};
use crate::amqp::uri::Endpoint;
use crate::cancellation::{CallHandle, Cancelled, RunningCalls};
use crate::cli;
use crate::command::Invocation;
use crate::error::{ErrorKind, Failure};
use crate::metrics::DropReason;
use crate::procedure::{self, Procedures};
use crate::protocol::{Reply, ReplyFormat, Request};
use crate::server::at_most_once::{AckedCall, AckedCalls};
use crate::server::callers::GoneCallers;
use crate::server::isolated::{Isolated, ReplyQueue, Settled};
use crate::server::lifetime::{Lifetime, RequestInHand, Reservation};
use crate::server::observer::{ObservedCall, Observer};
use crate::server::remembered::{Hands, InHand, Memory, Remembered, RequestId};
use crate::server::sync::{Latch, Semaphore};
use crate::terminal::output::Transcript;
use crate::terminal::text::{self, short, short_queue};
use amiquip::{Channel, ConsumerOptions, Delivery, Error};
use crossbeam_channel::{Receiver, RecvError, Sender, never, select_biased};
use log::{Level, info};
use std::cell::Cell;
use std::mem::take;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// How long a server that was asked to stop waits for the broker.
pub(super) const STOP_LIMIT: Duration = Duration::from_secs(2);

/// How often a worker that waits for something looks whether it still has to.
pub(super) const LOOK: Duration = Duration::from_millis(20);

/// The tutorial's loop: answers requests until it is asked to stop, or something breaks.
pub type Serve = Box<dyn Fn(&mut Worker) -> Result<(), WorkerError> + Send + Sync>;

/// What a worker tells its supervisor.
#[derive(Debug)]
pub enum WorkerEvent {
    /// The worker consumes.
    Ready,
    /// The worker has ended, after it consumed or before.
    Ended(Result<(), WorkerError>, Stage),
}

/// How far a worker has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The worker does not consume yet.
    Starting,
    /// The worker consumes.
    Consuming,
}

/// Why a worker cannot go on.
#[derive(Debug)]
pub enum WorkerError {
    /// The worker's queue, its channel or its connection is gone.
    Consumer(ConsumerError),
    /// The worker panicked, and its connection is given up with it.
    Panicked,
}

impl From<Error> for WorkerError {
    fn from(error: Error) -> WorkerError {
        WorkerError::Consumer(ConsumerError::Amiquip(error))
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
    /// What is known of requests that come again.
    pub(super) remembered: Remembered,
    pub(super) isolated: Isolated,
    pub(super) observer: Observer,
    /// The callers that are gone.
    pub(super) gone: GoneCallers,
    pub(super) acked: AckedCalls,
    pub(super) lifetime: Lifetime,
    pub(super) transcript: Transcript,
    /// One for each worker that may be there, on all connections together. One that computes for a lost connection is
    /// still there.
    pub(super) slots: Semaphore,
}

/// What the workers of one connection share.
pub struct ConnectionContext {
    pub(super) service: Arc<Service>,
    pub(super) endpoint: Endpoint,
    pub(super) inbox: Arc<Inbox>,
    /// The calls that are computed.
    pub(super) calls: RunningCalls,
    pub(super) hands: Hands,
    /// The largest body that the broker takes, in bytes, as far as is known.
    pub(super) max_body: AtomicUsize,
    /// Set when the connection is of no use any more.
    pub(super) is_lost: AtomicBool,
    /// How many workers wait for the broker's answer in the middle of a call: what they compute is not looked after.
    pub(super) giving_back: AtomicUsize,
    /// Is opened when the server is asked to stop, and with it each worker.
    pub(super) stop: Latch,
    /// Where workers tell their supervisor how they are.
    pub(super) events: (Sender<WorkerEvent>, Receiver<WorkerEvent>),
    /// Is opened when the server has said that it awaits requests: that comes before any of them.
    pub(super) announced: Latch,
}

impl ConnectionContext {
    /// Ends what is computed for a channel that the broker has closed, and remembers what that says of the requests in
    /// hand.
    pub(super) fn channel_closed(&self, channel: u16, close: &Close) {
        let fault = errors::channel_fault(close);
        if let errors::ChannelFault::TooLarge { limit } = fault {
            self.max_body.store(limit, SeqCst);
        }
        if let Some(in_hand) = self.hands.get(channel) {
            in_hand.channel_closed(fault, Instant::now(), &self.service.remembered);
        }
        self.calls.cancel(channel, Cancelled::ChannelClosed);
    }
}

/// One worker. With prefetch 1 it has one request at a time. Its errors say why its channel is gone.
pub struct Worker<'a> {
    context: &'a ConnectionContext,
    pub(super) service: &'a Service,
    pub(super) channel: &'a Channel,
    consumer: Option<CountedConsumer<'a>>,
    pub(super) confirms: Confirms,
    /// The number of the last reply to the request in hand, if it is to be confirmed.
    replied: Option<u64>,
    /// Requests whose replies the broker has not confirmed yet, with the replies' numbers.
    unconfirmed: Vec<(u64, Delivery)>,
    in_hand: Arc<InHand>,
    /// The last request that came. None before the first.
    current: Option<Current>,
    /// Whether the consumer was cancelled.
    is_cancelled: Cell<bool>,
    /// Whether the request in hand is to go back to its queue, since its reply did not go out.
    is_withheld: bool,
    /// Whether nobody waits for the reply to the request in hand any more.
    is_unawaited: Cell<bool>,
    /// The request in hand, if it was acked before its call.
    pub(super) acked: Option<AckedCall<'a>>,
    /// The call that the worker may begin. None: it has begun, or the server may begin no more.
    reserved: Cell<Option<Reservation<'a>>>,
    /// The request in hand.
    request: Option<RequestInHand<'a>>,
}

/// A request, from its delivery to its ack.
#[derive(Debug, Clone, Copy)]
pub(super) struct Current {
    id: RequestId,
    /// When it came. With a prefetch over 1, that can be long before its turn.
    pub(super) arrived: Instant,
}

impl<'a> Worker<'a> {
    /// Returns a worker on `channel`, a channel of the connection that `context` is about.
    pub fn new(context: &'a ConnectionContext, channel: &'a Channel) -> Worker<'a> {
        let in_hand = Arc::new(InHand::new(context.service.args.prefetch));
        context.hands.insert(channel.channel_id(), Arc::clone(&in_hand));
        // Before it was there to be told.
        if context.inbox.is_closed(channel.channel_id()) {
            in_hand.close();
        }
        Worker {
            context,
            service: &context.service,
            channel,
            consumer: None,
            confirms: Confirms::disabled(),
            replied: None,
            unconfirmed: Vec::new(),
            in_hand,
            current: None,
            is_cancelled: Cell::new(false),
            is_withheld: false,
            is_unawaited: Cell::new(false),
            acked: None,
            reserved: Cell::default(),
            request: None,
        }
    }

    /// Returns how far the worker has come.
    pub(super) fn stage(&self) -> Stage {
        match self.consumer {
            Some(_) => Stage::Consuming,
            None => Stage::Starting,
        }
    }

    /// Returns the `error` with the broker's reason, if that closed the channel: only the consumer is told.
    pub(super) fn with_reason(&self, error: WorkerError) -> WorkerError {
        let WorkerError::Consumer(ConsumerError::Amiquip(Error::EventLoopDropped)) = error else {
            return error;
        };
        let Some(consumer) = self.consumer.as_ref().filter(|_| self.is_closed()) else {
            return error;
        };

        match consumer.end() {
            Some(reason) => WorkerError::Consumer(reason),
            None => error,
        }
    }

    /// Returns whether the broker has closed the channel.
    fn is_closed(&self) -> bool {
        self.in_hand.is_closed()
    }

    /// Begins to consume, or, after [`Worker::cancel`], consumes again: qos, basic.consume. Not if the worker is to stop, or
    /// the server may begin no more calls.
    pub fn consume(&mut self) -> Result<(), WorkerError> {
        let is_first = self.consumer.is_none();
        if is_first {
            self.set_up_channel()?;
        }
        let may_consume = !self.context.stop.is_open() && self.reserve();
        self.is_cancelled.set(!may_consume);
        if may_consume {
            let queue = &self.service.args.common.queue;
            let consumer =
                self.channel.basic_consume(queue.as_str(), ConsumerOptions::default())?;
            info!("consume from {queue}");
            self.consumer = Some(CountedConsumer::new(consumer, &self.context.inbox));
        }

        if is_first {
            // Nobody receives it if the connection was lost.
            let _ = self.context.events.0.send(WorkerEvent::Ready);
            self.context.announced.wait();
        }
        Ok(())
    }

    /// Returns whether the worker may begin a call.
    fn reserve(&self) -> bool {
        let reserved = self.reserved.take().or_else(|| self.service.lifetime.reserve());
        let is_reserved = reserved.is_some();
        self.reserved.set(reserved);
        is_reserved
    }

    /// Waits, without a consumer, until the worker is to stop: the calls that the server may still begin are others'.
    fn rest(&mut self) -> Result<Option<Delivery>, WorkerError> {
        self.cancel()?;
        while !self.is_over() {
            thread::sleep(LOOK);
        }
        match self.context.stop.is_open() {
            true => Ok(None),
            false => Err(Error::EventLoopDropped.into()),
        }
    }

    fn set_up_channel(&mut self) -> Result<(), WorkerError> {
        let prefetch = self.service.args.prefetch;
        self.confirms = Confirms::new(self.channel, &self.context.inbox, self.service.confirms)?;
        // The fair dispatch of tutorial two: a worker with a call in hand gets no other.
        self.channel.qos(0, prefetch, false)?;
        info!("qos: prefetch {prefetch}");
        Ok(())
    }

    /// Waits for the next delivery that somebody awaits a reply to. None: the worker is to stop.
    pub fn next_delivery(&mut self) -> Result<Option<Delivery>, WorkerError> {
        self.request = None;
        if self.is_cancelled.get() || !self.reserve() {
            return self.rest();
        }

        let nothing = never();
        loop {
            let messages = self.consumer.as_ref().map_or(&nothing, CountedConsumer::receiver);
            select_biased! {
                recv(self.context.stop.opened()) -> _ => return match self.service.args.at_most_once {
                    true => self.last_delivery(),
                    false => Ok(None),
                },
                recv(self.confirms.receiver()) -> confirm => {
                    let confirm = confirm.map_err(|RecvError| Error::EventLoopDropped)?;
                    self.confirmed(self.confirms.take(confirm))?;
                }
                recv(messages) -> message => {
                    // Without a consumer there are no messages.
                    let Some(consumer) = &self.consumer else { continue };
                    let delivery = consumer.take(message).map_err(WorkerError::Consumer)?;
                    let delivery = self.begin(delivery);
                    if self.drops(&delivery) {
                        self.request = None;
                        self.ack_now(delivery)?;
                        continue;
                    }
                    return Ok(Some(delivery));
                }
            }
        }
    }

    /// Takes a request in hand. One that names no procedure means the server's first one.
    pub(super) fn begin(&mut self, mut delivery: Delivery) -> Delivery {
        self.request = Some(self.service.lifetime.take_in_hand());
        if delivery.properties.app_id().is_none() {
            let name = self.service.procedures.default.clone();
            delivery.properties = take(&mut delivery.properties).with_app_id(name);
        }

        self.is_unawaited.set(false);
        let request = Request::from_delivery(&delivery);
        info!(
            "delivery: {request}, correlation_id {}, {}",
            short(request.correlation_id),
            if delivery.redelivered { "redelivered" } else { "not redelivered" }
        );

        let arrived = self.context.inbox.arrival(self.channel.channel_id());
        self.current = Some(Current {
            id: self.service.remembered.id(&request),
            arrived: arrived.unwrap_or_else(Instant::now),
        });
        delivery
    }

    /// Returns whether a request is dropped, since its caller is known to be gone.
    fn drops(&self, delivery: &Delivery) -> bool {
        let Some(reply_to) = delivery.properties.reply_to() else { return false };
        let is_dropped = self.service.gone.drop_request(reply_to, Instant::now());
        if is_dropped {
            let request = Request::from_delivery(delivery);
            let what = format_args!("{request} dropped: nobody waits for it any more");
            self.service.observer.dropped(DropReason::CallerGone, Level::Info, what);
            // It is told how many there were.
            self.context.calls.notify();
        }
        is_dropped
    }

    /// Calls the procedure that `request` names, and tells so in the transcript and in the log. It fails
    /// if the channel or the connection is lost meanwhile: the request comes again. What is ended since its caller is gone
    /// has an error that [`Worker::publish`] does not send.
    pub fn call(&self, request: &Request<'_>) -> Result<procedure::Outcome, WorkerError> {
        self.call_by(request, |procedures, invocation| {
            procedures.call(request.procedure, invocation)
        })
    }

    /// Answers `request` by `compute`, as [`Worker::call`] does by the procedure that it names, which is what `compute` is
    /// there to call. It is not called for a request that is not to be computed.
    pub fn call_by(
        &self,
        request: &Request<'_>,
        compute: impl FnOnce(&Procedures, &Invocation<'_>) -> Result<procedure::Outcome, Cancelled>,
    ) -> Result<procedure::Outcome, WorkerError> {
        let call = self.service.observer.begin(request);
        let mut outcome = match self.compute(request, call.started, compute) {
            Ok(outcome) => Reply::bounded(outcome, self.reply_format().most),
            Err(Cancelled::CallerGone) => return Ok(Err(self.unawaited(request, call))),
            Err(reason) => {
                call.cancel(reason, true);
                return Err(Error::EventLoopDropped.into());
            }
        };
        call.end(&outcome);
        if let Err(Failure { stderr: Some(stderr), .. }) = &mut outcome {
            *stderr = text::last_bytes(stderr, self.context.inbox.headers_max()).into();
        }
        Ok(outcome)
    }

    /// Takes note that the call was ended since its caller is gone. Of those of one caller, one is told of.
    fn unawaited(&self, request: &Request<'_>, call: ObservedCall<'_>) -> procedure::Error {
        self.is_unawaited.set(true);
        let is_first =
            self.service.gone.end_call(request.reply_to.unwrap_or_default(), Instant::now());
        call.cancel(Cancelled::CallerGone, is_first);
        procedure::Error::new(ErrorKind::Unavailable, "nobody waits for it any more")
    }

    fn compute(
        &self,
        request: &Request<'_>,
        started: Instant,
        compute: impl FnOnce(&Procedures, &Invocation<'_>) -> Result<procedure::Outcome, Cancelled>,
    ) -> Result<procedure::Outcome, Cancelled> {
        let running =
            self.context.calls.begin(self.channel.channel_id(), request.reply_to, started);
        if self.is_closed() {
            running.cancel(Cancelled::ChannelClosed);
        }
        if self.acked.is_some() {
            running.keep();
        }
        let Current { id, arrived } = self.current(request);
        if request.is_redelivered {
            self.await_end_of(request, id, &running)?;
        }
        if let Some(reason) = running.cancelled() {
            return Err(reason);
        }

        let callers = deadline(arrived, request.expiration);
        let is_late = callers.is_some_and(|deadline| deadline <= started);
        if let Some(error) = self.refusal(request, id, is_late) {
            return Ok(Err(error));
        }

        if let Some(reserved) = self.reserved.take() {
            reserved.begin();
        }
        self.service.transcript.line(format_args!(" [.] {request}"));
        let _computing = self.in_hand.compute(id, arrived);
        let own = deadline(started, Some(self.service.args.time_limit));
        let invocation = Invocation {
            input: request.argument,
            about: request.about(),
            most: self.reply_format().most,
            deadline: [callers, own].into_iter().flatten().min(),
            kill_delay: self.service.args.kill_delay,
            handle: &running,
            at_stop: &|| self.give_back(),
        };

        compute(&self.service.procedures, &invocation)
    }

    pub(super) fn current(&self, request: &Request<'_>) -> Current {
        self.current.unwrap_or_else(|| Current {
            id: self.service.remembered.id(request),
            arrived: Instant::now(),
        })
    }

    /// Waits until no other worker of this connection computes this request: one whose channel was closed may need
    /// some time to end it.
    fn await_end_of(
        &self,
        request: &Request<'_>,
        id: RequestId,
        running: &CallHandle,
    ) -> Result<(), Cancelled> {
        let hands = &self.context.hands;
        while request.correlation_id.is_some() && hands.computes(id, &self.in_hand) {
            if let Some(reason) = running.cancelled() {
                return Err(reason);
            }
            thread::sleep(LOOK);
        }
        Ok(())
    }

    /// Returns the answer to a request that is not to be computed. `is_late`: its caller's time has passed.
    fn refusal(
        &self,
        request: &Request<'_>,
        id: RequestId,
        is_late: bool,
    ) -> Option<procedure::Error> {
        let procedure = request.procedure;
        let remembered = &self.service.remembered;
        let memory = match request.is_redelivered {
            true => remembered.get(id),
            false => None,
        };

        match memory {
            Some(Memory::TimedOut) => {
                let message = format!(
                    "{procedure} took longer than the broker's consumer_timeout, and is not run again; \
                     ask for less, or have that limit raised"
                );
                Some(procedure::Error::new(ErrorKind::TimedOut, message))
            }
            Some(Memory::TooLarge { length, limit }) => Some(Reply::too_large(length, limit)),
            _ if is_late => {
                let message = format!("the time of {procedure} had passed before its turn came");
                Some(procedure::Error::new(ErrorKind::TimedOut, message))
            }
            _ => None,
        }
    }

    /// Gives back to the queue, for another server, what was prefetched and is not begun, when the server is asked to
    /// stop in the middle of a call.
    fn give_back(&self) {
        // With a prefetch of 1 there is nothing but the request in hand.
        if self.service.args.prefetch == 1 {
            return;
        }
        self.context.giving_back.fetch_add(1, SeqCst);
        // If the connection is lost, it goes back with that.
        let _ = self.end_consumer();
        self.context.giving_back.fetch_sub(1, SeqCst);
    }

    /// Returns what replies are, as the options and the broker's limit have it.
    pub fn reply_format(&self) -> ReplyFormat<'_> {
        let content_type = self.service.args.content_type.as_deref();
        ReplyFormat { content_type, most: self.context.max_body.load(SeqCst) }
    }

    /// Publishes the reply to the request in hand, or drops it if nobody awaits it, or if that was delivered before, and it
    /// shows now that this reply ends a connection.
    pub fn publish(
        &mut self,
        request: &Request<'_>,
        reply_to: &str,
        reply: &Reply,
    ) -> Result<(), WorkerError> {
        if self.is_unawaited.get() {
            return Ok(());
        }
        log_publish(reply_to, reply);

        if request.is_redelivered && self.publish_apart(request, reply_to, reply)? {
            return Ok(());
        }

        // An error whose sentence is too long can be told in fewer words.
        let length = reply.outcome.as_ref().map_or(0, Vec::len);
        self.in_hand.answer(self.current(request).id, length);
        if self.service.confirms {
            self.replied = Some(self.confirms.count_published());
        }
        Ok(self.channel.basic_publish("", reply.to_publish(reply_to))?)
    }

    /// Waits until the broker has dealt with what was published: the answer to any synchronous method says so.
    pub fn await_broker(&self) -> Result<(), WorkerError> {
        Ok(self.channel.qos(0, self.service.args.prefetch, false)?)
    }

    /// Deals with the reply to a request whose reply was out when a channel or a connection ended. Returns whether it is
    /// not to go out by this channel.
    fn publish_apart(
        &mut self,
        request: &Request<'_>,
        reply_to: &str,
        reply: &Reply,
    ) -> Result<bool, WorkerError> {
        let memory = self.service.remembered.get(self.current(request).id);
        let (endpoint, limit) = (&self.context.endpoint, self.service.args.common.connect_timeout);
        let isolated = &self.service.isolated;
        if !matches!(memory, Some(Memory::Answered | Memory::Suspect)) {
            return Ok(false);
        }

        if let ReplyQueue::Gone { is_news } =
            isolated.look(endpoint, limit, reply_to, &self.service.gone)
        {
            let queue = short_queue(reply_to);
            // A client that has gone can have left many requests: one is told of.
            let level = if is_news { Level::Warn } else { Level::Info };
            let what = format_args!(
                "{request} dropped: nobody awaits its reply any more, {queue} is gone"
            );
            self.service.observer.dropped(DropReason::CallerGone, level, what);
            return Ok(true);
        }
        if memory == Some(Memory::Answered) {
            return Ok(false);
        }
        self.publish_isolated(request, reply_to, reply)
    }

    /// Publishes a reply that may be deadly on a connection of its own, as often as it takes until the broker has it, or
    /// has ended two of these for it. Returns whether it is not to go out by this channel.
    fn publish_isolated(
        &mut self,
        request: &Request<'_>,
        reply_to: &str,
        reply: &Reply,
    ) -> Result<bool, WorkerError> {
        let (endpoint, limit) = (&self.context.endpoint, self.service.args.common.connect_timeout);
        let endpoints = slice::from_ref(endpoint);
        let message = (request, reply_to, reply);
        match self.service.isolated.publish(endpoints, limit, message, &|| self.is_over()) {
            Settled::Done => return Ok(true),
            // What the broker says of its size on the main channel is remembered.
            Settled::TooLarge { .. } => return Ok(false),
            Settled::GivenUp => {}
        }

        if self.is_closed() || self.context.is_lost.load(SeqCst) {
            return Err(Error::EventLoopDropped.into());
        }

        // The server is asked to stop.
        self.is_withheld = true;
        Ok(true)
    }

    /// Returns whether the worker can wait no longer: its channel or its connection is gone, or the server is to stop.
    fn is_over(&self) -> bool {
        self.is_closed() || self.context.is_lost.load(SeqCst) || self.context.stop.is_open()
    }

    /// Acks the request in hand: after the reply and on the same channel, so that the broker takes them
    /// in this order; with confirms, once the broker has the reply.
    pub fn ack(&mut self, delivery: Delivery) -> Result<(), WorkerError> {
        if take(&mut self.is_withheld) {
            info!("requeue: the server stops before the reply could go out");
            return Ok(delivery.nack(self.channel, true)?);
        }
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
        let is_settled = |(number, _): &mut (u64, Delivery)| confirmed.is_about(*number);
        let settled: Vec<_> = self.unconfirmed.extract_if(.., is_settled).collect();
        for (_, request) in settled {
            if confirmed.is_ack || request.redelivered {
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
            self.confirmed(self.confirms.take(confirm))?;
        }
        Ok(self.end_consumer()?)
    }

    /// Cancels the consumer, if it was not, and gives back what it still has.
    fn end_consumer(&self) -> Result<(), Error> {
        for delivery in self.cancel_consumer()? {
            let id = short(delivery.properties.correlation_id().as_deref());
            info!("requeue: the server stops, correlation_id {id}");
            delivery.nack(self.channel, true)?;
        }
        Ok(())
    }

    /// Cancels the consumer, if it was not, and returns what it still has.
    pub(super) fn cancel_consumer(&self) -> Result<Vec<Delivery>, Error> {
        let Some(consumer) = &self.consumer else { return Ok(Vec::new()) };
        if self.is_cancelled.replace(true) {
            return Ok(Vec::new());
        }
        info!("cancel the consumer of {}", self.service.args.common.queue);
        consumer.cancel()?;
        Ok(consumer.remaining().collect())
    }
}

/// Logs that a reply is about to be published.
pub(super) fn log_publish(reply_to: &str, reply: &Reply) {
    info!(
        "publish to {}: {}, correlation_id {}",
        short_queue(reply_to),
        reply.kind(),
        short(reply.correlation_id.as_deref())
    );
}

/// Returns when a time limit that began then is over. One of 0 is none: an expiration of 0 says that the request must
/// not wait in the queue.
pub(super) fn deadline(began: Instant, limit: Option<Duration>) -> Option<Instant> {
    match limit {
        None | Some(Duration::ZERO) => None,
        Some(limit) => began.checked_add(limit),
    }
}

impl Drop for Worker<'_> {
    fn drop(&mut self) {
        if let Some(consumer) = &self.consumer {
            // It waits for the broker's answer, unless the channel or the connection is gone.
            let _ = consumer.cancel();
            consumer.remaining().for_each(drop);
        }
    }
}
