//! What `rpc_server` does with requests that are none, with signals, and with a queue that is
//! there already. After each, it goes on serving, and the request queue is empty.

use crate::harness::*;
use amiquip::{AmqpProperties, AmqpValue, Delivery, FieldTable, QueueDeclareOptions};
use fib_rpc::protocol::Request;
use fib_rpc::terminal::text;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;
use uuid::Uuid;

/// What a server answers to a request with this body and these properties, besides a `reply_to`
/// and a `correlation_id`. Afterwards it must serve the next call, the queue be empty, and what it
/// said be the transcript, a line about an error, and nothing else.
#[track_caller]
fn answer(body: &[u8], properties: AmqpProperties) -> (String, Option<String>, Option<String>) {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    let properties = properties.with_reply_to(reply_to.clone()).with_correlation_id("7".into());
    // One that names no procedure means the first one.
    let shown = match properties.app_id() {
        Some(_) => properties.clone(),
        None => properties.clone().with_app_id("fib".into()),
    };
    let call = Request::decode(&shown, body).to_string();
    amqp.publish(queue.name(), body, properties.clone());
    let reply = amqp.next(&reply_to);
    assert_eq!(reply.properties.correlation_id().as_deref(), Some("7"));
    still_serves(&queue);
    server.signal("TERM");
    let call = text::one_line(&call);
    let stdout = format!(" [x] Awaiting RPC requests\n [.] {call}\n [.] fib(30)\n");
    let error =
        reply.properties.headers().as_ref().and_then(|headers| match headers.get("error") {
            Some(AmqpValue::LongString(kind)) => Some(kind.clone()),
            _ => None,
        });
    let stderr = error.as_ref().map(|kind| format!("rpc_server: {call}: {kind}, N ms\n"));
    server.wait().timeless().expect(0, &stdout, &stderr.unwrap_or_default());
    let text = String::from_utf8(reply.body).unwrap();
    (text, reply.properties.type_().clone(), error)
}

#[track_caller]
fn still_serves(queue: &Queue) {
    queue.client(&["fib", "30"]).expect(0, "832040\n", "");
    queue.await_state((0, 1));
}

#[track_caller]
fn is_error(answer: (String, Option<String>, Option<String>), kind: &str, sentence: &str) {
    let expected = (sentence.to_owned(), Some("error".to_owned()), Some(kind.to_owned()));
    assert_eq!(answer, expected);
}

fn named(procedure: &str) -> AmqpProperties {
    AmqpProperties::default().with_app_id(procedure.into())
}

#[test]
fn a_tutorial_clients_request_is_for_fib() {
    let (text, type_, error) = answer(b"30", AmqpProperties::default());
    assert_eq!((text.as_str(), type_.as_deref(), error), ("832040", Some("result"), None));
}

#[test]
fn a_body_that_is_no_number() {
    let sentence = "fib takes an integer in decimal digits, not \"abc\"";
    is_error(answer(b"abc", AmqpProperties::default()), "invalid-argument", sentence);
}

#[test]
fn an_empty_body() {
    let sentence = "fib takes an integer in decimal digits, not \"\"";
    is_error(answer(b"", AmqpProperties::default()), "invalid-argument", sentence);
}

#[test]
fn a_body_of_1_mb() {
    let sentence = format!("fib takes n from 0 to 1000000, not {}…", "9".repeat(64));
    let body = vec![b'9'; 1_000_000];
    is_error(answer(&body, AmqpProperties::default()), "out-of-range", &sentence);
}

#[test]
fn a_result_of_1_mb() {
    let body = vec![b'9'; 1_000_000];
    let (text, _, error) = answer(&body, named("fun"));
    assert!(text == "9".repeat(1_000_000) + "00");
    assert_eq!(error, None);
}

#[test]
fn a_body_that_is_not_utf8() {
    let sentence = "the argument of fib is not UTF-8 text";
    is_error(answer(b"caf\xe9", named("fib")), "invalid-argument", sentence);
}

#[test]
fn a_procedure_that_there_is_not() {
    let sentence = "there is no procedure \"\x1b[2J\"; there are a, b, fib, fun, list, ping";
    is_error(answer(b"", named("\x1b[2J")), "unknown-procedure", sentence);
}

#[test]
fn a_procedure_with_an_empty_name() {
    let sentence = "there is no procedure \"\"; there are a, b, fib, fun, list, ping";
    is_error(answer(b"", named("")), "unknown-procedure", sentence);
}

#[test]
fn headers_of_every_type() {
    let mut inner = FieldTable::new();
    inner.insert("k".into(), AmqpValue::Boolean(true));
    let values = [
        AmqpValue::Boolean(false),
        AmqpValue::ShortShortInt(-1),
        AmqpValue::ShortShortUInt(1),
        AmqpValue::ShortInt(-2),
        AmqpValue::ShortUInt(2),
        AmqpValue::LongInt(-3),
        AmqpValue::LongUInt(3),
        AmqpValue::LongLongInt(-4),
        AmqpValue::Float(0.5),
        AmqpValue::Double(0.25),
        AmqpValue::LongString("text".into()),
        AmqpValue::Timestamp(1_700_000_000),
        AmqpValue::ByteArray(vec![0, 159, 255]),
        AmqpValue::FieldArray(vec![AmqpValue::Void, AmqpValue::LongInt(5)]),
        AmqpValue::FieldTable(inner),
        AmqpValue::Void,
    ];
    let mut headers = FieldTable::new();
    for (index, value) in values.into_iter().enumerate() {
        headers.insert(format!("h{index}"), value);
    }
    let (text, ..) = answer(b"30", AmqpProperties::default().with_headers(headers));
    assert_eq!(text, "832040");
}

/// For requests whose answer, if one can come, is seen elsewhere: publishes one, and then lets the
/// server show that it still serves. Returns what the server said.
#[track_caller]
fn unanswered(publish: impl FnOnce(&Amqp, &str)) -> Ended {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    publish(&Amqp::new(), queue.name());
    still_serves(&queue);
    server.signal("TERM");
    server.wait()
}

#[test]
fn no_reply_to() {
    let ended = unanswered(|amqp, queue| amqp.publish(queue, b"30", AmqpProperties::default()));
    let stdout = " [x] Awaiting RPC requests\n [.] fib(30)\n";
    let stderr = "rpc_server: fib(30) came without a readable reply_to or correlation_id: nobody to answer; dropped\n";
    ended.expect(0, stdout, stderr);
}

#[test]
fn an_empty_reply_to() {
    let properties = AmqpProperties::default().with_reply_to(String::new());
    let ended = unanswered(|amqp, queue| amqp.publish(queue, b"29", properties));
    assert!(ended.stderr.contains("fib(29) came without a readable reply_to or"), "{ended:?}");
}

#[test]
fn no_correlation_id() {
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    let properties = AmqpProperties::default().with_reply_to(reply_to.clone());
    let ended = unanswered(|amqp, queue| amqp.publish(queue, b"29", properties));
    ended.expect(0, " [x] Awaiting RPC requests\n [.] fib(29)\n [.] fib(30)\n", "");
    let reply = amqp.next(&reply_to);
    assert_eq!((reply.body.as_slice(), reply.properties.correlation_id()), (&b"514229"[..], &None));
}

#[test]
fn a_reply_to_that_no_longer_exists() {
    let properties = AmqpProperties::default().with_reply_to("amq.gen-gone".into());
    let ended = unanswered(|amqp, queue| amqp.publish(queue, b"29", properties));
    let stdout = " [x] Awaiting RPC requests\n [.] fib(29)\n [.] fib(30)\n";
    ended.expect(0, stdout, "");
}

#[test]
fn a_reply_to_that_is_somebody_elses_exclusive_queue() {
    let owner = Amqp::new();
    let theirs = owner.exclusive();
    let properties = AmqpProperties::default().with_reply_to(theirs.clone());
    let ended = unanswered(|amqp, queue| amqp.publish(queue, b"29", properties));
    ended.expect(0, " [x] Awaiting RPC requests\n [.] fib(29)\n [.] fib(30)\n", "");
    assert_eq!(owner.next(&theirs).body, b"514229");
}

#[test]
fn a_reply_queue_name_of_255_bytes() {
    let amqp = Amqp::new();
    let name = "r".repeat(255);
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    amqp.channel.queue_declare(name.as_str(), options).unwrap();
    let properties = AmqpProperties::default().with_reply_to(name.clone());
    let ended = unanswered(|amqp, queue| amqp.publish(queue, b"29", properties));
    ended.expect(0, " [x] Awaiting RPC requests\n [.] fib(29)\n [.] fib(30)\n", "");
    assert_eq!(amqp.next(&name).body, b"514229");
}

/// In confirm mode, that is with several brokers: tried once more, then dropped.
#[test]
fn a_reply_that_the_broker_refuses() {
    let queue = Queue::new();
    let url = format!("{0},{0}", broker());
    let server = server_at(&url, &queue, &["-v"]);
    // A reply queue that is full, and says so.
    let full = Queue::new();
    let amqp = Amqp::new();
    amqp.declare_with_room(&full, 1);
    amqp.publish(full.name(), b"here already", AmqpProperties::default());
    full.await_state((1, 0));
    let properties = AmqpProperties::default().with_reply_to(full.name().into());
    amqp.publish(queue.name(), b"29", properties);
    server.await_stderr(", redelivered\n");
    still_serves(&queue);
    server.signal("TERM");
    let ended = server.wait();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert_eq!(ended.stdout.matches(" [.] fib(29)\n").count(), 2, "{ended:?}");
    assert_eq!(ended.stderr.matches("the broker refused the reply").count(), 1, "{ended:?}");
}

/// AMQP cannot carry such a name: it is cut to a length modulo 256, and what follows is read as
/// other properties. The broker ends the connection that sends it, and nothing reaches the queue.
#[test]
fn a_reply_queue_name_over_255_bytes() {
    let ended = unanswered(|amqp, queue| {
        let properties = AmqpProperties::default().with_reply_to("r".repeat(256 + 40));
        amqp.publish(queue, b"29", properties);
        let options = QueueDeclareOptions::default();
        assert!(amqp.channel.queue_declare("", options).is_err(), "the broker took it");
    });
    ended.expect(0, " [x] Awaiting RPC requests\n [.] fib(30)\n", "");
}

// The transcript is a terminal's: nothing in a message may move its cursor or fill it.

#[test]
fn the_transcript_shows_strange_bytes_escaped_and_cut() {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    let amqp = Amqp::new();
    let properties = AmqpProperties::default().with_reply_to(amqp.exclusive());
    let body = [b"\x1b[2J\n".as_slice(), &[b'x'; 1000]].concat();
    amqp.publish(queue.name(), &body, properties);
    let line = format!(" [.] fib(\\u{{1b}}[2J\\n{}…)\n", "x".repeat(59));
    server.await_stdout(&line);
}

// Signals.

#[test]
fn sigint_ends_an_idle_server_in_good_order() {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    server.signal("INT");
    server.wait().expect(0, " [x] Awaiting RPC requests\n", "");
}

/// The call in hand is answered, what was prefetched goes back to the queue.
#[test]
fn sigterm_during_a_call() {
    let queue = Queue::new();
    let server = server(&queue, &["--drill", "slow=5s", "--prefetch", "3"]);
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    let properties = AmqpProperties::default().with_reply_to(reply_to.clone());
    // The signal comes in the middle of the first.
    for n in ["42", "1", "2", "3", "4"] {
        amqp.publish(queue.name(), n.as_bytes(), properties.clone());
    }
    server.await_stdout(" [.] fib(42)\n");
    queue.await_state((2, 1));
    server.signal("TERM");
    let waits = "rpc_server: drill slow=5s: fib(42) waits\n";
    server.wait().expect(0, " [x] Awaiting RPC requests\n [.] fib(42)\n", waits);
    assert_eq!(amqp.next(&reply_to).body, b"267914296");
    queue.await_state((4, 0));
    let redelivered: Vec<(Vec<u8>, bool)> = (0..4)
        .map(|_| amqp.next(queue.name()))
        .map(|Delivery { body, redelivered, .. }| (body, redelivered))
        .collect();
    let bodies: Vec<&[u8]> = redelivered.iter().map(|(body, _)| body.as_slice()).collect();
    assert_eq!(bodies, [b"1", b"2", b"3", b"4"]);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for (signal, code) in [("INT", 130), ("TERM", 143)] {
        let queue = Queue::new();
        let server = server(&queue, &["-v", "--drill", "slow=1h"]);
        let amqp = Amqp::new();
        let properties = AmqpProperties::default().with_reply_to(amqp.exclusive());
        amqp.publish(queue.name(), b"93", properties);
        server.await_stdout(" [.] fib(93)\n");
        server.signal(signal);
        server.await_stderr("rpc_server: asked to stop: ");
        // Two that come together count as one.
        std::thread::sleep(Duration::from_millis(500));
        server.signal(signal);
        assert_eq!(server.wait().code(), code);
        queue.await_state((1, 0));
    }
}

/// As timeout(1) sends them: to its child, and to the group that the child is in.
#[test]
fn two_signals_together_are_one_request() {
    let queue = Queue::new();
    let server = server(&queue, &["--drill", "slow=500ms"]);
    let args = ["--queue", queue.name(), "fib", "30"];
    let waiting = Process::spawn(&mut client_command(&broker(), &args));
    let said = "rpc_server: drill slow=500ms: fib(30) waits\n";
    server.await_stderr(said);
    server.signal_both();
    server.wait().expect(0, " [x] Awaiting RPC requests\n [.] fib(30)\n", said);
    waiting.wait().expect(0, "832040\n", "");
}

// Workers.

/// With prefetch 1, as many calls are in hand as there are workers.
#[test]
fn each_worker_has_a_call_in_hand() {
    let queue = Queue::new();
    let server = server(&queue, &["--workers", "3", "--drill", "slow=1h"]);
    queue.await_state((0, 3));
    let amqp = Amqp::new();
    let properties = AmqpProperties::default().with_reply_to(amqp.exclusive());
    for n in [93, 92, 91, 90] {
        amqp.publish(queue.name(), n.to_string().as_bytes(), properties.clone());
    }
    for n in [93, 92, 91] {
        server.await_stdout(&format!(" [.] fib({n})\n"));
    }
    queue.await_state((1, 3));
}

/// Trying again would not help.
#[test]
fn more_workers_than_channels() {
    let queue = Queue::new();
    let url = format!("{}?channel_max=2", broker());
    let args = ["--queue", queue.name(), "--workers", "3"];
    let stderr = format!(
        "rpc_server: {} gives no more channels: see channel_max in the URI or on the broker (each of the server's --workers needs one)\n",
        shown(&url)
    );
    Process::spawn(&mut server_command(&url, &args)).wait().expect(78, "", &stderr);
}

#[test]
fn workers_stop_in_good_order() {
    let queue = Queue::new();
    let server = server(&queue, &["--workers", "2", "--drill", "slow=5s"]);
    let args = ["--queue", queue.name(), "--timeout", "10m", "--in-flight", "3", "fib"];
    let args = [&args[..], &["40", "41", "1"]].concat();
    let waiting = Process::spawn(&mut client_command(&broker(), &args));
    server.await_stdout(" [.] fib(40)\n");
    server.await_stdout(" [.] fib(41)\n");
    server.signal("TERM");
    let ended = server.wait();
    let waits = ["40", "41"].map(|n| format!("rpc_server: drill slow=5s: fib({n}) waits\n"));
    let others = waits.iter().fold(ended.stderr.clone(), |said, line| said.replacen(line, "", 1));
    assert_eq!((ended.code(), others.as_str()), (0, ""), "{ended:?}");
    assert!(!ended.stdout.contains("fib(1)"), "{ended:?}");
    // What it did not begin is for the next one.
    let _next = server_at(&broker(), &queue, &[]);
    waiting.wait().expect(0, "102334155\n165580141\n1\n", "");
}

// Queues that exist.

#[test]
fn a_queue_that_does_not_exist_is_created_durable() {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    // Declared in the same way it is accepted; in any other it is refused.
    let amqp = Amqp::new();
    amqp.declare(&queue);
    let transient = QueueDeclareOptions::default();
    assert!(amqp.channel.queue_declare(queue.name(), transient).is_err());
    server.signal("TERM");
    assert_eq!(server.wait().code(), 0);
    assert_eq!(queue.state(), Some((0, 0)));
}

#[test]
fn a_quorum_queue_is_created_on_demand() {
    let queue = Queue::new();
    let _server = server(&queue, &["--queue-type", "quorum"]);
    let amqp = Amqp::new();
    let mut arguments = FieldTable::new();
    arguments.insert("x-queue-type".into(), AmqpValue::LongString("quorum".into()));
    let options = QueueDeclareOptions { durable: true, arguments, ..Default::default() };
    amqp.channel.queue_declare(queue.name(), options).unwrap();
    still_serves(&queue);
}

#[test]
fn a_queue_that_exists_is_used_as_it_is() {
    for (key, value) in [
        ("x-queue-type", AmqpValue::LongString("quorum".into())),
        ("x-max-length", AmqpValue::LongInt(1_000)),
    ] {
        let queue = Queue::new();
        let amqp = Amqp::new();
        let mut arguments = FieldTable::new();
        arguments.insert(key.into(), value);
        let options = QueueDeclareOptions { durable: true, arguments, ..Default::default() };
        amqp.channel.queue_declare(queue.name(), options).unwrap();
        let _server = server(&queue, &["--queue-type", "classic"]);
        still_serves(&queue);
    }
}

#[test]
fn a_queue_that_another_connection_has_for_itself() {
    let amqp = Amqp::new();
    let theirs = amqp.exclusive();
    let said = format!(
        "the queue \"{theirs}\" on {} is another connection's alone; name another with --queue\n",
        shown(&broker())
    );
    let server = Process::spawn(&mut server_command(&broker(), &["--queue", &theirs]));
    server.wait().expect(69, "", &format!("rpc_server: {said}"));
    client(&["--queue", &theirs, "fib", "1"]).expect(69, "", &format!("rpc_client: fib: {said}"));
}

#[test]
fn a_deleted_queue_is_declared_again() {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    Amqp::new().channel.queue_delete(queue.name(), Default::default()).unwrap();
    server.await_stderr("rpc_server: connected to ");
    still_serves(&queue);
    server.signal("TERM");
    let (name, at) = (queue.name(), shown(&broker()));
    let stderr = format!(
        "rpc_server: the queue \"{name}\" is gone; trying again\n\
         rpc_server: connected to {at} again\n"
    );
    let stdout = " [x] Awaiting RPC requests\n".repeat(2) + " [.] fib(30)\n";
    server.wait().expect(0, &stdout, &stderr);
}

// Options.

#[test]
fn wrong_usage() {
    for (args, first_line) in [
        (
            &["--prefetch", "65536"][..],
            "rpc_server: invalid value '65536' for '--prefetch <N>': a whole number from 0 to 65535 is wanted",
        ),
        (
            &["--algorithm", "recursive", "--max-n", "94"],
            "rpc_server: --max-n 94 is too large for --algorithm recursive, which counts in 64 bits: at most 93",
        ),
        (&["extra"], "rpc_server: unexpected argument 'extra' found"),
    ] {
        let ended = Process::spawn(&mut server_command(&broker(), args)).wait();
        assert_eq!((ended.code(), ended.stdout.as_str()), (64, ""), "{ended:?}");
        assert_eq!(ended.stderr.lines().next(), Some(first_line));
    }
}

#[test]
fn quiet_shows_no_transcript() {
    let queue = Queue::new();
    let args = ["--queue", queue.name(), "-q"];
    let server = Process::spawn(&mut server_command(&broker(), &args));
    queue.client(&["-q", "--wait", "fib", "30"]).expect(0, "832040\n", "");
    server.signal("TERM");
    server.wait().expect(0, "", "");
}

/// systemd starts what depends on the server once it consumes (`Type=notify`).
#[test]
fn the_service_manager_is_told() {
    let path = std::env::temp_dir().join(format!("fib-rpc-notify-{}", Uuid::new_v4()));
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(PATIENCE)).unwrap();
    let told = || {
        let mut message = [0; 100];
        let length = manager.recv(&mut message).expect("a notification");
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    let queue = Queue::new();
    let mut command = server_command(&broker(), &["--queue", queue.name()]);
    let server = Process::spawn(command.env("NOTIFY_SOCKET", &path));
    assert_eq!(told(), "READY=1\n");
    queue.await_state((0, 1));
    server.signal("TERM");
    assert_eq!(told(), "STOPPING=1\n");
    assert_eq!(server.wait().code(), 0);
    std::fs::remove_file(path).unwrap();
}
