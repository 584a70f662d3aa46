//! Programs that answer requests. Each is started in a session of its own, gets its input, is read, bounded in time
//! and in what it writes, and reaped; nothing that it started runs on after it.
//!
//! The worker's thread waits with poll(2) for the program's three pipes, for its end and for the
//! handle of the call, whichever comes first.

mod descendants;
mod executable;
pub mod memory;
mod procfs;
mod spawn;
mod stderr;

pub use descendants::Descendants;

use crate::cancellation::{CallHandle, Cancelled};
use crate::error::{Failure, FailureKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{ioctl_fionbio, retry_on_intr};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use spawn::Child;
use std::ffi::CString;
use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::io::{self, PipeReader, Read, Write};
use std::mem;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::thread;
use std::time::{Duration, Instant};
use stderr::Stderr;

/// How long SIGKILL may take to end all of it, before the call is over without that.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// How often it is looked whether anything is left of a program that is to end.
const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How long a program that has ended is waited for if what it started still has its output open.
const LEFT_RUNNING_LIMIT: Duration = Duration::from_secs(1);

/// How much of a failed program's standard error is kept for the caller, in bytes.
pub const STDERR_LIMIT: usize = 4096;

/// What a program is given, and how far it may go.
pub struct Invocation<'a> {
    /// What comes to standard input.
    pub input: &'a [u8],
    /// The environment variables that it has besides the server's. None: it has no such variable.
    pub environment: &'a [(&'static str, Option<&'a str>)],
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

/// A program, with its arguments.
#[derive(Debug)]
pub struct Command {
    name: String,
    path: PathBuf,
    words: Vec<CString>,
}

impl Command {
    /// Returns the program that `words`, one at least, begin with, as a path or a name in PATH. `name` is the
    /// procedure's. [`FailureKind::Configuration`] if it is not there, may not be executed, or is nothing that the
    /// system can execute.
    pub fn find(name: &str, words: &[String]) -> Result<Command, Failure> {
        let word = &words[0];
        let failure = |reason: String| {
            let message = format!("--procedure {name}: \"{word}\" {reason}");
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
        Ok(Command { name: name.into(), path, words })
    }

    /// Runs the program to its end, and logs each line that it writes to standard error. The error says why it
    /// was not started.
    pub fn run(&self, invocation: &Invocation<'_>, programs: &Descendants) -> io::Result<Ended> {
        let time_limit = invocation.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if time_limit == Some(Duration::ZERO) {
            return Ok(Ended { end: End::TimedOut, last_line: None, stderr: None });
        }
        let child = programs.start(|cookie| self.spawn(invocation, time_limit, &cookie))?;
        let mut running = Running {
            child,
            programs,
            invocation,
            input: invocation.input,
            output: Vec::new(),
            stderr: Stderr::new(&self.name),
            end: None,
            has_ended: false,
            is_reaped: false,
            waker: None,
            is_stopping: false,
        };

        let end = running.attend();
        running.stderr.end();
        let (last_line, stderr) = (running.stderr.last_line.take(), running.stderr.text_of_tail());
        Ok(Ended { end, last_line, stderr })
    }

    fn spawn(
        &self,
        invocation: &Invocation<'_>,
        time_limit: Option<Duration>,
        cookie: &str,
    ) -> io::Result<Child> {
        let seconds = time_limit.map(|limit| format!("{:.3}", limit.as_secs_f64()));
        let variables = invocation.environment.iter().copied().chain([
            ("RPC_TIME_LIMIT", seconds.as_deref()),
            (descendants::COOKIE, Some(cookie)),
            // It can have the broker's password.
            ("AMQP_URL", None),
        ]);
        // Those that the server has itself: it was started by such a call.
        let names: Vec<&str> = variables.clone().map(|(name, _)| name).collect();
        let added = variables.filter_map(|(name, value)| Some(format!("{name}={}", value?)));
        spawn::spawn(&self.path, &self.words, &spawn::environment(&names, added))
    }
}

/// A program that was started. It is killed with all that it started, and reaped, when this is dropped.
struct Running<'a> {
    child: Child,
    programs: &'a Descendants,
    invocation: &'a Invocation<'a>,
    /// What is still to be written.
    input: &'a [u8],
    output: Vec<u8>,
    stderr: Stderr<'a>,
    /// See [`end_of`]. None once that was reported.
    end: Option<OwnedFd>,
    has_ended: bool,
    is_reaped: bool,
    /// See [`CallHandle::waker`]. None once the call was cancelled.
    waker: Option<PipeReader>,
    /// Whether the server is to stop, and the call was told so.
    is_stopping: bool,
}

/// Where a program is between its start and its end.
enum Phase {
    /// The program runs.
    Running,
    /// The program has ended by itself. What it has left running may write `until` then.
    Draining { until: Instant },
    /// The program is to end: all of it has got SIGTERM, and gets SIGKILL at `kill_at`, if it is still there.
    Ending { why: End, kill_at: Instant },
    /// Nothing more is expected of the program. None: it has ended by itself.
    Over(Option<End>),
}

impl Running<'_> {
    /// Follows the program to its end.
    fn attend(&mut self) -> End {
        let ended = self.watch().and_then(|why| match why {
            Some(why) => Ok(why),
            None => {
                let status = self.programs.finish(self.child.pid);
                self.is_reaped = true;
                Ok(End::Exited(status?, mem::take(&mut self.output)))
            }
        });
        match ended {
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => End::OutOfMemory,
            ended => ended.unwrap_or_else(End::Unobserved),
        }
    }

    /// Feeds and reads the program until nothing more is expected of it. Returns why it was killed, if it was.
    fn watch(&mut self) -> io::Result<Option<End>> {
        for pipe in self.pipes() {
            ioctl_fionbio(pipe, true)?;
        }
        self.end = Some(end_of(self.child.pid)?);
        self.waker = Some(self.invocation.handle.waker()?);
        let mut phase = Phase::Running;
        loop {
            let (has_ended, is_woken) = self.wait(self.alarm(&phase))?;
            if has_ended {
                (self.end, self.has_ended) = (None, true);
            }
            self.listen(is_woken)?;
            self.transfer()?;
            phase = match self.next(phase, Instant::now()) {
                Phase::Over(why) => return Ok(why),
                phase => phase,
            };
        }
    }

    /// Returns when the program has to be looked at, at the latest.
    fn alarm(&self, phase: &Phase) -> Option<Instant> {
        match phase {
            _ if self.stderr.has_more() => Some(Instant::now()),
            Phase::Running => self.invocation.deadline,
            Phase::Draining { until } => Some(*until),
            Phase::Ending { .. } | Phase::Over(_) => Some(Instant::now() + LOOK_INTERVAL),
        }
    }

    /// Returns the phase after `phase`, which may be the same.
    fn next(&self, phase: Phase, now: Instant) -> Phase {
        match phase {
            Phase::Running => match self.why_end(now) {
                Some(why) => self.terminate(why, now),
                None if !self.has_ended => Phase::Running,
                None => {
                    let limit = now + LEFT_RUNNING_LIMIT;
                    let until =
                        self.invocation.deadline.map_or(limit, |deadline| deadline.min(limit));
                    self.next(Phase::Draining { until }, now)
                }
            },
            Phase::Draining { until } => match self.why_end(now) {
                Some(why) => self.terminate(why, now),
                None if until <= now || self.is_closed() => Phase::Over(None),
                None => Phase::Draining { until },
            },
            Phase::Ending { why, kill_at } => {
                if self.has_ended && !self.programs.has_left(self.child.pid) {
                    return Phase::Over(Some(why));
                }
                if kill_at <= now {
                    self.programs.kill(self.child.pid);
                }
                match kill_at + KILL_LIMIT <= now {
                    true => Phase::Over(Some(why)),
                    false => Phase::Ending { why, kill_at },
                }
            }
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
        (is_late && !self.has_ended).then_some(End::TimedOut)
    }

    fn terminate(&self, why: End, now: Instant) -> Phase {
        self.programs.signal(self.child.pid, Signal::TERM);
        // What was stopped takes SIGTERM only when it goes on.
        self.programs.signal(self.child.pid, Signal::CONT);
        Phase::Ending { why, kill_at: now + self.invocation.kill_delay }
    }

    /// Takes note of what the call's handle tells.
    fn listen(&mut self, is_woken: bool) -> io::Result<()> {
        let handle = self.invocation.handle;
        if is_woken {
            // The descriptor is reported for good.
            self.waker = match handle.cancelled() {
                None => Some(handle.waker()?),
                Some(_) => None,
            };
        }
        if handle.is_stop_requested() && !mem::replace(&mut self.is_stopping, true) {
            (self.invocation.at_stop)();
        }
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.child.stdout.is_none() && self.child.stderr.is_none()
    }

    /// Returns the pipes that are open, with what poll(2) is to wait for.
    fn pipes(&self) -> impl Iterator<Item = PollFd<'_>> {
        let stdin = self.child.stdin.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::OUT));
        let stdout = self.child.stdout.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
        let stderr = self.child.stderr.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN));
        [stdin, stdout, stderr].into_iter().flatten()
    }

    /// Waits until there is something to transfer, or the program has ended (the first of the two
    /// results), or its call's handle tells something (the second), or it is time for the alarm.
    fn wait(&self, alarm: Option<Instant>) -> io::Result<(bool, bool)> {
        let end = self.end.as_ref().map(|end| PollFd::new(end, PollFlags::IN));
        let waker = self.waker.as_ref().map(|waker| PollFd::new(waker, PollFlags::IN));
        let others = [end.is_some(), waker.is_some()];
        let mut fds: Vec<PollFd<'_>> = end.into_iter().chain(waker).chain(self.pipes()).collect();
        let limit = alarm.map(|alarm| alarm.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        retry_on_intr(|| poll(&mut fds, limit.as_ref()))?;
        let mut reported = fds.iter().map(|fd| !fd.revents().is_empty());
        let [end, waker] = others.map(|is_there| is_there && reported.next() == Some(true));
        Ok((end, waker))
    }

    /// Writes and reads as much as can be done without waiting.
    fn transfer(&mut self) -> io::Result<()> {
        if let Some(stdin) = &mut self.child.stdin {
            match without_waiting(stdin.write(self.input)) {
                Ok(written) => self.input = &self.input[written.unwrap_or(0)..],
                // It does not read what is left. That is no error.
                Err(_) => self.input = &[],
            }
            if self.input.is_empty() {
                self.child.stdin = None;
            }
        }

        let mut buffer = [0; 16 << 10];

        // A byte more than it may be shows that it is more.
        while self.output.len() <= self.invocation.most
            && let Some(stdout) = &mut self.child.stdout
        {
            match without_waiting(stdout.read(&mut buffer))? {
                Some(0) => self.child.stdout = None,
                Some(read) => memory::append(&mut self.output, &buffer[..read])?,
                None => break,
            }
        }

        if self.output.len() > self.invocation.most {
            // Nobody reads on.
            self.child.stdout = None;
        }
        if let Some(stderr) = &mut self.child.stderr
            && !self.stderr.has_more()
        {
            match without_waiting(stderr.read(&mut buffer))? {
                Some(0) => self.child.stderr = None,
                Some(read) => self.stderr.push(&buffer[..read]),
                None => {}
            }
        }

        self.stderr.log_some(Instant::now());
        Ok(())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if self.is_reaped {
            return;
        }
        self.programs.kill(self.child.pid);
        match self.has_ended {
            true => drop(self.programs.finish(self.child.pid)),
            false => self.programs.abandon(self.child.pid),
        }
    }
}

/// Returns a descriptor that poll(2) reports when the process has ended. The process is not reaped by that.
fn end_of(process: Pid) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    if let Ok(end) = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()) {
        return Ok(end);
    }
    end_by_thread(process)
}

/// Does what [`end_of`] does, where there are no descriptors for processes (a kernel before 5.3, a sandbox): a thread
/// waits, and then closes its end of a pipe.
fn end_by_thread(process: Pid) -> io::Result<OwnedFd> {
    let (reader, writer) = io::pipe()?;
    let wait = move || {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        let _ = retry_on_intr(|| waitid(WaitId::Pid(process), options));
        drop(writer);
    };
    thread::Builder::new().name("wait".into()).spawn(wait)?;
    Ok(reader.into())
}

/// Returns None if it would have had to wait.
fn without_waiting<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => Ok(None),
        result => result.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Stdio;

    /// By the system's descriptor, and by a thread where there is none.
    #[test]
    fn the_end_of_a_process_is_reported_and_does_not_reap_it() {
        for end_of in [end_of, end_by_thread] {
            let mut child =
                std::process::Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
            let end = end_of(Pid::from_child(&child)).unwrap();
            let is_reported = |limit: Option<&Timespec>| {
                poll(&mut [PollFd::new(&end, PollFlags::IN)], limit).unwrap() == 1
            };
            assert!(!is_reported(Some(&Timespec { tv_sec: 0, tv_nsec: 0 })));
            drop(child.stdin.take());
            assert!(is_reported(None));
            assert!(child.wait().unwrap().success());
        }
    }
}
