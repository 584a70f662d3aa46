//! Long batches for many servers: results as they come, calls that are made again, files in and out.

use crate::commands::Folder;
use crate::folder;
use crate::harness::*;
use crate::proxy::*;
use amiquip::{AmqpProperties, AmqpValue, Channel, Delivery, FieldTable, QueueDeleteOptions};
use std::sync::mpsc;

// Results as they come.

/// Many more than there are in flight. In input order, all but seven would wait.
#[test]
fn unordered_no_call_waits_for_a_slow_one() {
    let queue = Queue::new();
    let (finish, is_time) = mpsc::channel::<()>();
    let mut first = None;
    let mut answered = 0;
    let server = StubServer::start(&queue, 201, move |channel, request| match &first {
        None => first = Some(request.clone()),
        Some(first) => {
            reply(channel, request, &request.body, AmqpProperties::default());
            answered += 1;
            if answered == 200 {
                is_time.recv_timeout(PATIENCE).unwrap();
                reply(channel, first, b"at last", AmqpProperties::default());
            }
        }
    });
    let arguments: Vec<String> = (0..201).map(|n| n.to_string()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let options = ["--unordered", "--in-flight", "8", "--queue", queue.name(), "fun"];
    let client =
        Process::spawn(&mut client_command(&broker(), &[&options, &arguments[..]].concat()));
    client.await_stdout("200\n");
    finish.send(()).unwrap();
    let ended = client.wait();
    server.join();
    ended.expect(0, &(arguments[1..].join("\n") + "\nat last\n"), "");
}

/// The first call never has an answer.
#[test]
fn unordered_the_first_failure_that_comes_counts() {
    let queue = Queue::new();
    let answer = |channel: &Channel, request: &Delivery| {
        if request.body == b"2" {
            reply(channel, request, b"", AmqpProperties::default());
        }
    };
    let failed = "rpc_client: fun(2): the reply is empty";
    let server = StubServer::start(&queue, 2, answer);
    let args = ["--unordered", "--in-flight", "2", "--timeout", "2s", "fun", "1", "2"];
    let ended = queue.client(&args);
    server.join();
    assert_eq!((ended.code(), ended.stdout.as_str()), (76, ""), "{ended:?}");
    assert!(ended.stderr.starts_with(failed), "{ended:?}");
    assert!(ended.stderr.contains("\nrpc_client: fun(1): no answer within 2s: "), "{ended:?}");
    // With --fail-fast it ends there, and not after the other's time.
    let server = StubServer::start(&queue, 2, answer);
    let ended = queue.client(&["--unordered", "--fail-fast", "--timeout", "0", "fun", "1", "2"]);
    server.join();
    assert_eq!((ended.code(), ended.stdout.as_str()), (76, ""), "{ended:?}");
    assert!(ended.stderr.starts_with(failed) && !ended.stderr.contains("fun(1)"), "{ended:?}");
}

// How many calls are under way.

/// With 64 in flight, each of the last ten would wait for longer than its time.
#[test]
fn a_batch_does_not_time_out_of_its_own_queueing() {
    let queue = Queue::new();
    let _server = server(&queue, &["--drill", "slow=300ms"]);
    let ended = queue.client(&["--timeout", "6s", "--repeat", "30", "ping"]);
    ended.expect(0, &"pong\n".repeat(30), "");
}

/// The first call is never answered, so that no reply makes room for another.
#[test]
fn a_server_that_comes_gets_a_call() {
    let queue = Queue::new();
    let slow = server(&queue, &["--drill", "slow=1h"]);
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let args = ["--unordered", "--timeout", "10m", "--queue", queue.name(), "fun", "1", "2"];
    let client = Process::spawn(&mut client_command(&proxy.url, &args));
    slow.await_stdout(" [.] fun(1)\n");
    assert_eq!(proxy.passed(BASIC_PUBLISH), 1);
    let _other = server(&queue, &[]);
    client.await_stdout("200\n");
    client.signal("KILL");
    client.wait();
}

// Calls that are made again.

/// Answers that a call may succeed later.
fn reply_unavailable(channel: &Channel, request: &Delivery) {
    let mut headers = FieldTable::new();
    headers.insert("error".into(), AmqpValue::LongString("unavailable".into()));
    let properties = AmqpProperties::default().with_type_("error".into()).with_headers(headers);
    reply(channel, request, b"not now", properties);
}

/// A program that fails two times of three.
#[test]
fn a_program_that_fails_for_the_time_being_is_called_again() {
    let folder = Folder::new();
    let script = "read n; echo >> $0/$n; test $(wc -l < $0/$n) -gt 2 || exit 75; echo $n";
    let queue = Queue::new();
    let _server = server(&queue, &["--workers", "4", &folder.procedure(script)]);
    let arguments: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let calls = |options: &[&str]| queue.client(&[options, &["p"], &arguments].concat());

    let ended = calls(&["-v", "--retries", "2"]);
    assert_eq!((ended.code(), ended.stdout), (0, arguments.join("\n") + "\n"), "{}", ended.stderr);
    for attempt in ["attempt 1 of 3 failed: ", "attempt 2 of 3 failed: "] {
        assert_eq!(ended.stderr.matches(attempt).count(), 20, "{}", ended.stderr);
    }
    // One time too few.
    arguments.iter().for_each(|n| std::fs::remove_file(folder.path(n)).unwrap());
    let ended = calls(&["--retries", "1"]);
    assert_eq!(ended.stderr.matches(" (unavailable), after 2 attempts\n").count(), 20, "{ended:?}");
    arguments.iter().for_each(|n| std::fs::remove_file(folder.path(n)).unwrap());
    let ended = calls(&["--retries", "1", "--format", "json"]);
    assert_eq!(ended.code(), 75, "{ended:?}");
    assert_eq!(ended.stdout.matches("\"kind\":\"unavailable\"").count(), 20, "{ended:?}");
    assert_eq!(ended.stdout.matches("\"attempts\":2,").count(), 20, "{ended:?}");
    let ended = queue.client(&["--retries", "1", "--no-retry", "ping"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (64, ""), "{ended:?}");
    assert!(
        ended.stderr.contains("--no-retry sends no call twice, and --retries does"),
        "{ended:?}"
    );
}

/// Not even where one call is in flight at a time.
#[test]
fn a_call_that_waits_to_be_made_again_holds_no_other() {
    let queue = Queue::new();
    let mut others = 0;
    let mut again = 0;
    let args = ["--format", "json", "--unordered", "--in-flight", "1", "--retries", "9"];
    let args = [&["--queue", queue.name()], &args[..], &["fun", "1", "2", "3"]].concat();
    let _server = StubServer::start(&queue, usize::MAX, move |channel, request| {
        if request.body != b"1" {
            others += 1;
        } else if others < 2 {
            again += 1;
            return reply_unavailable(channel, request);
        }
        assert!(again > 0);
        reply(channel, request, &request.body, AmqpProperties::default());
    });
    let client = Process::spawn(&mut client_command(&broker(), &args));
    let ended = client.wait();
    let results: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let arguments: Vec<_> = results.iter().map(|call| call["argument"].as_str().unwrap()).collect();
    assert_eq!((ended.code(), &arguments[..]), (0, &["2", "3", "1"][..]), "{ended:?}");
    let attempts: Vec<_> = results.iter().map(|call| call["attempts"].as_u64().unwrap()).collect();
    assert!(attempts[..2] == [1, 1] && attempts[2] > 1, "{ended:?}");
}

/// A reply to the first attempt that comes during the second one is nobody's.
#[test]
fn each_attempt_has_its_whole_time() {
    let queue = Queue::new();
    let mut first = None;
    let server = StubServer::start(&queue, 2, move |channel, request| match &first {
        None => first = Some(request.clone()),
        Some(first) => {
            reply(channel, first, b"late", AmqpProperties::default());
            reply(channel, request, b"in time", AmqpProperties::default());
        }
    });
    let ended =
        queue.client(&["--retries", "1", "--timeout", "3s", "--format", "json", "fun", "1"]);
    server.join();
    assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "{ended:?}");
    let call: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&call["result"], &call["attempts"]), (&"in time".into(), &2.into()), "{ended:?}");
    assert!(call["elapsed_ms"].as_f64().unwrap() > 3_000.0, "{ended:?}");
}

/// Those that were not made yet wait, too.
#[test]
fn calls_outlive_the_last_server() {
    let queue = Queue::new();
    let dying = server(&queue, &["--drill", "slow=60s"]);
    let args = ["-v", "--retries", "99", "--timeout", "1s", "--in-flight", "2", "--queue"];
    let args = [&args[..], &[queue.name(), "fun", "1", "2", "3", "4"]].concat();
    let client = Process::spawn(&mut client_command(&broker(), &args));
    dying.await_stdout(" [.] fun(1)\n");
    drop(dying);
    client.await_stderr_times("attempt 2 of 100 failed: no answer within 1s: nobody consumes", 2);
    let _server = server(&queue, &[]);
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "100\n200\n300\n400\n"), "{ended:?}");
}

/// Those that are made again meanwhile come back, and fail. The others are made when there is a server.
#[test]
fn a_batch_outlives_a_queue_that_was_deleted() {
    let queue = Queue::new();
    let slow = server(&queue, &["--drill", "slow=60s"]);
    let args = ["-v", "--retries", "9", "--timeout", "5s", "--in-flight", "2", "--queue"];
    let args = [&args[..], &[queue.name(), "fun", "-"]].concat();
    let lines: String = (1..=20).map(|n| format!("{n}\n")).collect();
    let client = feed(&mut client_command(&broker(), &args), lines.into());
    client.await_stderr_times("rpc_client: publish to ", 2);
    drop(slow);
    Amqp::new().channel.queue_delete(queue.name(), QueueDeleteOptions::default()).unwrap();
    for call in ["line 1: fun(1)", "line 2: fun(2)"] {
        client.await_stderr(&format!("rpc_client: {call}: there is no queue "));
    }
    let _server = server(&queue, &[]);
    let ended = client.wait();
    let results: String = (3..=20).map(|n| format!("{}\n", n * 100)).collect();
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, results.as_str()), "{ended:?}");
}

#[test]
fn calls_outlive_a_broker_that_is_away_for_longer_than_their_time() {
    calls_outlive_a_broker_that(|| Action::End);
}

/// An attempt to connect takes the rest of the calls' time then, and more.
#[test]
fn calls_outlive_a_broker_that_is_frozen_for_longer_than_their_time() {
    calls_outlive_a_broker_that(|| Action::Stall);
}

/// What becomes of frames is as `away` has it, until each call has failed twice.
fn calls_outlive_a_broker_that(away: fn() -> Action) {
    let queue = Queue::new();
    let slow = server(&queue, &["--drill", "slow=60s"]);
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let args = ["-v", "--retries", "99", "--timeout", "2s", "--in-flight", "2", "--queue"];
    let args = [&args[..], &[queue.name(), "fun", "1", "2", "3"]].concat();
    let client = Process::spawn(&mut client_command(&proxy.url, &args));
    client.await_stderr_times("rpc_client: publish to ", 2);
    proxy.set(move |_| away());
    proxy.end_connections();
    client.await_stderr_times("attempt 2 of 100 failed: no answer within 2s: ", 2);
    drop(slow);
    let _server = server(&queue, &[]);
    proxy.set(|_| Action::Pass);
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "100\n200\n300\n"), "{ended:?}");
}

// A folder.

/// Servers are killed, connections cut, the client is stopped and killed. `scripts/chaos.sh` has 10,000 files.
#[test]
fn a_folder_is_whole_whatever_is_killed_meanwhile() {
    let number = |name, default| {
        let given = std::env::var(name).ok().filter(|value| !value.is_empty());
        given.map_or(default, |value| value.parse().unwrap())
    };
    let outcome = folder::drill(number("FOLDER_FILES", 240) as usize, number("FOLDER_SEED", 1));
    println!("{outcome}");
    assert!(outcome.is_good(), "{outcome}");
}

// What is told at the end.

/// By kinds, the most frequent first. JSON says of each which line it was.
#[test]
fn failures_are_summed_up_and_their_lines_told() {
    let queue = Queue::new();
    let _server = server(&queue, &["--max-n", "100"]);
    let client = |options: &[&str]| {
        let args = [&["--queue", queue.name()], options, &["fib", "10", "-"]].concat();
        feed(&mut client_command(&broker(), &args), b"x\n200\n20\n300\n".to_vec()).wait()
    };
    let ended = client(&["--format", "json"]);
    let summary = "rpc_client: 3 of 5 calls failed: 2 out-of-range, 1 invalid-argument\n";
    assert_eq!((ended.code(), ended.stderr.as_str()), (65, summary));
    let calls: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let lines: Vec<_> =
        calls.iter().map(|call| call.get("line").and_then(|line| line.as_u64())).collect();
    assert_eq!(lines, [None, Some(1), Some(2), Some(3), Some(4)]);
    assert!(
        client(&["--stats"])
            .stderr
            .contains(&format!("\n{summary}rpc_client: 5 calls, 3 failed, "))
    );
    assert!(!client(&["-q"]).stderr.contains(" of 5 "));
}
