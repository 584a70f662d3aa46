//! Programs that answer requests. Each is started in a session of its own, gets its input, is read, bounded in time
//! and in what it writes, and reaped; nothing that it started runs on after it.
//!
//! The worker's thread waits with poll(2) for the program's three pipes, for its end and for the
//! handle of the call, whichever comes first.

mod about;
mod descendants;
mod executable;
pub mod memory;
mod procfs;
mod running;
mod spawn;
pub mod stderr;

pub use about::{About, CallVariables};
pub use descendants::Descendants;
pub use running::{Ending, KILL_LIMIT, LOOK_INTERVAL, News, READ_SIZE, Running};

use crate::cancellation::{CallHandle, Cancelled};
use crate::command::descendants::COOKIE;
use crate::error::{Failure, FailureKind};
use signal_hook::low_level::signal_name;
use std::ffi::CString;
use std::io::{self, IoSlice, PipeReader};
use std::mem;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How long a program that has ended is waited for if what it started still has its output open.
const LEFT_RUNNING_LIMIT: Duration = Duration::from_secs(1);

/// How often a call looks what its handle tells, while it has no waker.
const UNWOKEN_LOOK: Duration = Duration::from_millis(20);

/// How much of a failed program's standard error is kept for the caller, in bytes.
pub const STDERR_LIMIT: usize = 4096;

/// What a program is given, and how far it may go.
pub struct Invocation<'a> {
    /// What comes to standard input.
    pub input: &'a [u8],
    /// What the request says beside that.
    pub about: About<'a>,
    /// The largest output, in bytes.
    pub most: usize,
    /// When it must have ended.
    pub deadline: Option<Instant>,
    /// How long it has between SIGTERM and SIGKILL when it is to end.
    pub kill_delay: Duration,
    /// By which somebody else can end the call.
    pub handle: &'a CallHandle,
    /// Is called once if the server is asked to stop while the program runs.
    pub at_stop: &'a dyn Fn(),
}

impl<'a> Invocation<'a> {
    /// Makes one that gives this `input` and nothing else, has no time limit, and takes no output.
    pub fn new(input: &'a [u8], handle: &'a CallHandle) -> Invocation<'a> {
        Invocation {
            input,
            about: About::default(),
            most: 0,
            deadline: None,
            kill_delay: Duration::ZERO,
            handle,
            at_stop: &|| {},
        }
    }
}

/// What became of a program, and what it wrote to standard error.
#[derive(Debug)]
pub struct Ended {
    /// How it came to its end.
    pub end: End,
    /// The last line on standard error that is not blank, if there was one.
    pub last_line: Option<String>,
    /// The end of standard error, at most [`STDERR_LIMIT`] bytes, if it has more than white space.
    pub stderr: Option<String>,
}

/// How a program came to its end.
#[derive(Debug)]
pub enum End {
    /// The program ended by itself, or by a signal that was not the server's. With what it wrote to standard output.
    Exited(ExitStatus, Vec<u8>),
    /// The program was killed since it wrote more than it may.
    OutOfRange,
    /// The program was killed since its time was up, or there was none left to start it.
    TimedOut,
    /// The program was killed since the call was cancelled.
    Cancelled(Cancelled),
    /// The program was killed since there is no memory for what it wrote.
    OutOfMemory,
    /// The program was killed since it could not be fed, read or waited for.
    Unobserved(io::Error),
}

impl End {
    /// Returns what becomes of a program that cannot be fed, read or waited for.
    pub fn unobserved(error: io::Error) -> End {
        match error.kind() {
            io::ErrorKind::OutOfMemory => End::OutOfMemory,
            _ => End::Unobserved(error),
        }
    }
}

/// Returns how a program came to its end: "exited with 3", "was killed by SIGSEGV".
pub fn how_it_ended(status: ExitStatus) -> String {
    match status.signal() {
        Some(signal) => match signal_name(signal) {
            Some(signal) => format!("was killed by {signal}"),
            None => format!("was killed by signal {signal}"),
        },
        None => format!("exited with {}", status.code().unwrap_or_default()),
    }
}

/// A program, with its arguments.
#[derive(Debug)]
pub struct Command {
    name: String,
    path: PathBuf,
    words: Vec<CString>,
    /// The server's own environment variables, but for those that a call can have: the server may have been started by
    /// such a call.
    inherited: Vec<CString>,
    /// How often it was started.
    started: AtomicU64,
}

impl Command {
    /// Returns the program that `words`, one at least, begin with, as a path or a name in PATH. `name` is the
    /// procedure's, which `option` offers. [`FailureKind::Configuration`] if it is not there, may not be executed, or is
    /// nothing that the system can execute.
    pub fn find(option: &str, name: &str, words: &[String]) -> Result<Command, Failure> {
        let word = &words[0];
        let failure = |reason: String| {
            let message = format!("{option} {name}: \"{word}\" {reason}");
            Failure::new(FailureKind::Configuration, message)
        };
        let path = which::which(word).map_err(|_| {
            failure(
                "is not a program that can be executed: it takes a path, or a name in PATH, of a file with \
                 permission to execute it (chmod +x)"
                    .into(),
            )
        })?;

        executable::check(&path).map_err(failure)?;
        let words: Result<_, _> = words.iter().map(|word| CString::new(word.as_str())).collect();
        let words = words.map_err(|_| failure("has an argument with a NUL in it".into()))?;
        let of_calls = CallVariables::default().all("").map(|(name, _)| name);
        // AMQP_URL can have the broker's password in it.
        let inherited = spawn::inherited(&[&of_calls[..], &[COOKIE, "AMQP_URL"]].concat());
        Ok(Command { name: name.into(), path, words, inherited, started: AtomicU64::new(0) })
    }

    /// Runs the program to its end, and logs each line that it writes to standard error. The error says why it
    /// was not started.
    pub fn run(&self, invocation: &Invocation<'_>, programs: &Descendants) -> io::Result<Ended> {
        let time_limit = invocation.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if time_limit == Some(Duration::ZERO) {
            return Ok(Ended { end: End::TimedOut, last_line: None, stderr: None });
        }
        let seconds = time_limit.map(|limit| limit.as_secs_f64());
        let of_call = CallVariables::new(invocation.about, seconds);
        let running = self.start(&of_call, programs)?;
        let mut run = Run { running, invocation, input: invocation.input, output: Vec::new() };
        let end = run.attend();
        let (last_line, stderr) = run.running.stderr.end();
        Ok(Ended { end, last_line, stderr })
    }

    /// Starts the program, among `programs`. The error says why it was not started.
    pub fn start(
        &self,
        of_call: &CallVariables<'_>,
        programs: &Descendants,
    ) -> io::Result<Running> {
        let child = programs.start(|cookie| {
            let of_call = of_call.all(&self.name).into_iter().chain([(COOKIE, Some(&*cookie))]);
            let of_call: Vec<_> =
                of_call.filter_map(|(name, value)| spawn::variable(name, value?)).collect();
            let environment: Vec<&CString> = self.inherited.iter().chain(&of_call).collect();
            spawn::spawn(&self.path, &self.words, &environment)
        })?;
        self.started.fetch_add(1, Relaxed);
        Ok(Running::new(&self.name, child, programs))
    }

    /// Returns how often the program was started.
    pub fn started(&self) -> u64 {
        self.started.load(Relaxed)
    }
}

/// What somebody else tells a call while it is computed.
pub struct Listener<'a> {
    invocation: &'a Invocation<'a>,
    /// See [`CallHandle::waker`]. None before there is need of one, once it has told that the call was cancelled, and
    /// where there are no descriptors for it.
    waker: Option<PipeReader>,
    /// Whether the server is to stop, and the call was told so.
    is_stopping: bool,
}

impl<'a> Listener<'a> {
    /// Returns what listens to the handle of `invocation` whenever [`Listener::listen`] is called.
    pub fn new(invocation: &'a Invocation<'a>) -> Listener<'a> {
        Listener { invocation, waker: None, is_stopping: false }
    }

    /// Makes a waker, if there is none. It is readable at once if the call was cancelled before.
    pub fn arm(&mut self) {
        if self.waker.is_none() {
            // It takes two descriptors. Without them the call goes on, and looks again and again: see `alarm`.
            self.waker = self.invocation.handle.waker().ok();
            // It is not readable for a stop that was requested before.
            self.note_stop();
        }
    }

    /// Returns what is readable when [`Listener::listen`] is to be called, if there is such a thing.
    pub fn waker(&self) -> Option<&PipeReader> {
        self.waker.as_ref()
    }

    /// Returns when [`Listener::listen`] is to be called at the latest. None: not before the waker is readable.
    pub fn alarm(&self) -> Option<Instant> {
        self.waker.is_none().then(|| Instant::now() + UNWOKEN_LOOK)
    }

    /// Takes note of what the call's handle tells. `is_woken`: the waker is readable.
    pub fn listen(&mut self, is_woken: bool) {
        if is_woken {
            // It is readable for good, and so would another one be after the call was cancelled.
            self.waker = None;
            if self.invocation.handle.cancelled().is_none() {
                self.arm();
            }
        }
        self.note_stop();
    }

    fn note_stop(&mut self) {
        let is_requested = self.invocation.handle.is_stop_requested();
        if is_requested && !mem::replace(&mut self.is_stopping, true) {
            (self.invocation.at_stop)();
        }
    }
}

/// A program that runs for one call.
struct Run<'a> {
    running: Running,
    invocation: &'a Invocation<'a>,
    /// What is still to be written.
    input: &'a [u8],
    output: Vec<u8>,
}

/// Where a program is between its start and its end.
enum Phase {
    /// The program runs.
    Running,
    /// The program has ended by itself. What it has left running may write `until` then.
    Draining { until: Instant },
    /// The program was told to end.
    Ending { why: End, ending: Ending },
    /// Nothing more is expected of the program. None: it has ended by itself.
    Over(Option<End>),
}

impl Run<'_> {
    /// Follows the program to its end.
    fn attend(&mut self) -> End {
        let ended = self.watch().and_then(|why| match why {
            Some(why) => Ok(why),
            None => Ok(End::Exited(self.running.finish()?, mem::take(&mut self.output))),
        });
        ended.unwrap_or_else(End::unobserved)
    }

    /// Feeds and reads the program until nothing more is expected of it. Returns why it was killed, if it was.
    fn watch(&mut self) -> io::Result<Option<End>> {
        self.running.watch()?;
        let mut listener = Listener::new(self.invocation);
        listener.arm();
        let mut phase = Phase::Running;
        loop {
            self.feed();
            let alarm = [self.alarm(&phase), listener.alarm()].into_iter().flatten().min();
            let news = self.running.wait(true, listener.waker(), alarm)?;
            listener.listen(news.is_woken);
            self.read(news)?;
            phase = match self.next(phase, Instant::now()) {
                Phase::Over(why) => return Ok(why),
                phase => phase,
            };
        }
    }

    /// Returns when the program has to be looked at, at the latest.
    fn alarm(&self, phase: &Phase) -> Option<Instant> {
        match phase {
            _ if self.running.stderr.has_more() => Some(Instant::now()),
            Phase::Running => self.invocation.deadline,
            Phase::Draining { until } => Some(*until),
            Phase::Ending { .. } | Phase::Over(_) => Some(Instant::now() + LOOK_INTERVAL),
        }
    }

    /// Returns the phase after `phase`, which may be the same.
    fn next(&self, phase: Phase, now: Instant) -> Phase {
        match phase {
            Phase::Running => match self.why_end(now) {
                Some(why) => self.terminate(why),
                None if !self.running.has_ended() => Phase::Running,
                None => {
                    let limit = now + LEFT_RUNNING_LIMIT;
                    let until =
                        self.invocation.deadline.map_or(limit, |deadline| deadline.min(limit));
                    self.next(Phase::Draining { until }, now)
                }
            },
            Phase::Draining { until } => match self.why_end(now) {
                Some(why) => self.terminate(why),
                None if until <= now || self.running.is_closed() => Phase::Over(None),
                None => Phase::Draining { until },
            },
            Phase::Ending { why, ending } => match self.running.is_over(ending, now) {
                true => Phase::Over(Some(why)),
                false => Phase::Ending { why, ending },
            },
            Phase::Over(why) => Phase::Over(why),
        }
    }

    /// Returns why the program is to end now, if it is.
    fn why_end(&self, now: Instant) -> Option<End> {
        if self.output.len() > self.invocation.most {
            return Some(End::OutOfRange);
        }
        if let Some(reason) = self.invocation.handle.cancelled() {
            return Some(End::Cancelled(reason));
        }
        let is_late = self.invocation.deadline.is_some_and(|deadline| deadline <= now);
        (is_late && !self.running.has_ended()).then_some(End::TimedOut)
    }

    fn terminate(&self, why: End) -> Phase {
        Phase::Ending { why, ending: self.running.terminate(self.invocation.kill_delay) }
    }

    /// Writes as much of the input as the program takes without waiting.
    fn feed(&mut self) {
        if !self.running.has_input() {
            return;
        }
        match self.running.write(&[IoSlice::new(self.input)]) {
            Ok(written) => self.input = &self.input[written..],
            // It does not read what is left. That is no error.
            Err(_) => self.input = &[],
        }
        if self.input.is_empty() {
            self.running.close_input();
        }
    }

    /// Reads as much as can be read without waiting.
    fn read(&mut self, news: News) -> io::Result<()> {
        if news.has_output {
            self.read_output()?;
        }
        if news.has_errors || self.running.stderr.has_more() {
            self.running.read_stderr()?;
        }
        Ok(())
    }

    fn read_output(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ_SIZE];

        // A byte more than it may be shows that it is more.
        while self.output.len() <= self.invocation.most
            && let Some(bytes) = self.running.read(&mut buffer)?
        {
            memory::append(&mut self.output, bytes)?;
        }

        if self.output.len() > self.invocation.most {
            // Nobody reads on.
            self.running.close_output();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    /// The program neither ends nor writes, and its input is closed: nothing but the cancellation can wake who waits.
    #[test]
    fn a_call_that_is_cancelled_before_it_is_attended_to_ends() {
        let handle = CallHandle::default();
        handle.cancel(Cancelled::ConnectionLost);
        let words = ["sleep", "1000"].map(String::from);
        let command = Command::find("--procedure", "p", &words).unwrap();
        let (tell, told) = crossbeam_channel::bounded(1);
        std::thread::spawn(move || {
            let ended = command.run(&Invocation::new(b"", &handle), &Descendants::default());
            tell.send(ended.unwrap().end)
        });
        let end = told.recv_timeout(Duration::from_secs(60)).expect("it waits for ever");
        assert!(matches!(end, End::Cancelled(Cancelled::ConnectionLost)), "{end:?}");
    }

    /// Whether it is told before there is a waker or after: what waits then could wait for long.
    #[test]
    fn a_call_is_told_of_a_stop_once() {
        let (handle, told) = (CallHandle::default(), Cell::new(0));
        let at_stop = || told.set(told.get() + 1);
        let invocation = Invocation { at_stop: &at_stop, ..Invocation::new(b"", &handle) };
        let mut early = Listener::new(&invocation);
        early.arm();
        early.listen(false);
        assert_eq!(told.get(), 0);

        handle.request_stop();
        let mut late = Listener::new(&invocation);
        late.arm();
        assert_eq!(told.get(), 1);
        for listener in [&mut early, &mut late] {
            listener.listen(true);
            listener.listen(false);
        }
        assert_eq!(told.get(), 2);
    }
}
