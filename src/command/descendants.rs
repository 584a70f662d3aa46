//! Everything that programs start, and what becomes of it when their calls are over.
//!
//! A program can start others that leave its process group (`timeout`, `set -m`), its session (`setsid`), or lose
//! their parent (a double fork). On Linux they are found all the same. What has not lost its parent is below the
//! program in the tree of processes. What has lost it becomes the server's own child, since the server is the
//! subreaper of its descendants (PR_SET_CHILD_SUBREAPER(2const)): such an orphan belongs to the program whose session
//! it is in, or whose cookie it has in its environment. One that has neither belongs to one of the programs that ran
//! when it was started, and is killed when all of those are over.
//!
//! To be cheap where nothing is left, which is nearly always: orphans become children of the server's main thread, and
//! one read(2) tells whether it has any. A thread of its own looks closer.
//!
//! Elsewhere than on Linux, a program's process group is all that is known.

use crate::command::procfs::{self, Pinned, Process};
use crate::command::spawn::{self, Child};
use crate::error::Failure;
use crate::mutex::lock;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::process::{
    Pid, Signal, WaitOptions, getpid, kill_process, kill_process_group, waitpid,
};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::ExitStatus;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// The environment variable with a program's cookie.
pub const COOKIE: &str = "RPC_RUN";

/// How often the thread looks for orphans if nobody asks it to.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// How long it waits from one look to the next: short, since a process that forks and ends again and again is not there
/// for longer.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// How long the exit status of a program that has ended is waited for.
const REAP_LIMIT: Duration = Duration::from_secs(2);

/// How long it rests when there is nothing more to be done.
const LOOK_REST: Duration = Duration::from_millis(20);

/// How long it looks in a row for what a signal should have ended, or for what that left behind.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// How long the end of the server may look for what is left.
const END_LIMIT: Duration = Duration::from_secs(3);

/// The programs that run and, on Linux, all that they have started. Copies are the same one.
#[derive(Clone, Default)]
pub struct Descendants(Arc<Shared>);

#[derive(Default)]
struct Shared {
    /// Whoever has it does nothing meanwhile that can take long.
    runs: Mutex<Runs>,
    /// The number of the last run.
    last: AtomicU64,
    /// What tells this server's cookies from those of others.
    server: OnceLock<String>,
    orphans: OnceLock<Orphans>,
}

/// The programs that there are.
#[derive(Debug, Clone, Default)]
struct Runs {
    /// The programs that were started and are not reaped.
    started: HashMap<Pid, Run>,
    /// When the start of each program began that is being started, by the program's number. A start can take long, if
    /// the program is on the disk of another machine.
    starting: HashMap<u64, u64>,
    /// Whether the server ends: no program can be started or reaped any more.
    are_ending: bool,
}

impl Runs {
    /// Returns whether a process may be a program that is being started.
    fn may_start(&self, process: &Process) -> bool {
        self.starting.values().any(|began| *began <= process.started)
    }

    /// Returns the programs whose calls are not over: their numbers, and when they were started, or began to be.
    fn running(&self) -> impl Iterator<Item = (u64, u64)> {
        let started = self.started.values().filter(|run| !run.is_over);
        let started = started.map(|run| (run.number, run.started));
        started.chain(self.starting.iter().map(|(number, began)| (*number, *began)))
    }
}

/// A program that was started and is not reaped.
#[derive(Debug, Clone, Copy)]
struct Run {
    number: u64,
    /// Ticks since the system's start, not after the program's own start.
    started: u64,
    /// Whether its call is over, though it has not ended yet.
    is_over: bool,
}

/// What it takes to know of orphans.
struct Orphans {
    /// The children of the server's main thread, if the kernel has such a file.
    children: Option<File>,
    /// Wakes the thread that looks.
    wake: Sender<()>,
    /// Children that were there before: of a shell that became the server by `exec`.
    strangers: Vec<Process>,
    /// Whether what has become an orphan can be nothing but a program's descendant.
    are_ours: bool,
}

impl Descendants {
    /// Makes the server adopt what its programs leave behind, and starts the thread that looks for it. Where the
    /// kernel has no such thing, a program's process group is all that is known. To be called once, before the first
    /// program is started. [`crate::error::FailureKind::Internal`] if there is no thread.
    pub fn adopt_orphans(&self) -> Result<(), Failure> {
        let own = getpid();
        // Without /proc, what is adopted would never be found, nor reaped.
        let adopts = Process::find(own).is_some() && is_subreaper();
        let strangers: Vec<Process> = procfs::trees(own, procfs::children(own));
        let path = format!("/proc/{0}/task/{0}/children", own.as_raw_nonzero());
        let (wake, woken) = bounded(1);
        let orphans = Orphans {
            children: File::open(path).ok(),
            wake,
            // The first process of a container gets the orphans of everything in it.
            are_ours: adopts && strangers.is_empty() && !own.is_init(),
            strangers,
        };

        let _ = self.0.orphans.set(orphans);

        let shared = Arc::clone(&self.0);
        let look = move || shared.look_for_ever(&woken);
        let spawned = thread::Builder::new().name("orphans".into()).spawn(look);
        spawned.map(drop).map_err(Failure::internal("cannot start a thread to look for orphans"))
    }

    /// Starts a program by `spawn`, which gets its cookie.
    pub fn start(&self, spawn: impl FnOnce(String) -> io::Result<Child>) -> io::Result<Child> {
        let number = self.0.last.fetch_add(1, Ordering::Relaxed);
        let started = ticks();
        self.0.runs().starting.insert(number, started);

        let child = spawn(self.0.cookie(number));
        let mut runs = lock(&self.0.runs);
        runs.starting.remove(&number);
        if let Ok(child) = &child {
            runs.started.insert(child.pid, Run { number, started, is_over: false });
        }
        drop(runs);
        child
    }

    /// Sends a signal to a program that is not reaped, and once to each process that belongs to it.
    pub fn signal(&self, program: Pid, signal: Signal) {
        let processes = self.0.processes(program);
        if processes.is_empty() {
            signal_group(program, signal);
        }
        processes.iter().for_each(|process| process.signal(signal));
    }

    /// Kills a program that is not reaped, and what belongs to it. What was started meanwhile is killed the next time.
    pub fn kill(&self, program: Pid) {
        self.signal(program, Signal::KILL);
        signal_group(program, Signal::KILL);
    }

    /// Returns whether a program that is not reaped has left anything running that belongs to it.
    pub fn has_left(&self, program: Pid) -> bool {
        self.0.reap_orphans(&self.0.orphans());
        let mut left = self.0.processes(program).into_iter();
        left.any(|process| process.is_alive && process.pid != program)
    }

    /// Reaps a program that has ended, and ends its call: of what it has left running, its process group is killed at
    /// once, and the rest soon, by the thread that looks. The error says why its exit status is not known: a debugger
    /// gets that first (ptrace(2)), and may be in no hurry. The thread that looks reaps it then.
    pub fn finish(&self, program: Pid) -> io::Result<ExitStatus> {
        let until = Instant::now() + REAP_LIMIT;
        loop {
            if let Some(status) = self.try_finish(program)? {
                self.0.look_for_orphans();
                return Ok(status);
            }
            if until <= Instant::now() {
                self.abandon(program);
                return Err(io::Error::other("a debugger holds its exit status back"));
            }
            // Without the lock: nobody else waits for a debugger.
            thread::sleep(LOOK_PAUSE);
        }
    }

    /// Returns None if a program that has ended cannot be reaped yet.
    fn try_finish(&self, program: Pid) -> io::Result<Option<ExitStatus>> {
        let mut runs = self.0.runs();
        // Before it is reaped: after that, its number is free for others.
        signal_group(program, Signal::KILL);
        let status = spawn::try_wait(program);
        if !matches!(status, Ok(None)) {
            runs.started.remove(&program);
        }
        status
    }

    /// Ends the call of a program that has not ended: it cannot be watched, or SIGKILL has no effect since it waits for
    /// a device. The thread that looks kills and reaps it.
    pub fn abandon(&self, program: Pid) {
        if let Some(run) = self.0.runs().started.get_mut(&program) {
            run.is_over = true;
        }
        self.0.wake();
    }

    /// Kills all programs and all that they have started, at once. No program can be started after this.
    pub fn kill_all(&self) {
        // No number becomes free for others from now on: nobody can reap any more.
        lock(&self.0.runs).are_ending = true;

        let began = Instant::now();
        let mut children = None;
        while began.elapsed() < END_LIMIT {
            let runs = lock(&self.0.runs);
            let programs: Vec<Pid> = runs.started.keys().copied().collect();
            let is_starting = !runs.starting.is_empty();
            drop(runs);

            programs.iter().for_each(|program| signal_group(*program, Signal::KILL));
            self.0.kill_orphans(&self.0.orphan_pids(), |orphan| self.0.is_ours(orphan));
            let mut left = self.0.everything(&programs);
            left.retain(|process| process.is_alive);

            // A look misses what loses its parent meanwhile. That is one more child of the server then, as none is reaped.
            let now = procfs::children(getpid()).len();
            let has_missed_none = children.replace(now) == Some(now);
            if left.is_empty() && has_missed_none && !is_starting {
                break;
            }
            left.iter().for_each(|process| process.signal(Signal::KILL));
            thread::sleep(LOOK_PAUSE);
        }
    }
}

impl Shared {
    /// Returns the programs that there are. Does not return when the server ends.
    fn runs(&self) -> MutexGuard<'_, Runs> {
        loop {
            let runs = lock(&self.runs);
            if !runs.are_ending {
                return runs;
            }
            drop(runs);
            thread::park();
        }
    }

    fn cookie(&self, number: u64) -> String {
        format!("{}-{number}", self.server.get_or_init(|| Uuid::new_v4().simple().to_string()))
    }

    /// Returns the number of the run whose cookie a process has, if it is one of this server's.
    fn run_of(&self, process: &Process) -> Option<u64> {
        let cookie = process.variable(COOKIE)?;
        let (server, number) = cookie.split_once('-')?;
        match self.server.get() {
            Some(own) if own == server => number.parse().ok(),
            _ => None,
        }
    }

    fn wake(&self) {
        if let Some(orphans) = self.orphans.get() {
            // If it is full, it is woken already.
            let _ = orphans.wake.try_send(());
        }
    }

    /// Wakes the thread that looks if there are orphans.
    fn look_for_orphans(&self) {
        let Some(Orphans { children: Some(children), .. }) = self.orphans.get() else { return };
        // A read from the file's beginning tells what holds now.
        if children.read_at(&mut [0], 0).is_ok_and(|read| read > 0) {
            self.wake();
        }
    }

    /// Returns the numbers of the server's children that no program is, dead ones too; where the kernel does not tell
    /// them apart, of all its children.
    fn orphan_pids(&self) -> Vec<Pid> {
        let Some(orphans) = self.orphans.get() else { return Vec::new() };
        let Some(children) = &orphans.children else { return procfs::children(getpid()) };
        let mut list = vec![0; 4096];
        loop {
            match children.read_at(&mut list, 0) {
                Ok(read) if read < list.len() => {
                    return procfs::parse_list(&String::from_utf8_lossy(&list[..read]));
                }
                Ok(_) => list.resize(2 * list.len(), 0),
                Err(_) => return Vec::new(),
            }
        }
    }

    /// Returns the server's children that no program is, dead ones too.
    fn orphans(&self) -> Vec<Process> {
        let processes = self.orphan_pids().into_iter().filter_map(Process::find);
        processes.filter(|process| process.parent == Some(getpid())).collect()
    }

    /// Kills each of the server's children `pids` that is doomed, as soon as that is known, and returns all that are
    /// there.
    fn kill_orphans(
        &self,
        pids: &[Pid],
        is_doomed: impl Fn(&Process) -> bool,
    ) -> Vec<(Process, bool)> {
        let mut orphans = Vec::new();
        for pinned in pids.iter().copied().filter_map(Pinned::find) {
            let orphan = pinned.process;
            if orphan.parent != Some(getpid()) {
                continue;
            }
            let is_doomed = orphan.is_alive && is_doomed(&orphan);
            if is_doomed {
                pinned.signal(Signal::KILL);
            }
            orphans.push((orphan, is_doomed));
        }
        orphans
    }

    /// Returns a program that is not reaped and the processes that belong to it, dead ones too; nothing, where nothing is
    /// known of processes.
    fn processes(&self, program: Pid) -> Vec<Process> {
        let number = self.runs().started.get(&program).map(|run| run.number);
        let belongs = |orphan: &Process| {
            orphan.session == Some(program) || number.is_some() && self.run_of(orphan) == number
        };
        let orphans = self.orphans().into_iter().filter(belongs).map(|orphan| orphan.pid);
        let mut roots: Vec<Pid> = orphans.filter(|orphan| *orphan != program).collect();
        roots.push(program);
        procfs::trees(getpid(), roots)
    }

    /// Returns all processes that one of `programs` has started, or one that is over.
    fn everything(&self, programs: &[Pid]) -> Vec<Process> {
        let is_ours = |pid: &Pid| {
            programs.contains(pid)
                || Process::find(*pid).is_some_and(|process| self.is_ours(&process))
        };
        let own = getpid();
        procfs::trees(own, procfs::children(own).into_iter().filter(is_ours))
    }

    /// Returns whether a child of the server that no program is comes from a program.
    fn is_ours(&self, orphan: &Process) -> bool {
        let Some(orphans) = self.orphans.get() else { return false };
        !orphans.is_stranger(orphan) && (orphans.are_ours || self.run_of(orphan).is_some())
    }

    /// Reaps what has ended of `orphans`, and returns whether there was anything.
    fn reap_orphans(&self, orphans: &[Process]) -> bool {
        if orphans.iter().all(|orphan| orphan.is_alive) {
            return false;
        }
        let runs = self.runs();
        let mut has_reaped = false;
        for orphan in orphans.iter().filter(|orphan| !orphan.is_alive) {
            // The status of a program is for whoever waits for the program.
            if !runs.started.contains_key(&orphan.pid) && !runs.may_start(orphan) {
                has_reaped |= reap(orphan.pid);
            }
        }
        has_reaped
    }

    fn look_for_ever(&self, woken: &Receiver<()>) {
        while woken.recv_timeout(LOOK_INTERVAL) != Err(RecvTimeoutError::Disconnected) {
            let started = Instant::now();
            while self.look() && started.elapsed() < LOOK_LIMIT {
                thread::sleep(LOOK_PAUSE);
            }
            thread::sleep(LOOK_REST);
        }
    }

    /// Reaps what has ended, and kills what belongs to no program that runs. Returns whether there was anything.
    fn look(&self) -> bool {
        let pids = self.orphan_pids();
        // After that: an orphan that is nobody's then stays so.
        let runs = self.runs().clone();
        let orphans = self.kill_orphans(&pids, |orphan| self.is_left_behind(orphan, &runs));

        let doomed = orphans.iter().filter(|(_, is_doomed)| *is_doomed);
        let doomed = procfs::trees(getpid(), doomed.map(|(orphan, _)| orphan.pid));
        doomed.iter().for_each(|process| process.signal(Signal::KILL));

        let abandoned = runs.started.iter().filter(|(_, run)| run.is_over);
        let reaped = abandoned.filter(|(program, _)| self.reap_abandoned(**program)).count();
        let orphans: Vec<Process> = orphans.into_iter().map(|(orphan, _)| orphan).collect();
        self.reap_orphans(&orphans) || reaped > 0 || !doomed.is_empty()
    }

    /// Returns whether an orphan belongs to no program that runs.
    fn is_left_behind(&self, orphan: &Process, runs: &Runs) -> bool {
        let Some(orphans) = self.orphans.get() else { return false };
        if runs.started.contains_key(&orphan.pid) || orphans.is_stranger(orphan) {
            return false;
        }
        // The number of a session is not given to anything else as long as a process is in it.
        let session = orphan.session.and_then(|session| runs.started.get(&session));
        match (session, self.run_of(orphan)) {
            (Some(run), _) => run.is_over,
            (None, Some(number)) => runs.running().all(|(other, _)| other != number),
            (None, None) => {
                orphans.are_ours && runs.running().all(|(_, began)| began > orphan.started)
            }
        }
    }

    fn reap_abandoned(&self, program: Pid) -> bool {
        self.processes(program).iter().for_each(|process| process.signal(Signal::KILL));
        let mut runs = self.runs();
        // It may have been seen so some time ago.
        let is_reaped = runs.started.get(&program).is_some_and(|run| run.is_over) && reap(program);
        if is_reaped {
            runs.started.remove(&program);
        }
        is_reaped
    }
}

impl Orphans {
    fn is_stranger(&self, process: &Process) -> bool {
        let is_same = |stranger: &&Process| stranger.pid == process.pid;
        self.strangers.iter().find(is_same).is_some_and(|same| same.started == process.started)
    }
}

/// Makes this process adopt its descendants that lose their parents. False: there is no such thing here.
#[cfg(target_os = "linux")]
fn is_subreaper() -> bool {
    rustix::process::set_child_subreaper(Some(getpid())).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn is_subreaper() -> bool {
    false
}

/// Returns the ticks since the system's start, as proc_pid_stat(5) has them.
#[cfg(target_os = "linux")]
fn ticks() -> u64 {
    use rustix::param::clock_ticks_per_second;
    use rustix::time::{ClockId, clock_gettime};

    let now = clock_gettime(ClockId::Boottime);
    let (seconds, nanoseconds) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    let per_second = clock_ticks_per_second();
    seconds * per_second + nanoseconds * per_second / 1_000_000_000
}

#[cfg(not(target_os = "linux"))]
fn ticks() -> u64 {
    0
}

/// Signals the process group of a program that is not reaped, and the program itself, which can have gone into another
/// one.
fn signal_group(program: Pid, signal: Signal) {
    let _ = kill_process_group(program, signal);
    let _ = kill_process(program, signal);
}

/// Reaps a child, if it has ended.
fn reap(pid: Pid) -> bool {
    matches!(waitpid(Some(pid), WaitOptions::NOHANG), Ok(Some(_)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn start(descendants: &Descendants, script: &std::ffi::CStr) -> Child {
        let words = [c"sh".into(), c"-c".into(), script.into()];
        let start = |cookie: String| {
            let mut environment = spawn::inherited(&[]);
            environment.extend(spawn::variable(COOKIE, &cookie));
            spawn::spawn(Path::new("/bin/sh"), &words, &environment)
        };
        descendants.start(start).unwrap()
    }

    #[test]
    fn a_program_that_is_given_up_is_killed_and_reaped() {
        let descendants = Descendants::default();
        let child = start(&descendants, c"trap '' TERM; cat");
        descendants.signal(child.pid, Signal::TERM);
        descendants.abandon(child.pid);
        while !lock(&descendants.0.runs).started.is_empty() {
            descendants.0.look();
            thread::yield_now();
        }
        assert!(Process::find(child.pid).is_none_or(|process| process.parent != Some(getpid())));
    }

    /// On the disk of another machine, a program can take any time to start.
    #[test]
    fn a_program_that_does_not_start_keeps_nobody_waiting() {
        let descendants = Descendants::default();
        let (go, gone) = bounded::<()>(0);
        let (tell, told) = bounded(1);
        let stuck = descendants.clone();
        let starts = thread::spawn(move || {
            stuck.start(|_| {
                tell.send(()).unwrap();
                let _ = gone.recv();
                Err(io::ErrorKind::NotFound.into())
            })
        });
        told.recv().unwrap();

        let (sender, done) = bounded(1);
        let others = descendants.clone();
        thread::spawn(move || {
            let child = start(&others, c"exit 3");
            others.0.look();
            let status = loop {
                match others.try_finish(child.pid).unwrap() {
                    Some(status) => break status,
                    None => thread::yield_now(),
                }
            };
            others.kill_all();
            sender.send(status.code()).unwrap();
        });
        let code = done.recv_timeout(Duration::from_secs(60));
        drop(go);
        assert!(starts.join().unwrap().is_err());
        assert!(code.is_ok(), "they wait for it");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_belongs_to_a_program_that_runs() {
        let descendants = Descendants::default();
        let children = [c"cat; :", c"cat; :"].map(|script| start(&descendants, script));
        let [one, two] = children.each_ref().map(|child| child.pid);
        for program in [one, two] {
            while descendants.0.processes(program).len() < 2 {
                thread::yield_now();
            }
            assert!(descendants.has_left(program));
        }

        descendants.kill(one);
        while descendants.has_left(one) {
            thread::yield_now();
        }
        descendants.finish(one).unwrap();
        assert!(descendants.has_left(two));

        drop(children);
        assert!(descendants.finish(two).is_ok());
    }
}
