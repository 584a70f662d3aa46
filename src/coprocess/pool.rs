//! The programs of a coprocess: one for each worker, started with the server, and started anew when it has ended.
//!
//! A call has a program to itself. Those that no call has are watched by a thread, which logs what they write, and starts
//! what has ended. It is not woken when a program is taken or given back, which would cost each call more than the call
//! itself: it looks at what is idle, and rests between two looks.

use crate::command::{Command, Descendants, End, Invocation, Listener, how_it_ended};
use crate::coprocess::instance::{self, Found, Instance};
use crate::error::{ErrorKind, Failure, FailureKind};
use crate::mutex::lock;
use crate::terminal::text;
use log::warn;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use std::collections::VecDeque;
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long the thread rests before each look. What it is woken by is, as a rule, an answer to a request, which is none
/// of its business.
const REST: Duration = Duration::from_millis(20);

/// How often it looks while a call has one of the programs.
const BUSY_LOOK: Duration = Duration::from_millis(100);

/// How often a call that waits for a program looks whether it still has to.
const WAIT_LOOK: Duration = Duration::from_millis(20);

/// The longest pause before a program is started anew that has ended before it had answered anything, in seconds.
const LONGEST_PAUSE: u64 = 30;

/// The programs of a coprocess.
pub struct Pool {
    /// The procedure's name.
    pub name: String,
    command: Command,
    programs: Descendants,
    idle: Mutex<Idle>,
    /// Is notified when a place is given back and somebody waits for it.
    returned: Condvar,
    /// How the last program came to an end that was not to end.
    last_end: Mutex<Option<String>>,
    /// Whether the server ends: nothing is started any more.
    is_closing: AtomicBool,
}

/// What no call has at the moment.
#[derive(Default)]
struct Idle {
    /// The place at the end was used last.
    places: VecDeque<Place>,
    /// How many threads wait for one. To notify nobody costs a system call, too.
    waiting: usize,
}

/// A place for a program, of which each worker has one.
#[derive(Default)]
pub struct Place {
    /// None: it has ended, or a call has it.
    pub instance: Option<Instance>,
    /// How many programs here have ended in a row before they had answered anything.
    failures: u32,
    /// The next one is not started before this.
    not_before: Option<Instant>,
}

impl Place {
    /// Returns whether there is a program, or one may be started.
    fn is_usable(&self, now: Instant) -> bool {
        self.instance.is_some() || self.not_before.is_none_or(|at| at <= now)
    }
}

/// A place that somebody has to himself. It is given back when this is dropped.
pub struct Lease {
    pool: Arc<Pool>,
    /// The place. What is taken from it, and not put back, is as if it had ended.
    pub place: Place,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut idle = lock(&self.pool.idle);
        idle.places.push_back(mem::take(&mut self.place));
        let is_awaited = idle.waiting > 0;
        drop(idle);
        if is_awaited {
            self.pool.returned.notify_one();
        }
    }
}

/// Why a call gets no program.
pub enum Refused {
    /// There is none in time.
    Error(Failure<ErrorKind>),
    /// The call is to end.
    End(End),
}

impl Pool {
    /// Returns the pool of the procedure `name`, in which nothing is started yet. Its programs will be among `programs`.
    pub fn new(name: &str, command: Command, programs: &Descendants) -> Pool {
        Pool {
            name: name.into(),
            command,
            programs: programs.clone(),
            idle: Mutex::default(),
            returned: Condvar::new(),
            last_end: Mutex::default(),
            is_closing: AtomicBool::new(false),
        }
    }

    /// Starts so many programs, and the thread that watches over them. To be called once.
    /// [`FailureKind::Configuration`] if one cannot be started, [`FailureKind::Internal`] if there is no thread.
    pub fn start(self: &Arc<Pool>, places: usize, kill_delay: Duration) -> Result<(), Failure> {
        for _ in 0..places {
            let instance = self.start_instance().map_err(|error| {
                let message = format!("the coprocess {} cannot be started: {error}", self.name);
                Failure::new(FailureKind::Configuration, message)
            })?;
            let place = Place { instance: Some(instance), ..Place::default() };
            lock(&self.idle).places.push_back(place);
        }

        let pool = Arc::clone(self);
        let watch = move || pool.watch(places, kill_delay);
        let spawned = thread::Builder::new().name("coprocess".into()).spawn(watch);
        spawned.map(drop).map_err(Failure::internal("cannot start a thread for a coprocess"))
    }

    /// Returns how many programs were started.
    pub fn started(&self) -> u64 {
        self.command.started()
    }

    fn start_instance(&self) -> io::Result<Instance> {
        Instance::start(&self.name, &self.command, &self.programs)
    }

    /// Returns a place with a program that can serve a call. Waits, within the call's limits, until there is one.
    pub fn lease(
        self: &Arc<Pool>,
        invocation: &Invocation<'_>,
        listener: &mut Listener<'_>,
    ) -> Result<Lease, Refused> {
        loop {
            let now = Instant::now();
            if let Some(reason) = invocation.handle.cancelled() {
                return Err(Refused::End(End::Cancelled(reason)));
            }
            if invocation.deadline.is_some_and(|deadline| deadline <= now) {
                return Err(self.too_late());
            }
            if let Some(lease) = self.next_lease(now)
                && let Some(lease) = lease.look_after(invocation.kill_delay)
                && lease.place.instance.is_some()
            {
                return Ok(lease);
            }

            listener.listen(false);
            let until = invocation.deadline.map_or(WAIT_LOOK, |deadline| deadline - now);
            drop(self.wait(until.min(WAIT_LOOK), |idle| {
                !idle.places.iter().any(|place| place.is_usable(now))
            }));
        }
    }

    /// Waits as long as `is_missing` holds, but no longer than that.
    fn wait(
        &self,
        limit: Duration,
        mut is_missing: impl FnMut(&Idle) -> bool,
    ) -> MutexGuard<'_, Idle> {
        let mut idle = lock(&self.idle);
        idle.waiting += 1;
        let waited = self.returned.wait_timeout_while(idle, limit, |idle| is_missing(idle));
        idle = waited.unwrap_or_else(PoisonError::into_inner).0;
        idle.waiting -= 1;
        idle
    }

    /// Returns the usable place that was used last: what it needs is still in the processor's caches.
    fn next_lease(self: &Arc<Pool>, now: Instant) -> Option<Lease> {
        let idle = &mut lock(&self.idle).places;
        let index = idle.iter().rposition(|place| place.instance.is_some());
        let index = index.or_else(|| idle.iter().position(|place| place.is_usable(now)))?;
        let place = idle.remove(index)?;
        Some(Lease { pool: Arc::clone(self), place })
    }

    fn too_late(&self) -> Refused {
        match &*lock(&self.last_end) {
            None => Refused::End(End::TimedOut),
            Some(end) => {
                let message = format!(
                    "{0} is not there: {0} {end}, and was not started again in time",
                    self.name
                );
                Refused::Error(Failure::new(ErrorKind::Unavailable, message))
            }
        }
    }

    /// Watches over the programs that no call has, until the server ends.
    fn watch(self: &Arc<Pool>, places: usize, kill_delay: Duration) {
        while !self.is_closing.load(SeqCst) {
            self.await_news(places);
            thread::sleep(REST);
            for _ in 0..places {
                let Some(place) = self.oldest() else { break };
                drop(Lease { pool: Arc::clone(self), place }.look_after(kill_delay));
            }
        }
    }

    fn oldest(&self) -> Option<Place> {
        lock(&self.idle).places.pop_front()
    }

    /// Waits until a program that is idle has written something or has ended, or one may be started.
    fn await_news(&self, places: usize) {
        let guard = lock(&self.idle);
        let (idle, now) = (&guard.places, Instant::now());
        let instances = || idle.iter().filter_map(|place| place.instance.as_ref());
        let news: Vec<_> = instances().flat_map(Instance::news).collect();
        let starts = idle.iter().filter(|place| place.instance.is_none());
        let start = starts.map(|place| place.not_before.unwrap_or(now)).min();
        let more = instances().any(Instance::has_more).then_some(now);
        let look = (idle.len() < places).then_some(now + BUSY_LOOK);
        drop(guard);

        let watch = |fd| PollFd::from_borrowed_fd(fd, PollFlags::IN);
        let mut fds: Vec<PollFd<'_>> = news.iter().map(|fd| watch(fd.as_fd())).collect();
        let until = [start, more, look].into_iter().flatten().min();
        let limit = until.map(|until| until.saturating_duration_since(now));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        // If it fails, the look comes a little early.
        let _ = retry_on_intr(|| poll(&mut fds, limit.as_ref()));
    }

    /// Closes it: nothing is started any more. Returns the programs that no call has.
    fn close(&self, places: usize) -> Vec<Instance> {
        self.is_closing.store(true, SeqCst);
        // The thread may be looking after one.
        let mut idle = self.wait(BUSY_LOOK, |idle| idle.places.len() < places);
        idle.places.iter_mut().filter_map(|place| place.instance.take()).collect()
    }

    /// Waits, after [`Pool::close`], until the programs have ended that were being ended then, but no longer than `until`.
    fn await_ends(&self, places: usize, until: Instant) {
        let limit = until.saturating_duration_since(Instant::now());
        drop(self.wait(limit, |idle| idle.places.len() < places));
    }
}

/// Ends the programs of all these pools, each of which has so many places: closes their standard input, and ends what has
/// not ended by itself after the delay.
pub fn end_all(pools: &[&Arc<Pool>], places: usize, kill_delay: Duration) {
    let until = Instant::now() + instance::end_limit(kill_delay);
    let instances = pools.iter().flat_map(|pool| pool.close(places)).collect();
    instance::end(instances, kill_delay);
    // Each of those has its time, too, that another one was to replace.
    pools.iter().for_each(|pool| pool.await_ends(places, until));
}

impl Lease {
    /// Looks after the place of which no call has made use since: logs what its program has written, takes note of its
    /// end, and starts one if that is due. None: the program is being replaced.
    fn look_after(mut self, kill_delay: Duration) -> Option<Lease> {
        if let Some(mut instance) = self.place.instance.take() {
            match instance.look() {
                Ok(Found::Ready) => self.place.instance = Some(instance),
                Ok(Found::Ended) => self.has_ended(instance),
                Ok(Found::Faulty(fault)) => {
                    self.note_end(fault, instance.answered > 0);
                    self.replace(instance, kill_delay);
                    return None;
                }
                Err(error) => {
                    let how = format!("was killed: the server could not follow it: {error}");
                    self.note_end(&how, instance.answered > 0);
                }
            }
        }
        self.start();
        Some(self)
    }

    /// Reaps a program that has ended between two calls.
    fn has_ended(&mut self, mut instance: Instance) {
        let how = match instance.finish() {
            Ok(status) => how_it_ended(status),
            Err(error) => format!("has ended: {error}"),
        };
        let (last_line, _) = instance.running().stderr.end();
        let how = match last_line {
            Some(line) => format!("{how} ({line})"),
            None => how,
        };
        self.note_end(&how, instance.answered > 0);
    }

    /// Takes note that the place's program has come to an end that was not the server's wish: `how`, as in "exited with
    /// 3". The next one is started at once if this one had answered anything, and else after a growing pause.
    pub fn note_end(&mut self, how: &str, has_answered: bool) {
        if self.pool.is_closing.load(SeqCst) {
            return;
        }
        self.place.failures = if has_answered { 0 } else { self.place.failures.saturating_add(1) };
        let pause = pause_after(self.place.failures);
        self.place.not_before = Some(Instant::now() + pause);
        let when = match pause {
            Duration::ZERO => "again".into(),
            pause => format!("again after {}", text::duration(pause)),
        };
        warn!("{} {how}; it is started {when}", self.pool.name);
        *lock(&self.pool.last_end) = Some(how.into());
    }

    /// Takes note that the place's program has answered.
    pub fn note_answer(&mut self) {
        self.place.failures = 0;
    }

    /// Starts a program, if there is none and one may be started.
    pub fn start(&mut self) {
        let is_closing = self.pool.is_closing.load(SeqCst);
        if is_closing || self.place.instance.is_some() || !self.place.is_usable(Instant::now()) {
            return;
        }
        match self.pool.start_instance() {
            Ok(instance) => self.place.instance = Some(instance),
            Err(error) => self.note_end(&format!("cannot be started: {error}"), false),
        }
    }

    /// Ends a program, for which it has its time, and starts another one in its place, while others go on.
    pub fn replace(self, instance: Instance, kill_delay: Duration) {
        let mut lease = self;
        let replace = move || {
            instance::end(vec![instance], kill_delay);
            lease.start();
        };
        // If there is no thread, the program is killed when this is dropped, and its place given back.
        let _ = thread::Builder::new().name("coprocess".into()).spawn(replace);
    }
}

/// Returns how long to wait before the next start, after so many programs in a row that have answered nothing.
fn pause_after(failures: u32) -> Duration {
    match failures {
        0 => Duration::ZERO,
        1..=5 => Duration::from_secs(1 << (failures - 1)),
        _ => Duration::from_secs(LONGEST_PAUSE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pauses_double_to_half_a_minute() {
        let pauses: Vec<u64> = (0..9).map(|failures| pause_after(failures).as_secs()).collect();
        assert_eq!(pauses, [0, 1, 2, 4, 8, 16, 30, 30, 30]);
    }
}
