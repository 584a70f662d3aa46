//! `rpc_server --metrics`: numbers that are those of the clients, health, and strangers who cost no call.

use crate::commands::{Folder, descriptors};
use crate::harness::*;
use crate::proxy::{Action, BASIC_PUBLISH, Proxy};
use amiquip::AmqpProperties;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const DOCUMENT: &str = include_str!("../../docs/monitoring.md");

/// Where a server tells its numbers, on a port that the system chose.
struct Scraped(String);

impl Scraped {
    /// That of a server that was started with `-v --metrics 0`.
    fn of(server: &Process) -> Scraped {
        server.await_stderr("/metrics\n");
        let stderr = server.stderr();
        let (_, behind) = stderr.split_once("metrics: http://").unwrap();
        Scraped(behind.split_once('/').unwrap().0.into())
    }

    fn connect(&self) -> TcpStream {
        let socket = TcpStream::connect(&self.0).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    /// All that is answered to these bytes.
    #[track_caller]
    fn ask(&self, bytes: &str) -> String {
        answer(self.connect(), bytes)
    }

    /// The head and the body of what is answered to GET.
    #[track_caller]
    fn get(&self, path: &str, headers: &str) -> (String, String) {
        let answer = self.ask(&format!("GET {path} HTTP/1.1\r\nHost: h\r\n{headers}\r\n"));
        let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
        (head.into(), body.into())
    }

    /// Status and sentence of /healthz.
    #[track_caller]
    fn health(&self) -> (String, String) {
        let (head, body) = self.get("/healthz", "");
        (head[9..12].into(), body)
    }

    /// All numbers that are not 0, without those of durations.
    #[track_caller]
    fn numbers(&self) -> BTreeMap<String, u64> {
        let (_, body) = self.get("/metrics", "");
        let lines =
            body.lines().filter(|line| !line.starts_with('#') && !line.contains("_seconds_"));
        let numbers = lines.map(|line| {
            let (name, number) = line.rsplit_once(' ').unwrap();
            (name.trim_start_matches("rpc_server_").to_owned(), number.parse().unwrap())
        });
        numbers.filter(|(_, number)| *number > 0).collect()
    }

    #[track_caller]
    fn number(&self, name: &str) -> u64 {
        self.numbers().get(name).copied().unwrap_or_default()
    }
}

/// All that is answered to these bytes: nothing if the connection was closed before.
fn answer(mut socket: TcpStream, bytes: &str) -> String {
    let mut answer = String::new();
    let _ = socket.write_all(bytes.as_bytes());
    let _ = socket.read_to_string(&mut answer);
    answer
}

fn calls(procedure: &str, outcome: &str) -> String {
    format!("calls_total{{procedure=\"{procedure}\",outcome=\"{outcome}\"}}")
}

/// Has Prometheus's own tool look at numbers, which it must find nothing wrong with.
#[track_caller]
fn check_by_promtool(numbers: &str) {
    let mut promtool = Command::new("promtool");
    let checked = feed(promtool.args(["check", "metrics"]), numbers.into()).wait();
    checked.expect(0, "", "");
}

#[test]
fn what_a_server_tells_of_itself() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let waits = folder.procedure("until [ -e $0/go ]; do sleep 0.05; done; echo done");
    let args =
        ["-v", "--metrics=0", "--workers=2", "--coprocess", "cat=cat", "--procedure=fib", &waits];
    let server = server(&queue, &args);
    let scraped = Scraped::of(&server);
    assert_eq!(scraped.health(), ("200".into(), "2 of 2 workers consume.\n".into()));
    let (version, mut expected) = (env!("CARGO_PKG_VERSION"), BTreeMap::new());
    let mut expect = |name: &str, number| expected.insert(name.to_owned(), number);
    expect(&format!("build_info{{version=\"{version}\"}}"), 1);
    expect("connected", 1);
    expect("workers", 2);
    expect("workers_consuming", 2);
    expect("coprocesses_started_total{procedure=\"cat\"}", 2);

    queue.client(&["-q", "fib", "10", "20", "30"]).expect(0, "55\n6765\n832040\n", "");
    assert_eq!(queue.client(&["-q", "fib", "x", "-1"]).code(), 65);
    assert_eq!(queue.client(&["-q", "no such", "x"]).code(), 65);
    queue.client(&["-q", "cat", "x"]).expect(0, "x\n", "");
    expect(&calls("fib", "result"), 3);
    expect(&calls("fib", "invalid-argument"), 1);
    expect(&calls("fib", "out-of-range"), 1);
    expect(&calls("unknown", "unknown-procedure"), 1);
    expect(&calls("cat", "result"), 1);

    // It is not known who would get an answer.
    let nobody = AmqpProperties::default().with_app_id("fib".into());
    Amqp::new().publish(queue.name(), b"1", nobody);
    expect("requests_dropped_total{reason=\"no-reply-to\"}", 1);

    // All workers compute, so that `ping` would wait. Then one caller is gone.
    let wait = || {
        let args = ["-q", "--timeout=10m", "--queue", queue.name(), "p"];
        Process::spawn(&mut client_command(&broker(), &args))
    };
    let (one, other) = (wait(), wait());
    await_that("two calls are under way", || scraped.number("calls_in_progress") == 2);
    assert_eq!(scraped.health().0, "200");
    one.signal("KILL");
    await_that("one is ended", || scraped.number(&calls("p", "cancelled")) == 1);
    fs::write(folder.path("go"), "").unwrap();
    other.wait().expect(0, "done\n", "");
    expect(&calls("p", "cancelled"), 1);
    expect(&calls("p", "result"), 1);
    expect("programs_started_total{procedure=\"p\"}", 2);
    assert_eq!(scraped.numbers(), expected);

    let (head, text) = scraped.get("/metrics", "Accept: */*\r\n");
    assert!(head.contains("\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8"), "{head}");
    check_by_promtool(&text);
    let told = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    let documented = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `rpc_server_"));
    let documented = documented.map(|rest| rest.split(['{', '`']).next().unwrap());
    let documented: BTreeSet<_> = documented.map(|name| format!("rpc_server_{name}")).collect();
    assert_eq!(documented, told.map(str::to_owned).collect(), "docs/monitoring.md");
    let count = "rpc_server_call_duration_seconds_count{procedure=\"fib\"} 5\n";
    assert!(text.contains(count), "{text}");
    // As Prometheus asks.
    let accept = "Accept: application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4\r\n";
    let (head, text) = scraped.get("/metrics?a=b", accept);
    assert!(
        head.contains("\r\nContent-Type: application/openmetrics-text; version=1.0.0;"),
        "{head}"
    );
    assert!(text.contains(count) && text.ends_with("\n# EOF\n"), "{text}");
    assert!(text.contains("# UNIT rpc_server_call_duration_seconds seconds\n"), "{text}");

    let head = scraped.ask("HEAD /healthz HTTP/1.0\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    assert!(scraped.get("/", "").0.starts_with("HTTP/1.1 404 "));
    server.stop();
}

#[test]
fn a_server_that_does_not_serve_says_so() {
    let queue = Queue::new();
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let server = server_at(&proxy.url, &queue, &["-v", "--metrics=[::1]:0"]);
    let scraped = Scraped::of(&server);
    assert_eq!(scraped.health().0, "200");
    proxy.set(|_| Action::End);
    proxy.end_connections();
    await_that("it is not connected", || scraped.health().0 == "503");
    let sentence = "The server is not connected to a broker; its log says why.\n";
    assert_eq!(scraped.health().1, sentence);
    assert_eq!((scraped.number("connected"), scraped.number("workers_consuming")), (0, 0));
    proxy.set(|_| Action::Pass);
    await_that("it serves again", || scraped.health().0 == "200");
    assert!(scraped.number("connected") == 1 && scraped.number("reconnects_total") > 0);
    server.stop();
}

/// What clients counted, by outcome.
fn outcomes(ended: &Ended) -> BTreeMap<String, u64> {
    let mut outcomes = BTreeMap::new();
    for line in ended.stdout.lines() {
        let call: serde_json::Value = serde_json::from_str(line).unwrap();
        let outcome = call["error"]["kind"].as_str().unwrap_or("result");
        *outcomes.entry(calls("fib", outcome)).or_default() += 1;
    }
    outcomes
}

/// What the server counts, the same way.
fn calls_of(scraped: &Scraped) -> BTreeMap<String, u64> {
    let numbers = scraped.numbers().into_iter();
    numbers.filter(|(name, _)| name.starts_with("calls_total")).collect()
}

fn total(calls: &BTreeMap<String, u64>) -> u64 {
    calls.values().sum()
}

/// Each tenth reply costs its connection before it is through. What comes of that is known with one worker: with
/// `--at-most-once` the reply goes out by another connection, and else its request comes again and is called again.
#[test]
fn what_is_counted_is_what_clients_counted_whatever_happens_to_connections() {
    for (option, is_called_again) in [("--at-most-once", false), ("--prefetch=1", true)] {
        let queue = Queue::new();
        let proxy = Proxy::start(&broker(), |frame| match (frame.method, frame.nth) {
            (BASIC_PUBLISH, 10) => Action::End,
            _ => Action::Pass,
        });
        let server = server_at(&proxy.url, &queue, &["-v", "--metrics=0", option]);
        let scraped = Scraped::of(&server);
        let batch = |first: u32| {
            let arguments = (first..).take(25).map(|number| match number % 5 {
                0 => "x".to_owned(),
                1 => "-1".to_owned(),
                _ => number.to_string(),
            });
            let args =
                ["-q", "--no-retry", "--timeout=10m", "--format=json", "--in-flight=5", "--queue"];
            let mut command = client_command(&broker(), &args);
            command.args([queue.name(), "fib"]).args(arguments);
            Process::spawn(&mut command)
        };
        let batches = [batch(0), batch(100)].map(|batch| thread::spawn(|| outcomes(&batch.wait())));
        let mut last = 0;
        while !batches.iter().all(JoinHandle::is_finished) {
            let calls = total(&calls_of(&scraped));
            assert!(calls >= last, "{option}: {calls} after {last}");
            last = calls;
            thread::sleep(Duration::from_millis(20));
        }
        let mut counted = BTreeMap::new();
        for (outcome, calls) in batches.into_iter().flat_map(|batch| batch.join().unwrap()) {
            *counted.entry(outcome).or_insert(0) += calls;
        }
        assert_eq!(total(&counted), 50, "{option}: {counted:?}");
        assert_eq!(counted.len(), 3, "{option}: {counted:?}");

        let (again, cuts) =
            (scraped.number("calls_redelivered_total"), scraped.number("reconnects_total"));
        let told = calls_of(&scraped);
        assert!(cuts >= 3, "{option}: {cuts}");
        match is_called_again {
            false => assert_eq!((told, again), (counted, 0), "{option}"),
            true => {
                assert_eq!(total(&told) - again, 50, "{option}: {told:?} {counted:?}");
                assert_eq!(again, cuts, "{option}");
            }
        }
        server.stop();
    }
}

#[test]
fn strangers_cost_no_call() {
    let queue = Queue::new();
    let server = server(&queue, &["-v", "--metrics=0", "--workers=2"]);
    let scraped = Scraped::of(&server);
    let mut batch = client_command(&broker(), &["-q", "--queue", queue.name()]);
    batch.args(["--repeat=5000", "fib", "10"]).stdout(Stdio::null());
    let (batch, before) = (Process::spawn(&mut batch), descriptors(server.pid()));

    // Those who send nothing, or a byte and no more; a thousand in all.
    for round in 0..4 {
        let mut slow = (0..250).map(|_| scraped.connect()).collect::<Vec<_>>();
        // One that is gone already is as good.
        slow.iter_mut().step_by(2).for_each(|socket| drop(socket.write_all(b"G")));
        let asked = Instant::now();
        assert_eq!(scraped.health().0, "200", "round {round}");
        assert!(asked.elapsed() < Duration::from_secs(60));
        assert!(descriptors(server.pid()) < before + 64, "round {round}");
    }
    // Who comes last is not turned away for those who were there before, though what it asks comes later.
    await_that("who comes last is answered", || {
        let _idle: Vec<TcpStream> = (0..40).map(|_| scraped.connect()).collect();
        let last = scraped.connect();
        // It was accepted before one that came after it is answered.
        scraped.health();
        answer(last, "GET /healthz HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 ")
    });
    for (bytes, status) in [
        ("\x16\x03\x01\x02\x00\x01\x00", "400"),
        ("GET /metrics\r\n\r\n", "400"),
        ("POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", "405"),
        (&format!("GET /{} HTTP/1.1\r\n", "a".repeat(8200)), "431"),
        (&format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100)), "431"),
    ] {
        let answer = scraped.ask(bytes);
        assert_eq!(&answer[9..12], status, "{answer}");
    }
    // Of those who read nothing, the answer waits in the system, or the connection is closed.
    let unread: Vec<TcpStream> = (0..100).map(|_| scraped.connect()).collect();
    for mut socket in &unread {
        let _ = socket.write_all(b"GET /metrics HTTP/1.1\r\n\r\n");
    }

    let idle: Vec<TcpStream> = (0..8).map(|_| scraped.connect()).collect();
    let ended = batch.wait();
    assert_eq!(ended.code(), 0, "{}", ended.stderr);
    assert_eq!(scraped.number(&calls("fib", "result")), 5000);
    // Those who do nothing are given up, though hardly anybody else comes.
    for mut socket in idle {
        let read = socket.read(&mut [0; 1]);
        let is_closed = match &read {
            Ok(length) => *length == 0,
            Err(error) => error.kind() == ErrorKind::ConnectionReset,
        };
        assert!(is_closed, "{read:?}");
    }
    server.stop();
}

/// One server about which there is something to tell, and one that is well.
const SERVERS: &str = r#"
rule_files: [rules.yml]
evaluation_interval: 1m
tests:
  - interval: 1m
    input_series:
      - {series: 'up{job="rpc_server",instance="ill"}', values: 1x60}
      - {series: 'rpc_server_workers{instance="ill"}', values: 2x60}
      - {series: 'rpc_server_workers_consuming{instance="ill"}', values: 1x60}
      - {series: 'rpc_server_calls_in_progress{instance="ill"}', values: 2x60}
      - {series: 'rpc_server_calls_total{instance="ill",procedure="p",outcome="result"}', values: 0+90x60}
      - {series: 'rpc_server_calls_total{instance="ill",procedure="p",outcome="internal"}', values: 0+10x60}
      - {series: 'rpc_server_reconnects_total{instance="ill"}', values: 0+1x60}
      - {series: 'rpc_server_calls_redelivered_total{instance="ill"}', values: 0x60}
      - {series: 'up{job="rpc_server",instance="well"}', values: 1x60}
      - {series: 'rpc_server_workers{instance="well"}', values: 2x60}
      - {series: 'rpc_server_workers_consuming{instance="well"}', values: 2x60}
      - {series: 'rpc_server_calls_in_progress{instance="well"}', values: 2x29 0 2x30}
      - {series: 'rpc_server_calls_total{instance="well",procedure="p",outcome="result"}', values: 0+97x60}
      - {series: 'rpc_server_calls_total{instance="well",procedure="p",outcome="internal"}', values: 0+3x60}
      - {series: 'rpc_server_calls_total{instance="well",procedure="p",outcome="out-of-range"}', values: 0+50x60}
      - {series: 'rpc_server_reconnects_total{instance="well"}', values: 0x20 1x40}
      - {series: 'rpc_server_calls_redelivered_total{instance="well"}', values: 0x20 1x40}
      - {series: 'up{job="rpc_server",instance="away"}', values: 0x60}
    alert_rule_test:
      - {eval_time: 30m, alertname: RpcServerBusy, exp_alerts: [{exp_labels: {instance: ill}}]}
      - {eval_time: 30m, alertname: RpcServerCallsComeAgain, exp_alerts: [{exp_labels: {instance: ill}}]}
      - eval_time: 30m
        alertname: RpcServerNotServing
        exp_alerts: [{exp_labels: {instance: ill}}, {exp_labels: {instance: away, job: rpc_server}}]
      - eval_time: 30m
        alertname: RpcServerCallsFail
        exp_alerts: [{exp_labels: {instance: ill, procedure: p}}]
"#;

#[test]
fn the_alerts_in_the_document_tell_of_what_is_wrong_and_of_nothing_else() {
    let folder = Folder::new();
    let (_, rules) = DOCUMENT.split_once("```yaml\ngroups:").unwrap();
    let (rules, _) = rules.split_once("```").unwrap();
    folder.write("rules.yml", &format!("groups:{rules}"), 0o600);
    folder.write("tests.yml", SERVERS, 0o600);
    let promtool = |words: &[&str], file: &str| {
        let mut command = Command::new("promtool");
        Process::spawn(command.args(words).arg(folder.path(file))).wait()
    };
    let checked = promtool(&["check", "rules"], "rules.yml");
    assert!(
        checked.code() == 0 && checked.stdout.contains("SUCCESS: 4 rules found"),
        "{checked:?}"
    );
    let tested = promtool(&["test", "rules"], "tests.yml");
    assert_eq!(tested.code(), 0, "{tested:?}");
}

#[test]
fn a_port_that_is_taken_is_told_at_the_start() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let server =
        Process::spawn(&mut server_command("amqp://127.0.0.1:1", &["--metrics", &address])).wait();
    let stderr = format!(
        "rpc_server: cannot listen on {address}: Address already in use (os error 98); --metrics names another port or address\n"
    );
    server.expect(78, "", &stderr);
    let server =
        Process::spawn(&mut server_command("amqp://127.0.0.1:1", &["--metrics", "host:1"])).wait();
    assert_eq!(server.code(), 64);
    assert!(server.stderr.contains("9155, 127.0.0.1:9155, [::1]:9155"), "{}", server.stderr);
}
