//! The server of RabbitMQ's tutorial six: takes requests from a queue, computes, replies, acks.

use amiquip::{Channel, Consumer, ConsumerMessage, ConsumerOptions, Error};
use anyhow::Result;
use crossbeam_channel::{Receiver, RecvError, select_biased};
use fib_rpc::connection::Session;
use fib_rpc::exit::{Failure, Kind};
use fib_rpc::message::{Reply, Request};
use fib_rpc::text::{excerpt, short};
use fib_rpc::{cli, logging, output, procedure, queue, signals, uri};
use log::{info, warn};
use std::process::ExitCode;

const PROGRAM: &str = "rpc_server";

fn main() -> ExitCode {
    match cli::parse::<cli::Server>() {
        Ok(args) => output::conclude(PROGRAM, run(&args)),
        Err(code) => code,
    }
}

fn run(args: &cli::Server) -> Result<ExitCode> {
    logging::init(PROGRAM, args.common.quiet, args.common.verbose);
    let stop = signals::stop_requests()?;
    let brokers = uri::parse_list(args.common.url())?;
    let mut session = Session::open(&brokers, args.common.connect_timeout, PROGRAM)?;
    queue::ensure(&mut session, &args.common.queue, args.queue_type)?;

    let channel = session.channel()?;
    // The fair dispatch of tutorial two: a server with a call in hand gets no other.
    session.ask(|| channel.qos(0, args.prefetch, false))?;
    let consumer =
        session.ask(|| channel.basic_consume(&args.common.queue, ConsumerOptions::default()))?;
    info!("consume from {} with prefetch {}", args.common.queue, args.prefetch);

    let served = serve(&mut session, &channel, &consumer, &stop, args);
    // Before channel and consumer are dropped. What is unacknowledged, the prefetched requests
    // among it, goes back to the queue.
    session.close();
    served.map(|()| ExitCode::SUCCESS)
}

/// The tutorial's loop: deliver, compute, publish, ack; until a signal asks to stop.
fn serve(
    session: &mut Session,
    channel: &Channel,
    consumer: &Consumer<'_>,
    stop: &Receiver<()>,
    args: &cli::Server,
) -> Result<()> {
    let settings = args.settings();
    let transcript = |line: std::fmt::Arguments<'_>| match args.common.quiet {
        true => Ok(()),
        false => output::line(line),
    };
    transcript(format_args!(" [x] Awaiting RPC requests"))?;
    loop {
        let message = select_biased! {
            recv(stop) -> _ => break,
            recv(consumer.receiver()) -> message => message,
        };
        let delivery = match message {
            Ok(ConsumerMessage::Delivery(delivery)) => delivery,
            other => return Err(ended(session, &args.common.queue, other).into()),
        };
        let request = Request::from_delivery(&delivery);
        let call =
            format!("{}({})", excerpt(request.procedure.as_bytes()), excerpt(request.argument));
        let id = short(request.correlation_id);
        let again = if delivery.redelivered { ", redelivered" } else { "" };
        info!("delivery {call}, correlation_id {id}{again}");

        if let Some(reply_to) = request.reply_to {
            transcript(format_args!(" [.] {call}"))?;
            let outcome = procedure::call(request.procedure, request.argument, &settings);
            if let Err(error) = &outcome {
                info!("error: {error}");
            }
            let reply = Reply::to_request(&request, outcome);
            info!("publish the reply to {}, correlation_id {id}", excerpt(reply_to.as_bytes()));
            channel
                .basic_publish("", reply.to_publish(reply_to))
                .map_err(|error| session.explain(error))?;
        } else {
            warn!("{call} came without a reply_to: nobody to answer; dropped");
        }

        // After the reply, on the same channel, so that the broker takes them in this order: a
        // crash in between means a second reply, never a lost one.
        info!("ack, correlation_id {id}");
        consumer.ack(delivery).map_err(|error| session.explain(error))?;
    }
    info!("asked to stop: cancel the consumer");
    session.ask(|| consumer.cancel())?;
    Ok(())
}

/// Why there are no more deliveries.
fn ended(
    session: &mut Session,
    queue: &str,
    message: Result<ConsumerMessage, RecvError>,
) -> Failure {
    match message {
        Ok(ConsumerMessage::ServerCancelled) => {
            let message = format!("the queue \"{queue}\" on {} was deleted", session.endpoint());
            Failure::new(Kind::QueueMissing, message)
        }
        Ok(ConsumerMessage::ServerClosedChannel(error)) => session.explain(error),
        _ => session.explain(Error::EventLoopDropped),
    }
}
