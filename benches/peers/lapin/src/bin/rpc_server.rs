//! RPC server of RabbitMQ's tutorial six with lapin: rpc_server URL QUEUE PREFETCH

use futures_lite::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{BasicProperties, Connection, ConnectionProperties};
use std::error::Error;

fn fib(n: u64) -> u64 {
    if n < 2 { n } else { fib(n - 1) + fib(n - 2) }
}

fn answer(procedure: Option<&ShortString>, argument: &[u8]) -> Result<Vec<u8>, Box<dyn Error>> {
    Ok(match procedure.map(|name| name.as_str()) {
        Some("fun") => [argument, b"00"].concat(),
        Some("fib") => fib(str::from_utf8(argument)?.parse()?).to_string().into(),
        _ => "pong".into(),
    })
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, queue, prefetch] = &arguments[..] else {
        return Err("usage: rpc_server URL QUEUE PREFETCH".into());
    };
    let connection = Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let durable = QueueDeclareOptions { durable: true, ..Default::default() };
    channel.queue_declare(queue.as_str().into(), durable, FieldTable::default()).await?;
    channel.basic_qos(prefetch.parse()?, BasicQosOptions::default()).await?;
    let mut requests = channel
        .basic_consume(
            queue.as_str().into(),
            "".into(),
            BasicConsumeOptions::default(),
            FieldTable::default(),
        )
        .await?;
    println!("Awaiting RPC requests");

    while let Some(request) = requests.next().await {
        let request = request?;
        let properties = &request.properties;
        let reply_to = properties.reply_to().clone().ok_or("no reply_to")?;
        let id = properties.correlation_id().clone().ok_or("no correlation_id")?;
        let reply = answer(properties.app_id().as_ref(), &request.data)?;
        channel
            .basic_publish(
                "".into(),
                reply_to,
                BasicPublishOptions::default(),
                &reply,
                BasicProperties::default()
                    .with_content_type("text/plain".into())
                    .with_correlation_id(id),
            )
            .await?;
        request.ack(BasicAckOptions::default()).await?;
    }
    Ok(())
}
