//! Programs that stay: what they are asked, what they may answer, what becomes of them and of their calls in each state,
//! and that no answer is ever another call's.
//!
//! jq, sqlite3 and perl are needed, and coreutils' tools.

use crate::commands::{
    Caller, Folder, children, descriptors, failed, has_ended, leave_nothing, stat, text,
};
use crate::harness::*;
use crate::proxy::{Action, Proxy};
use amiquip::AmqpProperties;
use fib_rpc::error::ErrorKind::{
    self, Internal, InvalidArgument, OutOfRange, TimedOut, Unavailable, UnknownProcedure,
};
use fib_rpc::procedure::Outcome;
use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

/// The option for a coprocess `p` that is a shell's script, in which `$0` is the folder.
fn coprocess(folder: &Folder, script: &str) -> String {
    folder.procedure(script).replacen("--procedure", "--coprocess", 1)
}

/// The same in Perl, whose output is not kept in a buffer. `$_` is a request.
fn perl(script: &str) -> String {
    assert!(!script.contains('\''), "{script}");
    format!("--coprocess=p=perl -ne 'BEGIN {{ $| = 1 }} chomp; {script}'")
}

fn ok(result: &str) -> Outcome {
    Ok(result.into())
}

fn error(kind: ErrorKind, message: &str) -> Outcome {
    failed(kind, message, None)
}

/// The process ids of a server's programs.
fn pids(server: &Process) -> BTreeSet<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let names = processes.filter_map(|entry| entry.file_name().into_string().ok());
    let own = names.filter(|pid| {
        stat(pid).is_some_and(|(state, parent, _)| parent == server.pid() && state != 'Z')
    });
    own.filter_map(|pid| pid.parse().ok()).collect()
}

fn only_pid(server: &Process) -> u32 {
    await_that("it is started", || pids(server).len() == 1);
    pids(server).into_iter().next().unwrap()
}

// What it is asked, and what it answers.

/// Real programs, each of which is asked again and again.
#[test]
fn a_line_for_a_line() {
    let mib_16 = vec![b'x'; (16 << 20) - 1];
    for (command, calls) in [
        (
            "cat",
            &[
                (&b"one"[..], &b"one"[..]),
                (b"", b""),
                (b"\0a\0", b"\0a\0"),
                (b"caf\xe9", b"caf\xe9"),
                (b"a\r", b"a\r"),
                (&mib_16, &mib_16),
                (b" last ", b" last "),
            ][..],
        ),
        ("sed -u s/a/b/", &[(b"a", b"b"), (b"aa", b"ba")]),
        ("jq --unbuffered -c .n+1", &[(b"{\"n\":1}", b"2"), (b"{\"n\":41}", b"42")]),
        (
            "sqlite3 -batch :memory:",
            &[
                (b"create table t (n); select 0;", b"0"),
                (b"insert into t values (6), (7); select changes();", b"2"),
                (b"select 6 * count(*) from t;", b"12"),
            ],
        ),
        // It answers before it has read all, of a request that no pipe holds.
        (
            "perl -e '$| = 1; while (read STDIN, $c, 1) { print \"$c\\n\"; <STDIN> }'",
            &[(b"early", b"e"), (&mib_16, b"x"), (b"again", b"a")],
        ),
    ] {
        let queue = Queue::new();
        let server = server(&queue, &[&format!("--coprocess=p={command}")]);
        let pid = only_pid(&server);
        let caller = Caller::new(&queue);
        for (argument, expected) in calls {
            let found = caller.call("p", argument);
            assert!(found == Ok(expected.to_vec()), "{command}, {argument:.50?}: {found:.200?}");
        }
        let found = caller.call("p", b"two\nlines");
        let message = "p takes one line, and the argument has a newline in it";
        assert_eq!(found, error(InvalidArgument, message), "{command}");
        assert_eq!(only_pid(&server), pid, "{command}");
        server.stop().expect_no_warnings();
    }
}

impl Ended {
    #[track_caller]
    fn expect_no_warnings(&self) {
        // A broker that has much else to do is told of, too.
        let own = self.stderr.lines().filter(|line| line.starts_with("rpc_server: p "));
        assert_eq!(own.collect::<Vec<_>>(), [""; 0]);
    }
}

/// What a shell knows of variables and options is as for a program of each call.
#[test]
fn what_it_is_started_with() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "env > \"$0/env\"; echo ready >&2; cat";
    let url = broker().replace("amqp://", "amqp://guest:guest@");
    let args = ["--queue", queue.name(), &coprocess(&folder, script)];
    let mut command = server_command(&url, &args);
    for name in ["RPC_CORRELATION_ID", "RPC_CONTENT_TYPE", "RPC_REDELIVERED", "RPC_TIME_LIMIT"] {
        command.env(name, "x");
    }
    let server = Process::spawn(command.env("OTHER", "kept"));
    server.await_stdout(" [x] Awaiting RPC requests\n");
    server.await_stderr("rpc_server: p: ready\n");
    let variables = folder.lines("env");
    let has = |start: &str| variables.iter().any(|variable| variable.starts_with(start));
    assert!(has("RPC_PROCEDURE=p") && has("RPC_RUN=") && has("OTHER=kept"), "{variables:?}");
    let rest = variables.iter().filter(|variable| variable.starts_with("RPC_")).count();
    assert!(rest == 2 && !has("AMQP_URL"), "{variables:?}");
    // It leads a session.
    let pid = only_pid(&server);
    assert_eq!(stat(&pid.to_string()).unwrap().2, pid);
}

#[test]
fn what_is_offered_by_several_options() {
    let queue = Queue::new();
    let _server = server(
        &queue,
        &[
            "--json-coprocess",
            "j=jq --unbuffered -c {result:.argument}",
            "--coprocess=c=cat",
            "--procedure=fib",
        ],
    );
    let caller = Caller::new(&queue);
    // The first one on the command line.
    caller.send(b"a\nb", AmqpProperties::default());
    assert_eq!(text(caller.receive()), "a\nb");
    assert_eq!(text(caller.call("list", b"")), "c\nfib\nj\nlist\nping");
    assert_eq!(text(caller.call("c", b"x")), "x");
    assert_eq!(text(caller.call("fib", b"10")), "55");
}

#[test]
fn what_cannot_be_offered() {
    let usage = [
        (&["--procedure=p=cat", "--coprocess=p=cat"][..], "--coprocess p is given twice\n"),
        (&["--json-coprocess=p=cat", "--coprocess=p=cat"], "--coprocess p is given twice\n"),
        (&["--coprocess=fib"], "a program is offered by NAME=COMMAND\n"),
        (&["--coprocess=ping=cat"], "ping is always the built-in procedure: take another name\n"),
        (&["--json-coprocess=p=cat '"], "a quote is open\n"),
        (&["--coprocess=p=cat", "--coprocess-calls=0"], "a whole number, 1 or more,"),
        (
            &["--coprocess-calls=1", "--procedure=p=cat"],
            "--coprocess-calls is about programs that stay",
        ),
    ];
    for (args, reason) in usage {
        let ended = Process::spawn(&mut server_command(&broker(), args)).wait();
        assert!(ended.code() == 64 && ended.stderr.contains(reason), "{ended:?}");
    }
    for option in ["--coprocess", "--json-coprocess"] {
        let offer = format!("{option}=p=no-such-program");
        let ended = Process::spawn(&mut server_command(&broker(), &[&offer])).wait();
        let told =
            format!("rpc_server: {option} p: \"no-such-program\" is not a program that can be");
        assert!(ended.code() == 78 && ended.stderr.starts_with(&told), "{ended:?}");
    }
    // One of a hundred has no descriptors left. Nothing is left of the others.
    let path = env!("CARGO_BIN_EXE_rpc_server");
    let script = "ulimit -n 100; exec \"$0\" --workers 100 --coprocess p=cat";
    let ended = Process::spawn(program("sh", &broker(), &["-c", script, path]).arg("")).wait();
    let told = "rpc_server: the coprocess p cannot be started: Too many open files (os error 24)\n";
    assert_eq!((ended.code(), ended.stderr.as_str()), (78, told));
}

#[test]
fn an_operator_is_told() {
    let queue = Queue::new();
    let server = server(&queue, &["--coprocess", "p=echo a | cat"]);
    server.await_stderr(
        "rpc_server: --coprocess p: no shell is involved, so that | is an argument of the program; --coprocess \"p=sh -c",
    );
}

/// Each worker has its own, and none waits for another one's.
#[test]
fn as_many_as_workers() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "while read -r n; do echo $$ >> $0/pids; until test -e $0/go; do sleep 0.05; done; echo $n; done";
    let one = coprocess(&folder, script);
    let server = server(&queue, &["--workers", "8", &one, "--coprocess=other=cat"]);
    assert_eq!(pids(&server).len(), 16, "they are there before the first request");
    let caller = Caller::new(&queue);
    for n in 0..8 {
        caller.send(n.to_string().as_bytes(), AmqpProperties::default().with_app_id("p".into()));
    }
    let busy: BTreeSet<u32> = folder.await_pids(8).into_iter().collect();
    assert_eq!(busy.len(), 8, "each call has one to itself");
    fs::write(folder.path("go"), "").unwrap();
    let mut answers: Vec<String> = (0..8).map(|_| text(caller.receive())).collect();
    answers.sort();
    assert_eq!(answers, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    let before = pids(&server);
    for n in ["8", "9"] {
        assert_eq!(text(caller.call("p", n.as_bytes())), n);
    }
    assert_eq!(pids(&server), before);
    server.stop().expect_no_warnings();
}

// What is no answer.

/// A banner, a second line, and the half of one that comes without being asked for.
#[test]
fn what_is_written_unasked_is_thrown_away() {
    let queue = Queue::new();
    let script = "BEGIN { syswrite STDOUT, qq(loading\\nready\\n) } \
                  syswrite STDOUT, qq(<$_>\\nmore\\nand half)";
    let server = server(&queue, &[&perl(script)]);
    let thrown_away = |what: &str, length: u32| {
        format!(
            "rpc_server: p: \"{what}\", {length} bytes of standard output that no request has asked for, thrown away\n"
        )
    };
    server.await_stderr(&thrown_away("loading\\nready", 14));
    let caller = Caller::new(&queue);
    for (number, argument) in ["one", "two", "three"].into_iter().enumerate() {
        assert_eq!(text(caller.call("p", argument.as_bytes())), format!("<{argument}>"));
        server.await_stderr_times(&thrown_away("more\\nand half", 13), number + 1);
    }
    assert_eq!(text(caller.call("ping", b"")), "pong");
}

/// It is told where it stands when no call is there.
#[test]
fn what_is_said_between_two_calls_is_logged() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "(until test -e $0/go; do sleep 0.05; done; echo late >&2; echo unasked) & \
                  head -c 1000000 /dev/zero | tr \"\\0\" x >&2; echo begun >&2; cat";
    let server = server(&queue, &[&coprocess(&folder, script)]);
    server.await_stderr("rpc_server: p: xxx");
    fs::write(folder.path("go"), "").unwrap();
    server.await_stderr("rpc_server: p: late\n");
    server.await_stderr("rpc_server: p: \"unasked\", 8 bytes of standard output");
    assert_eq!(text(Caller::new(&queue).call("p", b"x")), "x");
}

/// One that never stops to write is no use.
#[test]
fn one_that_writes_without_end() {
    let queue = Queue::new();
    let server = server(&queue, &["--coprocess=p=yes"]);
    server.await_stderr(
        "p writes without end, though nothing was asked; it is started again after 1s\n",
    );
    assert_eq!(text(Caller::new(&queue).call("ping", b"")), "pong");
    let least = server.pid();
    server.stop();
    await_that("nothing is left", || children(least) == 0);
}

/// Nor one that does so once it is asked. Of what it writes, not each piece is told.
#[test]
fn one_that_answers_without_end() {
    let queue = Queue::new();
    // As much as a pipe can hold, at once, so that a read always finds something.
    let script = "fcntl STDOUT, 1031, 1 << 20; $x = qq(y\\n) x 500_000; fork; fork; syswrite STDOUT, $x while 1";
    let server = server(&queue, &[&perl(script)]);
    let caller = Caller::new(&queue);
    assert_eq!(text(caller.call("p", b"x")), "y");
    server.await_stderr("p writes without end, though nothing was asked; it is started again\n");
    assert_eq!(text(caller.call("p", b"x")), "y");
    // As much as is read at a time.
    let told = server.stderr().matches(", 16384 bytes of standard output").count();
    assert!(told <= 8, "{told} warnings");
    server.stop();
}

#[test]
fn a_line_that_is_too_long() {
    let queue = Queue::new();
    let script = "if ($_ eq q(long)) { print q(x) x 17_000_000, qq(\\n) } else { print qq($_\\n) }";
    let server = server(&queue, &[&perl(script)]);
    let caller = Caller::new(&queue);
    assert_eq!(text(caller.call("p", b"short")), "short");
    let before = only_pid(&server);
    let message = "the result has over 16777216 bytes, which the broker takes";
    assert_eq!(caller.call("p", b"long"), error(OutOfRange, message));
    assert_eq!(text(caller.call("p", b"short")), "short");
    assert_ne!(only_pid(&server), before);
}

// Its end.

/// In the middle of a call. It has answered before, so that the next one is there at once.
#[test]
fn every_way_to_end_in_a_call() {
    let exit = |kind, code| failed(kind, &format!("p exited with {code}"), Some(code));
    let script =
        "while read -r what; do case $what in ok) echo fine ;; *) eval $what ;; esac; done";
    for (what, expected) in [
        ("exit 64", exit(InvalidArgument, 64)),
        ("exit 65", exit(InvalidArgument, 65)),
        ("exit 75", exit(Unavailable, 75)),
        ("exit 3", exit(Internal, 3)),
        ("exit 0", failed(Internal, "p ended before it had answered", Some(0))),
        ("echo first >&2; echo why >&2; exit 65", failed(InvalidArgument, "why", Some(65))),
        ("seq 1000 >&2; exit 65", failed(InvalidArgument, "1000", Some(65))),
        ("printf half; exit 3", exit(Internal, 3)),
        ("printf half; exit 0", failed(Internal, "p ended before it had answered", Some(0))),
        ("kill -9 $$", error(Internal, "p was killed by SIGKILL")),
        ("kill -SEGV $$", error(Internal, "p was killed by SIGSEGV")),
        ("exec >&-; sleep 1000", error(Internal, "p has closed its standard output")),
        ("exec >&- <&- 2>&-; exit 4", exit(Internal, 4)),
        // What it has started has the pipe still.
        ("sleep 1000 & exit 5", exit(Internal, 5)),
        // These are answers.
        ("echo whole; exit 3", ok("whole")),
        ("echo whole; exec >&-; sleep 1000", ok("whole")),
        ("exec <&-; echo whole; sleep 1000", ok("whole")),
        ("exec 2>&-; echo whole", ok("whole")),
    ] {
        let (queue, folder) = (Queue::new(), Folder::new());
        let server = server(&queue, &["--time-limit=1m", &coprocess(&folder, script)]);
        let caller = Caller::new(&queue);
        for _ in 0..2 {
            assert_eq!(text(caller.call("p", b"ok")), "fine", "{what}");
            let found = caller.call("p", what.as_bytes());
            assert_eq!(found, expected, "{what}");
        }
        assert_eq!(text(caller.call("p", b"ok")), "fine", "{what}");
        server.stop();
    }
}

/// It could not read what was larger than a pipe.
#[test]
fn one_that_closes_its_standard_input() {
    let queue = Queue::new();
    let command = "--coprocess=p=perl -e '$| = 1; sysread STDIN, $_, 9; \
                   if (/^answers/) { print qq(answer\\n) } close STDIN; sleep 1000'";
    let server = server(&queue, &[command]);
    let caller = Caller::new(&queue);
    let large = |start: &str| [start.as_bytes(), &[b'x'; 1 << 20]].concat();
    let closed = error(Internal, "p has closed its standard input");
    assert_eq!(caller.call("p", &large("silent")), closed);
    assert_eq!(text(caller.call("p", &large("answers"))), "answer");
    assert_eq!(caller.call("p", &large("silent")), closed);
    server.stop();
}

/// The second one is started without a call.
#[test]
fn one_that_ends_between_two_calls() {
    let queue = Queue::new();
    let server = server(&queue, &["--coprocess=p=cat"]);
    let caller = Caller::new(&queue);
    assert_eq!(text(caller.call("p", b"one")), "one");
    let first = only_pid(&server);
    kill(first, "KILL");
    server.await_stderr("rpc_server: p was killed by SIGKILL; it is started again\n");
    let second = only_pid(&server);
    assert_ne!(first, second);
    // Before it has answered anything.
    kill(second, "TERM");
    server.await_stderr("rpc_server: p was killed by SIGTERM; it is started again after 1s\n");
    let found = caller.call("p", b"two");
    assert_eq!(text(found), "two");
    // A call that comes right after its end is another one's.
    for n in 0..20 {
        let pid = only_pid(&server);
        kill(pid, "KILL");
        await_that("it has ended", || has_ended(pid));
        assert_eq!(text(caller.call("p", n.to_string().as_bytes())), n.to_string());
    }
}

#[test]
fn one_that_always_ends() {
    let queue = Queue::new();
    let command = "--coprocess=p=sh -c 'echo cannot load >&2; exit 3'";
    let server = server(&queue, &["--time-limit", "2s", command]);
    for pause in ["1s", "2s", "4s"] {
        let told = format!(
            "rpc_server: p exited with 3 (cannot load); it is started again after {pause}\n"
        );
        server.await_stderr(&told);
    }
    let message =
        "p is not there: p exited with 3 (cannot load), and was not started again in time";
    assert_eq!(Caller::new(&queue).call("p", b""), error(Unavailable, message));
    // Nobody waits for the rest of a pause.
    server.stop();
}

/// The file is gone, and comes back.
#[test]
fn one_that_cannot_be_started_again() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "#!/bin/sh\nexec cat\n";
    let path = folder.write("p", script, 0o755);
    let server = server(&queue, &[&format!("--coprocess=p={}", path.display())]);
    let caller = Caller::new(&queue);
    assert_eq!(text(caller.call("p", b"one")), "one");
    fs::remove_file(&path).unwrap();
    kill(only_pid(&server), "KILL");
    server.await_stderr("p cannot be started: No such file or directory (os error 2); it is started again after 1s\n");
    folder.write("p", script, 0o755);
    assert_eq!(text(caller.call("p", b"two")), "two");
}

// Its time.

#[test]
fn output_that_is_kept_in_a_buffer() {
    let queue = Queue::new();
    let server = server(&queue, &["--time-limit", "1s", "--coprocess=p=tr a-z A-Z"]);
    let first = only_pid(&server);
    let message = "p did not answer in time; it has never written anything: it may keep its output in a buffer, which \
                   stdbuf -oL, python3 -u, sed -u, jq --unbuffered or fflush() in awk prevent";
    let caller = Caller::new(&queue);
    assert_eq!(caller.call("p", b"one"), error(TimedOut, message));
    assert_ne!(only_pid(&server), first);
    server.stop();
}

#[test]
fn a_reason_on_standard_error_instead_of_an_answer() {
    let queue = Queue::new();
    let program = "--coprocess=p=sh -c 'while read -r line; do echo no answer to $line >&2; done'";
    let server = server(&queue, &["--time-limit", "1s", program]);
    let message = "p did not answer in time; its standard error says: no answer to one";
    assert_eq!(Caller::new(&queue).call("p", b"one"), error(TimedOut, message));
    server.stop();
}

/// What it would have answered answers nothing else. It is ended with all that it has started.
#[test]
fn a_late_line_answers_no_other_call() {
    let (queue, folder) = (Queue::new(), Folder::new());
    for (trap, least) in [("", 3), ("trap \"\" TERM; ", 4)] {
        let script = format!(
            "{trap}while read -r n; do case $n in slow*) sleep 1000 & echo $! >> $0/pids; sleep 4 ;; esac; echo $n; done"
        );
        let args = ["--time-limit=3s", "--kill-delay=2s", &coprocess(&folder, &script)];
        let server = server(&queue, &args);
        let caller = Caller::new(&queue);
        assert_eq!(text(caller.call("p", b"fast")), "fast");
        for n in 0..2 {
            let started = Instant::now();
            let found = caller.call("p", format!("slow{n}").as_bytes());
            assert_eq!(found, error(TimedOut, "p did not answer in time"));
            assert!(started.elapsed() >= Duration::from_secs(least));
            assert_eq!(text(caller.call("p", b"next")), "next");
        }
        for pid in folder.await_pids(2) {
            await_that("it has ended", || has_ended(pid));
        }
        server.stop();
    }
}

/// One that stops itself in a call is ended too.
#[test]
fn one_that_stops_itself() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "while read -r n; do test $n = stop && kill -STOP $$; echo $n; done";
    let server = server(&queue, &["--time-limit=3s", &coprocess(&folder, script)]);
    let caller = Caller::new(&queue);
    for argument in ["one", "two"] {
        assert_eq!(text(caller.call("p", argument.as_bytes())), argument);
        let message = "p did not answer in time";
        assert!(caller.call("p", b"stop").unwrap_err().message.starts_with(message));
    }
    server.stop();
}

#[test]
fn the_callers_time() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script =
        "while read -r n; do echo $$ >> $0/pids; test $n = slow && sleep 1000; echo $n; done";
    let server = server(&queue, &[&coprocess(&folder, script)]);
    assert_eq!(queue.client(&["--timeout", "1s", "p", "slow"]).code(), 75);
    server.await_stderr("rpc_server: p(slow): timed-out, ");
    assert!(has_ended(folder.await_pids(1)[0]));
    queue.client(&["p", "fast"]).expect(0, "fast\n", "");
    server.stop();
}

/// The next caller gets another one.
#[test]
fn a_caller_that_is_gone() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script =
        "while read -r n; do echo $$ >> $0/pids; test $n = slow && sleep 1000; echo $n; done";
    let server = server(&queue, &["--time-limit=0", &coprocess(&folder, script)]);
    let args = ["--queue", queue.name(), "--timeout=0", "p", "slow"];
    let client = Process::spawn(&mut client_command(&broker(), &args));
    let pid = folder.await_pids(1)[0];
    client.signal("KILL");
    client.wait();
    server.await_stderr("rpc_server: p(slow): nobody waits for it any more: ended after ");
    await_that("it has ended", || has_ended(pid));
    assert_eq!(text(Caller::new(&queue).call("p", b"next")), "next");
    server.stop();
}

// JSON.

#[test]
fn what_an_object_has() {
    let queue = Queue::new();
    let command = "--json-coprocess=p=jq --unbuffered -c {result:tojson}";
    let server = server(&queue, &["--time-limit=1m", command]);
    let caller = Caller::new(&queue);
    let object = |body: &[u8], properties: AmqpProperties| -> serde_json::Value {
        caller.send(body, properties.with_app_id("p".into()));
        serde_json::from_str(&text(caller.receive())).unwrap()
    };
    let properties = AmqpProperties::default()
        .with_correlation_id("one\ntwo".into())
        .with_content_type("text/plain".into());
    let mut found = object(b"a\n\"\0\xc3\xa9", properties);
    let limit = found["time_limit"].take().as_f64().unwrap();
    assert!(limit > 30.0 && limit <= 60.0, "{limit}");
    let expected = serde_json::json!({
        "procedure": "p", "argument": "a\n\"\0é", "correlation_id": "one\ntwo", "content_type": "text/plain",
        "headers": {}, "routing_key": queue.name(), "type": null, "redelivered": false, "time_limit": null,
    });
    assert_eq!(found, expected);
    let mut found = object(b"caf\xe9", AmqpProperties::default());
    found["time_limit"].take();
    let expected = serde_json::json!({
        "procedure": "p", "argument_base64": "Y2Fm6Q==", "correlation_id": null, "content_type": null,
        "headers": {}, "routing_key": queue.name(), "type": null, "redelivered": false, "time_limit": null,
    });
    assert_eq!(found, expected);
    server.stop().expect_no_warnings();
}

#[test]
fn what_an_object_may_answer() {
    let queue = Queue::new();
    let command = "--json-coprocess=p=jq --unbuffered -c '.argument | fromjson'";
    let server = server(&queue, &[command]);
    let pid = only_pid(&server);
    let caller = Caller::new(&queue);
    let mib_16 = "x".repeat((16 << 20) - 20);
    for (answer, expected) in [
        (serde_json::json!({"result": "a\nb"}), ok("a\nb")),
        (serde_json::json!({"result_base64": "Y2Fm6Q==", "n": [{}]}), Ok(b"caf\xe9".into())),
        (serde_json::json!({"result": mib_16}), ok(&mib_16)),
        (serde_json::json!({"error": {"kind": "internal", "message": "m"}}), error(Internal, "m")),
        (
            serde_json::json!({"error": {"kind": "unknown-procedure", "message": "m"}}),
            error(UnknownProcedure, "m"),
        ),
        (serde_json::json!({"error": {"kind": "timed-out", "message": "m"}}), error(TimedOut, "m")),
        (
            serde_json::json!({"error": {"kind": "unavailable", "message": "é\n"}}),
            error(Unavailable, "é\n"),
        ),
    ] {
        let found = caller.call("p", answer.to_string().as_bytes());
        assert!(found == expected, "{answer:.100?}: {found:.100?}");
    }
    assert_eq!(only_pid(&server), pid);
    server.stop();
}

#[test]
fn any_bytes_go_through_as_objects() {
    let queue = Queue::new();
    let echo =
        "if .argument_base64 then {result_base64:.argument_base64} else {result:.argument} end";
    let _server = server(&queue, &[&format!("--json-coprocess=p=jq --unbuffered -c '{echo}'")]);
    let caller = Caller::new(&queue);
    let all: Vec<u8> = (0..=255).collect();
    let (nuls, bytes) = (vec![0; 4 << 20], vec![0xff; 12 << 20]);
    for argument in [&all[..], b"", b"\r\n", b"\xff", "é\u{2028}🦀".as_bytes(), &nuls, &bytes] {
        assert!(caller.call("p", argument) == Ok(argument.to_vec()), "{argument:.50?}");
    }
}

/// Nobody knows any more which line answers what.
#[test]
fn what_is_no_object() {
    let queue = Queue::new();
    let server = server(&queue, &["--json-coprocess=p=jq --unbuffered -r .argument"]);
    let caller = Caller::new(&queue);
    let good = r#"{"result":"good"}"#;
    for (answer, reason) in [
        ("nonsense", "expected ident at line 1 column 2"),
        ("", "EOF while parsing a value at line 1 column 0"),
        (r#"{"result":42}"#, "invalid type: integer `42`, expected a string at line 1 column 12"),
        ("{}", "it has not one of result, result_base64 and error"),
        (r#"{"result_base64":"*"}"#, "result_base64: Invalid symbol 42, offset 0."),
        (
            r#"{"error":{"kind":"no","message":"m"}}"#,
            "the kinds of errors are unknown-procedure, invalid-argument, out-of-range, internal, unavailable, timed-out, redelivered",
        ),
    ] {
        assert_eq!(text(caller.call("p", good.as_bytes())), "good");
        let before = only_pid(&server);
        let message = format!("p has answered with what is no reply: {reason}");
        assert_eq!(caller.call("p", answer.as_bytes()), error(Internal, &message));
        server.await_stderr(&format!("rpc_server: {message}; it is started again\n"));
        assert_ne!(only_pid(&server), before, "{answer}");
    }
    // The second line would be the next one's answer.
    let two = format!("oops\n{good}");
    assert_eq!(caller.call("p", two.as_bytes()).unwrap_err().kind, Internal);
    assert_eq!(text(caller.call("p", br#"{"result":"own"}"#)), "own");
}

/// What it writes to standard error in a call goes to the caller with an error, and with no other one.
#[test]
fn standard_error_of_a_call() {
    let queue = Queue::new();
    let command = "--json-coprocess=p=jq --unbuffered -c '.argument | if . == \"bad\" then (stderr | \
                   {error:{kind:\"internal\",message:.}}) else {error:{kind:\"internal\",message:.}} end'";
    let server = server(&queue, &[command]);
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    let stderr = |argument: &str| {
        let properties = AmqpProperties::default().with_reply_to(reply_to.clone());
        amqp.publish(queue.name(), argument.as_bytes(), properties.with_app_id("p".into()));
        let reply = amqp.next(&reply_to);
        let outcome =
            fib_rpc::protocol::Reply::decode(&reply.properties, reply.body).unwrap().outcome;
        outcome.unwrap_err().stderr
    };
    assert_eq!(stderr("bad").as_deref(), Some("\"bad\""));
    assert_eq!(stderr("other"), None);
    server.stop();
}

/// Not even if there is more of it than is logged at once, and than is read at once, or if its last line has no end.
#[test]
fn standard_error_of_one_call_is_not_told_to_another() {
    let queue = Queue::new();
    let script = "if (/^secret/) { print STDERR qq(<$_>) . (/lines/ ? qq(\\n) : q()) for 1..3000; print qq(ok\\n) } \
                  else { print STDERR qq(why\\n) if /why/; exit 65 }";
    let server = server(&queue, &[&perl(script)]);
    let caller = Caller::new(&queue);
    let quiet = failed(InvalidArgument, "p exited with 65", Some(65));
    let why = failed(InvalidArgument, "why", Some(65));
    for secret in ["secret lines", "secret"] {
        for (argument, expected) in [("quiet", &quiet), ("why", &why)] {
            assert_eq!(text(caller.call("p", secret.as_bytes())), "ok");
            assert_eq!(&caller.call("p", argument.as_bytes()), expected, "{secret}");
        }
    }
    server.stop();
}

// Its server.

/// It outlives a connection, unless it was in a call.
#[test]
fn a_lost_connection() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let script =
        "while read -r n; do echo $$ >> $0/pids; test -e $0/go || sleep 1000; echo $n; done";
    let args = ["--workers=2", &coprocess(&folder, script)];
    let server = server_at(&proxy.url, &queue, &args);
    let before = pids(&server);
    let caller = Caller::new(&queue);
    caller.send(b"kept", AmqpProperties::default().with_app_id("p".into()));
    let busy = folder.await_pids(1)[0];
    fs::write(folder.path("go"), "").unwrap();
    proxy.end_connections();
    assert_eq!(text(caller.receive()), "kept");
    await_that("it has ended", || has_ended(busy));
    server.await_stderr("connected to ");
    assert_eq!(text(caller.call("p", b"more")), "more");
    let after = pids(&server);
    assert_eq!(before.intersection(&after).count(), 1, "{before:?}, {after:?}");
    server.stop();
}

/// Its standard input is closed, so that it can do what is to be done at the end.
#[test]
fn a_server_that_stops() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "echo $$ >> $0/pids; cat; sleep 0.5; echo done >> $0/done";
    let server = server(&queue, &["--workers=2", &coprocess(&folder, script)]);
    assert_eq!(text(Caller::new(&queue).call("p", b"x")), "x");
    let pids = folder.await_pids(2);
    server.stop().expect_no_warnings();
    assert_eq!(folder.lines("done"), ["done", "done"]);
    assert!(pids.iter().all(|pid| has_ended(*pid)));
}

/// So is that of one that another was to replace, and it has its time, too.
#[test]
fn a_server_that_stops_while_one_is_replaced() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script =
        "cat; echo end >> $0/ends; until test -e $0/go; do sleep 0.05; done; echo done >> $0/done";
    let args = ["--kill-delay=1m", "--coprocess-calls=1", &coprocess(&folder, script)];
    let server = server(&queue, &args);
    assert_eq!(text(Caller::new(&queue).call("p", b"x")), "x");
    await_that("it is being replaced", || folder.lines("ends").len() == 1);
    server.signal("TERM");
    queue.await_state((0, 0));
    std::thread::sleep(Duration::from_millis(500));
    fs::write(folder.path("go"), "").unwrap();
    assert_eq!(server.wait().code(), 0);
    assert_eq!(folder.lines("done"), ["done"]);
}

/// The call in hand is finished and answered first.
#[test]
fn a_server_that_stops_in_a_call() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "while read -r n; do echo $$ >> $0/pids; until test -e $0/go; do sleep 0.05; done; echo $n; done";
    let server = server(&queue, &[&coprocess(&folder, script)]);
    let caller = Caller::new(&queue);
    caller.send(b"kept", AmqpProperties::default().with_app_id("p".into()));
    let pid = folder.await_pids(1)[0];
    server.signal("TERM");
    queue.await_state((0, 1));
    assert!(!has_ended(pid));
    fs::write(folder.path("go"), "").unwrap();
    assert_eq!(text(caller.receive()), "kept");
    assert_eq!(server.wait().code(), 0);
    assert!(has_ended(pid));
}

#[test]
fn one_that_does_not_want_to_end_with_its_server() {
    let stubborn =
        "trap \"echo told >> $0/told\" TERM; echo $$ >> $0/pids; while true; do sleep 0.1; done";
    // Asked once, it waits for both delays; asked twice, for none.
    for (delay, is_asked_twice) in [("1s", false), ("1h", true)] {
        let (queue, folder) = (Queue::new(), Folder::new());
        let server = server(&queue, &["--kill-delay", delay, &coprocess(&folder, stubborn)]);
        let pid = folder.await_pids(1)[0];
        server.signal("TERM");
        if is_asked_twice {
            queue.await_state((0, 0));
            std::thread::sleep(Duration::from_millis(200));
            server.signal("TERM");
        }
        let code = if is_asked_twice { 128 + 15 } else { 0 };
        assert_eq!(server.wait().code(), code);
        assert!(has_ended(pid));
        assert_eq!(folder.lines("told").len(), usize::from(!is_asked_twice));
    }
}

/// A server that is killed closes their standard input, too.
#[test]
fn a_server_that_is_killed() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "echo $$ >> $0/pids; cat; echo $$ >> $0/done";
    let server = server(&queue, &["--workers=3", &coprocess(&folder, script)]);
    let pids = folder.await_pids(3);
    server.signal("KILL");
    server.wait();
    for pid in pids {
        await_that("it has ended", || has_ended(pid));
    }
    assert_eq!(folder.lines("done").len(), 3);
}

// Many calls.

#[test]
fn one_that_leaks_is_replaced() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "trap \"\" TERM; echo $$ >> $0/pids; cat; echo end >> $0/ends";
    let args = ["--coprocess-calls=3", &coprocess(&folder, script)];
    let server = server(&queue, &args);
    let numbers: Vec<String> = (0..10).map(|n| n.to_string()).collect();
    let given: Vec<&str> = numbers.iter().map(String::as_str).collect();
    queue.client(&[&["p"], &given[..]].concat()).expect(0, &(numbers.join("\n") + "\n"), "");
    await_that("three have ended, a fourth runs", || folder.lines("ends").len() == 3);
    assert_eq!(folder.await_pids(4).len(), 4);
    server.stop().expect_no_warnings();
}

/// Those that a longer call takes to hear of its cancellation are not there: it looks instead.
#[cfg(target_os = "linux")]
#[test]
fn a_call_goes_on_and_can_be_cancelled_without_more_descriptors() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let proxy = Proxy::start(&broker(), |_| Action::Pass);
    let script = "while read x; do echo $$ >> $0/pids; until test -e $0/$x; do sleep 0.1; done; echo $x; done";
    let server = server_at(&proxy.url, &queue, &[&coprocess(&folder, script)]);
    let limit = |limit: &str| {
        let pid = server.pid().to_string();
        let status = std::process::Command::new("prlimit").args(["--pid", &pid, limit]).status();
        assert!(status.unwrap().success(), "{limit}");
    };
    let caller = Caller::new(&queue);
    limit("--nofile=3:");
    for (n, x) in [(1, "one"), (2, "two")] {
        caller.send(x.as_bytes(), AmqpProperties::default());
        let pids = folder.await_pids(n);
        assert_eq!(pids[0], pids[n - 1], "it is still the same program");
        if x == "one" {
            // Well over the time that a call does without them.
            std::thread::sleep(Duration::from_millis(500));
            fs::write(folder.path(x), "").unwrap();
            assert_eq!(text(caller.receive()), "one");
        }
    }
    proxy.end_connections();
    let pid = folder.await_pids(2)[1];
    await_that("it is ended with its call", || has_ended(pid));
    limit("--nofile=1024:");
    fs::write(folder.path("two"), "").unwrap();
    assert_eq!(text(caller.receive()), "two");
}

#[test]
fn thousands_of_calls_leave_nothing() {
    leave_nothing("--coprocess=p=cat", &["p", "x"], ["500", "5000"], 2);
}

/// Slow ones, some of which are late, and those that die before an answer, in it, after it, and with one line too many.
/// `COPROCESS_CALLS` is another number of calls.
#[test]
fn no_answer_is_another_calls() {
    let queue = Queue::new();
    let calls: usize =
        std::env::var("COPROCESS_CALLS").map_or(3_000, |calls| calls.parse().unwrap());
    let script = "$k = int rand 300; \
         $k == 0 ? exit 3 : $k == 1 ? sleep 3 : $k == 2 ? (syswrite(STDOUT, q(half)), kill 9, $$) : 0; \
         $k == 3 and select undef, undef, undef, 0.9 + rand 0.2; \
         $k < 20 and select undef, undef, undef, rand 0.02; \
         syswrite STDOUT, $k == 5 ? qq($_\\nmore\\n) : qq($_\\n); $k == 4 and exit";
    let server = server(&queue, &["--workers=8", "--time-limit=1s", &perl(script)]);
    let arguments: String = (0..calls).map(|n| format!("{n}-{}\n", n * 7919)).collect();
    let args =
        ["--queue", queue.name(), "--format=json", "--timeout=10m", "--in-flight=256", "p", "-"];
    let client = feed(&mut client_command(&broker(), &args), arguments.into_bytes());
    let ended = client.wait_for(PATIENCE + Duration::from_millis(20 * calls as u64));
    let (mut right, mut failures) = (0, std::collections::BTreeMap::<String, usize>::new());
    for line in ended.stdout.lines() {
        let call: serde_json::Value = serde_json::from_str(line).unwrap();
        if call["ok"] == true {
            assert_eq!(call["result"], call["argument"]);
            right += 1;
        } else {
            let message = call["error"]["message"].as_str().unwrap();
            *failures.entry(message.chars().take(60).collect()).or_default() += 1;
        }
    }
    println!("{right} of {calls} right, {} MB, {failures:?}", server.peak_memory());
    assert_eq!(right + failures.values().sum::<usize>(), calls);
    assert!(right > calls * 9 / 10, "{right} of {calls}, {failures:?}");
    // Late, killed, and ended.
    assert!(failures.len() >= 3, "{failures:?}");
    await_that("nothing else runs", || children(server.pid()) <= 8);
    assert!(descriptors(server.pid()) < 100, "{}", descriptors(server.pid()));
    server.stop();
}
