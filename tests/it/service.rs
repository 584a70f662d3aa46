//! How a server and its programs come to an end in good order: the time that a program has after SIGTERM, and servers that end
//! by themselves.

use crate::commands::{Caller, Folder, text};
use crate::harness::*;
use crate::proxy::{Action, Proxy};
use amiquip::{AmqpProperties, AmqpValue, FieldTable, QueueDeclareOptions};

/// A program that is told to end, and saves what it has first. That takes it so many seconds.
fn saves_within(seconds: f32) -> String {
    format!("trap \"sleep {seconds}; echo saved >$0/saved; exit\" TERM; sleep 3600 & wait")
}

#[test]
fn a_program_has_the_time_to_end_that_the_server_was_told_to_give_it() {
    // By default, it would have two seconds.
    for (delay, takes, saved) in [("1h", 3.0, 1), ("0", 1.0, 0)] {
        let (queue, folder) = (Queue::new(), Folder::new());
        let args = ["--time-limit", "0.5", "--kill-delay", delay];
        let procedure = folder.procedure(&saves_within(takes));
        let server = server(&queue, &[&args[..], &[&procedure]].concat());
        let stderr = "rpc_client: p(): p did not end in time (timed-out)\n";
        queue.client(&["--timeout", "10m", "p"]).expect(75, "", stderr);
        assert_eq!(folder.lines("saved").len(), saved, "--kill-delay {delay}");
        server.signal("TERM");
        assert_eq!(server.wait().code(), 0);
    }
}

/// The option for a procedure `p` that notes each of its runs, and takes so many seconds.
fn noting(folder: &Folder, seconds: f32) -> String {
    folder.procedure(&format!("echo run >>$0/runs; sleep {seconds}; echo done"))
}

/// What is left is as good for the next server as it was for this one: with `--at-most-once` it does not come redelivered.
#[test]
fn a_server_ends_after_so_many_calls_and_leaves_the_others_as_they_are() {
    for options in [
        ["--workers=1", "--prefetch=1"],
        ["--workers=3", "--prefetch=1"],
        ["--workers=2", "--prefetch=10"],
        ["--workers=1", "--at-most-once"],
        ["--workers=3", "--at-most-once"],
    ] {
        let (queue, folder) = (Queue::new(), Folder::new());
        Amqp::new().declare(&queue);
        let caller = Caller::new(&queue);
        for _ in 0..12 {
            caller.send(b"", AmqpProperties::default());
        }
        let procedure = noting(&folder, 0.05);
        let args = [&["-v", "--max-calls=5", &procedure], &options[..]].concat();
        let ended = Process::spawn(&mut server_command(
            &broker(),
            &[&["--queue", queue.name()], &args[..]].concat(),
        ))
        .wait();
        assert_eq!((ended.code(), folder.lines("runs").len()), (0, 5), "{options:?}: {ended:?}");
        let why = "rpc_server: call 5 is the last one (--max-calls): finish the calls in hand\n";
        assert!(ended.stderr.contains(why), "{ended:?}");
        queue.await_state((7, 0));

        let next = server(&queue, &[&[procedure.as_str()], &options[..]].concat());
        for _ in 0..12 {
            assert_eq!(text(caller.receive()), "done\n", "{options:?}");
        }
        assert_eq!(folder.lines("runs").len(), 12, "{options:?}");
        next.signal("TERM");
        assert_eq!(next.wait().code(), 0);
    }
}

#[test]
fn calls_are_counted_over_all_connections() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let procedure = noting(&folder, 0.0);
    let server = server_at(&proxy.url, &queue, &["--workers=2", "--max-calls=3", &procedure]);
    queue.client(&["-q", "p"]).expect(0, "done\n", "");
    proxy.end_connections();
    server.await_stderr("again\n");
    for _ in 0..2 {
        queue.client(&["-q", "--wait", "p"]).expect(0, "done\n", "");
    }
    assert_eq!(server.wait().code(), 0);
    queue.await_state((0, 0));
}

#[test]
fn a_server_ends_when_it_had_nothing_to_do_for_long_enough() {
    for option in ["--prefetch=1", "--at-most-once"] {
        let (queue, folder) = (Queue::new(), Folder::new());
        let procedure = folder.procedure("read seconds; sleep $seconds; echo done");
        let server = server(&queue, &["-v", "--idle-exit=3s", option, &procedure]);
        // A call is something to do, however long it takes. The second one finds the server as it was.
        for seconds in ["4", "0"] {
            queue.client(&["-q", "--timeout", "10m", "p", seconds]).expect(0, "done\n", "");
        }
        let ended = server.wait();
        let why = "rpc_server: nothing to do for 3s (--idle-exit): finish the calls in hand\n";
        assert!(ended.code() == 0 && ended.stderr.contains(why), "{ended:?}");
        queue.await_state((0, 0));
    }
}

#[test]
fn time_without_a_connection_is_not_idle() {
    let queue = Queue::new();
    let proxy = Proxy::start(&broker(), |_| Action::End);
    let args = ["-v", "--idle-exit=1ms", "--queue", queue.name()];
    let server = Process::spawn(&mut server_command(&proxy.url, &args));
    server.await_stderr("; trying again\n");
    proxy.set(|_| Action::Pass);
    let ended = server.wait();
    let why = "rpc_server: nothing to do for 1ms (--idle-exit): finish the calls in hand\n";
    assert!(ended.code() == 0 && ended.stderr.contains(why), "{ended:?}");
}

/// docs/reliability.md has the policy; a queue's own argument says the same.
#[test]
fn a_request_that_kills_its_servers_meets_the_delivery_limit() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let arguments = FieldTable::from([
        ("x-queue-type".into(), AmqpValue::LongString("quorum".into())),
        ("x-delivery-limit".into(), AmqpValue::LongInt(2)),
    ]);
    let options = QueueDeclareOptions { durable: true, arguments, ..Default::default() };
    Amqp::new().channel.queue_declare(queue.name(), options).unwrap();
    let script = "read n; echo $n >>$0/runs; [ $n = good ] || kill -9 $PPID; echo done";
    let args = ["--queue", queue.name(), &folder.procedure(script)];
    let caller = Caller::new(&queue);
    caller.send(b"deadly", AmqpProperties::default());
    for _ in 0..3 {
        let ended = Process::spawn(&mut server_command(&broker(), &args)).wait();
        assert_eq!(ended.code(), 128 + 9, "{ended:?}");
    }
    let server = server(&queue, &[&folder.procedure(script)]);
    queue.client(&["-q", "p", "good"]).expect(0, "done\n", "");
    assert_eq!(folder.lines("runs"), ["deadly", "deadly", "deadly", "good"]);
    queue.await_state((0, 1));
    server.signal("TERM");
    assert_eq!(server.wait().code(), 0);
}
