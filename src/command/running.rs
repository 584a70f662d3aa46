//! A program that was started: its pipes, its end, and what it takes to end it.

use crate::command::descendants::Descendants;
use crate::command::spawn::Child;
use crate::command::stderr::Stderr;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read, retry_on_intr};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use std::io::{self, IoSlice, PipeReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long SIGKILL may take to end all of it, before the call is over without that.
pub const KILL_LIMIT: Duration = Duration::from_secs(1);

/// How often it is looked whether anything is left of a program that is to end.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(10);

/// How much is read at a time, in bytes.
pub const READ_SIZE: usize = 16 << 10;

/// A program that was started. It is killed with all that it started, and reaped, when this is dropped.
pub struct Running {
    child: Child,
    programs: Descendants,
    /// What it has written to standard error.
    pub stderr: Stderr,
    /// See [`end_of`]. None once that was reported.
    end: Option<Arc<OwnedFd>>,
    has_ended: bool,
    is_reaped: bool,
}

/// How far a program that is to end may still go.
#[derive(Debug, Clone, Copy)]
pub struct Ending {
    kill_at: Instant,
}

/// What [`Running::wait`] has waited for. That a program has ended is told by [`Running::has_ended`].
#[derive(Debug, Clone, Copy)]
pub struct News {
    /// Whether the waker is readable.
    pub is_woken: bool,
    /// Whether there is something to read from standard output, perhaps its end.
    pub has_output: bool,
    /// The same of standard error.
    pub has_errors: bool,
}

impl Running {
    /// Takes over the program of the procedure `name`, which is among `programs`. [`Running::watch`] is to be called next.
    pub(super) fn new(name: &str, child: Child, programs: &Descendants) -> Running {
        Running {
            child,
            programs: programs.clone(),
            stderr: Stderr::new(name),
            end: None,
            has_ended: false,
            is_reaped: false,
        }
    }

    /// Begins to watch it: from now on, nothing that reads from it or writes to it waits. The error is the system's.
    pub fn watch(&mut self) -> io::Result<()> {
        let Child { stdin, stdout, stderr, .. } = &self.child;
        stdin.iter().try_for_each(|pipe| ioctl_fionbio(pipe, true))?;
        [stdout, stderr].into_iter().flatten().try_for_each(|pipe| ioctl_fionbio(pipe, true))?;
        self.end = Some(Arc::new(end_of(self.child.pid)?));
        Ok(())
    }

    /// Returns its process id.
    pub fn pid(&self) -> Pid {
        self.child.pid
    }

    /// Returns whether it has ended, as far as [`Running::wait`] has told.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Returns the descriptors that poll(2) reports when it has written something, or has ended.
    pub fn news(&self) -> impl Iterator<Item = Arc<dyn AsFd + Send + Sync>> {
        let outputs = [&self.child.stdout, &self.child.stderr].into_iter().flatten();
        let outputs = outputs.map(|pipe| Arc::clone(pipe) as Arc<dyn AsFd + Send + Sync>);
        let end = self.end.as_ref().map(|end| Arc::clone(end) as Arc<dyn AsFd + Send + Sync>);
        outputs.chain(end)
    }

    /// Waits until it has written something, or has ended, or, if something is to be written to it, it takes that; until
    /// `waker` is readable; or until that time.
    pub fn wait(
        &mut self,
        is_writing: bool,
        waker: Option<&PipeReader>,
        until: Option<Instant>,
    ) -> io::Result<News> {
        fn watch(fd: &impl AsFd, flags: PollFlags) -> PollFd<'_> {
            PollFd::from_borrowed_fd(fd.as_fd(), flags)
        }

        let watched = [
            self.end.as_ref().map(|end| watch(end, PollFlags::IN)),
            waker.map(|waker| watch(waker, PollFlags::IN)),
            self.child.stdout.as_ref().map(|pipe| watch(pipe, PollFlags::IN)),
            self.child.stderr.as_ref().map(|pipe| watch(pipe, PollFlags::IN)),
            self.child
                .stdin
                .as_ref()
                .filter(|_| is_writing)
                .map(|pipe| watch(pipe, PollFlags::OUT)),
        ];
        let are_there = watched.each_ref().map(Option::is_some);
        let mut fds: Vec<PollFd<'_>> = watched.into_iter().flatten().collect();
        let limit = until.map(|until| until.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());

        retry_on_intr(|| poll(&mut fds, limit.as_ref()))?;
        let mut reported = fds.iter().map(|fd| !fd.revents().is_empty());
        let [has_ended, is_woken, has_output, has_errors, _] =
            are_there.map(|is_there| is_there && reported.next() == Some(true));
        drop(fds);
        if has_ended {
            (self.end, self.has_ended) = (None, true);
        }
        Ok(News { is_woken, has_output, has_errors })
    }

    /// Writes as much to its standard input as it takes without waiting, and returns how many bytes that were.
    pub fn write(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let Some(stdin) = &mut self.child.stdin else { return Ok(0) };
        match stdin.write_vectored(pieces) {
            Err(error) if is_to_wait(&error) => Ok(0),
            result => result,
        }
    }

    /// Closes its standard input.
    pub fn close_input(&mut self) {
        self.child.stdin = None;
    }

    /// Returns whether its standard input is open.
    pub fn has_input(&self) -> bool {
        self.child.stdin.is_some()
    }

    /// Reads from its standard output without waiting. None: there is nothing at the moment, or it is closed.
    pub fn read<'a>(&mut self, buffer: &'a mut [u8]) -> io::Result<Option<&'a [u8]>> {
        read_open(&mut self.child.stdout, buffer)
    }

    /// Reads no more from its standard output.
    pub fn close_output(&mut self) {
        self.child.stdout = None;
    }

    /// Returns whether its standard output is open.
    pub fn has_output(&self) -> bool {
        self.child.stdout.is_some()
    }

    /// Returns whether it has closed standard output and standard error.
    pub fn is_closed(&self) -> bool {
        self.child.stdout.is_none() && self.child.stderr.is_none()
    }

    /// Reads from its standard error without waiting, and logs some lines of it. Returns whether there was something. If
    /// [`Stderr::has_more`], it is to be called again at once.
    pub fn read_stderr(&mut self) -> io::Result<bool> {
        if !self.stderr.has_more() {
            match read_open(&mut self.child.stderr, &mut [0; READ_SIZE])? {
                Some(bytes) => self.stderr.push(bytes),
                None => return Ok(false),
            }
        }
        self.stderr.log_some(Instant::now());
        Ok(true)
    }

    /// Reads all that it has written to standard error so far, without waiting, and logs some lines of it.
    pub fn read_all_stderr(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ_SIZE];
        while !self.stderr.is_full()
            && let Some(bytes) = read_open(&mut self.child.stderr, &mut buffer)?
        {
            self.stderr.push(bytes);
        }
        self.stderr.log_some(Instant::now());
        Ok(())
    }

    /// Tells all of it to end. It gets SIGKILL after the `kill_delay`.
    pub fn terminate(&self, kill_delay: Duration) -> Ending {
        self.programs.signal(self.child.pid, Signal::TERM);
        // What was stopped takes SIGTERM only when it goes on.
        self.programs.signal(self.child.pid, Signal::CONT);
        Ending { kill_at: Instant::now() + kill_delay }
    }

    /// Returns whether nothing is left of a program that was told to end, or nothing more can be done about it. Kills it
    /// if its time is up. To be called every [`LOOK_INTERVAL`].
    pub fn is_over(&self, ending: Ending, now: Instant) -> bool {
        if self.has_ended && !self.programs.has_left(self.child.pid) {
            return true;
        }
        if ending.kill_at <= now {
            self.programs.kill(self.child.pid);
        }
        ending.kill_at + KILL_LIMIT <= now
    }

    /// Reaps a program that has ended. The error says why its exit status is not known.
    pub fn finish(&mut self) -> io::Result<ExitStatus> {
        self.is_reaped = true;
        self.programs.finish(self.child.pid)
    }
}

impl Drop for Running {
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

/// Reads without waiting, and closes the pipe at its end.
fn read_open<'a>(
    pipe: &mut Option<Arc<PipeReader>>,
    buffer: &'a mut [u8],
) -> io::Result<Option<&'a [u8]>> {
    let Some(open) = pipe else { return Ok(None) };
    match read(open, &mut *buffer) {
        Ok(0) => *pipe = None,
        Ok(length) => return Ok(Some(&buffer[..length])),
        Err(Errno::AGAIN | Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(None)
}

/// Returns whether a pipe takes nothing at the moment.
fn is_to_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
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
