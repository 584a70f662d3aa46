//! The procedures that the server offers: built-in ones, programs, and programs that stay. None can take the server down:
//! whatever a request says, and whatever becomes of a program, the answer is a result or an [`Error`].

use crate::amqp;
use crate::cancellation::Cancelled;
use crate::command::{Command, Descendants, End, Ended, Invocation, how_it_ended, memory};
use crate::coprocess::{self, Coprocess, Pool, Protocol};
use crate::error::{ErrorKind, Failure};
use crate::fib::{self, Algorithm};
use crate::terminal::text::excerpt;
use log::warn;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

/// A procedure's error, with a sentence for the person who made the call.
pub type Error = Failure<ErrorKind>;

/// What a procedure answers: a result, which may be any bytes, or an error.
pub type Outcome = Result<Vec<u8>, Error>;

/// What the server's options say about procedures.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// How fib is computed.
    pub algorithm: Algorithm,
    /// The largest n that fib accepts.
    pub max_n: u64,
    /// After how many calls a program that stays is replaced. None: it never is.
    pub coprocess_calls: Option<u64>,
}

/// What a built-in procedure answers to an argument. One that takes none ignores it.
type BuiltIn = fn(&Procedures, &[u8]) -> Outcome;

/// Every built-in procedure.
const BUILT_IN: [(&str, BuiltIn); 6] = [
    ("fib", |server, argument| fibonacci(argument.trim_ascii(), &server.settings)),
    ("fun", |_, argument| hundredfold(argument.trim_ascii())),
    ("a", |_, _| Ok("a".into())),
    ("b", |_, _| Ok("b".into())),
    ("ping", |_, _| Ok("pong".into())),
    ("list", |server, _| Ok(server.names("\n").into())),
];

/// The built-in procedures that every server offers.
const ALWAYS: [&str; 2] = ["ping", "list"];

/// The name of the procedure that is called where a request names no other one.
pub const ANY: &str = "*";

/// The procedure that a request means which names none, as the tutorial's clients do.
const TUTORIALS: &str = "fib";

/// Returns the names of the built-in procedures.
pub fn built_in_names() -> Vec<&'static str> {
    BUILT_IN.map(|(name, _)| name).into()
}

/// Returns the names of the built-in procedures of which a server can offer some and not others.
pub fn optional_names() -> Vec<&'static str> {
    built_in_names().into_iter().filter(|name| !ALWAYS.contains(name)).collect()
}

/// A procedure that an option names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The procedure's name: 1 to 255 bytes; [`ANY`] for what no other one is named for.
    pub name: String,
    /// What it is.
    pub what: Offered,
}

/// What is offered as a procedure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offered {
    /// The built-in procedure of the same name.
    BuiltIn,
    /// A program, which is started for each call.
    Program(Words),
    /// A program that stays, and is asked by lines of this kind.
    Coprocess(Protocol, Words),
}

/// The words of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// The program and its arguments, one word at least.
    pub words: Vec<String>,
    /// A word without quotes that a shell would take for an operator. Here it is an argument like any other.
    pub operator: Option<&'static str>,
}

/// What a shell takes for an operator where it stands alone and without quotes.
const OPERATORS: [&str; 9] = ["|", "||", "&", "&&", ";", "<", ">", ">>", "2>&1"];

impl Offer {
    /// Returns what `NAME` or `NAME=COMMAND` offers with `--procedure`, or what is wrong with it.
    pub fn parse(text: &str) -> Result<Offer, String> {
        if text.contains('=') {
            return Offer::parse_command(text, Offered::Program);
        }
        let name = amqp::name(text)?;
        if built_in_names().contains(&name.as_str()) {
            return Ok(Offer { name, what: Offered::BuiltIn });
        }
        Err(format!(
            "the built-in procedures are {}; a program is offered by NAME=COMMAND",
            optional_names().join(", ")
        ))
    }

    /// Returns what `NAME=COMMAND` offers, which is `what` the command is, or what is wrong with it.
    pub fn parse_command(text: &str, what: impl FnOnce(Words) -> Offered) -> Result<Offer, String> {
        let Some((name, command)) = text.split_once('=') else {
            return Err("a program is offered by NAME=COMMAND".into());
        };
        let name = amqp::name(name)?;
        if ALWAYS.contains(&name.as_str()) {
            return Err(format!("{name} is always the built-in procedure: take another name"));
        }
        let words = shell_words::split(command).map_err(|_| "a quote is open")?;
        if words.is_empty() {
            return Err("the command is empty".into());
        }
        let operator = bare_operator(command, &words);
        Ok(Offer { name, what: what(Words { words, operator }) })
    }

    /// Returns the option that makes such an offer.
    pub fn option(&self) -> &'static str {
        match self.what {
            Offered::BuiltIn | Offered::Program(_) => "--procedure",
            Offered::Coprocess(Protocol::Text, _) => "--coprocess",
            Offered::Coprocess(Protocol::Json, _) => "--json-coprocess",
        }
    }

    /// Returns the procedure that it names. None: there is no built-in one of that name, which [`Offer::parse`] refuses.
    fn procedure(
        &self,
        settings: &Settings,
        programs: &Descendants,
    ) -> Result<Option<Procedure>, Failure> {
        Ok(match &self.what {
            Offered::BuiltIn => Procedure::built_in(&self.name),
            Offered::Program(words) => Some(Procedure::Program(self.command(words)?)),
            Offered::Coprocess(protocol, words) => {
                let command = self.command(words)?;
                let calls = settings.coprocess_calls;
                let coprocess = Coprocess::new(&self.name, command, *protocol, calls, programs);
                Some(Procedure::Coprocess(coprocess))
            }
        })
    }

    fn command(&self, Words { words, operator }: &Words) -> Result<Command, Failure> {
        let option = self.option();
        if let Some(operator) = operator {
            warn!(
                "{option} {0}: no shell is involved, so that {operator} is an argument of the program; \
                 {option} \"{0}=sh -c '…'\" has a shell take it for what it means there",
                self.name
            );
        }
        Command::find(option, &self.name, words)
    }
}

/// Returns an operator that stands in `command` without quotes, and so is one of its `words`.
fn bare_operator(command: &str, words: &[String]) -> Option<&'static str> {
    let is_bare = |operator: &&str| command.split_whitespace().any(|piece| piece == *operator);
    let is_word = |operator: &&str| words.iter().any(|word| word == operator);
    OPERATORS.into_iter().find(|operator| is_bare(operator) && is_word(operator))
}

/// What a procedure is.
enum Procedure {
    /// A function.
    BuiltIn(BuiltIn),
    /// A program, which is started for each call.
    Program(Command),
    /// A program that stays.
    Coprocess(Coprocess),
}

impl Procedure {
    /// Returns the built-in procedure `name`, if there is one.
    fn built_in(name: &str) -> Option<Procedure> {
        let (_, answer) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name)?;
        Some(Procedure::BuiltIn(*answer))
    }

    /// Calls the procedure, under the name that `server` offers it by.
    fn call(
        &self,
        name: &str,
        server: &Procedures,
        invocation: &Invocation<'_>,
    ) -> Result<Outcome, Cancelled> {
        match self {
            Procedure::BuiltIn(answer) => Ok(guarded(name, || answer(server, invocation.input))),
            Procedure::Program(command) => match command.run(invocation, &server.programs) {
                Ok(ended) => answer_of(name, ended, invocation),
                Err(error) => Ok(Err(not_started(name, &error))),
            },
            Procedure::Coprocess(coprocess) => match coprocess.call(invocation) {
                Ok(outcome) => Ok(outcome),
                Err(ended) => answer_of(name, ended, invocation),
            },
        }
    }
}

/// How many programs of a procedure were started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started<'a> {
    /// The procedure's name.
    pub procedure: &'a str,
    /// Whether they stay.
    pub is_coprocess: bool,
    /// How many there were.
    pub programs: u64,
}

/// The procedures of a server.
pub struct Procedures {
    /// Each by its name.
    offered: BTreeMap<String, Procedure>,
    /// The name that a request means which has none. Empty: it is [`ANY`]'s, which is told so.
    pub default: String,
    settings: Settings,
    /// The programs that run.
    pub programs: Descendants,
}

impl Procedures {
    /// Returns the procedures that are `offers`, or, if there are none, the built-in ones; `ping` and `list` in any
    /// case. Fails as [`Command::find`] does.
    pub fn new(offers: &[Offer], settings: Settings) -> Result<Procedures, Failure> {
        let built_in = |name: &str| Offer { name: name.into(), what: Offered::BuiltIn };
        let all: Vec<Offer> = optional_names().into_iter().map(built_in).collect();
        let offers = if offers.is_empty() { &all } else { offers };

        let programs = Descendants::default();
        let always = ALWAYS.map(built_in);
        let mut offered = BTreeMap::new();
        for offer in always.iter().chain(offers) {
            if let Some(procedure) = offer.procedure(&settings, &programs)? {
                offered.insert(offer.name.clone(), procedure);
            }
        }
        let default = default_name(offers);
        Ok(Procedures { offered, default, settings, programs })
    }

    /// Starts the programs that stay, one of each for each of so many workers. Before that, no call of theirs is answered.
    /// [`crate::error::FailureKind::Configuration`] if one cannot be started.
    pub fn start(&self, workers: usize, kill_delay: Duration) -> Result<(), Failure> {
        self.pools().try_for_each(|pool| pool.start(workers, kill_delay))
    }

    /// Ends what [`Procedures::start`] has started: closes their standard input, and ends what has not ended by itself
    /// after the `kill_delay`, as any program is ended.
    pub fn end(&self, workers: usize, kill_delay: Duration) {
        coprocess::end_all(&self.pools().collect::<Vec<_>>(), workers, kill_delay);
    }

    fn pools(&self) -> impl Iterator<Item = &Arc<Pool>> {
        self.offered.values().filter_map(|procedure| match procedure {
            Procedure::Coprocess(coprocess) => Some(&coprocess.pool),
            Procedure::BuiltIn(_) | Procedure::Program(_) => None,
        })
    }

    /// Calls the procedure `name` with the bytes of a request's body, which are `invocation`'s input. The rest
    /// of `invocation` is for programs. The error says that the call was cancelled meanwhile.
    pub fn call(&self, name: &str, invocation: &Invocation<'_>) -> Result<Outcome, Cancelled> {
        let Some((name, procedure)) = self.find(name) else {
            let (name, names) = (excerpt(name.as_bytes()), self.names(", "));
            let message = format!("there is no procedure \"{name}\"; there are {names}");
            return Ok(Err(Error::new(ErrorKind::UnknownProcedure, message)));
        };
        match procedure.call(name, self, invocation)? {
            Ok(result) if !memory::has_room_for(result.len()) => Ok(Err(no_memory())),
            outcome => Ok(outcome),
        }
    }

    /// Returns the names of all procedures that are offered.
    pub fn each_name(&self) -> impl Iterator<Item = &str> {
        self.offered.keys().map(String::as_str)
    }

    /// Returns the procedure that is called by `name`, with the name that it is offered by.
    fn find(&self, name: &str) -> Option<(&str, &Procedure)> {
        let found = self.offered.get_key_value(name).or_else(|| self.offered.get_key_value(ANY));
        found.map(|(name, procedure)| (name.as_str(), procedure))
    }

    fn names(&self, separator: &str) -> String {
        self.each_name().collect::<Vec<&str>>().join(separator)
    }

    /// Returns how many programs were started until now, for each procedure that is one.
    pub fn started(&self) -> impl Iterator<Item = Started<'_>> {
        self.offered.iter().filter_map(|(procedure, what)| {
            let (is_coprocess, programs) = match what {
                Procedure::BuiltIn(_) => return None,
                Procedure::Program(command) => (false, command.started()),
                Procedure::Coprocess(coprocess) => (true, coprocess.pool.started()),
            };
            Some(Started { procedure, is_coprocess, programs })
        })
    }
}

/// Returns the name that a request means which has none, where there are these `offers`, one at least.
fn default_name(offers: &[Offer]) -> String {
    let is_offered = |name| offers.iter().any(|offer| offer.name == name);
    match (is_offered(ANY), is_offered(TUTORIALS)) {
        (true, false) => String::new(),
        (true, true) => TUTORIALS.into(),
        (false, _) => offers[0].name.clone(),
    }
}

/// Returns what a program's end means for its caller.
fn answer_of(name: &str, ended: Ended, invocation: &Invocation<'_>) -> Result<Outcome, Cancelled> {
    let error = match ended.end {
        End::Exited(status, output) if status.success() => return Ok(Ok(output)),
        End::Exited(status, _) => failed(name, status, ended.last_line),
        End::OutOfRange => {
            let most = invocation.most;
            let message = format!("the result has over {most} bytes, which the broker takes");
            Error::new(ErrorKind::OutOfRange, message)
        }
        End::TimedOut => Error::new(ErrorKind::TimedOut, format!("{name} did not end in time")),
        End::Cancelled(reason) => return Err(reason),
        End::OutOfMemory => no_memory(),
        End::Unobserved(error) => {
            let message = format!("{name} was killed: the server could not follow it: {error}");
            warn!("{message}");
            Error::new(kind_of(&error), message)
        }
    };

    Ok(Err(Error { stderr: ended.stderr, ..error }))
}

/// Returns the error of a program that was not started.
fn not_started(name: &str, error: &io::Error) -> Error {
    let message = format!("{name} cannot be started: {error}");
    warn!("{message}");
    Error::new(kind_of(error), message)
}

/// Returns the kind of the `error` that kept the server from starting a program, or from following it.
fn kind_of(error: &io::Error) -> ErrorKind {
    match Errno::from_io_error(error) {
        // No process, descriptor or memory is left, or the file is being written.
        Some(Errno::AGAIN | Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::TXTBSY) => {
            ErrorKind::Unavailable
        }
        _ => ErrorKind::Internal,
    }
}

/// Returns the error of a result that there is no memory for.
fn no_memory() -> Error {
    let message = "the server has no memory for the result";
    warn!("{message}");
    Error::new(ErrorKind::Unavailable, message)
}

/// Returns the error of a program that did not exit with 0. The numbers are those of sysexits.h.
fn failed(name: &str, status: ExitStatus, last_line: Option<String>) -> Error {
    let kind = match status.code() {
        Some(64 | 65) => ErrorKind::InvalidArgument,
        Some(75) => ErrorKind::Unavailable,
        _ => ErrorKind::Internal,
    };
    let exit_code = status.code().and_then(|code| u8::try_from(code).ok());
    let message = last_line.unwrap_or_else(|| format!("{name} {}", how_it_ended(status)));
    Error { exit_code, ..Error::new(kind, message) }
}

/// Runs a procedure so that its panic is the caller's error, not the server's end. There is no state
/// that a panic could leave half changed, hence `AssertUnwindSafe`.
fn guarded(name: &str, procedure: impl FnOnce() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(procedure)).unwrap_or_else(|_| {
        let message = format!("{name} failed on the server; its log has the reason");
        Err(Error::new(ErrorKind::Internal, message))
    })
}

/// Answers `fib n`: the n-th Fibonacci number.
fn fibonacci(argument: &[u8], settings: &Settings) -> Outcome {
    let (negative, digits) = integer("fib", argument)?;
    match str::from_utf8(digits).map(str::parse) {
        Ok(Ok(n)) if !negative && n <= settings.max_n => {
            Ok(fib::fib(n, settings.algorithm).to_string().into())
        }
        // A number of more digits than u64 holds is too large as well.
        _ => {
            let (most, argument) = (settings.max_n, excerpt(argument));
            let message = format!("fib takes n from 0 to {most}, not {argument}");
            Err(Error::new(ErrorKind::OutOfRange, message))
        }
    }
}

/// Answers `fun n`: a hundred times n, whatever its size: two more zeros.
fn hundredfold(argument: &[u8]) -> Outcome {
    let (negative, digits) = integer("fun", argument)?;
    Ok(match digits {
        b"0" => digits.into(),
        _ => [if negative { &b"-"[..] } else { b"" }, digits, b"00"].concat(),
    })
}

/// Returns whether a decimal integer of any size is negative, and its digits without leading zeros.
fn integer<'a>(procedure: &str, argument: &'a [u8]) -> Result<(bool, &'a [u8]), Error> {
    let (negative, digits) = match argument {
        [sign @ (b'-' | b'+'), digits @ ..] => (*sign == b'-', digits),
        digits => (false, digits),
    };

    // To the end, whatever comes: so the compiler looks at many bytes at once.
    let are_digits = digits.iter().fold(true, |are, byte| are & byte.is_ascii_digit());
    if digits.is_empty() || !are_digits {
        let message = match str::from_utf8(argument) {
            Ok(_) => {
                let argument = excerpt(argument);
                format!("{procedure} takes an integer in decimal digits, not \"{argument}\"")
            }
            Err(_) => format!("the argument of {procedure} is not UTF-8 text"),
        };
        return Err(Error::new(ErrorKind::InvalidArgument, message));
    }

    match digits.iter().position(|digit| *digit != b'0') {
        None => Ok((false, b"0")),
        Some(zeros) => Ok((negative, &digits[zeros..])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancellation::CallHandle;

    const SETTINGS: Settings =
        Settings { algorithm: Algorithm::FastDoubling, max_n: 1_000, coprocess_calls: None };

    fn call(offers: &[Offer], name: &str, argument: &[u8]) -> Outcome {
        let procedures = Procedures::new(offers, SETTINGS).unwrap();
        let handle = CallHandle::default();
        let invocation = Invocation { most: 1_000, ..Invocation::new(argument, &handle) };
        procedures.call(name, &invocation).unwrap()
    }

    fn ok(name: &str, argument: &str) -> String {
        String::from_utf8(call(&[], name, argument.as_bytes()).unwrap()).unwrap()
    }

    fn error(name: &str, argument: &[u8]) -> (ErrorKind, String) {
        let error = call(&[], name, argument).unwrap_err();
        (error.kind, error.message)
    }

    #[test]
    fn each_procedure_answers() {
        assert_eq!(ok("a", ""), "a");
        assert_eq!(ok("b", "ignored"), "b");
        assert_eq!(ok("ping", ""), "pong");
        assert_eq!(ok("list", ""), "a\nb\nfib\nfun\nlist\nping");
        assert_eq!(ok("fib", "30"), "832040");
        assert_eq!(ok("fib", " 0030\n"), "832040");
        assert_eq!(ok("fib", "-0"), "0");
        assert_eq!(ok("fib", "1000").len(), 209);
    }

    #[test]
    fn fun_is_a_hundred_times_n_for_any_n() {
        for (n, value) in [
            ("7", "700"),
            ("+7", "700"),
            ("-7", "-700"),
            ("0", "0"),
            ("-000", "0"),
            ("007", "700"),
            ("99999999999999999999999", "9999999999999999999999900"),
        ] {
            assert_eq!(ok("fun", n), value);
        }
    }

    #[test]
    fn what_is_no_integer_is_invalid() {
        for argument in ["", " ", "abc", "1e9", "3.0", "-", "+", "--3", "1 2", "٣", "0x1f"] {
            for name in ["fib", "fun"] {
                let (kind, message) = error(name, argument.as_bytes());
                assert_eq!(kind, ErrorKind::InvalidArgument, "{name} {argument:?}");
                let shown = argument.trim();
                assert_eq!(
                    message,
                    format!("{name} takes an integer in decimal digits, not \"{shown}\"")
                );
            }
        }
        assert_eq!(
            error("fib", b"caf\xe9"),
            (ErrorKind::InvalidArgument, "the argument of fib is not UTF-8 text".into())
        );
    }

    #[test]
    fn what_fib_will_not_compute_is_out_of_range() {
        for argument in ["-1", "1001", "99999999999999999999999"] {
            let (kind, message) = error("fib", argument.as_bytes());
            assert_eq!(kind, ErrorKind::OutOfRange, "{argument}");
            assert_eq!(message, format!("fib takes n from 0 to 1000, not {argument}"));
        }
        let (kind, message) = error("fib", &vec![b'9'; 1_000_000]);
        assert_eq!(kind, ErrorKind::OutOfRange);
        assert!(message.len() < 300, "{message}");
    }

    #[test]
    fn an_unknown_procedure_is_told_which_ones_there_are() {
        assert_eq!(
            error("fibb", b""),
            (
                ErrorKind::UnknownProcedure,
                "there is no procedure \"fibb\"; there are a, b, fib, fun, list, ping".into()
            )
        );
    }

    fn words(offered: &Offered) -> &Words {
        match offered {
            Offered::Program(words) | Offered::Coprocess(_, words) => words,
            Offered::BuiltIn => panic!("a built-in procedure has no words"),
        }
    }

    #[test]
    fn what_is_offered() {
        let offer = |text| Offer::parse(text).unwrap();
        let offers = [offer("up=tr a-z 'A-Z'"), offer("fun"), offer("fib=echo \"=\"")];
        assert_eq!(words(&offers[0].what).words, ["tr", "a-z", "A-Z"]);
        assert_eq!((&offers[1].what, offers[2].name.as_str()), (&Offered::BuiltIn, "fib"));
        assert_eq!(call(&offers, "list", b"").unwrap(), b"fib\nfun\nlist\nping\nup");
        assert_eq!(call(&offers, "fun", b"7").unwrap(), b"700");
        assert_eq!(call(&offers, "a", b"").unwrap_err().kind, ErrorKind::UnknownProcedure);
        let default = |offers| Procedures::new(offers, SETTINGS).unwrap().default;
        assert_eq!((default(&offers), default(&[])), ("up".into(), "fib".into()));
    }

    #[test]
    fn any_other_procedure() {
        let offer = |text| Offer::parse(text).unwrap();
        let any = offer("*=sh -c 'echo any $RPC_PROCEDURE'");
        let offers = [any.clone(), offer("up=echo up")];
        for (name, expected) in
            [("up", "up\n"), ("ping", "pong"), ("", "any\n"), ("*", "any\n"), ("fib", "any\n")]
        {
            assert_eq!(call(&offers, name, b"30").unwrap(), expected.as_bytes(), "{name}");
        }
        assert_eq!(call(&offers, "list", b"").unwrap(), b"*\nlist\nping\nup");
        assert_eq!(default_name(&offers), "");
        assert_eq!(default_name(&[any, offer("fib")]), "fib");
        let failing = [offer("*=sh -c 'exit 3'")];
        assert_eq!(call(&failing, "x", b"").unwrap_err().message, "* exited with 3");
    }

    #[test]
    fn what_a_shell_would_take_for_an_operator() {
        for (command, operator) in [
            ("sort | uniq", Some("|")),
            ("sort > sorted", Some(">")),
            ("make && echo done", Some("&&")),
            ("sort '|' uniq", None),
            ("cut -d '|' -f 1", None),
            ("find . -exec wc {} \\;", None),
            ("sh -c 'sort | uniq'", None),
            ("grep a|b", None),
        ] {
            let offer = Offer::parse(&format!("p={command}")).unwrap();
            assert_eq!(words(&offer.what).operator, operator, "{command}");
        }
    }

    #[test]
    fn what_cannot_be_offered() {
        let long = "n".repeat(256);
        for (text, reason) in [
            ("", "a name cannot be empty"),
            ("=tr", "a name cannot be empty"),
            (long.as_str(), "a name has at most 255 bytes, and this one has 256"),
            (
                "up",
                "the built-in procedures are fib, fun, a, b; a program is offered by NAME=COMMAND",
            ),
            ("ping=cat", "ping is always the built-in procedure: take another name"),
            ("up=", "the command is empty"),
            ("up= ", "the command is empty"),
            ("up=tr 'a-z", "a quote is open"),
        ] {
            assert_eq!(Offer::parse(text), Err(reason.into()), "{text}");
        }
        let offers = [Offer::parse("up=/no/such/program").unwrap()];
        let failure = Procedures::new(&offers, SETTINGS).err().unwrap();
        assert_eq!(failure.kind, crate::error::FailureKind::Configuration);
    }

    /// As with one that cannot be started: the call may be made again.
    #[test]
    fn a_program_that_cannot_be_followed_for_want_of_descriptors() {
        for (errno, kind) in
            [(Errno::MFILE, ErrorKind::Unavailable), (Errno::IO, ErrorKind::Internal)]
        {
            let end = End::unobserved(errno.into());
            let ended = Ended { end, last_line: None, stderr: None };
            let handle = CallHandle::default();
            let answer = answer_of("p", ended, &Invocation::new(b"", &handle)).unwrap();
            assert_eq!(answer.unwrap_err().kind, kind);
        }
    }

    #[test]
    fn a_panic_is_an_internal_error() {
        let error = guarded("fib", || panic!("out of luck")).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Internal);
        assert_eq!(error.message, "fib failed on the server; its log has the reason");
        assert!(!error.message.contains("luck"));
    }
}
