//! Messages made to bring a process down. The server answers or discards each, says which and
//! why, and serves the next call; the client does the same with replies.

use crate::harness::raw::{HEADERS, REPLY_TO, short_string, table, unreadable};
use crate::harness::*;
use amiquip::AmqpProperties;

/// How deep headers are nested that a debug build survives; a release build takes all that fit
/// into a frame.
const DEPTH: usize = if cfg!(debug_assertions) { 12_000 } else { 21_800 };

/// A server on which `harm` was done serves the next call. Returns what it said.
#[track_caller]
fn survives(harm: impl FnOnce(&str)) -> Ended {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    harm(queue.name());
    let ended = queue.client(&["-q", "--wait", "--timeout", "2m", "fib", "30"]);
    ended.expect(0, "832040\n", "");
    queue.await_state((0, 1));
    server.signal("TERM");
    let ended = server.wait();
    assert_eq!(ended.code(), 0, "{ended:?}");
    ended
}

#[test]
fn properties_that_are_not_utf8() {
    for (flags, properties) in unreadable() {
        let ended = survives(|queue| raw::publish(&broker(), queue, flags, &properties, b"29"));
        assert!(ended.stderr.contains("rpc_server: discarded a message from test-"), "{ended:?}");
        assert!(ended.stderr.contains("its properties are not UTF-8"), "{ended:?}");
    }
}

#[test]
fn many_unreadable_messages_among_good_ones() {
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    let properties = AmqpProperties::default().with_reply_to(reply_to.clone());
    let ended = survives(|queue| {
        for n in 0..5 {
            let (flags, poison) = &unreadable()[n % 2];
            raw::publish(&broker(), queue, *flags, poison, b"");
            amqp.publish(queue, n.to_string().as_bytes(), properties.clone());
        }
        // Every good one is answered, and once.
        let mut answers: Vec<_> = (0..5).map(|_| amqp.next(&reply_to).body).collect();
        answers.sort();
        assert_eq!(answers, [b"0", b"1", b"1", b"2", b"3"]);
    });
    assert_eq!(ended.stderr.matches("discarded a message").count(), 5, "{ended:?}");
}

#[test]
fn an_unreadable_message_and_two_servers() {
    let queue = Queue::new();
    let _servers = [0, 1].map(|_| server(&queue, &["--prefetch", "10"]));
    for (flags, properties) in unreadable() {
        raw::publish(&broker(), queue.name(), flags, &properties, b"");
    }
    let arguments: Vec<String> = (0..50).map(|n| n.to_string()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ended = queue.client(&[&["-q", "--wait", "fib"], &arguments[..]].concat());
    assert_eq!((ended.code(), ended.stdout.lines().count()), (0, 50), "{ended:?}");
    queue.await_state((0, 2));
}

#[test]
fn headers_nested_deep() {
    survives(|queue| raw::publish(&broker(), queue, HEADERS, &raw::nested(DEPTH), b"29"));
}

#[test]
fn headers_of_100_kb() {
    let value = [b"\x01kS".as_slice(), &table(&vec![b'v'; 100_000])].concat();
    survives(|queue| raw::publish(&broker(), queue, HEADERS, &table(&value), b"29"));
}

#[test]
fn ids_that_are_binary() {
    let properties = short_string(b"\xff\xfe");
    let ended = survives(|queue| raw::publish(&broker(), queue, REPLY_TO, &properties, b"29"));
    assert!(ended.stderr.contains("fib(29) came without a readable reply_to"), "{ended:?}");
}

#[test]
fn a_body_as_large_as_a_broker_takes() {
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    let properties =
        AmqpProperties::default().with_app_id("fun".into()).with_reply_to(reply_to.clone());
    survives(|queue| amqp.publish(queue, &vec![b'7'; 16 << 20], properties));
    let reply = amqp.next(&reply_to);
    let sentence = "the result has 16777218 bytes; the broker takes 16777216";
    assert_eq!(String::from_utf8_lossy(&reply.body), sentence);
}

/// A broker that takes less than its own default closes the channel for such a reply; the request
/// comes again, and again.
#[test]
fn a_reply_larger_than_the_broker_takes() {
    let node = Node::configured("max_message_size = 50\n", &[]);
    let queue = Queue::at(&node.url);
    let _server = server_at(&node.url, &queue, &[]);
    let args = ["--queue", queue.name(), "--wait", "fib", "10000", "30"];
    let ended = client_at(&node.url, &args);
    assert_eq!((ended.code(), ended.stdout.as_str()), (65, "832040\n"), "{ended:?}");
    let expected =
        "rpc_client: fib(10000): the result has 2090 bytes; the broker takes 50 (out-of-range)\n";
    assert!(ended.stderr.ends_with(expected), "{ended:?}");
    // An error's sentence that is too long itself.
    let args = ["--queue", queue.name(), "--wait", "nosuch"];
    let expected = "rpc_client: nosuch(): there is no procedure \"nosuch\"; there are a, b, fi (unknown-procedure)\n";
    client_at(&node.url, &args).expect(65, "", expected);
    // A request costs no other call anything.
    let (large, name) = ("1".repeat(51), queue.name());
    let args = ["--queue", name, "--wait", "--format", "json", "fun", "1", &large, "2", &large];
    let ended = client_at(&node.url, &args);
    let results: Vec<_> = ended.stdout.lines().map(|line| line.contains("\"ok\":true")).collect();
    assert_eq!((ended.code(), results), (65, vec![true, false, true, false]), "{ended:?}");
    assert_eq!(ended.stdout.matches("\"too-large\"").count(), 2, "{ended:?}");
}

// Replies that reach the client.

#[test]
fn an_unreadable_reply() {
    let queue = Queue::new();
    let mut poisons = unreadable().into_iter();
    let server = StubServer::start(&queue, 3, move |channel, request| match poisons.next() {
        Some((flags, properties)) => {
            let reply_to = request.properties.reply_to().clone().unwrap();
            raw::publish(&broker(), &reply_to, flags, &properties, b"");
        }
        None => reply(channel, request, b"832040", AmqpProperties::default()),
    });
    let ended = queue.client(&["fib", "30"]);
    server.join();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "832040\n"), "{ended:?}");
    let expected = "sent a message that the client library cannot read; trying again\n";
    assert_eq!(ended.stderr.matches(expected).count(), 1, "{ended:?}");
}

#[test]
fn an_unreadable_reply_without_retry() {
    let queue = Queue::new();
    let server = StubServer::start(&queue, 1, move |_, request| {
        let (flags, properties) = &unreadable()[0];
        let reply_to = request.properties.reply_to().clone().unwrap();
        raw::publish(&broker(), &reply_to, *flags, properties, b"");
    });
    let ended = queue.client(&["--no-retry", "fib", "30"]);
    server.join();
    let stderr = format!(
        "rpc_client: fib(30): {} sent a message that the client library cannot read\n",
        shown(&broker())
    );
    ended.expect(76, "", &stderr);
}

#[test]
fn a_reply_with_headers_nested_deep() {
    let queue = Queue::new();
    let server = StubServer::start(&queue, 1, |channel, request| {
        let reply_to = request.properties.reply_to().clone().unwrap();
        raw::publish(&broker(), &reply_to, HEADERS, &raw::nested(DEPTH), b"1");
        reply(channel, request, b"832040", AmqpProperties::default());
    });
    queue.client(&["fib", "30"]).expect(0, "832040\n", "");
    server.join();
}
