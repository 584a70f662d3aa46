//! What a server does wrong on purpose, for teaching and for tests: `rpc_server --drill`.
//!
//! A drill is a fault that other systems have by accident. The server's loop asks at the place
//! where each would strike, and logs it when it does.

use crate::terminal::output;
use clap::ValueEnum;
use log::warn;
use signal_hook::consts::SIGKILL;
use signal_hook::low_level;
use std::fmt;
use std::time::Duration;

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Drill {
    /// Dies at the first request, once it is computed, before the reply.
    CrashBeforeReply,
    /// Dies at the first request, when the broker has the reply, before the ack.
    CrashBeforeAck,
    /// Publishes every reply twice.
    DuplicateReply,
    /// Publishes every reply with an id that no client awaits.
    WrongCorrelationId,
    /// Waits that long before it computes.
    #[value(skip)]
    Slow(Duration),
    /// Every procedure fails.
    Fail,
}

impl Drill {
    /// How each is written.
    pub const FORMS: [&str; 6] = [
        "crash-before-reply",
        "crash-before-ack",
        "duplicate-reply",
        "wrong-correlation-id",
        "slow=DURATION",
        "fail",
    ];
}

impl fmt::Display for Drill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Drill::Slow(delay) => write!(f, "slow={}", humantime::format_duration(*delay)),
            named => named.to_possible_value().map_or(Ok(()), |name| f.write_str(name.get_name())),
        }
    }
}

/// Logs that `drill` strikes, and how.
pub fn announce(drill: Drill, what: fmt::Arguments<'_>) {
    warn!("drill {drill}: {what}");
}

/// Ends the process as `kill -9` does: nothing is finished, nothing given back, nobody told, apart from what
/// [`announce`] told.
pub fn crash() -> ! {
    output::finish();
    let _ = low_level::raise(SIGKILL);
    // Should the system take its time, or spare the first process of a container (pid_namespaces(7)).
    std::process::abort()
}
