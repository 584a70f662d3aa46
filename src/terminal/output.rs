//! Standard output, and messages on standard error.

use crate::error::{Failure, Kind};
use std::fmt;
use std::io::{self, Write};

/// Whoever read standard output is gone, as after `| head -1`: the program ends quietly.
#[derive(Debug)]
pub struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output was closed")
    }
}

impl std::error::Error for Closed {}

/// Writes a line to standard output, to be seen at once.
///
/// # Errors
///
/// As of [`written`].
pub fn line(line: fmt::Arguments<'_>) -> anyhow::Result<()> {
    // Flushed at the end of each line.
    written(writeln!(io::stdout(), "{line}"))
}

/// What an attempt to write to standard output came to.
///
/// # Errors
///
/// [`Closed`] if nobody reads it any more, else [`Kind::Internal`] (say, a full disk).
pub fn written(result: io::Result<()>) -> anyhow::Result<()> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Closed.into(),
        _ => {
            let message = format!("cannot write to standard output: {error}");
            Failure::new(Kind::Internal, message).into()
        }
    })
}

/// Tells something on stderr, the program's name in front.
pub fn complain(program: &str, line: fmt::Arguments<'_>) {
    // If stderr is closed, there is nobody to tell.
    let _ = writeln!(io::stderr(), "{program}: {line}");
}
