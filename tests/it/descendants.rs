//! That nothing which a program has started outlives its call, whatever it did to its process group, its session and
//! its environment, however the call ends, and that nobody else's programs are killed for it.
//!
//! GNU parallel is needed, and bash, and the tools of util-linux and coreutils.

use crate::commands::{Caller, Folder, children, failed, has_ended, stat, text};
use crate::harness::*;
use amiquip::AmqpProperties;
use fib_rpc::error::ErrorKind::TimedOut;
use fib_rpc::procedure::Outcome;
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// What leaves its program's process group, or its session, or its parent. WORK is a program that tells its process id
/// and sleeps.
const WAYS_OUT: [(&str, &str); 8] = [
    ("timeout", "timeout 600 WORK"),
    ("jobs", "bash -c \"set -m; WORK & wait\""),
    ("session", "setsid -w WORK"),
    ("nohup", "nohup WORK & wait"),
    ("orphan", "(WORK &) ; sleep 1000"),
    ("daemon", "(setsid WORK < /dev/null > /dev/null 2>&1 &) ; sleep 1000"),
    ("nameless", "(env -i setsid WORK < /dev/null > /dev/null 2>&1 &) ; sleep 1000"),
    ("parallel", "parallel WORK ::: 1"),
];

/// The options for a procedure for each way out. Each writes a line into `pids`. `last` is the end of its script.
fn ways_out(folder: &Folder, last: &str) -> Vec<String> {
    let work = format!("#!/bin/sh\necho $$ >> {}/pids\nexec sleep 1000\n", folder.0.display());
    let work = folder.write("work", &work, 0o755);
    let procedure = |(name, script): (&str, &str)| {
        let script = script.replace("WORK", work.to_str().unwrap());
        format!("--procedure={name}=sh -c '{script}{last}'")
    };
    WAYS_OUT.map(procedure).into()
}

fn send_to_all(caller: &Caller<'_>) {
    for (name, _) in WAYS_OUT {
        caller.send(b"", AmqpProperties::default().with_app_id(name.into()));
    }
}

#[track_caller]
fn await_ends(pids: &[u32]) {
    for pid in pids {
        await_that("what a program started has ended", || has_ended(*pid));
    }
}

/// The arguments of a server with a worker for each way out.
fn args<'a>(more: &[&'a str], procedures: &'a [String]) -> Vec<&'a str> {
    let procedures = procedures.iter().map(String::as_str);
    ["--workers", "8"].into_iter().chain(more.iter().copied()).chain(procedures).collect()
}

#[test]
fn nothing_outlives_a_time_limit() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let procedures = ways_out(&folder, "");
    let server = server(&queue, &args(&["--time-limit", "3s"], &procedures));
    let caller = Caller::new(&queue);
    send_to_all(&caller);
    let pids = folder.await_pids(WAYS_OUT.len());
    for _ in WAYS_OUT {
        assert_eq!(caller.receive().unwrap_err().kind, TimedOut);
    }
    await_ends(&pids);
    await_that("it is reaped", || children(server.pid()) == 0);
}

#[test]
fn nothing_outlives_a_program_that_ends() {
    let (queue, folder) = (Queue::new(), Folder::new());
    // It waits until all have begun.
    let last = format!(" & until test -e {}/go; do sleep 0.05; done", folder.0.display());
    let procedures = ways_out(&folder, &last);
    let server = server(&queue, &args(&[], &procedures));
    let caller = Caller::new(&queue);
    send_to_all(&caller);
    let pids = folder.await_pids(WAYS_OUT.len());
    assert!(pids.iter().all(|pid| !has_ended(*pid)));
    fs::write(folder.path("go"), "").unwrap();
    for _ in WAYS_OUT {
        assert_eq!(text(caller.receive()), "");
    }
    await_ends(&pids);
    await_that("it is reaped", || children(server.pid()) == 0);
}

#[test]
fn nothing_outlives_too_much_output() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let last = format!(" & until test -e {}/go; do sleep 0.05; done; yes", folder.0.display());
    let procedures = ways_out(&folder, &last);
    let _server = server(&queue, &args(&[], &procedures));
    let caller = Caller::new(&queue);
    send_to_all(&caller);
    let pids = folder.await_pids(WAYS_OUT.len());
    fs::write(folder.path("go"), "").unwrap();
    await_ends(&pids);
}

#[test]
fn nothing_outlives_a_connection() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let proxy = crate::proxy::Proxy::start(&broker(), |_| crate::proxy::Action::Pass);
    let procedures = ways_out(&folder, "");
    let server = server_at(&proxy.url, &queue, &args(&[], &procedures));
    let caller = Caller::new(&queue);
    send_to_all(&caller);
    let pids = folder.await_pids(WAYS_OUT.len());
    proxy.end_connections();
    await_ends(&pids);
    assert!(!has_ended(server.pid()));
}

/// Asked twice, it kills the programs; asked by SIGHUP, as when its terminal is closed, it does the same.
#[test]
fn nothing_outlives_a_server_that_is_asked_twice() {
    for (signal, code) in [("TERM", 143), ("HUP", 129)] {
        let (queue, folder) = (Queue::new(), Folder::new());
        let procedures = ways_out(&folder, "");
        let server = server(&queue, &args(&[], &procedures));
        let caller = Caller::new(&queue);
        send_to_all(&caller);
        let pids = folder.await_pids(WAYS_OUT.len());
        server.signal(signal);
        std::thread::sleep(Duration::from_millis(500));
        assert!(pids.iter().all(|pid| !has_ended(*pid)), "asked once, it waits for them");
        server.signal(signal);
        assert_eq!(server.wait().code(), code);
        await_ends(&pids);
    }
}

/// What is stopped and goes on, again and again, sees each process at another moment of its end. Each of these is in a
/// process group of its own.
#[test]
fn nothing_outlives_a_server_that_is_held_up() {
    for round in 1..=16 {
        let (queue, folder) = (Queue::new(), Folder::new());
        let chain = format!(
            "#!/bin/bash\nset -m\necho $$ >> {}/pids\n\
             case $1 in 0) exec sleep 1000 ;; *) \"$0\" $(($1 - 1)) & wait ;; esac\n",
            folder.0.display()
        );
        let chain = folder.write("chain", &chain, 0o755);
        let mut server = server(&queue, &[&format!("--procedure=p={} 3", chain.display())]);
        let caller = Caller::new(&queue);
        caller.send(b"", AmqpProperties::default().with_app_id("p".into()));
        let pids = folder.await_pids(4);
        server.signal("TERM");
        std::thread::sleep(Duration::from_millis(500));
        server.signal("TERM");
        let pid = Pid::from_raw(server.pid() as i32).unwrap();
        // Until it is reaped here, its number is its own.
        while !server.has_ended() {
            kill_process(pid, Signal::STOP).unwrap();
            std::thread::sleep(Duration::from_millis(2));
            kill_process(pid, Signal::CONT).unwrap();
            std::thread::sleep(Duration::from_micros(50 * round));
        }
        assert_eq!(server.wait().code(), 143);
        await_ends(&pids);
    }
}

/// A program may clean up when it is told to end, and so may what it has started.
#[test]
fn what_a_program_started_has_time_to_end() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let work = format!(
        "#!/bin/sh\ntrap \"sleep 0.5; echo done > {0}/cleaned; exit\" TERM\necho $$ >> {0}/pids\nsleep 1000 & wait\n",
        folder.0.display()
    );
    folder.write("work", &work, 0o755);
    let _server = server(&queue, &["--time-limit", "2s", &folder.procedure("setsid -w $0/work")]);
    let found = Caller::new(&queue).call("p", b"");
    assert_eq!(found, failed(TimedOut, "p did not end in time", None));
    await_ends(&folder.await_pids(1));
    assert_eq!(folder.lines("cleaned"), ["done"]);
}

/// One goes on during fifty others. What it has started is its own, even what cannot be told any more whose it is.
#[test]
fn nobody_elses_programs_are_killed() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let mut procedures = ways_out(&folder, " & read seconds; sleep $seconds");
    let path = folder.0.display();
    let own = format!("sh -c \"echo \\$\\$ >> {path}/own; exec sleep 1000\"");
    procedures.push(format!(
        "--procedure=keep=sh -c '(setsid {own} &) ; (env -i setsid {own} > /dev/null 2>&1 < /dev/null &) ; \
         timeout 600 {own} & until test -e {path}/go; do sleep 0.05; done; cat'"
    ));
    let server = server(&queue, &args(&["--workers", "9"], &procedures));
    let neighbour = Caller::new(&queue);
    neighbour.send(b"kept", AmqpProperties::default().with_app_id("keep".into()));
    await_that("it has started all", || folder.lines("own").len() == 3);
    let own: Vec<u32> = folder.lines("own").iter().map(|pid| pid.parse().unwrap()).collect();

    // The first eight are over their time, the others end by themselves.
    let caller = Caller::new(&queue);
    for n in 0..50 {
        let (name, _) = WAYS_OUT[n % WAYS_OUT.len()];
        let properties = AmqpProperties::default().with_app_id(name.into());
        match n {
            0..8 => caller.send(b"1000\n", properties.with_expiration("4000".into())),
            _ => caller.send(b"1\n", properties),
        }
    }
    let outcomes: Vec<Outcome> = (0..50).map(|_| caller.receive()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_err()).count(), 8, "{outcomes:?}");
    let pids = folder.await_pids(WAYS_OUT.len());
    let nameless = |pid: &u32| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        !String::from_utf8_lossy(&environment).contains("RPC_RUN=")
    };
    for pid in &pids {
        await_that("it has ended, or nobody knows whose it is", || {
            has_ended(*pid) || nameless(pid)
        });
    }
    assert!(own.iter().all(|pid| !has_ended(*pid)), "a neighbour was killed");

    fs::write(folder.path("go"), "").unwrap();
    assert_eq!(text(neighbour.receive()), "kept");
    await_ends(&own);
    await_ends(&folder.await_pids(0));
    await_that("it is reaped", || children(server.pid()) == 0);
}

/// They have nobody else who would do it.
#[test]
fn orphans_are_reaped_while_their_program_runs() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "for i in 1 2 3; do (sh -c \"echo \\$\\$ >> $0/pids\" &) ; done; \
                  until test -e $0/go; do sleep 0.05; done";
    let server = server(&queue, &[&folder.procedure(script)]);
    let caller = Caller::new(&queue);
    caller.send(b"", AmqpProperties::default());
    for pid in folder.await_pids(3) {
        await_that("it is reaped", || stat(&pid.to_string()).is_none());
    }
    assert_eq!(children(server.pid()), 1);
    fs::write(folder.path("go"), "").unwrap();
    assert_eq!(text(caller.receive()), "");
}

/// A shell that starts something and then becomes the server by `exec`, as a container's does.
#[test]
fn what_the_server_has_not_started_is_left_alone() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let mut command = Command::new("sh");
    let script = format!(
        "sleep 1000 > /dev/null 2>&1 & echo $! > {}/stranger; exec \"$0\" \"$@\"",
        folder.0.display()
    );
    command.args(["-c", &script, env!("CARGO_BIN_EXE_rpc_server"), "--queue", queue.name()]);
    let procedure = folder.procedure("(setsid sleep 1000 &) ; echo $$ > $0/pids; sleep 1000");
    command.arg(procedure).env("AMQP_URL", broker()).process_group(0);
    let server = Process::spawn(&mut command);
    server.await_stdout(" [x] Awaiting RPC requests\n");
    let stranger: u32 = folder.lines("stranger")[0].parse().unwrap();
    let caller = Caller::new(&queue);
    caller.send(b"", AmqpProperties::default());
    let pids = folder.await_pids(1);
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(500));
    server.signal("TERM");
    assert_eq!(server.wait().code(), 143);
    await_ends(&pids);
    assert!(!has_ended(stranger));
    kill(stranger, "KILL");
}

/// Whatever it asks there fails at once.
#[test]
fn a_program_has_a_session_of_its_own() {
    let queue = Queue::new();
    let script = "ps -o sid= -p $$; echo $$; (: < /dev/tty) 2> /dev/null || echo no terminal";
    let _server = server(&queue, &[&format!("--procedure=p=sh -c '{script}'")]);
    let found = text(Caller::new(&queue).call("p", b""));
    let lines: Vec<&str> = found.lines().map(str::trim).collect();
    assert_eq!(lines[0], lines[1]);
    assert_eq!(lines[2], "no terminal");
}

#[test]
fn a_server_whose_terminal_is_closed_finishes_its_programs() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "echo $$ > $0/pids; until test -e $0/go; do sleep 0.05; done; cat";
    let server = server(&queue, &[&folder.procedure(script)]);
    let caller = Caller::new(&queue);
    caller.send(b"answered", AmqpProperties::default());
    folder.await_pids(1);
    server.signal("HUP");
    await_that("it does not consume", || queue.state().is_some_and(|state| state.1 <= 1));
    fs::write(folder.path("go"), "").unwrap();
    assert_eq!(text(caller.receive()), "answered");
    assert_eq!(server.wait().code(), 0);
}

/// Which nohup(1) does.
#[test]
fn a_server_that_is_to_outlive_its_terminal() {
    let queue = Queue::new();
    let mut command = Command::new("nohup");
    command.args([env!("CARGO_BIN_EXE_rpc_server"), "--queue", queue.name()]);
    let server = Process::spawn(command.env("AMQP_URL", broker()));
    server.await_stdout(" [x] Awaiting RPC requests\n");
    server.signal("HUP");
    queue.client(&["-q", "ping"]).expect(0, "pong\n", "");
    server.signal("TERM");
    assert_eq!(server.wait().code(), 0);
}

/// A process that forks and ends again and again is never the same one for longer than a moment. (perl is needed.)
#[test]
fn what_forks_and_ends_again_and_again() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let name = format!("forks-{}", uuid::Uuid::new_v4());
    let text = format!(
        "use POSIX; $0 = q({name});\n\
         if (!fork) {{ for (;;) {{ POSIX::_exit(0) if fork; setsid(); select(undef, undef, undef, 0.001); }} }}\n\
         open(my $file, q(>), q({}/pids)); print $file qq($$\\n); close($file); sleep(1000);\n",
        folder.0.display()
    );
    let script = folder.write("forks", &text, 0o644);
    let procedure = format!("--procedure=p=perl {}", script.display());
    let _server = server(&queue, &["--time-limit", "2s", &procedure]);
    let caller = Caller::new(&queue);
    caller.send(b"", AmqpProperties::default());
    folder.await_pids(1);
    let is_there = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let mut lines = processes.filter_map(|entry| fs::read(entry.path().join("cmdline")).ok());
        lines.any(|line| line.starts_with(name.as_bytes()))
    };
    await_that("it forks", is_there);
    assert_eq!(caller.receive().unwrap_err().kind, TimedOut);
    await_that("none of it is left", || (0..20).all(|_| !is_there()));
}
