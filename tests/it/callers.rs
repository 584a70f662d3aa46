//! Callers that are gone: what is computed for them ends, what waits of theirs is dropped, and nobody else notices.

use crate::commands::{Caller, Folder, has_ended};
use crate::harness::*;
use crate::proxy::*;
use amiquip::{AmqpProperties, ConsumerMessage, ConsumerOptions, QueueDeclareOptions};
use std::fs;
use std::time::{Duration, Instant};

/// A program that takes an hour, and writes its process id. Only one that is told to, ends earlier.
const LONG: &str =
    "echo $$ >> \"$0/pids\"; read word; test $word != long || exec sleep 3600; echo $word";

/// One that goes on until there is a file `go`.
const UNTIL_GO: &str = "echo $$ >> \"$0/pids\"; until test -e \"$0/go\"; do sleep 0.05; done; cat";

const GONE: &str = ": nobody waits for it any more: ended after ";

/// What is told of each look, with `-vv`.
fn looks(server: &Process, told: &str) -> usize {
    server.stderr().matches(&format!(": {told}\n")).count()
}

fn replying_to(reply_to: &str) -> AmqpProperties {
    AmqpProperties::default().with_reply_to(reply_to.into())
}

/// In each way in which a client can be gone. With one worker, the next caller is served when the call has ended.
#[test]
fn a_program_ends_soon_after_its_client() {
    type Event = fn(&Process, &Proxy);
    let events: [(&str, Event); 3] = [
        ("SIGINT", |client, _| client.signal("INT")),
        ("SIGKILL", |client, _| client.signal("KILL")),
        ("a cut", |_, proxy| {
            proxy.set(|_| Action::End);
            proxy.end_connections();
        }),
    ];
    for (what, event) in events {
        let (queue, folder) = (Queue::new(), Folder::new());
        let server = server(&queue, &[&folder.procedure(LONG)]);
        let proxy = Proxy::start(&broker(), |_| Action::Pass);
        let args = ["--queue", queue.name(), "--no-retry", "--timeout", "1h", "p", "long"];
        let client = Process::spawn(&mut client_command(&proxy.url, &args));
        let pid = folder.await_pids(1)[0];
        event(&client, &proxy);
        server.await_stderr(&format!("rpc_server: p(long){GONE}"));
        assert!(has_ended(pid), "{what}");
        assert_ne!(client.wait().code(), 0, "{what}");

        queue.client(&["p", "next"]).expect(0, "next\n", "");
        queue.await_state((0, 1));
        let ended = server.stop();
        assert_eq!(ended.stderr.lines().count(), 1, "{what}: {ended:?}");
    }
}

/// What it began ends, and the rest is not begun, neither what waits in the queue nor what was prefetched.
#[test]
fn what_waits_of_a_caller_that_is_gone_is_dropped() {
    let cases: [(&[&str], usize); 3] = [
        (&["--workers", "3"], 3),
        (&["--prefetch", "8"], 1),
        (&["--workers", "2", "--prefetch", "0", "--confirm"], 2),
    ];
    for (args, begun) in cases {
        let (queue, folder) = (Queue::new(), Folder::new());
        let server = server(&queue, &[args, &[&folder.procedure(LONG)]].concat());
        let args = ["--queue", queue.name(), "--timeout", "1h", "--in-flight", "20"];
        let args = [&args[..], &["--repeat", "20", "p", "long"]].concat();
        let client = Process::spawn(&mut client_command(&broker(), &args));
        folder.await_pids(begun);
        client.signal("KILL");
        client.wait();

        let dropped = format!("{} requests were dropped\n", 20 - begun);
        server.await_stderr(&dropped);
        queue.client(&["p", "next"]).expect(0, "next\n", "");
        assert_eq!(folder.lines("pids").len(), begun + 1, "{args:?}");
        queue.await_state((0, begun as u32));
        let ended = server.stop();
        let others = match begun {
            1 => String::new(),
            2 => "1 more call was ended, ".into(),
            _ => format!("{} more calls were ended, ", begun - 1),
        };
        let [first, second] = ended.stderr.lines().collect::<Vec<_>>()[..] else {
            panic!("{ended:?}");
        };
        assert!(first.starts_with(&format!("rpc_server: p(long){GONE}")), "{ended:?}");
        assert!(second.starts_with("rpc_server: nobody waits at amq.gen-"), "{ended:?}");
        assert!(
            second.ends_with(&format!(" any more: {others}{}", dropped.trim_end())),
            "{ended:?}"
        );
    }
}

/// None of them takes as long as it takes until it is looked for their caller.
#[test]
fn a_batch_of_short_calls_ends_too() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let server = server(&queue, &[&folder.procedure("echo $$ >> \"$0/pids\"; sleep 0.1; cat")]);
    let args = ["--queue", queue.name(), "--in-flight", "1000", "--repeat", "1000", "p"];
    let client = Process::spawn(&mut client_command(&broker(), &args));
    folder.await_pids(3);
    client.signal("KILL");
    client.wait();
    server.await_stderr(" requests were dropped\n");
    queue.client(&["-q", "ping"]).expect(0, "pong\n", "");
    let begun = folder.lines("pids").len();
    assert!(begun < 500, "{begun} were begun");
    server.stop();
}

/// And a short call costs none.
#[test]
fn a_caller_is_looked_for_once_a_second_at_most() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let args = ["-vv", "--workers", "4", &folder.procedure(UNTIL_GO), "--procedure", "fib"];
    let server = server_at(&proxy.url, &queue, &args);
    let declared = proxy.passed(QUEUE_DECLARE);
    queue.client(&["-q", "fib", "10"]).expect(0, "55\n", "");

    let began = Instant::now();
    let args = ["--queue", queue.name(), "--timeout", "1h", "p", "a", "b", "c", "d"];
    let client = Process::spawn(&mut client_command(&broker(), &args));
    folder.await_pids(4);
    await_that("it is looked for them", || looks(&server, "There") >= 4);
    fs::write(folder.path("go"), "").unwrap();
    client.wait().expect(0, "a\nb\nc\nd\n", "");
    let looked = proxy.passed(QUEUE_DECLARE) - declared;
    let most = began.elapsed().as_secs() as usize;
    assert!((4..=most).contains(&looked), "{looked} looks in {most} s");
    assert_eq!(proxy.connections(), 1);
    server.stop();
}

/// A queue that is not its client's alone is there whether the client is or not, and gets its reply.
#[test]
fn a_durable_reply_queue_outlives_its_client() {
    let (queue, replies, folder) = (Queue::new(), Queue::new(), Folder::new());
    let server = server(&queue, &["-vv", &folder.procedure(UNTIL_GO)]);
    let client = Amqp::new();
    client.declare(&replies);
    client.publish(queue.name(), b"answered", replying_to(replies.name()));
    folder.await_pids(1);
    drop(client);
    await_that("it is looked for it", || looks(&server, "There") >= 3);
    fs::write(folder.path("go"), "").unwrap();
    assert_eq!(Amqp::new().next(replies.name()).body, b"answered");
    assert!(!server.stop().stderr.contains(GONE));
}

/// Of a name that a client chose, nobody knows who comes back with it.
#[test]
fn a_client_that_comes_back_with_the_same_reply_queue_is_served() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let replies = format!("{}-replies", queue.name());
    let server = server(&queue, &[&folder.procedure(LONG)]);
    let client = || {
        let amqp = Amqp::new();
        let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
        amqp.channel.queue_declare(&*replies, options).unwrap();
        amqp
    };
    let first = client();
    first.publish(queue.name(), b"long\n", replying_to(&replies));
    folder.await_pids(1);
    drop(first);
    server.await_stderr(GONE);
    let second = client();
    for _ in 0..3 {
        second.publish(queue.name(), b"served\n", replying_to(&replies));
        assert_eq!(second.next(&replies).body, b"served\n");
    }
    assert!(!server.stop().stderr.contains("dropped"));
}

/// Its new connection has a new reply queue. One worker computes: the old call ends, and the new one is answered.
#[test]
fn a_client_that_connects_again_has_its_old_call_ended() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "echo $$ >> \"$0/pids\"; test $(wc -l < \"$0/pids\") != 1 || exec sleep 3600; cat";
    let server = server(&queue, &[&folder.procedure(script)]);
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let args = ["-q", "--queue", queue.name(), "--timeout", "1h", "p", "again"];
    let client = Process::spawn(&mut client_command(&proxy.url, &args));
    folder.await_pids(1);
    proxy.end_connections();
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "again\n"), "{ended:?}");
    assert_eq!(folder.lines("pids").len(), 2);
    server.await_stderr(&format!("p(again){GONE}"));
    server.stop();
}

/// The other way of receiving replies. These names are not looked at on the connection that everything depends on.
#[test]
fn direct_reply_to_tells_of_callers_too() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let server = server_at(&proxy.url, &queue, &["-vv", &folder.procedure(UNTIL_GO)]);
    let declared = proxy.passed(QUEUE_DECLARE);
    for round in 1..=2 {
        let amqp = Amqp::new();
        let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
        let replies = amqp.channel.basic_consume("amq.rabbitmq.reply-to", no_ack).unwrap();
        amqp.publish(queue.name(), b"answered", replying_to("amq.rabbitmq.reply-to"));
        folder.await_pids(round);
        await_that("it is looked for it", || looks(&server, "There") >= 2 * round);
        assert_eq!(proxy.connections(), 2);
        if round == 2 {
            break;
        }
        fs::write(folder.path("go"), "").unwrap();
        match replies.receiver().recv_timeout(PATIENCE) {
            Ok(ConsumerMessage::Delivery(delivery)) => assert_eq!(delivery.body, b"answered"),
            other => panic!("{other:?}"),
        }
        fs::remove_file(folder.path("go")).unwrap();
    }
    server.await_stderr(GONE);
    assert!(has_ended(folder.await_pids(2)[1]));
    assert!(proxy.passed(QUEUE_DECLARE) - declared >= 5);
    server.stop();
}

/// Anybody can make a request with such a name. It costs no call, and another caller is looked for all the same.
#[test]
fn a_broken_direct_reply_to_does_not_cost_the_connection() {
    const BROKEN: &str = "amq.rabbitmq.reply-to.AAAA.x";
    let (queue, folder) = (Queue::new(), Folder::new());
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let args = ["-vv", "--workers", "2", &folder.procedure(LONG)];
    let server = server_at(&proxy.url, &queue, &args);
    Amqp::new().publish(queue.name(), b"long\n", replying_to(BROKEN));
    server.await_stderr("look for the caller at amq.rabbitmq");
    let other = Caller::new(&queue);
    other.send(b"long\n", AmqpProperties::default());
    await_that("it is looked for it", || looks(&server, "There") >= 3);

    // RabbitMQ 3.10 ends the connection, others say that there is no such queue.
    assert_eq!(looks(&server, "Deadly") + looks(&server, "Gone"), 1);
    assert_eq!(proxy.connections(), 2);
    assert!(!server.stderr().contains("again"));
    drop(other);
    server.await_stderr(GONE);
    server.signal("KILL");
}

/// As RabbitMQ does from 4.2.6 on, unless the server may read the queue. It is asked once, and told once.
#[test]
fn looks_that_are_refused_cost_no_more_than_one() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let proxy = Proxy::start(&broker(), |frame| match frame.payload {
        // The reply code (AMQP 0-9-1, channel.close): 405 becomes 403.
        [0, 20, 0, 40, 1, 0x95, rest @ ..] => {
            Action::Replace([&[0, 20, 0, 40, 1, 0x93], rest].concat())
        }
        _ => Action::Pass,
    });
    let args = ["-v", "--workers", "2", &folder.procedure(UNTIL_GO)];
    let server = server_at(&proxy.url, &queue, &args);
    let declared = proxy.passed(QUEUE_DECLARE);
    let first = Caller::new(&queue);
    first.send(b"first", AmqpProperties::default());
    let told = "calls go on when their callers are gone, which the server may not see: ";
    server.await_stderr(told);
    let second = Caller::new(&queue);
    second.send(b"second", AmqpProperties::default());
    folder.await_pids(2);
    drop(first);
    // Where it is looked for a caller, that would be in this time.
    std::thread::sleep(Duration::from_secs(3));
    fs::write(folder.path("go"), "").unwrap();
    assert_eq!(second.receive().unwrap(), b"second");
    assert_eq!(proxy.passed(QUEUE_DECLARE) - declared, 1);
    let ended = server.stop();
    assert_eq!(ended.stderr.matches(told).count(), 1, "{ended:?}");
    assert!(!ended.stderr.contains(GONE), "{ended:?}");
}

/// A server with fewer channels than it takes serves all the same, and says what it goes without.
#[test]
fn a_connection_without_a_channel_for_looks() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let url = format!("{}?channel_max=2", broker());
    let args = ["-v", "--workers", "2", &folder.procedure(UNTIL_GO)];
    let server = server_at(&url, &queue, &args);
    let caller = Caller::new(&queue);
    for argument in [b"one", b"two"] {
        caller.send(argument, AmqpProperties::default());
    }
    folder.await_pids(2);
    let told = "calls go on when their callers are gone, which the server may not see: ";
    server.await_stderr(told);
    std::thread::sleep(Duration::from_secs(2));
    fs::write(folder.path("go"), "").unwrap();
    caller.receive().unwrap();
    caller.receive().unwrap();
    let ended = server.stop();
    assert_eq!(ended.stderr.matches(told).count(), 1, "{ended:?}");
    assert!(ended.stderr.contains("gives no more channels: see channel_max"), "{ended:?}");
}

/// It would have waited an hour for its call.
#[test]
fn a_server_that_stops_does_not_wait_for_a_caller_that_is_gone() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let server = server(&queue, &["-v", &folder.procedure(LONG)]);
    let caller = Caller::new(&queue);
    caller.send(b"long\n", AmqpProperties::default());
    folder.await_pids(1);
    server.signal("TERM");
    server.await_stderr("asked to stop");
    drop(caller);
    let ended = server.wait();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.stderr.contains(GONE), "{ended:?}");
    queue.await_state((0, 0));
}
