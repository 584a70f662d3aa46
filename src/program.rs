//! The start and the end of a program: its command line, logging, a word about what went wrong, and
//! the exit code. Both programs and the examples have these in common.

use crate::amqp::uri;
use crate::cli::{Common, Program};
use crate::error::{FailureKind, ProgramError};
use crate::signals;
use crate::terminal::{logging, output, text};
use clap::FromArgMatches;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use log::warn;
use std::io::Write;
use std::process::ExitCode;

/// Runs a whole program: parses the command line, starts logging, runs `run`, tells an error.
pub fn main<T: Program>(
    program: &'static str,
    run: fn(T) -> Result<ExitCode, ProgramError>,
) -> ExitCode {
    if let Err(failure) = signals::handle_sigxfsz() {
        return conclude(program, Err(failure.into()));
    }
    let parsed = T::command().try_get_matches().and_then(|matches| {
        let url_is_visible = matches.value_source("url") == Some(ValueSource::CommandLine);
        let common = Common::from_arg_matches(&matches)?;
        let arguments = T::from_arg_matches(&matches)?;
        match arguments.check() {
            Ok(()) => Ok((arguments, common, url_is_visible)),
            Err(reason) => Err(T::command().error(ErrorKind::ValueValidation, reason)),
        }
    });

    let (arguments, common, url_is_visible) = match parsed {
        Ok(parsed) => parsed,
        // clap's own usage names --url if AMQP_URL is set.
        Err(error)
            if error.kind() == ErrorKind::MissingRequiredArgument
                && std::env::args_os().len() <= 1 =>
        {
            let missing =
                format!("a procedure is missing, as in {program} fib 30; {program} list names all");
            return show_parse_error(program, &T::command().error(error.kind(), missing));
        }
        Err(error) => return show_parse_error(program, &error),
    };

    logging::init(program, common.quiet, common.verbose);
    if url_is_visible && uri::has_password(&common.url) {
        warn!("others on this machine can see the password in --url; AMQP_URL hides it");
    }
    let code = conclude(program, run(arguments));
    output::finish();
    code
}

/// Tells what the parser of a command line has to say instead of arguments: help or version, which is
/// a success if it can be written, or what is wrong, [`FailureKind::Usage`].
pub fn show_parse_error(program: &str, error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let shown = output::check()
                .and_then(|()| output::written(error.print()))
                .and_then(|()| output::written(std::io::stdout().flush()));
            conclude(program, shown.map(|()| ExitCode::SUCCESS))
        }
        _ => {
            let text = error.render().to_string();
            let text = text::on_terminal(text.strip_prefix("error: ").unwrap_or(&text));
            // If standard error is closed, there is nobody to tell.
            let _ = write!(std::io::stderr(), "{program}: {text}");
            ExitCode::from(FailureKind::Usage.code())
        }
    }
}

/// Returns the exit code for what `program` came to, after telling an error on stderr.
pub fn conclude(program: &str, result: Result<ExitCode, ProgramError>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(ProgramError::OutputClosed) => ExitCode::SUCCESS,
        Err(ProgramError::Failed(kind, error)) => {
            output::error_line(program, format_args!("{error:#}"));
            ExitCode::from(kind.code())
        }
    }
}
