//! Brokers that freeze, block and refuse while the programs are at work.

use crate::harness::*;
use std::time::{Duration, Instant};

#[test]
fn a_server_waits_while_the_broker_blocks_its_reply() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &[]);
    // The request is taken before the alarm, the reply is published during it.
    server.signal("STOP");
    let args = ["-q", "--queue", queue.name(), "fib", "30"];
    let waiting = Process::spawn(&mut client_command(&node.url, &args));
    node.await_ctl(&["list_queues", "messages_unacknowledged"], "1");
    node.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    server.signal("CONT");
    let shown = shown(&node.url);
    let blocks = format!("rpc_server: {shown} blocks publishing (low on memory); waiting\n");
    server.await_stderr(&blocks);
    node.ctl(&["set_vm_memory_high_watermark", "0.4"]);
    waiting.wait().expect(0, "832040\n", "");
    server.signal("TERM");
    let stderr = format!("{blocks}rpc_server: {shown} no longer blocks publishing\n");
    let stdout = " [x] Awaiting RPC requests\n [.] fib(30)\n";
    server.wait().expect(0, stdout, &stderr);
}

#[test]
fn a_blocked_server_stops_when_asked() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &[]);
    server.signal("STOP");
    let args = ["-q", "--queue", queue.name(), "fib", "30"];
    let _waiting = Process::spawn(&mut client_command(&node.url, &args));
    node.await_ctl(&["list_queues", "messages_unacknowledged"], "1");
    node.ctl(&["set_vm_memory_high_watermark", "0.0000001"]);
    server.signal("CONT");
    server.await_stderr("blocks publishing");
    server.signal("TERM");
    let ended = server.wait();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.elapsed < Duration::from_secs(2), "{ended:?}");
}

#[test]
fn a_frozen_broker_is_noticed_by_its_heartbeats() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let url = format!("{}?heartbeat=1", node.url);
    let server = server_at(&url, &queue, &[]);
    let pid = node.pid();
    kill(pid, "STOP");
    let started = Instant::now();
    let shown = shown(&url);
    let told = format!("rpc_server: {shown} no longer answers: it sent no heartbeat; trying again");
    server.await_stderr(&told);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    kill(pid, "CONT");
    client_at(&url, &["-q", "--wait", "--queue", queue.name(), "fib", "30"])
        .expect(0, "832040\n", "");
}

#[test]
fn a_server_stops_though_its_broker_is_frozen() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &[]);
    let pid = node.pid();
    kill(pid, "STOP");
    server.signal("TERM");
    let ended = server.wait();
    kill(pid, "CONT");
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.elapsed < Duration::from_secs(5), "{ended:?}");
    let shown = shown(&node.url);
    let told = format!(
        "rpc_server: while stopping: {shown} no longer answers; the connection was given up\n"
    );
    assert_eq!(ended.stderr, told);
}

/// The client library's own thread sends the heartbeats, whatever the server computes.
#[test]
fn a_long_call_does_not_cost_the_connection() {
    let queue = Queue::new();
    let url = format!("{}?heartbeat=1", broker());
    // Some 4 s in an unoptimised build.
    let server = server_at(&url, &queue, &["--algorithm", "recursive"]);
    queue.client(&["fib", "42"]).expect(0, "267914296\n", "");
    server.signal("TERM");
    server.wait().expect(0, " [x] Awaiting RPC requests\n [.] fib(42)\n", "");
}

/// The lines that SECURITY.md gives.
#[test]
fn the_least_permissions_that_are_enough() {
    let security = include_str!("../../SECURITY.md");
    let node = Node::start();
    for user in ["rpc_server", "rpc_client"] {
        node.ctl(&["add_user", user, "s3cret"]);
        let start = format!("$ rabbitmqctl set_permissions {user} ");
        let line = security.lines().find_map(|line| line.strip_prefix(&start)).unwrap();
        let patterns: Vec<&str> = line.split_whitespace().map(|p| p.trim_matches('\'')).collect();
        node.ctl(&[&["set_permissions", user], &patterns[..]].concat());
    }
    let url = |user| node.url.replace("amqp://", &format!("amqp://{user}:s3cret@"));
    let server = Process::spawn(&mut server_command(&url("rpc_server"), &[]));
    server.await_stdout(" [x] Awaiting RPC requests\n");
    client_at(&url("rpc_client"), &["fib", "30"]).expect(0, "832040\n", "");
    // And no more than enough: a client cannot serve.
    let ended = Process::spawn(&mut server_command(&url("rpc_client"), &[])).wait();
    assert_eq!(ended.code(), 77, "{ended:?}");
}
