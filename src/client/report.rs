//! What the client tells of its calls: results on standard output, failures on stderr, and how long
//! it all took.

use crate::cli::{self, Format};
use crate::client::calls::{Call, Outcome};
use crate::error::{Failure, FailureKind, ProgramError};
use crate::terminal::output;
use crate::terminal::text::{self, excerpt};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;
use std::borrow::Cow;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How many bytes of results are written together.
const OUT_CAPACITY: usize = 64 << 10;

/// A batch that is over sooner shows no progress bar.
const LONG: Duration = Duration::from_secs(1);

/// Latencies that are told apart, in microseconds: a day, to three digits. A longer one counts as
/// that.
const LONGEST_LATENCY: u64 = 86_400_000_000;

/// Tells of calls as they are done, and counts them.
pub struct Report<'a> {
    program: &'static str,
    /// Results that came together are written together.
    out: BufWriter<Stdout>,
    is_terminal: bool,
    args: &'a cli::Client,
    format: Format,
    /// When the first call was begun.
    started: Option<Instant>,
    failed: u64,
    first_failure: Option<FailureKind>,
    /// Microseconds from publication to outcome. Its size does not grow with the number of calls.
    latencies: Histogram<u64>,
    progress: Option<ProgressBar>,
}

/// One call, as JSON.
#[derive(Serialize)]
struct Json<'a> {
    procedure: &'a str,
    argument: &'a str,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<JsonError<'a>>,
    elapsed_ms: f64,
    attempts: u32,
    correlation_id: Option<&'a str>,
}

#[derive(Serialize)]
struct JsonError<'a> {
    kind: &'static str,
    message: &'a str,
}

/// JSON in which characters that are harmful to a terminal are escapes, all of them, wherever it goes.
struct Harmless;

impl Formatter for Harmless {
    fn write_string_fragment<W>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()>
    where
        W: ?Sized + Write,
    {
        for part in fragment.split_inclusive(text::is_harmful) {
            let end = part.find(text::is_harmful).unwrap_or(part.len());
            writer.write_all(&part.as_bytes()[..end])?;
            for unit in part[end..].encode_utf16() {
                write!(writer, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

impl<'a> Report<'a> {
    /// A report for `program` in the format that `args` ask for.
    pub fn new(program: &'static str, args: &'a cli::Client) -> Report<'a> {
        let is_terminal = io::stdout().is_terminal();
        let format = match args.format {
            Format::Auto | Format::Transcript if args.common.quiet => Format::Plain,
            Format::Auto if is_terminal => Format::Transcript,
            Format::Auto => Format::Plain,
            given => given,
        };
        // On the same terminal the results themselves show how far it is.
        let wanted = !args.common.quiet && !is_terminal && io::stderr().is_terminal();
        let latencies = Histogram::new_with_bounds(1, LONGEST_LATENCY, 3);
        Report {
            program,
            out: BufWriter::with_capacity(OUT_CAPACITY, io::stdout()),
            is_terminal,
            args,
            format,
            started: None,
            failed: 0,
            first_failure: None,
            latencies: latencies.unwrap_or_else(|_| unreachable!("these bounds are sound")),
            progress: wanted.then(progress_bar),
        }
    }

    /// Tells that a call is about to be published for the first time.
    ///
    /// # Errors
    ///
    /// Those of [`output::check`] and [`output::written`].
    pub fn announce(&mut self, call: &Call) -> Result<(), ProgramError> {
        output::check()?;
        self.started.get_or_insert(call.started);
        match self.format {
            Format::Transcript => {
                let name = self.name(call);
                let name = text::one_line(&name);
                output::written(writeln!(self.out, " [x] Requesting {name}"))?;
                // Before what -v tells of its publication.
                self.flush()
            }
            _ => Ok(()),
        }
    }

    /// Makes sure that what was told can be read: to be called before a wait.
    ///
    /// # Errors
    ///
    /// Those of [`output::written`].
    pub fn flush(&mut self) -> Result<(), ProgramError> {
        output::written(self.out.flush())
    }

    /// Writes a call's outcome.
    fn write_one(&mut self, call: &Call, outcome: &Outcome) -> Result<(), ProgramError> {
        self.add_up(call, outcome);
        if let Some(bar) = &self.progress {
            bar.inc(1);
            if self.elapsed() > LONG && bar.is_hidden() {
                bar.set_draw_target(ProgressDrawTarget::stderr());
            }
        }
        match (self.format, outcome) {
            (Format::Json, _) => output::written(self.write_json(call, outcome)),
            (format, Ok(result)) => {
                let got = if format == Format::Transcript { " [.] Got " } else { "" };
                let result = match self.is_terminal {
                    true => Cow::from(
                        text::on_terminal(&String::from_utf8_lossy(result))
                            .into_owned()
                            .into_bytes(),
                    ),
                    false => Cow::from(result.as_slice()),
                };
                output::written(
                    (self.out.write_all(got.as_bytes()))
                        .and_then(|()| self.out.write_all(&result))
                        .and_then(|()| self.out.write_all(b"\n")),
                )
            }
            (_, Err(failure)) => {
                // In the order in which they were told, should both streams go to one terminal.
                self.flush()?;
                let line = call.line.map_or(String::new(), |number| format!("line {number}: "));
                self.error_line(format_args!("{line}{}: {}", self.name(call), explained(failure)));
                Ok(())
            }
        }
    }

    /// Takes a call into account that could not even be begun. JSON has an object for it too; what
    /// there is to say in other formats is not said for each.
    ///
    /// # Errors
    ///
    /// Those of [`output::check`] and [`output::written`].
    pub fn write_unmade(&mut self, call: &Call, outcome: &Outcome) -> Result<(), ProgramError> {
        self.started.get_or_insert(call.started);
        match self.format {
            Format::Json => {
                output::check()?;
                self.write_one(call, outcome)
            }
            _ => {
                self.add_up(call, outcome);
                Ok(())
            }
        }
    }

    /// Adds a call to the statistics.
    fn add_up(&mut self, call: &Call, outcome: &Outcome) {
        let elapsed = call.ended.duration_since(call.started);
        self.latencies.saturating_record(elapsed.as_micros() as u64);
        if let Err(failure) = outcome {
            self.failed += 1;
            self.count(failure.kind);
        }
    }

    /// Writes the outcomes of calls.
    ///
    /// # Errors
    ///
    /// Those of [`output::written`].
    pub fn write(
        &mut self,
        finished: impl Iterator<Item = (Call, Outcome)>,
    ) -> Result<(), ProgramError> {
        for (call, outcome) in finished {
            self.write_one(&call, &outcome)?;
        }
        Ok(())
    }

    /// Tells why no more calls are made; or, if none `was_made`, no call at all.
    pub fn no_more_calls(&mut self, failure: &Failure, was_made: bool) {
        let what = match was_made {
            true => "no more calls are made".into(),
            false => excerpt(self.args.procedure.as_bytes()),
        };
        self.error_line(format_args!("{what}: {failure}"));
        self.count(failure.kind);
    }

    /// Whether a call was begun.
    pub fn has_begun(&self) -> bool {
        self.started.is_some()
    }

    /// Takes a failure into account: the first one gives the exit code.
    fn count(&mut self, kind: FailureKind) {
        self.first_failure.get_or_insert(kind);
    }

    /// Tells, if it was asked for, how the calls went; the exit code is the first failure's.
    ///
    /// # Errors
    ///
    /// Those of [`output::written`].
    pub fn end(&mut self) -> Result<ExitCode, ProgramError> {
        self.flush()?;
        if let Some(bar) = &self.progress {
            bar.finish_and_clear();
        }
        if self.args.stats {
            let made = self.latencies.len();
            let seconds = self.elapsed().as_secs_f64();
            let rate = if made > 0 { made as f64 / seconds } else { 0.0 };
            let calls = text::count(made, "call", "calls");
            let ms = |microseconds: u64| microseconds as f64 / 1e3;
            let at = |quantile| ms(self.latencies.value_at_quantile(quantile));
            self.error_line(format_args!(
                "{calls}, {} failed, {rate:.1} calls/s, p50 {:.3} ms, p90 {:.3} ms, p99 {:.3} ms, max {:.3} ms",
                self.failed,
                at(0.5),
                at(0.9),
                at(0.99),
                ms(self.latencies.max()),
            ));
        }
        Ok(self.first_failure.map_or(ExitCode::SUCCESS, |kind| ExitCode::from(kind.code())))
    }

    /// Since the first call was begun.
    fn elapsed(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }

    /// Tells something on stderr, past the progress bar.
    fn error_line(&self, line: fmt::Arguments<'_>) {
        match &self.progress {
            Some(bar) => bar.suspend(|| output::error_line(self.program, line)),
            None => output::error_line(self.program, line),
        }
    }

    /// The call, as a person knows it.
    fn name(&self, call: &Call) -> String {
        text::call(&self.args.procedure, &call.argument)
    }

    fn write_json(&mut self, call: &Call, outcome: &Outcome) -> io::Result<()> {
        let elapsed = call.ended.duration_since(call.started);
        let json = Json {
            procedure: &self.args.procedure,
            argument: &String::from_utf8_lossy(&call.argument),
            ok: outcome.is_ok(),
            result: outcome.as_ref().ok().map(|result| String::from_utf8_lossy(result)),
            error: outcome
                .as_ref()
                .err()
                .map(|failure| JsonError { kind: failure.kind.name(), message: &failure.message }),
            elapsed_ms: elapsed.as_micros() as f64 / 1e3,
            attempts: call.attempts,
            // One that was never published has none.
            correlation_id: Some(call.correlation_id.as_str()).filter(|id| !id.is_empty()),
        };
        json.serialize(&mut Serializer::with_formatter(&mut self.out, Harmless))?;
        writeln!(self.out)
    }
}

/// A procedure's own error is told with its kind.
fn explained(failure: &Failure) -> String {
    match failure.kind {
        FailureKind::UnknownProcedure
        | FailureKind::InvalidArgument
        | FailureKind::OutOfRange
        | FailureKind::ProcedureFailed => {
            format!("{failure} ({})", failure.kind.name())
        }
        _ => failure.to_string(),
    }
}

fn progress_bar() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {pos} calls, {per_sec}, {elapsed}");
    ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}
