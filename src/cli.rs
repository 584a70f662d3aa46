//! Both programs' arguments. What a program does with them at its start is in [`crate::program`].

use crate::amqp::binding::Binding;
use crate::amqp::client_properties::{ClientProperties, connection_name};
use crate::amqp::queue;
use crate::amqp::{name, short_string};
use crate::coprocess::Protocol;
use crate::fib::{Algorithm, RECURSIVE_LIMIT};
use crate::header::Header;
use crate::pointer::{ErrorAt, Pointer};
use crate::procedure::{Offer, Offered, Settings, built_in_names, optional_names};
use crate::protocol::MAX_EXPIRATION;
use crate::template::Template;
use clap::builder::{OsStringValueParser, PossibleValue, TypedValueParser};
use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, Parser, ValueEnum, ValueHint,
};
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ffi::{OsStr, OsString};
use std::fmt::{self, Display};
use std::io::{self, IsTerminal};
use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

/// Largest `--max-n`: the reply of a larger one would be over [`crate::amqp::MAX_BODY`].
const MAX_MAX_N: u64 = 80_000_000;

/// What help and man pages say of each option that takes one.
pub const DURATION: &str = "A DURATION is a number of seconds, or has units: 0.5, 500ms, 1m30s.";

const SERVER_EXAMPLES: &str = "\
Examples:
  rpc_server                            serve rpc_queue on localhost
  rpc_server --prefetch 1 --queue fast  another queue
  rpc_server --algorithm recursive -v   slow on purpose, every AMQP step printed
  rpc_server --drill crash-before-ack   what happens after a crash
  rpc_server --procedure 'words=wc -w'  a program as a procedure
  AMQP_URL=amqp://user:password@host/vhost rpc_server

On SIGINT, SIGTERM or SIGHUP the server finishes the calls that run, answers them, and exits with 0; on \
a second signal it kills their programs and ends at once.

Exit codes: 0 stopped in good order, 64 usage, 69 queue unusable or no exchange, 70 failed, 77 access refused, \
78 configuration.";

const CLIENT_EXAMPLES: &str = "\
Examples:
  rpc_client fib 30                     on a terminal, a transcript:
                                         [x] Requesting fib(30)
                                         [.] Got 832040
  x=$(rpc_client fib 30)                elsewhere, the result alone: 832040
  rpc_client fib 10 20 30               three calls, one connection, results in this order
  seq 0 100 | rpc_client fib -          a call for each line
  seq 0 100 | rpc_client --unordered --format json fib -
                                        results as they come, each with its argument
  rpc_client --send-on eof --format raw thumbnail - < photo.jpg > small.png
                                        one call, whatever bytes
  find . -name '*.jpg' | rpc_client --files --output 'small/{.}.png' --skip-existing thumbnail -
                                        a folder: files in, files out; goes on where it stopped
  rpc_client --wait --timeout 5m ping   wait for broker, queue, server and answer
  rpc_client -C application/json --error-at /err --result-at /response '' - < packets
                                        a service of NestJS, say; docs/interop.md has others
  rpc_client list                       the procedures that the server offers

Exit codes: 0 all calls succeeded, 64 usage, 65 input rejected, 66 a file cannot be read, \
69 no broker, exchange, queue or server, 70 the procedure failed, 73 an output cannot be written, 75 timed out, connection lost or unavailable, 76 not a reply, 77 access refused, \
78 configuration; of several calls, the first failure's.

A batch that takes more than a second shows its progress on stderr, if stderr is a terminal and \
standard output is a file or /dev/null, or has no results (--output with --format plain).";

/// The groups of options in the helps and man pages.
const CALLS: &str = "Calls";
const BATCHES: &str = "Batches";
const INPUT: &str = "Input";
const OUTPUT: &str = "Output";
const BROKER: &str = "Broker";

/// Where the broker is, and how much to tell.
#[derive(Debug, Args)]
pub struct Common {
    /// Broker; of several, the first that answers. A password in AMQP_URL is hidden from other users
    // Parsed after the arguments: their parser's errors would show the password.
    #[arg(help_heading = BROKER, long, value_name = "URI[,URI…]", env = "AMQP_URL", hide_env_values = true)]
    #[arg(value_hint = ValueHint::Other)]
    #[arg(default_value = DEFAULT_URL, value_parser = url_or_default)]
    pub url: String,

    /// Name of the request queue
    #[arg(help_heading = BROKER, long, value_name = "NAME", default_value = "rpc_queue", value_parser = name)]
    #[arg(value_hint = ValueHint::Other)]
    pub queue: String,

    /// Give up connecting after this long
    #[arg(help_heading = BROKER, long, value_name = "DURATION", default_value = "5s", value_parser = positive_duration)]
    #[arg(value_hint = ValueHint::Other)]
    pub connect_timeout: Duration,

    /// Name that the broker shows for the connection [default: program, host and process number]
    #[arg(help_heading = BROKER, long, value_name = "NAME", value_parser = connection_name)]
    #[arg(value_hint = ValueHint::Other)]
    pub connection_name: Option<String>,

    /// Have the broker confirm each message (publisher confirms); always on if several brokers are given
    #[arg(help_heading = BROKER, long)]
    pub confirm: bool,

    /// No transcript and no warnings; errors are still printed
    #[arg(help_heading = OUTPUT, short, long, overrides_with = "verbose")]
    pub quiet: bool,

    /// Print each AMQP step on stderr (-vv, -vvv: more); RUST_LOG overrides it
    #[arg(help_heading = OUTPUT, short, long, action = ArgAction::Count, overrides_with = "quiet")]
    pub verbose: u8,
}

impl Common {
    /// Returns what a broker is told of `program`.
    pub fn client_properties(&self, program: &str) -> ClientProperties {
        let mut properties = ClientProperties::new(program);
        if let Some(name) = &self.connection_name {
            properties.connection_name.clone_from(name);
        }
        properties
    }
}

/// The broker that is meant when none is named.
pub const DEFAULT_URL: &str = "amqp://localhost";

/// Returns the URIs given by `--url` or AMQP_URL; an empty AMQP_URL is none.
pub fn url_or_default(url: &str) -> Result<String, Infallible> {
    Ok(if url.is_empty() { DEFAULT_URL } else { url }.into())
}

/// Answers remote procedure calls from a RabbitMQ queue, by built-in procedures (fib, fun, a, b, ping,
/// list) or by any program.
#[derive(Debug, Parser)]
#[command(name = "rpc_server", version, max_term_width = 100)]
#[command(after_help = format!("{SERVER_EXAMPLES}\n\n{DURATION}"))]
#[command(args_override_self = true)]
pub struct Server {
    /// What both programs have.
    #[command(flatten)]
    pub common: Common,

    /// Type of the request queue, if this server has to create it
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = QueueType::Classic)]
    pub queue_type: QueueType,

    /// Bind the request queue to EXCHANGE with the routing key KEY; may be repeated
    #[arg(long, value_name = "EXCHANGE:KEY", value_parser = Binding::parse)]
    #[arg(value_hint = ValueHint::Other)]
    pub bind: Vec<Binding>,

    /// Requests a worker may hold unanswered; 0: no limit
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_hint = ValueHint::Other, value_parser = number(0, u16::MAX))]
    pub prefetch: u16,

    /// Calls answered at the same time, each by a thread with a channel of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    #[arg(value_hint = ValueHint::Other)]
    #[arg(value_parser = number::<u16>(1, 256))]
    pub workers: u16,

    /// The procedures.
    #[command(flatten)]
    pub offers: Offers,

    /// Replace a program that stays after it has answered N calls, in case it leaks
    #[arg(long, value_name = "N", value_parser = count)]
    #[arg(value_hint = ValueHint::Other)]
    pub coprocess_calls: Option<u64>,

    /// Content type of results; with a JSON type, errors are JSON too [default: text/plain or
    /// application/octet-stream, by their bytes]
    #[arg(long, value_name = "TYPE", value_parser = name)]
    #[arg(value_hint = ValueHint::Other)]
    pub content_type: Option<String>,

    /// End a program that takes longer than this for a call; 0: never
    #[arg(long, value_name = "DURATION", default_value = "10m", value_parser = call_timeout)]
    #[arg(value_hint = ValueHint::Other)]
    pub time_limit: Duration,

    /// Send SIGKILL to a program that is still there this long after SIGTERM; 0: at once
    #[arg(long, value_name = "DURATION", default_value = "2s", value_parser = delay)]
    #[arg(value_hint = ValueHint::Other)]
    pub kill_delay: Duration,

    /// Exit after N calls, counted over all workers
    #[arg(long, value_name = "N", value_parser = count)]
    #[arg(value_hint = ValueHint::Other)]
    pub max_calls: Option<u64>,

    /// Exit after this long without a call
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    #[arg(value_hint = ValueHint::Other)]
    pub idle_exit: Option<Duration>,

    /// Ack each request before its call, and refuse a request that comes again: no call runs twice
    #[arg(long)]
    pub at_most_once: bool,

    /// Serve /metrics (numbers for Prometheus) and /healthz (whether all workers consume) over HTTP; without
    /// ADDRESS, on 127.0.0.1
    #[arg(long, value_name = "[ADDRESS:]PORT", value_parser = metrics_address)]
    #[arg(value_hint = ValueHint::Other)]
    pub metrics: Option<SocketAddr>,

    /// Algorithm of fib
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Algorithm::FastDoubling)]
    pub algorithm: Algorithm,

    /// Largest n that fib accepts [default: 1000000; 45 when recursive]
    #[arg(long, value_name = "N", value_parser = number(0, MAX_MAX_N))]
    #[arg(value_hint = ValueHint::Other)]
    pub max_n: Option<u64>,

    /// Misbehave on purpose, for teaching and tests
    #[arg(long, value_name = "FAULT", value_parser = Suggest(drill, || Drill::FORMS.into()))]
    #[arg(value_hint = ValueHint::Other)]
    pub drill: Option<Drill>,
}

impl Server {
    /// Returns what the options say about procedures.
    pub fn settings(&self) -> Settings {
        let max_n = match self.algorithm {
            Algorithm::Recursive => 45,
            Algorithm::FastDoubling | Algorithm::Iterative => 1_000_000,
        };
        Settings {
            algorithm: self.algorithm,
            max_n: self.max_n.unwrap_or(max_n),
            coprocess_calls: self.coprocess_calls,
        }
    }

    /// Returns what `--at-most-once` does not go with.
    fn check_at_most_once(&self) -> Result<(), String> {
        if self.prefetch != 1 {
            return Err(format!(
                "--prefetch {} does not go with --at-most-once: what a server has beside the call in hand comes \
                 redelivered when it dies, and would not be called though it was never begun; leave --prefetch out",
                self.prefetch
            ));
        }
        match self.drill {
            None => Ok(()),
            Some(_) => Err("--drill is about the loop that acks after the reply: leave out --at-most-once, or kill \
                 the server in the middle of a call (kill -9) to see what a crash comes to"
                .into()),
        }
    }
}

/// What a server offers, in the order of its command line.
#[derive(Debug, Clone)]
pub struct Offers(pub Vec<Offer>);

impl Offers {
    /// Returns whether a program that stays is among them.
    fn has_coprocess(&self) -> bool {
        self.0.iter().any(|offer| matches!(offer.what, Offered::Coprocess(..)))
    }

    /// The options that offer something.
    fn options() -> [Arg; 3] {
        let offer = |option: &'static str, value_name: &'static str| {
            let argument = Arg::new(option).long(option).value_name(value_name);
            argument.action(ArgAction::Append).value_hint(ValueHint::Other)
        };
        let coprocess = |text: &str, protocol| {
            Offer::parse_command(text, |words| Offered::Coprocess(protocol, words))
        };
        [
            offer("procedure", "NAME[=COMMAND]")
                .value_parser(Suggest(Offer::parse, optional_names))
                .hide_possible_values(true)
                .help(
                    "Offer a program as the procedure NAME; '*' stands for all other names. NAME alone keeps that built-in \
                     procedure; all others are hidden, but for ping and list. May be repeated",
                ),
            offer("coprocess", "NAME=COMMAND")
                .value_parser(move |text: &str| coprocess(text, Protocol::Text))
                .help(
                    "Offer a program that is started once and stays: it gets a line for each request, and answers with a \
                     line. May be repeated",
                ),
            offer("json-coprocess", "NAME=COMMAND")
                .value_parser(move |text: &str| coprocess(text, Protocol::Json))
                .help("The same, with a JSON object on each line, so that any bytes go through. May be repeated"),
        ]
    }
}

impl Args for Offers {
    fn augment_args(command: Command) -> Command {
        command.args(Offers::options())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Offers::augment_args(command)
    }
}

impl FromArgMatches for Offers {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Offers, clap::Error> {
        let options = ["procedure", "coprocess", "json-coprocess"];
        let given = options.into_iter().flat_map(|option| {
            let offers = matches.get_many::<Offer>(option).unwrap_or_default().cloned();
            matches.indices_of(option).unwrap_or_default().zip(offers)
        });
        let in_order: BTreeMap<usize, Offer> = given.collect();
        Ok(Offers(in_order.into_values().collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Offers::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The type of a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QueueType {
    /// On one node: fastest
    Classic,
    /// Replicated over a cluster: survives the loss of a node
    Quorum,
}

impl From<QueueType> for queue::QueueType {
    fn from(queue_type: QueueType) -> queue::QueueType {
        match queue_type {
            QueueType::Classic => queue::QueueType::Classic,
            QueueType::Quorum => queue::QueueType::Quorum,
        }
    }
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The transcript on a terminal, plain elsewhere
    Auto,
    /// The tutorial's transcript
    Transcript,
    /// Results alone; each ends with a newline, which is added if it is missing
    Plain,
    /// The results' bytes, with nothing added
    Raw,
    /// One JSON object per call, failed calls too
    Json,
}

/// What ends an argument that comes from standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SendOn {
    /// One call per line
    Newline,
    /// One call per piece that ends with a NUL, as find -print0 writes them
    Nul,
    /// One call with all of standard input, whatever bytes it has
    Eof,
}

/// How many calls are under way at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InFlight {
    /// As many as the servers answer in time, up to [`InFlight::most`].
    Auto,
    /// So many.
    Number(u16),
}

impl InFlight {
    /// How [`InFlight::Auto`] is written.
    const AUTO: &str = "auto";

    /// Returns how many calls there can be under way.
    pub fn most(self) -> usize {
        match self {
            InFlight::Auto => 64,
            InFlight::Number(number) => number.into(),
        }
    }
}

/// Calls a remote procedure through a RabbitMQ queue and writes its result to standard output.
#[derive(Debug, Parser)]
#[command(name = "rpc_client", version, max_term_width = 100)]
#[command(after_help = format!("{CLIENT_EXAMPLES}\n\n{DURATION}"))]
#[command(args_override_self = true)]
pub struct Client {
    /// Procedure to call; the procedure `list` names all; '' sends no name
    #[arg(value_parser = Suggest(short_text, built_in_names), hide_possible_values = true)]
    pub procedure: String,

    /// One call per argument; `-`: one call per line of standard input (see --send-on); no argument:
    /// one call with an empty body
    #[arg(value_name = "ARGUMENT", allow_negative_numbers = true)]
    pub arguments: Vec<OsString>,

    /// Give up a call this long after sending it, queueing included; 0: never
    #[arg(help_heading = CALLS, long, value_name = "DURATION", default_value = "30s", value_parser = call_timeout)]
    #[arg(value_hint = ValueHint::Other)]
    pub timeout: Duration,

    /// Wait for a broker, a queue and a server, up to --timeout, instead of failing at once
    #[arg(help_heading = CALLS, long)]
    pub wait: bool,

    /// If the connection is lost, do not send unanswered calls again
    #[arg(help_heading = CALLS, long)]
    pub no_retry: bool,

    /// Make a failed call again, up to N times, if the failure may pass (exit code 75: timed out,
    /// unavailable, connection lost or blocked)
    #[arg(help_heading = CALLS, long, value_name = "N", default_value_t = 0)]
    #[arg(value_hint = ValueHint::Other, value_parser = number(0, u32::MAX))]
    pub retries: u32,

    /// Content type of each request; '' sends none [default: text/plain, or application/octet-stream if the
    /// argument is not UTF-8]
    #[arg(help_heading = CALLS, short = 'C', long, value_name = "TYPE", value_parser = short_text)]
    #[arg(value_hint = ValueHint::Other)]
    pub content_type: Option<String>,

    /// Send a header with each request, as a string; may be repeated
    #[arg(help_heading = CALLS, short = 'H', long = "header", value_name = "NAME: VALUE")]
    #[arg(value_hint = ValueHint::Other)]
    pub headers: Vec<Header>,

    /// Fail a call if its reply's JSON has something at POINTER (a JSON pointer such as /err), or VALUE there
    #[arg(help_heading = CALLS, long, value_name = "POINTER[=VALUE]", value_hint = ValueHint::Other)]
    pub error_at: Option<ErrorAt>,

    /// Take what a reply's JSON has at POINTER as the result: a string as it is, anything else as JSON
    #[arg(help_heading = CALLS, long, value_name = "POINTER", value_hint = ValueHint::Other)]
    pub result_at: Option<Pointer>,

    /// Stop at the first failure and exit with its code: make no more calls, and drop those after it
    #[arg(help_heading = BATCHES, long)]
    pub fail_fast: bool,

    /// Calls under way at a time; auto: one for each consumer, and behind them as many as are answered in a
    /// quarter of --timeout, up to 64 in all. Results are written in order, so finished calls that wait for a
    /// slow one count too, except with --unordered
    #[arg(help_heading = BATCHES, long, value_name = "N", default_value = InFlight::AUTO)]
    #[arg(value_parser = Suggest(in_flight, || vec![InFlight::AUTO]), hide_possible_values = true)]
    pub in_flight: InFlight,

    /// Write each result as it comes, without waiting for earlier calls
    #[arg(help_heading = BATCHES, long)]
    pub unordered: bool,

    /// Make each call N times
    #[arg(help_heading = BATCHES, long, value_name = "N", default_value_t = 1)]
    #[arg(value_hint = ValueHint::Other)]
    #[arg(value_parser = count)]
    pub repeat: u64,

    /// How `-` splits standard input into calls [default: newline]
    #[arg(help_heading = INPUT, long, value_name = "END", value_enum)]
    pub send_on: Option<SendOn>,

    /// Take each argument as the name of a file, and send the file's content
    #[arg(help_heading = INPUT, long)]
    pub files: bool,

    /// Write each result to a file of its own: {} is the argument, {.} without extension, {/} without
    /// folders, {/.} without both, {//} its folder, {#} the call's number
    #[arg(help_heading = OUTPUT, long, value_name = "TEMPLATE", value_hint = ValueHint::FilePath)]
    #[arg(value_parser = OsStringValueParser::new().try_map(template))]
    pub output: Option<Template>,

    /// Skip calls whose output file exists: after Ctrl-C, the same command goes on where it stopped
    #[arg(help_heading = OUTPUT, long, requires = "output")]
    pub skip_existing: bool,

    /// Print calls per second and latencies on stderr at the end
    #[arg(help_heading = OUTPUT, long)]
    pub stats: bool,

    /// How results are written
    #[arg(help_heading = OUTPUT, long, value_enum, default_value_t = Format::Auto)]
    pub format: Format,

    /// Publish requests to this exchange instead of to a queue; '' is the default exchange
    #[arg(help_heading = BROKER, short, long, value_name = "NAME", conflicts_with = "queue")]
    #[arg(value_hint = ValueHint::Other, value_parser = short_text)]
    pub exchange: Option<String>,

    /// Routing key of the requests; may have the placeholders of --output [default: empty]
    #[arg(help_heading = BROKER, short, long, value_name = "TEMPLATE", requires = "exchange")]
    // An option that is required is not missed if another excludes it: --queue would leave the key without a use.
    #[arg(conflicts_with = "queue", value_hint = ValueHint::Other, value_parser = routing_key)]
    pub routing_key: Option<Template>,

    /// What both programs have.
    #[command(flatten)]
    pub common: Common,
}

impl Client {
    /// Returns how many of the arguments are `-`, standard input.
    pub fn stdins(&self) -> usize {
        self.arguments.iter().filter(|argument| *argument == "-").count()
    }

    /// Returns the name of a header that is given twice.
    fn header_given_twice(&self) -> Option<&str> {
        let mut names = BTreeSet::new();
        self.headers.iter().map(|header| header.name.as_str()).find(|name| !names.insert(*name))
    }

    /// Returns how many calls are asked for, unless that depends on what standard input has.
    pub fn calls(&self) -> Option<u64> {
        let is_known = self.stdins() == 0 || self.send_on == Some(SendOn::Eof);
        is_known.then(|| self.repeat.saturating_mul(self.arguments.len().max(1) as u64))
    }
}

/// A program's command line.
pub trait Program: Parser {
    /// Rules between options, which the definitions cannot say; an error names the rule that is broken,
    /// and the remedy.
    fn check(&self) -> Result<(), String>;
}

impl Program for Server {
    fn check(&self) -> Result<(), String> {
        let mut names = BTreeSet::new();
        if let Some(twice) = self.offers.0.iter().find(|offer| !names.insert(&offer.name)) {
            return Err(format!("{} {} is given twice", twice.option(), twice.name));
        }
        if self.at_most_once {
            self.check_at_most_once()?;
        }
        if self.coprocess_calls.is_some() && !self.offers.has_coprocess() {
            return Err("--coprocess-calls is about programs that stay: give one by --coprocess or --json-coprocess".into());
        }
        match self.max_n {
            Some(n) if self.algorithm == Algorithm::Recursive && n > RECURSIVE_LIMIT => {
                Err(format!(
                    "--max-n {n} is too large for --algorithm recursive, which counts in 64 bits: at most {RECURSIVE_LIMIT}"
                ))
            }
            _ => Ok(()),
        }
    }
}

impl Program for Client {
    fn check(&self) -> Result<(), String> {
        if let Some(twice) = self.header_given_twice() {
            return Err(format!("--header {twice} is given twice: a message has one of a name"));
        }
        match (self.send_on, self.stdins()) {
            (Some(_), 0) => {
                Err("--send-on is about standard input: give - as an argument to read it".into())
            }
            (Some(SendOn::Eof), 2..) => {
                Err("--send-on eof makes one argument of standard input: give - once".into())
            }
            _ if self.files && self.arguments.is_empty() => {
                Err("--files is about arguments: give names of files, or - to read them".into())
            }
            _ if self.output.as_ref().is_some_and(Template::is_constant)
                && self.calls() != Some(1) =>
            {
                let remedy = "put {} or {#} into it";
                Err(format!(
                    "--output has no placeholder, and all results would go to one file: {remedy}"
                ))
            }
            _ if self.repeat > 1
                && self.output.as_ref().is_some_and(|output| !output.has_number()) =>
            {
                let remedy = "put {#} into --output";
                Err(format!(
                    "--repeat makes calls with the same argument, and their results would go to one file: {remedy}"
                ))
            }
            _ if self.no_retry && self.retries > 0 => {
                Err("--no-retry sends no call twice, and --retries does: give one of them".into())
            }
            _ if self.format == Format::Raw && io::stdout().is_terminal() => {
                let remedy = "send standard output to a file or a pipe, or take --format plain";
                Err(format!("--format raw could upset a terminal: {remedy}"))
            }
            _ => Ok(()),
        }
    }
}

/// Returns a parser of whole numbers from `least` to `most`. Its error says what there can be.
fn number<T>(least: T, most: T) -> impl Fn(&str) -> Result<T, String> + Clone
where
    T: FromStr + PartialOrd + Display + Copy,
{
    move |text| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("a whole number from {least} to {most} is wanted")),
    }
}

/// Parses how many calls are under way at a time.
fn in_flight(text: &str) -> Result<InFlight, String> {
    match text {
        InFlight::AUTO => Ok(InFlight::Auto),
        _ => number(1, u16::MAX)(text)
            .map(InFlight::Number)
            .map_err(|error| format!("{error}, or auto")),
    }
}

/// Parses where to listen: `9155` and `:9155` are loopback, and else there is an address in front.
fn metrics_address(text: &str) -> Result<SocketAddr, String> {
    let loopback = ["", "localhost"];
    let (address, port) = text.rsplit_once(':').unwrap_or(("", text));
    let parsed = match port.parse() {
        Ok(port) if loopback.contains(&address) => Some((Ipv4Addr::LOCALHOST, port).into()),
        _ => text.parse().ok(),
    };
    parsed
        .ok_or("9155, 127.0.0.1:9155, [::1]:9155 and 0.0.0.0:9155 (all addresses) would do".into())
}

/// Parses a text that may be empty, and is a short string for AMQP.
fn short_text(text: &str) -> Result<String, String> {
    short_string("a name", text.into())
}

/// Parses a template for routing keys.
fn routing_key(text: &str) -> Result<Template, String> {
    let template = Template::new(OsStr::new(text));
    match template.is_constant() {
        true => short_text(text).map(|_| template),
        false => Ok(template),
    }
}

/// Parses how often something is done: once or more.
fn count(text: &str) -> Result<u64, String> {
    number(1, u64::MAX)(text).map_err(|_| "a whole number, 1 or more, is wanted".into())
}

/// Parses a template for the names of files.
fn template(text: OsString) -> Result<Template, &'static str> {
    match text.is_empty() {
        true => Err("the template is empty; {}.out would be one"),
        false => Ok(Template::new(&text)),
    }
}

/// Parses a duration: `30` and `0.5` are seconds; `500ms`, `1m30s` and so on say their unit.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = match text.parse() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok(),
        Err(_) => humantime::parse_duration(text).ok(),
    };
    duration.ok_or("30, 0.5, 500ms and 1m30s are durations, the first two in seconds".into())
}

/// Parses a delay: a duration, in seconds or with units.
fn delay(text: &str) -> Result<Duration, String> {
    // Its end must be a time that the system's clock has.
    Ok(duration(text)?.min(MAX_EXPIRATION))
}

/// Parses a bound on a wait: a duration over 0, in seconds or with units.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("no wait here is without end: give a duration over 0".into()),
        // A deadline must be a time that the system's clock has.
        duration => Ok(duration.min(MAX_EXPIRATION)),
    }
}

/// A parser of an option's value, with the values that completions suggest.
#[derive(Clone, Copy)]
struct Suggest<T: 'static>(fn(&str) -> Result<T, String>, fn() -> Vec<&'static str>);

impl<T: Clone + Send + Sync + 'static> TypedValueParser for Suggest<T> {
    type Value = T;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<T, clap::Error> {
        self.0.parse_ref(command, argument, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.1().into_iter().map(PossibleValue::new)))
    }
}

/// A fault that the server makes on purpose (`drill` has the loop).
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
            named => match named.to_possible_value() {
                Some(value) => f.write_str(value.get_name()),
                None => Ok(()),
            },
        }
    }
}

fn drill(text: &str) -> Result<Drill, String> {
    match text.split_once('=') {
        Some(("slow", delay)) => Ok(Drill::Slow(duration(delay)?)),
        _ => Drill::from_str(text, false)
            .map_err(|_| format!("the drills are {}", Drill::FORMS.join(", "))),
    }
}

fn call_timeout(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        long if long > MAX_EXPIRATION => {
            Err("the longest is 49 days, RabbitMQ's longest expiration; 0 means no limit".into())
        }
        short if short > Duration::ZERO && short.as_millis() == 0 => {
            Err("the shortest is 1ms; 0 means no limit".into())
        }
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_are_sound_and_every_option_has_help() {
        for command in [Server::command(), Client::command()] {
            command.clone().debug_assert();
            for argument in command.get_arguments() {
                assert!(
                    argument.get_help().is_some(),
                    "{}: {}",
                    command.get_name(),
                    argument.get_id()
                );
            }
        }
    }

    #[test]
    fn every_option_of_the_client_is_in_a_group() {
        let command = Client::command();
        let options = command.get_arguments().filter(|argument| !argument.is_positional());
        let groups: BTreeSet<_> = options.map(|option| option.get_help_heading()).collect();
        assert_eq!(groups, [BATCHES, BROKER, CALLS, INPUT, OUTPUT].map(Some).into());
    }

    #[test]
    fn durations() {
        let ms = Duration::from_millis;
        for (text, value) in [
            ("30", ms(30_000)),
            ("0.5", ms(500)),
            ("500ms", ms(500)),
            ("1m30s", ms(90_000)),
            ("0", ms(0)),
            ("0s", ms(0)),
        ] {
            assert_eq!(duration(text), Ok(value), "{text}");
        }
        for text in ["", "abc", "-1", "NaN", "inf", "1e30", "3 parsecs"] {
            let reason = duration(text).expect_err(text);
            assert!(
                reason.starts_with("30, 0.5, 500ms and 1m30s are durations"),
                "{text}: {reason}"
            );
        }
        assert!(positive_duration("0").is_err());
        assert!(call_timeout("50d").is_err());
        assert!(call_timeout("0.0001").is_err());
        assert_eq!(call_timeout("0"), Ok(ms(0)));
    }

    #[test]
    fn numbers() {
        assert_eq!(number(0, 3)("3"), Ok(3));
        for text in ["", "x", "-1", "4", "1.5", "99999999999999999999"] {
            let reason = number(0_u8, 3)(text).expect_err(text);
            assert_eq!(reason, "a whole number from 0 to 3 is wanted", "{text}");
        }
        for (option, range) in [
            ("--retries=x", " from 0 to 4294967295"),
            ("--in-flight=0", " from 1 to 65535"),
            ("--repeat=0", ", 1 or more,"),
        ] {
            let error = Client::try_parse_from(["rpc_client", option, "fib"]).unwrap_err();
            assert!(
                error.to_string().contains(&format!(": a whole number{range} is wanted")),
                "{error}"
            );
        }
    }

    #[test]
    fn calls_under_way() {
        let client = |options: &[&str]| {
            Client::parse_from([&["rpc_client"], options, &["fib"]].concat()).in_flight
        };
        assert_eq!((client(&[]), client(&[]).most()), (InFlight::Auto, 64));
        assert_eq!(client(&["--in-flight=9", "--in-flight=auto"]), InFlight::Auto);
        assert_eq!(client(&["--in-flight=65535"]).most(), 65535);
        let reason = in_flight("automatic").unwrap_err();
        assert_eq!(reason, "a whole number from 1 to 65535 is wanted, or auto");
    }

    #[test]
    fn addresses() {
        for (text, address) in [
            ("9155", "127.0.0.1:9155"),
            (":9155", "127.0.0.1:9155"),
            ("localhost:9155", "127.0.0.1:9155"),
            ("10.0.0.1:9155", "10.0.0.1:9155"),
            ("[::1]:0", "[::1]:0"),
        ] {
            assert_eq!(metrics_address(text), Ok(address.parse().unwrap()), "{text}");
        }
        for text in
            ["", ":", "x", "::1:9155", "[::1]", "10.0.0.1", "host:9155", "65536", "-1", " 1"]
        {
            assert!(metrics_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn drills() {
        for form in Drill::FORMS {
            let form = form.replace("DURATION", "2s");
            assert_eq!(drill(&form).map(|drill| drill.to_string()), Ok(form));
        }
        for text in ["", "crash", "slow", "slow=", "slow=-1", "fail=1"] {
            assert!(drill(text).is_err(), "{text}");
        }
    }

    #[test]
    fn negative_numbers_are_arguments() {
        let client = Client::try_parse_from(["rpc_client", "fib", "-1", "-"]).unwrap();
        assert_eq!(client.arguments, ["-1", "-"]);
    }
}
