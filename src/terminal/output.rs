//! Standard output, and messages on standard error.

use crate::error::{Failure, ProgramError};
use crate::terminal::text;
use crate::terminal::waiting::Waiting;
pub use crate::terminal::writer::LinesLeftOut;
use crate::terminal::writer::{Stream, Writer};
use indicatif::ProgressBar;
use log::warn;
use rustix::fs::fstat;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once, OnceLock};
use std::time::{Duration, Instant};

/// Makes sure that standard output was not closed when the program began: what is written would vanish.
///
/// # Errors
///
/// [`crate::error::FailureKind::Internal`] if it was.
pub fn check() -> Result<(), ProgramError> {
    match WERE_CLOSED[1].load(Ordering::Relaxed) {
        true => written(Err(io::Error::other("it is closed"))),
        false => Ok(()),
    }
}

/// Writes a line of a transcript to standard output, to be seen at once. It stays one line, whatever a
/// stranger's text in it is ([`text::one_line`]).
///
/// # Errors
///
/// What [`check`] and [`written`] fail with.
pub fn line(line: fmt::Arguments<'_>) -> Result<(), ProgramError> {
    check()?;
    // Flushed at the end of each line.
    written(writeln!(Waiting(io::stdout()), "{}", text::one_line(&line.to_string())))
}

/// Tells what an error of writing to standard output means.
///
/// # Errors
///
/// [`ProgramError::OutputClosed`] if nobody reads it any more, or
/// [`crate::error::FailureKind::Internal`] (say, a full disk).
pub fn written(result: io::Result<()>) -> Result<(), ProgramError> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => ProgramError::OutputClosed,
        _ => Failure::internal("cannot write to standard output")(error).into(),
    })
}

/// The progress line, if there is one. It makes room for every other line on standard error.
pub static PROGRESS: OnceLock<ProgressBar> = OnceLock::new();

/// The threads that write for a service. Without them, each line is written by who tells it.
static WRITERS: OnceLock<Writers> = OnceLock::new();

struct Writers {
    log: Arc<Writer>,
    /// Is the log's if both go to the same place, so that their lines stay in order. Otherwise it is another, since one
    /// of the two places can be full, or frozen, and the other not.
    transcript: Option<Arc<Writer>>,
}

/// Has threads write from now on what `program` tells on standard error, and its transcript, if it has one: a
/// service must not depend on who reads them. While nobody does, lines are left out. Before the process
/// ends, [`finish`] is to be called.
///
/// # Errors
///
/// [`crate::error::FailureKind::Internal`] if the system gives no thread.
pub fn write_by_threads(
    program: &'static str,
    has_transcript: bool,
) -> Result<Transcript, Failure> {
    let log = Writer::start(program, failed)?;
    let transcript = match has_transcript {
        true if is_one_place() => Some(Arc::clone(&log)),
        true => Some(Writer::start(program, failed)?),
        false => None,
    };

    let writers = WRITERS.get_or_init(|| Writers { log, transcript });
    let transcript = writers.transcript.clone().filter(|_| match check() {
        Ok(()) => true,
        Err(error) => {
            give_up_transcript(&error);
            false
        }
    });

    Ok(Transcript(transcript))
}

/// Returns whether standard output and standard error are the same terminal, pipe or file.
fn is_one_place() -> bool {
    match (fstat(io::stdout()), fstat(io::stderr())) {
        (Ok(output), Ok(error)) => (output.st_dev, output.st_ino) == (error.st_dev, error.st_ino),
        _ => false,
    }
}

/// Waits until all that was told is written: half a second for a reader that takes nothing, and two
/// seconds in all. To be called before a process ends; where lines are written by who tells them, there
/// is nothing to wait for.
pub fn finish() {
    let Some(Writers { log, transcript }) = WRITERS.get() else { return };
    let deadline = Instant::now() + END_LIMIT;
    if transcript.as_ref().is_some_and(|transcript| !transcript.finish(deadline)) {
        tell_gaps();
    }
    log.finish(deadline);
}

/// Returns how many lines were left out until now, since nobody read them.
pub fn lines_left_out() -> LinesLeftOut {
    let Some(Writers { log, transcript }) = WRITERS.get() else { return LinesLeftOut::default() };
    let stdout = transcript.as_ref().map_or(0, |transcript| transcript.left_out().stdout);
    LinesLeftOut { stdout, stderr: log.left_out().stderr }
}

/// How long the end of a process waits until all is written.
const END_LIMIT: Duration = Duration::from_secs(2);

/// A service's transcript on standard output, which the service does not depend on: when nobody reads
/// it any more, or its disk is full, the service goes on without, and says so once.
pub struct Transcript(Option<Arc<Writer>>);

impl Transcript {
    /// Tells a line, as [`line()`] does. Never waits.
    pub fn line(&self, line: fmt::Arguments<'_>) {
        let Some(writer) = &self.0 else { return };
        let line = format!("{}\n", text::one_line(&line.to_string()));
        if !IS_GIVEN_UP.load(Ordering::Relaxed) && !writer.push(Stream::Output, &line) {
            tell_gaps();
        }
    }
}

/// Whether the transcript could not be written.
static IS_GIVEN_UP: AtomicBool = AtomicBool::new(false);

/// Takes an error of a writer. Of standard error, there is nobody to tell.
fn failed(stream: Stream, error: io::Error) {
    if let (Stream::Output, Err(error)) = (stream, written(Err(error))) {
        give_up_transcript(&error);
    }
}

fn give_up_transcript(error: &ProgramError) {
    if !IS_GIVEN_UP.swap(true, Ordering::Relaxed) {
        warn!("{error}; the server goes on without its transcript");
    }
}

fn tell_gaps() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        warn!("nobody reads standard output, which is full; the transcript has gaps from now on");
    });
}

/// Tells something on standard error, the program's name in front, as [`text::message`] has it.
pub fn error_line(program: &str, line: fmt::Arguments<'_>) {
    let line = format!("{program}: {}\n", text::message(&line.to_string()));
    match WRITERS.get() {
        // If there is no room, the writer tells.
        Some(writers) => drop(writers.log.push(Stream::Error, &line)),
        None => write_error(&line),
    }
}

fn write_error(line: &str) {
    // In one piece, so that no line of another process gets in between. If standard error is
    // closed, there is nobody to tell.
    let write = || drop(Waiting(io::stderr()).write_all(line.as_bytes()));
    match PROGRESS.get() {
        Some(progress) => progress.suspend(write),
        None => write(),
    }
}

/// Returns whether standard input was closed when the process began: what is read instead is nobody's.
pub fn stdin_was_closed() -> bool {
    WERE_CLOSED[0].load(Ordering::Relaxed)
}

/// Whether standard input and output were closed when the process began. Rust's runtime opens `/dev/null` in
/// their place before `main`, where it cannot be told any more from one that somebody chose.
static WERE_CLOSED: [AtomicBool; 2] = [const { AtomicBool::new(false) }; 2];

/// Called before the runtime's beginning, as all functions in this section are (System V ABI,
/// "Initialization and Termination Functions").
// SAFETY: The section is for pointers to functions without arguments. It is not read or
// written otherwise.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = {
    extern "C" fn look() {
        let is_there = |path: &str| std::fs::symlink_metadata(path).is_ok();
        // Without /proc nothing is known.
        if !is_there("/proc/self/fd") {
            return;
        }
        for (path, was_closed) in ["/proc/self/fd/0", "/proc/self/fd/1"].iter().zip(&WERE_CLOSED) {
            was_closed.store(!is_there(path), Ordering::Relaxed);
        }
    }
    look
};
