//! The shells' completions and the man pages in `share/`: that they are what the programs'
//! definitions give, and that the shells take them. Needs no broker.
//!
//! `UPDATE=1 cargo test --locked --test shell` writes them.

use clap::{Command as Definition, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, roman};
use fib_rpc::cli;
use fib_rpc::error::FailureKind;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Once;
use std::{env, fs};

const README: &str = include_str!("../README.md");

const RENEW: &str = "UPDATE=1 cargo test --locked --test shell";

/// When the texts below were last worked on. A man page has a date, and it cannot be today's.
const DATE: &str = "2026-11-29";

/// What a man page has and the definitions have not. `Text` in backquotes is bold.
struct Page {
    synopsis: &'static str,
    description: &'static [&'static str],
    exit_status: Vec<(String, String)>,
    see_also: &'static str,
}

const PROCEDURES: &str = "The procedures are `fib` (exact for any n), `fun` (100 times its \
argument), `a` and `b` (their own names), `ping` (pong) and `list` (the names).";

const AMQP_URL: &str = "The brokers, as for `--url`, which overrides it; a password here is not in \
the process list. A URI is `amqp://user:password@host:port/vhost?query`, or `amqps` for TLS, and \
all but the scheme may be left out. Reserved characters are percent-encoded: a vhost a/b is a%2Fb. \
The query takes `heartbeat`, `connection_timeout`, `channel_max`, `auth_mechanism` and, for amqps, \
`cacertfile`, `certfile`, `keyfile`, \
`verify` and `server_name_indication`.";

const RUST_LOG: &str = "Which diagnostics to write to standard error: a level, or several by \
module, as in `fib_rpc=debug`. It overrides `--verbose` and `--quiet`.";

const NO_COLOR: &str = "If it is set, or TERM is `dumb`, `--help` has no colours.";

fn server_page() -> Page {
    let exits = [
        (FailureKind::Usage, "wrong usage"),
        (
            FailureKind::QueueUnusable,
            "another connection has the request queue for itself, or there is no exchange to bind it to",
        ),
        (FailureKind::Internal, "the program itself failed"),
        (FailureKind::AccessRefused, "credentials or permission refused"),
        (
            FailureKind::Configuration,
            "wrong configuration: malformed URI, missing vhost, bad certificate, a program that is not \
             there",
        ),
    ];
    let mut exit_status = vec![("0".into(), "stopped in good order".into())];
    exit_status.extend(exits.map(|(kind, text)| (kind.code().to_string(), text.into())));
    exit_status
        .push(("129, 130, 143".into(), "stopped by a second SIGHUP, SIGINT, SIGTERM".into()));
    Page {
        synopsis: "rpc_server [OPTION]...",
        description: &[
            "`rpc_server` answers remote procedure calls. As the server of RabbitMQ's tutorial six does, it \
             takes requests from a queue, computes, and publishes each result to the queue that the \
             request names in reply_to, with the request's correlation_id; then it acknowledges the \
             request.",
            PROCEDURES,
            "`--procedure NAME=COMMAND` offers a program, which gets the argument as its standard input \
             and answers by its standard output. COMMAND is split into words as a shell does, without \
             one. The program's exit code says how it went: 0 is a result, 64 and 65 an invalid \
             argument, 75 that another attempt may succeed, anything else that it failed; the error's \
             sentence is the last line of its standard error.",
            "A request queue that exists is used as it is; otherwise the server creates it, durable. \
             If the connection is lost, or no broker is there yet, the server tries again, with growing \
             pauses, through the list of brokers.",
            "On SIGINT, SIGTERM or SIGHUP the server finishes the calls that run, answers them, and exits \
             with 0; on a second signal it kills their programs and ends at once.",
            cli::DURATION,
        ],
        exit_status,
        see_also: "rpc_client",
    }
}

fn client_page() -> Page {
    let rows = README.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ");
        let (code, text) = (cells.next()?, cells.next()?);
        code.starts_with(|c: char| c.is_ascii_digit()).then(|| (code.to_owned(), text.to_owned()))
    });
    Page {
        synopsis: "rpc_client [OPTION]... PROCEDURE [ARGUMENT]...",
        description: &[
            "`rpc_client` makes remote procedure calls. As the client of RabbitMQ's tutorial six does, it \
             publishes a request to the request queue and waits for the reply; here one request for each \
             ARGUMENT, all on one connection. It writes the results in the order of the arguments: on a \
             terminal as the tutorial's transcript, elsewhere the results alone. A call that fails \
             leaves a line on standard error and does not stop the rest. With `--fail-fast` it does: no \
             more calls are made, those before it are awaited, and those after it are dropped.",
            PROCEDURES,
            "If the connection is lost, unanswered calls are sent again on a new one, within their time \
             limits. So a procedure may run twice.",
            "A batch that takes more than a second shows its progress on standard error, if that is a \
             terminal and standard output is a file or /dev/null, or has no results (`--output` with `--format plain`); \
             not with TERM=dumb, nor with `--quiet`.",
            cli::DURATION,
        ],
        exit_status: rows.collect(),
        see_also: "rpc_server",
    }
}

/// Each file of `share/` by its path there.
fn generated() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for (definition, page) in
        [(cli::Server::command(), server_page()), (cli::Client::command(), client_page())]
    {
        let name = definition.get_name().to_owned();
        for (shell, path) in [
            (Shell::Bash, format!("bash-completion/completions/{name}")),
            (Shell::Zsh, format!("zsh/site-functions/_{name}")),
            (Shell::Fish, format!("fish/vendor_completions.d/{name}.fish")),
        ] {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut definition.clone(), &name, &mut text);
            files.insert(path, text);
        }
        files.insert(format!("man/man1/{name}.1"), man_page(definition, page));
    }
    files
}

fn man_page(definition: Definition, page: Page) -> Vec<u8> {
    let help = definition.get_after_help().expect("examples").to_string();
    let definition = definition.override_usage(page.synopsis);
    let man = Man::new(definition).date(DATE).manual("User Commands");
    let mut text = Vec::new();
    man.render_title(&mut text).unwrap();
    // A word broken by a hyphen is not what to type.
    Roff::new().control("nh", []).control("ad", ["l"]).to_writer(&mut text).unwrap();
    man.render_name_section(&mut text).unwrap();
    man.render_synopsis_section(&mut text).unwrap();

    let mut roff = Roff::new();
    for (i, paragraph) in page.description.iter().enumerate() {
        match i {
            0 => roff.control("SH", ["DESCRIPTION"]),
            _ => roff.control("PP", []),
        };
        roff.text(inlines(paragraph));
    }
    roff.to_writer(&mut text).unwrap();

    man.render_options_section(&mut text).unwrap();

    let mut roff = Roff::new();
    roff.control("SH", ["ENVIRONMENT"]);
    item(&mut roff, "AMQP_URL", AMQP_URL);
    item(&mut roff, "RUST_LOG", RUST_LOG);
    item(&mut roff, "NO_COLOR", NO_COLOR);
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in page.exit_status {
        item(&mut roff, &code, &meaning);
    }
    roff.control("SH", ["EXAMPLES"]);
    for line in help.lines().skip(1).take_while(|line| !line.is_empty()) {
        let example = line.trim();
        match example.split_once("  ") {
            Some((command, meaning)) => item(&mut roff, command, meaning.trim()),
            None if line.starts_with("   ") => {
                _ = roff.control("br", []).text([roman(example)]);
            }
            None => _ = roff.control("PP", []).text([bold(example)]),
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    roff.text([bold(page.see_also), roman("(1), "), bold("rabbitmqctl"), roman("(8)")]);
    for url in ["docs/uri-spec", "tutorials/tutorial-six-python"] {
        roff.control("PP", []).text([roman(format!("https://www.rabbitmq.com/{url}"))]);
    }
    roff.to_writer(&mut text).unwrap();

    // One preamble is enough, and mandoc has something to say of the other two.
    let text = String::from_utf8(text).unwrap();
    let preamble = Roff::new().render();
    let body =
        text.replace(&preamble, "").replace("\n.br\n\n.br\n", "\n.sp\n").replace(" \n", "\n");
    (preamble + &body).into_bytes()
}

fn item(roff: &mut Roff, what: &str, meaning: &str) {
    roff.control("TP", []).text([bold(what)]).text(inlines(meaning));
}

fn inlines(text: &str) -> Vec<Inline> {
    let parts = text.split('`').enumerate();
    parts.map(|(i, part)| if i % 2 == 0 { roman(part) } else { bold(part) }).collect()
}

/// A file of `share/`, renewed if that is asked for.
fn share(path: &str) -> PathBuf {
    static RENEWED: Once = Once::new();
    let share = Path::new(env!("CARGO_MANIFEST_DIR")).join("share");
    RENEWED.call_once(|| {
        if env::var_os("UPDATE").is_some() {
            for (path, text) in generated() {
                let file = share.join(path);
                fs::create_dir_all(file.parent().unwrap()).unwrap();
                fs::write(file, text).unwrap();
            }
        }
    });
    share.join(path)
}

#[test]
fn the_files_are_what_the_definitions_give() {
    for (path, text) in generated() {
        let there = fs::read(share(&path)).unwrap_or_default();
        assert!(there == text, "share/{path} is out of date; {RENEW} renews all");
    }
}

/// Whatever AMQP_URL says, the files are the same.
#[test]
fn a_password_in_the_environment_stays_there() {
    // Renewed by now, if they are to be.
    share("");
    let mut again = Command::new(env::current_exe().unwrap());
    again.arg("the_files_are_what_the_definitions_give").env_remove("UPDATE");
    let output = again.env("AMQP_URL", "amqp://u:s3cret@h").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

/// What `program` writes; None, and a word about it, if it is not installed.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = match Command::new(program).args(args).output() {
        Ok(output) => output,
        Err(error) => {
            assert_eq!(error.kind(), io::ErrorKind::NotFound, "{program}: {error}");
            let text = format!("SKIPPED: {program} is not installed; {}\n", args.join(" "));
            // Not by eprintln, whose text the test harness keeps to itself.
            io::stderr().write_all(text.as_bytes()).unwrap();
            return None;
        }
    };
    let [stdout, stderr] =
        [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success() && stderr.is_empty(), "{program} {args:?}: {stdout}{stderr}");
    Some(stdout)
}

/// A line that ends where TAB is pressed, and the only word that fits there.
const COMPLETIONS: [(&str, &str); 5] = [
    ("rpc_client --form", "--format"),
    ("rpc_client --format j", "json"),
    ("rpc_client --timeout 5s --format pl", "plain"),
    ("rpc_server --pre", "--prefetch"),
    ("rpc_server --algorithm rec", "recursive"),
];

/// Calls what the file has registered as readline would.
const BASH: &str = r#"
source "$0"
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
completer=$(complete -p "$1") completer=${completer#*-F } completer=${completer%% *}
"$completer" "$1" "${@: -1}" "${@: -2:1}"
printf '%s\n' "${COMPREPLY[@]}"
"#;

#[test]
fn bash_completes() {
    // Names and options have no beginning in common, so that a TAB inserts no `-`.
    let names = [("rpc_client fi", "fib"), ("rpc_client li", "list")];
    for (line, word) in COMPLETIONS.into_iter().chain(names) {
        let words: Vec<_> = line.split(' ').collect();
        let file = share(&format!("bash-completion/completions/{}", words[0]));
        let mut args = vec!["--norc", "-c", BASH, file.to_str().unwrap()];
        args.extend(words);
        let Some(completed) = output("bash", &args) else { return };
        assert_eq!(completed, format!("{word}\n"), "{line}");
    }
}

#[test]
fn fish_completes() {
    for (line, word) in COMPLETIONS {
        let file = share(&format!("fish/vendor_completions.d/{}.fish", program(line)));
        let file = file.to_str().unwrap();
        if output("fish", &["--no-execute", file]).is_none() {
            return;
        }
        let script = "source $argv[1]; complete -C $argv[2]";
        let completed = output("fish", &["--no-config", "-c", script, file, line]).unwrap();
        // With a tab and its description.
        let completed: Vec<_> = completed.lines().map(|l| l.split('\t').next().unwrap()).collect();
        assert_eq!(completed, [word], "{line}");
    }
}

/// Types the line, TAB and Ctrl-X in a terminal of its own; Ctrl-X tells what the line is by then.
const ZSH: &str = r#"
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell "TMOUT=180 fpath=(${(q)1} \$fpath); autoload -Uz compinit; compinit -D -u"
zpty -w shell 'tell() { print -r -- "[[$BUFFER]]"; exit }; zle -N tell; bindkey "^X" tell'
zpty -n -w shell "$2"$'\t\x18'
while zpty -r shell line; do print -r -- "$line"; done
"#;

#[test]
fn zsh_completes() {
    let folder = share("zsh/site-functions");
    for (line, word) in COMPLETIONS {
        let file = folder.join(format!("_{}", program(line)));
        if output("zsh", &["-n", file.to_str().unwrap()]).is_none() {
            return;
        }
        let told = output("zsh", &["-f", "-c", ZSH, "", folder.to_str().unwrap(), line]).unwrap();
        let typed = line.rsplit_once(' ').unwrap().0;
        // What follows is a space, or "=" to be typed over.
        assert!(told.contains(&format!("[[{typed} {word}")), "{line}: {told}");
    }
}

fn program(line: &str) -> &str {
    line.split(' ').next().unwrap()
}

#[test]
fn mandoc_has_nothing_to_say_of_the_man_pages() {
    for path in ["man/man1/rpc_client.1", "man/man1/rpc_server.1"] {
        output("mandoc", &["-T", "lint", "-W", "warning", share(path).to_str().unwrap()]);
    }
}
