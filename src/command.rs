//! Programs that answer requests. Each is started in a process group of its own, gets its input, is
//! read, bounded in time and in what it writes, and reaped; nothing of its group runs on after it.
//!
//! One thread does all of it: it waits with poll(2) for the program's three pipes, for its end and
//! for the loss of the connection that the request came by, whichever comes first.

use crate::error::{Failure, FailureKind};
use crate::terminal::text;
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};
use std::collections::HashSet;
use std::io::{self, ErrorKind, Read, Write};
use std::mem;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{self, Child, ChildStderr, ChildStdin, ChildStdout, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long a program that is to end has between SIGTERM and SIGKILL.
const KILL_DELAY: Duration = Duration::from_secs(2);

/// How long a program that has ended is waited for if what it started still has its output open.
const LEFT_RUNNING_LIMIT: Duration = Duration::from_secs(1);

/// How much of a line on standard error is kept, in bytes: enough for the longest message.
const LINE_LIMIT: usize = 16 << 10;

/// The process groups of the programs that run. They are behind a mutex for those who start or end
/// one, and all of those behind a lock that is taken for good when the server ends.
#[derive(Default)]
pub struct Groups(RwLock<Mutex<HashSet<Pid>>>);

impl Groups {
    /// Kills them all, at once. No program can be started after this.
    pub fn kill_all(&self) {
        // Whoever is about to start a program has told its group before this goes on.
        let mut groups = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for group in groups.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
            let _ = kill_process_group(group, Signal::KILL);
        }
        mem::forget(groups);
    }

    fn start(&self, command: &mut process::Command) -> io::Result<Child> {
        let groups = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let child = command.process_group(0).spawn()?;
        lock(&groups).insert(Pid::from_child(&child));
        Ok(child)
    }

    /// Kills what is left of a group, which must not be signalled any more: its number is free for
    /// others as soon as its leader is reaped.
    fn end(&self, group: Pid) {
        let groups = self.0.read().unwrap_or_else(PoisonError::into_inner);
        if lock(&groups).remove(&group) {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
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
    /// Is closed at its other end when the request's connection is lost.
    pub connection: BorrowedFd<'a>,
}

/// How a program came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// By itself, or by a signal.
    Status(ExitStatus),
    /// It was killed since it wrote more than it may.
    OutOfRange,
    /// It was killed since its time was up, or there was none left to start it.
    TimedOut,
    /// It was killed since the connection was lost.
    ConnectionLost,
}

/// What a program came to.
pub struct Report {
    /// How it ended.
    pub end: End,
    /// What it wrote to standard output.
    pub output: Vec<u8>,
    /// The last line that it wrote to standard error, if there was one that is not blank.
    pub last_line: Option<String>,
}

/// A program, with its arguments.
#[derive(Debug)]
pub struct Command {
    name: String,
    path: PathBuf,
    words: Vec<String>,
}

impl Command {
    /// The program that `words` begin with, as a path or a name in PATH. `name` is the procedure's.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Configuration`] if it is not there or may not be executed.
    pub fn find(name: &str, words: &[String]) -> Result<Command, Failure> {
        let word = words.first().map_or("", String::as_str);
        let path = which::which(word).map_err(|_| {
            let message = format!(
                "--procedure {name}: \"{word}\" is not a program that can be executed: it takes a \
                 path, or a name in PATH, of a file with permission to execute it (chmod +x)"
            );
            Failure::new(FailureKind::Configuration, message)
        })?;
        Ok(Command { name: name.into(), path, words: words.into() })
    }

    /// Runs it to its end. Each line that it writes to standard error is logged.
    ///
    /// # Errors
    ///
    /// Why it cannot be started.
    pub fn run(&self, call: &Call<'_>, groups: &Groups) -> io::Result<Report> {
        let time_limit = call.deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if time_limit.is_some_and(|limit| limit.is_zero()) {
            return Ok(Report { end: End::TimedOut, output: Vec::new(), last_line: None });
        }
        let mut command = self.prepare(call, time_limit);
        let mut running = Running::start(&mut command, groups)?;
        let mut pipes = Pipes::new(&mut running.child, call, &self.name)?;
        let killed = running.attend(&mut pipes, call)?;
        let status = running.end()?;
        pipes.lines.finish();
        let end = match killed {
            Some(end) => end,
            None if pipes.output.len() > call.most => End::OutOfRange,
            None => End::Status(status),
        };
        Ok(Report { end, output: pipes.output, last_line: pipes.lines.last })
    }

    fn prepare(&self, call: &Call<'_>, time_limit: Option<Duration>) -> process::Command {
        let mut command = process::Command::new(&self.path);
        command.arg0(&self.words[0]).args(&self.words[1..]).env_remove("AMQP_URL");
        let seconds = time_limit.map(|limit| format!("{:.3}", limit.as_secs_f64()));
        let time_limit = ("RPC_TIME_LIMIT", seconds.as_deref());
        for (name, value) in call.environment.iter().chain([&time_limit]) {
            match value {
                // No environment variable can have a NUL in it.
                Some(value) => command.env(name, value.replace('\0', "\u{1a}")),
                // The server may have been started by such a call itself.
                None => command.env_remove(name),
            };
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// A program that was started. It is killed with its group, and reaped, when this is dropped.
struct Running<'a> {
    child: Child,
    groups: &'a Groups,
}

impl Running<'_> {
    fn start<'a>(command: &mut process::Command, groups: &'a Groups) -> io::Result<Running<'a>> {
        Ok(Running { child: groups.start(command)?, groups })
    }

    /// Feeds and reads it until it has ended, or is left behind. Why it was killed, if it was.
    fn attend(&self, pipes: &mut Pipes<'_>, call: &Call<'_>) -> io::Result<Option<End>> {
        let mut end = Some(end_of(Pid::from_child(&self.child))?);
        let mut killed = None;
        let mut alarm = call.deadline;
        loop {
            let connection = killed.is_none().then_some(call.connection);
            let (has_ended, is_lost) = pipes.wait(end.as_ref(), connection, alarm)?;
            pipes.transfer()?;
            let now = Instant::now();
            if has_ended {
                end = None;
                let limit = now + LEFT_RUNNING_LIMIT;
                alarm = Some(alarm.map_or(limit, |alarm| alarm.min(limit)));
            }
            let is_over = alarm.is_some_and(|alarm| alarm <= now);
            if end.is_none() && (is_over || is_lost || pipes.are_closed()) {
                return Ok(killed);
            }
            if killed.is_some() {
                if is_over {
                    self.signal(Signal::KILL);
                    alarm = None;
                }
                continue;
            }
            killed = match () {
                () if pipes.output.len() > call.most => Some(End::OutOfRange),
                () if is_lost => Some(End::ConnectionLost),
                () if is_over => Some(End::TimedOut),
                () => None,
            };
            if killed.is_some() {
                self.signal(Signal::TERM);
                // One that was stopped takes SIGTERM only when it goes on.
                self.signal(Signal::CONT);
                alarm = Some(now + KILL_DELAY);
            }
        }
    }

    /// Signals its group, which is there as long as its leader is not reaped.
    fn signal(&self, signal: Signal) {
        let _ = kill_process_group(Pid::from_child(&self.child), signal);
    }

    /// Kills what is left of its group, and reaps it.
    fn end(&mut self) -> io::Result<ExitStatus> {
        self.groups.end(Pid::from_child(&self.child));
        self.child.wait()
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A descriptor that poll(2) reports when the process has ended. It is not reaped by that.
fn end_of(process: Pid) -> io::Result<OwnedFd> {
    #[cfg(target_os = "linux")]
    match rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty()) {
        // A kernel before 5.3, or a sandbox that does not know of it.
        Err(Errno::NOSYS | Errno::PERM) => {}
        opened => return Ok(opened?),
    }
    end_by_thread(process)
}

/// [`end_of`] for systems that have no descriptors for processes: a thread waits, and then closes its
/// end of a pipe.
fn end_by_thread(process: Pid) -> io::Result<OwnedFd> {
    let (reader, writer) = io::pipe()?;
    let wait = move || {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        while let Err(Errno::INTR) = waitid(WaitId::Pid(process), options) {}
        drop(writer);
    };
    thread::Builder::new().name("wait".into()).spawn(wait)?;
    Ok(reader.into())
}

/// The three pipes of a program; None: closed.
struct Pipes<'a> {
    stdin: Option<ChildStdin>,
    /// What is still to be written.
    input: &'a [u8],
    stdout: Option<ChildStdout>,
    output: Vec<u8>,
    most: usize,
    stderr: Option<ChildStderr>,
    lines: Lines<'a>,
}

impl<'a> Pipes<'a> {
    fn new(child: &mut Child, call: &Call<'a>, name: &'a str) -> io::Result<Pipes<'a>> {
        let pipes = Pipes {
            stdin: child.stdin.take(),
            input: call.input,
            stdout: child.stdout.take(),
            output: Vec::new(),
            most: call.most,
            stderr: child.stderr.take(),
            lines: Lines { name, line: Vec::new(), last: None },
        };
        for pipe in pipes.open() {
            ioctl_fionbio(pipe.0, true)?;
        }
        Ok(pipes)
    }

    /// Those that are open, with what poll(2) is to wait for.
    fn open(&self) -> impl Iterator<Item = (BorrowedFd<'_>, PollFlags)> {
        let stdin = self.stdin.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::OUT));
        let stdout = self.stdout.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN));
        let stderr = self.stderr.as_ref().map(|pipe| (pipe.as_fd(), PollFlags::IN));
        [stdin, stdout, stderr].into_iter().flatten()
    }

    /// Waits until there is something to transfer, or the process has ended (the first of the two
    /// results), or the connection is lost (the second), or it is time for the alarm.
    fn wait(
        &self,
        end: Option<&OwnedFd>,
        connection: Option<BorrowedFd<'_>>,
        alarm: Option<Instant>,
    ) -> io::Result<(bool, bool)> {
        let others = [end.map(AsFd::as_fd), connection];
        let mut fds: Vec<PollFd<'_>> = others
            .iter()
            .flatten()
            .map(|fd| (*fd, PollFlags::IN))
            .chain(self.open())
            .map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags))
            .collect();
        let limit = alarm.map(|alarm| alarm.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut reported = fds.iter().map(|fd| !fd.revents().is_empty());
        let mut is_reported = |fd: bool| fd && reported.next() == Some(true);
        Ok((is_reported(end.is_some()), is_reported(connection.is_some())))
    }

    /// Writes and reads as much as can be done without waiting.
    fn transfer(&mut self) -> io::Result<()> {
        if let Some(stdin) = &mut self.stdin {
            match stdin.write(self.input) {
                Ok(written) => self.input = &self.input[written..],
                Err(error) if is_passing(&error) => {}
                // It does not read what is left. That is no error.
                Err(_) => self.input = &[],
            }
            if self.input.is_empty() {
                self.stdin = None;
            }
        }
        if let Some(stdout) = &mut self.stdout {
            // A byte more than it may be, to see that it is more.
            let room = (self.most + 1).saturating_sub(self.output.len());
            match stdout.by_ref().take(room as u64).read_to_end(&mut self.output) {
                Ok(_) => self.stdout = None,
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        if let Some(stderr) = &mut self.stderr {
            let mut buffer = [0; 8192];
            match stderr.read(&mut buffer) {
                Ok(0) => self.stderr = None,
                Ok(read) => self.lines.push(&buffer[..read]),
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Whether nothing can be read any more.
    fn are_closed(&self) -> bool {
        self.stdout.is_none() && self.stderr.is_none()
    }
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Standard error, line by line.
struct Lines<'a> {
    name: &'a str,
    line: Vec<u8>,
    last: Option<String>,
}

impl Lines<'_> {
    fn push(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, is_whole) = match piece.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (piece, false),
            };
            let room = LINE_LIMIT - self.line.len();
            self.line.extend_from_slice(&text[..text.len().min(room)]);
            if is_whole {
                self.tell();
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

    /// The last line need not end with a newline.
    fn finish(&mut self) {
        if !self.line.is_empty() {
            self.tell();
        }
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
        lines.finish();
        assert!(lines.last.unwrap().starts_with("endxxx"));
    }
}
