//! Brokers that freeze, block and refuse while the programs are at work.

use crate::commands::Folder;
use crate::harness::*;
use crate::proxy::*;
use clap::Parser;
use fib_rpc::client::calls::Calls;
use fib_rpc::client::channel::{Event, Interrupted, RpcChannel};
use fib_rpc::client::report::Report;
use fib_rpc::error::{Failure, FailureKind};
use fib_rpc::{cli, client};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn a_server_waits_while_the_broker_blocks_its_reply() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &[]);
    // The request is taken before the alarm, the reply is published during it.
    server.signal("STOP");
    let args = ["-q", "--queue", queue.name(), "--timeout", "10m", "fib", "30"];
    let waiting = Process::spawn(&mut client_command(&node.url, &args));
    node.await_queue("/", "messages_unacknowledged", 1);
    node.set_memory_watermark(0.0000001);
    server.signal("CONT");
    let shown = shown(&node.url);
    let blocks = format!("rpc_server: {shown} blocks publishing (low on memory); waiting\n");
    server.await_stderr(&blocks);
    node.set_memory_watermark(0.4);
    waiting.wait().expect(0, "832040\n", "");
    server.signal("TERM");
    let stderr = format!("{blocks}rpc_server: {shown} no longer blocks publishing\n");
    let stdout = " [x] Awaiting RPC requests\n [.] fib(30)\n";
    server.wait().expect(0, stdout, &stderr);
}

#[test]
fn a_blocked_server_stops_when_asked() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &[]);
    server.signal("STOP");
    let args = ["-q", "--queue", queue.name(), "--timeout", "10m", "fib", "30"];
    let _waiting = Process::spawn(&mut client_command(&node.url, &args));
    node.await_queue("/", "messages_unacknowledged", 1);
    node.set_memory_watermark(0.0000001);
    server.signal("CONT");
    server.await_stderr("blocks publishing");
    server.signal("TERM");
    let ended = server.wait();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.elapsed < ANSWER_LIMIT, "{ended:?}");
    // Not a word of giving up: it does not wait for what a blocked broker would not read.
    let blocks =
        format!("rpc_server: {} blocks publishing (low on memory); waiting\n", shown(&node.url));
    assert_eq!(ended.stderr, blocks);
}

/// A worker waits for the broker to take its reply once all buffers on the way are full.
#[test]
fn a_server_stops_though_a_reply_is_stuck() {
    // A server that takes nothing for 15 s would lose its connection.
    let node = Node::configured("tcp_listen_options.send_timeout = 600000\n", &[]);
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &["--prefetch", "0"]);
    server.signal("STOP");
    let argument = "7".repeat(120_000);
    let many = ["--timeout", "10m", "--in-flight", "800", "--repeat", "800"];
    let args = [&["-q", "--queue", queue.name()], &many[..], &["fun", &argument]].concat();
    let _waiting = Process::spawn(&mut client_command(&node.url, &args));
    node.await_queue("/", "messages", 800);
    node.set_memory_watermark(0.0000001);
    server.signal("CONT");
    server.await_stderr("blocks publishing");
    await_stuck(&server, 800);
    server.signal("TERM");
    let ended = server.wait();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    assert!(ended.elapsed < ANSWER_LIMIT, "{:?}", ended.elapsed);
}

/// Waits until a server gets no further with its replies to so many `calls`.
#[track_caller]
fn await_stuck(server: &Process, calls: usize) {
    let computed = || server.stdout().lines().count();
    let mut before = 0;
    while before < computed() {
        before = computed();
        thread::sleep(Duration::from_secs(1));
    }
    assert!(before < calls, "no reply is stuck");
}

/// Nor is it told here that the broker takes none.
#[test]
fn a_server_stops_though_its_broker_reads_no_more() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&way_that_takes(&node.url, 100_000), &queue, &["--prefetch", "0"]);
    let argument = "7".repeat(120_000);
    let many = ["--timeout", "10m", "--in-flight", "800", "--repeat", "800"];
    let args = [&["-q", "--queue", queue.name()], &many[..], &["fun", &argument]].concat();
    let _waiting = Process::spawn(&mut client_command(&node.url, &args));
    server.await_stdout(" [.] fun(");
    await_stuck(&server, 800);
    server.signal("TERM");
    let ended = server.wait();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    assert!(ended.elapsed < ANSWER_LIMIT, "{:?}", ended.elapsed);
}

/// A way to the broker at `url` on which no more than so many `bytes` reach it, on one connection.
fn way_that_takes(url: &str, bytes: u64) -> String {
    let address = url.rsplit(['@', '/']).next().unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let way = format!("amqp://{}?heartbeat=0", listener.local_addr().unwrap());
    thread::spawn(move || {
        let (mut near, _) = listener.accept().unwrap();
        let mut far = TcpStream::connect(address).unwrap();
        let (from, mut to) = (near.try_clone().unwrap(), far.try_clone().unwrap());
        thread::spawn(move || std::io::copy(&mut from.take(bytes), &mut to));
        let _ = std::io::copy(&mut far, &mut near);
    });
    way
}

#[test]
fn a_frozen_broker_is_noticed_by_its_heartbeats() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let url = format!("{}?heartbeat=1", node.url);
    let server = server_at(&url, &queue, &[]);
    let pid = node.pid();
    kill(pid, "STOP");
    let started = Instant::now();
    let shown = shown(&url);
    let told = format!("rpc_server: {shown} no longer answers: it sent no heartbeat; trying again");
    server.await_stderr(&told);
    // It takes two intervals. With the 10 s that are the programs' own choice it would take 20 s.
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    kill(pid, "CONT");
    let args = ["-q", "--wait", "--timeout", "10m", "--queue", queue.name(), "fib", "30"];
    client_at(&url, &args).expect(0, "832040\n", "");
}

#[test]
fn a_server_stops_though_its_broker_is_frozen() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &[]);
    let pid = node.pid();
    kill(pid, "STOP");
    server.signal("TERM");
    let ended = server.wait();
    kill(pid, "CONT");
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.elapsed < ANSWER_LIMIT, "{ended:?}");
    let shown = shown(&node.url);
    let told = format!(
        "rpc_server: while stopping: {shown} no longer answers; the connection was given up\n"
    );
    assert_eq!(ended.stderr, told);
}

/// The client library's own thread sends the heartbeats, whatever the server computes.
#[test]
fn a_long_call_does_not_cost_the_connection() {
    let queue = Queue::new();
    let url = format!("{}?heartbeat=1", broker());
    let server = server_at(&url, &queue, &["--drill", "slow=4s"]);
    queue.client(&["--timeout", "10m", "fib", "42"]).expect(0, "267914296\n", "");
    server.signal("TERM");
    let waits = "rpc_server: drill slow=4s: fib(42) waits\n";
    server.wait().expect(0, " [x] Awaiting RPC requests\n [.] fib(42)\n", waits);
}

/// Calls that were not made are no success.
#[test]
fn a_client_that_may_not_publish() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let _server = server_at(&node.url, &queue, &[]);
    node.add_user("mute");
    // Newer RabbitMQs let only those look at a queue who have some permission for it.
    node.set_permissions("mute", ["^(amq.gen|test-)", "^$", "^amq.gen"]);
    let url = node.url.replace("amqp://", "amqp://mute:s3cret@");
    let args = ["--queue", queue.name(), "--in-flight", "1", "fun", "1", "2", "3"];
    let ended = client_at(&url, &args);
    assert_eq!((ended.code(), ended.stdout.as_str()), (77, ""), "{ended:?}");
    let lines: Vec<&str> = ended.stderr.lines().collect();
    assert_eq!(lines.len(), 3, "{ended:?}");
    assert_eq!(lines[2], "rpc_client: 3 of 3 calls failed: 3 access-refused");
    assert!(lines[0].starts_with("rpc_client: fun(1): ") && lines[0].contains("ACCESS_REFUSED"));
    assert!(lines[1].starts_with("rpc_client: no more calls are made: "), "{ended:?}");
}

/// A broker that goes away during the login has refused nothing.
#[test]
fn a_peer_that_hangs_up_during_the_login() {
    let queue = Queue::new();
    let real = broker();
    let address = real.rsplit(['@', '/']).next().unwrap().to_owned();
    // Passes on what a real broker says up to the login, and hangs up.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://{}", listener.local_addr().unwrap());
    let between = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut broker = std::net::TcpStream::connect(address).unwrap();
        let mut buffer = [0; 4096];
        let header = client.read(&mut buffer).unwrap();
        broker.write_all(&buffer[..header]).unwrap();
        let start = broker.read(&mut buffer).unwrap();
        client.write_all(&buffer[..start]).unwrap();
        client.read(&mut buffer).unwrap()
    });
    let ended = client_at(&url, &["--queue", queue.name(), "fib", "30"]);
    assert!(between.join().unwrap() > 0, "it never logged in");
    let told = format!(
        "rpc_client: fib: {url} closed the connection during the login; if it goes on to, check user and password\n"
    );
    ended.expect(69, "", &told);
}

/// A way to the shared broker on which each connection comes to its `end` before `method` gets
/// through.
fn way_that_ends_at(method: Method, end: fn() -> Action) -> Proxy {
    Proxy::start(&broker(), move |frame| if frame.method == method { end() } else { Action::Pass })
}

/// The time limit holds, which the number of connections shows too, and neither the broker nor the
/// terminal is flooded.
#[test]
fn no_connection_lasts_long_enough_for_an_answer() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    for (method, first, last) in [
        (QUEUE_DECLARE_OK, "waiting: ", "fib: URL (waited 2s)"),
        (BASIC_CONSUME_OK, "URL; trying again", "fib: no answer within 2s: URL"),
        // The last connection may have come just in time to see that there is a server.
        (BASIC_DELIVER, "URL; trying again", "fib(30): no answer within 2s: "),
    ] {
        let proxy = way_that_ends_at(method, || Action::End);
        let url = &proxy.url;
        let args = ["--wait", "--timeout", "2s", "--queue", queue.name(), "fib", "30"];
        let ended = client_at(url, &args);
        assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
        assert!(ended.elapsed >= Duration::from_secs(2), "{ended:?}");
        let connections = proxy.connections();
        assert!((2..25).contains(&connections), "{connections} connections");
        let lost =
            format!("the connection to {url} was lost (underlying socket closed unexpectedly)");
        let lines: Vec<&str> = ended.stderr.lines().collect();
        let starts = |line: &str, with: &str| {
            line.starts_with(&format!("rpc_client: {}", with.replace("URL", &lost)))
        };
        assert_eq!(lines.len(), 2, "{ended:?}");
        assert!(starts(lines[0], first) && starts(lines[1], last), "{ended:?}");
    }
}

/// Bounded like everything else; and a server that gets no further stops when it is asked to.
#[test]
fn a_broker_that_stalls() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    for method in [QUEUE_DECLARE_OK, BASIC_CONSUME_OK, BASIC_DELIVER] {
        let proxy = way_that_ends_at(method, || Action::Stall);
        let url = &proxy.url;
        let args = ["--wait", "--timeout", "3s", "--queue", queue.name(), "fib", "30"];
        let ended = client_at(url, &args);
        assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
        let gave_up = format!("{url} no longer answers; the connection was given up");
        assert!(ended.stderr.contains(&gave_up), "{ended:?}");
        assert!((Duration::from_secs(3)..ANSWER_LIMIT).contains(&ended.elapsed), "{ended:?}");
    }
    for (method, before) in
        [(QUEUE_DECLARE_OK, "connected to "), (BASIC_CONSUME_OK, "qos: prefetch 1")]
    {
        let proxy = way_that_ends_at(method, || Action::Stall);
        let started = Instant::now();
        let server =
            Process::spawn(&mut server_command(&proxy.url, &["-v", "--queue", queue.name()]));
        server.await_stderr(&format!("rpc_server: {before}"));
        server.signal("TERM");
        let ended = server.wait();
        assert_eq!(ended.code(), 0, "{ended:?}");
        assert!(started.elapsed() < ANSWER_LIMIT, "{ended:?}");
    }
}

/// A publication waits for a broker that reads nothing more, as one does that is out of memory. What
/// is in flight here is more than all buffers on the way hold.
#[test]
fn a_broker_that_reads_no_more_in_the_middle_of_a_batch() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let url = way_that_takes(&broker(), 100_000);
    let argument = "7".repeat(60_000);
    let many = ["--in-flight", "2000", "--repeat", "2000", "--timeout", "3s", "--no-retry"];
    let args = [&["-q", "--queue", queue.name()], &many[..], &["fun", &argument]].concat();
    let ended = client_at(&url, &args);
    assert_eq!(ended.code(), 75);
    assert!(ended.elapsed >= Duration::from_secs(3), "{:?}", ended.elapsed);
    assert!(ended.stderr.contains("no longer answers; the connection was given up"));
}

/// In confirm mode, that is with several brokers: what a full queue refuses goes out again when there
/// may be room, and nothing else does.
#[test]
fn a_request_queue_that_is_full() {
    let queue = Queue::new();
    Amqp::new().declare_with_room(&queue, 2);
    let server = server(&queue, &["--drill", "slow=100ms"]);
    let url = format!("{0},{0}", broker());
    let args = ["--queue", queue.name(), "--timeout", "10m", "--repeat", "30", "ping"];
    let ended = client_at(&url, &args);
    let refused =
        format!("{} refused a request: the queue \"{}\" may be full", shown(&url), queue.name());
    let told = format!("rpc_client: {refused}; trying again\n");
    ended.expect(0, &"pong\n".repeat(30), &told);
    assert_eq!(server.stdout().matches(" [.] ping()\n").count(), 30);
    let args = ["-q", "--queue", queue.name(), "--no-retry", "--repeat", "30", "ping"];
    let ended = client_at(&url, &args);
    let told = format!("rpc_client: ping(): {refused}\n");
    assert_eq!((ended.code(), ended.stderr.replace(&told, "").as_str()), (75, ""), "{ended:?}");
    assert!(ended.stdout.starts_with("pong\n"), "{ended:?}");
}

/// The lines that SECURITY.md gives: for the server two, of which the second lets it see which callers are gone.
#[test]
fn the_least_permissions_that_are_enough() {
    let security = include_str!("../../SECURITY.md");
    let node = Node::start();
    let grant = |user: &str, nth: usize| {
        let start = format!("$ rabbitmqctl set_permissions {user} ");
        let line = security.lines().filter_map(|line| line.strip_prefix(&start)).nth(nth).unwrap();
        let patterns: Vec<&str> = line.split_whitespace().map(|p| p.trim_matches('\'')).collect();
        node.set_permissions(user, patterns.try_into().unwrap());
    };
    for user in ["rpc_server", "rpc_client"] {
        node.add_user(user);
    }
    grant("rpc_client", 0);
    let url = |user| node.url.replace("amqp://", &format!("amqp://{user}:s3cret@"));
    let offers = ["--procedure=fib", "--procedure=long=sleep 3600"];
    let gone = "long(): nobody waits for it any more: ended after ";
    for (nth, sees_who_is_gone) in [(0, false), (1, true)] {
        grant("rpc_server", nth);
        let args = [&["-v", "--workers", "2"], &offers[..]].concat();
        let server = Process::spawn(&mut server_command(&url("rpc_server"), &args));
        server.await_stdout(" [x] Awaiting RPC requests\n");
        client_at(&url("rpc_client"), &["fib", "30"]).expect(0, "832040\n", "");

        let args = ["--timeout", "1h", "long"];
        let client = Process::spawn(&mut client_command(&url("rpc_client"), &args));
        server.await_stdout(" [.] long()\n");
        client.signal("KILL");
        let told = |stderr: &str| {
            // RabbitMQ looks at this permission from 4.2.6 on.
            let is_refused = stderr.contains("calls go on when their callers are gone");
            stderr.contains(gone) || is_refused && !sees_who_is_gone
        };
        await_that("it is told what becomes of the call", || told(&server.stderr()));
        client_at(&url("rpc_client"), &["fib", "30"]).expect(0, "832040\n", "");
        server.signal("KILL");
        server.wait();
    }
    // And no more than enough: a client cannot serve.
    let ended = Process::spawn(&mut server_command(&url("rpc_client"), &[])).wait();
    assert_eq!(ended.code(), 77, "{ended:?}");
}

/// Makes a call, and loses the connection before it takes the reply, which is there.
fn lose_connection(
    rpc: &mut RpcChannel,
    calls: &mut Calls,
    _: &mut Report,
) -> Result<(), Interrupted> {
    let event = rpc.next_event(calls)?;
    let Event::Argument(argument) = event else { panic!("the call is the first thing to do") };
    rpc.publish(calls.start(argument))?;
    await_that("the reply is there", || !rpc.is_idle());
    Err(Failure::new(FailureKind::ConnectionLost, "the connection is lost").into())
}

#[test]
fn a_reply_that_has_come_counts_though_the_connection_is_lost() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let _server = server(&queue, &[]);
    let (url, output) = (broker(), folder.path("output").display().to_string());
    let options = ["--no-retry", "--url", &url, "--queue", queue.name(), "--output", &output];
    let args = [&["rpc_client", "-q"], &options[..], &["fib", "30"]].concat();
    client::run(&cli::Client::parse_from(args), lose_connection).unwrap();
    assert_eq!(folder.lines("output"), ["832040"]);
}
