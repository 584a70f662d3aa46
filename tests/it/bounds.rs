//! Bounds that hold whatever the broker does at whatever moment: how long a call may take, how many
//! connections and calls are made meanwhile, how much a server computes, how it ends. A proxy in
//! front of the real broker chooses the moment.

use crate::harness::*;
use crate::proxy::*;
use amiquip::AmqpProperties;
use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// Lines of the numbers from 1, as `seq` prints them.
fn seq(last: u32) -> Vec<u8> {
    (1..=last).flat_map(|n| format!("{n}\n").into_bytes()).collect()
}

/// A rule that ends each connection with the answer to the consumption of its reply queue: the
/// client could publish, and sees that it is gone before it does.
fn ends_before_the_first_publish(frame: &Frame<'_>) -> Action {
    match frame.method {
        BASIC_CONSUME_OK => Action::PassAndClose,
        BASIC_PUBLISH => Action::End,
        _ => Action::Pass,
    }
}

// The time limit of a call.

#[test]
fn connections_that_end_before_the_first_publish() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    for wait in [&[][..], &["--wait"]] {
        let proxy = Proxy::start(&broker(), ends_before_the_first_publish);
        let args = ["-v", "--timeout", "3s", "--queue", queue.name(), "fib", "30"];
        let client = Process::spawn(&mut client_command(&proxy.url, &[wait, &args[..]].concat()));
        let ended = client.wait_for(4 * PATIENCE);
        assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
        // 5 s are what is promised.
        assert!(ended.elapsed < Duration::from_secs(10), "{ended:?}");
        assert!((2..30).contains(&proxy.connections()), "{} connections", proxy.connections());
    }
}

#[test]
fn one_connection_without_retry() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    for wait in [&[][..], &["--wait"]] {
        let proxy = Proxy::start(&broker(), ends_before_the_first_publish);
        let args = ["-v", "--no-retry", "--timeout", "3s", "--queue", queue.name(), "fib", "30"];
        let client = Process::spawn(&mut client_command(&proxy.url, &[wait, &args[..]].concat()));
        let ended = client.wait_for(4 * PATIENCE);
        assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
        assert_eq!(proxy.connections(), 1, "{ended:?}");
    }
}

/// Without --wait too. 10 s, which it took, is how long any answer may take where there is no limit.
#[test]
fn a_broker_that_stalls_after_the_login() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let mut late = Vec::new();
    // The look at the request queue is the first declare, that of the reply queue the second.
    for (method, nth) in
        [(CHANNEL_OPEN_OK, 1), (QUEUE_DECLARE_OK, 1), (QUEUE_DECLARE_OK, 2), (BASIC_CONSUME_OK, 1)]
    {
        let proxy = Proxy::start(&broker(), move |frame| {
            let stalls = frame.method == method && frame.nth == nth;
            if stalls { Action::Stall } else { Action::Pass }
        });
        for retry in [&[][..], &["--no-retry"]] {
            let args = ["--timeout", "1s", "--queue", queue.name(), "fib", "30"];
            let ended = client_at(&proxy.url, &[retry, &args[..]].concat());
            assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
            // 3 s are what is promised.
            if ended.elapsed > Duration::from_secs(8) {
                late.push((method, nth, ended.elapsed));
            }
            let gave_up = format!("{} no longer answers", proxy.url);
            assert!(ended.stderr.contains(&gave_up), "{ended:?}");
        }
    }
    assert!(late.is_empty(), "{late:?}");
}

/// A reply that is there when the look for the reason of another call's lateness is over has come in
/// time, however long the look took.
#[test]
fn a_reply_that_comes_during_the_diagnosis_of_another_call() {
    let queue = Queue::new();
    let (tell, looks) = mpsc::channel();
    // The third declare is the look.
    let proxy = Proxy::start(&broker(), move |frame| match (frame.method, frame.nth) {
        (QUEUE_DECLARE, 3) => {
            let _ = tell.send(());
            Action::Delay(Duration::from_millis(800))
        }
        _ => Action::Pass,
    });
    let (end, over) = mpsc::channel::<()>();
    let mut requests = 0;
    let server = StubServer::start(&queue, 2, move |channel, request| {
        requests += 1;
        if requests == 2 {
            looks.recv_timeout(PATIENCE).unwrap();
            reply(channel, request, b"in time", AmqpProperties::default());
            // It still consumes when the look is answered.
            let _ = over.recv_timeout(PATIENCE);
        }
    });
    let args = ["-v", "--in-flight", "2", "--timeout", "3s", "--queue", queue.name(), "fib", "-"];
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(&proxy.url, &args));
    stdin.write_all(b"1\n").unwrap();
    client.await_stderr(": fib(1), reply_to ");
    // Its limit is half a second later: during the look.
    thread::sleep(Duration::from_millis(500));
    stdin.write_all(b"2\n").unwrap();
    drop(stdin);
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, "in time\n"), "{ended:?}");
    assert_eq!(ended.stderr.matches(": no answer within 3s: ").count(), 1, "{ended:?}");
    drop(end);
    server.join();
}

// A batch whose server is gone.

/// The client of a batch of `calls` of which 64 are in flight at a server that is dead, and the proxy
/// that it goes through.
fn orphaned(queue: &Queue, calls: u32, args: &[&str]) -> (Process, Proxy) {
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let server = server(queue, &["--drill", "slow=60s"]);
    let args = [&["--queue", queue.name(), "--in-flight", "64"], args, &["fun", "-"]].concat();
    let client = feed(&mut client_command(&proxy.url, &args), seq(calls));
    server.await_stdout(" [.] fun(1)\n");
    await_that("64 calls are in flight", || proxy.passed(BASIC_PUBLISH) == 64);
    server.signal("KILL");
    server.wait();
    await_that("the server is gone", || queue.state().is_some_and(|state| state.1 == 0));
    (client, proxy)
}

/// It made the calls that were in flight, and told each of them and the end.
#[track_caller]
fn ends_after_64(client: Process, proxy: &Proxy) {
    let ended = client.wait_for(4 * PATIENCE);
    assert_eq!(proxy.passed(BASIC_PUBLISH), 64);
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 66, "{ended:?}");
    let summary =
        "rpc_client: 64 of 64 calls failed: 64 timed-out; the input was not read to its end";
    assert_eq!(lines[65], summary);
    for (line, number) in lines.iter().zip(1..=64) {
        let told = format!("rpc_client: line {number}: fun({number}): no answer within 2s: ");
        assert!(line.starts_with(&told), "{line}");
    }
    assert!(lines[64].starts_with("rpc_client: no more calls are made: "), "{}", lines[64]);
}

#[test]
fn a_batch_ends_when_nobody_consumes_any_more() {
    let queue = Queue::new();
    let (client, proxy) = orphaned(&queue, 640, &["--timeout", "2s"]);
    ends_after_64(client, &proxy);
}

#[test]
fn a_batch_ends_when_the_queue_is_gone() {
    let queue = Queue::new();
    let (client, proxy) = orphaned(&queue, 640, &["--timeout", "2s"]);
    Amqp::new().channel.queue_delete(queue.name(), Default::default()).unwrap();
    ends_after_64(client, &proxy);
}

#[test]
fn a_batch_that_waits_goes_on_when_a_server_comes() {
    let queue = Queue::new();
    let (client, proxy) = orphaned(&queue, 100, &["--wait", "--timeout", "6s"]);
    client.await_stderr("rpc_client: line 64: fun(64): no answer within 6s: ");
    // It looks whether there is a server again, and not by means of calls.
    assert_eq!(proxy.passed(BASIC_PUBLISH), 64);
    let looks = proxy.passed(QUEUE_DECLARE);
    await_that("another look", || proxy.passed(QUEUE_DECLARE) > looks + 1);
    assert_eq!(proxy.passed(BASIC_PUBLISH), 64);
    let _server = server(&queue, &[]);
    let ended = client.wait();
    let results: String = (65..=100).map(|n| format!("{n}00\n")).collect();
    assert_eq!((ended.code(), ended.stdout), (75, results), "{}", ended.stderr);
    assert_eq!(proxy.passed(BASIC_PUBLISH), 100);
}

/// Until its own time is up, as if the server had not come back to begin with.
#[test]
fn a_batch_that_waits_does_not_wait_for_ever() {
    let queue = Queue::new();
    let (client, proxy) = orphaned(&queue, 640, &["--wait", "--timeout", "2s"]);
    let ended = client.wait_for(4 * PATIENCE);
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{}", ended.stderr);
    assert_eq!(proxy.passed(BASIC_PUBLISH), 64);
    for number in 1..=64 {
        let told = format!("rpc_client: line {number}: fun({number}): no answer within 2s: ");
        assert_eq!(ended.stderr.matches(&told).count(), 1, "{number} in {}", ended.stderr);
    }
    assert!(ended.stderr.lines().count() < 100, "{}", ended.stderr);
}

/// A queue that its server declares again costs no call anything.
#[test]
fn a_queue_that_is_deleted_in_the_middle_of_a_batch_that_waits() {
    goes_on_without_its_queue(&broker());
}

/// So that the client cannot look whether the queue is there again.
#[test]
fn a_queue_that_is_deleted_where_there_is_one_channel() {
    goes_on_without_its_queue(&format!("{}?channel_max=1", broker()));
}

fn goes_on_without_its_queue(url: &str) {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let args = ["--queue", queue.name(), "--wait", "fun", "-"];
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(url, &args));
    stdin.write_all(b"1\n").unwrap();
    client.await_stdout("100\n");
    Amqp::new().channel.queue_delete(queue.name(), Default::default()).unwrap();
    // The server lets half a second pass at least.
    stdin.write_all(&seq(1000)).unwrap();
    drop(stdin);
    let ended = client.wait();
    let results: String = (1..=1000).map(|n| format!("{n}00\n")).collect();
    assert!(!ended.stderr.contains("rpc_client: line "), "{}", ended.stderr);
    assert_eq!((ended.code(), ended.stdout), (0, format!("100\n{results}")), "{}", ended.stderr);
}

/// Nor does it cost the only call, when no other is to be made.
#[test]
fn a_queue_that_is_deleted_before_the_only_request_that_waits() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let name = queue.name().to_owned();
    // The queue goes after the client has looked at it: before its request is published.
    let proxy = Proxy::start(&broker(), move |frame| {
        if frame.method == BASIC_PUBLISH {
            let _ = Amqp::new().channel.queue_delete(name.as_str(), Default::default());
        }
        Action::Pass
    });
    let args = ["--queue", queue.name(), "--wait", "fun", "1"];
    let client = Process::spawn(&mut client_command(&proxy.url, &args));
    client.await_stderr("waiting: there is no queue ");
    proxy.set(|_| Action::Pass);
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "100\n"), "{ended:?}");
}

/// A returned request waits no longer than its call.
#[test]
fn a_queue_that_stays_deleted_in_the_middle_of_a_batch_that_waits() {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    let args = ["--queue", queue.name(), "--wait", "--timeout", "2s", "fun", "-"];
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(&broker(), &args));
    stdin.write_all(b"1\n").unwrap();
    client.await_stdout("100\n");
    server.signal("KILL");
    Amqp::new().channel.queue_delete(queue.name(), Default::default()).unwrap();
    let started = Instant::now();
    stdin.write_all(b"2\n").unwrap();
    drop(stdin);
    let ended = client.wait();
    assert!(ended.code() == 69 || ended.code() == 75, "{ended:?}");
    assert_eq!(ended.stdout, "100\n");
    assert!(started.elapsed() >= Duration::from_secs(2), "it did not wait: {ended:?}");
    assert!(ended.stderr.contains("\nrpc_client: line 2: fun(2): "), "{ended:?}");
    assert!(ended.stderr.contains("\nrpc_client: 1 of 2 calls failed: 1 "), "{ended:?}");
}

// What a server computes, and how it comes to its end.

/// How many threads of a process compute: those that have used 0.2 s of a processor so far. None
/// that passes messages on comes near it here. See proc_pid_stat(5).
fn computing(pid: u32) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let used = |task: std::fs::DirEntry| {
        // A thread may end meanwhile. Its name is in brackets; its time, in 1/100 s, is the twelfth
        // field after it.
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        stat.rsplit(") ").next()?.split(' ').nth(11)?.parse::<u64>().ok()
    };
    tasks.filter_map(used).filter(|hundredths| *hundredths >= 20).count()
}

/// Whatever happens to the connections meanwhile.
#[test]
fn no_more_is_computed_than_there_are_workers() {
    let queue = Queue::new();
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    // F(93) by recursion takes some hours.
    let args = ["--workers", "2", "--algorithm", "recursive", "--max-n", "93"];
    // It computes for nothing: other tests come first.
    let nice = ["-n", "10", env!("CARGO_BIN_EXE_rpc_server"), "--queue", queue.name()];
    let server = Process::spawn(&mut program("nice", &proxy.url, &[&nice[..], &args].concat()));
    server.await_stdout(" [x] Awaiting RPC requests\n");
    let amqp = Amqp::new();
    let properties = AmqpProperties::default().with_reply_to(amqp.exclusive());
    for _ in 0..20 {
        amqp.publish(queue.name(), b"93", properties.clone());
    }
    await_that("both workers compute", || computing(server.pid()) == 2);
    let started = Instant::now();
    let mut ended = 0;
    while started.elapsed() < Duration::from_secs(8) {
        if proxy.connections() > ended {
            // It lasts long enough for requests to come by it.
            thread::sleep(Duration::from_secs(1));
            ended = proxy.connections();
            proxy.end_connections();
        }
        thread::sleep(Duration::from_millis(100));
        let threads = computing(server.pid());
        assert!(threads <= 2, "{threads} threads compute");
    }
}

/// The limit on the broker's answers until all workers consume is one for all of them, 10 s. So long
/// would three of the twenty take at a broker that answers one `method` after another, in 4 s each.
#[track_caller]
fn many_workers_and_a_slow_answer(method: Method) {
    let queue = Queue::new();
    // The first channel is for the look at the queue.
    let proxy = Proxy::start(&broker(), move |frame| match frame.nth {
        2.. if frame.method == method => Action::Delay(Duration::from_secs(4)),
        _ => Action::Pass,
    });
    let args = ["--queue", queue.name(), "--workers", "20"];
    let server = Process::spawn(&mut server_command(&proxy.url, &args));
    server.await_stderr("no longer answers");
    assert_eq!(server.stdout(), "");
}

#[test]
fn many_workers_and_a_broker_that_is_slow_to_open_channels() {
    many_workers_and_a_slow_answer(CHANNEL_OPEN_OK);
}

#[test]
fn many_workers_and_a_broker_that_is_slow_to_take_consumers() {
    many_workers_and_a_slow_answer(BASIC_CONSUME_OK);
}

/// What ended the connection is told, and not what was the matter with it before.
#[test]
fn a_blocked_connection_that_is_closed_by_the_operator() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &[]);
    // The broker blocks those who publish: the server, whose request is there before the alarm, and
    // a client that comes after it.
    server.signal("STOP");
    let args = ["--no-retry", "--queue", queue.name(), "fib", "30"];
    let _first = Process::spawn(&mut client_command(&node.url, &args));
    node.await_queue("/", "messages_unacknowledged", 1);
    node.set_memory_watermark(0.0000001);
    server.signal("CONT");
    server.await_stderr("blocks publishing");
    let client = Process::spawn(&mut client_command(&node.url, &args));
    client.await_stderr("blocks publishing");
    let closed =
        format!("{} closed the connection: CONNECTION_FORCED - maintenance", shown(&node.url));
    node.close_connections("maintenance");
    server.await_stderr(&format!("rpc_server: {closed}; trying again\n"));
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
    let last = format!("rpc_client: fib(30): {closed}\n");
    assert!(ended.stderr.ends_with(&last), "{ended:?}");
}

/// A service does not end with its transcript's reader. It says so, once.
#[test]
fn a_server_whose_transcript_nobody_reads_any_more() {
    let queue = Queue::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = server_command(&broker(), &["--queue", queue.name()]);
    let server = Process::spawn_writing(&mut command, writer.into());
    drop(command);
    queue.client(&["-q", "--wait", "fib", "10"]).expect(0, "55\n", "");
    drop(reader);
    for (n, result) in [("11", "89\n"), ("12", "144\n"), ("13", "233\n")] {
        queue.client(&["--timeout", "10s", "fib", n]).expect(0, result, "");
    }
    server.signal("TERM");
    let ended = server.wait();
    assert_eq!(ended.code(), 0, "{ended:?}");
    let told: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(told.len(), 1, "{ended:?}");
    assert!(
        told[0].starts_with("rpc_server: ") && told[0].contains("standard output"),
        "{ended:?}"
    );
}

/// Nor with that of its log, when nobody reads it, and the pipe is full.
#[test]
fn a_server_whose_log_nobody_reads() {
    let queue = Queue::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut command = server_command(&broker(), &["--queue", queue.name()]);
    let server = RefCell::new(command.stdout(Stdio::null()).stderr(writer).spawn().unwrap());
    drop(command);
    let args = ["--queue", queue.name(), "--wait", "fib", "-"];
    let ended = feed(&mut client_command(&broker(), &args), b"x\n".repeat(3000)).wait();
    let refused = "fib takes an integer in decimal digits, not \"x\" (invalid-argument)\n";
    let count = ended.stderr.matches(refused).count();
    kill(server.borrow().id(), "TERM");
    await_that("the end of the server", || server.borrow_mut().try_wait().unwrap().is_some());
    assert!(server.into_inner().wait().unwrap().success());
    assert_eq!((ended.code(), count), (65, 3000), "{}", ended.stderr);
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert!(log.lines().count() < 3000, "the pipe was never full");
}

/// A worker that gives up its consumer asks the broker for leave; here no answer comes, and there are
/// no heartbeats to tell that none will. The server goes on on another connection.
#[test]
fn a_deleted_queue_and_a_broker_that_stalls() {
    let queue = Queue::new();
    let proxy = Proxy::start(&broker(), |frame| match frame.method {
        BASIC_CANCEL_OK => Action::Stall,
        _ => Action::Pass,
    });
    let url = format!("{}?heartbeat=0", proxy.url);
    let server = server_at(&url, &queue, &[]);
    Amqp::new().channel.queue_delete(queue.name(), Default::default()).unwrap();
    server.await_stderr("rpc_server: connected to ");
    queue.client(&["fib", "30"]).expect(0, "832040\n", "");
}

/// Nobody reads its transcript, its broker says nothing, and there are no heartbeats to tell.
#[test]
fn a_server_with_closed_stdout_and_a_frozen_broker_stops() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let (reader, writer) = std::io::pipe().unwrap();
    let url = format!("{}?heartbeat=0", node.url);
    let mut command = server_command(&url, &["--queue", queue.name()]);
    let server = Process::spawn_writing(&mut command, writer.into());
    drop(command);
    queue.client(&["-q", "--wait", "fib", "10"]).expect(0, "55\n", "");
    drop(reader);
    // The request is at the server when the broker freezes.
    server.signal("STOP");
    let amqp = Amqp::at(&node.url);
    let properties = AmqpProperties::default().with_reply_to(amqp.exclusive());
    amqp.publish(queue.name(), b"30", properties);
    node.await_queue("/", "messages_unacknowledged", 1);
    let pid = node.pid();
    kill(pid, "STOP");
    server.signal("CONT");
    server.signal("TERM");
    let ended = server.wait();
    kill(pid, "CONT");
    drop(amqp);
    assert_eq!(ended.code(), 0, "{ended:?}");
}

// Standard input that fails.

/// The calls that are in flight are told, and the end.
#[track_caller]
fn told_to_the_end(ended: &Ended, calls: usize) {
    assert_eq!(ended.code(), 70, "{ended:?}");
    let results = ended.stdout.lines().count();
    let failures = ended.stderr.lines().filter(|line| line.contains(": fun(")).count();
    assert_eq!(results + failures, calls, "{ended:?}");
    assert!(ended.stderr.contains("cannot read standard input: "), "{ended:?}");
    assert!(ended.stderr.lines().last().unwrap().contains(" calls/s, p50 "), "{ended:?}");
    assert!(ended.stderr.contains(&format!("rpc_client: {calls} calls, ")), "{ended:?}");
}

/// A directory cannot be read.
#[test]
fn a_standard_input_that_is_a_directory() {
    let queue = Queue::new();
    let _server = server(&queue, &["--drill", "slow=500ms"]);
    for format in ["plain", "json"] {
        let args = ["--queue", queue.name(), "--stats", "--format", format, "fun", "1", "2", "-"];
        let mut command = client_command(&broker(), &args);
        let ended = Process::spawn(command.stdin(std::fs::File::open("/").unwrap())).wait();
        told_to_the_end(&ended, 2);
    }
}

/// A peer that goes away, and leaves unread what it was sent, resets the connection.
#[test]
fn a_standard_input_that_fails_in_the_middle() {
    let queue = Queue::new();
    let server = server(&queue, &["--drill", "slow=500ms"]);
    let (mut near, mut far) = UnixStream::pair().unwrap();
    near.write_all(b"unread").unwrap();
    let args = ["--queue", queue.name(), "--stats", "fun", "-"];
    let mut command = client_command(&broker(), &args);
    let client = Process::spawn(command.stdin(OwnedFd::from(near)));
    far.write_all(b"3\n4\n").unwrap();
    server.await_stdout(" [.] fun(3)\n");
    drop(far);
    told_to_the_end(&client.wait(), 2);
}
