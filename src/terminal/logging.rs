//! Diagnostics on stderr, each line with the program's name in front.

use env_logger::Builder;
use log::LevelFilter;
use std::io::Write;

/// Starts logging for `program`: warnings, unless `quiet`; with `verbose` of 1 each AMQP step, of
/// 2 details, of 3 the client library's log too. The environment variable `RUST_LOG` overrides
/// both.
pub fn init(program: &'static str, quiet: bool, verbose: u8) {
    let ours = match (quiet, verbose) {
        (true, _) => LevelFilter::Error,
        (_, 0) => LevelFilter::Warn,
        (_, 1) => LevelFilter::Info,
        (_, 2) => LevelFilter::Debug,
        (_, _) => LevelFilter::Trace,
    };
    let theirs = if !quiet && verbose > 2 { LevelFilter::Trace } else { LevelFilter::Off };
    let mut builder = Builder::new();
    match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.is_empty() => builder.parse_filters(&filter),
        _ => builder
            .filter_level(LevelFilter::Off)
            .filter_module("amiquip", theirs)
            .filter_module("fib_rpc", ours)
            .filter_module(program, ours),
    };
    builder
        .format(move |line, record| {
            // The library's log of the login shows the password. Whatever RUST_LOG says, that
            // module's log is not for anybody's eyes.
            if record.target().starts_with("amiquip::io_loop::handshake_state") {
                return Ok(());
            }
            match record.target() {
                target if target.starts_with("fib_rpc") || target.starts_with(program) => {
                    writeln!(line, "{program}: {}", record.args())
                }
                target => writeln!(line, "{program}: [{target}] {}", record.args()),
            }
        })
        .init();
    std::panic::set_hook(Box::new(|panic| {
        // The client library's I/O thread can panic when both sides close at once. What that comes
        // to, its caller is told as an error.
        match std::thread::current().name() {
            Some("amiquip-io") => log::debug!("{panic}"),
            _ => log::error!("internal error: {panic}"),
        }
    }));
}
