//! One of a coprocess's programs, from its start to its end.

use crate::command::{CallVariables, Command, Descendants, End, Invocation, Listener};
use crate::command::{Ending, LOOK_INTERVAL, READ_SIZE, Running, memory};
use crate::terminal::text::{count, excerpt};
use log::warn;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a program has to end that has closed its standard input or output: what ends closes them first.
const CLOSED_LIMIT: Duration = Duration::from_secs(1);

/// How much may be written without being asked for before a request, in bytes: as much as a pipe holds.
const UNASKED_LIMIT: usize = 1 << 20;

/// A program that runs, and serves one call after another.
pub struct Instance {
    /// The procedure's name.
    name: String,
    running: Running,
    /// What came of the line that is awaited.
    line: Vec<u8>,
    /// How many calls it has answered.
    pub answered: u64,
    /// Whether it has ever written anything to standard output.
    has_written: bool,
    /// What it has done that keeps it from serving more calls.
    fault: Option<&'static str>,
}

/// What came of a call.
pub enum Asked<T> {
    /// What it has answered.
    Answered(T),
    /// It got nothing of the request, and will serve no more calls.
    Untouched,
    /// It was to end, or has ended, before it has answered. An exit status is not known yet.
    Failed(Why),
}

/// Why there is no answer.
pub enum Why {
    /// It has ended.
    Ended,
    /// It has closed its standard input or output.
    Closed(&'static str),
    /// It has answered with what is no reply, for this reason.
    NoReply(String),
    /// It is to end.
    End(End),
}

/// What a look has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// It can serve a call.
    Ready,
    /// It has ended.
    Ended,
    /// It cannot serve calls any more, and has not ended.
    Faulty(&'static str),
}

impl Instance {
    /// Starts the program of the procedure `name`. The error says why it was not started.
    pub fn start(name: &str, command: &Command, programs: &Descendants) -> io::Result<Instance> {
        let mut running = command.start(&CallVariables::default(), programs)?;
        running.watch()?;
        Ok(Instance {
            name: name.into(),
            running,
            line: Vec::new(),
            answered: 0,
            has_written: false,
            fault: None,
        })
    }

    /// Returns the program, for what is common to all programs.
    pub fn running(&mut self) -> &mut Running {
        &mut self.running
    }

    /// Returns whether it has ever written anything to standard output.
    pub fn has_written(&self) -> bool {
        self.has_written
    }

    /// Returns the descriptors that poll(2) reports when it has written something, or has ended.
    pub fn news(&self) -> impl Iterator<Item = Arc<dyn AsFd + Send + Sync>> {
        self.running.news()
    }

    /// Returns whether there is something to look at without waiting for it.
    pub fn has_more(&self) -> bool {
        self.running.stderr.has_more()
    }

    /// Looks what has come of it between two calls, without waiting: logs what it wrote to standard error, and throws
    /// away what it wrote without being asked.
    pub fn look(&mut self) -> io::Result<Found> {
        let news = self.running.wait(false, None, Some(Instant::now()))?;
        let has_ended = self.running.has_ended();
        if news.has_errors || self.running.stderr.has_more() {
            self.running.read_stderr()?;
        }
        if news.has_output || has_ended {
            self.throw_away()?;
        }

        Ok(match self.fault {
            _ if has_ended => Found::Ended,
            Some(fault) => Found::Faulty(fault),
            None => Found::Ready,
        })
    }

    /// Reads what was not asked for, and tells of it.
    fn throw_away(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ_SIZE];
        let (mut head, mut length) = (Vec::new(), 0);
        while let Some(bytes) = self.running.read(&mut buffer)? {
            if head.len() < READ_SIZE {
                head.extend_from_slice(bytes);
            }
            length += bytes.len();
            if length > UNASKED_LIMIT {
                self.fault = Some("writes without end, though nothing was asked");
                break;
            }
        }
        self.tell_unasked(&head, length);
        if !self.running.has_output() {
            self.fault.get_or_insert("has closed its standard output");
        }
        Ok(())
    }

    /// Tells that `length` bytes are thrown away, which begin with `head`.
    fn tell_unasked(&mut self, head: &[u8], length: usize) {
        if length == 0 {
            return;
        }
        self.has_written = true;
        warn!(
            "{}: \"{}\", {} of standard output that no request has asked for, thrown away",
            self.name,
            excerpt(head.trim_ascii()),
            count(length as u64, "byte", "bytes")
        );
    }

    /// Writes a request and reads the line that answers it, without its newline. `longest`: the longest line, in bytes. The error is the
    /// system's.
    pub fn ask(
        &mut self,
        request: &[u8],
        longest: usize,
        invocation: &Invocation<'_>,
        listener: &mut Listener<'_>,
    ) -> io::Result<Asked<Vec<u8>>> {
        self.running.stderr.begin_call();
        self.line.clear();
        let mut pieces = [IoSlice::new(request), IoSlice::new(b"\n")];
        let mut unwritten = &mut pieces[..];
        let (mut has_line, mut is_begun, mut closed) = (false, false, None);
        loop {
            if !unwritten.is_empty() && self.fault.is_none() {
                match self.running.write(unwritten) {
                    Ok(written) => {
                        is_begun |= written > 0;
                        IoSlice::advance_slices(&mut unwritten, written);
                    }
                    Err(_) if !is_begun && !has_line => {
                        self.fault = Some("has closed its standard input");
                        return Ok(Asked::Untouched);
                    }
                    Err(_) => self.fault = Some("has closed its standard input"),
                }
            }

            let is_written = unwritten.is_empty() || self.fault.is_some();
            if has_line && is_written {
                return Ok(Asked::Answered(mem::take(&mut self.line)));
            }
            if let Some(why) = self.why_end(longest, invocation, &mut closed) {
                return Ok(Asked::Failed(why));
            }

            let alarm = match self.running.stderr.has_more() {
                true => Some(Instant::now()),
                false => [invocation.deadline, closed].into_iter().flatten().min(),
            };
            let news = self.running.wait(!is_written, listener.waker(), alarm)?;
            listener.listen(news.is_woken)?;
            if news.has_errors || self.running.has_ended() || self.running.stderr.has_more() {
                self.running.read_stderr()?;
            }
            if news.has_output || self.running.has_ended() {
                has_line = self.read(has_line, longest)?;
            }
            if has_line && self.running.has_ended() {
                return Ok(Asked::Answered(mem::take(&mut self.line)));
            }
        }
    }

    /// Reads as much as there is, up to the line's end or to a byte more than it may have. Returns whether the line has
    /// ended: it may have before, `has_line`.
    fn read(&mut self, mut has_line: bool, longest: usize) -> io::Result<bool> {
        let mut buffer = [0; READ_SIZE];
        while self.line.len() <= longest
            && let Some(bytes) = self.running.read(&mut buffer)?
        {
            let mut unasked = bytes;
            if !has_line {
                let end = bytes.iter().position(|byte| *byte == b'\n');
                memory::append(&mut self.line, &bytes[..end.unwrap_or(bytes.len())])?;
                unasked = end.map_or(&[], |end| &bytes[end + 1..]);
                has_line = end.is_some();
            }
            let is_all = bytes.len() < READ_SIZE;
            self.tell_unasked(unasked, unasked.len());
            if is_all && !self.running.has_ended() {
                break;
            }
        }

        self.has_written |= !self.line.is_empty() || has_line;
        if !self.running.has_output() {
            self.fault.get_or_insert("has closed its standard output");
        }
        Ok(has_line)
    }

    /// Returns why there will be no answer, if that is so. `closed` is when it must have ended, if it has closed
    /// something.
    fn why_end(
        &self,
        longest: usize,
        invocation: &Invocation<'_>,
        closed: &mut Option<Instant>,
    ) -> Option<Why> {
        if self.line.len() > longest {
            return Some(Why::End(End::OutOfRange));
        }
        if let Some(reason) = invocation.handle.cancelled() {
            return Some(Why::End(End::Cancelled(reason)));
        }
        if self.running.has_ended() {
            return Some(Why::Ended);
        }
        let now = Instant::now();
        if invocation.deadline.is_some_and(|deadline| deadline <= now) {
            return Some(Why::End(End::TimedOut));
        }
        let fault = self.fault?;
        let until = closed.get_or_insert(now + CLOSED_LIMIT);
        (*until <= now).then_some(Why::Closed(fault))
    }

    /// Ends it, as a program is ended whose time is up.
    pub fn terminate(
        &mut self,
        kill_delay: Duration,
        listener: &mut Listener<'_>,
    ) -> io::Result<()> {
        let ending = self.running.terminate(kill_delay);
        while !self.running.is_over(ending, Instant::now()) {
            let look = Instant::now() + LOOK_INTERVAL;
            let news = self.running.wait(false, listener.waker(), Some(look))?;
            listener.listen(news.is_woken)?;
            self.read_on()?;
        }
        Ok(())
    }

    /// Reads what a program writes that is about to end: it must not wait for a reader.
    fn read_on(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ_SIZE];
        self.running.read(&mut buffer)?;
        self.running.read_stderr()
    }
}

/// Ends all of these: closes their standard input, and tells what has not ended after the delay to end, as any program.
pub fn end(instances: Vec<Instance>, kill_delay: Duration) {
    let limit = Instant::now() + kill_delay;
    let mut left: Vec<(Instance, Option<Ending>)> =
        instances.into_iter().map(|instance| (instance, None)).collect();
    left.iter_mut().for_each(|(instance, _)| instance.running.close_input());
    while !left.is_empty() {
        let now = Instant::now();
        // What cannot be waited for is killed when it is dropped.
        left.retain_mut(|(instance, ending)| {
            if limit <= now && ending.is_none() {
                *ending = Some(instance.running.terminate(kill_delay));
            }
            instance.goes_on(*ending, now).unwrap_or(false)
        });
        if !left.is_empty() {
            thread::sleep(LOOK_INTERVAL);
        }
    }
}

impl Instance {
    /// Returns whether it has not ended yet, and may go on.
    fn goes_on(&mut self, ending: Option<Ending>, now: Instant) -> io::Result<bool> {
        self.running.wait(false, None, Some(now))?;
        self.read_on()?;
        Ok(match ending {
            None => !self.running.has_ended(),
            Some(ending) => !self.running.is_over(ending, now),
        })
    }
}
