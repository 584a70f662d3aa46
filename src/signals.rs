//! SIGINT and SIGTERM: the first asks, the second ends.

use crate::exit::{Failure, Kind};
use crossbeam_channel::{Receiver, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use signal_hook::iterator::Signals;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

/// A channel that gets a message when the first SIGINT or SIGTERM comes. A second one ends the
/// process at once by that signal, so that a shell sees 130 or 143.
///
/// # Errors
///
/// [`Kind::Internal`], if the system takes no handler.
pub fn stop_requests() -> Result<Receiver<()>, Failure> {
    let failure = |error: std::io::Error| {
        Failure::new(Kind::Internal, format!("cannot handle signals: {error}"))
    };
    let asked = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // In this order the first signal does not yet find the flag that it sets.
        flag::register_conditional_default(signal, Arc::clone(&asked)).map_err(failure)?;
        flag::register(signal, Arc::clone(&asked)).map_err(failure)?;
    }
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(failure)?;
    let (tell, stop) = bounded(1);
    let wait = move || {
        signals.forever().next();
        let _ = tell.send(());
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map_err(failure)?;
    Ok(stop)
}
