//! The errors of this module, and which of them an error of the client library is. An [`AmqpError`] names the broker and
//! says what is wrong; the texts in it are the broker's, shown as they came. What would help is beside it as a
//! [`Remedy`], without a sentence: that is for whoever tells it, and knows by which options a program was started.

use crate::amqp::MAX_BODY;
use crate::amqp::inbox::Close;
use crate::amqp::uri::{Credentials, Endpoint};
use crate::terminal::text;
use amiquip::Error;
use std::fmt::{self, Display};
use std::time::Duration;

/// Why something did not succeed between a URI and a channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AmqpError {
    /// What is wrong.
    pub kind: AmqpErrorKind,
    /// One sentence: what failed, and at which broker. Never a password.
    pub message: String,
    /// What would help, as far as that is known.
    pub remedy: Option<Remedy>,
}

impl AmqpError {
    /// Returns an error of `kind`, told by `message`, against which nothing is known to help.
    pub fn new(kind: AmqpErrorKind, message: impl Into<String>) -> AmqpError {
        AmqpError { kind, message: message.into(), remedy: None }
    }

    /// Returns the error with what would help.
    pub fn with_remedy(self, remedy: Remedy) -> AmqpError {
        AmqpError { remedy: Some(remedy), ..self }
    }
}

impl std::error::Error for AmqpError {}

/// Shows what is wrong, without a remedy.
impl Display for AmqpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What is wrong, for programs that decide by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AmqpErrorKind {
    /// No broker answers, or what answers is not one.
    BrokerUnreachable,
    /// Credentials or a permission were refused.
    AccessRefused,
    /// What was asked for does not fit the broker: a vhost that is missing, a certificate that is not trusted, a queue
    /// that was declared in another way.
    Configuration,
    /// The queue or the exchange does not exist.
    QueueMissing,
    /// The exchange does not exist.
    ExchangeMissing,
    /// The queue cannot be used: another connection has it for itself.
    QueueUnusable,
    /// The message is larger than the broker takes.
    TooLarge {
        /// The largest body that it takes, in bytes.
        limit: usize,
    },
    /// The broker does not take messages at the moment.
    Blocked,
    /// The connection was lost.
    ConnectionLost,
    /// This process failed: it has no more threads or descriptors.
    Internal,
}

/// Why no connection was opened, to any of several brokers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenError {
    /// The error of each broker that was tried, in that order.
    pub attempts: Vec<AmqpError>,
}

impl OpenError {
    /// Returns what is wrong by the first one whose broker could be reached, since that one tells most.
    pub fn kind(&self) -> AmqpErrorKind {
        let kinds = self.attempts.iter().map(|error| error.kind);
        let mut reached = kinds.filter(|kind| *kind != AmqpErrorKind::BrokerUnreachable);
        reached.next().unwrap_or(AmqpErrorKind::BrokerUnreachable)
    }
}

impl std::error::Error for OpenError {}

/// Shows what is wrong with each, without remedies.
impl Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let messages: Vec<&str> = self.attempts.iter().map(|error| &*error.message).collect();
        f.write_str(&messages.join("; and "))
    }
}

/// What would help against an [`AmqpError`]. Only sentences about certificates and keys name the parameter of the URI that
/// is meant, such as `cacertfile`: URIs are what this module knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Remedy {
    /// Start a broker where the connection was to go, or name one that runs.
    StartBroker,
    /// Name another host or port: what listens there speaks no AMQP.
    CheckAddress,
    /// Allow more time for the handshake, if it is RabbitMQ that listens there.
    AllowMoreTime {
        /// Whether it was the login that took so long: RabbitMQ lets 3 s pass before it refuses credentials.
        is_in_login: bool,
    },
    /// Check user and password, if the broker closes the connection again during the login.
    CheckCredentialsIfRepeated,
    /// Check user and password.
    CheckPassword,
    /// Check the client certificate, and whether a user has its name.
    CheckClientCertificate,
    /// Give the user permissions.
    GrantPermissions,
    /// Add this vhost, or name another.
    AddVhost(String),
    /// Take the slash at the end of the URI away: it names the vhost with the empty name.
    OmitSlash,
    /// Allow more channels, in the URI or on the broker.
    RaiseChannelMax,
    /// Declare the exchange, or name another.
    DeclareExchange,
    /// Name another queue.
    NameAnotherQueue,
    /// Delete a queue or an exchange that was declared in another way, or name another vhost.
    DeleteQueue,
    /// Ack sooner than the broker's `consumer_timeout` passes, or raise that.
    AckSooner,
    /// Free memory or disk of the broker's machine.
    FreeResources,
}

/// RabbitMQ lets 3 s pass before it closes a connection whose credentials it refuses. What the
/// client library reports as refused credentials sooner was a broker that went away meanwhile.
const SHORTEST_REFUSAL: Duration = Duration::from_secs(2);

/// What RabbitMQ says when one has: "delivery acknowledgement on channel 1 timed out".
const ACKNOWLEDGEMENT_TIMEOUT: &str = "delivery acknowledgement";

/// The reply code not-allowed (AMQP 0-9-1, section 1.5).
const NOT_ALLOWED: u16 = 530;

/// What the broker holds against a channel that it closes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelFault {
    /// A delivery was unacknowledged for longer than the broker's `consumer_timeout` (RabbitMQ, "Delivery
    /// Acknowledgement Timeout").
    ConsumerTimeout,
    /// A message was larger than its `max_message_size`.
    TooLarge {
        /// The largest body that it takes, in bytes.
        limit: usize,
    },
    /// Anything else.
    Other,
}

/// Returns what the broker holds against a channel, by its sentence, which is where RabbitMQ tells it.
pub fn channel_fault(close: &Close) -> ChannelFault {
    match too_large(&close.text) {
        Some(limit) => ChannelFault::TooLarge { limit },
        None if close.text.contains(ACKNOWLEDGEMENT_TIMEOUT) => ChannelFault::ConsumerTimeout,
        None => ChannelFault::Other,
    }
}

/// Returns whether the broker closed a connection for a fault that it sees in what was sent on it, or that it met with
/// while it dealt with that: the reply codes of AMQP 0-9-1, section 1.5, but for 320, which is an operator's.
pub fn is_connection_fault(close: &Close) -> bool {
    matches!(close.code, 501..=506 | 530 | 540 | 541)
}

/// Returns the error that one of one channel is, or of none: the connection is still good. None if it is an error of the
/// connection.
pub fn of_channel(endpoint: &str, error: &Error) -> Option<AmqpError> {
    let (kind, message, remedy) = match error {
        Error::ServerClosedChannel { code, message, .. } => {
            // The reply codes of AMQP 0-9-1, section 1.5.
            let kind = match *code {
                403 => AmqpErrorKind::AccessRefused,
                404 => AmqpErrorKind::QueueMissing,
                405 => AmqpErrorKind::QueueUnusable,
                406 => match too_large(message) {
                    Some(limit) => AmqpErrorKind::TooLarge { limit },
                    None => AmqpErrorKind::Configuration,
                },
                _ => AmqpErrorKind::ConnectionLost,
            };
            (kind, format!("refused: {message}"), remedy_for(message))
        }
        Error::ExhaustedChannelIds => {
            let message = "gives no more channels".into();
            (AmqpErrorKind::Configuration, message, Some(Remedy::RaiseChannelMax))
        }
        _ => return None,
    };

    Some(AmqpError { kind, message: format!("{endpoint} {message}"), remedy })
}

/// Returns what helps where a broker closes a channel with this sentence of RabbitMQ's.
fn remedy_for(message: &str) -> Option<Remedy> {
    if message.contains("refused for user") {
        Some(Remedy::GrantPermissions)
    } else if message.contains("inequivalent arg") {
        Some(Remedy::DeleteQueue)
    } else if message.contains(ACKNOWLEDGEMENT_TIMEOUT) {
        Some(Remedy::AckSooner)
    } else {
        None
    }
}

/// Returns the limit in "PRECONDITION_FAILED - message size 2090 is larger than configured max size 1000":
/// RabbitMQ tells its limit in this sentence and nowhere else. One that is larger than ours changes nothing.
fn too_large(message: &str) -> Option<usize> {
    let (_, limit) = message.split_once("larger than configured max size ")?;
    Some(limit.parse::<usize>().ok()?.min(MAX_BODY))
}

/// Returns the error that the `cause` of a lost connection is.
pub fn of_connection(endpoint: &str, cause: &Error) -> AmqpError {
    let message = match cause {
        Error::ServerClosedConnection { message, .. } => {
            format!("{endpoint} closed the connection: {message}")
        }
        Error::MissedServerHeartbeats => {
            format!("{endpoint} no longer answers: it sent no heartbeat")
        }
        Error::UnexpectedSocketClose
        | Error::IoErrorReadingSocket { .. }
        | Error::IoErrorWritingSocket { .. } => {
            format!("the connection to {endpoint} was lost ({cause})")
        }
        // Both sides closed it at once, or the broker in the middle of something. Why is not known.
        Error::IoThreadPanic | Error::EventLoopDropped | Error::EventLoopClientDropped => {
            format!("the connection to {endpoint} was lost")
        }
        _ => format!("the connection to {endpoint} failed: {cause}"),
    };

    AmqpError::new(AmqpErrorKind::ConnectionLost, message)
}

/// Returns why a broker that was reached did not open the connection, `after` a time.
pub fn of_handshake(endpoint: &Endpoint, error: Error, after: Duration) -> AmqpError {
    use AmqpErrorKind::{AccessRefused, BrokerUnreachable, Configuration};
    #[cfg(feature = "tls")]
    if let Error::IoErrorReadingSocket { source } | Error::IoErrorWritingSocket { source } = &error
        && let Some(refusal) = crate::amqp::tls::refusal(endpoint, source)
    {
        return refusal;
    }
    let (kind, message, remedy) = match &error {
        Error::InvalidCredentials if after < SHORTEST_REFUSAL => (
            BrokerUnreachable,
            "closed the connection during the login".into(),
            Some(Remedy::CheckCredentialsIfRepeated),
        ),
        Error::InvalidCredentials => {
            let remedy = match endpoint.credentials {
                Credentials::Plain { .. } => Remedy::CheckPassword,
                Credentials::External => Remedy::CheckClientCertificate,
            };
            (AccessRefused, "refused the credentials".into(), Some(remedy))
        }
        Error::UnsupportedAuthMechanism { available, requested } => {
            let offered = format!("{requested}, but {available}");
            let message = format!("does not offer the authentication mechanism {offered}");
            (Configuration, message, None)
        }
        Error::ServerClosedConnection { code: NOT_ALLOWED, message }
            if message.ends_with("not found") =>
        {
            let vhost = &endpoint.vhost;
            let remedy = match vhost.as_str() {
                "" => Remedy::OmitSlash,
                _ => Remedy::AddVhost(vhost.clone()),
            };
            (Configuration, format!("has no vhost \"{vhost}\""), Some(remedy))
        }
        // "access to vhost 'x' refused for user 'y'", and not "...: connection limit (7) is reached",
        // which has the same code and passes.
        Error::ServerClosedConnection { code: NOT_ALLOWED, message }
            if message.contains("refused for user") && !message.ends_with("is reached") =>
        {
            let message = format!("refused access: {message}");
            (AccessRefused, message, Some(Remedy::GrantPermissions))
        }
        Error::ServerClosedConnection { message, .. } => {
            (BrokerUnreachable, format!("closed the connection: {message}"), None)
        }
        Error::IoThreadPanic | Error::EventLoopDropped => {
            (BrokerUnreachable, "closed the connection during the handshake".into(), None)
        }
        Error::IoErrorReadingSocket { source } => return no_handshake(endpoint, source),
        _ => return no_handshake(endpoint, &error),
    };

    AmqpError { kind, message: format!("{endpoint} {message}"), remedy }
}

/// Returns the error of a handshake that was not over within `limit`. `is_in_login`: the broker had the credentials by
/// then.
pub fn handshake_too_slow(endpoint: &Endpoint, limit: Duration, is_in_login: bool) -> AmqpError {
    let limit = text::duration(limit.max(Duration::from_millis(1)));
    let message =
        format!("{endpoint} took the connection, but did not finish the handshake within {limit}");
    AmqpError::new(AmqpErrorKind::BrokerUnreachable, message)
        .with_remedy(Remedy::AllowMoreTime { is_in_login })
}

/// Returns the error that the peer does not speak AMQP as it should, for this `reason`.
pub fn no_handshake(endpoint: &Endpoint, reason: &dyn Display) -> AmqpError {
    let message = format!("no AMQP handshake with {endpoint}: {reason}");
    AmqpError::new(AmqpErrorKind::BrokerUnreachable, message).with_remedy(Remedy::CheckAddress)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_size_limit_is_known() {
        let refused = |message: &str| {
            let message = message.into();
            let error = Error::ServerClosedChannel { channel_id: 1, code: 406, message };
            of_channel("amqp://h:1", &error).unwrap().kind
        };
        let sentence =
            "PRECONDITION_FAILED - message size 2090 is larger than configured max size 1000";
        assert_eq!(refused(sentence), AmqpErrorKind::TooLarge { limit: 1000 });
        let large = sentence.replace("size 1000", "size 18446744073709551615");
        assert_eq!(refused(&large), AmqpErrorKind::TooLarge { limit: MAX_BODY });
        assert_eq!(refused("PRECONDITION_FAILED - inequivalent arg"), AmqpErrorKind::Configuration);
        assert!(of_channel("amqp://h:1", &Error::MissedServerHeartbeats).is_none());
    }

    #[test]
    fn what_a_broker_holds_against_a_channel_or_a_connection() {
        let fault = |text: &str| channel_fault(&Close { code: 406, text: text.into() });
        let slow = "PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out. Timeout value used: 3000 ms.";
        assert_eq!(fault(slow), ChannelFault::ConsumerTimeout);
        let large =
            "PRECONDITION_FAILED - message size 2090 is larger than configured max size 1000";
        assert_eq!(fault(large), ChannelFault::TooLarge { limit: 1000 });
        assert_eq!(fault("PRECONDITION_FAILED - unknown delivery tag 1"), ChannelFault::Other);
        let is_fault = |code| is_connection_fault(&Close { code, text: String::new() });
        assert!([501, 502, 503, 504, 505, 506, 530, 540, 541].into_iter().all(is_fault));
        assert!(!is_fault(320) && !is_fault(402) && !is_fault(0));
    }

    #[test]
    fn a_thread_that_panicked_is_a_lost_connection() {
        let lost = of_connection("amqp://h:1", &Error::IoThreadPanic);
        assert_eq!(lost.kind, AmqpErrorKind::ConnectionLost);
        assert_eq!(lost.message, "the connection to amqp://h:1 was lost");
    }
}
