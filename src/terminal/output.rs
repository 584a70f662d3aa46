//! Standard output, and messages on standard error.

use crate::error::{Failure, ProgramError};
use crate::terminal::text;
use indicatif::ProgressBar;
use log::warn;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use std::fmt;
use std::io::{self, Write};
use std::mem;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// [`crate::error::FailureKind::Internal`] if standard output was closed when the program began: what
/// is written would vanish.
pub fn check() -> Result<(), ProgramError> {
    match WAS_CLOSED.load(Ordering::Relaxed) {
        true => written(Err(io::Error::other("it is closed"))),
        false => Ok(()),
    }
}

/// Writes a line of a transcript to standard output, to be seen at once. It stays one line, whatever a
/// stranger's text in it is ([`text::one_line`]).
/// Its errors are those of [`check`] and [`written`].
pub fn line(line: fmt::Arguments<'_>) -> Result<(), ProgramError> {
    check()?;
    // Flushed at the end of each line.
    written(writeln!(io::stdout(), "{}", text::one_line(&line.to_string())))
}

/// What an attempt to write to standard output came to: [`ProgramError::OutputClosed`] if nobody reads it
/// any more, or [`crate::error::FailureKind::Internal`] (say, a full disk).
pub fn written(result: io::Result<()>) -> Result<(), ProgramError> {
    result.map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => ProgramError::OutputClosed,
        _ => Failure::internal("cannot write to standard output")(error).into(),
    })
}

/// The progress line, if there is one. It makes room for every other line on standard error.
pub static PROGRESS: OnceLock<ProgressBar> = OnceLock::new();

/// How many lines a service has left out since the last one, if the program is one.
static LEFT_OUT: OnceLock<Mutex<u64>> = OnceLock::new();

/// From now on, lines on standard error are left out while nobody reads it, as those of a [`Transcript`]
/// are. To be called by a service, which must not depend on that.
pub fn never_wait_for_stderr() {
    LEFT_OUT.get_or_init(Mutex::default);
}

/// Tells something on standard error, the program's name in front, as [`text::message`] has it.
pub fn error_line(program: &str, line: fmt::Arguments<'_>) {
    let Some(left_out) = LEFT_OUT.get() else { return write_error(program, line) };
    let mut left_out = left_out.lock().unwrap_or_else(PoisonError::into_inner);
    if !has_room(&io::stderr(), *left_out > 0) {
        *left_out += 1;
        return;
    }
    if let lines @ 1.. = mem::take(&mut *left_out) {
        let lines = text::count(lines, "line was", "lines were");
        write_error(program, format_args!("{lines} left out here, since nobody read them"));
    }
    write_error(program, line);
}

fn write_error(program: &str, line: fmt::Arguments<'_>) {
    let line = format!("{program}: {}\n", text::message(&line.to_string()));
    // In one piece, so that no line of another process gets in between. If standard error is
    // closed, there is nobody to tell.
    let write = || drop(io::stderr().write_all(line.as_bytes()));
    match PROGRESS.get() {
        Some(progress) => progress.suspend(write),
        None => write(),
    }
}

/// How long a service's line waits for a reader that does not read.
const ROOM_LIMIT: Duration = Duration::from_millis(500);

/// A service's transcript on standard output, which the service does not depend on: when nobody reads
/// it any more, or its disk is full, the service goes on without, and says so once. No line waits
/// longer than half a second for a reader that has stopped reading. While it does not read, the
/// others do not wait at all, and are left out.
pub struct Transcript(Mutex<State>);

struct State {
    is_written: bool,
    is_full: bool,
    was_full: bool,
}

impl Transcript {
    /// A transcript, or, if it is not `wanted`, none: its lines are written nowhere.
    pub fn new(wanted: bool) -> Transcript {
        Transcript(Mutex::new(State { is_written: wanted, is_full: false, was_full: false }))
    }

    /// Writes a line, as [`line()`] does. It has at most 4 KiB, which a pipe takes in one piece or not
    /// at all (POSIX, PIPE_BUF).
    pub fn line(&self, line: fmt::Arguments<'_>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.is_written {
            return;
        }
        state.is_full = !has_room(&io::stdout(), state.is_full);
        if state.is_full {
            if !mem::replace(&mut state.was_full, true) {
                warn!(
                    "nobody reads standard output, which is full; the transcript has gaps from now on"
                );
            }
        } else if let Err(error) = self::line(line) {
            state.is_written = false;
            warn!("{error}; the server goes on without its transcript");
        }
    }
}

/// Whether a stream takes another line without blocking, or fails. A file always does. It is given half a
/// second for that, unless it `was_full` at the line before.
fn has_room(stream: &impl AsFd, was_full: bool) -> bool {
    let mut stream = [PollFd::new(stream, PollFlags::OUT)];
    let limit = if was_full { Duration::ZERO } else { ROOM_LIMIT }.try_into().ok();
    retry_on_intr(|| poll(&mut stream, limit.as_ref())) != Ok(0)
}

/// Whether standard output was closed when the process began. Rust's runtime opens `/dev/null` in its
/// place before `main`, where it cannot be told any more from one that somebody chose.
static WAS_CLOSED: AtomicBool = AtomicBool::new(false);

/// Called before the runtime's beginning, as all functions in this section are (System V ABI,
/// "Initialization and Termination Functions").
// SAFETY: The section is for pointers to functions without arguments. It is not read or
// written otherwise.
#[cfg(target_os = "linux")]
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = {
    extern "C" fn look() {
        let is_there = |path| std::fs::symlink_metadata(path).is_ok();
        // Without /proc nothing is known.
        let was_closed = is_there("/proc/self/fd") && !is_there("/proc/self/fd/1");
        WAS_CLOSED.store(was_closed, Ordering::Relaxed);
    }
    look
};
