//! The server of RabbitMQ's tutorial six: takes requests from a queue, computes, replies, acks.
//!
//! `Desk::serve` is the tutorial's loop. Around it, `run` opens a connection again whenever one is
//! lost, until a signal asks to stop.

use amiquip::{Channel, Confirm, Consumer, ConsumerMessage, ConsumerOptions, Delivery};
use anyhow::Result;
use crossbeam_channel::{Receiver, RecvError, never, select_biased};
use fib_rpc::backoff::Backoff;
use fib_rpc::connection::Session;
use fib_rpc::exit::{Failure, Kind};
use fib_rpc::message::{MAX_BODY, Reply, Request};
use fib_rpc::procedure::{self, Settings};
use fib_rpc::text::{excerpt, short};
use fib_rpc::uri::{self, Endpoint};
use fib_rpc::{cli, output, queue, signals, stack};
use log::{info, warn};
use std::collections::VecDeque;
use std::process::ExitCode;
use std::time::{Duration, Instant};

const PROGRAM: &str = "rpc_server";

/// How long a server that was asked to stop waits for the broker.
const STOP_LIMIT: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let program = || match cli::start::<cli::Server>(PROGRAM) {
        Ok(args) => output::conclude(PROGRAM, run(&args)),
        Err(code) => code,
    };
    match stack::run_deep(program) {
        Ok(code) => code,
        Err(error) => output::conclude(PROGRAM, Err(error.into())),
    }
}

/// What one connection leaves to the next.
struct Memory {
    /// Why the last one was lost, once that was told.
    told: Option<Kind>,
    /// Whether it was lost to a message that cannot be read.
    unreadable: bool,
    /// Whether there ever was one on which the server could serve.
    served: bool,
    /// The largest body that the broker takes, as far as is known.
    max_body: usize,
    backoff: Backoff,
}

fn run(args: &cli::Server) -> Result<ExitCode> {
    let stop = signals::stop_requests()?;
    let brokers = uri::parse_list(args.common.url())?;
    let mut memory = Memory {
        told: None,
        unreadable: false,
        served: false,
        max_body: MAX_BODY,
        backoff: Backoff::default(),
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
        let delay = match failure.kind {
            // The next connection deals with it, and service must go on.
            Kind::Unreadable => Duration::ZERO,
            _ => memory.backoff.delay(),
        };
        // Once for each reason, not for each attempt.
        match memory.told.replace(failure.kind) {
            Some(told) if told == failure.kind => info!("{failure}; again in {delay:.1?}"),
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
    stop: &Receiver<()>,
    memory: &mut Memory,
) -> Result<()> {
    let queue = &args.common.queue;
    let mut session = Session::open(brokers, args.common.connect_timeout, PROGRAM)?;
    queue::ensure(&mut session, queue, args.queue_type)?;
    let channel = session.channel()?;
    let mut desk = Desk::new(args, &channel, memory.max_body);
    if brokers.len() > 1 {
        // In a cluster, the node that took a reply can die before it has passed it on.
        desk.confirms = Some(session.ask(|| confirms(&channel))?);
    }
    if memory.unreadable {
        desk.rescue(&mut session, memory)?;
    }
    // The fair dispatch of tutorial two: a server with a call in hand gets no other.
    session.ask(|| channel.qos(0, args.prefetch, false))?;
    let consumer = session.ask(|| channel.basic_consume(queue, ConsumerOptions::default()))?;
    info!("consume from {queue} with prefetch {}", args.prefetch);
    if memory.told.take().is_some() {
        warn!("connected to {} again", session.endpoint());
    }
    memory.served = true;
    memory.backoff.reset();

    let served = desk.serve(&mut session, &consumer, stop);
    // Before channel and consumer are dropped. What is unacknowledged, the prefetched requests
    // among it, goes back to the queue.
    session.close();
    match served.as_ref().err().and_then(|error| error.downcast_ref()) {
        Some(Failure { kind: Kind::Unreadable, .. }) => memory.unreadable = true,
        // The request will come again, to be answered with an error then.
        Some(Failure { kind: Kind::TooLarge, .. }) => {
            memory.max_body = desk.largest.saturating_sub(1)
        }
        _ => {}
    }
    served
}

/// Puts the channel into confirm mode (RabbitMQ, "Consumer Acknowledgements and Publisher
/// Confirms").
fn confirms(channel: &Channel) -> amiquip::Result<Receiver<Confirm>> {
    let confirms = channel.listen_for_publisher_confirms()?;
    channel.enable_publisher_confirms()?;
    Ok(confirms)
}

/// Where requests are answered: a channel, and what is under way on it.
struct Desk<'a> {
    args: &'a cli::Server,
    settings: Settings,
    channel: &'a Channel,
    max_body: usize,
    /// The size of the largest reply that was published.
    largest: usize,
    /// In confirm mode: where the broker says which replies it has.
    confirms: Option<Receiver<Confirm>>,
    /// How many replies were published.
    published: u64,
    /// Requests that are answered and not acked, each with the number of its reply.
    unconfirmed: VecDeque<(u64, Delivery)>,
}

impl<'a> Desk<'a> {
    fn new(args: &'a cli::Server, channel: &'a Channel, max_body: usize) -> Desk<'a> {
        Desk {
            args,
            settings: args.settings(),
            channel,
            max_body,
            largest: 0,
            confirms: None,
            published: 0,
            unconfirmed: VecDeque::new(),
        }
    }

    /// The tutorial's loop: deliver, compute, publish, ack; until a signal asks to stop.
    fn serve(
        &mut self,
        session: &mut Session,
        consumer: &Consumer<'_>,
        stop: &Receiver<()>,
    ) -> Result<()> {
        let confirms = self.confirms.clone().unwrap_or_else(never);
        self.transcript(format_args!(" [x] Awaiting RPC requests"))?;
        loop {
            let delivery = select_biased! {
                recv(stop) -> _ => break,
                recv(confirms) -> confirm => {
                    self.confirmed(session, confirm)?;
                    continue;
                }
                recv(session.notices()) -> notice => {
                    notice.map(|notice| session.note(notice)).map_err(|_| session.lost())?;
                    continue;
                }
                recv(consumer.receiver()) -> message => match message {
                    Ok(ConsumerMessage::Delivery(delivery)) => delivery,
                    other => return Err(self.ended(session, other).into()),
                },
            };
            if self.answer(session, &delivery)? && self.confirms.is_some() {
                self.unconfirmed.push_back((self.published, delivery));
            } else {
                // After the reply, on the same channel, so that the broker takes them in this
                // order: a crash in between means a second reply, never a lost one.
                self.ack(session, delivery)?;
            }
        }
        if let Err(failure) = self.finish(session, consumer, &confirms) {
            // What is not acked goes to another server, connection or no connection.
            warn!("while stopping: {failure}");
        }
        Ok(())
    }

    /// No more deliveries, and acks for the last replies.
    fn finish(
        &mut self,
        session: &mut Session,
        consumer: &Consumer<'_>,
        confirms: &Receiver<Confirm>,
    ) -> Result<(), Failure> {
        // A broker that blocks this connection reads nothing from it.
        if session.blocked().is_none() {
            info!("asked to stop: cancel the consumer");
            session.hurry(STOP_LIMIT);
            session.ask(|| consumer.cancel())?;
        }
        let deadline = Instant::now() + STOP_LIMIT;
        while !self.unconfirmed.is_empty() {
            match confirms.recv_deadline(deadline) {
                Ok(confirm) => self.confirmed(session, Ok(confirm))?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    /// Computes and replies. False if there is nobody to reply to.
    fn answer(&mut self, session: &mut Session, delivery: &Delivery) -> Result<bool> {
        let request = Request::from_delivery(delivery);
        let call =
            format!("{}({})", excerpt(request.procedure.as_bytes()), excerpt(request.argument));
        let id = short(request.correlation_id);
        let again = if delivery.redelivered { ", redelivered" } else { "" };
        info!("delivery {call}, correlation_id {id}{again}");
        let Some(reply_to) = request.reply_to else {
            warn!("{call} came without a reply_to: nobody to answer; dropped");
            return Ok(false);
        };
        self.transcript(format_args!(" [.] {call}"))?;
        let outcome = procedure::call(request.procedure, request.argument, &self.settings);
        if let Err(error) = &outcome {
            info!("error: {error}");
        }
        let reply = Reply::to_request(&request, outcome, self.max_body);
        let publish = reply.to_publish(reply_to);
        self.published += 1;
        self.largest = self.largest.max(publish.body.len());
        info!("publish the reply to {}, correlation_id {id}", excerpt(reply_to.as_bytes()));
        self.channel.basic_publish("", publish).map_err(|error| session.explain(error))?;
        Ok(true)
    }

    fn ack(&self, session: &mut Session, delivery: Delivery) -> Result<(), Failure> {
        info!("ack, correlation_id {}", short(delivery.properties.correlation_id().as_deref()));
        delivery.ack(self.channel).map_err(|error| session.explain(error))
    }

    /// Acks the requests whose replies the broker has.
    fn confirmed(
        &mut self,
        session: &mut Session,
        confirm: Result<Confirm, RecvError>,
    ) -> Result<(), Failure> {
        let payload = match confirm {
            Ok(Confirm::Ack(payload)) => payload,
            Ok(Confirm::Nack(_)) => {
                let message = format!("{} refused a reply", session.endpoint());
                return Err(Failure::new(Kind::ConnectionLost, message));
            }
            Err(_) => return Err(session.lost()),
        };
        let is_confirmed = |number: u64| match payload.multiple {
            true => number <= payload.delivery_tag,
            false => number == payload.delivery_tag,
        };
        let mut index = 0;
        while let Some((number, _)) = self.unconfirmed.get(index) {
            if is_confirmed(*number)
                && let Some((_, delivery)) = self.unconfirmed.remove(index)
            {
                self.ack(session, delivery)?;
            } else {
                index += 1;
            }
        }
        Ok(())
    }

    /// Discards a message that cannot be read, which the client library tells only by giving up
    /// the connection: the broker forgets the head of the queue as it sends it. If another
    /// message is there by now, it is answered like any other.
    fn rescue(&mut self, session: &mut Session, memory: &mut Memory) -> Result<()> {
        let queue = &self.args.common.queue;
        match session.ask(|| self.channel.basic_get(queue, true)) {
            Ok(got) => {
                memory.unreadable = false;
                got.map_or(Ok(()), |got| self.answer(session, &got.delivery).map(drop))
            }
            Err(failure) => {
                if failure.kind == Kind::Unreadable {
                    memory.unreadable = false;
                    warn!("discarded a message from {queue}: its properties are not UTF-8 text");
                }
                Err(failure.into())
            }
        }
    }

    /// Why there are no more deliveries.
    fn ended(&self, session: &mut Session, message: Result<ConsumerMessage, RecvError>) -> Failure {
        let queue = &self.args.common.queue;
        match message {
            Ok(ConsumerMessage::ServerCancelled) => {
                let message = format!("the queue \"{queue}\" on {} is gone", session.endpoint());
                Failure::new(Kind::QueueMissing, message)
            }
            Ok(ConsumerMessage::ServerClosedChannel(error)) => session.explain(error),
            _ => session.lost(),
        }
    }

    fn transcript(&self, line: std::fmt::Arguments<'_>) -> Result<()> {
        if self.args.common.quiet { Ok(()) } else { output::line(line) }
    }
}
