//! Programs that answer requests. Each is started in a process group of its own, gets its input, is
//! read, bounded in time and in what it writes, and reaped; nothing of its group runs on after it.
//!
//! The worker's thread waits with poll(2) for the program's three pipes, for its end and for the
//! handle of the call, whichever comes first.

use crate::cancellation::{CallHandle, Cancelled};
use crate::error::{Failure, FailureKind};
use crate::terminal::text;
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{ioctl_fionbio, retry_on_intr};
use rustix::process::{
    Pid, Signal, WaitId, WaitIdOptions, kill_process, kill_process_group, waitid,
};
use std::collections::HashSet;
use std::io::ErrorKind::{Interrupted, WouldBlock};
use std::io::{self, PipeReader, Read, Write};
use std::mem;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Child, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program that is to end has between SIGTERM and SIGKILL.
const KILL_DELAY: Duration = Duration::from_secs(2);

/// How long a program that has ended is waited for if what it started still has its output open.
const LEFT_RUNNING_LIMIT: Duration = Duration::from_secs(1);

/// How much of a line on standard error is kept, in bytes: enough for the longest message.
const LINE_LIMIT: usize = 16 << 10;

/// The process groups of the programs that run. To start a program takes long, and many threads do it at
/// once: each holds the outer lock for reading. `kill_all` takes it for writing, and never gives it back.
#[derive(Default)]
pub struct Groups(RwLock<Mutex<HashSet<Pid>>>);

impl Groups {
    /// Kills them all, at once. No program can be started after this.
    pub fn kill_all(&self) {
        // Whoever is about to start a program has told its group before this goes on.
        let groups = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for group in &*lock(&groups) {
            signal(*group, Signal::KILL);
        }
        mem::forget(groups);
    }
}

/// Signals a group, and its leader, which can have gone into another one. Both are there as long as the
/// leader is not reaped.
fn signal(group: Pid, signal: Signal) {
    let _ = kill_process_group(group, signal);
    let _ = kill_process(group, signal);
}

fn lock(groups: &Mutex<HashSet<Pid>>) -> MutexGuard<'_, HashSet<Pid>> {
    groups.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a program is given, and how far it may go.
pub struct Call<'a> {
    /// Its standard input.
    pub input: &'a [u8],
    /// The environment variables that it has besides the server's. None: it has no such variable.
    pub environment: &'a [(&'static str, Option<&'a str>)],
    /// The largest output, in bytes.
    pub most: usize,
    /// When it must have ended.
    pub deadline: Option<Instant>,
    /// By which somebody else can end the call.
    pub handle: &'a CallHandle,
    /// Is called once if the server is asked to stop while the program runs.
    pub at_stop: &'a dyn Fn(),
}

/// How a program came to its end.
#[derive(Debug)]
pub enum End {
    /// By itself, or by a signal that was not the server's. With what it wrote to standard output, and
    /// its last line on standard error, if there was one that is not blank.
    Exited(ExitStatus, Vec<u8>, Option<String>),
    /// It was killed since it wrote more than it may.
    OutOfRange,
    /// It was killed since its time was up, or there was none left to start it.
    TimedOut,
    /// It was killed since the call was cancelled.
    Cancelled(Cancelled),
    /// It was killed since it could not be fed, read or waited for.
    Unobserved(io::Error),
}

/// A program, with its arguments.
#[derive(Debug)]
pub struct Command {
    name: String,
    path: PathBuf,
    words: Vec<String>,
}

impl Command {
    /// The program that `words`, one at least, begin with, as a path or a name in PATH. `name` is the
    /// procedure's. [`FailureKind::Configuration`] if it is not there or may not be executed.
    pub fn find(name: &str, words: &[String]) -> Result<Command, Failure> {
        let word = &words[0];
        let path = which::which(word).map_err(|_| {
            let message = format!(
                "--procedure {name}: \"{word}\" is not a program that can be executed: it takes a \
                 path, or a name in PATH, of a file with permission to execute it (chmod +x)"
            );
            Failure::new(FailureKind::Configuration, message)
        })?;
        Ok(Command { name: name.into(), path, words: words.into() })
    }

    /// Runs it to its end, and logs each line that it writes to standard error. The error says why it
    /// was not started.
    pub fn run(&self, call: &Call<'_>, groups: &Groups) -> io::Result<End> {
        let time_limit = call.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if time_limit == Some(Duration::ZERO) {
            return Ok(End::TimedOut);
        }
        let mut command = process::Command::new(&self.path);
        command.arg0(&self.words[0]).args(&self.words[1..]).process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let seconds = time_limit.map(|limit| format!("{:.3}", limit.as_secs_f64()));
        let more = [("RPC_TIME_LIMIT", seconds.as_deref()), ("AMQP_URL", None)];
        for (name, value) in call.environment.iter().chain(&more) {
            match value {
                // No environment variable can have a NUL in it.
                Some(value) => command.env(name, value.replace('\0', "\u{1a}")),
                // AMQP_URL can have the broker's password. RPC_ variables are there if the server was
                // itself started by such a call.
                None => command.env_remove(name),
            };
        }
        let started = groups.0.read().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        let group = Pid::from_child(&child);
        lock(&started).insert(group);
        drop(started);
        let lines = Lines { name: &self.name, line: Vec::new(), last: None };
        let (input, output) = (call.input, Vec::new());
        let (end, waker) = (None, None);
        let mut running = Running { child, group, groups, call, input, output, lines, end, waker };
        let ended = running.attend().and_then(|killed| Ok((killed, running.reap()?)));
        let (killed, status) = match ended {
            Ok(ended) => ended,
            Err(error) => return Ok(End::Unobserved(error)),
        };
        // The last line need not end with a newline.
        if !running.lines.line.is_empty() {
            running.lines.tell();
        }
        let (output, last_line) = (mem::take(&mut running.output), running.lines.last.take());
        Ok(killed.unwrap_or(End::Exited(status, output, last_line)))
    }
}

/// A program that was started. It is killed with its group, and reaped, when this is dropped.
struct Running<'a> {
    /// Its pipes are None when they are closed.
    child: Child,
    group: Pid,
    groups: &'a Groups,
    call: &'a Call<'a>,
    /// What is still to be written.
    input: &'a [u8],
    output: Vec<u8>,
    lines: Lines<'a>,
    /// See [`end_of`]. None once that was reported.
    end: Option<OwnedFd>,
    /// See [`CallHandle::waker`]. None once the call was cancelled.
    waker: Option<PipeReader>,
}

impl Running<'_> {
    /// Feeds and reads it until it has ended, or is left behind. Why it was killed, if it was.
    fn attend(&mut self) -> io::Result<Option<End>> {
        for pipe in self.pipes() {
            ioctl_fionbio(pipe, true)?;
        }
        self.end = Some(end_of(self.group)?);
        self.waker = Some(self.call.handle.waker()?);
        let (mut killed, mut alarm) = (None, self.call.deadline);
        let mut is_stopping = false;
        loop {
            let (has_ended, is_woken) = self.wait(alarm)?;
            let cancelled = self.call.handle.cancelled();
            if is_woken {
                // The descriptor is reported for good.
                self.waker =
                    if cancelled.is_none() { Some(self.call.handle.waker()?) } else { None };
            }
            if !is_stopping && self.call.handle.is_stop_requested() {
                is_stopping = true;
                (self.call.at_stop)();
            }
            self.transfer()?;
            let now = Instant::now();
            if has_ended {
                self.end = None;
                let limit = now + LEFT_RUNNING_LIMIT;
                alarm = Some(alarm.map_or(limit, |alarm| alarm.min(limit)));
            }
            let is_over = alarm.is_some_and(|alarm| alarm <= now);
            if killed.is_some() {
                if is_over {
                    signal(self.group, Signal::KILL);
                    alarm = None;
                }
            } else {
                killed = match cancelled {
                    _ if self.output.len() > self.call.most => Some(End::OutOfRange),
                    Some(reason) => Some(End::Cancelled(reason)),
                    None if is_over && self.end.is_some() => Some(End::TimedOut),
                    None => None,
                };
                if killed.is_some() && self.end.is_some() {
                    signal(self.group, Signal::TERM);
                    // One that was stopped takes SIGTERM only when it goes on.
                    signal(self.group, Signal::CONT);
                    alarm = Some(now + KILL_DELAY);
                }
            }
            let is_closed = self.child.stdout.is_none() && self.child.stderr.is_none();
            if self.end.is_none() && (is_over || cancelled.is_some() || is_closed) {
                return Ok(killed);
            }
        }
    }

    /// Kills what is left of its group, and reaps it. After that, the group's number is free for others.
    fn reap(&mut self) -> io::Result<ExitStatus> {
        if lock(&self.groups.0.read().unwrap_or_else(PoisonError::into_inner)).remove(&self.group) {
            signal(self.group, Signal::KILL);
        }
        self.child.wait()
    }

    /// The pipes that are open, with what poll(2) is to wait for.
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
        if let Some(stdout) = &mut self.child.stdout {
            // A byte more than it may be, to see that it is more.
            let room = (self.call.most + 1).saturating_sub(self.output.len());
            let read = stdout.take(room as u64).read_to_end(&mut self.output);
            if without_waiting(read)?.is_some() {
                self.child.stdout = None;
            }
        }
        if let Some(stderr) = &mut self.child.stderr {
            let mut buffer = [0; 8192];
            match without_waiting(stderr.read(&mut buffer))? {
                Some(0) => self.child.stderr = None,
                Some(read) => self.lines.push(&buffer[..read]),
                None => {}
            }
        }
        Ok(())
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.reap();
    }
}

/// A descriptor that poll(2) reports when the process has ended. It is not reaped by that.
fn end_of(process: Pid) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    if let Ok(end) = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()) {
        return Ok(end);
    }
    end_by_thread(process)
}

/// [`end_of`] where there are no descriptors for processes (a kernel before 5.3, a sandbox): a thread
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

/// None: it would have had to wait.
fn without_waiting<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if matches!(error.kind(), WouldBlock | Interrupted) => Ok(None),
        result => result.map(Some),
    }
}

/// Standard error, line by line.
struct Lines<'a> {
    name: &'a str,
    line: Vec<u8>,
    last: Option<String>,
}

impl Lines<'_> {
    fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            match byte {
                b'\n' => self.tell(),
                _ if self.line.len() < LINE_LIMIT => self.line.push(*byte),
                _ => {}
            }
        }
    }

    fn tell(&mut self) {
        let line = String::from_utf8_lossy(&self.line);
        let line = text::sentence(line.trim_end());
        warn!("{}: {line}", self.name);
        if !line.trim().is_empty() {
            self.last = Some(line.into_owned());
        }
        self.line.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the system's descriptor, and by a thread where there is none.
    #[test]
    fn the_end_of_a_process_is_reported_and_does_not_reap_it() {
        for end_of in [end_of, end_by_thread] {
            let mut child = process::Command::new("cat")
                .stdin(Stdio::piped())
                .process_group(0)
                .spawn()
                .unwrap();
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

    #[test]
    fn a_line_is_whole_whatever_pieces_it_comes_in() {
        let mut lines = Lines { name: "p", line: Vec::new(), last: None };
        for (piece, last) in
            [("on", None), ("e\ntw", Some("one")), ("o\n\n \n", Some("two")), ("end", Some("two"))]
        {
            lines.push(piece.as_bytes());
            assert_eq!(lines.last.as_deref(), last, "{piece}");
        }
        lines.push(&[b'x'; 100_000]);
        assert_eq!(lines.line.len(), LINE_LIMIT);
        lines.tell();
        assert!(lines.last.unwrap().starts_with("endxxx"));
    }
}
