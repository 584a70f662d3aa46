//! The client's arguments: those of the command line, and lines of standard input.

use crate::error::{Failure, FailureKind};
use crate::protocol::MAX_BODY;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::io::{self, BufRead, Read};
use std::thread;

/// How many arguments are read ahead.
const AHEAD: usize = 64;

/// A longer line is cut to this: one byte more than a broker takes is too much already.
const LONGEST_LINE: u64 = MAX_BODY as u64 + 1;

/// The argument of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// The argument, without the end of its line.
    pub bytes: Vec<u8>,
    /// Which line of standard input it is, from 1; None: it was on the command line.
    pub line: Option<u64>,
}

/// Where arguments come from. One that cannot be read is the last.
pub type Input = Receiver<Result<Argument, Failure>>;

/// Each argument in turn, `repeat` times; in place of an argument `-`, the lines of standard input,
/// as they come; without any argument, one that is empty. Ends with the first error of reading.
///
/// Lines are read on a thread of its own, so that an input which pauses keeps no reply waiting.
///
/// # Errors
///
/// If the system has no thread to give.
pub fn arguments(arguments: &[String], repeat: u64) -> io::Result<Input> {
    let arguments = match arguments {
        [] => vec![String::new()],
        some => some.to_vec(),
    };
    let few = repeat == 1 && !reads_stdin(&arguments);
    let (sender, input) = bounded(if few { arguments.len() } else { AHEAD });
    let read = move || {
        let mut line = 0;
        for argument in arguments {
            let sent = match argument.as_str() {
                "-" => lines(io::stdin().lock()).try_for_each(|bytes| {
                    line += 1;
                    send(&sender, bytes, Some(line), repeat)
                }),
                _ => send(&sender, Ok(argument.into_bytes()), None, repeat),
            };
            if sent.is_none() {
                return;
            }
        }
    };
    if few {
        read();
    } else {
        thread::Builder::new().name("input".into()).spawn(read)?;
    }
    Ok(input)
}

/// Whether some of the `arguments` come from standard input.
pub fn reads_stdin(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| argument == "-")
}

/// The lines of `input` without their ends. What is beyond [`LONGEST_LINE`] is read when the next one
/// is, and thrown away: an input without a newline, such as `/dev/zero`, takes no memory without end.
fn lines(mut input: impl BufRead) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let mut is_cut = false;
    std::iter::from_fn(move || {
        if is_cut && let Err(error) = input.skip_until(b'\n') {
            return Some(Err(error));
        }
        let mut line = Vec::new();
        match input.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
            Ok(0) => return None,
            Ok(_) => {}
            Err(error) => return Some(Err(error)),
        }
        is_cut = line.len() as u64 == LONGEST_LINE && !line.ends_with(b"\n");
        if line.ends_with(b"\n") {
            line.pop();
        }
        Some(Ok(line))
    })
}

/// None if there is nothing more to send: reading failed, or nobody receives any more.
fn send(
    sender: &Sender<Result<Argument, Failure>>,
    bytes: io::Result<Vec<u8>>,
    line: Option<u64>,
    repeat: u64,
) -> Option<()> {
    let argument = match bytes {
        Ok(bytes) => Argument { bytes, line },
        Err(error) => {
            let message = format!("cannot read standard input: {error}");
            let _ = sender.send(Err(Failure::new(FailureKind::Internal, message)));
            return None;
        }
    };
    (0..repeat).try_for_each(|_| sender.send(Ok(argument.clone())).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_no_ends_and_no_more_than_a_broker_takes() {
        let read = |input: &[u8]| lines(input).collect::<io::Result<Vec<_>>>().unwrap();
        assert_eq!(read(b""), [b""; 0]);
        assert_eq!(read(b"1\n\n2\r\n3"), [&b"1"[..], b"", b"2\r", b"3"]);
        for (length, kept) in [(MAX_BODY, MAX_BODY), (MAX_BODY + 1, MAX_BODY + 1)] {
            let long = vec![b'9'; length];
            let lengths = |input: &[u8]| read(input).iter().map(Vec::len).collect::<Vec<_>>();
            assert_eq!(lengths(&long), [kept]);
            assert_eq!(lengths(&[&long, &b"\n1"[..]].concat()), [kept, 1]);
            assert_eq!(lengths(&[&long, &b"9999\n22\n"[..]].concat()), [MAX_BODY + 1, 2]);
        }
    }
}
