//! Replies that the broker answers by closing the connection, or the channel: whoever made the
//! request chose where its reply goes. The request comes again, to this server or to another one;
//! it must cost nobody else an answer.

use crate::harness::*;
use crate::proxy::{Action, BASIC_PUBLISH, Frame, Proxy};
use amiquip::{AmqpProperties, ConsumerMessage, ConsumerOptions, QueueDeclareOptions};
use std::collections::HashSet;
use std::time::Instant;

/// RabbitMQ 3.10 fails to decode what follows the prefix of direct reply-to, and closes the
/// connection (541, INTERNAL_ERROR). Later ones take no notice of it.
const BROKEN: &str = "amq.rabbitmq.reply-to.AAAA.x";

/// A name at whose sight the proxy ends the connection, whatever RabbitMQ's version.
const DEADLY: &str = "deadly";

/// Whether the shared broker closes the connection over a reply to `BROKEN`.
fn broken_names_kill() -> bool {
    let amqp = Amqp::new();
    amqp.publish(BROKEN, b"", AmqpProperties::default());
    amqp.channel.queue_declare("", QueueDeclareOptions::default()).is_err()
}

/// Ends each connection on which something is about to be published to `DEADLY`.
fn deadly(frame: &Frame<'_>) -> Action {
    let is_deadly = frame.method == BASIC_PUBLISH
        && frame.payload.windows(DEADLY.len()).any(|name| name == DEADLY.as_bytes());
    if is_deadly { Action::End } else { Action::Pass }
}

fn replying_to(reply_to: &str) -> AmqpProperties {
    AmqpProperties::default().with_reply_to(reply_to.into())
}

/// Waits until one of the servers has said that it dropped fib(29).
#[track_caller]
fn await_dropped(servers: &[Process]) {
    await_that("fib(29) was dropped", || servers.iter().any(|server| drops(&server.stderr()) > 0));
}

/// How many lines tell that fib(29) was dropped.
fn drops(stderr: &str) -> usize {
    stderr.lines().filter(|line| line.contains("fib(29)") && line.contains("dropped")).count()
}

/// Ends servers that have all got their fib(29) behind them: it was told as dropped once if it
/// `kills`, no other request was, and it was not computed again and again.
#[track_caller]
fn end(servers: Vec<Process>, kills: bool) {
    let (mut dropped, mut other_drops, mut computed) = (0, 0, 0);
    for server in servers {
        server.signal("TERM");
        let ended = server.wait();
        assert_eq!(ended.code(), 0, "{ended:?}");
        dropped += drops(&ended.stderr);
        other_drops += ended.stderr.matches("dropped").count() - drops(&ended.stderr);
        computed += ended.stdout.matches(" [.] fib(29)\n").count();
    }
    assert_eq!((dropped, other_drops), (usize::from(kills), 0));
    assert!(computed <= 4, "fib(29) was computed {computed} times");
}

/// Servers on which one such request was made serve the next call, and are rid of it.
#[track_caller]
fn go_on_serving(url: &str, servers: u32, reply_to: &str, kills: bool) {
    let queue = Queue::new();
    let processes: Vec<Process> = (0..servers).map(|_| server_at(url, &queue, &[])).collect();
    Amqp::new().publish(queue.name(), b"29", replying_to(reply_to));
    if kills {
        await_dropped(&processes);
    }
    queue.client(&["-q", "--wait", "fib", "30"]).expect(0, "832040\n", "");
    queue.await_state((0, servers));
    end(processes, kills);
    assert_eq!(queue.state(), Some((0, 0)), "it is still there");
}

#[test]
fn a_broken_direct_reply_to_and_one_server() {
    go_on_serving(&broker(), 1, BROKEN, broken_names_kill());
}

#[test]
fn a_broken_direct_reply_to_and_two_servers() {
    go_on_serving(&broker(), 2, BROKEN, broken_names_kill());
}

/// In confirm mode, that is with several brokers.
#[test]
fn a_broken_direct_reply_to_and_confirms() {
    go_on_serving(&format!("{0},{0}", broker()), 2, BROKEN, broken_names_kill());
}

/// Whatever the reason is: here the connection ends without a word.
#[test]
fn a_reply_that_ends_the_connection_without_a_word() {
    let proxy = Proxy::start(&broker(), deadly);
    for servers in [1, 2] {
        go_on_serving(&proxy.url, servers, DEADLY, true);
    }
}

/// No other request is dropped with it, though many are redelivered with it, and computed beside it.
#[test]
fn a_deadly_reply_among_good_ones() {
    let proxy = Proxy::start(&broker(), deadly);
    for (url, reply_to, kills) in [
        (broker(), BROKEN, broken_names_kill()),
        (proxy.url.clone(), DEADLY, true),
        // With confirms, more than one reply can be under way.
        (format!("{0},{0}", proxy.url), DEADLY, true),
    ] {
        let queue = Queue::new();
        let args = ["--prefetch", "10", "--workers", "2", "--drill", "slow=20ms"];
        let servers = vec![server_at(&url, &queue, &args), server_at(&url, &queue, &args)];
        queue.await_state((0, 4));
        let amqp = Amqp::new();
        let answers = amqp.exclusive();
        for n in 0..80 {
            let good = replying_to(&answers).with_correlation_id(n.to_string());
            amqp.publish(queue.name(), b"30", good);
            if n == 20 {
                amqp.publish(queue.name(), b"29", replying_to(reply_to));
            }
        }
        if kills {
            await_dropped(&servers);
        }
        let started = Instant::now();
        let mut unanswered: HashSet<String> = (0..80).map(|n| n.to_string()).collect();
        while !unanswered.is_empty() {
            assert!(started.elapsed() < PATIENCE, "no answer to {unanswered:?}");
            // One that was computed when its connection went may be answered a second time.
            unanswered.remove(amqp.next(&answers).properties.correlation_id().as_ref().unwrap());
        }
        queue.await_state((0, 4));
        end(servers, kills);
    }
}

/// It was not the reply that ended it.
#[test]
fn a_connection_for_replies_that_is_closed_between_two_of_them() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let args = ["--prefetch", "10", "--drill", "crash-before-reply"];
    let doomed = server_at(&node.url, &queue, &args);
    let args = ["--queue", queue.name(), "--timeout", "10m", "--in-flight", "2", "fib", "20", "21"];
    let client = Process::spawn(&mut client_command(&node.url, &args));
    doomed.wait();
    queue.await_state((2, 0));
    let server = server_at(&node.url, &queue, &["--drill", "slow=10s"]);
    client.await_stdout("6765\n");
    let connections = node.ctl(&["-q", "list_connections", "connected_at", "pid"]);
    let connections = connections.lines().filter_map(|line| line.split_once('\t'));
    let (_, youngest) = connections.filter(|(at, _)| at.parse::<u64>().is_ok()).max().unwrap();
    node.ctl(&["close_connection", youngest, "maintenance"]);
    client.wait().expect(0, "6765\n10946\n", "");
    server.signal("TERM");
    assert!(!server.wait().stderr.contains("dropped"));
}

/// The tutorial's other way of receiving replies, of which the names have the same prefix; also
/// when the request comes a second time, and with a deadly one before it.
#[test]
fn direct_reply_to_works() {
    let queue = Queue::new();
    let amqp = Amqp::new();
    amqp.declare(&queue);
    let no_ack = ConsumerOptions { no_ack: true, ..Default::default() };
    let replies = amqp.channel.basic_consume("amq.rabbitmq.reply-to", no_ack).unwrap();
    let answer = || match replies.receiver().recv_timeout(PATIENCE) {
        Ok(ConsumerMessage::Delivery(delivery)) => delivery,
        other => panic!("{other:?}"),
    };
    let request = |body: &[u8]| {
        amqp.publish(queue.name(), body, replying_to("amq.rabbitmq.reply-to"));
    };
    amqp.publish(queue.name(), b"29", replying_to(BROKEN));
    request(b"30");
    queue.await_state((2, 0));
    // Both have been at a server before, which died.
    let dying = Amqp::new();
    for _ in 0..2 {
        dying.channel.basic_get(queue.name(), false).unwrap().unwrap();
    }
    drop(dying);
    queue.await_state((2, 0));
    let kills = broken_names_kill();
    let servers = vec![server(&queue, &[])];
    assert_eq!(answer().body, b"832040");
    if kills {
        await_dropped(&servers);
    }
    request(b"10");
    assert_eq!(answer().body, b"55");
    queue.await_state((0, 1));
    end(servers, kills);
}

/// A server that may publish nothing: the channel alone is closed (403).
#[test]
fn a_reply_that_is_refused_with_the_channel() {
    let node = Node::start();
    node.add_user("server");
    let grant = |write| node.set_permissions("server", [".*", write, ".*"]);
    grant(".*");
    let url = node.url.replace("amqp://", "amqp://server:s3cret@");
    let queue = Queue::at(&node.url);
    let servers = vec![server_at(&url, &queue, &[])];
    grant("^$");
    Amqp::at(&node.url).publish(queue.name(), b"29", replying_to("amq.gen-nobodys"));
    await_dropped(&servers);
    grant(".*");
    queue.client(&["-q", "--wait", "fib", "30"]).expect(0, "832040\n", "");
    queue.await_state((0, 1));
    end(servers, true);
}

/// A reply of which only the second server learns that it kills: the first one is dead by then.
#[test]
fn a_deadly_reply_is_dropped_by_a_server_that_is_started_after_it() {
    let proxy = Proxy::start(&broker(), deadly);
    let queue = Queue::new();
    let first = server_at(&proxy.url, &queue, &[]);
    Amqp::new().publish(queue.name(), b"29", replying_to(DEADLY));
    first.await_stdout(" [.] fib(29)\n");
    first.signal("KILL");
    first.wait();
    let servers = vec![server_at(&proxy.url, &queue, &[])];
    await_dropped(&servers);
    queue.client(&["-q", "--wait", "fib", "30"]).expect(0, "832040\n", "");
    end(servers, true);
}
