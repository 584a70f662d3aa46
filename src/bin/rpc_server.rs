//! The server of RabbitMQ's tutorial six: takes requests from a queue, computes, replies, acks.
//!
//! `Desk::serve` is the tutorial's loop, on a thread for each worker. Around it, `run` opens a
//! connection again whenever one is lost, until a signal asks to stop.

use amiquip::{Channel, Confirm, ConsumerMessage, ConsumerOptions, Delivery, Error};
use anyhow::Result;
use crossbeam_channel::{Receiver, RecvError, Sender, bounded, never, select_biased, unbounded};
use fib_rpc::amqp::backoff::Backoff;
use fib_rpc::amqp::connection::{Session, confirm_mode, covers, size_limit};
use fib_rpc::amqp::inbox::Inbox;
use fib_rpc::amqp::queue;
use fib_rpc::amqp::uri::{self, Endpoint};
use fib_rpc::cli;
use fib_rpc::error::{ErrorKind, Failure, Kind};
use fib_rpc::procedure::{self, Settings};
use fib_rpc::process::signals;
use fib_rpc::process::signals::Stop;
use fib_rpc::program;
use fib_rpc::protocol::{MAX_BODY, Reply, Request};
use fib_rpc::server::drill::{self, Drill};
use fib_rpc::terminal::output::Transcript;
use fib_rpc::terminal::text::{duration, short, short_queue};
use log::{info, warn};
use std::collections::VecDeque;
use std::fmt;
use std::mem::take;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

const PROGRAM: &str = "rpc_server";

/// How long the broker may take until all workers consume.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// How long to wait before connecting again: at first, and after one failure after another.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// How long a server that was asked to stop waits for the broker.
const STOP_LIMIT: Duration = Duration::from_secs(2);

/// How often it looks whether there is anything left to wait for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    program::main(PROGRAM, run)
}

/// What one connection leaves to the next.
struct Memory {
    /// Why the last one was lost, once that was told.
    told: Option<Kind>,
    /// Whether there ever was one on which the server could serve.
    served: bool,
    /// The largest body that the broker takes, as far as is known.
    max_body: usize,
    backoff: Backoff,
    transcript: Arc<Transcript>,
}

fn run(args: &cli::Server) -> Result<ExitCode> {
    let stop = signals::stop_requests(None)?;
    let brokers = uri::parse_list(args.common.url())?;
    let mut memory = Memory {
        told: None,
        served: false,
        max_body: MAX_BODY,
        backoff: Backoff::new(PAUSES.0, PAUSES.1),
        transcript: Arc::new(Transcript::new(!args.common.quiet)),
    };
    loop {
        let error = match connect(args, &brokers, &stop, &mut memory) {
            Ok(()) => return Ok(ExitCode::SUCCESS),
            Err(error) => error,
        };
        let Some(failure) = error.downcast_ref::<Failure>() else { return Err(error) };
        match failure.kind {
            Kind::Internal => return Err(error),
            // One that has served may be let in again.
            Kind::AccessRefused | Kind::Configuration | Kind::QueueUnusable if !memory.served => {
                return Err(error);
            }
            _ => {}
        }
        let delay = memory.backoff.delay();
        // Once for each reason, not for each attempt.
        match memory.told.replace(failure.kind) {
            Some(told) if told == failure.kind => info!("{failure}; again in {}", duration(delay)),
            _ => warn!("{failure}; trying again"),
        }
        if stop.recv_timeout(delay).is_ok() {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Opens a connection and serves on it, until a signal asks to stop (`Ok`) or something breaks.
fn connect(
    args: &cli::Server,
    brokers: &[Endpoint],
    stop: &Receiver<Stop>,
    memory: &mut Memory,
) -> Result<()> {
    let Some(mut session) = open(args, brokers, stop)? else { return Ok(()) };
    let (events, happened) = unbounded();
    let desk = Arc::new(Desk {
        queue: args.common.queue.clone(),
        prefetch: args.prefetch,
        settings: args.settings(),
        drill: args.drill,
        transcript: Arc::clone(&memory.transcript),
        max_body: memory.max_body,
        // In a cluster, the node that took a reply can die before it has passed it on.
        confirms: brokers.len() > 1,
        largest: AtomicUsize::new(0),
        computing: AtomicUsize::new(0),
        events,
        inbox: Arc::clone(session.inbox()),
    });
    if args.prefetch > 0 {
        // The requests in hand, and a confirm for each.
        desk.inbox.expect_at_most(2 * u64::from(args.workers) * u64::from(args.prefetch));
    }
    let served = supervise(&mut session, &desk, &happened, args.workers, stop, memory);
    // What is unacknowledged, the prefetched requests among it, goes back to the queue. A worker
    // that is still computing finds its connection gone.
    session.close();
    match served.as_ref().err().and_then(|error| error.downcast_ref()) {
        // The request will come again, to be answered with an error then.
        Some(failure @ Failure { kind: Kind::TooLarge, .. }) => {
            let smaller = desk.largest.load(Ordering::SeqCst).saturating_sub(1);
            memory.max_body = size_limit(failure).unwrap_or(smaller);
        }
        _ => {}
    }
    served
}

/// Opens a connection, and makes sure of the queue. None if a signal asks to stop: then the attempt,
/// which can take its time with each of the brokers, is left behind.
fn open(
    args: &cli::Server,
    brokers: &[Endpoint],
    stop: &Receiver<Stop>,
) -> Result<Option<Session>, Failure> {
    let (brokers, limit) = (brokers.to_vec(), args.common.connect_timeout);
    let (queue, queue_type) = (args.common.queue.clone(), args.queue_type);
    let (tell, opened) = bounded(1);
    let attempt = move || {
        let opened = Session::open(&brokers, limit, PROGRAM).and_then(|mut session| {
            queue::ensure(&mut session, &queue, queue_type)?;
            Ok(session)
        });
        // Nobody listens any more if a signal came.
        let _ = tell.send(opened);
    };
    thread::Builder::new().name("connect".into()).spawn(attempt).map_err(|error| {
        Failure::new(Kind::Internal, format!("cannot start a thread to connect: {error}"))
    })?;
    select_biased! {
        recv(stop) -> _ => Ok(None),
        recv(opened) -> session => match session {
            Ok(session) => session.map(Some),
            Err(_) => Err(Failure::new(Kind::Internal, "the thread that connects panicked")),
        },
    }
}

/// Starts the workers and watches over them and the connection, until a signal asks to stop.
fn supervise(
    session: &mut Session,
    desk: &Arc<Desk>,
    happened: &Receiver<Event>,
    workers: u16,
    stop: &Receiver<Stop>,
    memory: &mut Memory,
) -> Result<()> {
    // Nothing is ever sent by these two: what counts is when they are dropped.
    let (hold_begin, begin) = bounded(0);
    let (hold_end, end) = bounded(0);
    for _ in 0..workers {
        let (desk, channel) = (Arc::clone(desk), session.channel()?);
        let (begin, end) = (begin.clone(), end.clone());
        let work = move || {
            let ended = desk.serve(&channel, &begin, &end);
            // Nobody listens any more if the connection was lost.
            let _ = desk.events.send(Event::Ended(ended));
        };
        thread::Builder::new().name("worker".into()).spawn(work).map_err(|error| {
            Failure::new(Kind::Internal, format!("cannot start {workers} workers: {error}"))
        })?;
    }
    for _ in 0..workers {
        select_biased! {
            recv(stop) -> _ => return Ok(()),
            recv(happened) -> event => {
                if let Event::Ended(Err(broken)) = event? {
                    return Err(broken.explain(session));
                }
            }
            default(READY_LIMIT) => return Err(session.give_up().into()),
        }
    }
    if memory.told.take().is_some() {
        warn!("connected to {} again", session.endpoint());
    }
    memory.served = true;
    memory.backoff.reset();
    desk.transcript.line(format_args!(" [x] Awaiting RPC requests"));
    drop(hold_begin);

    loop {
        select_biased! {
            recv(stop) -> _ => break,
            recv(session.notices()) -> notice => {
                let notice = notice.map_err(|_| session.lost())?;
                session.note(notice);
            }
            recv(happened) -> event => {
                if let Ok(Event::Ended(Err(broken))) = event {
                    return Err(broken.explain(session));
                }
            }
        }
    }
    info!("asked to stop: finish the calls in hand");
    drop(hold_end);
    if let Err(failure) = stopped(session, desk, happened, workers) {
        // What is not acked goes to another server, connection or no connection.
        warn!("while stopping: {failure}");
    }
    Ok(())
}

/// Waits until all workers have ended: for their calls in hand however long those take, then a
/// bounded time for the broker to take their last words and answer them.
fn stopped(
    session: &mut Session,
    desk: &Desk,
    happened: &Receiver<Event>,
    workers: u16,
) -> Result<()> {
    let mut ended = 0;
    let mut deadline = None;
    while ended < workers {
        select_biased! {
            recv(happened) -> event => match event? {
                Event::Ended(Ok(())) => ended += 1,
                Event::Ended(Err(broken)) => return Err(broken.explain(session)),
                Event::Ready => {}
            },
            recv(session.notices()) -> notice => {
                let notice = notice.map_err(|_| session.lost())?;
                session.note(notice);
            }
            default(LOOK_INTERVAL) => {}
        }
        if desk.computing.load(Ordering::SeqCst) > 0 {
            deadline = None;
            continue;
        }
        // A broker that blocks this connection reads nothing from it, neither what a worker has to
        // publish nor what it asks.
        if session.blocked().is_some() {
            break;
        }
        let now = Instant::now();
        if ended < workers && *deadline.get_or_insert(now + STOP_LIMIT) <= now {
            return Err(session.give_up().into());
        }
    }
    Ok(())
}

/// What a worker tells.
enum Event {
    /// Requests can come.
    Ready,
    /// It has ended.
    Ended(Result<(), Broken>),
}

/// Why a worker cannot go on.
enum Broken {
    /// The connection or the channel is gone.
    Amqp(Error),
    /// Anything else.
    Other(anyhow::Error),
}

impl Broken {
    fn explain(self, session: &mut Session) -> anyhow::Error {
        match self {
            Broken::Amqp(error) => session.explain(error).into(),
            Broken::Other(error) => error,
        }
    }
}

impl From<Error> for Broken {
    fn from(error: Error) -> Broken {
        Broken::Amqp(error)
    }
}

impl From<anyhow::Error> for Broken {
    fn from(error: anyhow::Error) -> Broken {
        Broken::Other(error)
    }
}

/// A receiver disconnects when the connection is gone.
impl From<RecvError> for Broken {
    fn from(_: RecvError) -> Broken {
        Broken::Amqp(Error::EventLoopDropped)
    }
}

/// Where requests are answered. All workers of a connection share it.
struct Desk {
    queue: String,
    prefetch: u16,
    settings: Settings,
    drill: Option<Drill>,
    transcript: Arc<Transcript>,
    max_body: usize,
    /// Whether requests are acked only when the broker has confirmed their replies.
    confirms: bool,
    /// The size of the largest reply that was published.
    largest: AtomicUsize,
    /// How many workers compute.
    computing: AtomicUsize,
    events: Sender<Event>,
    inbox: Arc<Inbox>,
}

impl Desk {
    /// The tutorial's loop: deliver, compute, publish, ack; from `begin`'s end to `end`'s.
    fn serve(
        &self,
        channel: &Channel,
        begin: &Receiver<()>,
        end: &Receiver<()>,
    ) -> Result<(), Broken> {
        let mut unconfirmed = Unconfirmed::new(channel, self.confirms)?;
        // The fair dispatch of tutorial two: a worker with a call in hand gets no other.
        channel.qos(0, self.prefetch, false)?;
        info!("qos: prefetch {}", self.prefetch);
        let consumer = channel.basic_consume(self.queue.as_str(), ConsumerOptions::default())?;
        info!("consume from {}", self.queue);
        let _ = self.events.send(Event::Ready);
        let _ = begin.recv();
        loop {
            let delivery = select_biased! {
                recv(end) -> _ => break,
                recv(unconfirmed.confirms) -> confirm => {
                    self.inbox.taken();
                    unconfirmed.settle(channel, confirm?)?;
                    continue;
                }
                recv(consumer.receiver()) -> message => match message? {
                    ConsumerMessage::Delivery(delivery) => delivery,
                    ConsumerMessage::ServerClosedChannel(error) => return Err(error.into()),
                    ConsumerMessage::ServerCancelled => return Err(self.queue_is_gone()),
                    _ => return Err(RecvError.into()),
                },
            };
            self.inbox.taken();
            let replies = self.answer(channel, &delivery)?;
            let dies = format_args!("the reply is out: dies now");
            if replies > 0 && self.strikes(Drill::CrashBeforeAck, dies) {
                // The answer to any synchronous method says that the broker has the reply by then.
                channel.qos(0, self.prefetch, false)?;
                drill::crash();
            }
            if replies > 0 && self.confirms {
                unconfirmed.push(delivery, replies);
            } else {
                // After the reply, on the same channel, so that the broker takes them in this
                // order: a crash in between means a second reply, never a lost one.
                ack(channel, delivery)?;
            }
        }
        unconfirmed.settle_all(channel)?;
        info!("cancel the consumer of {}", self.queue);
        consumer.cancel()?;
        // The library's thread has a last word for the receiver, and gives up the connection, other
        // workers' calls and all, if that is gone by then.
        while consumer.receiver().recv().is_ok() {}
        Ok(())
    }

    /// Computes and replies. Returns how many replies were published: 0 if there is nobody to
    /// reply to, and more than 1 only for a drill.
    fn answer(&self, channel: &Channel, delivery: &Delivery) -> Result<u64, Broken> {
        let request = Request::from_delivery(delivery);
        let again = if delivery.redelivered { "redelivered" } else { "not redelivered" };
        info!("delivery: {request}, correlation_id {}, {again}", short(request.correlation_id));
        let Some(reply_to) = request.reply_to else {
            warn!("{request} came without a readable reply_to: nobody to answer; dropped");
            return Ok(0);
        };
        self.transcript.line(format_args!(" [.] {request}"));
        self.computing.fetch_add(1, Ordering::SeqCst);
        if let Some(slow @ Drill::Slow(delay)) = self.drill {
            drill::announce(slow, format_args!("{request} waits"));
            thread::sleep(delay);
        }
        let outcome = if self.strikes(Drill::Fail, format_args!("{request} fails")) {
            Err(procedure::Error::new(ErrorKind::Internal, "failed on purpose: --drill fail"))
        } else {
            procedure::call(request.procedure, request.argument, &self.settings)
        };
        self.computing.fetch_sub(1, Ordering::SeqCst);
        if self.strikes(Drill::CrashBeforeReply, format_args!("{request} is computed: dies now")) {
            drill::crash();
        }
        let mut reply = Reply::to_request(&request, outcome, self.max_body);
        if self.strikes(Drill::WrongCorrelationId, format_args!("{request} gets another's id")) {
            reply.correlation_id = Some(Uuid::new_v4().to_string());
        }
        self.publish(channel, reply_to, &reply)?;
        if self.strikes(Drill::DuplicateReply, format_args!("{request} gets a second reply")) {
            self.publish(channel, reply_to, &reply)?;
            return Ok(2);
        }
        Ok(1)
    }

    fn publish(&self, channel: &Channel, reply_to: &str, reply: &Reply) -> Result<(), Error> {
        let publish = reply.to_publish(reply_to);
        self.largest.fetch_max(publish.body.len(), Ordering::SeqCst);
        let id = reply.correlation_id.as_deref();
        info!(
            "publish to {}: {}, correlation_id {}",
            short_queue(reply_to),
            reply.kind(),
            short(id)
        );
        channel.basic_publish("", publish)
    }

    fn strikes(&self, drill: Drill, what: fmt::Arguments<'_>) -> bool {
        let strikes = self.drill == Some(drill);
        if strikes {
            drill::announce(drill, what);
        }
        strikes
    }

    fn queue_is_gone(&self) -> Broken {
        let message = format!("the queue \"{}\" is gone", self.queue);
        Broken::Other(Failure::new(Kind::QueueMissing, message).into())
    }
}

fn ack(channel: &Channel, delivery: Delivery) -> Result<(), Broken> {
    info!("ack: correlation_id {}", short(delivery.properties.correlation_id().as_deref()));
    Ok(delivery.ack(channel)?)
}

/// Requests whose replies the broker has not confirmed yet: none, without confirm mode.
struct Unconfirmed {
    confirms: Receiver<Confirm>,
    /// The number of the last reply, counted as the broker does.
    published: u64,
    requests: VecDeque<(u64, Delivery)>,
}

impl Unconfirmed {
    /// Puts the channel into confirm mode, if it `is_wanted`.
    fn new(channel: &Channel, is_wanted: bool) -> Result<Unconfirmed, Error> {
        let confirms = match is_wanted {
            true => confirm_mode(channel)?,
            false => never(),
        };
        Ok(Unconfirmed { confirms, published: 0, requests: VecDeque::new() })
    }

    /// Adds a request to which the last `replies` messages were the reply.
    fn push(&mut self, request: Delivery, replies: u64) {
        self.published += replies;
        self.requests.push_back((self.published, request));
    }

    /// Acks the requests whose replies the broker has. It refuses a reply when the node with the reply
    /// queue died: newer RabbitMQs still know such a queue. The request is tried once more, then
    /// dropped, like one whose reply queue is gone: its client lost its connection as well.
    fn settle(&mut self, channel: &Channel, confirm: Confirm) -> Result<(), Broken> {
        let (confirmed, is_taken) = match confirm {
            Confirm::Ack(confirmed) => (confirmed, true),
            Confirm::Nack(refused) => (refused, false),
        };
        let (settled, left) = take(&mut self.requests)
            .into_iter()
            .partition::<VecDeque<_>, _>(|(number, _)| covers(&confirmed, *number));
        self.requests = left;
        for (_, request) in settled {
            if is_taken || request.redelivered {
                ack(channel, request)?;
            } else {
                let id = short(request.properties.correlation_id().as_deref());
                info!("requeue: the broker refused the reply, correlation_id {id}");
                request.nack(channel, true)?;
            }
        }
        Ok(())
    }

    /// Waits until all are confirmed, for bounded time: what is not acked is answered a second
    /// time, by another server.
    fn settle_all(&mut self, channel: &Channel) -> Result<(), Broken> {
        let deadline = Instant::now() + STOP_LIMIT;
        while !self.requests.is_empty() {
            match self.confirms.recv_deadline(deadline) {
                Ok(confirm) => self.settle(channel, confirm)?,
                Err(_) => break,
            }
        }
        Ok(())
    }
}
