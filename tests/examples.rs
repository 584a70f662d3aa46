//! Tests of the examples, as processes, on a private RabbitMQ node. The names of the tutorials'
//! queues and exchanges are fixed, so each test has a vhost of its own there.
//!
//! Who did not get a message is proven by a later one: a queue keeps its order.

#[path = "it/harness/mod.rs"]
#[allow(dead_code, reason = "shared with the other tests")]
mod harness;

use amiquip::{AmqpProperties, ExchangeDeclareOptions, ExchangeType, QueueDeclareOptions};
use harness::{Amqp, Ended, Node, PATIENCE, Process};
use harness::{build_examples, client_at, kill, program, raw, server_command, shown};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const ALL: [&str; 10] = [
    "send",
    "receive",
    "new_task",
    "worker",
    "emit_log",
    "receive_logs",
    "emit_log_direct",
    "receive_logs_direct",
    "emit_log_topic",
    "receive_logs_topic",
];

const FOR_MESSAGES: &str = " [*] Waiting for messages. To exit press CTRL+C\n";
const FOR_LOGS: &str = " [*] Waiting for logs. To exit press CTRL+C\n";

/// Returns the folder with the examples, which are built by then.
fn folder() -> PathBuf {
    build_examples();
    Path::new(env!("CARGO_BIN_EXE_rpc_client")).with_file_name("examples")
}

fn command(url: &str, example: &str, args: &[&str]) -> Command {
    program(folder().join(example).to_str().unwrap(), url, args)
}

/// Runs an example to its end.
#[track_caller]
fn run_at(url: &str, example: &str, args: &[&str]) -> Ended {
    Process::spawn(&mut command(url, example, args)).wait()
}

/// Starts a receiver, and waits until it waits.
#[track_caller]
fn start_at(url: &str, example: &str, args: &[&str]) -> Process {
    let receiver = Process::spawn(&mut command(url, example, args));
    receiver.await_stdout(if example.contains("logs") { FOR_LOGS } else { FOR_MESSAGES });
    receiver
}

/// Stops a receiver by Ctrl-C, and compares all that it wrote.
#[track_caller]
fn stop(receiver: Process, stdout: &str) {
    receiver.signal("INT");
    receiver.wait().expect(0, stdout, "");
}

/// How many vhosts the shared node has: more than there are tests.
const VHOSTS: usize = 50;

/// Returns the node that the tests share. Its vhosts are made all at once, since each word of `rabbitmqctl` takes
/// half a second.
fn node() -> &'static Node {
    static SHARED: LazyLock<Node> = LazyLock::new(|| {
        let node = Node::start();
        let names = || (0..VHOSTS).map(|number| format!("test-{number}"));
        let vhosts: Vec<_> = names().map(|name| json!({ "name": name })).collect();
        let all = |name| json!({ "user": "guest", "vhost": name, "configure": ".*", "write": ".*", "read": ".*" });
        let definitions =
            json!({ "vhosts": vhosts, "permissions": names().map(all).collect::<Vec<_>>() });

        let file = node.folder().join("fib-rpc-node/definitions.json");
        std::fs::write(&file, definitions.to_string()).unwrap();
        node.ctl(&["import_definitions", file.to_str().unwrap()]);
        node
    });
    &SHARED
}

/// A vhost that no other test has.
struct Vhost {
    node: &'static Node,
    name: String,
    url: String,
}

impl Vhost {
    fn new() -> Vhost {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(number < VHOSTS, "make more of them");
        let (node, name) = (node(), format!("test-{number}"));
        let url = format!("{}/{name}", node.url);
        Vhost { node, name, url }
    }

    #[track_caller]
    fn run(&self, example: &str, args: &[&str]) -> Ended {
        run_at(&self.url, example, args)
    }

    #[track_caller]
    fn start(&self, example: &str, args: &[&str]) -> Process {
        start_at(&self.url, example, args)
    }

    #[track_caller]
    fn new_task(&self, message: &str) {
        self.run("new_task", &[message]).expect(0, &format!(" [x] Sent '{message}'\n"), "");
    }

    fn shown(&self) -> String {
        shown(&self.url)
    }

    /// The number of ready messages.
    fn ready(&self, queue: &str) -> usize {
        let mut amqp = Amqp::at(&self.url);
        let channel = amqp.session.channel().unwrap();
        let state = fib_rpc::amqp::queue::inspect(&mut amqp.session, &channel, queue).unwrap();
        state.messages as usize
    }
}

// Tutorial one.

#[test]
fn hello_world() {
    let vhost = Vhost::new();
    vhost.run("send", &[]).expect(0, " [x] Sent 'Hello World!'\n", "");
    let receive = vhost.start("receive", &[]);
    receive.await_stdout(" [x] Received 'Hello World!'\n");
    vhost.run("send", &[]).expect(0, " [x] Sent 'Hello World!'\n", "");
    let line = " [x] Received 'Hello World!'\n";
    receive.await_stdout(&line.repeat(2));
    stop(receive, &format!("{FOR_MESSAGES}{line}{line}"));
    assert_eq!(vhost.ready("hello"), 0);
}

#[test]
fn a_strangers_bytes_are_printed_safely_and_on_one_line() {
    let vhost = Vhost::new();
    let receive = vhost.start("receive", &[]);
    let amqp = Amqp::at(&vhost.url);
    amqp.publish("hello", b"caf\xe9\x1b[2J\n [x] Done", AmqpProperties::default());
    amqp.publish("hello", &[b'9'; 100_000], AmqpProperties::default());
    amqp.publish("hello", b"", AmqpProperties::default());
    receive.await_stdout(" [x] Received ''\n");
    receive.signal("TERM");
    let nines = "9".repeat(100_000);
    let received = format!(
        "{FOR_MESSAGES} [x] Received 'caf\u{fffd}\\u{{1b}}[2J\\n [x] Done'\n \
         [x] Received '{nines}'\n [x] Received ''\n"
    );
    receive.wait().expect(0, &received, "");
}

/// `receive` has no acks: what the broker sent, it has forgotten. So it is printed even when it
/// came with the signal.
#[test]
fn a_receiver_that_stops_loses_nothing() {
    const MESSAGES: usize = 20_000;
    let vhost = Vhost::new();
    // This one declares the queue.
    vhost.run("send", &[]).expect(0, " [x] Sent 'Hello World!'\n", "");
    let mut amqp = Amqp::at(&vhost.url);
    for _ in 1..MESSAGES {
        amqp.publish("hello", b"Hello World!", AmqpProperties::default());
    }
    amqp.session.close();
    let receive = vhost.start("receive", &[]);
    receive.signal("INT");
    let ended = receive.wait();
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""));
    let printed = ended.stdout.matches(" [x] Received 'Hello World!'\n").count();
    assert_eq!(printed + vhost.ready("hello"), MESSAGES);
}

#[test]
fn standard_output_closed_early() {
    let vhost = Vhost::new();
    let mut head = Command::new("head")
        .args(["-n", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut receive = command(&vhost.url, "receive", &[]);
    let receive = receive.stdout(head.stdin.take().unwrap()).stderr(Stdio::piped());
    let receive = receive.spawn().unwrap();
    assert_eq!(head.wait_with_output().unwrap().stdout, FOR_MESSAGES.as_bytes());
    vhost.run("send", &[]).expect(0, " [x] Sent 'Hello World!'\n", "");
    let output = receive.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

// Tutorial two.

/// The first worker is stopped with a task in hand: without fair dispatch, every other task would
/// go to it.
#[test]
fn tasks_go_to_the_worker_that_is_idle() {
    let vhost = Vhost::new();
    let busy = vhost.start("worker", &[]);
    vhost.new_task("A message with 3 dots...");
    busy.await_stdout(" [x] Received 'A message with 3 dots...'\n");
    busy.signal("STOP");
    let idle = vhost.start("worker", &[]);
    let mut done = FOR_MESSAGES.to_owned();
    for light in ["First", "Second", "Third", "Fourth"] {
        vhost.new_task(light);
        done += &format!(" [x] Received '{light}'\n [x] Done\n");
    }
    idle.await_stdout(&done);
    busy.signal("CONT");
    busy.await_stdout(" [x] Done\n");
    let heavy = " [x] Received 'A message with 3 dots...'\n [x] Done\n";
    stop(busy, &format!("{FOR_MESSAGES}{heavy}"));
    stop(idle, &done);
    assert_eq!(vhost.ready("task_queue"), 0);
}

#[test]
fn the_task_of_a_killed_worker_goes_to_another() {
    let vhost = Vhost::new();
    let killed = vhost.start("worker", &[]);
    vhost.new_task("Two dots..");
    killed.await_stdout(" [x] Received 'Two dots..'\n");
    killed.signal("STOP");
    let heir = vhost.start("worker", &[]);
    vhost.new_task("None");
    heir.await_stdout(" [x] Received 'None'\n [x] Done\n");
    killed.signal("KILL");
    let received = " [x] Received 'Two dots..'\n";
    killed.wait().expect(137, &format!("{FOR_MESSAGES}{received}"), "");
    heir.await_stdout(&format!("{received} [x] Done\n"));
    let none = " [x] Received 'None'\n [x] Done\n";
    stop(heir, &format!("{FOR_MESSAGES}{none}{received} [x] Done\n"));
    assert_eq!(vhost.ready("task_queue"), 0);
}

#[test]
fn a_worker_that_is_asked_to_stop_finishes_its_task_and_takes_no_other() {
    let vhost = Vhost::new();
    for signal in ["INT", "TERM"] {
        vhost.new_task("Two dots..");
        vhost.new_task("Next");
        let first = vhost.start("worker", &[]);
        first.await_stdout(" [x] Received 'Two dots..'\n");
        first.signal(signal);
        let done = format!("{FOR_MESSAGES} [x] Received 'Two dots..'\n [x] Done\n");
        first.wait().expect(0, &done, "");
        // Had the first task come back, it would be ahead of the next.
        let second = vhost.start("worker", &[]);
        second.await_stdout(" [x] Done\n");
        stop(second, &format!("{FOR_MESSAGES} [x] Received 'Next'\n [x] Done\n"));
    }
}

#[test]
fn a_second_signal_leaves_the_task_to_another_worker() {
    let vhost = Vhost::new();
    let hurried = vhost.start("worker", &[]);
    // A second for each dot, which is longer than this test waits.
    let task = ".".repeat(1_000);
    vhost.new_task(&task);
    hurried.await_stdout(&format!(" [x] Received '{task}'\n"));
    let started = Instant::now();
    // Two signals at the same time can be one: so until the message is back.
    while vhost.ready("task_queue") == 0 {
        assert!(started.elapsed() < PATIENCE);
        hurried.signal("INT");
    }
    let ended = hurried.wait();
    assert_eq!((ended.code(), ended.stderr.as_str()), (130, ""));
}

/// The second restart begins right after the broker confirmed the task, and without warning: the
/// task is on its disk by then. The first one is in good order, since a node that is new and killed
/// may not have the queue itself on its disk yet (RabbitMQ 3.10.8).
#[test]
fn tasks_outlive_their_broker() {
    let node = Node::start();
    run_at(&node.url, "new_task", &["First"]).expect(0, " [x] Sent 'First'\n", "");
    node.ctl(&["stop_app"]);
    node.ctl(&["start_app"]);
    run_at(&node.url, "new_task", &["Second"]).expect(0, " [x] Sent 'Second'\n", "");
    kill(node.pid(), "KILL");
    node.restart();
    let worker = start_at(&node.url, "worker", &[]);
    let done = |task| format!(" [x] Received '{task}'\n [x] Done\n");
    worker.await_stdout(&done("Second"));
    stop(worker, &format!("{FOR_MESSAGES}{}{}", done("First"), done("Second")));
}

/// It would end the client library's connection, come back, and end one worker after the other.
#[test]
fn properties_that_are_not_utf8_end_no_worker() {
    let node = node();
    let worker = start_at(&node.url, "worker", &[]);
    for (flags, properties) in raw::unreadable() {
        raw::publish(&node.url, "task_queue", flags, &properties, b"task");
    }
    let done = " [x] Received 'task'\n [x] Done\n".repeat(2);
    worker.await_stdout(&done);
    stop(worker, &format!("{FOR_MESSAGES}{done}"));
}

// Tutorial three.

#[test]
fn a_log_message_goes_to_all_who_listen_at_that_time() {
    let vhost = Vhost::new();
    let nobody = "emit_log: nobody got the message: no queue is bound to the exchange \"logs\"; \
                  start a receiver first\n";
    vhost.run("emit_log", &["too", "early"]).expect(69, "", nobody);
    let both = [vhost.start("receive_logs", &[]), vhost.start("receive_logs", &[])];
    vhost.run("emit_log", &["1"]).expect(0, " [x] Sent '1'\n", "");
    let late = vhost.start("receive_logs", &[]);
    let sent = " [x] Sent 'info: Hello World!'\n";
    vhost.run("emit_log", &[]).expect(0, sent, "");
    let hello = " [x] 'info: Hello World!'\n";
    for receiver in both {
        receiver.await_stdout(hello);
        stop(receiver, &format!("{FOR_LOGS} [x] '1'\n{hello}"));
    }
    late.await_stdout(hello);
    stop(late, &format!("{FOR_LOGS}{hello}"));
    vhost.run("emit_log", &["too", "late"]).expect(69, "", nobody);
}

// Tutorials four and five.

/// Starts a receiver of `kind` for each of `receivers`' keys, sends each of `keys`, and compares
/// who got it: `expected` has the receivers' indices. `last` is a key that all of them get.
#[track_caller]
fn routes(kind: &str, receivers: &[&[&str]], expected: &[(&str, &[usize])], last: &[&str]) {
    let vhost = Vhost::new();
    let (emit, receive) = (format!("emit_log_{kind}"), format!("receive_logs_{kind}"));
    let started: Vec<Process> = receivers.iter().map(|keys| vhost.start(&receive, keys)).collect();
    let mut wanted = vec![FOR_LOGS.to_owned(); receivers.len()];
    for (key, indices) in expected {
        let ended = vhost.run(&emit, &[key, "to", key]);
        for index in *indices {
            wanted[*index] += &format!(" [x] '{key}':'to {key}'\n");
        }
        match indices {
            [] => ended.expect(69, "", &format!(
                "{emit}: nobody got the message: no queue is bound to the exchange \"{kind}_logs\" \
                 for the routing key \"{key}\"; start a receiver with that key first\n"
            )),
            _ => ended.expect(0, &format!(" [x] Sent '{key}':'to {key}'\n"), ""),
        }
    }
    for key in last {
        let sent = format!(" [x] Sent '{key}':'Hello World!'\n");
        vhost.run(&emit, &[key]).expect(0, &sent, "");
    }
    for ((receiver, wanted), key) in started.into_iter().zip(wanted).zip(last) {
        let end = format!(" [x] '{key}':'Hello World!'\n");
        receiver.await_stdout(&end);
        stop(receiver, &(wanted + &end));
    }
}

#[test]
fn log_messages_go_by_their_severity() {
    routes(
        "direct",
        &[&["info", "warning", "end 0"], &["error", "warning", "end 1"]],
        &[
            ("info", &[0]),
            ("error", &[1]),
            ("warning", &[0, 1]),
            ("debug", &[]),
            // The longest key, and what is a pattern elsewhere.
            (&"x".repeat(255), &[]),
            ("*", &[]),
            ("info.kern", &[]),
        ],
        &["end 0", "end 1"],
    );
}

#[test]
fn log_messages_go_by_patterns() {
    let end = |n: usize| format!("end {n}");
    let ends: Vec<String> = (0..5).map(end).collect();
    let [e0, e1, e2, e3, e4] = [&ends[0], &ends[1], &ends[2], &ends[3], &ends[4]];
    routes(
        "topic",
        &[
            &["kern.*", e0],
            &["*.critical", e1],
            &["kern.*", "*.critical", e2],
            &["lazy.#", e3],
            &["*.*.rabbit", "*.orange.*", e4],
        ],
        &[
            ("kern.info", &[0, 2]),
            ("cron.critical", &[1, 2]),
            // Once, though two binding keys match.
            ("kern.critical", &[0, 1, 2]),
            ("lazy.orange.rabbit", &[3, 4]),
            ("lazy", &[3]),
            ("lazy.brown.new.fox", &[3]),
            ("quick.orange.fox", &[4]),
            ("quick.brown.rabbit", &[4]),
            ("quick.brown.fox", &[]),
            ("kern", &[]),
            ("kern.disk.critical", &[]),
            ("critical", &[]),
        ],
        &[e0, e1, e2, e3, e4],
    );
    let every = ["anonymous.info", "kern", "a.b.c.d", ""];
    let all: Vec<(&str, &[usize])> = every.iter().map(|key| (*key, &[0][..])).collect();
    routes("topic", &[&["#"]], &all, &["end"]);
}

#[test]
fn keys_that_are_not_given() {
    let vhost = Vhost::new();
    for (kind, key) in [("direct", "info"), ("topic", "anonymous.info")] {
        let receiver = vhost.start(&format!("receive_logs_{kind}"), &[key]);
        let sent = format!(" [x] Sent '{key}':'Hello World!'\n");
        vhost.run(&format!("emit_log_{kind}"), &[]).expect(0, &sent, "");
        receiver.await_stdout("'Hello World!'\n");
        stop(receiver, &format!("{FOR_LOGS} [x] '{key}':'Hello World!'\n"));
    }
}

// Tutorial six, on the client library alone.

#[test]
fn the_plain_programs_and_the_pair_understand_each_other() {
    const READY: &str = " [x] Awaiting RPC requests\n";
    const CALLS: &str =
        " [x] Requesting fib(10)\n [.] Got 55\n [x] Requesting fib(20)\n [.] Got 6765\n";
    const SERVED: &str = " [x] Awaiting RPC requests\n [.] fib(10)\n [.] fib(20)\n [.] fib(30)\n";
    let vhost = Vhost::new();
    let plain = Process::spawn(&mut command(&vhost.url, "tutorial_six_server", &[]));
    plain.await_stdout(READY);
    vhost.run("tutorial_six_client", &["10", "20"]).expect(0, CALLS, "");
    client_at(&vhost.url, &["fib", "30"]).expect(0, "832040\n", "");
    plain.signal("TERM");
    plain.wait().expect(143, SERVED, "");
    // It uses the queue as it is.
    let ours = Process::spawn(&mut server_command(&vhost.url, &[]));
    ours.await_stdout(READY);
    vhost.run("tutorial_six_client", &["10", "20"]).expect(0, CALLS, "");
    let call = " [x] Requesting fib(30)\n [.] Got 832040\n";
    vhost.run("tutorial_six_client", &[]).expect(0, call, "");
    ours.signal("TERM");
    ours.wait().expect(0, SERVED, "");
}

/// What a learner writes: one screen, nothing of this library.
#[test]
fn the_plain_programs_are_short_and_on_their_own() {
    for program in [
        include_str!("../examples/tutorial_six_client.rs"),
        include_str!("../examples/tutorial_six_server.rs"),
    ] {
        assert!(program.lines().count() <= 60 && !program.contains("fib_rpc"), "{program}");
    }
}

// What goes wrong.

#[test]
fn wrong_usage() {
    let nowhere = "amqp://127.0.0.1:1";
    for (example, name) in
        [("receive_logs_direct", "SEVERITY"), ("receive_logs_topic", "BINDING_KEY")]
    {
        run_at(nowhere, example, &[]).expect(
            64,
            "",
            &format!(
                "{example}: the following required arguments were not provided:\n  <{name}>...\n\n\
             Usage: {example} [OPTIONS] {name}...\n\nFor more information, try '--help'.\n"
            ),
        );
    }
    let long = "x".repeat(256);
    for example in &ALL[6..] {
        let ended = run_at(nowhere, example, &[&long]);
        let told = "a key has at most 255 bytes, and this one has 256";
        assert_eq!((ended.code(), ended.stdout.as_str()), (64, ""), "{ended:?}");
        assert!(ended.stderr.starts_with(&format!("{example}: ")), "{ended:?}");
        assert!(ended.stderr.contains(told), "{ended:?}");
    }
    for example in ALL {
        let ended = run_at(nowhere, example, &["--queue"]);
        let told = format!("{example}: unexpected argument '--queue' found\n");
        assert_eq!((ended.code(), ended.stdout.as_str()), (64, ""), "{ended:?}");
        assert!(ended.stderr.starts_with(&told), "{ended:?}");
        let ended = run_at(nowhere, example, &["--help"]);
        assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "{ended:?}");
        assert!(ended.stdout.contains(&format!("Usage: {example} ")), "{ended:?}");
        assert!(ended.stdout.contains(&format!("Examples:\n  {example}")), "{ended:?}");
    }
}

/// Arguments with which an example connects.
fn enough(example: &str) -> &'static [&'static str] {
    if example.starts_with("receive_logs_") { &["info"] } else { &[] }
}

#[test]
fn brokers_that_are_not_there() {
    for example in ALL {
        let ended = run_at("amqp://127.0.0.1:1", example, enough(example));
        let told = format!(
            "{example}: cannot reach amqp://127.0.0.1:1: Connection refused (os error 111); is \
             RabbitMQ running there? (--url or AMQP_URL names another)\n"
        );
        ended.expect(69, "", &told);
    }
    let told = "send: broker URI (--url or AMQP_URL): its scheme is neither amqp nor amqps\n";
    run_at("http://localhost", "send", &[]).expect(78, "", told);
}

#[test]
fn brokers_that_refuse() {
    let vhost = Vhost::new();
    let shown = vhost.shown();
    let wrong = vhost.url.replace("amqp://", "amqp://guest:s3cret@");
    let told = "refused the credentials; check user and password in --url or AMQP_URL; RabbitMQ \
                lets guest in from localhost only";
    for example in ["send", "worker"] {
        run_at(&wrong, example, &[]).expect(77, "", &format!("{example}: {shown} {told}\n"));
    }
    // A publication that is refused is told by the end of the channel alone.
    let user = vhost.name.as_str();
    vhost.node.add_user(user);
    vhost.node.ctl(&["set_permissions", "-p", &vhost.name, user, ".*", "^$", ".*"]);
    let mute = vhost.url.replace("amqp://", &format!("amqp://{user}:s3cret@"));
    let ended = run_at(&mute, "emit_log", &[]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (77, ""), "{ended:?}");
    assert!(ended.stderr.contains("ACCESS_REFUSED - "), "{ended:?}");
}

#[test]
fn queues_and_exchanges_that_were_declared_otherwise() {
    let vhost = Vhost::new();
    let shown = vhost.shown();
    let amqp = Amqp::at(&vhost.url);
    // Durable too: other ones are more likely, but RabbitMQ 4.3 denies them.
    let odd = QueueDeclareOptions { durable: true, auto_delete: true, ..Default::default() };
    for queue in ["hello", "task_queue"] {
        amqp.channel.queue_declare(queue, odd.clone()).unwrap();
    }
    for exchange in ["logs", "direct_logs", "topic_logs"] {
        let options = ExchangeDeclareOptions::default();
        amqp.channel.exchange_declare(ExchangeType::Headers, exchange, options).unwrap();
    }
    for example in ALL {
        let ended = vhost.run(example, enough(example));
        assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{ended:?}");
        let start = format!("{example}: {shown} refused: PRECONDITION_FAILED - inequivalent arg ");
        assert!(ended.stderr.starts_with(&start), "{ended:?}");
        let end = "; it exists already, declared in another way: delete it, or name another vhost \
                   in the URI\n";
        assert!(ended.stderr.ends_with(end), "{ended:?}");
    }
}

#[test]
fn a_lost_connection_ends_a_receiver() {
    let vhost = Vhost::new();
    let receivers = ["receive", "worker", "receive_logs", "receive_logs_direct"]
        .map(|example| (example, vhost.start(example, enough(example))));
    vhost.node.ctl(&["close_all_connections", "--vhost", &vhost.name, "maintenance"]);
    let shown = vhost.shown();
    for (example, receiver) in receivers {
        let waiting = if example.contains("logs") { FOR_LOGS } else { FOR_MESSAGES };
        let told =
            format!("{example}: {shown} closed the connection: CONNECTION_FORCED - maintenance\n");
        receiver.wait().expect(75, waiting, &told);
    }
}

#[test]
fn a_deleted_queue_ends_a_receiver() {
    let vhost = Vhost::new();
    let receive = vhost.start("receive", &[]);
    vhost.node.ctl(&["delete_queue", "-p", &vhost.name, "hello"]);
    receive.wait().expect(69, FOR_MESSAGES, "receive: the queue \"hello\" is gone\n");
}

#[test]
fn a_blocked_broker_takes_the_message_later() {
    let node = Node::start();
    node.set_memory_watermark(0.0000001);
    let send = Process::spawn(&mut command(&node.url, "send", &[]));
    let shown = shown(&node.url);
    let blocks = format!("send: {shown} blocks publishing (low on memory); waiting\n");
    send.await_stderr(&blocks);
    assert_eq!(send.stdout(), "");
    node.set_memory_watermark(0.4);
    let told = format!("{blocks}send: {shown} no longer blocks publishing\n");
    send.wait().expect(0, " [x] Sent 'Hello World!'\n", &told);
}
