//! One of a coprocess's programs, from its start to its end.

use crate::command::{CallVariables, Command, Descendants, End, Invocation, Listener};
use crate::command::{Ending, KILL_LIMIT, LOOK_INTERVAL, News, READ_SIZE, Running, memory};
use crate::terminal::text::{count, excerpt};
use log::warn;
use std::io::{self, IoSlice};
use std::mem;
use std::os::fd::AsFd;
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a program has to end that has closed its standard input or output: what ends closes them first.
const CLOSED_LIMIT: Duration = Duration::from_secs(1);

/// How long it may take from the close of a program's pipes to its end, if it ends.
const MOMENT: Duration = Duration::from_millis(100);

/// How long a call does without a waker, which costs as much as a short call. What the waker would tell is seen after
/// that.
const UNARMED: Duration = Duration::from_millis(20);

/// How much may be written without being asked for before a request, in bytes: as much as a pipe holds.
const UNASKED_LIMIT: usize = 1 << 20;

/// A program that runs, and serves one call after another.
pub struct Instance {
    /// The procedure's name.
    name: String,
    running: Running,
    /// How many calls it has answered.
    pub answered: u64,
    /// Whether it has ever written anything to standard output.
    has_written: bool,
    /// What it has done that keeps it from serving more calls.
    fault: Option<&'static str>,
}

/// What a program has written without being asked.
#[derive(Default)]
struct Unasked {
    head: Vec<u8>,
    /// All of it, in bytes.
    length: usize,
}

impl Unasked {
    fn push(&mut self, bytes: &[u8]) {
        if self.head.len() < READ_SIZE {
            self.head.extend_from_slice(bytes);
        }
        self.length += bytes.len();
    }

    /// Returns whether it is so much that nobody knows where it ends.
    fn is_endless(&self) -> bool {
        self.length > UNASKED_LIMIT
    }
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
        Ok(Instance { name: name.into(), running, answered: 0, has_written: false, fault: None })
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
            // What is left there would be taken for the next call's.
            self.running.read_all_stderr()?;
        }
        if news.has_output || has_ended {
            self.throw_away()?;
        }
        if !self.running.has_output() {
            self.await_end()?;
        }

        Ok(match self.fault {
            _ if self.running.has_ended() => Found::Ended,
            Some(fault) => Found::Faulty(fault),
            None => Found::Ready,
        })
    }

    /// Waits for the end of a program that has closed its standard output: what ends does that a moment before.
    fn await_end(&mut self) -> io::Result<()> {
        let until = Instant::now() + MOMENT;
        while !self.running.has_ended() && Instant::now() < until {
            self.running.wait(false, None, Some(until))?;
            self.running.read_stderr()?;
        }
        Ok(())
    }

    /// Reads what was not asked for, and tells of it.
    fn throw_away(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ_SIZE];
        let mut unasked = Unasked::default();
        while !unasked.is_endless()
            && let Some(bytes) = self.running.read(&mut buffer)?
        {
            unasked.push(bytes);
        }
        self.tell(&unasked);
        if !self.running.has_output() {
            self.fault.get_or_insert("has closed its standard output");
        }
        Ok(())
    }

    /// Tells of what is thrown away. A program that writes such output without end serves no more calls.
    fn tell(&mut self, unasked: &Unasked) {
        if unasked.length == 0 {
            return;
        }
        self.has_written = true;
        if unasked.is_endless() {
            self.fault.get_or_insert("writes without end, though nothing was asked");
        }
        warn!(
            "{}: \"{}\", {} of standard output that no request has asked for, thrown away",
            self.name,
            excerpt(unasked.head.trim_ascii()),
            count(unasked.length as u64, "byte", "bytes")
        );
    }

    /// Writes a request and reads the line that answers it, without its newline. `longest`: the longest line, in bytes.
    /// The error is the system's.
    pub fn ask(
        &mut self,
        request: &[u8],
        longest: usize,
        invocation: &Invocation<'_>,
        listener: &mut Listener<'_>,
    ) -> io::Result<Asked<Vec<u8>>> {
        self.running.stderr.begin_call();
        Exchange {
            instance: self,
            invocation,
            unwritten: &mut [IoSlice::new(request), IoSlice::new(b"\n")],
            is_begun: false,
            line: Vec::new(),
            has_line: false,
            longest,
            unarmed_until: Instant::now() + UNARMED,
            closed_until: None,
        }
        .attend(listener)
    }

    /// Reaps a program that has ended, after reading what it has left on standard error. The error says why its exit
    /// status is not known.
    pub fn finish(&mut self) -> io::Result<ExitStatus> {
        // What it has started may write on.
        let until = Instant::now() + MOMENT;
        while Instant::now() < until && self.running.read_stderr().unwrap_or(false) {}
        self.running.finish()
    }

    /// Ends it, as a program is ended whose time is up.
    pub fn terminate(
        &mut self,
        kill_delay: Duration,
        listener: &mut Listener<'_>,
    ) -> io::Result<()> {
        listener.arm();
        let ending = self.running.terminate(kill_delay);
        while !self.running.is_over(ending, Instant::now()) {
            let look = Instant::now() + LOOK_INTERVAL;
            let news = self.running.wait(false, listener.waker(), Some(look))?;
            listener.listen(news.is_woken);
            self.read_on()?;
        }
        Ok(())
    }

    /// Reads what a program writes that is about to end: it must not wait for a reader.
    fn read_on(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ_SIZE];
        self.running.read(&mut buffer)?;
        self.running.read_stderr()?;
        Ok(())
    }
}

/// A request on its way to a program, and the answer on its way back.
struct Exchange<'a> {
    instance: &'a mut Instance,
    invocation: &'a Invocation<'a>,
    unwritten: &'a mut [IoSlice<'a>],
    /// Whether something of the request was written.
    is_begun: bool,
    /// What has come of the answer.
    line: Vec<u8>,
    /// Whether that is all of it.
    has_line: bool,
    longest: usize,
    /// From then on there is a waker.
    unarmed_until: Instant,
    /// When the program must have ended, if it has closed something that it needs.
    closed_until: Option<Instant>,
}

impl Exchange<'_> {
    /// Writes and reads until nothing more is expected of the program for this call.
    fn attend(mut self, listener: &mut Listener<'_>) -> io::Result<Asked<Vec<u8>>> {
        loop {
            self.write();
            if let Some(asked) = self.outcome() {
                return Ok(asked);
            }
            let alarm = self.alarm(listener);
            let is_writing = !self.is_written();
            let news = self.instance.running.wait(is_writing, listener.waker(), alarm)?;
            listener.listen(news.is_woken);
            self.take(news)?;
        }
    }

    /// Writes as much as the program takes.
    fn write(&mut self) {
        if self.is_written() {
            return;
        }
        match self.instance.running.write(self.unwritten) {
            Ok(written) => {
                self.is_begun |= written > 0;
                IoSlice::advance_slices(&mut self.unwritten, written);
            }
            Err(_) => self.instance.fault = Some("has closed its standard input"),
        }
    }

    /// Returns whether nothing more of the request can be written.
    fn is_written(&self) -> bool {
        self.unwritten.is_empty() || self.instance.fault.is_some()
    }

    /// Returns what came of the call, if it is over.
    fn outcome(&mut self) -> Option<Asked<Vec<u8>>> {
        if !self.is_begun && self.instance.fault.is_some() {
            return Some(Asked::Untouched);
        }
        let has_ended = self.instance.running.has_ended();
        if self.has_line && (self.is_written() || has_ended) {
            return Some(Asked::Answered(mem::take(&mut self.line)));
        }
        self.why_end(Instant::now()).map(Asked::Failed)
    }

    /// Returns why there will be no answer, if that is so.
    fn why_end(&mut self, now: Instant) -> Option<Why> {
        if self.line.len() > self.longest {
            return Some(Why::End(End::OutOfRange));
        }
        if let Some(reason) = self.invocation.handle.cancelled() {
            return Some(Why::End(End::Cancelled(reason)));
        }
        if self.instance.running.has_ended() {
            return Some(Why::Ended);
        }
        if self.invocation.deadline.is_some_and(|deadline| deadline <= now) {
            return Some(Why::End(End::TimedOut));
        }
        let fault = self.instance.fault?;
        let until = self.closed_until.get_or_insert(now + CLOSED_LIMIT);
        (*until <= now).then_some(Why::Closed(fault))
    }

    /// Returns when the program has to be looked at, at the latest.
    fn alarm(&self, listener: &mut Listener<'_>) -> Option<Instant> {
        let now = Instant::now();
        if self.instance.has_more() {
            return Some(now);
        }
        if self.unarmed_until <= now {
            listener.arm();
        }
        let alarms = [self.invocation.deadline, self.closed_until, listener.alarm()];
        alarms.into_iter().flatten().min()
    }

    /// Reads what has come.
    fn take(&mut self, news: News) -> io::Result<()> {
        let has_ended = self.instance.running.has_ended();
        if news.has_errors || has_ended || self.instance.has_more() {
            self.instance.running.read_stderr()?;
        }
        if news.has_output || has_ended {
            self.read()?;
        }
        Ok(())
    }

    /// Reads as much of standard output as there is, or a byte more than the answer may have. What stands behind the answer
    /// is thrown away.
    fn read(&mut self) -> io::Result<()> {
        let mut buffer = [0; READ_SIZE];
        let mut unasked = Unasked::default();
        while self.line.len() <= self.longest
            && !unasked.is_endless()
            && let Some(bytes) = self.instance.running.read(&mut buffer)?
        {
            self.instance.has_written = true;
            unasked.push(self.add(bytes)?);
            // As a rule there is no more, which another read would tell.
            if bytes.len() < READ_SIZE && !self.instance.running.has_ended() {
                break;
            }
        }

        self.instance.tell(&unasked);
        if !self.instance.running.has_output() {
            self.instance.fault.get_or_insert("has closed its standard output");
        }
        Ok(())
    }

    /// Adds to the answer what belongs to it. Returns the rest.
    fn add<'b>(&mut self, bytes: &'b [u8]) -> io::Result<&'b [u8]> {
        if self.has_line {
            return Ok(bytes);
        }
        let end = bytes.iter().position(|byte| *byte == b'\n');
        memory::append(&mut self.line, &bytes[..end.unwrap_or(bytes.len())])?;
        self.has_line = end.is_some();
        Ok(end.map_or(&[], |end| &bytes[end + 1..]))
    }
}

/// Returns how long [`end`] can take.
pub fn end_limit(kill_delay: Duration) -> Duration {
    2 * kill_delay + KILL_LIMIT
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
