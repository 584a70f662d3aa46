//! Calls to a program with an effect, while servers are killed, connections cut and the broker is killed and restarted: how
//! often each call had its effect. `scripts/chaos.sh` has more of them.

use crate::harness::*;
use crate::proxy::{Action, Proxy};
use fastrand::Rng;
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

const SERVERS: usize = 3;
const CLIENTS: usize = 6;

/// How many calls one client makes.
const BATCH: usize = 25;

/// From one event to the next.
const INTERVAL: Duration = Duration::from_secs(1);

/// What is done to the system, again and again in this order.
const EVENTS: [Event; 8] = [
    Event::KillServer,
    Event::KillServer,
    Event::CutConnections,
    Event::KillServer,
    Event::KillBroker,
    Event::KillServer,
    Event::KillServer,
    Event::CutConnections,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    KillServer,
    KillBroker,
    CutConnections,
}

/// What is promised of each call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    /// It runs once, or not at all, and then its client is told.
    AtMostOnce,
    /// It runs, perhaps twice.
    AtLeastOnce,
}

impl Promise {
    fn of_server(self) -> &'static [&'static str] {
        match self {
            // With a queue that brings back after a restart what it may not have forgotten.
            Promise::AtMostOnce => &["--at-most-once", "--queue-type", "quorum"],
            Promise::AtLeastOnce => &[],
        }
    }

    fn of_client(self) -> &'static [&'static str] {
        match self {
            // A call whose server was killed has no answer, and holds up its batch for so long.
            Promise::AtMostOnce => &["--no-retry", "--timeout", "5s"],
            Promise::AtLeastOnce => &["--timeout", "5m"],
        }
    }
}

/// What became of the calls.
#[derive(Debug)]
pub struct Effects {
    promise: Promise,
    events: BTreeMap<Event, usize>,
    took: Duration,
    made: usize,
    answered: usize,
    /// How many calls ran so often.
    runs: BTreeMap<usize, usize>,
    /// Calls that were answered with a result and did not run exactly once.
    answered_wrong: usize,
}

impl Effects {
    /// Whether the promise was kept.
    pub fn are_as_promised(&self) -> bool {
        let most = self.runs.keys().max().copied().unwrap_or_default();
        let missing = self.runs.get(&0).copied().unwrap_or_default();
        match self.promise {
            Promise::AtMostOnce => most <= 1 && self.answered_wrong == 0 && self.answered > 0,
            Promise::AtLeastOnce => missing == 0 && self.answered == self.made,
        }
    }
}

impl fmt::Display for Effects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}, in {:.0} s, {:?}:", self.promise, self.took.as_secs_f64(), self.events)?;
        writeln!(f, "{:8} calls made", self.made)?;
        writeln!(f, "{:8} answered with their result", self.answered)?;
        for (times, calls) in &self.runs {
            writeln!(f, "{calls:8} ran {times} times")?;
        }
        Ok(())
    }
}

/// The calls, as far as they are made.
struct Calls {
    folder: PathBuf,
    most: usize,
    next: AtomicUsize,
    are_over: AtomicBool,
    answered: Mutex<Vec<usize>>,
}

impl Drop for Calls {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Makes so many calls or more, until everything was done to the system once, and counts.
pub fn provoke(promise: Promise, calls: usize, seed: u64) -> Effects {
    let folder = std::env::temp_dir().join(format!("fib-rpc-effects-{}", Uuid::new_v4()));
    fs::create_dir(&folder).unwrap();
    let node = Node::start();
    let (for_servers, for_clients) = (proxy(&node), proxy(&node));
    let queue = Queue::at(&node.url);
    let calls = Calls {
        folder,
        most: calls,
        next: AtomicUsize::new(0),
        are_over: AtomicBool::new(false),
        answered: Mutex::default(),
    };
    let began = Instant::now();
    let events = thread::scope(|scope| {
        let make = || make_calls(promise, &calls, &for_clients.url, &queue);
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(make)).collect();
        let proxies = [&for_servers, &for_clients];
        let (events, servers) = disturb(promise, &calls, &node, &queue, proxies, seed);
        calls.are_over.store(true, SeqCst);
        clients.into_iter().for_each(|client| client.join().unwrap());
        servers.into_iter().for_each(|server| drop(server.stop()));
        events
    });
    count(promise, &calls, events, began.elapsed())
}

fn proxy(node: &Node) -> Proxy {
    Proxy::start(&node.url, |_| Action::Pass)
}

/// One client after another, each with a batch of its own.
fn make_calls(promise: Promise, calls: &Calls, url: &str, queue: &Queue) {
    while !calls.are_over.load(SeqCst) {
        let first = calls.next.fetch_add(BATCH, SeqCst);
        let arguments: Vec<String> = (first..first + BATCH).map(|call| call.to_string()).collect();
        let settings = ["-q", "--wait", "--queue", queue.name()];
        let words = [&settings[..], promise.of_client(), &["p"]].concat();
        let words = words.into_iter().chain(arguments.iter().map(String::as_str));
        let client = Process::spawn(&mut client_command(url, &words.collect::<Vec<&str>>()));
        let ended = client.wait_for(PATIENCE * 2);
        let answered = ended.stdout.lines().map(|line| line.parse::<usize>().unwrap());
        calls.answered.lock().unwrap().extend(answered);
    }
}

/// Does one thing after another to the system. Returns what was done, and the servers, for the clients have calls to bring to an
/// end.
fn disturb(
    promise: Promise,
    calls: &Calls,
    node: &Node,
    queue: &Queue,
    proxies: [&Proxy; 2],
    seed: u64,
) -> (BTreeMap<Event, usize>, Vec<Process>) {
    let mut random = Rng::with_seed(seed);
    // A server that is killed leaves its programs to themselves, perhaps before they have their input.
    let script = "read n; [ $n ] || exit 1; echo $n >>$0/runs; echo $n";
    let procedure = format!("--procedure=p=sh -c '{script}' {}", calls.folder.display());
    let settings = ["-q", "--workers", "2", "--queue", queue.name(), &procedure];
    let words = [&settings[..], promise.of_server()].concat();
    let start = || Process::spawn(&mut server_command(&proxies[0].url, &words));
    let mut servers: Vec<Process> = (0..SERVERS).map(|_| start()).collect();
    let mut events = BTreeMap::new();
    for event in EVENTS.into_iter().cycle() {
        let done: usize = events.values().sum();
        if done >= EVENTS.len() && calls.next.load(SeqCst) >= calls.most {
            break;
        }
        thread::sleep(INTERVAL);
        match event {
            Event::KillServer => {
                let index = random.usize(0..SERVERS);
                servers[index].signal("KILL");
                servers[index] = start();
            }
            Event::CutConnections => proxies.into_iter().for_each(Proxy::end_connections),
            Event::KillBroker => {
                kill(node.pid(), "KILL");
                node.restart();
            }
        }
        *events.entry(event).or_default() += 1;
    }
    (events, servers)
}

fn count(
    promise: Promise,
    calls: &Calls,
    events: BTreeMap<Event, usize>,
    took: Duration,
) -> Effects {
    let made = calls.next.load(SeqCst);
    let noted = fs::read_to_string(calls.folder.join("runs")).unwrap();
    let mut runs_of = vec![0; made];
    for line in noted.lines() {
        runs_of[line.parse::<usize>().unwrap()] += 1;
    }
    let mut runs = BTreeMap::new();
    for times in &runs_of {
        *runs.entry(*times).or_default() += 1;
    }
    let answered = calls.answered.lock().unwrap();
    let answered_wrong = answered.iter().filter(|call| runs_of[**call] != 1).count();
    Effects { promise, events, took, made, answered: answered.len(), runs, answered_wrong }
}
