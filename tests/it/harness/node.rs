//! Private RabbitMQ nodes. To start one takes seconds of processor time, so nodes are lent: one whose test is
//! over is emptied, and goes to the next test that asks for such a node. It is ended instead if its test failed,
//! or set something up that emptying does not undo.
//!
//! No node outlives the tests' process, however that ends: see `KEEPER`.

use super::await_that;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use uuid::Uuid;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/broker.sh");

/// A private node, for tests that freeze it, alarm it or change its users.
pub struct Node {
    broker: Broker,
    pub url: String,
    is_set_up: AtomicBool,
    /// Expressions that undo what was set in it.
    undo: Mutex<Vec<String>>,
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
        Node { broker, url, is_set_up: AtomicBool::new(false), undo: Mutex::default() }
    }

    /// Lends one that lets a delivery be unacknowledged for so many milliseconds.
    #[allow(dead_code, reason = "for the tests of the programs")]
    pub fn with_consumer_timeout(milliseconds: u32) -> Node {
        let node = Node::start();
        node.set("consumer_timeout", milliseconds);
        node.set("channel_tick_interval", 500);
        node
    }

    /// Gives one of RabbitMQ's settings a value, until the test is over.
    pub fn set(&self, name: &str, value: u32) {
        let undo = match self.eval(&format!("application:get_env(rabbit, {name}, none).")).as_str()
        {
            "none" => format!("application:unset_env(rabbit, {name})."),
            before => format!("application:set_env(rabbit, {name}, {before})."),
        };
        lock(&self.undo).push(undo);
        self.eval(&format!("application:set_env(rabbit, {name}, {value})."));
    }

    /// Sets the size of the largest message that it takes, in bytes, for channels that are opened after this.
    #[allow(dead_code, reason = "for the tests of the programs")]
    pub fn set_max_message_size(&self, bytes: u32) {
        self.set("max_message_size", bytes);
        // Newer versions keep it here, too.
        let keep = |bytes: &str| {
            format!(
                "case persistent_term:get(max_message_size, none) of none -> ok; \
                 _ -> persistent_term:put(max_message_size, {bytes}) end."
            )
        };
        let before = self.eval("persistent_term:get(max_message_size, none).");
        lock(&self.undo).push(keep(&before));
        self.eval(&keep(&bytes.to_string()));
    }

    /// Lends one that takes no message of more bytes.
    #[allow(dead_code, reason = "for the tests of the programs")]
    pub fn with_max_message_size(bytes: u32) -> Node {
        let node = Node::start();
        node.set_max_message_size(bytes);
        node
    }

    /// Evaluates Erlang expressions on this node, and returns the value of the last one. This takes no time beside
    /// `rabbitmqctl`.
    #[track_caller]
    pub fn eval(&self, expressions: &str) -> String {
        self.broker.script(&["eval", expressions])
    }

    /// Closes all connections as an operator does, who gives a reason.
    #[track_caller]
    pub fn close_connections(&self, reason: &str) {
        self.eval(&format!(
            r#"[rabbit_networking:close_connection(Pid, "{reason}") || Pid <- rabbit_networking:connections()]."#
        ));
    }

    /// Sets how much of the memory may be taken before publishers are blocked: next to nothing blocks them at once.
    #[track_caller]
    pub fn set_memory_watermark(&self, fraction: f64) {
        self.eval(&format!("vm_memory_monitor:set_vm_memory_high_watermark({fraction:.7})."));
    }

    /// Adds a user, whose password is `s3cret`.
    #[track_caller]
    pub fn add_user(&self, name: &str) {
        self.eval(&format!(
            r#"rabbit_auth_backend_internal:add_user(<<"{name}">>, <<"s3cret">>, <<"test">>)."#
        ));
    }

    /// Lets a user of the vhost `/` configure, write and read what has such names.
    #[track_caller]
    pub fn set_permissions(&self, user: &str, patterns: [&str; 3]) {
        let patterns = patterns.map(|pattern| format!(r#"<<"{}">>"#, pattern.replace('\\', r"\\")));
        self.eval(&format!(
            r#"rabbit_auth_backend_internal:set_permissions(<<"{user}">>, <<"/">>, {}, <<"test">>)."#,
            patterns.join(", ")
        ));
    }

    /// Waits until a queue of the vhost has so much of that: `messages`, `messages_unacknowledged` (rabbitmqctl(8)).
    #[track_caller]
    pub fn await_queue(&self, vhost: &str, what: &str, count: usize) {
        let queues = format!(r#"rabbit_amqqueue:list(<<"{vhost}">>)"#);
        let found = format!("[rabbit_amqqueue:info(Queue, [{what}]) || Queue <- {queues}]");
        let is_found = format!("lists:member([{{{what}, {count}}}], {found}).");
        await_that(&is_found, || self.eval(&is_found) == "true");
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

    /// Has it ended after this test: what the test does to it cannot be undone.
    #[allow(dead_code, reason = "for the tests of certificates")]
    pub fn retire(&self) {
        self.is_set_up.store(true, Ordering::Relaxed);
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
            self.retire();
        }
        self.broker.script(args)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let is_over = thread::panicking() || self.is_set_up.load(Ordering::Relaxed);
        let is_undone = || {
            lock(&self.undo)
                .iter()
                .rev()
                .all(|undo| self.broker.run(&["eval", undo]).status.success())
        };
        if is_over || !is_undone() {
            self.broker.kill();
        } else {
            give_back(self.broker.clone());
        }
    }
}

/// Tells whether emptying a node undoes what `rabbitmqctl` does by these words.
fn is_undone(words: &[&str]) -> bool {
    const UNDONE: [&str; 11] = [
        "add_user",
        "add_vhost",
        "close_all_connections",
        "close_connection",
        "delete_queue",
        "delete_vhost",
        "set_permissions",
        "set_policy",
        "set_vhost_limits",
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
