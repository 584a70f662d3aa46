//! Private RabbitMQ nodes. To start one takes seconds of processor time, so nodes are lent: one whose test is
//! over is emptied, and goes to the next test that asks for such a node. It is ended instead if its test failed,
//! or set something up that emptying does not undo.
//!
//! No node outlives the tests' process, however that ends: see `KEEPER`.

use super::PATIENCE;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;
use uuid::Uuid;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/broker.sh");

/// A private node, for tests that freeze it, alarm it or change its users.
pub struct Node {
    broker: Broker,
    pub url: String,
    is_set_up: AtomicBool,
}

impl Node {
    /// Lends a node with the configuration that `broker.sh` gives it.
    pub fn start() -> Node {
        Node::configured("", &[])
    }

    /// Lends one with this in its `rabbitmq.conf`, started with `options` for `broker.sh start`.
    pub fn configured(configuration: &str, options: &[&str]) -> Node {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let broker = lend(Setup { configuration: configuration.into(), options });
        let url = broker.url.clone();
        Node { broker, url, is_set_up: AtomicBool::new(false) }
    }

    /// Lends one that lets a delivery be unacknowledged for so many milliseconds.
    #[allow(dead_code, reason = "for the tests of the programs")]
    pub fn with_consumer_timeout(milliseconds: u32) -> Node {
        let node = Node::start();
        for (name, value) in [("consumer_timeout", milliseconds), ("channel_tick_interval", 500)] {
            node.ctl(&["eval", &format!("application:set_env(rabbit, {name}, {value}).")]);
        }
        node
    }

    /// Returns its folder: `BROKER_DIR` for the scripts.
    #[allow(dead_code, reason = "for the documents' terminals")]
    pub fn folder(&self) -> &Path {
        &self.broker.folder
    }

    /// Runs `rabbitmqctl` on this node, and returns what it prints.
    #[track_caller]
    pub fn ctl(&self, args: &[&str]) -> String {
        self.script(&[&["ctl"], args].concat())
    }

    /// Waits until `rabbitmqctl` has a line that is `wanted`.
    #[track_caller]
    pub fn await_ctl(&self, args: &[&str], wanted: &str) {
        let started = Instant::now();
        loop {
            let output = self.ctl(args);
            if output.lines().any(|line| line == wanted) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{wanted:?} is not in {output:?}");
        }
    }

    /// Starts it again after its process was killed.
    #[track_caller]
    pub fn restart(&self) {
        self.script(&["restart"]);
    }

    /// Returns the process id of its Erlang VM.
    pub fn pid(&self) -> u32 {
        self.script(&["pid"]).parse().unwrap()
    }

    /// Returns what `broker.sh` prints for this node.
    #[track_caller]
    pub fn script(&self, args: &[&str]) -> String {
        if args[0] == "ctl" && !is_undone(&args[1..]) {
            self.is_set_up.store(true, Ordering::Relaxed);
        }
        self.broker.script(args)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if thread::panicking() || self.is_set_up.load(Ordering::Relaxed) {
            self.broker.kill();
        } else {
            give_back(self.broker.clone());
        }
    }
}

/// Tells whether emptying a node undoes what `rabbitmqctl` does by these words.
fn is_undone(words: &[&str]) -> bool {
    const UNDONE: [&str; 12] = [
        "add_user",
        "add_vhost",
        "close_all_connections",
        "close_connection",
        "delete_queue",
        "delete_vhost",
        "set_permissions",
        "set_policy",
        "set_vhost_limits",
        "set_vm_memory_high_watermark",
        "start_app",
        "stop_app",
    ];
    words.iter().any(|word| word.starts_with("list_") || UNDONE.contains(word))
}

/// What a node was started with.
#[derive(Clone, PartialEq)]
struct Setup {
    configuration: String,
    options: Vec<String>,
}

/// A node that runs, whether a test has it or not.
#[derive(Clone)]
struct Broker {
    folder: PathBuf,
    setup: Setup,
    url: String,
}

impl Broker {
    fn launch(setup: Setup) -> Broker {
        let folder = std::env::temp_dir().join(format!("fib-rpc-node-{}", Uuid::new_v4()));
        let keeper = lock(&KEEPER);
        writeln!(keeper.stdin.as_ref().unwrap(), "{}", folder.display()).unwrap();
        drop(keeper);

        let mut broker = Broker { folder, setup, url: String::new() };
        let mut args = vec!["start"];
        args.extend(broker.setup.options.iter().map(String::as_str));
        broker.url = broker.script(&args);
        broker
    }

    #[track_caller]
    fn script(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "broker.sh {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap().trim().into()
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(SCRIPT)
            .args(args)
            .env("BROKER_DIR", &self.folder)
            .env("BROKER_CONF", &self.setup.configuration)
            // Names are UTF-8 whatever the user's locale is.
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    /// Empties it. Returns whether that could be done.
    fn is_emptied(&self) -> bool {
        self.run(&["reset"]).status.success()
    }

    fn kill(&self) {
        if !self.run(&["kill"]).status.success() {
            eprintln!("the node in {} was not ended", self.folder.display());
        }
    }
}

/// How many nodes wait for tests to come. A node that waits takes no time, but 100 MB of memory.
const SPARE: usize = 6;

struct Pool {
    /// Nodes that no test has, the one that was given back first in front.
    spare: Vec<Broker>,
    starting: usize,
}

static POOL: Mutex<Pool> = Mutex::new(Pool { spare: Vec::new(), starting: 0 });
static POOL_CHANGED: Condvar = Condvar::new();

enum Turn {
    Spare(Broker),
    Start(Starting),
}

/// Waits for a node that is given back, or until one more may be started.
fn await_turn(setup: &Setup) -> Turn {
    let mut pool = lock(&POOL);
    loop {
        if let Some(first) = pool.spare.iter().position(|broker| broker.setup == *setup) {
            return Turn::Spare(pool.spare.remove(first));
        }
        if pool.starting < starts_at_once() {
            pool.starting += 1;
            return Turn::Start(Starting(()));
        }
        pool = POOL_CHANGED.wait(pool).unwrap_or_else(PoisonError::into_inner);
    }
}

fn lend(setup: Setup) -> Broker {
    loop {
        match await_turn(&setup) {
            Turn::Spare(broker) if broker.is_emptied() => return broker,
            Turn::Spare(broker) => broker.kill(),
            Turn::Start(_starting) => return Broker::launch(setup),
        }
    }
}

fn give_back(broker: Broker) {
    let mut pool = lock(&POOL);
    pool.spare.push(broker);
    let surplus = (pool.spare.len() > SPARE).then(|| pool.spare.remove(0));
    drop(pool);

    POOL_CHANGED.notify_all();
    if let Some(broker) = surplus {
        broker.kill();
    }
}

/// The right to start nodes, as long as it is there.
pub struct Starting(());

impl Starting {
    /// Waits until nodes may be started that are not lent: those of a cluster.
    pub fn await_turn() -> Starting {
        let pool = lock(&POOL);
        let mut pool = POOL_CHANGED
            .wait_while(pool, |pool| pool.starting >= starts_at_once())
            .unwrap_or_else(PoisonError::into_inner);
        pool.starting += 1;
        Starting(())
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        lock(&POOL).starting -= 1;
        POOL_CHANGED.notify_all();
    }
}

/// A start keeps two cores busy: Erlang's schedulers, and RabbitMQ's shell scripts.
fn starts_at_once() -> usize {
    thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

/// A shell that is told each node's folder, and ends them all when the pipe to it does: with this process, in
/// whichever way that ends. Statics are not dropped then, and a process that is killed drops nothing.
static KEEPER: LazyLock<Mutex<Child>> = LazyLock::new(|| {
    let script = r#"
        trap "" HUP INT TERM
        while IFS= read -r folder; do set -- "$@" "$folder"; done
        for folder; do
            if [ -e "$folder" ]; then BROKER_DIR=$folder "$0" kill & fi
        done
        wait"#;
    let keeper = Command::new("sh")
        .args(["-c", script, SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        // Ctrl-C in a terminal is not for it.
        .process_group(0)
        .spawn();
    Mutex::new(keeper.unwrap())
});

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
