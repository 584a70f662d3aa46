//! The client's arguments: those of the command line, and lines of standard input.

use crossbeam_channel::{Receiver, bounded};
use std::io::{self, BufRead};
use std::thread;

/// How many lines are read ahead.
const AHEAD: usize = 64;

/// Each argument in turn; in place of an argument `-`, the lines of standard input, as they come;
/// without any argument, one that is empty. Ends with the first error of reading.
///
/// Read on a thread of its own, so that an input which pauses keeps no reply waiting.
///
/// # Errors
///
/// If the system has no thread to give.
pub fn arguments(arguments: &[String]) -> io::Result<Receiver<io::Result<Vec<u8>>>> {
    let arguments = match arguments {
        [] => vec![String::new()],
        some => some.to_vec(),
    };
    let given = arguments.iter().all(|argument| argument != "-");
    let (lines, input) = bounded(if given { arguments.len() } else { AHEAD });
    let read = move || {
        for argument in arguments {
            // Nobody receives any more: the client is about to end.
            let sent = match argument.as_str() {
                "-" => io::stdin().lock().split(b'\n').try_for_each(|line| {
                    let failed = line.is_err();
                    lines.send(line).ok().filter(|()| !failed)
                }),
                _ => lines.send(Ok(argument.into_bytes())).ok(),
            };
            if sent.is_none() {
                return;
            }
        }
    };
    if given {
        read();
    } else {
        thread::Builder::new().name("input".into()).spawn(read)?;
    }
    Ok(input)
}
