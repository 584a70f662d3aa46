//! Messages made to bring a process down. The server answers or drops each, says which and why, and
//! serves the next call on the same connection; the client does the same with replies. And peers in
//! the broker's place, which break the rules of the protocol.

use crate::fake_broker::{
    CLOSE, Conversation, FakeBroker, OPEN_OK, QUEUE_DECLARE, deliver, header,
};
use crate::harness::raw::{
    CORRELATION_ID, HEADERS, REPLY_TO, frame, short_string, table, unreadable,
};
use crate::harness::*;
use amiquip::{AmqpProperties, AmqpValue, FieldTable, QueueDeclareOptions};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// How deep headers can be nested in a frame of the usual size.
const DEPTH: usize = 21_800;

/// A server on which `harm` was done serves the next call, on the same connection. Returns what it
/// said besides the transcript.
#[track_caller]
fn survives(harm: impl FnOnce(&str)) -> String {
    let queue = Queue::new();
    survives_at(&broker(), &queue, harm)
}

#[track_caller]
fn survives_at(url: &str, queue: &Queue, harm: impl FnOnce(&str)) -> String {
    let server = server_at(url, queue, &[]);
    harm(queue.name());
    let ended = queue.client(&["-q", "--wait", "--timeout", "10m", "fib", "30"]);
    ended.expect(0, "832040\n", "");
    queue.await_state((0, 1));
    server.signal("TERM");
    let ended = server.wait();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!(ended.stdout.matches("Awaiting RPC requests").count(), 1, "{ended:?}");
    ended.stderr
}

/// What a server says of a request that it cannot answer.
fn dropped(request: &str) -> String {
    format!(
        "rpc_server: {request} came without a readable reply_to or correlation_id: nobody to answer; dropped\n"
    )
}

#[test]
fn properties_that_are_not_utf8() {
    for (flags, properties) in unreadable() {
        let told = survives(|queue| raw::publish(&broker(), queue, flags, &properties, b"29"));
        assert_eq!(told, dropped("fib(29)"));
    }
}

/// What matters for the answer is readable.
#[test]
fn a_request_with_unreadable_properties_is_answered() {
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    let (flags, poison) = &unreadable()[0];
    let properties = [&poison[..], &short_string(reply_to.as_bytes())].concat();
    let told = survives(|queue| {
        raw::publish(&broker(), queue, flags | REPLY_TO, &properties, b"29");
        assert_eq!(amqp.next(&reply_to).body, b"514229");
    });
    assert_eq!(told, "");
}

/// Its answer would be nobody's.
#[test]
fn a_correlation_id_that_is_binary() {
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    let ids = [short_string(b"\xff\xfe"), short_string(reply_to.as_bytes())].concat();
    let flags = CORRELATION_ID | REPLY_TO;
    let told = survives(|queue| raw::publish(&broker(), queue, flags, &ids, b"29"));
    assert_eq!(told, dropped("fib(29)"));
    assert!(amqp.channel.basic_get(reply_to.as_str(), true).unwrap().is_none());
}

#[test]
fn many_unreadable_messages_among_good_ones() {
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    let properties = AmqpProperties::default().with_reply_to(reply_to.clone());
    let told = survives(|queue| {
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
    assert_eq!(told, dropped("fib()").repeat(5));
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

/// Queues of which a message cannot be fetched and forgotten (basic.get), other than by consuming it.
#[test]
fn unreadable_messages_in_queues_without_basic_get() {
    let text = |text: &str| AmqpValue::LongString(text.into());
    for (name, value) in
        [("x-single-active-consumer", AmqpValue::Boolean(true)), ("x-queue-type", text("stream"))]
    {
        let (queue, amqp) = (Queue::new(), Amqp::new());
        let arguments = FieldTable::from([(name.to_owned(), value)]);
        let options = QueueDeclareOptions { durable: true, arguments, ..Default::default() };
        amqp.channel.queue_declare(queue.name(), options).unwrap();
        let server = server(&queue, &[]);
        for (flags, properties) in unreadable() {
            raw::publish(&broker(), queue.name(), flags, &properties, b"29");
        }
        // Not by rpc_client: RabbitMQ says that a stream has no consumers.
        let reply_to = amqp.exclusive();
        let properties = AmqpProperties::default().with_reply_to(reply_to.clone());
        amqp.publish(queue.name(), b"30", properties);
        assert_eq!(amqp.next(&reply_to).body, b"832040");
        server.signal("TERM");
        let stdout = " [x] Awaiting RPC requests\n [.] fib(30)\n";
        server.wait().expect(0, stdout, &dropped("fib(29)").repeat(2));
    }
}

/// RabbitMQ 3.10 cuts the text of its refusal in the middle of a character.
#[test]
fn a_queue_with_a_long_name_that_is_not_ascii() {
    let name = "aé".repeat(85);
    let ended = client(&["--queue", &name, "fib", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    let told = format!("rpc_client: fib: there is no queue \"{name}\" on ");
    assert!(ended.stderr.starts_with(&told), "{ended:?}");
}

/// RabbitMQ passes on such headers in a frame that is larger than was agreed.
#[test]
fn headers_nested_deep_in_a_large_frame() {
    let node = Node::configured("frame_max = 2097152\n", &[]);
    let queue = Queue::at(&node.url);
    let amqp = Amqp::at(&node.url);
    let reply_to = amqp.exclusive();
    let properties = [&raw::nested(200_000)[..], &short_string(reply_to.as_bytes())].concat();
    let told = survives_at(&node.url, &queue, |queue| {
        raw::publish(&node.url, queue, HEADERS | REPLY_TO, &properties, b"29");
        assert_eq!(amqp.next(&reply_to).body, b"514229");
    });
    assert_eq!(told, "");
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
fn a_reply_to_that_is_binary() {
    let properties = short_string(b"\xff\xfe");
    let told = survives(|queue| raw::publish(&broker(), queue, REPLY_TO, &properties, b"29"));
    assert_eq!(told, dropped("fib(29)"));
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
    let node = Node::with_max_message_size(50);
    let queue = Queue::at(&node.url);
    let _server = server_at(&node.url, &queue, &[]);
    let args = ["--queue", queue.name(), "--wait", "fib", "10000", "30"];
    let ended = client_at(&node.url, &args);
    assert_eq!((ended.code(), ended.stdout.as_str()), (65, "832040\n"), "{ended:?}");
    let expected = "rpc_client: fib(10000): the result has 2090 bytes; the broker takes 50 (out-of-range)\n\
         rpc_client: 1 of 2 calls failed: 1 out-of-range\n";
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

/// It has no id that a call awaits.
#[test]
fn an_unreadable_reply() {
    let queue = Queue::new();
    let server = StubServer::start(&queue, 1, |channel, request| {
        let reply_to = request.properties.reply_to().clone().unwrap();
        for (flags, properties) in unreadable() {
            raw::publish(&broker(), &reply_to, flags, &properties, b"1");
        }
        let id = short_string(b"\xff");
        raw::publish(&broker(), &reply_to, CORRELATION_ID, &id, b"1");
        reply(channel, request, b"832040", AmqpProperties::default());
    });
    queue.client(&["--no-retry", "fib", "30"]).expect(0, "832040\n", "");
    server.join();
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

// Peers that break the rules. What they do is done to both programs.

/// Both programs, on a fake broker's connections.
struct Victims {
    broker: FakeBroker,
    programs: [Process; 2],
}

fn victims(
    script: impl Fn(&mut Conversation) -> io::Result<()> + Send + Sync + 'static,
) -> Victims {
    let broker = FakeBroker::start(script);
    let args = ["--connect-timeout", "5s"];
    let server = Process::spawn(&mut server_command(&broker.url, &args));
    let args = [&args[..], &["--wait", "--timeout", "60s", "fib", "30"]].concat();
    let client = Process::spawn(&mut client_command(&broker.url, &args));
    Victims { broker, programs: [server, client] }
}

impl Victims {
    /// Both say this of the broker, and have not taken much memory.
    #[track_caller]
    fn say(&self, text: &str) {
        let text = text.replace("BROKER", &shown(&self.broker.url));
        for program in &self.programs {
            program.await_stderr(&text);
            let peak = program.peak_memory();
            assert!(peak < 64, "{peak} MB");
        }
    }
}

/// The arguments of a connection.close that says "bye".
const BYE: &[u8] = &[1, 64, 3, b'b', b'y', b'e', 0, 0, 0, 0];

/// connection.start, with these tables and texts.
fn start(properties: &[u8]) -> Vec<u8> {
    let texts = [table(b"PLAIN"), table(b"en_US")].concat();
    [&[0, 10, 0, 10, 0, 9][..], properties, &texts].concat()
}

/// Sends the same so many times, unless nobody takes it any more.
fn flood(conversation: &mut Conversation, times: usize, bytes: &[u8]) -> io::Result<()> {
    let several = 1 + 100_000 / bytes.len();
    let bytes = bytes.repeat(several);
    (0..times).step_by(several).try_for_each(|_| conversation.send(&bytes))
}

#[test]
fn nested_properties_before_the_login() {
    // As many as fit into a frame: the login goes on.
    let victims = victims(|conversation| {
        conversation.greeted()?;
        conversation.send(&frame(1, 0, &start(&raw::nested(DEPTH))))?;
        conversation.expect([0, 10, 0, 11])?;
        conversation.tune(0)?;
        conversation.method(0, CLOSE, BYE)
    });
    victims.say("BROKER closed the connection: bye");
}

#[test]
fn a_frame_that_is_too_large() {
    let victims = victims(|conversation| {
        conversation.greeted()?;
        conversation.send(&frame(1, 0, &start(&raw::nested(200_000))))?;
        conversation.drain()
    });
    victims.say("no AMQP handshake with BROKER: it sent a frame of 1200030 bytes, where 131072 are the most; check host");
}

#[test]
fn a_frame_of_4_gb() {
    let victims = victims(|conversation| {
        conversation.start()?;
        conversation.send(&[1, 0, 0, 0xff, 0xff, 0xff, 0xff])?;
        flood(conversation, 1_000, &[0; 65_536])
    });
    victims.say("no AMQP handshake with BROKER: it sent a frame of 4294967303 bytes, where 131072 are the most; check host");
}

#[test]
fn a_body_that_is_too_large() {
    for size in [(512 << 20) + 1, 1 << 40, 1 << 62, u64::MAX] {
        let victims = victims(move |conversation| {
            conversation.log_in()?;
            let channel = conversation.serve_until_consume()?;
            conversation.send(&deliver(channel, 1))?;
            conversation.send(&header(channel, size, &[0, 0]))?;
            conversation.drain()
        });
        victims.say(&format!("the connection to BROKER was ended: it announced a body of {size} bytes, where 536870912 are the most"));
    }
}

/// Memory is taken for what has come, not for what is announced.
#[test]
fn a_body_that_never_comes() {
    let victims = victims(|conversation| {
        conversation.log_in()?;
        let channel = conversation.serve_until_consume()?;
        conversation.send(&deliver(channel, 1))?;
        conversation.send(&header(channel, 512 << 20, &[0, 0]))?;
        conversation.send(&frame(3, channel, b"not all of it"))?;
        conversation.method(0, CLOSE, BYE)?;
        conversation.drain()
    });
    victims.say("BROKER closed the connection: bye");
}

/// On the first connection, sends so many messages with these headers and a body of this size.
fn flooding(times: usize, headers: &[u8], size: usize) -> FakeBroker {
    let flags = (HEADERS | REPLY_TO).to_be_bytes();
    let properties = [&flags[..], headers, &short_string(b"r")].concat();
    let flooded = AtomicBool::new(false);
    FakeBroker::start(move |conversation| {
        if flooded.swap(true, Ordering::SeqCst) {
            return conversation.drain();
        }
        conversation.log_in()?;
        let channel = conversation.serve_until_consume()?;
        let header = header(channel, size as u64, &properties);
        let body = frame(3, channel, &vec![b'1'; size]);
        let body = if size > 0 { &body[..] } else { &[] };
        flood(conversation, times, &[&deliver(channel, 1)[..], &header, body].concat())?;
        conversation.method(0, CLOSE, BYE)?;
        conversation.drain()
    })
}

#[test]
fn floods_of_messages() {
    let empty = table(b"");
    // Small on the wire and large in memory.
    let voids = table(&[&b"\x01aA"[..], &table(&b"V".repeat(100_000))].concat());
    for (times, headers, size) in [(200_000, &empty, 0), (2_000, &empty, 100_000), (100, &voids, 0)]
    {
        // Takes one message, and no more.
        let broker = flooding(times, headers, size);
        let args = ["--drill", "slow=1h"];
        let server = Process::spawn(&mut server_command(&broker.url, &args));
        server.await_stderr("was ended: it sent more messages than were asked for, faster than they are taken; trying again");
        // Takes all that come.
        let broker = flooding(times, headers, size);
        let args = ["--timeout", "1h", "fib", "30"];
        let client = Process::spawn(&mut client_command(&broker.url, &args));
        client.await_stderr("; trying again");
        for program in [&server, &client] {
            let peak = program.peak_memory();
            assert!(peak < 64, "{peak} MB");
        }
    }
}

#[test]
fn floods_before_the_login() {
    let broker = FakeBroker::start(|conversation| {
        conversation.start()?;
        flood(conversation, usize::MAX, &frame(8, 0, &[]))
    });
    let args = ["--connect-timeout", "2s"];
    let server = Process::spawn(&mut server_command(&broker.url, &args));
    server.await_stderr("did not finish the handshake within 2s");
    let peak = server.peak_memory();
    assert!(peak < 64, "{peak} MB");
}

#[test]
fn frames_that_break_the_rules() {
    let cases: [(&[u8], &str); 6] = [
        (&[9, 0, 0, 0, 0, 0, 0, 0xce], "a frame of type 9, which AMQP does not have"),
        (&[8, 0, 0, 0, 0, 0, 0, 0xcd], "a frame that ends with 0xcd instead of 0xce"),
        (&[3, 0, 1, 0, 0, 0, 0, 0xce], "a body that belongs to no message"),
        (&[2, 0, 1, 0, 0, 0, 0, 0xce], "a content header that belongs to no message"),
        (
            &[1, 0, 1, 0, 0, 0, 4, 0, 60, 0, 40, 0xce],
            "method 40 of class 60, which no broker sends",
        ),
        (
            &[1, 0, 1, 0, 0, 0, 4, 0, 60, 0, 60, 0xce],
            "a basic.deliver whose arguments cannot be read",
        ),
    ];
    for (bytes, told) in cases {
        let victims = victims(|conversation| {
            conversation.log_in()?;
            conversation.serve_until_consume()?;
            conversation.send(bytes)?;
            conversation.drain()
        });
        victims.say(&format!("the connection to BROKER was ended: it sent {told}; trying again"));
    }
}

/// Every failure is followed by a pause, however fast it came.
#[test]
fn answers_that_cannot_be_read() {
    let opening = victims(|conversation| {
        conversation.start()?;
        conversation.tune(0)?;
        conversation.method(0, OPEN_OK, &[200])?;
        conversation.drain()
    });
    let declaring = victims(|conversation| {
        conversation.log_in()?;
        conversation.expect([0, 20, 0, 10])?;
        conversation.method(1, [0, 20, 0, 11], &table(b""))?;
        let (channel, _) = conversation.expect(QUEUE_DECLARE)?;
        conversation.method(channel, [0, 50, 0, 11], &[200])?;
        conversation.drain()
    });
    let before = [&opening, &declaring].map(|victims| victims.broker.connections());
    thread::sleep(Duration::from_secs(3));
    for (victims, before) in [&opening, &declaring].into_iter().zip(before) {
        // The client looks every 0.1 s, the server after a second and more.
        let connections = victims.broker.connections() - before;
        assert!((1..=40).contains(&connections), "{connections}");
    }
    opening.say("no AMQP handshake with BROKER: it sent a connection.open-ok whose arguments cannot be read; check host");
    declaring.say("the connection to BROKER was ended: it sent a queue.declare-ok whose arguments cannot be read");
}

/// The end of the handshake and the end of the connection, each in one segment with another frame.
#[test]
fn frames_that_come_together() {
    let victims = victims(|conversation| {
        conversation.start()?;
        conversation.tune(0)?;
        let heartbeat = frame(8, 0, &[]);
        let open_ok = frame(1, 0, &[&OPEN_OK[..], &[0]].concat());
        conversation.send(&[&open_ok[..], &heartbeat, &heartbeat].concat())?;
        conversation.serve_until_consume()?;
        let close = frame(1, 0, &[&CLOSE[..], BYE].concat());
        conversation.send(&[close, heartbeat].concat())?;
        conversation.drain()
    });
    victims.say("BROKER closed the connection: bye");
}
