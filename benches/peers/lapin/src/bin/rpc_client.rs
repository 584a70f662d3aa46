//! RPC client of RabbitMQ's tutorial six with lapin:
//! rpc_client URL QUEUE PROCEDURE ARGUMENT CALLS IN_FLIGHT; the argument "-" is standard input's.

use futures_lite::StreamExt;
use lapin::options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection, ConnectionProperties};
use std::error::Error;
use std::io::stdin;
use std::time::{Duration, Instant};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, queue, procedure, argument, calls, in_flight] = &arguments[..] else {
        return Err("usage: rpc_client URL QUEUE PROCEDURE ARGUMENT CALLS IN_FLIGHT".into());
    };
    let (calls, in_flight): (usize, usize) = (calls.parse()?, in_flight.parse()?);
    let mut argument = argument.clone();
    if argument == "-" {
        argument.clear();
        stdin().read_line(&mut argument)?;
    }

    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let exclusive = QueueDeclareOptions { exclusive: true, ..Default::default() };
    let reply_queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await?;
    let no_ack = BasicConsumeOptions { no_ack: true, ..Default::default() };
    let mut replies = channel
        .basic_consume(reply_queue.name().clone(), "".into(), no_ack, FieldTable::default())
        .await?;

    let start = Instant::now();
    let mut began = Vec::with_capacity(calls);
    let mut latencies = vec![Duration::ZERO; calls];
    for done in 0..calls {
        while began.len() < calls.min(done + in_flight) {
            let id = began.len().to_string();
            began.push(Instant::now());
            channel
                .basic_publish(
                    "".into(),
                    queue.as_str().into(),
                    BasicPublishOptions::default(),
                    argument.trim_end().as_bytes(),
                    BasicProperties::default()
                        .with_content_type("text/plain".into())
                        .with_correlation_id(id.into())
                        .with_reply_to(reply_queue.name().clone())
                        .with_app_id(procedure.as_str().into()),
                )
                .await?;
        }
        let reply = replies.next().await.ok_or("the connection was lost")??;
        let id = reply.properties.correlation_id().as_ref().ok_or("no correlation_id")?;
        let call: usize = id.as_str().parse()?;
        latencies[call] = began[call].elapsed();
    }
    let seconds = start.elapsed().as_secs_f64();

    latencies.sort();
    let percentile = |share: f64| latencies[((calls - 1) as f64 * share) as usize].as_secs_f64();
    let (p50, p99) = (percentile(0.50) * 1e6, percentile(0.99) * 1e6);
    println!("{calls} {seconds:.6} {p50:.1} {p99:.1}");
    connection.close(200, "".into()).await?;
    Ok(())
}
