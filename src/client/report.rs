//! What the client tells of its calls: results on standard output, failures on stderr, and how long
//! it all took.

use crate::cli::{self, Format};
use crate::client::calls::{Call, Outcome};
use crate::client::progress::Progress;
use crate::error::{Failure, FailureKind, ProgramError};
use crate::terminal::output;
use crate::terminal::text::{self, excerpt};
use base64::prelude::{BASE64_STANDARD, Engine};
use hdrhistogram::Histogram;
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::Formatter;
use std::fmt;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How many bytes of results are written together.
const OUT_CAPACITY: usize = 64 << 10;

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
    /// Whether there may be several calls in flight, so that each result says whose it is.
    names_calls: bool,
    /// When the first call was begun.
    started: Option<Instant>,
    failed: u64,
    first_failure: Option<FailureKind>,
    /// Microseconds from publication to outcome, if statistics are asked for. Its size, 228 KB, does not
    /// grow with the number of calls.
    latencies: Option<Histogram<u64>>,
    progress: Option<Progress>,
}

/// One call, as JSON.
#[derive(Serialize)]
struct Json<'a> {
    procedure: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    argument: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    argument_base64: Option<String>,
    ok: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    result_base64: Option<String>,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
}

/// JSON's strings are text: bytes that are not UTF-8 go into the second field.
fn text_or_base64(bytes: &[u8]) -> (Option<&str>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(BASE64_STANDARD.encode(bytes))),
    }
}

/// JSON in which characters that are harmful to a terminal are escapes, all of them, wherever it goes.
struct EscapingFormatter;

impl Formatter for EscapingFormatter {
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
        let latencies = args.stats.then(|| {
            Histogram::new_with_bounds(1, LONGEST_LATENCY, 3)
                .unwrap_or_else(|_| unreachable!("these bounds are sound"))
        });
        Report {
            program,
            out: BufWriter::with_capacity(OUT_CAPACITY, io::stdout()),
            is_terminal,
            args,
            format,
            names_calls: args.in_flight > 1 && args.calls() != Some(1),
            started: None,
            failed: 0,
            first_failure: None,
            latencies,
            progress: Progress::new(args),
        }
    }

    /// Tells that a call is about to be published for the first time.
    /// Its errors are those of [`output::check`] and [`output::written`].
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
    /// Its errors are those of [`output::written`].
    pub fn flush(&mut self) -> Result<(), ProgramError> {
        output::written(self.out.flush())
    }

    /// Writes a call's outcome.
    fn write_one(&mut self, call: &Call, outcome: &Outcome) -> Result<(), ProgramError> {
        self.add_up(call, outcome);
        if let Some(progress) = &mut self.progress {
            progress.advance(call, since(self.started));
        }
        match (self.format, outcome) {
            (Format::Json, _) => output::written(self.write_json(call, outcome)),
            (_, Ok(result)) => output::written(self.write_result(call, result)),
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
    /// Its errors are those of [`output::check`] and [`output::written`].
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
        if let Some(latencies) = &mut self.latencies {
            let elapsed = call.ended.duration_since(call.started);
            latencies.saturating_record(elapsed.as_micros() as u64);
        }
        if let Err(failure) = outcome {
            self.failed += 1;
            self.count(failure.kind);
        }
    }

    /// Writes the outcomes of calls.
    /// Its errors are those of [`output::written`].
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
    /// Its errors are those of [`output::written`].
    pub fn end(&mut self) -> Result<ExitCode, ProgramError> {
        self.flush()?;
        if let Some(progress) = &self.progress {
            progress.end();
        }
        if let Some(latencies) = &self.latencies {
            let made = latencies.len();
            let seconds = since(self.started).as_secs_f64();
            let rate = if made > 0 { made as f64 / seconds } else { 0.0 };
            let calls = text::count(made, "call", "calls");
            let ms = |microseconds: u64| microseconds as f64 / 1e3;
            let at = |quantile| ms(latencies.value_at_quantile(quantile));
            self.error_line(format_args!(
                "{calls}, {} failed, {rate:.1} calls/s, p50 {:.3} ms, p90 {:.3} ms, p99 {:.3} ms, max {:.3} ms",
                self.failed,
                at(0.5),
                at(0.9),
                at(0.99),
                ms(latencies.max()),
            ));
        }
        Ok(self.first_failure.map_or(ExitCode::SUCCESS, |kind| ExitCode::from(kind.code())))
    }

    /// Tells something on stderr, past the progress line.
    fn error_line(&self, line: fmt::Arguments<'_>) {
        match &self.progress {
            Some(progress) => progress.suspend(|| output::error_line(self.program, line)),
            None => output::error_line(self.program, line),
        }
    }

    /// The call, as a person knows it.
    fn name(&self, call: &Call) -> String {
        text::call(&self.args.procedure, &call.argument)
    }

    fn write_result(&mut self, call: &Call, result: &[u8]) -> io::Result<()> {
        if self.format == Format::Transcript {
            match self.names_calls {
                true => write!(self.out, " [.] {}: ", text::one_line(&self.name(call)))?,
                false => self.out.write_all(b" [.] Got ")?,
            }
        }
        match self.is_terminal {
            true => {
                let result = String::from_utf8_lossy(result);
                self.out.write_all(text::on_terminal(&result).as_bytes())?;
            }
            false => self.out.write_all(result)?,
        }
        match self.format == Format::Raw || result.ends_with(b"\n") {
            true => Ok(()),
            false => self.out.write_all(b"\n"),
        }
    }

    fn write_json(&mut self, call: &Call, outcome: &Outcome) -> io::Result<()> {
        let elapsed = call.ended.duration_since(call.started);
        let (argument, argument_base64) = text_or_base64(&call.argument);
        let (result, result_base64) =
            outcome.as_ref().map_or((None, None), |result| text_or_base64(result));
        let json = Json {
            procedure: &self.args.procedure,
            argument,
            argument_base64,
            ok: outcome.is_ok(),
            result,
            result_base64,
            error: outcome.as_ref().err().map(|failure| JsonError {
                kind: failure.kind.name(),
                message: &failure.message,
                exit_code: failure.exit_code,
            }),
            elapsed_ms: elapsed.as_micros() as f64 / 1e3,
            attempts: call.attempts,
            // One that was never published has none.
            correlation_id: Some(call.correlation_id.as_str()).filter(|id| !id.is_empty()),
        };
        json.serialize(&mut Serializer::with_formatter(&mut self.out, EscapingFormatter))?;
        writeln!(self.out)
    }
}

/// The time since the first call was begun, if one was.
fn since(started: Option<Instant>) -> Duration {
    started.map_or(Duration::ZERO, |started| started.elapsed())
}

/// A procedure's own error is told with its kind.
fn explained(failure: &Failure) -> String {
    match failure.kind {
        FailureKind::Procedure(kind) => format!("{failure} ({})", kind.name()),
        _ => failure.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// The names in the first column of the reference's table, and those of an error's fields in it.
    #[test]
    fn the_reference_has_a_row_for_each_field_and_every_kind() {
        let error = JsonError { kind: "", message: "", exit_code: Some(0) };
        let some = || Some(String::new());
        let call = Json {
            procedure: "",
            argument: Some(""),
            argument_base64: some(),
            ok: true,
            result: Some(""),
            result_base64: some(),
            error: Some(error),
            elapsed_ms: 0.0,
            attempts: 0,
            correlation_id: None,
        };
        let call = serde_json::to_value(call).unwrap();
        let names = |value: &serde_json::Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let reference = include_str!("../../docs/reference.md");
        let (_, table) = reference.split_once("| JSON field | value |\n|---|---|\n").unwrap();
        let (table, after) = table.split_once("\n\n").unwrap();
        let quoted = |text: &str| -> BTreeSet<String> {
            text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let columns = |row: &str, column| row.split('|').nth(column).map(quoted).unwrap();
        let fields = table.lines().flat_map(|row| columns(row, 1)).collect::<BTreeSet<_>>();
        assert_eq!(fields, names(&call));
        let error = table.lines().find(|row| row.starts_with("| `error`")).unwrap();
        assert_eq!(columns(error, 2), names(&call["error"]));
        let told = quoted(after);
        let is_untold = |kind: &FailureKind| !told.contains(kind.name());
        let untold: Vec<_> = FailureKind::ALL.into_iter().filter(is_untold).collect();
        assert_eq!(untold, [FailureKind::Usage], "of a wrong command line there is no object");
    }
}
