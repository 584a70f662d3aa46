//! What `rpc_client` does with bad input, and with servers that misbehave: exit code, stdout and
//! stderr of each.

use crate::harness::*;
use amiquip::{AmqpProperties, AmqpValue, FieldTable};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

// The command line.

#[test]
fn no_argument_shows_the_short_usage() {
    let usage = "rpc_client: a procedure is missing, as in rpc_client fib 30; rpc_client list names all\n\n\
                 Usage: rpc_client [OPTIONS] <PROCEDURE> [ARGUMENT]...\n\nFor more information, try '--help'.\n";
    client(&[]).expect(64, "", usage);
}

#[test]
fn help_and_version_are_a_success_on_stdout() {
    let help = client(&["--help"]);
    assert_eq!((help.code(), help.stderr.as_str()), (0, ""));
    assert!(help.stdout.contains("Usage: rpc_client"), "{help:?}");
    let version = format!("rpc_client {}\n", env!("CARGO_PKG_VERSION"));
    client(&["--version"]).expect(0, &version, "");
}

#[test]
fn help_does_not_show_the_password_in_the_environment() {
    let help = client_at("amqp://user:s3cret@host", &["--help"]);
    assert!(!help.stdout.contains("s3cret"), "{help:?}");
}

/// The first line tells the error, what follows is clap's hint at the usage.
#[track_caller]
fn usage_error(args: &[&str], first_line: &str) {
    let ended = client(args);
    assert_eq!((ended.code(), ended.stdout.as_str()), (64, ""));
    assert_eq!(ended.stderr.lines().next(), Some(first_line));
}

#[test]
fn unknown_option() {
    usage_error(&["--wrong", "fib"], "rpc_client: unexpected argument '--wrong' found");
}

#[test]
fn timeout_that_is_no_duration() {
    usage_error(
        &["--timeout", "abc", "fib"],
        "rpc_client: invalid value 'abc' for '--timeout <DURATION>': 30, 0.5, 500ms and 1m30s are durations, the first two in seconds",
    );
}

#[test]
fn connect_timeout_without_end() {
    usage_error(
        &["--connect-timeout", "0", "fib"],
        "rpc_client: invalid value '0' for '--connect-timeout <DURATION>': no wait here is without end: give a duration over 0",
    );
}

#[test]
fn connection_name_with_a_control_character() {
    usage_error(
        &["--connection-name", "a\tb", "fib"],
        "rpc_client: invalid value 'a\tb' for '--connection-name <NAME>': a connection's name has no control characters, and this one has \\t",
    );
}

#[test]
fn queue_name_over_255_bytes() {
    let name = "q".repeat(256);
    usage_error(
        &["--queue", &name, "fib"],
        &format!(
            "rpc_client: invalid value '{name}' for '--queue <NAME>': a name has at most 255 bytes, and this one has 256"
        ),
    );
}

#[test]
fn queue_name_of_255_bytes() {
    let name = "q".repeat(255);
    let ended = client(&["--queue", &name, "fib", "1"]);
    let stderr = format!(
        "rpc_client: fib: there is no queue \"{name}\" on {}; start rpc_server, or name its queue with --queue (--wait waits for it)\n",
        shown(&broker())
    );
    ended.expect(69, "", &stderr);
}

#[test]
fn empty_queue_name() {
    usage_error(
        &["--queue", "", "fib"],
        "rpc_client: invalid value '' for '--queue <NAME>': a name cannot be empty",
    );
}

#[test]
fn procedure_name_over_255_bytes() {
    let name = "p".repeat(256);
    usage_error(
        &[&name],
        &format!(
            "rpc_client: invalid value '{name}' for '<PROCEDURE>': a name has at most 255 bytes, and this one has 256"
        ),
    );
}

#[test]
fn the_end_of_arguments_that_are_not_read() {
    usage_error(
        &["--send-on", "eof", "fib", "30"],
        "rpc_client: --send-on is about standard input: give - as an argument to read it",
    );
    usage_error(
        &["--send-on", "eof", "fib", "-", "30", "-"],
        "rpc_client: --send-on eof makes one argument of standard input: give - once",
    );
}

// The URI.

#[test]
fn uri_of_another_scheme() {
    client_at("ftp://user:s3cret@host", &["fib", "1"]).expect(
        78,
        "",
        "rpc_client: broker URI (--url or AMQP_URL): its scheme is neither amqp nor amqps\n",
    );
}

#[test]
fn malformed_uri() {
    client_at("amqp://user:s3cret@host:port", &["fib", "1"]).expect(
        78,
        "",
        "rpc_client: broker URI (--url or AMQP_URL): its port is no number from 1 to 65535 \
         (a password is percent-encoded: @ as %40, / as %2F, : as %3A, # as %23, ? as %3F, % as %25)\n",
    );
}

#[test]
fn a_password_on_the_command_line_draws_a_hint() {
    let hint =
        "rpc_client: others on this machine can see the password in --url; AMQP_URL hides it\n";
    let ended = client(&["--url", "amqp://user:s3cret@host:port", "fib", "1"]);
    assert!(ended.stderr.starts_with(hint), "{ended:?}");
    for (url, args) in [
        ("amqp://user:s3cret@host:port", &["fib", "1"][..]),
        ("", &["--url", "amqp://user@host:port", "fib", "1"]),
        ("", &["-q", "--url", "amqp://user:s3cret@host:port", "fib", "1"]),
    ] {
        let ended = client_at(url, args);
        assert!(!ended.stderr.contains("others on this machine"), "{ended:?}");
    }
}

#[test]
fn an_empty_variable_is_the_default_broker() {
    // No port is given, so the message shows the default one; something may answer there.
    let ended = client_at("", &["-v", "--queue", Queue::new().name(), "fib", "1"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""));
    assert!(ended.stderr.contains("amqp://localhost:5672"), "{ended:?}");
}

// Who serves the queue.

#[test]
fn no_queue() {
    let queue = Queue::new();
    // If it waited for the queue, it would do so without end.
    let ended = queue.client(&["--timeout", "0", "fib", "30"]);
    let stderr = format!(
        "rpc_client: fib: there is no queue \"{}\" on {}; start rpc_server, or name its queue with --queue (--wait waits for it)\n",
        queue.name(),
        shown(&broker())
    );
    ended.expect(69, "", &stderr);
    assert_eq!(queue.state(), None, "the client made the queue");
}

/// One object a call, failed ones too, whether they could be made or not.
#[test]
fn no_queue_in_json() {
    let queue = Queue::new();
    let json = ["--format", "json"];
    let ended = queue.client(&[&json[..], &["--repeat", "2", "fib", "1", "x"]].concat());
    assert_eq!((ended.code(), ended.stderr.as_str()), (69, ""), "{ended:?}");
    let calls: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let arguments: Vec<_> = calls.iter().map(|call| &call["argument"]).collect();
    assert_eq!(arguments, ["1", "1", "x", "x"]);
    for call in &calls {
        assert_eq!(
            (&call["error"]["kind"], &call["attempts"]),
            (&"queue-missing".into(), &0.into())
        );
    }
    let ended = queue.client(&["--format", "json", "--fail-fast", "fib", "1", "x"]);
    assert_eq!((ended.code(), ended.stderr.as_str()), (69, ""), "{ended:?}");
    assert_eq!(ended.stdout.lines().count(), 1, "{ended:?}");
    // Lines of standard input may never come.
    let (waiting, _stdin) = Process::spawn_with_stdin(&mut client_command(
        &broker(),
        &["--queue", queue.name(), "--format", "json", "fib", "-"],
    ));
    let ended = waiting.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    assert!(ended.stderr.starts_with("rpc_client: fib: there is no queue "), "{ended:?}");
}

#[test]
fn no_consumer() {
    let queue = Queue::new();
    let amqp = Amqp::new();
    amqp.declare(&queue);
    for _ in 0..3 {
        amqp.publish(queue.name(), b"1", AmqpProperties::default());
    }
    queue.await_state((3, 0));
    // If it waited for a server, it would do so without end.
    let ended = queue.client(&["--timeout", "0", "fib", "30"]);
    let stderr = format!(
        "rpc_client: fib: nobody consumes from the queue \"{}\" on {}, where 3 requests wait; start rpc_server (--wait waits for it)\n",
        queue.name(),
        shown(&broker())
    );
    ended.expect(69, "", &stderr);
    queue.await_state((3, 0));
}

#[test]
fn waiting_for_a_server_has_an_end() {
    let queue = Queue::new();
    let ended = queue.client(&["--wait", "--timeout", "2s", "fib", "30"]);
    let cause = format!(
        "there is no queue \"{}\" on {}; start rpc_server, or name its queue with --queue",
        queue.name(),
        shown(&broker())
    );
    let stderr = format!("rpc_client: waiting: {cause}\nrpc_client: fib: {cause} (waited 2s)\n");
    ended.expect(69, "", &stderr);
    assert!(ended.elapsed >= Duration::from_secs(2), "{ended:?}");
}

#[test]
fn wait_waits_for_queue_and_server() {
    let queue = Queue::new();
    let args = ["--queue", queue.name(), "--wait", "fib", "30"];
    let waiting = Process::spawn(&mut client_command(&broker(), &args));
    waiting.await_stderr("rpc_client: waiting: there is no queue");
    Amqp::new().declare(&queue);
    waiting.await_stderr("rpc_client: waiting: nobody consumes");
    let _server = server(&queue, &[]);
    let ended = waiting.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "832040\n"), "{ended:?}");
    assert_eq!(ended.stderr.matches("rpc_client: waiting: ").count(), 2, "{ended:?}");
}

// What the server rejects.

#[track_caller]
fn rejected(args: &[&str], call: &str, sentence: &str) {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    queue.client(args).expect(65, "", &format!("rpc_client: {call}: {sentence}\n"));
}

#[test]
fn argument_that_is_no_number() {
    let sentence = "fib takes an integer in decimal digits, not \"abc\" (invalid-argument)";
    rejected(&["fib", "abc"], "fib(abc)", sentence);
}

#[test]
fn negative_argument() {
    rejected(&["fib", "-1"], "fib(-1)", "fib takes n from 0 to 1000000, not -1 (out-of-range)");
}

#[test]
fn empty_argument() {
    let sentence = "fib takes an integer in decimal digits, not \"\" (invalid-argument)";
    rejected(&["fib", ""], "fib()", sentence);
}

#[test]
fn missing_argument() {
    let sentence = "fib takes an integer in decimal digits, not \"\" (invalid-argument)";
    rejected(&["fib"], "fib()", sentence);
}

#[test]
fn argument_in_scientific_notation() {
    let sentence = "fib takes an integer in decimal digits, not \"1e9\" (invalid-argument)";
    rejected(&["fib", "1e9"], "fib(1e9)", sentence);
}

#[test]
fn argument_over_64_bits() {
    let n = "99999999999999999999999";
    let sentence = format!("fib takes n from 0 to 1000000, not {n} (out-of-range)");
    rejected(&["fib", n], &format!("fib({n})"), &sentence);
}

#[test]
fn unknown_procedure() {
    let sentence = "there is no procedure \"nosuch\"; there are a, b, fib, fun, list, ping (unknown-procedure)";
    rejected(&["nosuch", "1"], "nosuch(1)", sentence);
}

#[test]
fn a_failed_call_does_not_stop_the_rest() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let stderr = "rpc_client: fib(x): fib takes an integer in decimal digits, not \"x\" (invalid-argument)\n";
    let summary = "rpc_client: 1 of 3 calls failed: 1 invalid-argument\n";
    queue.client(&["fib", "1", "x", "3"]).expect(65, "1\n2\n", &format!("{stderr}{summary}"));
    queue.client(&["-q", "fib", "1", "x", "3"]).expect(65, "1\n2\n", stderr);
}

// Servers that are late, stopped or strange.

#[test]
fn a_server_slower_than_the_timeout() {
    let queue = Queue::new();
    let _server = server(&queue, &["--drill", "slow=1h"]);
    let ended = queue.client(&["--timeout", "1s", "fib", "93"]);
    let stderr = format!(
        "rpc_client: fib(93): no answer within 1s: 1 consumer serves the queue \"{}\", where 0 requests wait, and may be busy with earlier calls; give more time with --timeout, or start more servers; or a server has thrown the request away: see its log\n",
        queue.name()
    );
    ended.expect(75, "", &stderr);
}

#[test]
fn a_busy_server_and_requests_ahead() {
    let queue = Queue::new();
    let _server = server(&queue, &["--drill", "slow=1h"]);
    let amqp = Amqp::new();
    let properties = AmqpProperties::default().with_reply_to(amqp.exclusive());
    for _ in 0..3 {
        amqp.publish(queue.name(), b"93", properties.clone());
    }
    queue.await_state((2, 1));
    let ended = queue.client(&["--timeout", "300ms", "ping"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
    // The broker drops the expired request when it comes to the head of the queue.
    let expected = "rpc_client: ping(): no answer within 300ms: 1 consumer serves the queue";
    assert!(ended.stderr.starts_with(expected), "{ended:?}");
    assert!(ended.stderr.contains("where 3 requests wait"), "{ended:?}");
}

#[test]
fn a_frozen_server() {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    server.signal("STOP");
    let ended = queue.client(&["--timeout", "1s", "fib", "30"]);
    let stderr = format!(
        "rpc_client: fib(30): no answer within 1s: 1 consumer serves the queue \"{}\", where 0 requests wait, and may be busy with earlier calls; give more time with --timeout, or start more servers; or a server has thrown the request away: see its log\n",
        queue.name()
    );
    ended.expect(75, "", &stderr);
}

#[test]
fn a_server_that_leaves_during_the_call() {
    let queue = Queue::new();
    let server = server(&queue, &["--drill", "slow=1h"]);
    let args = ["--queue", queue.name(), "--timeout", "5s", "fib", "93"];
    let waiting = Process::spawn(&mut client_command(&broker(), &args));
    server.await_stdout(" [.] fib(93)\n");
    server.signal("KILL");
    let ended = waiting.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
    assert!(ended.stderr.contains("nobody consumes from the queue"), "{ended:?}");
}

/// The look for the reason takes a channel of its own. Where there is none, that costs no other call.
#[test]
fn a_timeout_on_the_only_channel() {
    let queue = Queue::new();
    let (go_on, told) = std::sync::mpsc::channel();
    let mut requests = 0;
    let server = StubServer::start(&queue, 2, move |channel, request| {
        requests += 1;
        if requests == 2 {
            told.recv_timeout(PATIENCE).unwrap();
            reply(channel, request, b"832040", AmqpProperties::default());
        }
    });
    let url = format!("{}?channel_max=1", broker());
    let args = ["-v", "--queue", queue.name(), "--no-retry", "--timeout", "6s"];
    let args = [&args[..], &["--in-flight", "2", "fib", "-"]].concat();
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(&url, &args));
    stdin.write_all(b"29\n").unwrap();
    client.await_stderr(": fib(29), reply_to ");
    std::thread::sleep(Duration::from_secs(3));
    stdin.write_all(b"30\n").unwrap();
    drop(stdin);
    let reason = "no answer within 6s: give more time with --timeout, or start more servers";
    client.await_stderr(&format!("rpc_client: line 1: fib(29): {reason}\n"));
    go_on.send(()).unwrap();
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, "832040\n"), "{ended:?}");
    server.join();
}

#[test]
fn an_expired_request_is_not_computed() {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    server.signal("STOP");
    // Two, because the broker has pushed the first one already.
    assert_eq!(queue.client(&["--timeout", "200ms", "fib", "5"]).code(), 75);
    assert_eq!(queue.client(&["--timeout", "200ms", "fib", "6"]).code(), 75);
    server.signal("CONT");
    queue.client(&["fib", "7"]).expect(0, "13\n", "");
    server.signal("TERM");
    let stdout = server.wait().stdout;
    assert!(!stdout.contains("fib(6)") && stdout.ends_with(" [.] fib(7)\n"), "{stdout}");
}

#[test]
fn a_signal_ends_it_as_a_shell_expects() {
    let queue = Queue::new();
    let _server = server(&queue, &["--drill", "slow=1h"]);
    for (n, signal, code) in [("93", "INT", 130), ("92", "TERM", 143)] {
        let args = ["--queue", queue.name(), "-v", "fib", n];
        let waiting = Process::spawn(&mut client_command(&broker(), &args));
        waiting.await_stderr("rpc_client: publish");
        waiting.signal(signal);
        let ended = waiting.wait();
        assert_eq!((ended.code(), ended.stdout.as_str()), (code, ""));
    }
}

/// Whoever reads its output may do so no more.
#[test]
fn a_signal_ends_it_though_its_output_is_stuck() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let (mut reader, writer) = std::io::pipe().unwrap();
    let args = ["--queue", queue.name(), "--repeat", "1000", "fib", "3000"];
    let mut stuck = client_command(&broker(), &args).stdout(writer).spawn().unwrap();
    // More than the pipe holds is yet to come, wherever it is by now. A pipe has 16 pages, and what does not fit into
    // the rest of one begins another: so it can be full when it is little more than half full.
    reader.read_exact(&mut [0; 10]).unwrap();
    await_that("its output is stuck", || rustix::io::ioctl_fionread(&reader).unwrap() > 8 * 4096);
    let started = Instant::now();
    kill(stuck.id(), "TERM");
    while stuck.try_wait().unwrap().is_none() && started.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
    }
    let ended = stuck.try_wait().unwrap();
    let _ = stuck.kill();
    assert_eq!(ended.and_then(|status| status.signal()), Some(15), "{ended:?}");
}

#[track_caller]
fn answered(body: &'static [u8], properties: AmqpProperties) -> Ended {
    let queue = Queue::new();
    let server = StubServer::start(&queue, 1, move |channel, request| {
        reply(channel, request, body, properties.clone());
    });
    let ended = queue.client(&["fib", "30"]);
    server.join();
    ended
}

#[test]
fn an_empty_reply() {
    let stderr = "rpc_client: fib(30): the reply is empty: what answered is not an RPC server\n";
    answered(b"", AmqpProperties::default()).expect(76, "", stderr);
}

#[test]
fn a_reply_that_is_no_text() {
    let ended = answered(b"caf\xe9", AmqpProperties::default());
    assert_eq!((ended.code(), &ended.bytes.0[..]), (0, &b"caf\xe9\n"[..]), "{ended:?}");
}

#[test]
fn an_empty_result() {
    let result = AmqpProperties::default().with_type_("result".into());
    answered(b"", result).expect(0, "\n", "");
}

#[test]
fn an_error_from_a_server_of_another_kind() {
    let error = AmqpProperties::default().with_type_("error".into());
    let stderr = "rpc_client: fib(30): it \\u{1b}[31mbroke (internal)\n";
    answered(b"it \x1b[31mbroke", error).expect(70, "", stderr);
}

#[test]
fn an_internal_error_is_the_servers_fault() {
    let mut headers = FieldTable::new();
    headers.insert("error".into(), AmqpValue::LongString("internal".into()));
    let error = AmqpProperties::default().with_type_("error".into()).with_headers(headers);
    let stderr = "rpc_client: fib(30): no disk (internal)\n";
    answered(b"no disk", error).expect(70, "", stderr);
}

/// An error reply of `kind`, from a program that exited with `exit_code`.
fn error(kind: &str, exit_code: i32) -> AmqpProperties {
    let mut headers = FieldTable::new();
    headers.insert("error".into(), AmqpValue::LongString(kind.into()));
    headers.insert("exit_code".into(), AmqpValue::LongInt(exit_code));
    AmqpProperties::default().with_type_("error".into()).with_headers(headers)
}

#[test]
fn what_another_attempt_may_change_is_told_with_its_kind() {
    for kind in ["unavailable", "timed-out"] {
        let stderr = format!("rpc_client: fib(30): try later ({kind})\n");
        answered(b"try later", error(kind, 75)).expect(75, "", &stderr);
    }
}

/// Of a program that exited, JSON has what it exited with. A time limit of the server's is told apart
/// from one of the client's own, which has no reply.
#[test]
fn an_error_in_json_has_its_exit_code() {
    let queue = Queue::new();
    let mut replies = [("internal", 3), ("timed-out", 300)].into_iter();
    let server = StubServer::start(&queue, 3, move |channel, request| {
        if let Some((kind, exit_code)) = replies.next() {
            reply(channel, request, b"no", error(kind, exit_code));
        }
    });
    let args = ["--format", "json", "--timeout", "2s", "--in-flight", "1", "t", "1", "2", "3"];
    let ended = queue.client(&args);
    server.join();
    let summary = "rpc_client: 3 of 3 calls failed: 2 timed-out, 1 internal\n";
    assert_eq!((ended.code(), ended.stderr.as_str()), (70, summary));
    let errors: Vec<serde_json::Value> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["error"].take())
        .collect();
    let internal = serde_json::json!({"kind": "internal", "message": "no", "exit_code": 3});
    // A process exits with 0 to 255.
    let timed_out = serde_json::json!({"kind": "timed-out", "message": "no"});
    assert_eq!(errors[..2], [internal, timed_out]);
    assert_eq!(errors[2]["kind"], "timed-out");
    assert_eq!(errors[2].get("exit_code"), None);
}

#[test]
fn a_tutorial_servers_reply_has_no_type() {
    answered(b"832040", AmqpProperties::default()).expect(0, "832040\n", "");
}

// Replies that are not the awaited one.

#[test]
fn a_strangers_reply_is_discarded() {
    let queue = Queue::new();
    let server = StubServer::start(&queue, 1, |channel, request| {
        let stranger = AmqpProperties::default().with_correlation_id("stranger".into());
        reply(channel, request, b"1", stranger);
        // None at all: `reply` would fill it in.
        let to = request.properties.reply_to().clone().unwrap();
        channel.basic_publish("", amiquip::Publish::new(b"2", to)).unwrap();
        reply(channel, request, b"832040", AmqpProperties::default());
    });
    let ended = queue.client(&["-v", "fib", "30"]);
    server.join();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "832040\n"), "{ended:?}");
    for id in ["stranger", "none"] {
        let line = format!("rpc_client: discard a reply: correlation_id {id} is not awaited\n");
        assert!(ended.stderr.contains(&line), "{ended:?}");
    }
}

#[test]
fn a_duplicate_reply_is_discarded() {
    let queue = Queue::new();
    let server = StubServer::start(&queue, 2, |channel, request| {
        for _ in 0..2 {
            reply(channel, request, &request.body, AmqpProperties::default());
        }
    });
    let ended = queue.client(&["-v", "fib", "1", "2"]);
    server.join();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "1\n2\n"), "{ended:?}");
    // The second one's may come when the client has gone.
    let discarded = ended.stderr.matches("discard a reply").count();
    assert!((1..=2).contains(&discarded), "{ended:?}");
}

#[test]
fn a_late_reply_is_discarded() {
    let queue = Queue::new();
    let mut late = None;
    let server = StubServer::start(&queue, 2, move |channel, request| match late.take() {
        // The first request is answered only when its client has given up and sent the second.
        None => late = Some(request.clone()),
        Some(first) => {
            reply(channel, &first, b"late", AmqpProperties::default());
            reply(channel, request, b"in time", AmqpProperties::default());
        }
    });
    let ended = queue.client(&["-v", "--in-flight", "1", "--timeout", "2s", "fib", "1", "2"]);
    server.join();
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, "in time\n"), "{ended:?}");
    assert!(ended.stderr.contains("rpc_client: fib(1): no answer within 2s"), "{ended:?}");
    assert_eq!(ended.stderr.matches("discard a reply").count(), 1, "{ended:?}");
}

// Standard output.

#[test]
fn stdout_closed_early() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let mut command = client_command(&broker(), &["--queue", queue.name(), "fib", "-"]);
    let mut head = std::process::Command::new("head")
        .args(["-n", "1"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // More lines than a pipe holds, so that the client must meet the closed end.
    let input = "30\n".repeat(100_000).into_bytes();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(head.stdin.take().unwrap())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feeding = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &input));
    let first = head.wait_with_output().unwrap();
    assert_eq!(first.stdout, b"832040\n");
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    assert!(feeding.join().unwrap().is_err(), "the client read on");
}

#[test]
fn a_full_disk_is_told() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = client_command(&broker(), &["--queue", queue.name(), "fib", "30"])
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(70));
    let expected = "rpc_client: cannot write to standard output: No space left on device";
    assert!(stderr.starts_with(expected), "{stderr}");
}
