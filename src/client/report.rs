//! What the client tells of its calls: results on standard output, failures on stderr, and how long
//! it all took.

use crate::cli::{self, Format};
use crate::client::call::{Call, Outcome};
use crate::client::input::Skipped;
use crate::client::progress::Progress;
use crate::client::summary::Summary;
use crate::error::{Failure, FailureKind, ProgramError};
use crate::terminal::output;
use crate::terminal::text::{self, excerpt};
use crate::terminal::waiting::Waiting;
use base64::prelude::{BASE64_STANDARD, Engine};
use hdrhistogram::Histogram;
use log::info;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

/// The program's name, before its lines on standard error.
pub(super) const PROGRAM: &str = "rpc_client";

/// Tells of calls as they are done, and counts them. The errors of its functions are those of
/// [`output::check`] and [`output::written`].
pub struct Report<'a> {
    out: BufWriter<Waiting<Stdout>>,
    is_terminal: bool,
    args: &'a cli::Client,
    format: Format,
    /// Whether there may be several calls in flight, so that each result says whose it is.
    names_calls: bool,
    /// When the first call was begun.
    started: Option<Instant>,
    summary: Summary,
    /// How many of the calls that were not made have an object in JSON.
    told_unmade: u64,
    /// Microseconds from publication to outcome, to three digits, if statistics are asked for. Its size
    /// does not grow with the number of calls.
    latencies: Option<Histogram<u64>>,
    progress: Option<Progress>,
    /// The calls that were not made, since their outputs are there.
    skipped: Arc<Skipped>,
}

impl<'a> Report<'a> {
    /// Makes a report in the format that `args` ask for.
    pub fn new(args: &'a cli::Client) -> Report<'a> {
        let is_terminal = io::stdout().is_terminal();
        let format = match args.format {
            Format::Auto | Format::Transcript if args.common.quiet => Format::Plain,
            Format::Auto if is_terminal => Format::Transcript,
            Format::Auto => Format::Plain,
            given => given,
        };

        Report {
            // Results that came together are written together.
            out: BufWriter::with_capacity(64 << 10, Waiting(io::stdout())),
            is_terminal,
            args,
            format,
            names_calls: args.in_flight.most() > 1 && args.calls() != Some(1),
            started: None,
            summary: Summary::default(),
            told_unmade: 0,
            latencies: if args.stats { Histogram::new(3).ok() } else { None },
            progress: Progress::new(args),
            skipped: Arc::default(),
        }
    }

    /// Tells that a call is about to be published for the first time.
    pub fn announce(&mut self, call: &Call) -> Result<(), ProgramError> {
        output::check()?;
        self.started.get_or_insert(call.started);
        if self.format != Format::Transcript {
            return Ok(());
        }
        let name = self.name(call);
        output::written(writeln!(self.out, " [x] Requesting {}", text::one_line(&name)))?;
        // Before what -v tells of its publication.
        self.flush()
    }

    /// Makes sure that what was told can be read: to be called before a wait.
    pub fn flush(&mut self) -> Result<(), ProgramError> {
        output::written(self.out.flush())
    }

    /// Writes the outcomes of calls.
    pub fn write(
        &mut self,
        finished: impl Iterator<Item = (Call, Outcome)>,
    ) -> Result<(), ProgramError> {
        for (call, outcome) in finished {
            self.add_up(&call, outcome.as_ref().err());
            if let Some(progress) = &mut self.progress {
                progress.advance(&call, outcome.is_err(), self.started, &self.skipped);
            }
            match (self.format, &outcome) {
                (Format::Json, _) => output::written(self.write_json(&call, outcome.as_deref()))?,
                (_, Ok(result)) => output::written(self.write_result(&call, result))?,
                (_, Err(failure)) => self.tell_failure(&call, failure)?,
            }
        }
        Ok(())
    }

    /// Returns where it is counted how many calls are skipped.
    pub fn skipped(&self) -> Arc<Skipped> {
        Arc::clone(&self.skipped)
    }

    /// Counts calls that could not be made for this `failure`. They are in no latency and in no rate.
    pub fn count_unmade(&mut self, calls: u64, failure: &Failure) {
        self.summary.count_unmade(calls, failure);
    }

    /// Counts calls that could not be made, of which nobody knows how many they are.
    pub fn count_unread(&mut self) {
        self.summary.note_unread();
    }

    /// Writes the object of a call that could not be made. Other formats than JSON have nothing for each.
    pub fn write_unmade(&mut self, call: &Call, failure: &Failure) -> Result<(), ProgramError> {
        output::check()?;
        self.told_unmade += 1;
        output::written(self.write_json(call, Err(failure)))
    }

    fn add_up(&mut self, call: &Call, failure: Option<&Failure>) {
        if let Some(latencies) = &mut self.latencies {
            // Fails for none, since the histogram grows to the longest.
            let _ = latencies.record(call.elapsed.as_micros() as u64);
        }
        self.summary.count(failure);
    }

    /// Tells why no more calls are made; or, if none was made, no call at all.
    pub fn no_more_calls(&mut self, failure: &Failure) {
        let untold = self.summary.unmade() - self.told_unmade;
        let what = match (untold, self.told_unmade, self.started) {
            (untold, 1.., _) => {
                format!("{} made", text::count(untold, "more call is not", "more calls are not"))
            }
            (_, 0, Some(_)) => "no more calls are made".into(),
            (_, 0, None) if self.args.procedure.is_empty() => "no call is made".into(),
            (_, 0, None) => excerpt(self.args.procedure.as_bytes()),
        };
        output::error_line(PROGRAM, format_args!("{what}: {failure}"));
        self.summary.note(failure);
    }

    /// Returns whether what is written of a call says which one it is, so that the order does not matter.
    pub fn tells_whose(&self) -> bool {
        match self.format {
            Format::Json => true,
            Format::Transcript => self.names_calls,
            _ => false,
        }
    }

    /// Returns whether a call was begun.
    pub fn has_begun(&self) -> bool {
        self.started.is_some()
    }

    /// Returns the time since the first call was begun, if one was.
    fn elapsed(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }

    /// Tells how the calls went, if several were made and some failed, or if that was asked for. Returns the exit code:
    /// the first failure's.
    pub fn end(&mut self) -> Result<ExitCode, ProgramError> {
        self.flush()?;
        if let Some(progress) = &self.progress {
            progress.bar.finish_and_clear();
        }
        if self.summary.is_worth_telling() && !self.args.common.quiet {
            output::error_line(PROGRAM, format_args!("{}", self.summary));
        }
        if let Some(latencies) = &self.latencies {
            self.tell_latencies(latencies);
        }

        let first = self.summary.first_failure();
        Ok(first.map_or(ExitCode::SUCCESS, |kind| ExitCode::from(kind.code())))
    }

    fn tell_latencies(&self, latencies: &Histogram<u64>) {
        let made = latencies.len();
        let rate = if made > 0 { made as f64 / self.elapsed().as_secs_f64() } else { 0.0 };
        let skipped = match self.args.skip_existing {
            true => format!(", {} skipped", self.skipped.calls.load(Relaxed)),
            false => String::new(),
        };
        let ms = |microseconds: u64| microseconds as f64 / 1e3;
        let at = |quantile| ms(latencies.value_at_quantile(quantile));
        output::error_line(
            PROGRAM,
            format_args!(
                "{}, {} failed{skipped}, {rate:.1} calls/s, p50 {:.3} ms, p90 {:.3} ms, p99 {:.3} ms, max {:.3} ms",
                text::count(self.summary.calls(), "call", "calls"),
                self.summary.failed(),
                at(0.5),
                at(0.9),
                at(0.99),
                ms(latencies.max()),
            ),
        );
    }

    fn name(&self, call: &Call) -> String {
        text::call(&self.args.procedure, &call.argument.bytes)
    }

    fn tell_failure(&mut self, call: &Call, failure: &Failure) -> Result<(), ProgramError> {
        // In the order in which they were told, should both streams go to one terminal.
        self.flush()?;
        let line = call.argument.line.map_or(String::new(), |line| format!("line {line}: "));
        // A procedure's own error is told with its kind.
        let kind = match failure.kind {
            FailureKind::Procedure(kind) => format!(" ({})", kind.name()),
            _ => String::new(),
        };
        let name = self.name(call);
        let attempts = match call.attempts {
            attempts @ 2.. if self.args.retries > 0 => format!(", after {attempts} attempts"),
            _ => String::new(),
        };
        output::error_line(PROGRAM, format_args!("{line}{name}: {failure}{kind}{attempts}"));
        for line in failure.stderr.iter().flat_map(|stderr| stderr.lines()) {
            info!("{name}, standard error: {}", line.trim_end());
        }
        Ok(())
    }

    fn write_result(&mut self, call: &Call, result: &[u8]) -> io::Result<()> {
        if let Some(target) = &call.argument.target {
            return self.write_target(call, target.path());
        }
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

    /// Tells in the transcript which file a result is in. Other formats have nothing of it on standard output.
    fn write_target(&mut self, call: &Call, path: &Path) -> io::Result<()> {
        if self.format != Format::Transcript {
            return Ok(());
        }
        let (name, path) = (self.name(call), path.display().to_string());
        let (name, path) = (text::one_line(&name), text::one_line(&path));
        match self.names_calls {
            true => writeln!(self.out, " [.] {name}: wrote {path}"),
            false => writeln!(self.out, " [.] Wrote {path}"),
        }
    }

    fn write_json(&mut self, call: &Call, outcome: Result<&[u8], &Failure>) -> io::Result<()> {
        writeln!(self.out, "{}", json(&self.args.procedure, call, outcome)?)
    }
}

/// Writes one call as JSON. Characters that are harmful to a terminal are escapes, all of them, wherever it
/// goes: they are found in JSON's strings only.
fn json(procedure: &str, call: &Call, outcome: Result<&[u8], &Failure>) -> io::Result<String> {
    let mut json = Vec::new();
    let mut serializer = serde_json::Serializer::new(&mut json);
    let mut object = serializer.serialize_map(None)?;
    object.serialize_entry("procedure", procedure)?;
    json_bytes(&mut object, "argument", &call.argument.bytes)?;
    if let Some(line) = call.argument.line {
        object.serialize_entry("line", &line)?;
    }
    object.serialize_entry("ok", &outcome.is_ok())?;
    match outcome {
        Ok(result) => match &call.argument.target {
            Some(target) => {
                json_bytes(&mut object, "output", target.path().as_os_str().as_bytes())?;
            }
            None => json_bytes(&mut object, "result", result)?,
        },
        Err(Failure { kind, message, exit_code, stderr }) => {
            let (kind, stderr) = (kind.name(), stderr.as_deref());
            let error = JsonError { kind, message, exit_code: *exit_code, stderr };
            object.serialize_entry("error", &error)?;
        }
    }

    object.serialize_entry("elapsed_ms", &(call.elapsed.as_micros() as f64 / 1e3))?;
    object.serialize_entry("attempts", &call.attempts)?;

    // One that was never published has none.
    let id = Some(&call.correlation_id).filter(|id| !id.is_empty());
    object.serialize_entry("correlation_id", &id)?;
    if let Some(content_type) = &call.content_type {
        object.serialize_entry("content_type", content_type)?;
    }
    object.end()?;
    let mut escaped = String::with_capacity(json.len());
    for c in String::from_utf8_lossy(&json).chars() {
        match text::is_harmful(c) {
            true => escaped
                .extend(c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}"))),
            false => escaped.push(c),
        }
    }

    Ok(escaped)
}

#[derive(Serialize)]
struct JsonError<'a> {
    kind: &'static str,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stderr: Option<&'a str>,
}

/// Returns the field for these bytes: JSON's strings are text, so that what is not UTF-8 goes into another one.
fn json_bytes<M: SerializeMap>(object: &mut M, name: &str, bytes: &[u8]) -> Result<(), M::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => object.serialize_entry(name, text),
        Err(_) => object.serialize_entry(&format!("{name}_base64"), &BASE64_STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::calls::Calls;
    use crate::client::input::Argument;
    use crate::client::outputs::{Outputs, Target};
    use crate::error::ErrorKind;
    use clap::Parser;
    use std::collections::BTreeSet;

    /// The names in the first column of the reference's table, and those of an error's fields in it.
    #[test]
    fn the_reference_has_a_row_for_each_field_and_every_kind() {
        let names = |value: &serde_json::Value| -> BTreeSet<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let failure = Failure {
            exit_code: Some(0),
            stderr: Some("why\n".into()),
            ..Failure::new(FailureKind::Procedure(ErrorKind::Internal), "it failed")
        };
        let args = cli::Client::parse_from(["rpc_client", "fib"]);
        let value = |argument: &[u8], target: Option<Target>, outcome| -> serde_json::Value {
            let mut argument = Argument::new(argument.into(), Some(1));
            argument.target = target.map(Arc::new);
            let mut call = Calls::new(&args).unmade_call(argument);
            call.content_type = Some("text/plain".into());
            let json = json("fib", &call, outcome).unwrap();
            serde_json::from_str(&json).unwrap()
        };
        let failed = value(b"\xff", None, Err(&failure));
        let args = cli::Client::parse_from(["rpc_client", "--output={}.none", "fib"]);
        let mut outputs = Outputs::new(&args).unwrap();
        let mut stored = |argument: &[u8]| {
            let target = outputs.target(argument, 1).unwrap();
            value(argument, target, Ok(b""))
        };
        let stored = [stored(b"30"), stored(b"\xff")];
        let calls = [value(b"30", None, Ok(b"832040")), value(b"\xff", None, Ok(b"\xff"))];
        let calls = [&calls[..], &stored, std::slice::from_ref(&failed)].concat();
        let all = calls.iter().flat_map(names).collect::<BTreeSet<_>>();
        let reference = include_str!("../../docs/reference.md");
        let (_, table) = reference.split_once("| JSON field | value |\n|---|---|\n").unwrap();
        let (table, after) = table.split_once("\n\n").unwrap();
        let quoted = |text: &str| -> BTreeSet<String> {
            text.split('`').skip(1).step_by(2).map(str::to_owned).collect()
        };
        let columns = |row: &str, column| row.split('|').nth(column).map(quoted).unwrap();
        let fields = table.lines().flat_map(|row| columns(row, 1)).collect::<BTreeSet<_>>();
        assert_eq!(fields, all);
        let error = table.lines().find(|row| row.starts_with("| `error`")).unwrap();
        assert_eq!(columns(error, 2), names(&failed["error"]));
        let told = quoted(after);
        let is_untold = |kind: &FailureKind| !told.contains(kind.name());
        let untold: Vec<_> = FailureKind::ALL.into_iter().filter(is_untold).collect();
        assert_eq!(untold, [FailureKind::Usage], "of a wrong command line there is no object");
    }
}
