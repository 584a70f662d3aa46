//! One worker's trouble is its own: channels that the broker closes, replies that it does not take, connections that are
//! lost while a reply goes out; and what a server does with what it has prefetched.

use crate::harness::*;
use crate::proxy::{Action, BASIC_PUBLISH, Proxy, slow_link};
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A folder in which a procedure `p` leaves a line for each of its runs, and waits for what a test releases.
struct Runs(PathBuf);

impl Runs {
    fn new() -> Runs {
        let folder = std::env::temp_dir().join(format!("fib-rpc-runs-{}", Uuid::new_v4()));
        fs::create_dir(&folder).unwrap();
        Runs(folder)
    }

    /// The option for `p`: it notes its argument, in `$n`, and then does what the script says. In that, `await` waits
    /// until a name is released.
    fn procedure(&self, script: &str) -> String {
        let folder = self.0.display();
        let script = format!(
            "read n; echo $n >>{folder}/runs; \
             await() {{ until [ -e {folder}/$1 ]; do sleep 0.05; done; }}; {script}"
        );
        assert!(!script.contains('\''), "{script}");
        format!("--procedure=p=sh -c '{script}'")
    }

    fn release(&self, name: &str) {
        fs::write(self.0.join(name), "").unwrap();
    }

    /// How many runs with this argument have begun.
    fn begun(&self, argument: &str) -> usize {
        let runs = fs::read_to_string(self.0.join("runs")).unwrap_or_default();
        runs.lines().filter(|run| *run == argument).count()
    }

    #[track_caller]
    fn await_begun(&self, argument: &str) {
        await_that("a run has begun", || self.begun(argument) > 0);
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How many connections a node has.
fn connections(node: &Node) -> usize {
    node.eval("length(rabbit_networking:connections()).").parse().unwrap()
}

fn spawn_client(url: &str, queue: &Queue, args: &[&str]) -> Process {
    let args = [&["-q", "--queue", queue.name()], args].concat();
    Process::spawn(&mut client_command(url, &args))
}

fn threads(server: &Process) -> usize {
    fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().count()
}

// Channels that the broker closes.

#[test]
fn a_call_that_outlasts_consumer_timeout_costs_nobody_else_anything() {
    let (node, runs) = (Node::with_consumer_timeout(3000), Runs::new());
    let queue = Queue::at(&node.url);
    let procedure = runs.procedure("[ $n = short ] || await never; echo done");
    let server = server_at(&node.url, &queue, &["--workers", "2", &procedure]);
    let long = spawn_client(&node.url, &queue, &["--timeout", "10m", "p", "long"]);
    runs.await_begun("long");
    let started = Instant::now();
    let ended = long.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
    assert!(ended.stderr.contains("consumer_timeout"), "{ended:?}");
    assert!(ended.stderr.contains("(timed-out)"), "{ended:?}");
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
    // Both workers are there, on the connection that there was.
    queue.await_state((0, 2));
    for _ in 0..4 {
        queue.client(&["-q", "p", "short"]).expect(0, "done\n", "");
    }
    assert_eq!((runs.begun("long"), runs.begun("short")), (1, 4));
    assert_eq!(server.stdout().matches("[.] p(long)").count(), 1);
    assert_eq!(connections(&node), 1);
    let said = server.stop().stderr;
    assert!(!said.contains("again\n") || said.contains("a worker starts again"), "{said}");
    assert!(!said.contains("connected to"), "{said}");
}

/// It is answered when it comes again, not run by the same server.
#[test]
fn a_channel_that_is_closed_is_noticed_while_its_only_worker_computes() {
    let (node, runs) = (Node::with_consumer_timeout(3000), Runs::new());
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &[&runs.procedure("await never")]);
    let long = spawn_client(&node.url, &queue, &["--timeout", "10m", "p", "long"]);
    server.await_stderr("is given up with its channel");
    server.await_stderr("a worker starts again");
    assert_eq!(long.wait().code(), 75);
    queue.await_state((0, 1));
    assert_eq!(runs.begun("long"), 1);
    server.stop();
}

#[test]
fn a_call_that_waited_behind_others_is_not_condemned_for_their_time() {
    let (node, runs) = (Node::with_consumer_timeout(3000), Runs::new());
    let queue = Queue::at(&node.url);
    let procedure = runs.procedure("sleep $n; echo $n");
    let server = server_at(&node.url, &queue, &["--prefetch", "2", &procedure]);
    // Both are delivered at once. The second one's time is over soon after its turn has come.
    let ended = queue.client(&["-q", "--timeout", "10m", "--in-flight", "2", "p", "2.4", "1.9"]);
    ended.expect(0, "2.4\n1.9\n", "");
    server.stop();
}

#[test]
fn a_reply_that_is_too_large_costs_nobody_else_anything() {
    let node = Node::with_max_message_size(1000);
    let (queue, runs) = (Queue::at(&node.url), Runs::new());
    let procedure = runs.procedure("[ $n = slow ] && await end; [ $n = large ] && seq 1000; echo");
    let server = server_at(&node.url, &queue, &["--workers", "2", &procedure]);
    let slow = spawn_client(&node.url, &queue, &["--timeout", "10m", "p", "slow"]);
    runs.await_begun("slow");
    let expected =
        "rpc_client: p(large): the result has 3894 bytes; the broker takes 1000 (out-of-range)\n";
    queue.client(&["-q", "p", "large"]).expect(65, "", expected);
    assert_eq!(runs.begun("large"), 1, "it is not run again");
    runs.release("end");
    slow.wait().expect(0, "\n", "");
    assert_eq!(runs.begun("slow"), 1);
    queue.await_state((0, 2));
    assert_eq!(connections(&node), 1);
    server.stop();
}

/// Another broker may take more.
#[test]
fn the_largest_body_is_learned_for_a_connection() {
    let node = Node::start();
    let (queue, runs) = (Queue::at(&node.url), Runs::new());
    node.set_max_message_size(1000);
    let server = server_at(&node.url, &queue, &[&runs.procedure("seq 1000")]);
    assert_eq!(queue.client(&["-q", "p", "1"]).code(), 65);
    node.set_max_message_size(16_777_216);
    node.close_connections("maintenance");
    server.await_stderr("again");
    let ended = queue.client(&["-q", "--wait", "p", "2"]);
    assert_eq!((ended.code(), ended.stdout.len()), (0, 3893), "{ended:?}");
    server.stop();
}

#[test]
fn a_missing_permission_is_not_a_replys_fault() {
    let (node, runs) = (Node::start(), Runs::new());
    node.add_user("server");
    let grant = |write| node.set_permissions("server", [".*", write, ".*"]);
    grant(".*");
    let queue = Queue::at(&node.url);
    let url = node.url.replace("amqp://", "amqp://server:s3cret@");
    let server = server_at(&url, &queue, &[&runs.procedure("echo done")]);
    grant("^$");
    let client = spawn_client(&node.url, &queue, &["--timeout", "10m", "p", "1"]);
    server.await_stderr_times("a worker starts again", 3);
    grant(".*");
    client.wait().expect(0, "done\n", "");
    assert!(!server.stop().stderr.contains("dropped"));
}

// Connections that are lost while a reply goes out.

#[test]
fn two_cuts_while_a_reply_goes_out_cost_no_call() {
    for cuts in [1, 2, 3] {
        let ended = AtomicUsize::new(0);
        let proxy = Proxy::start(&broker(), move |frame| {
            let ends = frame.method == BASIC_PUBLISH && ended.fetch_add(1, SeqCst) < cuts;
            if ends { Action::End } else { Action::Pass }
        });
        let queue = Queue::new();
        let server = server_at(&proxy.url, &queue, &[]);
        queue.client(&["-q", "--timeout", "10m", "fib", "30"]).expect(0, "832040\n", "");
        assert!(!server.stop().stderr.contains("dropped"), "{cuts}");
    }
}

/// RabbitMQ 3.10 ends the connection for it with an error. Later ones take no notice.
#[test]
fn a_deadly_reply_costs_each_server_no_more_than_one_connection() {
    let queue = Queue::new();
    let servers = [server(&queue, &[]), server(&queue, &[])];
    let deadly =
        amiquip::AmqpProperties::default().with_reply_to("amq.rabbitmq.reply-to.AAAA.x".into());
    Amqp::new().publish(queue.name(), b"29", deadly);
    await_that("it is gone", || {
        let is_dropped = servers.iter().any(|server| server.stderr().contains("dropped"));
        is_dropped || servers.iter().all(|server| server.stderr().is_empty()) && is_answered(&queue)
    });
    queue.client(&["-q", "--wait", "fib", "30"]).expect(0, "832040\n", "");
    for server in servers {
        let said = server.stop().stderr;
        assert!(said.matches("trying again").count() <= 1, "{said}");
    }
}

/// Whether what was there before is answered, since a call that comes after it is.
fn is_answered(queue: &Queue) -> bool {
    queue.client(&["-q", "--wait", "--repeat", "4", "fib", "30"]).code() == 0
}

#[test]
fn a_lost_connection_leaves_no_more_threads_and_descriptors_than_before() {
    let (proxy, runs) = (Proxy::start(&broker(), |_| Action::Pass), Runs::new());
    let queue = Queue::new();
    let procedure = runs.procedure("await end");
    let server = server_at(&proxy.url, &queue, &["--workers", "32", &procedure]);
    let descriptors = || fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count();
    queue.client(&["-q", "ping"]).expect(0, "pong\n", "");
    let before = (threads(&server), descriptors());
    let numbers: Vec<String> = (0..32).map(|n| n.to_string()).collect();
    let args: Vec<&str> =
        ["--timeout", "10m", "p"].into_iter().chain(numbers.iter().map(String::as_str)).collect();
    let client = spawn_client(&broker(), &queue, &args);
    await_that("all run", || numbers.iter().all(|n| runs.begun(n) == 1));
    proxy.end_connections();
    await_that("all run again", || numbers.iter().all(|n| runs.begun(n) == 2));
    runs.release("end");
    assert_eq!(client.wait().code(), 0);
    await_that("it has no more threads and descriptors than before", || {
        threads(&server) <= before.0 && descriptors() <= before.1
    });
    server.stop();
}

#[test]
fn descriptors_suffice_for_programs_after_a_lost_connection() {
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let queue = Queue::new();
    let server = format!(
        "ulimit -n 1024; exec {} --queue {} --workers 256 --drill slow=2s --procedure fun --procedure p=cat",
        env!("CARGO_BIN_EXE_rpc_server"),
        queue.name()
    );
    let server = Process::spawn(&mut program("sh", &proxy.url, &["-c", &server]));
    server.await_stdout(" [x] Awaiting RPC requests\n");
    let args = ["--timeout", "10m", "--in-flight", "300", "--repeat", "300", "fun", "1"];
    let client = spawn_client(&broker(), &queue, &args);
    queue.await_state((44, 256));
    proxy.end_connections();
    client.wait().expect(0, &"100\n".repeat(300), "");
    // Each of these takes six.
    let args = ["-q", "--timeout", "10m", "--in-flight", "16", "--repeat", "32", "p", "1"];
    queue.client(&args).expect(0, &"1\n".repeat(32), "");
    server.stop();
}

// What a server has prefetched.

#[test]
fn a_request_whose_time_passed_in_the_servers_own_queue_is_not_computed() {
    let (queue, runs) = (Queue::new(), Runs::new());
    let server = server(&queue, &["--prefetch", "10", &runs.procedure("await never")]);
    let args = ["-q", "--timeout", "1s", "--in-flight", "4", "p", "1", "2", "3", "4"];
    let ended = queue.client(&args);
    assert_eq!(ended.code(), 75, "{ended:?}");
    // Its turn comes after theirs.
    queue.client(&["-q", "ping"]).expect(0, "pong\n", "");
    assert_eq!(["1", "2", "3", "4"].map(|n| runs.begun(n)), [1, 0, 0, 0]);
    queue.await_state((0, 1));
    server.stop();
}

#[test]
fn what_was_prefetched_goes_back_when_the_server_is_asked_to_stop() {
    let (queue, runs) = (Queue::new(), Runs::new());
    let procedure = runs.procedure("[ $n = long ] && await end; echo $n");
    let stopping = server(&queue, &["--prefetch", "10", &procedure]);
    let long = spawn_client(&broker(), &queue, &["--timeout", "10m", "p", "long"]);
    runs.await_begun("long");
    let short = spawn_client(&broker(), &queue, &["--timeout", "10m", "p", "short"]);
    stopping_has_prefetched(&queue);
    stopping.signal("TERM");
    let other = server(&queue, &[&procedure]);
    short.wait().expect(0, "short\n", "");
    runs.release("end");
    long.wait().expect(0, "long\n", "");
    let ended = stopping.wait();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!((runs.begun("long"), runs.begun("short")), (1, 1));
    other.stop();
}

/// What was published is at the server: nothing is ready, although nobody else consumes.
fn stopping_has_prefetched(queue: &Queue) {
    let amqp = Amqp::new();
    let marker = amiquip::AmqpProperties::default();
    // The broker delivers in order: when this is gone from the queue, so is all before it.
    amqp.publish(queue.name(), b"marker", marker);
    queue.await_state((0, 1));
}

/// Nobody answers that the consumer is cancelled.
#[test]
fn a_frozen_broker_does_not_hold_a_stop_in_the_middle_of_a_call() {
    let (node, runs) = (Node::start(), Runs::new());
    let queue = Queue::at(&node.url);
    let url = format!("{}?heartbeat=600", node.url);
    let server = server_at(&url, &queue, &["--prefetch", "10", &runs.procedure("await never")]);
    let client = spawn_client(&node.url, &queue, &["--timeout", "10m", "p", "long"]);
    runs.await_begun("long");
    kill(node.pid(), "STOP");
    server.signal("TERM");
    let ended = server.wait();
    kill(node.pid(), "CONT");
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.stderr.contains("no longer answers"), "{ended:?}");
    drop(client);
}

// Slow links.

#[test]
fn a_stop_waits_for_a_large_reply_that_flows() {
    let (queue, runs) = (Queue::new(), Runs::new());
    let procedure = runs.procedure("head -c 12000000 /dev/zero");
    let server = server_at(&slow_link(&broker(), 1_000_000), &queue, &[&procedure]);
    let client =
        spawn_client(&broker(), &queue, &["--timeout", "10m", "--format", "raw", "p", "1"]);
    server.await_stdout("[.] p(1)");
    await_that("the reply goes out", || runs.begun("1") == 1 && has_no_child(server.pid()));
    let ended = server.stop();
    assert_eq!(ended.stderr, "");
    let ended = client.wait();
    assert_eq!((ended.code(), ended.bytes.0.len()), (0, 12_000_000), "{ended:?}");
}

#[test]
fn a_stop_does_not_wait_for_a_reply_that_trickles() {
    let (queue, runs) = (Queue::new(), Runs::new());
    let procedure = runs.procedure("head -c 15000000 /dev/zero");
    let server = server_at(&slow_link(&broker(), 1_000), &queue, &[&procedure]);
    let client =
        spawn_client(&broker(), &queue, &["--timeout", "10m", "--format", "raw", "p", "1"]);
    server.await_stdout("[.] p(1)");
    await_that("the reply goes out", || runs.begun("1") == 1 && has_no_child(server.pid()));
    let ended = server.stop();
    assert!(ended.stderr.contains("no longer answers"), "{ended:?}");
    drop(client);
}

/// Whether a process has no children.
fn has_no_child(pid: u32) -> bool {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let all = tasks.map(|task| fs::read_to_string(task.path().join("children")));
    children.is_ok() && all.into_iter().flatten().all(|children| children.trim().is_empty())
}
