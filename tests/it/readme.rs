//! What the README says is so.

use clap::CommandFactory;
use fib_rpc::cli;
use fib_rpc::exit::Kind;
use std::collections::BTreeSet;

const README: &str = include_str!("../../README.md");

/// The long options that a text names.
fn options(text: &str) -> BTreeSet<String> {
    text.match_indices("--")
        .map(|(at, _)| &text[at + 2..])
        .map(|rest| rest.split(|c: char| !c.is_ascii_lowercase() && c != '-').next().unwrap_or(""))
        .filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        .map(str::to_owned)
        .collect()
}

#[test]
fn it_names_every_option_and_no_other() {
    let commands = [cli::Server::command(), cli::Client::command()];
    let mut known: BTreeSet<String> = commands
        .iter()
        .flat_map(|command| command.get_arguments())
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect();
    known.extend(["help".to_owned(), "version".to_owned()]);
    // cargo install --locked --path
    let told: BTreeSet<String> =
        options(README).into_iter().filter(|o| o != "path" && o != "locked").collect();
    assert_eq!(told, known);
}

#[test]
fn its_defaults_are_the_programs() {
    for command in [cli::Server::command(), cli::Client::command()] {
        for argument in command.get_arguments() {
            let (Some(long), Some(default)) =
                (argument.get_long(), argument.get_default_values().first())
            else {
                continue;
            };
            if argument.get_action().takes_values() {
                let row = README
                    .lines()
                    .find(|line| line.starts_with(&format!("| `--{long}")))
                    .unwrap_or_else(|| panic!("no row for --{long}"));
                let end = format!("| `{}` |", default.to_str().unwrap());
                assert!(row.ends_with(&end), "{row} does not end in {end}");
            }
        }
    }
}

#[test]
fn its_exit_codes_are_the_programs() {
    let told: BTreeSet<u8> = README
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse().ok())
        .collect();
    let mut known: BTreeSet<u8> = Kind::ALL.into_iter().map(Kind::code).collect();
    known.insert(0);
    assert_eq!(told, known);
}

/// The test `the_transcript_of_both_sides` sees the programs write these lines.
#[test]
fn its_transcript_is_the_programs() {
    for block in [
        "$ rpc_server --prefetch 1\n [x] Awaiting RPC requests\n [.] fib(30)\n",
        "$ rpc_client fib 30\n [x] Requesting fib(30)\n [.] Got 832040\n",
    ] {
        assert!(README.contains(block), "{block}");
    }
}
