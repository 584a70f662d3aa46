//! Every command in the documents is typed into terminals, and what these show is what the documents
//! say, ids, ports and times aside.
//!
//! Each section of a document is a test of its own, with a folder, a private node (see `harness/node.rs`) and
//! terminals of its own. The line in front of a block names its terminal, as in "Terminal 2 goes on:"; without a name it
//! is the first. A terminal keeps its state to the end of the section.

#[path = "it/harness/mod.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod harness;

use harness::{Node, build_examples};
use libtest_mimic::{Arguments, Trial};
use pty_process::Size;
use pty_process::blocking::{self, Pty};
use regex::Regex;
use std::collections::{BTreeMap, VecDeque};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

const DOCUMENTS: [&str; 5] =
    ["README.md", "docs/lessons.md", "docs/commands.md", "docs/fleet.md", "docs/monitoring.md"];

/// Commands that are not typed, and why.
const NOT_TYPED: [(&str, &str); 5] = [
    (
        "cargo build --release --locked --bins --examples",
        "the terminals have the programs that cargo test builds",
    ),
    ("cargo install --locked --path .    # both programs", "writes to the user's folders"),
    (
        "cp -r share/. ~/.local/share/      # man pages, completions for bash, fish and zsh",
        "writes to the user's folders",
    ),
    ("scripts/demo.sh    # one call on a private RabbitMQ node", "check.sh runs it"),
    ("scripts/test.sh    # all tests", "runs this test"),
];

/// What is never the same twice, and what stands for it. A group is an id: it may be another one in
/// the document, but then it is the same other one in all of the section.
static VARIABLE: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    vec![
        // A node's address, and its name, which has the port.
        (regex(r"amqp://(?:localhost|127\.0\.0\.1):(\d+)"), "amqp://HOST"),
        (regex(r"http://127\.0\.0\.1:(\d+)"), "http://HOST"),
        (regex(r"\bfib-rpc-(\d+)@localhost\b"), "NODE"),
        // The host and the process in a connection's name.
        (regex(r#" [\w.-]+ \d+"$"#), " HOST PID\""),
        // A system's numbers for its errors.
        (regex(r"\(os error \d+\)"), "(os error)"),
        // Why a connection to a killed broker ends: whether it had read everything.
        (regex(r"was lost \([^()]+(?:\([^()]+\))?\)"), "was lost (REASON)"),
        // Correlation ids, whole as in JSON and short as at -v; reply queues.
        (regex(r"\b([0-9a-f]{8})-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b"), "UUID"),
        (regex(r"\bcorrelation_id ([0-9a-f]{8})\b"), "correlation_id ID"),
        (regex(r"\bamq\.gen-([\w-]{4})…"), "amq.gen-ID"),
        // The number of a thread, which Rust before 1.92 does not tell.
        (regex(r"^(?:thread 'main') \(\d+\)"), "thread 'main'"),
        // The command, which bash 5.3 puts behind it.
        (regex(r"^Killed +rpc_server .*$"), "Killed"),
        // Colours, as jq has them; rabbitmqctl's tabs.
        (regex("\t"), " "),
        (regex("\x1b\\[[0-9;]*m"), ""),
        // Of --stats, --format json, and bash's `time`.
        (regex(r"^\d+\.\d+ s$"), "TIME"),
        (regex(r"\bended after \d+\.\d+ s\b"), "ended after TIME"),
        (regex(r"\b\d+\.\d+ (?:ms|calls/s)"), "TIME"),
        (regex(r#""elapsed_ms":\d+(?:\.\d+)?"#), "TIME"),
    ]
});

/// The line with which a program says that it waits for others from now on.
static READY: LazyLock<Regex> =
    LazyLock::new(|| regex(r"^ \[x\] Awaiting RPC requests$|^ \[\*\] Waiting for "));

/// What may be left in a terminal at the end, after Ctrl-C: what a server says to that at -v.
static FAREWELL: LazyLock<Regex> = LazyLock::new(|| {
    regex(r"^(\$ )?\^C\n?(rpc_server: (asked to stop: |cancel the consumer of )[^\n]*\n)*\$ $")
});

/// `TYPING_PAUSE`, as in "10s", is how long a person takes before each command. Without it there is a pause
/// in these lessons alone, and of this length.
const PAUSED: [&str; 3] = ["2. ", "4. ", "7. "];
const PAUSE: Duration = Duration::from_secs(3);

/// How long to wait for what must come. Only a failing test waits this long, so that there is room for
/// a machine that is ten times slower.
const PATIENCE: Duration = Duration::from_secs(360);

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    // As libtest has it. Each has a node, and waits for most of its time.
    let threads = env::var("RUST_TEST_THREADS").ok().and_then(|threads| threads.parse().ok());
    arguments.test_threads.get_or_insert(threads.unwrap_or(3));
    let texts = DOCUMENTS.map(|name| fs::read_to_string(root().join(name)).expect(name));
    for (command, _) in NOT_TYPED {
        let line = format!("\n$ {command}\n");
        assert!(texts.iter().any(|text| text.contains(&line)), "no document has {command}");
    }
    let mut trials = Vec::new();
    for (document, text) in DOCUMENTS.into_iter().zip(texts) {
        for section in sections(document, &text) {
            let name = format!("{document}: {}", section.heading);
            trials.push(Trial::test(name, move || {
                build_examples();
                Ok(section.run()?)
            }));
        }
        if text.contains("In the code:") {
            let name = format!("{document}: names in the code");
            trials.push(Trial::test(name, move || Ok(names_in_code(&text)?)));
        }
    }
    // The last lessons take longest.
    trials.reverse();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).unwrap()
}

// ---- documents ----

#[derive(Clone)]
struct Line {
    place: String,
    text: String,
}

struct Block {
    terminal: String,
    lines: Vec<Line>,
}

struct Section {
    heading: String,
    blocks: Vec<Block>,
}

/// The sections that have something to type.
fn sections(document: &str, text: &str) -> Vec<Section> {
    let heading_or_block = regex(
        r"(?m)^## (?<heading>.+)$|(?:^(?<intro>.+)\n\n?)?^```(?<language>\w*)\n(?<body>(?s:.*?))^```$",
    );
    let terminal = regex(r"\b[Tt]erminal (\d)\b[^.]*:$");
    let mut sections = vec![Section { heading: "top".into(), blocks: Vec::new() }];
    for found in heading_or_block.captures_iter(text) {
        if let Some(heading) = found.name("heading") {
            sections.push(Section { heading: heading.as_str().into(), blocks: Vec::new() });
            continue;
        }
        let body = found.name("body").unwrap();
        let first = text[..body.start()].lines().count() + 1;
        let language = &found["language"];
        let is_shell = ["sh", "bash", "shell"].contains(&language);
        assert!(!is_shell, "{document}:{first}: commands belong into a console block, behind a $");
        let intro = found.name("intro").and_then(|intro| terminal.captures(intro.as_str()));
        let terminal = intro.map_or("1".into(), |intro| intro[1].into());
        let mut typed = true;
        let line = |(index, text): (usize, &str)| {
            if let Some(command) = text.strip_prefix("$ ") {
                typed = NOT_TYPED.iter().all(|(other, _)| *other != command);
            }
            let place = format!("{document}:{}", first + index);
            typed.then(|| Line { place, text: text.into() })
        };
        let lines: Vec<Line> = body.as_str().lines().enumerate().filter_map(line).collect();
        if language == "console" && !lines.is_empty() {
            sections.last_mut().unwrap().blocks.push(Block { terminal, lines });
        }
    }
    sections.retain(|section| !section.blocks.is_empty());
    sections
}

/// "In the code: `f`, `T::g` in `src/x.rs`; …": each is there.
fn names_in_code(text: &str) -> Result<(), String> {
    for paragraph in text.split("\n\n").filter(|paragraph| paragraph.contains("In the code:")) {
        let mut names = Vec::new();
        for word in regex(r"`([^`]+)`").captures_iter(paragraph).map(|found| found[1].to_owned()) {
            if !word.contains('/') {
                names.push(word);
                continue;
            }
            let file =
                fs::read_to_string(root().join(&word)).map_err(|e| format!("{word}: {e}"))?;
            for name in names.drain(..) {
                for part in name.split("::") {
                    let item = format!(r"(?m)\b(fn|struct|enum|const) {part}\b|^{part}\(\) ");
                    let is_there = regex(&item).is_match(&file);
                    is_there.then_some(()).ok_or(format!("{word} has no {part}: {paragraph}"))?;
                }
            }
        }
        names.is_empty().then_some(()).ok_or(format!("in which file is {names:?}? {paragraph}"))?;
    }
    Ok(())
}

// ---- comparing ----

/// The document's ids and the ones found in their places, both ways.
#[derive(Default)]
struct Ids(BTreeMap<String, String>, BTreeMap<String, String>);

impl Ids {
    fn same_line(&mut self, told: &str, found: &str) -> bool {
        let ((told, told_ids), (found, found_ids)) = (constant(told), constant(found));
        let mut pairs = told_ids.into_iter().zip(found_ids);
        told == found
            && pairs.all(|(told, found)| {
                *self.0.entry(told.clone()).or_insert(found.clone()) == found
                    && *self.1.entry(found).or_insert(told.clone()) == told
            })
    }
}

/// What of a line must be the same, and its ids.
fn constant(line: &str) -> (String, Vec<String>) {
    let (mut line, mut ids) = (line.to_owned(), Vec::new());
    for (rule, label) in VARIABLE.iter() {
        ids.extend(rule.captures_iter(&line).filter_map(|c| Some(c.get(1)?.as_str().to_owned())));
        line = rule.replace_all(&line, *label).into_owned();
    }
    (line, ids)
}

// ---- running ----

impl Section {
    fn run(&self) -> Result<(), String> {
        let stage = Stage::new(self);
        let pause = self.typing_pause()?;
        let mut terminals = BTreeMap::new();
        let mut ids = Ids::default();
        for (index, block) in self.blocks.iter().enumerate() {
            let next = self.blocks[index + 1..].iter().find(|next| next.terminal == block.terminal);
            let goes_on = next.is_some_and(|next| !next.lines[0].text.starts_with("$ "));
            let terminal =
                terminals.entry(&block.terminal).or_insert_with(|| Terminal::open(&stage, pause));
            terminal.play(block, goes_on, &mut ids)?;
        }
        terminals.values_mut().try_for_each(|terminal| terminal.end(&mut ids))
    }

    fn typing_pause(&self) -> Result<Duration, String> {
        match env::var("TYPING_PAUSE") {
            Ok(pause) => {
                humantime::parse_duration(&pause).map_err(|e| format!("TYPING_PAUSE: {e}"))
            }
            Err(_) if PAUSED.iter().any(|lesson| self.heading.starts_with(lesson)) => Ok(PAUSE),
            Err(_) => Ok(Duration::ZERO),
        }
    }
}

/// A folder with the scripts in it, and a private node unless the section starts its own.
struct Stage {
    folder: PathBuf,
    node: Option<Node>,
}

impl Stage {
    fn new(section: &Section) -> Stage {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        let folder = env::temp_dir().join(format!("fib-rpc-docs-{}-{number}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        std::os::unix::fs::symlink(root().join("scripts"), folder.join("scripts")).unwrap();
        let starts_one =
            |line: &Line| line.text.contains("broker.sh start") || line.text.contains("cluster.sh");
        let mut lines = section.blocks.iter().flat_map(|block| &block.lines);
        let node = (!lines.any(starts_one)).then(Node::start);
        Stage { folder, node }
    }

    fn shell(&self, script: &str) -> Output {
        let mut command = Command::new("sh");
        command.args(["-c", script]).current_dir(&self.folder).env("TMPDIR", &self.folder);
        command.env_remove("BROKER_DIR").env_remove("CLUSTER_DIR").output().unwrap()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // What the section started itself.
        let ended = self.shell("scripts/broker.sh kill && scripts/cluster.sh kill");
        assert!(ended.status.success(), "{ended:?}");
        fs::remove_dir_all(&self.folder).unwrap();
    }
}

/// A shell in a pseudo-terminal.
struct Terminal {
    pty: Arc<Pty>,
    shell: Child,
    pause: Duration,
    output: Receiver<Vec<u8>>,
    /// What it shows that was not compared yet.
    rest: Vec<u8>,
    /// What it has to show next.
    expected: VecDeque<Line>,
    last: Line,
    /// Whether the last command serves others, and so may run to the end.
    serves: bool,
    /// Whether the document leaves out how it ends, by a line of "…".
    is_elided: bool,
}

impl Terminal {
    fn open(stage: &Stage, pause: Duration) -> Terminal {
        let (pty, pts) = blocking::open().unwrap();
        // Wide enough that nothing wraps.
        pty.resize(Size::new(50, 500)).unwrap();
        let programs = Path::new(env!("CARGO_BIN_EXE_rpc_client")).parent().unwrap();
        let folders = [programs.to_owned(), programs.join("examples")];
        let path = env::join_paths(
            folders.into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap())),
        );
        let inherited = ["HOME", "USER", "LANG", "BROKER_RUN_DIR"];
        let shell = blocking::Command::new("bash")
            // So that Ctrl-C does not discard what the terminal has not shown yet.
            .args([
                "-c",
                "stty noflsh && PS1='$ ' PS2='> ' exec bash --noprofile --norc --noediting",
            ])
            .env_clear()
            .envs(inherited.into_iter().filter_map(|name| Some((name, env::var_os(name)?))))
            .envs([("TERM", "dumb"), ("HISTFILE", "/dev/null")])
            .envs([("TMPDIR", stage.folder.as_os_str()), ("PATH", &path.unwrap())])
            .envs(stage.node.iter().map(|node| ("AMQP_URL", &node.url)))
            .envs(stage.node.iter().map(|node| ("BROKER_DIR", node.folder())))
            .current_dir(&stage.folder)
            .spawn(pts)
            .unwrap();
        let pty = Arc::new(pty);
        let (sender, output) = channel();
        let source = Arc::clone(&pty);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // It ends with an error, when nobody has the terminal open any more.
            while let Ok(read @ 1..) = (&*source).read(&mut buffer) {
                let shown = buffer[..read].iter().copied().filter(|byte| *byte != b'\r');
                let _ = sender.send(shown.collect());
            }
        });
        let last = Line { place: "start".into(), text: String::new() };
        let (rest, expected) = (Vec::new(), VecDeque::new());
        let (serves, is_elided) = (false, false);
        Terminal { pty, shell, pause, output, rest, expected, last, serves, is_elided }
    }

    /// Types and compares a block. One whose last command serves others is compared up to the line that
    /// says so, its rest when the terminal is used again or the section ends; one that `goes_on` need
    /// not be at its prompt.
    fn play(&mut self, block: &Block, goes_on: bool, ids: &mut Ids) -> Result<(), String> {
        self.advance(false, ids)?;
        for line in &block.lines {
            let begins = line.text.starts_with("$ rpc_server") || READY.is_match(&line.text);
            self.serves = begins || (self.serves && !line.text.starts_with("$ "));
            self.expected.push_back(line.clone());
        }
        self.advance(true, ids)?;
        if !goes_on && !self.serves && !self.is_elided { self.prompt("$ ") } else { Ok(()) }
    }

    fn advance(&mut self, may_pause: bool, ids: &mut Ids) -> Result<(), String> {
        while let Some(line) = self.expected.pop_front() {
            let is_ready = may_pause && READY.is_match(&line.text);
            self.step(line, ids)?;
            let is_input = |line: &Line| line.text.starts_with("$ ") || line.text == "^C";
            if is_ready && !self.expected.iter().any(is_input) {
                break;
            }
        }
        Ok(())
    }

    /// Types a line, if it is one to type, and compares what is shown.
    fn step(&mut self, line: Line, ids: &mut Ids) -> Result<(), String> {
        if line.text.trim() == "…" {
            self.is_elided = true;
            return Ok(());
        }
        let prompt = line.text.get(..2).filter(|start| ["$ ", "> "].contains(start));
        if let Some(prompt) = prompt {
            self.prompt(prompt)?;
            thread::sleep(self.pause);
            self.type_in(&format!("{}\n", &line.text[2..]));
        }
        let end = match line.text.as_str() {
            "^C" => {
                thread::sleep(self.pause);
                self.type_in("\x03");
                self.skip_elided(b"^C");
                self.wait(|rest| rest.starts_with(b"^C")).then_some(2)
            }
            _ => {
                // After the last line of output comes the prompt.
                let is_over = |rest: &[u8]| prompt.is_none() && rest == b"$ ";
                self.wait(|rest| rest.contains(&b'\n') || is_over(rest));
                self.rest.iter().position(|byte| *byte == b'\n').map(|end| end + 1)
            }
        };
        self.last = line;
        let shown: Vec<u8> = self.rest.drain(..end.unwrap_or(self.rest.len())).collect();
        let shown = String::from_utf8_lossy(&shown);
        let is_same = end.is_some() && ids.same_line(&self.last.text, shown.trim_end_matches('\n'));
        let is_other_id = constant(&self.last.text).0 == constant(shown.trim_end()).0;
        let hint =
            if is_other_id { " (with the id that stands for this one elsewhere)" } else { "" };
        let expected = format!("{}{hint}", self.last.text);
        is_same.then_some(()).ok_or_else(|| self.wrong(&expected, &shown))
    }

    /// Skips what a line of "…" stands for, up to this text.
    fn skip_elided(&mut self, text: &[u8]) {
        let at = |rest: &[u8]| rest.windows(2).position(|pair| pair == text);
        if std::mem::take(&mut self.is_elided) && self.wait(|rest| at(rest).is_some()) {
            self.rest.drain(..at(&self.rest).unwrap_or(0));
        }
    }

    /// Waits for a prompt, before which nothing else may come.
    fn prompt(&mut self, prompt: &str) -> Result<(), String> {
        self.skip_elided(prompt.as_bytes());
        let is_on_its_way = |rest: &[u8]| prompt.as_bytes().starts_with(rest);
        self.wait(|rest| !is_on_its_way(rest) || rest == prompt.as_bytes());
        // The document ends the line after ^C; the shell does so if the program died of it.
        if self.last.text == "^C" && self.rest.starts_with(b"\n") {
            self.rest.remove(0);
            self.last.text.clear();
            return self.prompt(prompt);
        }
        let shown = String::from_utf8_lossy(&self.rest);
        (shown == prompt).then_some(()).ok_or_else(|| self.wrong("then a prompt", &shown))
    }

    /// What is still expected has to come, and nothing else after it.
    fn end(&mut self, ids: &mut Ids) -> Result<(), String> {
        self.advance(false, ids)?;
        self.type_in("\x03");
        self.wait(|rest| rest.ends_with(b"$ ") && rest.windows(2).any(|pair| pair == b"^C"));
        let shown = String::from_utf8_lossy(&self.rest);
        let is_over = self.is_elided || FAREWELL.is_match(&shown);
        is_over.then_some(()).ok_or_else(|| self.wrong("then nothing more", &shown))
    }

    fn type_in(&mut self, text: &str) {
        (&*self.pty).write_all(text.as_bytes()).unwrap();
    }

    /// Whether the terminal shows in time what is `enough`.
    fn wait(&mut self, enough: impl Fn(&[u8]) -> bool) -> bool {
        let deadline = Instant::now() + PATIENCE;
        while !enough(&self.rest) {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok(shown) = self.output.recv_timeout(left) else { return false };
            self.rest.extend(shown);
        }
        true
    }

    fn wrong(&self, expected: &str, shown: &str) -> String {
        format!("{}:\n  expected: {expected}\n     shown: {shown}", self.last.place)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // With its shell, what runs in a terminal ends.
        let _ = self.shell.kill();
        let _ = self.shell.wait();
    }
}
