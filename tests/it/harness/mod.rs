//! What the tests share: processes that never outlive their test, queues of their own, a channel
//! to play the other side with, and private nodes.

mod node;
pub mod raw;

pub use node::*;

use amiquip::{AmqpProperties, AmqpValue, Channel, ConsumerMessage, ConsumerOptions, Delivery};
use amiquip::{FieldTable, Publish, QueueDeclareOptions, QueueDeleteOptions};
use fib_rpc::amqp::client_properties::ClientProperties;
use fib_rpc::amqp::connection::OpenConnection;
use fib_rpc::amqp::uri;
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex, Once};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long a test waits for what must come. Only a failing test waits this long, so that there is
/// room for a machine that is ten times slower, or has much else to do. Where a test shows that
/// something ends early, what it would wait for otherwise takes longer than this, if it ends at all.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// The longest time for which the programs wait for a broker's answer, where no other limit is
/// shorter (`CALL_TIMEOUT` in `src/amqp/connection.rs`). What ends sooner was ended by a shorter one.
pub const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Returns the URL of the broker that all tests share: that of `AMQP_URL`, or of a private node.
pub fn broker() -> String {
    static SHARED: LazyLock<Node> = LazyLock::new(Node::start);
    let given = std::env::var("AMQP_URL").ok().filter(|url| !url.is_empty());
    given.unwrap_or_else(|| SHARED.url.clone())
}

/// Builds the examples, once. Cargo does so for all tests together, but not for those of one file alone.
#[allow(dead_code, reason = "for the examples' and the documents' tests")]
pub fn build_examples() {
    static BUILT: Once = Once::new();
    BUILT.call_once(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--locked", "--examples"]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        // What Cargo tells a test of its package. ring's build script would take it for a change, and all that depends
        // on ring would be built again, now and the next time.
        let is_of_package =
            |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(is_of_package) {
                build.env_remove(name);
            }
        }
        let status = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
        assert!(status.success(), "the examples cannot be built");
    });
}

/// How the programs name a broker in their messages.
pub fn shown(url: &str) -> String {
    uri::parse_list(url).unwrap()[0].to_string()
}

/// What a process wrote to one of its outputs so far.
#[derive(Default)]
pub struct Captured {
    bytes: Mutex<(Vec<u8>, bool)>,
    grown: Condvar,
}

impl Captured {
    pub fn start(mut source: impl Read + Send + 'static) -> Arc<Captured> {
        let captured = Arc::new(Captured::default());
        let sink = Arc::clone(&captured);
        thread::spawn(move || {
            let mut buffer = [0; 65536];
            loop {
                let read = source.read(&mut buffer).unwrap_or(0);
                let mut bytes = sink.bytes.lock().unwrap();
                bytes.0.extend_from_slice(&buffer[..read]);
                bytes.1 = read == 0;
                sink.grown.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        captured
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap().0).into_owned()
    }

    /// All of it, once it has ended.
    pub fn whole(&self) -> String {
        let bytes = self.bytes.lock().unwrap();
        drop(self.grown.wait_timeout_while(bytes, PATIENCE, |bytes| !bytes.1).unwrap());
        self.text()
    }

    /// Whether `wanted` holds of it in time.
    pub fn await_that(&self, wanted: impl Fn(&str) -> bool) -> bool {
        let bytes = self.bytes.lock().unwrap();
        let pending =
            |bytes: &mut (Vec<u8>, bool)| !bytes.1 && !wanted(&String::from_utf8_lossy(&bytes.0));
        let (bytes, _) = self.grown.wait_timeout_while(bytes, PATIENCE, pending).unwrap();
        wanted(&String::from_utf8_lossy(&bytes.0))
    }
}

/// Returns a command as a failing test shows it, its arguments cut short.
fn name_of(command: &Command) -> String {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let words: Vec<String> = words.map(|word| format!("{:.200}", word.to_string_lossy())).collect();
    words.join(" ")
}

/// A running program. It is killed and reaped when its test ends, however it ends; if that is by
/// a failure, what the program wrote is shown.
pub struct Process {
    child: Child,
    name: String,
    stdout: Arc<Captured>,
    stderr: Arc<Captured>,
}

/// Bytes that a failing test does not list.
pub struct Bytes(pub Vec<u8>);

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.len())
    }
}

/// What a program came to.
#[derive(Debug)]
pub struct Ended {
    pub status: ExitStatus,
    pub stdout: String,
    /// Standard output as it came: in `stdout`, what is not UTF-8 is replaced.
    pub bytes: Bytes,
    pub stderr: String,
    pub elapsed: Duration,
}

impl Ended {
    /// Exit code, or as a shell has it, 128 and the signal.
    pub fn code(&self) -> i32 {
        self.status.code().or(self.status.signal().map(|signal| 128 + signal)).unwrap()
    }

    /// The same, with N for each number of milliseconds on standard error.
    pub fn timeless(mut self) -> Ended {
        let milliseconds = regex::Regex::new(r"\d+\.\d ms").unwrap();
        self.stderr = milliseconds.replace_all(&self.stderr, "N ms").into_owned();
        self
    }

    /// Compares all of it.
    #[track_caller]
    pub fn expect(&self, code: i32, stdout: &str, stderr: &str) {
        let found = (self.code(), self.stdout.as_str(), self.stderr.as_str());
        assert_eq!(found, (code, stdout, stderr));
    }
}

impl Process {
    pub fn spawn(command: &mut Command) -> Process {
        let name = name_of(command);
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let stdout = Captured::start(child.stdout.take().unwrap());
        let stderr = Captured::start(child.stderr.take().unwrap());
        Process { child, name, stdout, stderr }
    }

    /// One whose standard output goes elsewhere. As long as there is the `command`, it is open.
    pub fn spawn_writing(command: &mut Command, stdout: Stdio) -> Process {
        let name = name_of(command);
        let mut child = command.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = Captured::start(child.stderr.take().unwrap());
        Process { child, name, stdout: Captured::start(std::io::empty()), stderr }
    }

    pub fn spawn_with_stdin(command: &mut Command) -> (Process, ChildStdin) {
        let mut process = Process::spawn(command.stdin(Stdio::piped()));
        let stdin = process.child.stdin.take().unwrap();
        (process, stdin)
    }

    #[track_caller]
    pub fn await_stdout(&self, text: &str) {
        assert!(
            self.stdout.await_that(|out| out.contains(text)),
            "{} never said {text:?}",
            self.name
        );
    }

    #[track_caller]
    pub fn await_stderr(&self, text: &str) {
        self.await_stderr_times(text, 1);
    }

    #[track_caller]
    pub fn await_stderr_times(&self, text: &str, times: usize) {
        assert!(
            self.stderr.await_that(|out| out.matches(text).count() >= times),
            "{} did not say {text:?} {times} times",
            self.name
        );
    }

    pub fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// The most memory that it ever had at a time (VmHWM, proc(5)), in MB.
    pub fn peak_memory(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = peak.and_then(|peak| peak.split_whitespace().next()).unwrap();
        kilobytes.parse::<u64>().unwrap() * 1024 / 1_000_000
    }

    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal: `TERM`, `INT`, `KILL`, `STOP`, `CONT`.
    pub fn signal(&self, signal: &str) {
        kill(self.child.id(), signal);
    }

    /// Asks a server to stop, which it has to do in good order.
    #[track_caller]
    pub fn stop(self) -> Ended {
        self.signal("TERM");
        let ended = self.wait();
        assert_eq!(ended.code(), 0, "{ended:?}");
        ended
    }

    /// Sends a signal to all of its process group, as a terminal does: to be used if it leads one.
    pub fn signal_group(&self, signal: &str) {
        let group = format!("-{}", self.child.id());
        let kill = Command::new("kill").args([&format!("-{signal}"), "--", &group]).status();
        assert!(kill.unwrap().success(), "kill -{signal} {group}");
    }

    /// Sends SIGTERM and SIGINT, one right after the other.
    pub fn signal_both(&self) {
        let pid = self.child.id().to_string();
        let both = ["-c", "kill -TERM $0 && kill -INT $0", &pid];
        assert!(Command::new("sh").args(both).status().unwrap().success());
    }

    /// Whether it has ended by now.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    #[track_caller]
    pub fn wait(self) -> Ended {
        self.wait_for(PATIENCE)
    }

    #[track_caller]
    pub fn wait_for(mut self, limit: Duration) -> Ended {
        let started = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(started.elapsed() < limit, "{} does not end", self.name);
            thread::sleep(Duration::from_millis(2));
        };
        let (stdout, stderr) = (self.stdout.whole(), self.stderr.whole());
        let bytes = Bytes(self.stdout.bytes.lock().unwrap().0.clone());
        Ended { status, stdout, bytes, stderr, elapsed: started.elapsed() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
        if thread::panicking() {
            eprintln!("--- {}\n--- stdout\n{stdout}--- stderr\n{stderr}---", self.name);
            return;
        }
        // The password that the tests use. Whatever a test is about, this holds.
        assert!(!stdout.contains("s3cret") && !stderr.contains("s3cret"), "a password was shown");
    }
}

/// Waits until `wanted` holds, whatever it is that it looks at.
#[track_caller]
pub fn await_that(what: &str, wanted: impl Fn() -> bool) {
    let started = Instant::now();
    while !wanted() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

pub fn kill(pid: u32, signal: &str) {
    let status = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status();
    assert!(status.unwrap().success(), "kill -{signal} {pid}");
    if signal == "STOP" {
        await_that("all its threads have stopped", || is_stopped(pid));
    }
}

/// Tells whether a process is stopped, with all its threads: on a busy machine some go on for a while (proc(5), ps(1)).
fn is_stopped(pid: u32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        let ps = Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().unwrap();
        return ps.stdout.starts_with(b"T");
    };
    let mut stats =
        threads.flatten().map(|thread| std::fs::read_to_string(thread.path().join("stat")));
    stats.all(|stat| match stat {
        // The state comes after the name, which is in brackets.
        Ok(stat) => stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')),
        // It ended meanwhile.
        Err(_) => true,
    })
}

/// One of the two programs, with nothing of the test's environment that could change its output.
pub fn program(path: &str, url: &str, args: &[&str]) -> Command {
    let mut command = Command::new(path);
    command.args(args).env("AMQP_URL", url).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

pub fn client_command(url: &str, args: &[&str]) -> Command {
    program(env!("CARGO_BIN_EXE_rpc_client"), url, args)
}

pub fn server_command(url: &str, args: &[&str]) -> Command {
    program(env!("CARGO_BIN_EXE_rpc_server"), url, args)
}

/// Runs `rpc_client` on the shared broker to its end.
#[track_caller]
pub fn client(args: &[&str]) -> Ended {
    client_at(&broker(), args)
}

/// Runs `rpc_client` on the broker at `url` to its end.
#[track_caller]
pub fn client_at(url: &str, args: &[&str]) -> Ended {
    Process::spawn(&mut client_command(url, args)).wait()
}

/// Starts `rpc_server` on the shared broker, and waits until it awaits requests.
#[track_caller]
pub fn server(queue: &Queue, args: &[&str]) -> Process {
    server_at(&broker(), queue, args)
}

#[track_caller]
pub fn server_at(url: &str, queue: &Queue, args: &[&str]) -> Process {
    let args = [&["--queue", queue.name()], args].concat();
    let server = Process::spawn(&mut server_command(url, &args));
    server.await_stdout(" [x] Awaiting RPC requests\n");
    server
}

/// A queue name that no other test has. If there is a queue of that name on the broker when the
/// test ends, it is deleted.
pub struct Queue {
    url: String,
    name: String,
}

impl Queue {
    pub fn new() -> Queue {
        Queue::at(&broker())
    }

    pub fn at(url: &str) -> Queue {
        Queue { url: url.into(), name: format!("test-{}", Uuid::new_v4()) }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Calls `fib` and the like by way of this queue.
    #[track_caller]
    pub fn client(&self, args: &[&str]) -> Ended {
        client_at(&self.url, &[&["--queue", self.name()], args].concat())
    }

    /// Ready messages and consumers, if the queue exists.
    pub fn state(&self) -> Option<(u32, u32)> {
        let mut amqp = Amqp::at(&self.url);
        let channel = amqp.session.channel().unwrap();
        let state = fib_rpc::amqp::queue::inspect(&mut amqp.session, &channel, &self.name).ok()?;
        Some((state.messages, state.consumers))
    }

    /// Waits until the queue has this many ready messages and consumers.
    #[track_caller]
    pub fn await_state(&self, wanted: (u32, u32)) {
        let started = Instant::now();
        loop {
            let state = self.state();
            if state == Some(wanted) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{state:?} is not {wanted:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let Ok(mut session) = open(&self.url) else { return };
        if let Ok(channel) = session.channel() {
            let _ = channel.queue_delete(self.name.as_str(), QueueDeleteOptions::default());
        }
    }
}

fn open(url: &str) -> Result<OpenConnection, fib_rpc::error::Failure> {
    let properties = ClientProperties::new("test");
    Ok(OpenConnection::open(&uri::parse_list(url)?, PATIENCE, &properties)?)
}

/// A connection with which a test plays the other side.
pub struct Amqp {
    pub session: OpenConnection,
    pub channel: Channel,
}

impl Amqp {
    pub fn new() -> Amqp {
        Amqp::at(&broker())
    }

    pub fn at(url: &str) -> Amqp {
        let mut session = open(url).unwrap_or_else(|failure| panic!("{failure}"));
        let channel = session.channel().unwrap();
        Amqp { session, channel }
    }

    /// Declares a durable queue with no arguments.
    pub fn declare(&self, queue: &Queue) {
        let options = QueueDeclareOptions { durable: true, ..Default::default() };
        self.channel.queue_declare(queue.name(), options).unwrap();
    }

    /// Declares a durable queue that has room for so many messages, and refuses the others.
    pub fn declare_with_room(&self, queue: &Queue, most: i32) {
        let arguments = FieldTable::from([
            ("x-max-length".into(), AmqpValue::LongInt(most)),
            ("x-overflow".into(), AmqpValue::LongString("reject-publish".into())),
        ]);
        let options = QueueDeclareOptions { durable: true, arguments, ..Default::default() };
        self.channel.queue_declare(queue.name(), options).unwrap();
    }

    /// Publishes to a queue.
    pub fn publish(&self, queue: &str, body: &[u8], properties: AmqpProperties) {
        self.channel.basic_publish("", Publish::with_properties(body, queue, properties)).unwrap();
    }

    /// An exclusive queue of this connection's.
    pub fn exclusive(&self) -> String {
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        self.channel.queue_declare("", options).unwrap().name().into()
    }

    /// The next message of a queue, which must come in time.
    #[track_caller]
    pub fn next(&self, queue: &str) -> Delivery {
        let started = Instant::now();
        loop {
            if let Some(get) = self.channel.basic_get(queue, true).unwrap() {
                return get.delivery;
            }
            assert!(started.elapsed() < PATIENCE, "no message in {queue}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Amqp {
    fn drop(&mut self) {
        self.session.close();
    }
}

/// A server that a test writes: for each of `requests` requests in turn, `answer` gets the
/// delivery and a channel. Ends, and its queue loses its consumer, when it has served them.
pub struct StubServer(Option<thread::JoinHandle<()>>);

impl StubServer {
    pub fn start(
        queue: &Queue,
        requests: usize,
        mut answer: impl FnMut(&Channel, &Delivery) + Send + 'static,
    ) -> StubServer {
        let amqp = Amqp::new();
        amqp.declare(queue);
        let name = queue.name().to_owned();
        let (ready, started) = std::sync::mpsc::channel();
        let serve = move || {
            let mut amqp = amqp;
            let consumer =
                amqp.channel.basic_consume(name.as_str(), ConsumerOptions::default()).unwrap();
            ready.send(()).unwrap();
            for _ in 0..requests {
                match consumer.receiver().recv_timeout(PATIENCE) {
                    Ok(ConsumerMessage::Delivery(delivery)) => {
                        answer(&amqp.channel, &delivery);
                        consumer.ack(delivery).unwrap();
                    }
                    other => panic!("{other:?}"),
                }
            }
            amqp.session.close();
        };
        let thread = thread::spawn(serve);
        started.recv().unwrap();
        StubServer(Some(thread))
    }

    /// Waits until it has served all its requests.
    pub fn join(mut self) {
        self.0.take().unwrap().join().unwrap();
    }
}

/// Answers a request with any body and properties; the request's correlation id is filled in
/// unless the properties have one.
pub fn reply(channel: &Channel, request: &Delivery, body: &[u8], properties: AmqpProperties) {
    let properties = match (properties.correlation_id(), request.properties.correlation_id()) {
        (None, Some(id)) => properties.clone().with_correlation_id(id.clone()),
        _ => properties,
    };
    let reply_to = request.properties.reply_to().clone().unwrap();
    channel.basic_publish("", Publish::with_properties(body, reply_to, properties)).unwrap();
}

/// Feeds a process's standard input from a thread.
pub fn feed(command: &mut Command, input: Vec<u8>) -> Process {
    let (process, mut stdin) = Process::spawn_with_stdin(command);
    thread::spawn(move || stdin.write_all(&input));
    process
}
