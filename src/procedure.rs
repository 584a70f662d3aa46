//! The procedures that the server offers: a name and an argument in, a result or an error out.
//!
//! No procedure does I/O, and none can take the server down: whatever a request says, the
//! answer is a text or an [`Error`] with a sentence for the person who made the call.

use crate::error::ErrorKind;
use crate::fib::{self, Algorithm};
use crate::terminal::text::excerpt;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A procedure's error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// What kind of error it is.
    pub kind: ErrorKind,
    /// A sentence for the person who made the call.
    pub message: String,
    /// What a program exited with, 0 to 255, if the procedure is one and it exited.
    pub exit_code: Option<u8>,
}

/// What a procedure answers: a result, which may be any bytes, or an error.
pub type Outcome = Result<Vec<u8>, Error>;

impl Error {
    /// An error of `kind`, told by `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into(), exit_code: None }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.kind.name())
    }
}

impl std::error::Error for Error {}

/// What the server's options say about procedures.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How fib is computed.
    pub algorithm: Algorithm,
    /// The largest n that fib accepts.
    pub max_n: u64,
}

/// A procedure takes the request's argument, as text.
type Procedure = fn(&str, &Settings) -> Result<String, Error>;

/// Name and function of each procedure, in the order in which `list` names them.
const PROCEDURES: [(&str, Procedure); 6] = [
    ("a", |_, _| Ok("a".into())),
    ("b", |_, _| Ok("b".into())),
    ("fib", fibonacci),
    ("fun", hundredfold),
    ("list", |_, _| Ok(names().join("\n"))),
    ("ping", |_, _| Ok("pong".into())),
];

fn names() -> Vec<&'static str> {
    PROCEDURES.iter().map(|(name, _)| *name).collect()
}

/// Calls the procedure `name` with the bytes of a request's body as `argument`.
///
/// # Errors
///
/// [`ErrorKind::UnknownProcedure`] if there is none of that name, [`ErrorKind::InvalidArgument`]
/// and [`ErrorKind::OutOfRange`] as the procedure judges, [`ErrorKind::Internal`] if it panics.
pub fn call(name: &str, argument: &[u8], settings: &Settings) -> Outcome {
    let Some((_, procedure)) = PROCEDURES.iter().find(|(known, _)| *known == name) else {
        let message = format!(
            "there is no procedure \"{}\"; there are {}",
            excerpt(name.as_bytes()),
            names().join(", ")
        );
        return Err(Error::new(ErrorKind::UnknownProcedure, message));
    };
    let Ok(argument) = std::str::from_utf8(argument) else {
        let message = format!("the argument of {name} is not UTF-8 text");
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    };
    guarded(name, || procedure(argument.trim_ascii(), settings)).map(String::into_bytes)
}

/// Runs a procedure so that its panic is the caller's error, not the server's end.
///
/// The procedures have no state that a panic could leave half changed, hence `AssertUnwindSafe`.
fn guarded(name: &str, procedure: impl FnOnce() -> Result<String, Error>) -> Result<String, Error> {
    catch_unwind(AssertUnwindSafe(procedure)).unwrap_or_else(|_| {
        let message = format!("{name} failed on the server; its log has the reason");
        Err(Error::new(ErrorKind::Internal, message))
    })
}

/// `fib n`: the n-th Fibonacci number.
fn fibonacci(argument: &str, settings: &Settings) -> Result<String, Error> {
    let (negative, digits) = integer("fib", argument)?;
    // A number of more digits than u64 holds is out of range like any other that is too large.
    let n = digits.parse().ok().filter(|n| !negative && *n <= settings.max_n);
    let Some(n) = n else {
        let message = format!(
            "fib takes n from 0 to {}, not {}",
            settings.max_n,
            excerpt(argument.as_bytes())
        );
        return Err(Error::new(ErrorKind::OutOfRange, message));
    };
    Ok(fib::fib(n, settings.algorithm).to_string())
}

/// `fun n`: a hundred times n, whatever its size: two more zeros.
fn hundredfold(argument: &str, _: &Settings) -> Result<String, Error> {
    let (negative, digits) = integer("fun", argument)?;
    Ok(match digits {
        "0" => "0".into(),
        _ => format!("{}{digits}00", if negative { "-" } else { "" }),
    })
}

/// The sign and the digits, without leading zeros, of a decimal integer of any size; zero has
/// no sign.
fn integer<'a>(procedure: &str, argument: &'a str) -> Result<(bool, &'a str), Error> {
    let (negative, digits) = match argument.as_bytes().first() {
        Some(b'-') => (true, &argument[1..]),
        Some(b'+') => (false, &argument[1..]),
        _ => (false, argument),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        let message = format!(
            "{procedure} takes an integer in decimal digits, not \"{}\"",
            excerpt(argument.as_bytes())
        );
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }
    match digits.trim_start_matches('0') {
        "" => Ok((false, "0")),
        significant => Ok((negative, significant)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: Settings = Settings { algorithm: Algorithm::FastDoubling, max_n: 1_000 };

    fn ok(name: &str, argument: &str) -> String {
        String::from_utf8(call(name, argument.as_bytes(), &SETTINGS).unwrap()).unwrap()
    }

    fn error(name: &str, argument: &[u8]) -> (ErrorKind, String) {
        let error = call(name, argument, &SETTINGS).unwrap_err();
        (error.kind, error.message)
    }

    #[test]
    fn each_procedure_answers() {
        assert_eq!(ok("a", ""), "a");
        assert_eq!(ok("b", "ignored"), "b");
        assert_eq!(ok("ping", ""), "pong");
        assert_eq!(ok("list", ""), "a\nb\nfib\nfun\nlist\nping");
        assert_eq!(ok("fib", "30"), "832040");
        assert_eq!(ok("fib", " 0030\n"), "832040");
        assert_eq!(ok("fib", "-0"), "0");
        assert_eq!(ok("fib", "1000").len(), 209);
    }

    #[test]
    fn fun_is_a_hundred_times_n_for_any_n() {
        for (n, value) in [
            ("7", "700"),
            ("+7", "700"),
            ("-7", "-700"),
            ("0", "0"),
            ("-000", "0"),
            ("007", "700"),
            ("99999999999999999999999", "9999999999999999999999900"),
        ] {
            assert_eq!(ok("fun", n), value);
        }
    }

    #[test]
    fn what_is_no_integer_is_invalid() {
        for argument in ["", " ", "abc", "1e9", "3.0", "-", "+", "--3", "1 2", "٣", "0x1f"] {
            for name in ["fib", "fun"] {
                let (kind, message) = error(name, argument.as_bytes());
                assert_eq!(kind, ErrorKind::InvalidArgument, "{name} {argument:?}");
                let shown = argument.trim();
                assert_eq!(
                    message,
                    format!("{name} takes an integer in decimal digits, not \"{shown}\"")
                );
            }
        }
        assert_eq!(
            error("fib", b"caf\xe9"),
            (ErrorKind::InvalidArgument, "the argument of fib is not UTF-8 text".into())
        );
    }

    #[test]
    fn what_fib_will_not_compute_is_out_of_range() {
        for argument in ["-1", "1001", "99999999999999999999999"] {
            let (kind, message) = error("fib", argument.as_bytes());
            assert_eq!(kind, ErrorKind::OutOfRange, "{argument}");
            assert_eq!(message, format!("fib takes n from 0 to 1000, not {argument}"));
        }
        let (kind, message) = error("fib", &vec![b'9'; 1_000_000]);
        assert_eq!(kind, ErrorKind::OutOfRange);
        assert!(message.len() < 300, "{message}");
    }

    #[test]
    fn an_unknown_procedure_is_told_which_ones_there_are() {
        assert_eq!(
            error("fibb", b""),
            (
                ErrorKind::UnknownProcedure,
                "there is no procedure \"fibb\"; there are a, b, fib, fun, list, ping".into()
            )
        );
    }

    #[test]
    fn a_panic_is_an_internal_error() {
        let error = guarded("fib", || panic!("out of luck")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal);
        assert_eq!(error.message, "fib failed on the server; its log has the reason");
        assert!(!error.message.contains("luck"));
    }
}
