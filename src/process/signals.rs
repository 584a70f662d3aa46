//! SIGINT and SIGTERM: the first asks, the second ends.

use crate::error::{Failure, FailureKind};
use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::{flag, low_level};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// Signals so close together are one request: timeout(1) sends its signal to its child, and again to
/// the group that the child is in.
const TOGETHER: Duration = Duration::from_millis(100);

/// A request to stop: the signal's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stop(i32);

impl Stop {
    /// Ends the process by the signal, as if there had been no handler: a shell sees 130 or 143,
    /// and one that runs a loop ends the loop too, which an exit code would not make it do.
    pub fn end_process(self) -> ExitCode {
        let _ = low_level::emulate_default_handler(self.0);
        // Not reached, for the two signals that there are.
        ExitCode::from(128u8.saturating_add(self.0 as u8))
    }
}

/// A channel that gets the first SIGINT or SIGTERM that comes. A second one, not sent together with
/// it, ends the process at once by that signal, so that a shell sees 130 or 143. So does the first
/// when the process goes on for longer than `limit`, whatever it waits for; None: for ever.
///
/// # Errors
///
/// [`FailureKind::Internal`], if the system takes no handler.
pub fn stop_requests(limit: Option<Duration>) -> Result<Receiver<Stop>, Failure> {
    let failure = |error: std::io::Error| {
        Failure::new(FailureKind::Internal, format!("cannot handle signals: {error}"))
    };
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        flag::register_conditional_default(signal, Arc::clone(&asked)).map_err(failure)?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failure)?;
    let (tell, stop) = bounded(1);
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            let _ = tell.send(Stop(signal));
            thread::sleep(TOGETHER);
            asked.store(true, Ordering::SeqCst);
            if let Some(limit) = limit {
                thread::sleep(limit);
                Stop(signal).end_process();
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map_err(failure)?;
    Ok(stop)
}
