//! `rpc_server --at-most-once`: no call runs twice, whatever dies in the middle of it, and none that is begun ends with its
//! connection.

use crate::commands::{Caller, Folder, has_ended};
use crate::effects::{Promise, provoke};
use crate::harness::*;
use crate::proxy::{Action, CHANNEL_CLOSE_OK, Proxy};
use amiquip::{AmqpProperties, ConsumerOptions, QueueDeclareOptions};
use std::fs;
use std::thread;

/// The option for a procedure `p` that notes its argument in `runs`, and ends when `go` is there, or at once where the
/// argument is `short`.
fn noting(folder: &Folder) -> String {
    folder.procedure(
        "read n; echo $n >>$0/runs; [ $n = short ] || until [ -e $0/go ]; do sleep 0.05; done; echo $n done",
    )
}

fn server_once(url: &str, queue: &Queue, folder: &Folder) -> Process {
    server_at(url, queue, &["--at-most-once", &noting(folder)])
}

#[track_caller]
fn await_runs(folder: &Folder, runs: &[&str]) {
    await_that("the runs are noted", || folder.lines("runs") == runs);
}

fn go(folder: &Folder) {
    fs::write(folder.path("go"), "").unwrap();
}

fn spawn_client(url: &str, queue: &Queue, args: &[&str]) -> Process {
    let args = [&["-q", "--queue", queue.name()], args].concat();
    Process::spawn(&mut client_command(url, &args))
}

/// A request that somebody had, and gave back by going.
fn make_redelivered(queue: &Queue) -> Process {
    let mut amqp = Amqp::new();
    amqp.declare(queue);
    let consumer = amqp.channel.basic_consume(queue.name(), ConsumerOptions::default()).unwrap();
    let client = spawn_client(&broker(), queue, &["--timeout", "10m", "p", "short"]);
    consumer.receiver().recv_timeout(PATIENCE).unwrap();
    amqp.session.close();
    client
}

#[test]
fn the_same_crash_one_computed_twice_one_not_at_all() {
    for (option, runs) in [("--at-most-once", 1), ("--prefetch=1", 2)] {
        let (queue, folder) = (Queue::new(), Folder::new());
        let crashing = server(&queue, &[option, &noting(&folder)]);
        let caller = Caller::new(&queue);
        caller.send(b"long", AmqpProperties::default().with_app_id("p".into()));
        await_runs(&folder, &["long"]);
        crashing.signal("KILL");
        crashing.wait();
        go(&folder);
        // What comes back is there before this, and comes first.
        let second = server(&queue, &[option, &noting(&folder)]);
        queue.client(&["-q", "p", "short"]).expect(0, "short done\n", "");
        let begun = folder.lines("runs").iter().filter(|run| *run == "long").count();
        assert_eq!(begun, runs, "{option}");
        // It was acked: it does not even come again.
        assert!(!second.stop().stderr.contains("redelivered"), "{option}");
    }
}

#[test]
fn a_request_that_comes_redelivered_is_not_called() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let client = make_redelivered(&queue);
    let server = server_once(&broker(), &queue, &folder);
    let stderr = "rpc_client: p(short): p may have run already: its request was delivered before, to a server that was \
                  lost; this one has --at-most-once and does not run it again, so that only the caller can decide to \
                  (redelivered)\n";
    client.wait().expect(75, "", stderr);
    assert!(folder.lines("runs").is_empty());
    server.await_stderr(
        "p(short) came redelivered, and is not called: it may have been called before\n",
    );
    queue.client(&["-q", "p", "short"]).expect(0, "short done\n", "");
    server.stop();
}

/// It would sit there for as long as the call takes, while others have nothing to do.
#[test]
fn nothing_waits_in_a_server_that_computes() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let busy = server_once(&broker(), &queue, &folder);
    let long = spawn_client(&broker(), &queue, &["--timeout", "10m", "p", "long"]);
    await_runs(&folder, &["long"]);
    // Its only server is no consumer of the queue now. It is there all the same, and needs no --wait.
    let next = spawn_client(&broker(), &queue, &["--timeout", "10m", "p", "short"]);
    queue.await_state((1, 0));
    let idle = server_once(&broker(), &queue, &folder);
    next.wait().expect(0, "short done\n", "");
    assert_eq!(folder.lines("runs"), ["long", "short"]);
    go(&folder);
    long.wait().expect(0, "long done\n", "");
    queue.await_state((0, 2));
    busy.stop();
    idle.stop();
    queue.client(&["-q", "p", "short"]).expect(
        69,
        "",
        &format!(
            "rpc_client: p: nobody consumes from the queue \"{}\" on {}, where 0 requests wait; start rpc_server \
             (--wait waits for it); a stream cannot be a request queue\n",
            queue.name(),
            shown(&broker())
        ),
    );
}

#[test]
fn a_call_has_no_consumer_timeout() {
    let node = Node::with_consumer_timeout(2000);
    let (queue, folder) = (Queue::at(&node.url), Folder::new());
    // One whose program takes longer, and one without the option, as a clock: its channel is closed.
    let server = server_once(&node.url, &queue, &folder);
    let long = spawn_client(&node.url, &queue, &["--timeout", "10m", "p", "long"]);
    await_runs(&folder, &["long"]);
    let other = Queue::at(&node.url);
    let clock = server_at(&node.url, &other, &["--procedure=p=sleep 3600"]);
    let _late = spawn_client(&node.url, &other, &["--timeout", "10m", "p"]);
    clock.await_stderr("is given up with its channel");
    go(&folder);
    long.wait().expect(0, "long done\n", "");
    assert_eq!(folder.lines("runs"), ["long"]);
    assert_eq!(server.stop().stderr, "");
}

#[test]
fn a_call_goes_on_when_its_connection_is_lost() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let server = server_once(&proxy.url, &queue, &folder);
    let client = spawn_client(&broker(), &queue, &["--timeout", "10m", "--no-retry", "p", "long"]);
    await_runs(&folder, &["long"]);
    proxy.end_connections();
    server.await_stderr("was lost");
    go(&folder);
    client.wait().expect(0, "long done\n", "");
    server.await_stderr("p(long) has lost its connection: its reply goes out by another one\n");
    // Its worker is free again.
    queue.client(&["-q", "--wait", "p", "short"]).expect(0, "short done\n", "");
    assert_eq!(folder.lines("runs"), ["long", "short"]);
    server.stop();
}

/// The reply finds a queue that outlives its broker.
#[test]
fn a_call_goes_on_when_its_broker_dies() {
    let node = Node::start();
    let (queue, folder) = (Queue::at(&node.url), Folder::new());
    let server = server_once(&node.url, &queue, &folder);
    let replies = format!("{}.replies", queue.name());
    let amqp = Amqp::at(&node.url);
    let options = QueueDeclareOptions { durable: true, ..Default::default() };
    amqp.channel.queue_declare(replies.as_str(), options).unwrap();
    // What queues there are, Erlang's database writes down when it has time.
    node.eval("catch mnesia:sync_log().");
    // A broker may have its ack in memory alone when it dies: then the request comes again, redelivered.
    let properties = AmqpProperties::default().with_app_id("p".into()).with_delivery_mode(2);
    amqp.publish(queue.name(), b"long", properties.with_reply_to(replies.clone()));
    let pid = node.pid();
    await_runs(&folder, &["long"]);
    kill(pid, "KILL");
    server.await_stderr("trying again");
    // No connection is to be had now.
    go(&folder);
    server.await_stderr("the reply to p(long) waits: ");
    node.restart();
    let amqp = Amqp::at(&node.url);
    let is_result = || amqp.next(&replies).body == b"long done\n";
    // An error may come first, to the request that comes again.
    assert!(is_result() || is_result());
    assert_eq!(folder.lines("runs"), ["long"]);
    server.stop();
}

#[test]
fn a_server_that_is_asked_to_stop_finishes_what_is_acked() {
    // With its connection, and without.
    for is_cut in [false, true] {
        let (queue, folder) = (Queue::new(), Folder::new());
        let proxy = Proxy::start(&broker(), |_| Action::Pass);
        let server = server_once(&proxy.url, &queue, &folder);
        let client = spawn_client(&broker(), &queue, &["--timeout", "10m", "p", "long"]);
        await_runs(&folder, &["long"]);
        if is_cut {
            proxy.end_connections();
            server.await_stderr("was lost");
        }
        server.signal("TERM");
        let waiting =
            spawn_client(&broker(), &queue, &["--timeout", "10m", "--wait", "p", "short"]);
        go(&folder);
        client.wait().expect(0, "long done\n", "");
        assert_eq!(server.wait().code(), 0);
        assert_eq!(folder.lines("runs"), ["long"]);
        let second = server_once(&broker(), &queue, &folder);
        waiting.wait().expect(0, "short done\n", "");
        second.stop();
    }
}

#[test]
fn a_server_that_is_asked_twice_waits_for_nobody() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let server = server_once(&proxy.url, &queue, &folder);
    let caller = Caller::new(&queue);
    caller.send(b"long", AmqpProperties::default().with_app_id("p".into()));
    await_runs(&folder, &["long"]);
    proxy.end_connections();
    server.await_stderr("was lost");
    server.signal("TERM");
    // It is a second request when it does not come together with the first one.
    await_that("the second signal ends it", || {
        if !has_ended(server.pid()) {
            server.signal("TERM");
        }
        has_ended(server.pid())
    });
    assert_eq!(server.wait().code(), 128 + 15);
    await_that("the request is gone", || queue.state() == Some((0, 0)));
}

#[test]
fn a_reply_that_the_broker_does_not_take_is_an_error_and_its_call_runs_once() {
    let node = Node::with_max_message_size(1000);
    let (queue, folder) = (Queue::at(&node.url), Folder::new());
    let script = "read n; echo $n >>$0/runs; seq 1000";
    let server = server_at(&node.url, &queue, &["--at-most-once", &folder.procedure(script)]);
    let ended = queue.client(&["-q", "p", "1"]);
    let stderr =
        "rpc_client: p(1): the result has 3893 bytes; the broker takes 1000 (out-of-range)\n";
    ended.expect(65, "", stderr);
    assert_eq!(folder.lines("runs"), ["1"]);
    server.stop();
}

#[test]
fn a_request_that_nobody_can_answer_is_dropped() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let server = server_once(&broker(), &queue, &folder);
    Amqp::new().publish(queue.name(), b"short", AmqpProperties::default());
    server.await_stderr("nobody to answer; dropped\n");
    queue.client(&["-q", "p", "short"]).expect(0, "short done\n", "");
    assert_eq!(folder.lines("runs"), ["short"]);
    server.stop();
}

#[test]
fn what_it_does_not_go_with() {
    for (option, reason) in [
        ("--prefetch=2", "--prefetch 2 does not go with --at-most-once: "),
        ("--prefetch=0", "--prefetch 0 does not go with --at-most-once: "),
        ("--drill=fail", "--drill is about the loop that acks after the reply: "),
    ] {
        let args = ["--at-most-once", option];
        let ended = Process::spawn(&mut server_command(&broker(), &args)).wait();
        assert_eq!(ended.code(), 64, "{ended:?}");
        assert!(ended.stderr.starts_with(&format!("rpc_server: {reason}")), "{ended:?}");
    }
}

/// `channel_max` leaves one channel for the look, beside that of the calls.
#[test]
fn a_busy_server_is_found_with_two_channels() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let server = server_once(&broker(), &queue, &folder);
    let long = spawn_client(&broker(), &queue, &["--timeout", "10m", "p", "long"]);
    await_runs(&folder, &["long"]);
    let url = format!("{}?channel_max=2", broker());
    let args = ["--timeout", "2s", "--in-flight", "1", "p", "a", "b"];
    let ended = spawn_client(&url, &queue, &args).wait();
    let busy = "no answer within 2s: 1 consumer serves the queue";
    assert_eq!((ended.code(), ended.stderr.matches(busy).count()), (75, 2), "{ended:?}");
    go(&folder);
    long.wait().expect(0, "long done\n", "");
    server.stop();
}

/// The lines that SECURITY.md gives: the first ones for each user, and the last.
#[test]
fn the_permissions_by_which_clients_find_a_busy_server() {
    let security = include_str!("../../SECURITY.md");
    let (node, folder) = (Node::start(), Folder::new());
    let permit = |user: &str, is_last: bool| {
        let start = format!("$ rabbitmqctl set_permissions {user} ");
        let mut lines = security.lines().filter_map(|line| line.strip_prefix(&start));
        let line = if is_last { lines.next_back() } else { lines.next() };
        let patterns = line.unwrap().split_whitespace().map(|pattern| pattern.trim_matches('\''));
        node.set_permissions(user, patterns.collect::<Vec<&str>>().try_into().unwrap());
    };
    for user in ["rpc_server", "rpc_client"] {
        node.add_user(user);
        permit(user, false);
    }

    let url = |user| node.url.replace("amqp://", &format!("amqp://{user}:s3cret@"));
    let args = ["--at-most-once", &noting(&folder)];
    let start = || Process::spawn(&mut server_command(&url("rpc_server"), &args));
    let server = start();
    server.await_stdout(" [x] Awaiting RPC requests\n");
    server.await_stderr("while all workers compute, clients will find no server: ");
    client_at(&url("rpc_client"), &["-q", "p", "short"]).expect(0, "short done\n", "");
    server.stop();

    permit("rpc_server", true);
    permit("rpc_client", true);
    let busy = start();
    busy.await_stdout(" [x] Awaiting RPC requests\n");
    let call = |argument| {
        let args = ["-q", "--timeout", "10m", "p", argument];
        Process::spawn(&mut client_command(&url("rpc_client"), &args))
    };
    let long = call("long");
    await_runs(&folder, &["short", "long"]);
    let waiting = call("short");
    let idle = start();
    waiting.wait().expect(0, "short done\n", "");
    go(&folder);
    long.wait().expect(0, "long done\n", "");
    assert_eq!(busy.stop().stderr, "");
    idle.stop();
}

/// So many calls, and more until everything was done to the system. `scripts/chaos.sh` makes 10,000.
fn calls() -> usize {
    let given = std::env::var("EFFECT_CALLS").ok().filter(|calls| !calls.is_empty());
    given.map_or(1_000, |calls| calls.parse().unwrap())
}

#[test]
fn servers_and_brokers_die_and_no_effect_comes_twice_or_none_is_missing() {
    thread::scope(|scope| {
        for promise in [Promise::AtMostOnce, Promise::AtLeastOnce] {
            scope.spawn(move || {
                let effects = provoke(promise, calls(), 1);
                println!("{effects}");
                assert!(effects.are_as_promised(), "{effects}");
            });
        }
    });
}

/// The client, which sees that a server computes, gives it up; there are no heartbeats to tell.
#[test]
fn a_broker_that_stalls_where_a_busy_server_shows_itself() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let server = server_once(&broker(), &queue, &folder);
    let caller = Caller::new(&queue);
    caller.send(b"long", AmqpProperties::default().with_app_id("p".into()));
    await_runs(&folder, &["long"]);
    queue.await_state((0, 0));
    let proxy = Proxy::start(&broker(), |frame| match frame.method {
        CHANNEL_CLOSE_OK => Action::Stall,
        _ => Action::Pass,
    });
    let url = format!("{}?heartbeat=0", proxy.url);
    let ended = spawn_client(&url, &queue, &["--timeout", "1s", "p", "short"]).wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
    assert!(ended.stderr.contains(&format!("{} no longer answers", proxy.url)), "{ended:?}");
    go(&folder);
    server.stop();
}
