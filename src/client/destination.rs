//! Where requests go: to a queue, or to an exchange, which puts each into queues by its routing key. A queue can be looked
//! at; of what is behind an exchange, the client knows no more than that a request was put into some queue.

use crate::amqp::short_string;
use crate::cli;
use crate::client::input::Argument;
use crate::error::{Failure, FailureKind};
use crate::template::Template;
use std::fmt;

/// Where all requests of a client go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination<'a> {
    /// The queue of this name, by way of the default exchange.
    Queue(&'a str),
    /// The exchange of this name. The empty one is the default exchange, which has a queue for each routing key of its name.
    Exchange(&'a str),
}

impl<'a> Destination<'a> {
    /// Returns where `args` send requests.
    pub fn of(args: &'a cli::Client) -> Destination<'a> {
        match &args.exchange {
            Some(exchange) => Destination::Exchange(exchange),
            None => Destination::Queue(&args.common.queue),
        }
    }

    /// Returns the queue, if it is known.
    pub fn queue(self) -> Option<&'a str> {
        match self {
            Destination::Queue(queue) => Some(queue),
            Destination::Exchange(_) => None,
        }
    }

    /// Returns the exchange and the routing key of the request with this argument.
    pub fn address<'b>(self, argument: &'b Argument) -> (&'b str, &'b str)
    where
        'a: 'b,
    {
        match self {
            Destination::Queue(queue) => ("", queue),
            Destination::Exchange(exchange) => {
                (exchange, argument.routing_key.as_deref().unwrap_or_default())
            }
        }
    }
}

/// The name for a sentence: `the queue "rpc_queue"`.
impl fmt::Display for Destination<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Queue(queue) => write!(f, "the queue \"{queue}\""),
            Destination::Exchange("") => f.write_str("the default exchange"),
            Destination::Exchange(exchange) => write!(f, "the exchange \"{exchange}\""),
        }
    }
}

/// Returns the routing key of the call with this `argument` and `number`.
///
/// # Errors
///
/// [`FailureKind::BadRoutingKey`]
pub fn routing_key(template: &Template, argument: &[u8], number: u64) -> Result<String, Failure> {
    let refuse = |why: String| Err(Failure::new(FailureKind::BadRoutingKey, why));
    let Some(key) = template.text(argument, number) else {
        return refuse("the argument has not the part that --routing-key wants".into());
    };
    match String::from_utf8(key) {
        Err(_) => refuse("a routing key is UTF-8, and the argument is not".into()),
        Ok(key) => short_string("a routing key", key).or_else(refuse),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;

    #[test]
    fn a_routing_key_is_made_from_the_argument_or_the_calls_number() {
        let key = |template: &str, argument: &[u8]| {
            routing_key(&Template::new(OsStr::new(template)), argument, 7)
        };
        for (template, argument, made) in
            [("", "x", ""), ("rpc.{}", "x", "rpc.x"), ("{#}", "x", "7"), ("{/.}", "a/b.c", "b")]
        {
            assert_eq!(key(template, argument.as_bytes()).as_deref(), Ok(made), "{template}");
        }
        assert_eq!(key("{}", &[b'k'; 255]).map(|key| key.len()), Ok(255));
        for (template, argument, why) in [
            ("{}", &[b'k'; 256][..], "a routing key has at most 255 bytes, and this one has 256"),
            ("{}", b"caf\xe9", "a routing key is UTF-8, and the argument is not"),
            ("{/}", b"..", "the argument has not the part that --routing-key wants"),
        ] {
            let refused = Failure::new(FailureKind::BadRoutingKey, why);
            assert_eq!(key(template, argument), Err(refused));
        }
    }
}
