//! SIGINT, SIGTERM and SIGHUP: the first asks, the second ends.

use crate::error::Failure;
use crossbeam_channel::{Receiver, bounded};
use nix::libc;
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGTERM, SIGXFSZ};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use signal_hook::low_level;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;
use std::{process, thread};

/// Signals so close together are one request: timeout(1) sends its signal to its child, and again to
/// the group that the child is in.
const TOGETHER: Duration = Duration::from_millis(100);

/// A request to stop: the signal's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop(i32);

impl Stop {
    /// Ends the process by the signal, as if there had been no handler: a shell sees 130, 143 or 129,
    /// and one that runs a loop ends the loop too, which an exit code would not make it do.
    pub fn end_process(self) -> ! {
        // The first process of a container is spared such signals (pid_namespaces(7)).
        if process::id() != 1 {
            let _ = low_level::emulate_default_handler(self.0);
        }
        process::exit(128 + self.0)
    }
}

/// Makes sure that the system keeps the exit status of a child until it is asked for. It does not where whoever
/// started this process ignores SIGCHLD, which is inherited (sigaction(2)).
/// [`crate::error::FailureKind::Internal`] if the system takes no handler.
pub fn handle_sigchld() -> Result<(), Failure> {
    handle(SIGCHLD)
}

/// Makes an error (EFBIG) of a write to a file that has reached its limit, `ulimit -f`, as on a full disk. By default
/// the signal that comes with it ends the process (setrlimit(2)). A handler, since a program that is started later would
/// inherit that it is ignored.
/// [`crate::error::FailureKind::Internal`] if the system takes no handler.
pub fn handle_sigxfsz() -> Result<(), Failure> {
    handle(SIGXFSZ)
}

/// Handles a signal by doing nothing.
fn handle(signal: i32) -> Result<(), Failure> {
    let registered = flag::register(signal, Arc::default());
    registered.map(drop).map_err(Failure::internal("cannot handle signals"))
}

/// Returns whether SIGHUP is ignored, which is inherited.
fn is_hangup_ignored() -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: Without a new action, sigaction(2) changes nothing, and writes the present one where it is told.
    let is_known = unsafe { libc::sigaction(libc::SIGHUP, ptr::null(), action.as_mut_ptr()) } == 0;
    // SAFETY: It is written; before that, zeros are an action too.
    is_known && unsafe { action.assume_init() }.sa_sigaction == libc::SIG_IGN
}

/// Returns a channel that gets the first SIGINT, SIGTERM or SIGHUP. When a second one comes, not together with it, `at_end`
/// is called, and the process ends by that signal, so that a shell sees 130, 143 or 129. If the process is still there
/// `limit` after the first one, it ends by that one, whatever it waits for. SIGHUP, which tells that the terminal is
/// closed, stays ignored if whoever started this process ignores it (nohup(1)).
/// [`crate::error::FailureKind::Internal`] if the system takes no handler.
pub fn stop_requests(
    limit: Option<Duration>,
    at_end: impl Fn() + Send + 'static,
) -> Result<Receiver<Stop>, Failure> {
    let failure = Failure::internal("cannot handle signals");
    let handled: &[i32] =
        if is_hangup_ignored() { &[SIGINT, SIGTERM] } else { &[SIGINT, SIGTERM, SIGHUP] };
    let mut signals = Signals::new(handled).map_err(failure)?;
    let (tell, stop) = bounded(1);
    let wait = move || {
        let Some(first) = signals.forever().next() else { return };
        let _ = tell.send(Stop(first));
        thread::sleep(TOGETHER);
        signals.pending().for_each(drop);
        if let Some(limit) = limit {
            let end = move || {
                thread::sleep(limit);
                Stop(first).end_process();
            };
            let _ = thread::Builder::new().name("limit".into()).spawn(end);
        }
        if let Some(second) = signals.forever().next() {
            at_end();
            Stop(second).end_process();
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map_err(failure)?;
    Ok(stop)
}
