//! Long batches for many servers: results as they come, calls that are made again, files in and out.

use crate::harness::*;
use amiquip::{AmqpProperties, Delivery};
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
    let answer = |channel: &amiquip::Channel, request: &Delivery| {
        if request.body == b"2" {
            reply(channel, request, b"", AmqpProperties::default());
        }
    };
    let failed = "rpc_client: fun(2): the reply is empty";
    let server = StubServer::start(&queue, 2, answer);
    let ended = queue.client(&["--unordered", "--timeout", "2s", "fun", "1", "2"]);
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
