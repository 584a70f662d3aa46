//! Calls that succeed: results, formats, several calls, several servers.

use crate::harness::*;
use crate::proxy::{Action, CONNECTION_CLOSE, Proxy};
use amiquip::AmqpProperties;
use fib_rpc::fib::{Algorithm, fib};
use std::io::Write;

#[test]
fn the_transcript_of_both_sides() {
    let queue = Queue::new();
    let server = server(&queue, &["--prefetch", "1"]);
    let transcript = " [x] Requesting fib(30)\n [.] Got 832040\n";
    queue.client(&["--format", "transcript", "fib", "30"]).expect(0, transcript, "");
    server.signal("TERM");
    server.wait().expect(0, " [x] Awaiting RPC requests\n [.] fib(30)\n", "");
}

#[test]
fn a_script_gets_the_result_alone() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    queue.client(&["fib", "30"]).expect(0, "832040\n", "");
    queue.client(&["--format", "plain", "fib", "30"]).expect(0, "832040\n", "");
    queue.client(&["-q", "--format", "transcript", "fib", "30"]).expect(0, "832040\n", "");
}

/// Whoever waits for the answer waits for nothing else: what ends the connection has no part in it.
#[test]
fn the_answer_is_written_before_the_connection_is_closed() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let proxy = Proxy::start(&broker(), |frame| match frame.method {
        CONNECTION_CLOSE => Action::End,
        _ => Action::Pass,
    });

    // Both outputs in one pipe, in the order in which they were written.
    let both = ["-c", "exec \"$0\" \"$@\" 2>&1", env!("CARGO_BIN_EXE_rpc_client")];
    let args = [&both[..], &["-vv", "--queue", queue.name(), "fib", "30"]].concat();
    let ended = Process::spawn(&mut program("sh", &proxy.url, &args)).wait();
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "{ended:?}");
    let (before, _) = ended.stdout.split_once("closing the connection to ").unwrap();
    assert!(before.contains("\n832040\n"), "{before}");
}

#[test]
fn every_procedure() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    queue.client(&["fun", "7"]).expect(0, "700\n", "");
    queue.client(&["fun", "-12345678901234567890"]).expect(0, "-1234567890123456789000\n", "");
    queue.client(&["a"]).expect(0, "a\n", "");
    queue.client(&["b"]).expect(0, "b\n", "");
    queue.client(&["ping"]).expect(0, "pong\n", "");
    queue.client(&["list"]).expect(0, "a\nb\nfib\nfun\nlist\nping\n", "");
}

#[test]
fn every_algorithm_through_the_queue() {
    for algorithm in ["fast-doubling", "iterative", "recursive"] {
        let queue = Queue::new();
        let _server = server(&queue, &["--algorithm", algorithm]);
        queue.client(&["fib", "20"]).expect(0, "6765\n", "");
    }
}

#[test]
fn the_largest_n_is_an_option_of_the_server() {
    let queue = Queue::new();
    let _server = server(&queue, &["--algorithm", "recursive"]);
    let stderr = "rpc_client: fib(46): fib takes n from 0 to 45, not 46 (out-of-range)\n";
    queue.client(&["fib", "46"]).expect(65, "", stderr);
    let queue = Queue::new();
    let _server = server_at(&broker(), &queue, &["--max-n", "5"]);
    let stderr = "rpc_client: fib(6): fib takes n from 0 to 5, not 6 (out-of-range)\n\
                  rpc_client: 1 of 2 calls failed: 1 out-of-range\n";
    queue.client(&["fib", "5", "6"]).expect(65, "5\n", stderr);
}

#[test]
fn a_number_of_208988_digits() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let expected = fib(1_000_000, Algorithm::FastDoubling).to_string();
    assert_eq!(expected.len(), 208_988);
    let ended = queue.client(&["fib", "1000000"]);
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""));
    assert!(ended.stdout.trim_end() == expected);
}

#[test]
fn five_hundred_calls_one_after_another() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let arguments: Vec<String> = (0..500).map(|n| n.to_string()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = queue.client(&[&["--in-flight", "1", "fib"], &arguments[..]].concat());
    let results: Vec<String> = (0..500).map(|n| fib(n, Algorithm::Iterative).to_string()).collect();
    ended.expect(0, &(results.join("\n") + "\n"), "");
}

#[test]
fn a_call_for_each_line_of_standard_input() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let mut command = client_command(&broker(), &["--queue", queue.name(), "fib", "1", "-", "3"]);
    let input = b"10\n\nx\xff\n20".to_vec();
    let ended = feed(&mut command, input).wait();
    let stderr = "rpc_client: line 2: fib(): fib takes an integer in decimal digits, not \"\" (invalid-argument)\n\
                  rpc_client: line 3: fib(x\u{fffd}): the argument of fib is not UTF-8 text (invalid-argument)\n\
                  rpc_client: 2 of 6 calls failed: 2 invalid-argument\n";
    ended.expect(65, "1\n55\n6765\n2\n", stderr);
}

#[test]
fn a_line_longer_than_a_broker_takes() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let input = [&vec![b'9'; (16 << 20) + 100][..], b"\n7\n"].concat();
    let mut command = client_command(&broker(), &["--queue", queue.name(), "fun", "-"]);
    let ended = feed(&mut command, input).wait();
    let stderr = format!(
        "rpc_client: line 1: fun({}…): the argument has more than the 16777216 bytes that a broker takes\n\
         rpc_client: 1 of 2 calls failed: 1 too-large\n",
        "9".repeat(64)
    );
    ended.expect(65, "700\n", &stderr);
}

/// A server that answers each of `calls` requests with the request's own body.
fn echo(queue: &Queue, calls: usize) -> StubServer {
    StubServer::start(queue, calls, |channel, request| {
        let result = AmqpProperties::default().with_type_("result".into());
        reply(channel, request, &request.body, result);
    })
}

/// What a client writes that gets `input` on standard input, from an [`echo`] to `calls` calls.
#[track_caller]
fn echoed(args: &[&str], calls: usize, input: &[u8]) -> Vec<u8> {
    let queue = Queue::new();
    let server = echo(&queue, calls);
    let args = [&["--queue", queue.name()], args, &["cat", "-"]].concat();
    let ended = feed(&mut client_command(&broker(), &args), input.to_vec()).wait();
    server.join();
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""));
    ended.bytes.0
}

/// No text in any encoding, and harmful to a terminal.
const BYTES: &[u8] = b"\xff\0\n\x1b[2J\r\n\xc3";

#[test]
fn any_bytes_there_and_back() {
    let all: Vec<u8> = (0..=255).cycle().take(1_000_000).collect();
    for input in [BYTES, b"", b"\n", b"\n\n", &all] {
        assert!(echoed(&["--send-on", "eof", "--format", "raw"], 1, input) == input);
    }
    let plain = [BYTES, b"\n"].concat();
    assert_eq!(echoed(&["--send-on", "eof"], 1, BYTES), plain);
    assert_eq!(echoed(&["--send-on", "eof", "--repeat", "2"], 2, BYTES), plain.repeat(2));
}

#[test]
fn an_argument_ends_where_it_was_said_to() {
    let input = b"a\nb\0c\xff\0\0d";
    for (end, calls, raw) in [
        (&[][..], 2, &b"ab\0c\xff\0\0d"[..]),
        (&["--send-on", "newline"], 2, b"ab\0c\xff\0\0d"),
        (&["--send-on", "nul"], 4, b"a\nbc\xffd"),
        (&["--send-on", "eof"], 1, input),
    ] {
        assert_eq!(echoed(&[&["--format", "raw"], end].concat(), calls, input), raw, "{end:?}");
    }
    assert_eq!(echoed(&["--send-on", "nul"], 2, b"1\n\x002"), b"1\n2\n");
}

/// In `plain`, a result that ends with a newline gets no second one; an empty result is one too.
#[test]
fn a_result_has_one_newline_at_its_end() {
    for (format, shown) in
        [("plain", "\n\na\na\nb\n\n"), ("raw", "\naa\nb\n\n"), ("transcript", " [.] Got \n")]
    {
        let queue = Queue::new();
        let arguments: &[&str] =
            if format == "transcript" { &[""] } else { &["", "\n", "a", "a\n", "b\n\n"] };
        let server = echo(&queue, arguments.len());
        let ended = queue.client(&[&["--format", format, "cat"], arguments].concat());
        server.join();
        let results = ended.stdout.trim_start_matches(" [x] Requesting cat()\n");
        assert_eq!((ended.code(), results), (0, shown), "{format}");
    }
}

#[test]
fn json_has_bytes_that_are_no_text_in_base64() {
    let call: serde_json::Value =
        serde_json::from_slice(&echoed(&["--format", "json", "--send-on", "eof"], 1, BYTES))
            .unwrap();
    for field in ["argument", "result"] {
        assert_eq!(call.get(field), None, "{call}");
        assert_eq!(call[format!("{field}_base64")], "/wAKG1sySg0Kww==", "{call}");
    }
    let text = echoed(&["--format", "json"], 1, "é\0".as_bytes());
    let call: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!((&call["argument"], &call["result"]), (&"é\0".into(), &"é\0".into()));
    assert!(call.get("argument_base64").or(call.get("result_base64")).is_none(), "{call}");
}

#[test]
fn a_request_says_whether_it_is_text() {
    let queue = Queue::new();
    let server = StubServer::start(&queue, 2, |channel, request| {
        let content_type = request.properties.content_type().clone().unwrap();
        reply(channel, request, content_type.as_bytes(), AmqpProperties::default());
    });
    let mut command = client_command(&broker(), &["--queue", queue.name(), "cat", "-"]);
    let ended = feed(&mut command, b"\xc3\xa9\n\xc3\n".to_vec()).wait();
    server.join();
    ended.expect(0, "text/plain\napplication/octet-stream\n", "");
}

/// However often it is sent, a large argument is in memory once.
#[test]
fn a_large_argument_that_is_repeated() {
    let queue = Queue::new();
    let (go_on, told) = std::sync::mpsc::channel();
    let server = StubServer::start(&queue, 100, move |channel, request| {
        let _ = told.recv_timeout(PATIENCE);
        reply(channel, request, &request.body[..1], AmqpProperties::default());
    });
    let args = ["--queue", queue.name(), "-v", "--send-on", "eof", "--repeat", "100"];
    let args = [&args[..], &["--in-flight", "1", "--format", "raw", "cat", "-"]].concat();
    let client = feed(&mut client_command(&broker(), &args), vec![b'9'; 8_000_000]);
    for calls in 1..=2 {
        client.await_stderr_times("rpc_client: publish", calls);
        go_on.send(()).unwrap();
    }
    client.await_stderr_times("rpc_client: publish", 3);
    let peak = client.peak_memory();
    assert!(peak < 200, "{peak} MB");
    drop(go_on);
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout), (0, "9".repeat(100)));
    server.join();
}

#[test]
fn results_come_in_input_order_whatever_order_the_replies_come_in() {
    let queue = Queue::new();
    let mut first = None;
    let server = StubServer::start(&queue, 3, move |channel, request| match first.take() {
        None if request.body == b"1" => first = Some(request.clone()),
        Some(one) if request.body == b"3" => {
            reply(channel, request, b"third", AmqpProperties::default());
            reply(channel, &one, b"first", AmqpProperties::default());
        }
        kept => {
            first = kept;
            reply(channel, request, b"second", AmqpProperties::default());
        }
    });
    let ended = queue.client(&["--in-flight", "3", "fib", "1", "2", "3"]);
    ended.expect(0, "first\nsecond\nthird\n", "");
    server.join();
}

#[test]
fn the_first_failure_ends_a_batch_that_was_told_to() {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    let args = ["--fail-fast", "--in-flight", "1", "--stats", "fib", "1", "x", "3"];
    let ended = queue.client(&args);
    assert_eq!((ended.code(), ended.stdout.as_str()), (65, "1\n"));
    let stderr = "rpc_client: fib(x): fib takes an integer in decimal digits, not \"x\" (invalid-argument)\n\
                  rpc_client: 1 of 2 calls failed: 1 invalid-argument\n\
                  rpc_client: 2 calls, 1 failed, ";
    assert!(ended.stderr.starts_with(stderr), "{ended:?}");
    queue.client(&["ping"]).expect(0, "pong\n", "");
    let transcript = " [x] Awaiting RPC requests\n [.] fib(1)\n [.] fib(x)\n [.] ping()\n";
    server.signal("TERM");
    assert_eq!(server.wait().stdout, transcript);
}

/// Those before it in input order are awaited, those after it are not: the third never has a reply.
#[test]
fn a_failure_ends_a_batch_after_the_calls_before_it() {
    let queue = Queue::new();
    let mut requests = Vec::new();
    let server = StubServer::start(&queue, 3, move |channel, request| {
        requests.push(request.clone());
        if let [first, second, _] = &requests[..] {
            let error = AmqpProperties::default().with_type_("error".into());
            reply(channel, second, b"no", error);
            reply(channel, first, b"first", AmqpProperties::default());
        }
    });
    let ended = queue.client(&["--fail-fast", "--timeout", "0", "-v", "fib", "1", "2", "3", "4"]);
    server.join();
    assert_eq!((ended.code(), ended.stdout.as_str()), (70, "first\n"), "{ended:?}");
    let last = "rpc_client: fib(2): no (internal)\nrpc_client: 1 of 2 calls failed: 1 internal\n";
    assert!(ended.stderr.ends_with(last), "{ended:?}");
    let given_up = "rpc_client: 2 calls after the first failure: given up\n";
    assert!(ended.stderr.contains(given_up), "{ended:?}");
    assert_eq!(ended.stderr.matches("given up").count(), 1, "{ended:?}");
}

#[test]
fn several_calls_that_may_be_in_flight_are_told_apart_in_the_transcript() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let ended = queue.client(&["--format", "transcript", "fib", "10", "20"]);
    let mut lines: Vec<&str> = ended.stdout.lines().collect();
    // Which of them come first is up to the server.
    lines.sort_unstable();
    let sorted = [
        " [.] fib(10): 55",
        " [.] fib(20): 6765",
        " [x] Requesting fib(10)",
        " [x] Requesting fib(20)",
    ];
    assert_eq!(lines, sorted);
    let one_by_one =
        " [x] Requesting fib(10)\n [.] Got 55\n [x] Requesting fib(20)\n [.] Got 6765\n";
    let args = ["--format", "transcript", "--in-flight", "1", "fib", "10", "20"];
    queue.client(&args).expect(0, one_by_one, "");
}

#[test]
fn each_call_is_repeated() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    queue.client(&["--repeat", "3", "fib", "10", "11"]).expect(0, "55\n55\n55\n89\n89\n89\n", "");
}

/// An answer is printed when its turn comes, not when the input ends.
#[test]
fn an_input_that_pauses_keeps_no_answer_waiting() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let mut command = client_command(&broker(), &["--queue", queue.name(), "fib", "-"]);
    let (client, mut stdin) = Process::spawn_with_stdin(&mut command);
    for (line, result) in [("10\n", "55\n"), ("11\n", "55\n89\n")] {
        stdin.write_all(line.as_bytes()).unwrap();
        client.await_stdout(result);
    }
    drop(stdin);
    client.wait().expect(0, "55\n89\n", "");
}

#[test]
fn a_signal_in_a_batch_loses_no_answer_that_was_told() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let mut command =
            client_command(&broker(), &["--queue", queue.name(), "--stats", "fib", "-"]);
        let (client, mut stdin) = Process::spawn_with_stdin(&mut command);
        stdin.write_all(b"10\n11\n").unwrap();
        client.await_stdout("55\n89\n");
        client.signal(signal);
        let ended = client.wait();
        assert_eq!((ended.code(), ended.stdout.as_str()), (code, "55\n89\n"));
        assert!(ended.stderr.starts_with("rpc_client: 2 calls, 0 failed, "), "{ended:?}");
    }
}

#[test]
fn json_has_an_object_for_each_call() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let ended = queue.client(&["--format", "json", "fib", "30", "x\"y"]);
    let summary = "rpc_client: 1 of 2 calls failed: 1 invalid-argument\n";
    assert_eq!((ended.code(), ended.stderr.as_str()), (65, summary));
    let calls: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(calls.len(), 2);
    for call in &calls {
        assert_eq!(call["procedure"], "fib");
        assert_eq!(call["attempts"], 1);
        assert!(call["elapsed_ms"].as_f64().unwrap() > 0.0);
        assert_eq!(call["correlation_id"].as_str().unwrap().len(), 36);
    }
    let fields: Vec<&str> = ended
        .stdout
        .lines()
        .next()
        .unwrap()
        .split('"')
        .filter(|word| !word.contains([':', '{']))
        .collect();
    assert_eq!(&fields[..3], ["procedure", "fib", ","]);
    assert_eq!((&calls[0]["ok"], &calls[0]["result"]), (&true.into(), &"832040".into()));
    assert!(calls[0].get("error").is_none());
    assert_eq!((&calls[1]["ok"], &calls[1]["argument"]), (&false.into(), &"x\"y".into()));
    assert!(calls[1].get("result").is_none());
    let error = serde_json::json!({
        "kind": "invalid-argument",
        "message": "fib takes an integer in decimal digits, not \"x\"y\"",
    });
    assert_eq!(calls[1]["error"], error);
}

#[test]
fn statistics_are_told_at_the_end() {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    let ended = queue.client(&["--stats", "--repeat", "100", "fib", "30", "x"]);
    assert_eq!((ended.code(), ended.stdout.lines().count()), (65, 100));
    let line = ended.stderr.lines().last().unwrap();
    let numbers: Vec<f64> =
        line.split([' ', ',']).filter_map(|word| word.trim_end_matches('/').parse().ok()).collect();
    let [calls, failed, rate, p50, p90, p99, max] = numbers[..] else { panic!("{line}") };
    assert_eq!((calls, failed), (200.0, 100.0));
    assert!(rate > 0.0 && p50 > 0.0 && p50 <= p90 && p90 <= p99 && p99 <= max * 1.001, "{line}");
    // A call that takes 300 ms is in them too.
    server.signal("STOP");
    let ended = queue.client(&["-q", "--stats", "--timeout", "300ms", "fib", "30"]);
    let last = ended.stderr.lines().last().unwrap();
    assert!(last.starts_with("rpc_client: 1 call, 1 failed, "), "{last}");
    let max: f64 = last.rsplit(' ').nth(1).unwrap().parse().unwrap();
    assert!((300.0..PATIENCE.as_secs_f64() * 1e3).contains(&max), "{last}");
    let shape: String = line.chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect();
    let expected = "rpc_client:  calls,  failed,  calls/s, p ms, p ms, p ms, max  ms";
    assert_eq!(shape.replace("p  ms", "p ms"), expected);
}

#[test]
fn a_killed_servers_request_goes_to_another() {
    let queue = Queue::new();
    let first = server(&queue, &["--drill", "slow=1h"]);
    let args = ["--queue", queue.name(), "fib", "93"];
    let waiting = Process::spawn(&mut client_command(&broker(), &args));
    first.await_stdout(" [.] fib(93)\n");
    let second = server(&queue, &["-v"]);
    first.signal("KILL");
    waiting.wait().expect(0, "12200160415121876738\n", "");
    second.await_stderr(", redelivered\n");
    second.signal("TERM");
    let ended = second.wait();
    assert_eq!(ended.stdout, " [x] Awaiting RPC requests\n [.] fib(93)\n");
    queue.await_state((0, 0));
}

#[test]
fn two_servers_share_slow_calls_evenly() {
    let queue = Queue::new();
    // Each call takes longer than a request needs to come from the queue. They sleep, because a
    // machine that is busy may give one server less time to compute than the other.
    let args = ["--drill", "slow=200ms", "--prefetch", "1"];
    let servers = [0, 1].map(|_| server(&queue, &args));
    let arguments = ["30"; 20];
    let ended = queue.client(&[&["fib"], &arguments[..]].concat());
    ended.expect(0, &"832040\n".repeat(20), "");
    let served = servers.map(|server| {
        server.signal("TERM");
        server.wait().stdout.matches("fib(30)").count()
    });
    assert_eq!(served[0] + served[1], 20);
    assert!(served[0].abs_diff(served[1]) <= 6, "{served:?}");
}

/// Without a limit the broker pushes all it has to the first server.
#[test]
fn without_a_prefetch_limit_one_server_gets_everything() {
    let queue = Queue::new();
    let first = server(&queue, &["--prefetch", "0"]);
    first.signal("STOP");
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    let properties = AmqpProperties::default().with_reply_to(reply_to.clone());
    for n in 1..=5 {
        amqp.publish(queue.name(), n.to_string().as_bytes(), properties.clone());
    }
    // Answered on the same channel: the broker has them all, and has pushed them.
    amqp.exclusive();
    let second = server(&queue, &[]);
    first.signal("CONT");
    for _ in 0..5 {
        amqp.next(&reply_to);
    }
    for n in 1..=5 {
        first.await_stdout(&format!(" [.] fib({n})\n"));
    }
    assert_eq!(second.stdout().matches(" [.] ").count(), 0);
}
