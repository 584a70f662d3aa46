//! What a program's end means: a [`FailureKind`] for each way to fail, its exit code, and the
//! [`Failure`] that carries it to `main` together with a sentence for a person.
//!
//! The codes are those of `sysexits.h`, which RabbitMQ's own command-line tools use too
//! (RabbitMQ, "CLI tools"). Which failure has which code is decided here and nowhere else.

use clap::ValueEnum;
use std::fmt;

/// A way to fail. Each is one answer to the question what is wrong: the command line, the broker, the queue, the
/// server, the reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// The command line is wrong.
    Usage,
    /// The reply is an error of this kind: the server rejected the input, or could not compute.
    Procedure(ErrorKind),
    /// No broker answers, or what answers is not one.
    BrokerUnreachable,
    /// The request queue does not exist.
    QueueMissing,
    /// The exchange does not exist that requests go to, or that the request queue should be bound to.
    ExchangeMissing,
    /// The request queue exists, and nobody consumes from it.
    NoConsumer,
    /// The request queue cannot be used: another connection has it for itself.
    QueueUnusable,
    /// The program itself failed: standard input or output, a thread.
    Internal,
    /// No reply in time. (A reply that tells of a time limit is a [`FailureKind::Procedure`].)
    TimedOut,
    /// The connection was lost with a call unanswered.
    ConnectionLost,
    /// The file that an argument names cannot be read.
    NoInput,
    /// The file that a result should go to cannot be written.
    CannotCreate,
    /// An argument makes no routing key: it has not the part that is wanted, is not UTF-8, or is too long.
    BadRoutingKey,
    /// The exchange has no queue for the request's routing key.
    Unroutable,
    /// The message is larger than the broker takes.
    TooLarge {
        /// The largest body that it takes, in bytes.
        limit: usize,
    },
    /// The broker does not take messages at the moment.
    Blocked,
    /// The reply is not one: it is empty.
    BadReply,
    /// Credentials or a permission were refused.
    AccessRefused,
    /// The configuration is wrong: a malformed URI, a missing vhost, a bad certificate.
    Configuration,
}

impl FailureKind {
    /// Every kind, that of a procedure's error once for each of [`ErrorKind`], for what is true of all. A list by hand,
    /// since no derive fills in the fields.
    pub const ALL: [FailureKind; 25] = [
        FailureKind::Usage,
        FailureKind::Procedure(ErrorKind::UnknownProcedure),
        FailureKind::Procedure(ErrorKind::InvalidArgument),
        FailureKind::Procedure(ErrorKind::OutOfRange),
        FailureKind::Procedure(ErrorKind::Internal),
        FailureKind::Procedure(ErrorKind::Unavailable),
        FailureKind::Procedure(ErrorKind::TimedOut),
        FailureKind::Procedure(ErrorKind::Redelivered),
        FailureKind::BrokerUnreachable,
        FailureKind::QueueMissing,
        FailureKind::ExchangeMissing,
        FailureKind::NoConsumer,
        FailureKind::QueueUnusable,
        FailureKind::Internal,
        FailureKind::TimedOut,
        FailureKind::ConnectionLost,
        FailureKind::NoInput,
        FailureKind::CannotCreate,
        FailureKind::BadRoutingKey,
        FailureKind::Unroutable,
        FailureKind::TooLarge { limit: 0 },
        FailureKind::Blocked,
        FailureKind::BadReply,
        FailureKind::AccessRefused,
        FailureKind::Configuration,
    ];

    /// Returns the exit code, and the name for programs that read JSON. 124 is never used: it is `timeout(1)`'s.
    fn code_and_name(self) -> (u8, &'static str) {
        match self {
            FailureKind::Usage => (64, "usage"), // EX_USAGE
            FailureKind::Procedure(kind) => kind.code_and_name(),
            FailureKind::TooLarge { .. } => (65, "too-large"), // EX_DATAERR
            FailureKind::BadRoutingKey => (65, "bad-routing-key"),
            FailureKind::NoInput => (66, "no-input"), // EX_NOINPUT
            FailureKind::BrokerUnreachable => (69, "broker-unreachable"), // EX_UNAVAILABLE
            FailureKind::QueueMissing => (69, "queue-missing"),
            FailureKind::ExchangeMissing => (69, "exchange-missing"),
            FailureKind::NoConsumer => (69, "no-consumer"),
            FailureKind::QueueUnusable => (69, "queue-unusable"),
            FailureKind::Unroutable => (69, "unroutable"),
            FailureKind::Internal => (70, "client-failed"), // EX_SOFTWARE
            FailureKind::CannotCreate => (73, "cannot-create"), // EX_CANTCREAT
            // Whoever's limit it was: the call may be made again, with more time.
            FailureKind::TimedOut => ErrorKind::TimedOut.code_and_name(),
            FailureKind::ConnectionLost => (75, "connection-lost"), // EX_TEMPFAIL
            FailureKind::Blocked => (75, "blocked"),
            FailureKind::BadReply => (76, "bad-reply"), // EX_PROTOCOL
            FailureKind::AccessRefused => (77, "access-refused"), // EX_NOPERM
            FailureKind::Configuration => (78, "configuration"), // EX_CONFIG
        }
    }

    /// Returns the exit code.
    pub fn code(self) -> u8 {
        self.code_and_name().0
    }

    /// Returns the kind's name, for programs that read JSON.
    pub fn name(self) -> &'static str {
        self.code_and_name().1
    }
}

/// What kind of error a procedure answers. On the wire it is the reply's `error` header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ErrorKind {
    /// No procedure has that name.
    UnknownProcedure,
    /// The argument is not of the procedure's form.
    InvalidArgument,
    /// The argument has the right form, and asks for more than this server gives.
    OutOfRange,
    /// The procedure failed. The caller did nothing wrong.
    Internal,
    /// The procedure cannot be called at the moment; another attempt may succeed.
    Unavailable,
    /// The procedure took more time than there was.
    TimedOut,
    /// The request was delivered before, so that the procedure may have been called, and is not called again.
    Redelivered,
}

impl ErrorKind {
    fn code_and_name(self) -> (u8, &'static str) {
        match self {
            ErrorKind::UnknownProcedure => (65, "unknown-procedure"),
            ErrorKind::InvalidArgument => (65, "invalid-argument"),
            ErrorKind::OutOfRange => (65, "out-of-range"),
            ErrorKind::Internal => (70, "internal"),
            ErrorKind::Unavailable => (75, "unavailable"),
            ErrorKind::TimedOut => (75, "timed-out"),
            ErrorKind::Redelivered => (75, "redelivered"),
        }
    }

    /// Returns the kind's name on the wire.
    pub fn name(self) -> &'static str {
        self.code_and_name().1
    }
}

/// Why a program, or one call, did not succeed. Of a procedure alone, it is one of [`ErrorKind`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure<K = FailureKind> {
    /// What is wrong; gives the exit code.
    pub kind: K,
    /// One sentence or two: what failed, on which target, and the remedy. Never a password.
    pub message: String,
    /// What a program exited with on the server, 0 to 255, if it was that which failed.
    pub exit_code: Option<u8>,
    /// The end of what a program wrote to standard error on the server, if it failed. A stranger's text, of a few
    /// KiB at most.
    pub stderr: Option<String>,
}

impl<K> Failure<K> {
    /// Returns a failure of `kind`, told by `message`.
    pub fn new(kind: K, message: impl Into<String>) -> Failure<K> {
        Failure { kind, message: message.into(), exit_code: None, stderr: None }
    }
}

impl Failure {
    /// Returns what makes an error of the system a [`FailureKind::Internal`]. `what` failed, as in "cannot open a
    /// pipe".
    pub fn internal<E: fmt::Display>(what: &str) -> impl Fn(E) -> Failure + Copy {
        move |error| Failure::new(FailureKind::Internal, format!("{what}: {error}"))
    }
}

impl From<Failure<ErrorKind>> for Failure {
    fn from(Failure { kind, message, exit_code, stderr }: Failure<ErrorKind>) -> Failure {
        Failure { kind: FailureKind::Procedure(kind), message, exit_code, stderr }
    }
}

impl<K: fmt::Debug> std::error::Error for Failure<K> {}

impl<K> fmt::Display for Failure<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Why a program ends before it is done.
#[derive(Debug)]
pub enum ProgramError {
    /// Whoever read standard output is gone, as after `| head -1`. That is no failure.
    OutputClosed,
    /// A failure, with what it kept the program from doing in front.
    Failed(FailureKind, anyhow::Error),
}

impl From<Failure> for ProgramError {
    fn from(failure: Failure) -> ProgramError {
        ProgramError::Failed(failure.kind, failure.into())
    }
}

/// What has no kind of its own is [`FailureKind::Internal`].
impl From<anyhow::Error> for ProgramError {
    fn from(error: anyhow::Error) -> ProgramError {
        ProgramError::Failed(FailureKind::Internal, error)
    }
}

impl fmt::Display for ProgramError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ProgramError::OutputClosed => f.write_str("nobody reads standard output any more"),
            ProgramError::Failed(_, error) => write!(f, "{error:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_a_sysexit_and_leaves_the_shells_numbers_alone() {
        for kind in FailureKind::ALL {
            assert!((64..=78).contains(&kind.code()), "{kind:?}");
        }
    }

    #[test]
    fn no_two_kinds_have_a_name_in_common() {
        let names: std::collections::BTreeSet<_> =
            FailureKind::ALL.into_iter().map(FailureKind::name).collect();
        // Two kinds are a time-out: the procedure's, and the client's own.
        assert_eq!(names.len() + 1, FailureKind::ALL.len());
    }
}
