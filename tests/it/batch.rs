//! Batches of the client: what they take of memory, what is told of calls that were never made, what a signal
//! leaves, and how a client waits for its broker.

use crate::harness::*;
use crate::proxy::*;
use amiquip::AmqpProperties;
use std::cell::Cell;
use std::io::Write;
use std::net::TcpListener;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;

// Time limits, and waiting.

/// An expiration of 0 would say that there is no limit.
#[test]
fn the_shortest_time_limit_is_sent_as_a_millisecond() {
    let queue = Queue::new();
    let (tell, expirations) = mpsc::channel();
    let server = StubServer::start(&queue, 1, move |_, request| {
        tell.send(request.properties.expiration().clone()).unwrap();
    });
    // A request may expire on its way.
    let expiration = loop {
        queue.client(&["--timeout", "1ms", "fib", "30"]);
        if let Ok(expiration) = expirations.try_recv() {
            break expiration;
        }
    };
    assert_eq!(expiration.as_deref(), Some("1"));
    server.join();
}

/// So that a broker which comes up can bear all who wait for it. A client that waits notices soon that it is
/// there, and does not wait beyond its own limit.
#[test]
fn a_client_that_waits_connects_more_and_more_rarely() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("amqp://{}", listener.local_addr().unwrap());
    let attempts = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&attempts);
    // Each connection is closed at once, as by a load balancer whose broker is away.
    thread::spawn(move || {
        for near in listener.incoming() {
            drop(near);
            counted.fetch_add(1, Ordering::SeqCst);
        }
    });
    let args = ["--wait", "--timeout", "6s", "--queue", queue.name(), "fib", "30"];
    let ended = client_at(&url, &args);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    assert!(ended.stderr.contains("(waited 6s)"), "{ended:?}");
    // Ten a second were 60. The pauses are 0.1 s, doubling to 2 s, less a random half at the most.
    let attempts = attempts.load(Ordering::SeqCst);
    assert!((3..=12).contains(&attempts), "{attempts}");
}

// Memory.

/// A file of so many lines of `a`, each of so many bytes.
fn lines(count: usize, bytes: usize) -> Vec<u8> {
    [vec![b'a'; bytes - 1], vec![b'\n']].concat().repeat(count)
}

/// What the client had of memory at the most, in MB, when what it does makes no more `progress`.
fn peak(client: &Process, progress: impl Fn() -> u64) -> u64 {
    let before = Cell::new(u64::MAX);
    await_that("the client does no more", || {
        let now = progress();
        let stands = before.replace(now) == now;
        thread::sleep(Duration::from_millis(500));
        stands && now > 0
    });
    client.peak_memory()
}

/// How much a process has read (rchar, proc(5)).
fn read_by(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
}

/// Whatever --in-flight is: with 64 and 64 ahead they would be 1 GiB here.
#[test]
fn large_arguments_are_bounded_by_their_bytes() {
    let queue = Queue::new();
    let _server = server(&queue, &["--drill", "slow=60s"]);
    for in_flight in ["1", "64"] {
        let args = ["--queue", queue.name(), "--in-flight", in_flight, "fun", "-"];
        let client = feed(&mut client_command(&broker(), &args), lines(64, 16 * MIB - 64));
        let peak = peak(&client, || read_by(client.pid()));
        assert!(peak < 300, "{peak} MB with {in_flight} in flight");
    }
}

/// While the first call has no answer, the results of the others wait; when they are many, no more calls are made.
#[test]
fn large_results_that_wait_are_bounded_by_their_bytes() {
    const CALLS: usize = 100;
    let queue = Queue::new();
    let (tell, answered) = mpsc::channel();
    let mut is_first = true;
    let _server = StubServer::start(&queue, CALLS, move |channel, request| {
        if !std::mem::take(&mut is_first) {
            reply(channel, request, &vec![b'7'; 4 * MIB], AmqpProperties::default());
            let _ = tell.send(());
        }
    });
    let args = ["--queue", queue.name(), "--in-flight", "200", "--timeout", "10m", "fun", "-"];
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(&broker(), &args));
    stdin.write_all(b"1\n").unwrap();
    let mut sent = 1;
    // One call after another, until none is made any more.
    for _ in 1..CALLS {
        stdin.write_all(b"1\n").unwrap();
        sent += 1;
        if answered.recv_timeout(Duration::from_secs(5)).is_err() {
            break;
        }
    }
    let peak = client.peak_memory();
    assert!(peak < 200, "{peak} MB, {sent} calls");
    assert!(sent < CALLS, "all were made");
}

// Calls that are never made.

/// There may be any number of them.
#[test]
fn calls_that_were_not_made_cost_no_time() {
    let queue = Queue::new();
    let started = Instant::now();
    let many = ["--stats", "--repeat", "1000000000000"];
    let ended = queue.client(&[&many[..], &["fib", "1", "2"]].concat());
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    let [why, stats] = ended.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{ended:?}") };
    assert!(why.starts_with("rpc_client: fib: there is no queue "), "{ended:?}");
    let none = "rpc_client: 2000000000000 calls, 2000000000000 failed, 0.0 calls/s, p50 0.000 ms, ";
    assert!(stats.starts_with(none), "{ended:?}");
    // JSON has an object for each, as far as anybody reads them.
    let ended = queue.client(&[&many[..], &["--format", "json", "fib", "1", "2"]].concat());
    assert_eq!((ended.code(), ended.stdout.lines().count()), (69, 1_000), "{}", ended.stderr);
    let [why, stats] = ended.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{ended:?}") };
    let rest = "rpc_client: 1999999999000 more calls are not made: there is no queue ";
    assert!(why.starts_with(rest) && stats.starts_with(none), "{ended:?}");
    assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
}

/// Where some were made, their rate and their latencies are what is told.
#[test]
fn the_rate_is_that_of_calls_that_were_made() {
    let queue = Queue::new();
    let server = server(&queue, &["--drill", "slow=60s"]);
    let args = ["--stats", "--timeout", "2s", "--queue", queue.name()];
    let args = [&args[..], &["--repeat", "1000000", "--in-flight", "1", "fun", "1"]].concat();
    let client = Process::spawn(&mut client_command(&broker(), &args));
    server.await_stdout(" [.] fun(1)\n");
    server.signal("KILL");
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
    let stats = ended.stderr.lines().last().unwrap();
    assert!(stats.starts_with("rpc_client: 1000000 calls, 1000000 failed, "), "{ended:?}");
    let rate: f64 = stats.split(", ").nth(2).unwrap().trim_end_matches(" calls/s").parse().unwrap();
    assert!(rate < 1.0, "{stats}");
}

// Ends.

/// JSON and the transcript say whose each result is. Plain results stay those of the first calls.
#[test]
fn a_signal_prints_what_waited_for_the_first_call() {
    for (format, printed) in [("json", 3), ("transcript", 3), ("plain", 0)] {
        let queue = Queue::new();
        let (tell, answered) = mpsc::channel();
        let mut is_first = true;
        let server = StubServer::start(&queue, 4, move |channel, request| {
            if !std::mem::take(&mut is_first) {
                reply(channel, request, b"7", AmqpProperties::default());
                let _ = tell.send(());
            }
        });
        let args = ["-v", "--in-flight", "4", "--format", format, "--queue", queue.name(), "fun"];
        let args = [&args[..], &["1", "2", "3", "4"]].concat();
        let client = Process::spawn(&mut client_command(&broker(), &args));
        for _ in 0..3 {
            answered.recv_timeout(PATIENCE).unwrap();
        }
        client.await_stderr_times("rpc_client: reply: result, ", 3);
        client.signal("TERM");
        let ended = client.wait();
        server.join();
        assert_eq!(ended.code(), 128 + 15, "{ended:?}");
        let results = ended.stdout.lines().filter(|line| line.contains('7'));
        assert_eq!(results.count(), printed, "{format}: {ended:?}");
        assert!(ended.stdout.lines().all(|line| !line.contains("[.] fun(1)")), "{ended:?}");
    }
}

/// `<&-`: what would be read is not what anybody gave.
#[test]
fn a_closed_standard_input_is_an_error() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let run = |args: &[&str]| {
        let program = client_command(&broker(), &[]);
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" <&-", "sh"]).arg(program.get_program());
        command.args(["--queue", queue.name()]).args(args).env("AMQP_URL", broker());
        Process::spawn(command.env_remove("RUST_LOG").stdin(Stdio::null())).wait()
    };
    let told = "cannot read standard input: Bad file descriptor (os error 9)\n";
    for args in [&["fun", "-"][..], &["--send-on", "eof", "fun", "-"]] {
        let ended = run(args);
        assert_eq!((ended.code(), ended.stdout.as_str()), (70, ""), "{ended:?}");
        assert!(ended.stderr.ends_with(told), "{ended:?}");
    }
    for name in ["/dev/stdin", "/dev/fd/0"] {
        let ended = run(&["--files", "fun", name]);
        assert_eq!((ended.code(), ended.stdout.as_str()), (66, ""), "{ended:?}");
        assert!(ended.stderr.contains("cannot read the file: Bad file descriptor"), "{ended:?}");
    }
    // Where it is not asked for, it may be closed.
    run(&["fun", "1"]).expect(0, "100\n", "");
}

/// A broker's limit is its own: another one may take more.
#[test]
fn the_limit_of_one_broker_does_not_bind_another() {
    let small = Node::with_max_message_size(1000);
    let queue = Queue::new();
    let name = queue.name();
    let args = ["--queue", name, "--procedure", "length=wc -c"];
    let servers = [small.url.clone(), broker()].map(|url| {
        let server = Process::spawn(&mut server_command(&url, &args));
        server.await_stdout(" [x] Awaiting RPC requests\n");
        server
    });
    let proxy = Proxy::start(&small.url, |_| Action::Pass);
    let url = format!("{},{}", proxy.url, broker());
    let args = ["-v", "--queue", name, "--timeout", "10m", "length", "-"];
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(&url, &args));
    let large = lines(1, 2_000);
    stdin.write_all(&large).unwrap();
    client.await_stderr("rpc_client: line 1: length(");
    // Its limit is known now, and holds while it is the same broker.
    stdin.write_all(&large).unwrap();
    client.await_stderr("rpc_client: line 2: length(");
    proxy.set(|_| Action::End);
    proxy.end_connections();
    client.await_stderr(&format!("rpc_client: connected to {}\n", shown(&broker())));
    stdin.write_all(&large).unwrap();
    drop(stdin);
    let ended = client.wait();
    drop(servers);
    assert_eq!((ended.code(), ended.stdout.as_str()), (65, "1999\n"), "{ended:?}");
}
