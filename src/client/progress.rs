//! The progress line: on standard error, while a long batch runs whose results go to a file.

use crate::cli::{self, Format};
use crate::client::call::Call;
use crate::client::input::Skipped;
use crate::terminal::output;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use std::fmt::{self, Write};
use std::fs::File;
use std::io::{self, IsTerminal, Seek};
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// A batch that is over sooner shows no progress.
const SHOWN_AFTER: Duration = Duration::from_secs(1);

/// How many calls are done, how fast, and how long the others may take.
pub struct Progress {
    /// The line itself.
    pub bar: ProgressBar,
    /// How many calls are asked for, skipped ones too, if that is known.
    calls: Option<u64>,
    /// How many bytes of a file on standard input the calls have, and how many the finished ones.
    bytes: Option<(u64, u64)>,
    counts: Counts,
}

/// What is told of the calls beside their number, if there are any such.
#[derive(Debug, Default)]
struct Counts {
    failed: u64,
    retried: u64,
    skipped: u64,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Counts { failed, retried, skipped } = self;
        let counts = [(failed, "failed"), (retried, "made again"), (skipped, "skipped")];
        for (count, what) in counts.into_iter().filter(|(count, _)| **count > 0) {
            write!(f, ", {count} {what}")?;
        }
        Ok(())
    }
}

impl Progress {
    /// Makes the progress line. None where it is not wanted: with `--quiet`; where standard error is not a terminal that can be
    /// drawn on; where standard output is neither a file nor a device such as `/dev/null`. On the same
    /// terminal the results themselves show how far it is, and a pipe's other end may write to it.
    ///
    /// To be made before anything of standard input is read, whose size it takes.
    pub fn new(args: &cli::Client) -> Option<Progress> {
        let draws = !args.common.quiet && !ProgressDrawTarget::stderr().is_hidden();
        let has_files = args.output.is_some() && matches!(args.format, Format::Plain | Format::Raw);
        if !draws || !has_files && !goes_to_a_file() {
            return None;
        }
        let calls = args.calls();
        let bytes = if calls.is_none() { bytes_on_stdin() } else { None };
        let (total, left) = match (calls, bytes) {
            (Some(_), _) => (" of {len}", ", {eta} left"),
            (None, Some(_)) => (" of about {len}", ", {eta} left"),
            (None, None) => ("", ""),
        };

        let line = format!("{{spinner}} {{pos}}{total} calls{{msg}}, {{rate}}, {{elapsed}}{left}");
        let style = ProgressStyle::with_template(&line)
            .unwrap_or_else(|_| ProgressStyle::default_spinner())
            .with_key("rate", rate);
        let bar = ProgressBar::with_draw_target(calls, ProgressDrawTarget::hidden());
        let bar = output::PROGRESS.get_or_init(|| bar.with_style(style)).clone();
        let bytes = bytes.map(|all| (all.saturating_mul(args.repeat), 0));
        Some(Progress { bar, calls, bytes, counts: Counts::default() })
    }

    /// Counts another finished call, which has failed or not. The first one of all `began` then, and those were `skipped`
    /// by now.
    pub fn advance(
        &mut self,
        call: &Call,
        has_failed: bool,
        began: Option<Instant>,
        skipped: &Skipped,
    ) {
        let (skipped, skipped_bytes) = (skipped.calls.load(Relaxed), skipped.bytes.load(Relaxed));
        self.bar.inc(1);
        self.counts.failed += u64::from(has_failed);
        self.counts.retried += u64::from(call.attempts.saturating_sub(1));
        self.counts.skipped = skipped;
        self.bar.set_message(self.counts.to_string());
        if let Some(calls) = self.calls {
            self.bar.set_length(calls.saturating_sub(skipped));
        }
        if let (Some((all, done)), Some(_)) = (&mut self.bytes, call.argument.line) {
            *done += call.argument.bytes.len() as u64 + 1;
            // As if those that are skipped were not there.
            let all = all.saturating_sub(skipped_bytes);
            self.bar.set_length(estimate(self.bar.position(), all, *done));
        }
        if self.bar.is_hidden() && began.is_some_and(|began| began.elapsed() > SHOWN_AFTER) {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
            self.bar.enable_steady_tick(SHOWN_AFTER);
        }
    }
}

/// Estimates how many calls there are, if `calls` of them have `done` bytes and all have `all`.
fn estimate(calls: u64, all: u64, done: u64) -> u64 {
    let estimate = u128::from(calls) * u128::from(all) / u128::from(done.max(1));
    calls.max(u64::try_from(estimate).unwrap_or(u64::MAX))
}

fn rate(state: &ProgressState, line: &mut dyn Write) {
    // If it cannot be written, it is not shown.
    let _ = match state.per_sec() {
        slow if slow < 1.0 => write!(line, "{:.0}/min", 60.0 * slow),
        fast => write!(line, "{fast:.0}/s"),
    };
}

fn goes_to_a_file() -> bool {
    use std::os::unix::fs::FileTypeExt;
    let stdout = io::stdout();
    let kind = file(&stdout).and_then(|file| Ok(file.metadata()?.file_type()));
    kind.is_ok_and(|kind| kind.is_file() || kind.is_char_device() && !stdout.is_terminal())
}

/// Returns how many bytes there are to read, if standard input is a file.
fn bytes_on_stdin() -> Option<u64> {
    let mut stdin = file(io::stdin()).ok()?;
    let metadata = stdin.metadata().ok().filter(|metadata| metadata.is_file())?;
    Some(metadata.len().saturating_sub(stdin.stream_position().ok()?))
}

fn file(stream: impl AsFd) -> io::Result<File> {
    Ok(stream.as_fd().try_clone_to_owned()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_there_is_is_told() {
        assert_eq!(Counts::default().to_string(), "");
        let counts = Counts { failed: 3, retried: 0, skipped: 7 };
        assert_eq!(counts.to_string(), ", 3 failed, 7 skipped");
    }

    #[test]
    fn the_number_of_calls_is_estimated_by_their_bytes() {
        assert_eq!(estimate(0, 100, 0), 0);
        assert_eq!(estimate(10, 100, 20), 50);
        assert_eq!(estimate(10, 100, 101), 10, "a last line without an end");
        assert_eq!(estimate(u64::MAX, u64::MAX, 1), u64::MAX);
    }
}
