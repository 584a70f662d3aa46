//! Servers and clients under load, while servers are killed and restarted, the broker is killed
//! and restarted, an operator closes all connections, and unreadable messages come in. Some calls are to a
//! built-in procedure, some to programs, of which some leave their process group or their session, and one stays. One takes longer
//! than the broker lets it. One server and one client are behind a slow link. Another client is killed again and again in
//! the middle of its batch. No call may be lost, none answered wrong, no process may hang, and little may be computed
//! for clients that are gone.
//!
//! After that, calls to a program with an effect: with `--at-most-once` and `--no-retry` no effect may come twice, without
//! them none may be missing (`it/effects.rs`). Last, a folder of files, while the client is killed, too (`it/folder.rs`).
//!
//! `scripts/chaos.sh [SECONDS [SEED]]` runs it; the seed fixes what happens in which order.

#[path = "it/effects.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod effects;
#[path = "it/folder.rs"]
mod folder;
#[path = "it/harness/mod.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod harness;
#[path = "it/proxy.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod proxy;

use effects::Promise;
use fastrand::Rng;
use harness::{Ended, Node, Process, Queue, client_command, kill, raw, server_command};
use proxy::slow_link;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

const SERVERS: usize = 3;

/// Procedures that answer alike: a built-in one, and programs that take their time, in their own process group, in
/// another one, and in another session, which leaves something running. The last one stays.
const PROCEDURES: [(&str, &str); 5] = [
    ("--procedure", "fun"),
    ("--procedure", "times=sh -c 'read n; sleep 0.01; echo ${n}00'"),
    ("--procedure", "limited=timeout 60 sh -c 'read n; sleep 0.01; echo ${n}00'"),
    (
        "--procedure",
        "apart=setsid -w sh -c '(setsid sleep 60 > /dev/null 2>&1 &) ; read n; echo ${n}00'",
    ),
    ("--coprocess", "stays=sh -c 'while read n; do sleep 0.01; echo ${n}00; done'"),
];

/// A program that takes longer than the broker's `consumer_timeout`: such a call fails, with 75.
const TOO_LONG: &str = "long=sh -c 'read n; setsid -w sleep 20; echo ${n}00'";

/// How many calls a client has in flight that is killed in the middle of them.
const LEFT_BEHIND: usize = 30;

/// Of the calls that had not begun when their client was killed, at most one of so many may begin: one that goes to a server
/// that has just been started does.
const BEGUN_BOUND: usize = 3;

/// Closes the channel of a consumer that has not acked a delivery after four seconds. It has to be said again after a restart.
const CONSUMER_TIMEOUT: &str = "[application:set_env(rabbit, K, V) || \
     {K, V} <- [{consumer_timeout, 4000}, {channel_tick_interval, 1000}]].";

/// Clients at the broker itself; one more is behind the slow link.
const CLIENTS: usize = 2;

/// How many bytes a second the slow link takes from a program.
const SLOW: u32 = 500_000;

/// Each call's time limit. A process that takes longer than its calls may is said to hang: fewer than 200
/// calls, of which 64 are in flight at a time, may take four time limits.
const TIMEOUT: Duration = Duration::from_secs(60);

/// What the clients came to.
#[derive(Default)]
struct Tally {
    made: usize,
    right: usize,
    wrong: usize,
    lost: usize,
    /// Calls that the broker gave no time to be answered.
    too_long: usize,
    /// Calls without an answer, by the exit code of the client that told so.
    failed: BTreeMap<i32, usize>,
    said: Vec<String>,
    /// Clients that were killed in the middle of their calls.
    killed: Vec<Killed>,
    /// The longest time without an answer: its length and its end.
    gap: Option<(Duration, Instant)>,
    answered: Option<Instant>,
}

/// A client that was killed in the middle of its calls.
struct Killed {
    /// What its arguments begin with, and no other client's.
    prefix: String,
    /// How many of its calls had begun by then, and how often: a server that dies has its calls begin again.
    begun: usize,
    runs: usize,
}

impl Tally {
    /// Takes in what one client said about its calls, which multiply by 100.
    fn add(&mut self, arguments: &[String], ended: &Ended) {
        // Results come in input order, a failed call has none.
        let mut expected = arguments.iter().map(|n| format!("{n}00"));
        let answers = ended.stdout.lines().count();
        let right = ended.stdout.lines().filter(|line| expected.any(|value| value == **line));
        let right = right.count();
        self.made += arguments.len();
        self.right += right;
        self.wrong += answers - right;
        let missing = arguments.len().saturating_sub(answers);
        match ended.code() {
            // It said that all went well.
            0 => self.lost += missing,
            code => *self.failed.entry(code).or_default() += missing,
        }
        if missing > 0 {
            self.said.push(ended.stderr.clone());
        }
        if right > 0 {
            let now = Instant::now();
            let before = self.answered.replace(now);
            self.gap = self.gap.max(before.map(|before| (now - before, now)));
        }
    }
}

fn main() -> ExitCode {
    // As libtest has it: words are filters.
    let filters: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if !filters.is_empty() && !filters.iter().any(|filter| "chaos".contains(filter.as_str())) {
        return ExitCode::SUCCESS;
    }
    let number = |name: &str, default: u64| {
        let given = std::env::var(name).ok().filter(|value| !value.is_empty());
        given.map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
    };
    let (seconds, seed) = (number("CHAOS_SECONDS", 20), number("CHAOS_SEED", 1));
    println!("chaos for {seconds} s, seed {seed}: {SERVERS} servers, {CLIENTS} clients");

    let node = Node::start();
    node.eval(CONSUMER_TIMEOUT);
    let link = slow_link(&node.url, SLOW);
    let queue = Queue::at(&node.url);
    let runs = Runs::new();
    let tally = Mutex::new(Tally::default());
    let over = AtomicBool::new(false);
    let (events, servers) = thread::scope(|scope| {
        let (node, link, queue, tally, over) = (&node, &link, &queue, &tally, &over);
        let runs = &runs;
        let mut random = Rng::with_seed(seed);
        scope.spawn(move || {
            while !over.load(Ordering::SeqCst) {
                leave_calls_behind(node, queue, runs, tally, &mut random);
            }
        });
        for client in 0..=CLIENTS {
            let mut random = Rng::with_seed(seed + 1 + client as u64);
            scope.spawn(move || {
                while !over.load(Ordering::SeqCst) {
                    match client {
                        CLIENTS => make_large_calls(link, queue, tally, &mut random),
                        _ => make_calls(node, queue, tally, &mut random),
                    }
                }
            });
        }
        let done = disturb(node, link, queue, runs, Duration::from_secs(seconds), seed);
        over.store(true, Ordering::SeqCst);
        done
    });
    let is_good = report(&tally.into_inner().unwrap(), &events, servers, &runs);

    let calls = number("CHAOS_CALLS", 0) as usize;
    if calls == 0 {
        return conclude(is_good);
    }
    let promises = [Promise::AtMostOnce, Promise::AtLeastOnce];
    let are_kept = promises.map(|promise| {
        let effects = effects::provoke(promise, calls, seed);
        print!("{effects}");
        effects.are_as_promised()
    });
    let outcome = folder::drill(number("CHAOS_FILES", 10_000) as usize, seed);
    print!("{outcome}");
    conclude(is_good && are_kept == [true; 2] && outcome.is_good())
}

/// Where a program of two seconds writes each of its runs.
struct Runs(PathBuf);

impl Runs {
    fn new() -> Runs {
        let file = std::env::temp_dir().join(format!("fib-rpc-chaos-{}", Uuid::new_v4()));
        fs::write(&file, "").unwrap();
        Runs(file)
    }

    fn offer(&self) -> String {
        format!("left=sh -c 'read n; echo $n >> {}; sleep 2; echo ${{n}}00'", self.0.display())
    }

    /// The arguments with which it ran that begin with this, as often as it did.
    fn of(&self, prefix: &str) -> Vec<String> {
        let runs = fs::read_to_string(&self.0).unwrap();
        runs.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// One client that is killed while most of its calls wait.
fn leave_calls_behind(
    node: &Node,
    queue: &Queue,
    runs: &Runs,
    tally: &Mutex<Tally>,
    random: &mut Rng,
) {
    let prefix = format!("{}-", Uuid::new_v4());
    let arguments: Vec<String> = (0..LEFT_BEHIND).map(|n| format!("{prefix}{n}")).collect();
    let args =
        ["-q", "--wait", "--timeout", "60s", "--in-flight", "64", "--queue", queue.name(), "left"];
    let given: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let client = Process::spawn(&mut client_command(&node.url, &[&args, &given[..]].concat()));
    thread::sleep(Duration::from_millis(random.u64(1_000..3_000)));
    let begun = runs.of(&prefix);
    client.signal(if random.bool() { "KILL" } else { "INT" });
    client.wait_for(TIMEOUT);

    let different = begun.iter().collect::<BTreeSet<_>>().len();
    tally.lock().unwrap().killed.push(Killed { prefix, begun: different, runs: begun.len() });
    thread::sleep(Duration::from_secs(2));
}

/// One client with a batch of calls, or, now and then, with one that takes too long.
fn make_calls(node: &Node, queue: &Queue, tally: &Mutex<Tally>, random: &mut Rng) {
    let (procedure, most) = match random.u32(0..50) {
        0 => (TOO_LONG, 2),
        _ => (PROCEDURES[random.usize(0..PROCEDURES.len())].1, 200),
    };
    let arguments: Vec<String> =
        (0..random.usize(1..most)).map(|_| random.u64(1..).to_string()).collect();
    call(&node.url, queue, procedure, &arguments, tally);
}

/// One client behind the slow link: each call takes that link a tenth of a second.
fn make_large_calls(link: &str, queue: &Queue, tally: &Mutex<Tally>, random: &mut Rng) {
    let number = |random: &mut Rng| (0..SLOW / 10).map(|_| random.char('1'..='9')).collect();
    let arguments: Vec<String> = (0..random.usize(1..6)).map(|_| number(random)).collect();
    call(link, queue, "fun", &arguments, tally);
}

fn call(url: &str, queue: &Queue, procedure: &str, arguments: &[String], tally: &Mutex<Tally>) {
    let timeout = format!("{}s", TIMEOUT.as_secs());
    let name = procedure.split('=').next().unwrap();
    let args = ["-q", "--wait", "--timeout", &timeout, "--queue", queue.name(), name];
    let given: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut command = client_command(url, &[&args, &given[..]].concat());
    let ended = Process::spawn(&mut command).wait_for(TIMEOUT * 5);
    let mut tally = tally.lock().unwrap();
    if procedure == TOO_LONG && ended.code() == 75 {
        tally.too_long += 1;
    } else {
        tally.add(arguments, &ended);
    }
}

/// What was done to the system, and when.
type Events = Vec<(Instant, &'static str)>;

/// How often each was done, of `events`.
fn counts<'a>(events: impl Iterator<Item = &'a (Instant, &'static str)>) -> String {
    let mut counts = BTreeMap::<_, usize>::new();
    for (_, event) in events {
        *counts.entry(*event).or_default() += 1;
    }
    counts.iter().map(|(event, count)| format!("{count:8} {event}\n")).collect()
}

/// Does one thing after another to the system. Returns the servers still running: the clients
/// have calls to bring to an end.
fn disturb(
    node: &Node,
    link: &str,
    queue: &Queue,
    runs: &Runs,
    time: Duration,
    seed: u64,
) -> (Events, Vec<Process>) {
    let mut random = Rng::with_seed(seed);
    let mut events = Events::new();
    let left = runs.offer();
    let offers = PROCEDURES.into_iter().chain([("--procedure", TOO_LONG), ("--procedure", &left)]);
    let offers = offers.flat_map(|(option, offer)| [option, offer]);
    let settings = ["-q", "--queue", queue.name(), "--workers", "2", "--prefetch", "4"];
    let args: Vec<&str> = settings.into_iter().chain(offers).collect();
    let start = |index| {
        let url = if index == 0 { link } else { &node.url };
        Process::spawn(&mut server_command(url, &args))
    };
    let mut servers: Vec<Process> = (0..SERVERS).map(start).collect();
    let started = Instant::now();
    while started.elapsed() < time {
        thread::sleep(Duration::from_millis(random.u64(200..2_000)));
        let begun = Instant::now();
        let event = match random.u32(0..20) {
            0..=9 => {
                let index = random.usize(0..SERVERS);
                servers[index].signal("KILL");
                servers[index] = start(index);
                "servers killed and restarted"
            }
            10..=14 => {
                let (flags, properties) = &raw::unreadable()[random.usize(0..2)];
                raw::publish(&node.url, queue.name(), *flags, properties, b"");
                "unreadable messages"
            }
            15..=17 => {
                node.close_connections("chaos");
                "times all connections closed"
            }
            _ => {
                kill(node.pid(), "KILL");
                thread::sleep(Duration::from_millis(random.u64(0..2_000)));
                node.restart();
                node.eval(CONSUMER_TIMEOUT);
                "brokers killed and restarted"
            }
        };
        events.push((begun, event));
    }
    (events, servers)
}

/// Tells what became of the calls. Returns whether all is well.
fn report(tally: &Tally, events: &Events, servers: Vec<Process>, runs: &Runs) -> bool {
    let mut stopped_well = 0;
    for server in servers {
        server.signal("TERM");
        stopped_well += usize::from(server.wait().code() == 0);
    }
    print!("{}", counts(events.iter()));
    println!("{:8} calls made", tally.made);
    println!("{:8} answered right", tally.right);
    for (code, count) in &tally.failed {
        println!("{count:8} failed, exit code {code}");
    }
    println!("{:8} that took too long, exit code 75", tally.too_long);
    println!("{:8} wrong", tally.wrong);
    println!("{:8} lost", tally.lost);
    let waited: usize = tally.killed.iter().map(|client| LEFT_BEHIND - client.begun).sum();
    let for_nobody: usize =
        tally.killed.iter().map(|client| runs.of(&client.prefix).len() - client.runs).sum();
    println!("{:8} clients killed in the middle", tally.killed.len());
    println!("{waited:8} calls of theirs that had not begun");
    println!("{for_nobody:8} begun for nobody");
    if let Some((gap, end)) = tally.gap {
        println!(
            "{:8.1} s longest gap in service, in it and in the second before:",
            gap.as_secs_f64()
        );
        let begin = end - gap - Duration::from_secs(1);
        print!("{}", counts(events.iter().filter(|(begun, _)| (begin..end).contains(begun))));
    }
    for said in &tally.said {
        eprint!("{said}");
    }
    let is_bounded = for_nobody <= waited / BEGUN_BOUND;
    tally.wrong == 0 && tally.lost == 0 && stopped_well == SERVERS && tally.right > 0 && is_bounded
}

/// Ends as libtest does.
fn conclude(is_good: bool) -> ExitCode {
    let (word, passed) = if is_good { ("ok", 1) } else { ("FAILED", 0) };
    println!("test result: {word}. {passed} passed; {} failed", 1 - passed);
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
