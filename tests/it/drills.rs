//! `rpc_server --drill`: each fault strikes, says so, and comes to what the README claims.

use crate::harness::*;
use fib_rpc::drill::Drill;
use std::io::Write;
use std::process::ChildStdin;
use std::time::Duration;

const KILLED: i32 = 128 + 9;

/// A client with a line for each call, so that it is still there when a second reply comes.
fn patient_client(queue: &Queue) -> (Process, ChildStdin) {
    let args = ["-v", "--queue", queue.name(), "fib", "-"];
    Process::spawn_with_stdin(&mut client_command(&broker(), &args))
}

#[test]
fn a_crash_before_the_reply_costs_nothing() {
    let queue = Queue::new();
    let crashing = server(&queue, &["--drill", "crash-before-reply"]);
    let client =
        Process::spawn(&mut client_command(&broker(), &["--queue", queue.name(), "fib", "30"]));
    let crashed = crashing.wait();
    let said = "rpc_server: drill crash-before-reply: fib(30) is computed: dies now\n";
    crashed.expect(KILLED, " [x] Awaiting RPC requests\n [.] fib(30)\n", said);
    let second = server(&queue, &["-v"]);
    client.wait().expect(0, "832040\n", "");
    second.await_stderr("rpc_server: delivery: fib(30), correlation_id ");
    second.await_stderr(", redelivered\n");
}

#[test]
fn a_crash_before_the_ack_means_a_second_reply_which_is_discarded() {
    let queue = Queue::new();
    let crashing = server(&queue, &["-v", "--drill", "crash-before-ack"]);
    let (client, mut stdin) = patient_client(&queue);
    writeln!(stdin, "30").unwrap();
    client.await_stdout("832040\n");
    let crashed = crashing.wait();
    assert_eq!(crashed.code(), KILLED);
    let said = "rpc_server: drill crash-before-ack: the reply is out: dies now\n";
    assert!(crashed.stderr.ends_with(said), "{crashed:?}");
    assert!(!crashed.stderr.contains("rpc_server: ack"), "{crashed:?}");
    queue.await_state((1, 0));

    let second = server(&queue, &["-v"]);
    second.await_stderr(", redelivered\n");
    client.await_stderr("rpc_client: discard a reply: correlation_id ");
    writeln!(stdin, "10").unwrap();
    drop(stdin);
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "832040\n55\n"), "{ended:?}");
}

/// Of a request that cannot be answered, the broker has no reply.
#[test]
fn a_crash_before_the_ack_needs_a_reply() {
    let queue = Queue::new();
    let crashing = server(&queue, &["--drill", "crash-before-ack"]);
    let amqp = Amqp::new();
    amqp.publish(queue.name(), b"29", amiquip::AmqpProperties::default());
    crashing.await_stderr("fib(29) came without a readable reply_to or");
    queue.client(&["fib", "30"]).expect(0, "832040\n", "");
    let crashed = crashing.wait();
    assert_eq!(crashed.code(), KILLED);
    assert_eq!(crashed.stderr.matches("dies now").count(), 1, "{crashed:?}");
    queue.await_state((1, 0));
}

#[test]
fn duplicate_replies_are_discarded() {
    let queue = Queue::new();
    let server = server(&queue, &["--drill", "duplicate-reply"]);
    let ended = queue.client(&["-v", "--in-flight", "1", "fib", "10", "20", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "55\n6765\n832040\n"), "{ended:?}");
    // The last one's may come when the client has gone.
    let discarded = ended.stderr.matches("rpc_client: discard a reply: ").count();
    assert!((2..=3).contains(&discarded), "{ended:?}");
    let said = "rpc_server: drill duplicate-reply: fib(10) gets a second reply\n";
    server.await_stderr(said);
}

/// With several brokers the server waits for confirms, of which there are two for each request
/// then.
#[test]
fn duplicate_replies_are_confirmed_and_acked() {
    let queue = Queue::new();
    let brokers = [broker(), broker()].join(",");
    let server = server_at(&brokers, &queue, &["--drill", "duplicate-reply", "--prefetch", "2"]);
    let ended = queue.client(&["fib", "10", "20", "30"]);
    ended.expect(0, "55\n6765\n832040\n", "");
    server.signal("TERM");
    assert_eq!(server.wait().code(), 0);
    queue.await_state((0, 0));
}

#[test]
fn a_reply_with_another_id_is_no_answer() {
    let queue = Queue::new();
    let server = server(&queue, &["--drill", "wrong-correlation-id"]);
    let ended = queue.client(&["-v", "--timeout", "2s", "fib", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
    for said in [
        "rpc_client: discard a reply: correlation_id ",
        "rpc_client: fib(30): no answer within 2s: 1 consumer serves the queue ",
        "; 1 reply came that no call awaits\n",
    ] {
        assert!(ended.stderr.contains(said), "{ended:?}");
    }
    server.await_stderr("rpc_server: drill wrong-correlation-id: fib(30) gets another's id\n");
}

#[test]
fn a_slow_server_meets_the_time_limit() {
    let queue = Queue::new();
    let server = server(&queue, &["--drill", "slow=3s"]);
    // The second request is still in the queue when its time is up: it is not computed.
    let ended = queue.client(&["--timeout", "1s", "--in-flight", "2", "fib", "10", "20"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
    for call in ["fib(10)", "fib(20)"] {
        let said = format!("rpc_client: {call}: no answer within 1s: 1 consumer serves ");
        assert!(ended.stderr.contains(&said), "{ended:?}");
    }
    let ended = queue.client(&["--timeout", "10m", "fib", "30"]);
    ended.expect(0, "832040\n", "");
    assert!(ended.elapsed >= Duration::from_secs(3), "{ended:?}");
    server.signal("TERM");
    let stderr =
        "rpc_server: drill slow=3s: fib(10) waits\nrpc_server: drill slow=3s: fib(30) waits\n";
    server.wait().expect(0, " [x] Awaiting RPC requests\n [.] fib(10)\n [.] fib(30)\n", stderr);
}

#[test]
fn a_failure_on_the_server_is_forwarded() {
    let queue = Queue::new();
    let server = server(&queue, &["--drill", "fail"]);
    let stderr = "rpc_client: fib(30): failed on purpose: --drill fail (internal)\n";
    for _ in 0..2 {
        queue.client(&["fib", "30"]).expect(70, "", stderr);
    }
    server.await_stderr("rpc_server: drill fail: fib(30) fails\n");
}

#[test]
fn an_unknown_drill() {
    let ended = Process::spawn(&mut server_command(&broker(), &["--drill", "slow"])).wait();
    let stderr = format!(
        "rpc_server: invalid value 'slow' for '--drill <FAULT>': the drills are {}\n\n\
         For more information, try '--help'.\n",
        Drill::FORMS.join(", ")
    );
    ended.expect(64, "", &stderr);
}
