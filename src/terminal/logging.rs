//! Diagnostics on standard error, each on one line with the program's name in front.

use crate::terminal::output;
use env_filter::{Builder, Filter};
use log::{LevelFilter, Log, Metadata, Record, warn};

/// The module of the client library whose log of the login shows the password. Whatever RUST_LOG
/// says, that is not for anybody's eyes.
const SECRET: &str = "amiquip::io_loop::handshake_state";

struct Logger {
    program: &'static str,
    filter: Filter,
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.filter.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let (program, target) = (self.program, record.target());
        if !self.filter.matches(record) || target.starts_with(SECRET) {
            return;
        }
        match target.starts_with("fib_rpc") || target.starts_with(program) {
            true => output::error_line(program, *record.args()),
            false => output::error_line(program, format_args!("[{target}] {}", record.args())),
        }
    }

    fn flush(&self) {}
}

/// Starts logging for `program`: warnings, unless `quiet`; with `verbose` of 1 each AMQP step, of
/// 2 details, of 3 the client library's log too. The environment variable `RUST_LOG` overrides
/// both.
pub fn init(program: &'static str, quiet: bool, verbose: u8) {
    let (ours, theirs) = match (quiet, verbose) {
        (true, _) => (LevelFilter::Error, LevelFilter::Off),
        (_, 0) => (LevelFilter::Warn, LevelFilter::Off),
        (_, 1) => (LevelFilter::Info, LevelFilter::Off),
        (_, 2) => (LevelFilter::Debug, LevelFilter::Off),
        (_, _) => (LevelFilter::Trace, LevelFilter::Trace),
    };
    let mut levels = Builder::new();
    levels
        .filter_level(LevelFilter::Off)
        .filter_module("amiquip", theirs)
        .filter_module("fib_rpc", ours)
        .filter_module(program, ours);
    let rules = std::env::var("RUST_LOG").ok().filter(|rules| !rules.is_empty());
    let given = rules.map(|rules| Builder::new().try_parse(&rules).map(Builder::build));
    let (filter, error) = match given {
        Some(Ok(filter)) => (filter, None),
        unusable => (levels.build(), unusable.and_then(Result::err)),
    };
    log::set_max_level(filter.filter());
    // It fails if there is a logger already, which then goes on.
    let _ = log::set_logger(Box::leak(Box::new(Logger { program, filter })));
    if let Some(error) = error {
        warn!("RUST_LOG is ignored: {error}");
    }
    std::panic::set_hook(Box::new(|panic| {
        // The client library's I/O thread can panic when both sides close at once. What that comes
        // to, its caller is told as an error.
        match std::thread::current().name() {
            Some("amiquip-io") => log::debug!("{panic}"),
            _ => log::error!("internal error: {panic}"),
        }
    }));
}
