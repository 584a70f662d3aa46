//! The exchange that requests go to: found as it is, or not.

use crate::amqp::connection::OpenConnection;
use crate::amqp::errors::{AmqpError, AmqpErrorKind};
use amiquip::Channel;
use log::info;

/// Looks whether `exchange` is there (AMQP 0-9-1, exchange.declare with `passive`). The default exchange, whose name is
/// empty, always is, and cannot be asked for. An error costs the channel: [`AmqpErrorKind::ExchangeMissing`].
pub fn inspect(
    connection: &mut OpenConnection,
    channel: &Channel,
    exchange: &str,
) -> Result<(), AmqpError> {
    if exchange.is_empty() {
        return Ok(());
    }
    let declared = connection.call(|| channel.exchange_declare_passive(exchange).map(drop));
    declared.map_err(|error| match error.kind {
        AmqpErrorKind::QueueMissing => AmqpError { kind: AmqpErrorKind::ExchangeMissing, ..error },
        _ => error,
    })?;
    info!("exchange {exchange} is there");
    Ok(())
}
