//! The client's arguments: those of the command line, and lines of standard input.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::io::{self, BufRead};
use std::thread;

/// How many arguments are read ahead.
const AHEAD: usize = 64;

/// The argument of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Argument {
    /// The argument, without the end of its line.
    pub bytes: Vec<u8>,
    /// Which line of standard input it is, from 1; None: it was on the command line.
    pub line: Option<u64>,
}

/// Each argument in turn, `repeat` times; in place of an argument `-`, the lines of standard input,
/// as they come; without any argument, one that is empty. Ends with the first error of reading.
///
/// Lines are read on a thread of its own, so that an input which pauses keeps no reply waiting.
///
/// # Errors
///
/// If the system has no thread to give.
pub fn arguments(arguments: &[String], repeat: u64) -> io::Result<Receiver<io::Result<Argument>>> {
    let arguments = match arguments {
        [] => vec![String::new()],
        some => some.to_vec(),
    };
    let few = repeat == 1 && arguments.iter().all(|argument| argument != "-");
    let (sender, input) = bounded(if few { arguments.len() } else { AHEAD });
    let read = move || {
        let mut line = 0;
        for argument in arguments {
            let sent = match argument.as_str() {
                "-" => io::stdin().lock().split(b'\n').try_for_each(|bytes| {
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

/// None if there is nothing more to send: reading failed, or nobody receives any more.
fn send(
    sender: &Sender<io::Result<Argument>>,
    bytes: io::Result<Vec<u8>>,
    line: Option<u64>,
    repeat: u64,
) -> Option<()> {
    let argument = match bytes {
        Ok(bytes) => Argument { bytes, line },
        Err(error) => {
            let _ = sender.send(Err(error));
            return None;
        }
    };
    (0..repeat).try_for_each(|_| sender.send(Ok(argument.clone())).ok())
}
