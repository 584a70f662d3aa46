//! Bindings: by which an exchange hands messages on to a queue (AMQP 0-9-1, section 3.1.3).

use crate::amqp::connection::OpenConnection;
use crate::amqp::errors::{AmqpError, AmqpErrorKind, Remedy};
use crate::amqp::{name, short_string};
use amiquip::FieldTable;
use log::info;
use std::fmt;

/// What a queue is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binding {
    /// The exchange's name: 1 to 255 bytes.
    pub exchange: String,
    /// The binding's key: 0 to 255 bytes. What it means depends on the exchange's type.
    pub key: String,
}

impl Binding {
    /// Returns what `EXCHANGE:KEY` names, or what is wrong with it. The first colon ends the exchange's name, unless it
    /// has a backslash before it: `\:` is a colon there, and `\\` a backslash. In the key, each stands for itself.
    pub fn parse(text: &str) -> Result<Binding, String> {
        let mut exchange = String::new();
        let mut rest = text.chars();
        loop {
            match rest.next() {
                Some(':') => break,
                Some('\\') => match rest.next() {
                    Some(escaped @ (':' | '\\')) => exchange.push(escaped),
                    _ => {
                        return Err("a backslash stands before a colon or another backslash".into());
                    }
                },
                Some(character) => exchange.push(character),
                None => return Err("EXCHANGE:KEY is wanted; the key may be empty".into()),
            }
        }

        let key = rest.as_str();
        if exchange.is_empty() {
            return Err("the default exchange, which has no name, has all queues already".into());
        }
        let key = short_string("a key", key.into())?;
        Ok(Binding { exchange: name(&exchange)?, key })
    }
}

impl fmt::Display for Binding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exchange {}, key \"{}\"", self.exchange, self.key)
    }
}

/// Binds `queue`, which is there, to each of `bindings`. One that it is bound to already stays as it is.
/// [`AmqpErrorKind::ExchangeMissing`], [`AmqpErrorKind::AccessRefused`].
pub fn bind(
    connection: &mut OpenConnection,
    queue: &str,
    bindings: &[Binding],
) -> Result<(), AmqpError> {
    if bindings.is_empty() {
        return Ok(());
    }
    let channel = connection.channel()?;
    for binding in bindings {
        let Binding { exchange, key } = binding;
        let bound = connection.call(|| channel.queue_bind(queue, exchange, key, FieldTable::new()));
        bound.map_err(|error| missing(connection.name(), exchange, error))?;
        info!("queue {queue} bound: {binding}");
    }
    connection.call(|| channel.close())
}

/// Says more of an `error` of the broker `name`, if it is that there is no such exchange. The queue can be missing too,
/// deleted a moment ago.
fn missing(name: &str, exchange: &str, error: AmqpError) -> AmqpError {
    if error.kind != AmqpErrorKind::QueueMissing || !error.message.contains("no exchange") {
        return error;
    }
    let message = format!("there is no exchange \"{exchange}\" on {name}");
    AmqpError::new(AmqpErrorKind::ExchangeMissing, message).with_remedy(Remedy::DeclareExchange)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_binding_is_split() {
        for (text, exchange, key) in [
            ("rpc:1", "rpc", "1"),
            ("rpc:", "rpc", ""),
            ("rpc:a:b\\", "rpc", "a:b\\"),
            ("rpc::", "rpc", ":"),
            ("Shop\\:Orders:new", "Shop:Orders", "new"),
            ("a\\\\:b", "a\\", "b"),
            ("é:ü", "é", "ü"),
        ] {
            let expected = Binding { exchange: exchange.into(), key: key.into() };
            assert_eq!(Binding::parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_binding() {
        let long = "n".repeat(256);
        for text in [
            "",
            "rpc",
            ":",
            ":key",
            "a\\b:",
            "a\\",
            "rpc\\:1",
            &format!("{long}:"),
            &format!("a:{long}"),
        ] {
            assert!(Binding::parse(text).is_err(), "{text}");
        }
    }
}
