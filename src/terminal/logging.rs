//! Diagnostics on standard error, each on one line with the program's name in front.

use crate::terminal::output;
use env_filter::ParseError;
use env_logger::Builder;
use log::{LevelFilter, warn};

/// The module of the client library whose log of the login shows the password. Whatever RUST_LOG
/// says, that is not for anybody's eyes.
const SECRET: &str = "amiquip::io_loop::handshake_state";

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

    let mut builder = Builder::new();
    let rules = std::env::var("RUST_LOG").unwrap_or_default();
    let checked = check(&rules);
    if rules.is_empty() || checked.is_err() {
        builder
            .filter_level(LevelFilter::Off)
            .filter_module("amiquip", theirs)
            .filter_module("fib_rpc", ours)
            .filter_module(program, ours);
    } else {
        builder.parse_filters(&rules);
    }

    builder.format(move |_, record| {
        match record.target() {
            target if target.starts_with(SECRET) => {}
            target if target.starts_with("fib_rpc") || target.starts_with(program) => {
                output::error_line(program, *record.args());
            }
            target => output::error_line(program, format_args!("[{target}] {}", record.args())),
        }
        Ok(())
    });

    // Fails if there is a logger already, which then goes on.
    let _ = builder.try_init();
    if let Err(error) = checked {
        warn!("RUST_LOG is ignored: {error}");
    }

    std::panic::set_hook(Box::new(|panic| {
        // The client library's I/O thread can panic when both sides close at once. What that comes
        // to, its caller is told as an error.
        match std::thread::current().name() {
            Some("amiquip-io") => log::debug!("{panic}"),
            // The process ends with its main thread.
            Some("main") => {
                log::error!("internal error: {panic}");
                output::finish();
            }
            _ => log::error!("internal error: {panic}"),
        }
    }));
}

/// Returns what is wrong with `rules`. env_logger would tell it as it stands there, control characters and all.
fn check(rules: &str) -> Result<(), ParseError> {
    env_filter::Builder::new().try_parse(rules).map(drop)
}
