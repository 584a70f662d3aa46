//! What the README and the reference say is so, and what the documents link to is there.

use clap::CommandFactory;
use fib_rpc::cli;
use fib_rpc::error::FailureKind;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const README: &str = include_str!("../../README.md");
const REFERENCE: &str = include_str!("../../docs/reference.md");

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
fn the_reference_names_every_option_and_no_other() {
    let commands = [cli::Server::command(), cli::Client::command()];
    let mut known: BTreeSet<String> = commands
        .iter()
        .flat_map(|command| command.get_arguments())
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect();
    known.extend(["help".to_owned(), "version".to_owned()]);
    assert_eq!(options(REFERENCE), known);
    // cargo install --locked --path
    known.extend(["locked".to_owned(), "path".to_owned()]);
    let unknown: Vec<String> = options(README).difference(&known).cloned().collect();
    assert_eq!(unknown, [""; 0]);
}

#[test]
fn the_references_defaults_are_the_programs() {
    for command in [cli::Server::command(), cli::Client::command()] {
        for argument in command.get_arguments() {
            let (Some(long), Some(default)) =
                (argument.get_long(), argument.get_default_values().first())
            else {
                continue;
            };
            if argument.get_action().takes_values() {
                let row = REFERENCE
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
    let mut known: BTreeSet<u8> = FailureKind::ALL.into_iter().map(FailureKind::code).collect();
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

/// Files, and headings of Markdown files, as GitHub makes anchors of them.
#[test]
fn what_the_documents_link_to_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut documents: Vec<PathBuf> =
        ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
            .map(|name| root.join(name))
            .into();
    documents.extend(fs::read_dir(root.join("docs")).unwrap().map(|entry| entry.unwrap().path()));
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for (_, rest) in text.match_indices("](").map(|(at, _)| text.split_at(at + 2)) {
            let link = rest.split(')').next().unwrap();
            if link.contains("://") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let target = match file {
                "" => document.clone(),
                _ => document.parent().unwrap().join(file),
            };
            assert!(target.exists(), "{}: {link}", document.display());
            let there = anchor.is_empty() || anchors(&target).any(|heading| heading == anchor);
            assert!(there, "{}: no heading for {link}", document.display());
        }
    }
}

fn anchors(document: &Path) -> impl Iterator<Item = String> {
    let text = fs::read_to_string(document).unwrap();
    let headings: Vec<String> = text
        .lines()
        .filter_map(|line| {
            line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))
        })
        .map(|heading| heading.to_lowercase().replace(' ', "-"))
        .map(|heading| {
            heading.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
        })
        .collect();
    headings.into_iter()
}
