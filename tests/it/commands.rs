//! Programs as procedures: what they get, how each way to end is answered, and that nothing of them is
//! left, whatever happens to them, to their server and to its connection.

use crate::harness::*;
use amiquip::{AmqpProperties, AmqpValue, FieldTable, QueueDeclareOptions};
use fib_rpc::error::ErrorKind::{
    self, Internal, InvalidArgument, OutOfRange, TimedOut, Unavailable,
};
use fib_rpc::procedure::{Error, Outcome};
use fib_rpc::protocol::Reply;
use serde_json::json;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A folder for a test's scripts and for what they write. Any user may do so.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new() -> Folder {
        let folder = std::env::temp_dir().join(format!("fib-rpc-test-{}", Uuid::new_v4()));
        fs::create_dir(&folder).unwrap();
        fs::set_permissions(&folder, Permissions::from_mode(0o777)).unwrap();
        Folder(folder)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// A file that may be executed, or not.
    pub fn write(&self, name: &str, text: &str, mode: u32) -> PathBuf {
        fs::write(self.path(name), text).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
        self.path(name)
    }

    /// The option for a procedure `p` that is a shell's script, in which `$0` is this folder.
    pub fn procedure(&self, script: &str) -> String {
        assert!(!script.contains('\''), "{script}");
        format!("--procedure=p=sh -c '{script}' {}", self.0.display())
    }

    /// The lines of a file. It may not be there yet.
    pub fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a script has written that many process ids to `pids`, one a line.
    #[track_caller]
    pub fn await_pids(&self, number: usize) -> Vec<u32> {
        await_that("the pids are there", || self.lines("pids").len() >= number);
        self.lines("pids").iter().map(|pid| pid.parse().unwrap()).collect()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The fields after the name in proc_pid_stat(5): state, parent, process group. None: there is none.
pub fn stat(pid: &str) -> Option<(char, u32, u32)> {
    let stat = fs::read_to_string(Path::new("/proc").join(pid).join("stat")).ok()?;
    let mut fields = stat.rsplit(") ").next()?.split(' ');
    let mut field = || fields.next();
    Some((field()?.parse().ok()?, field()?.parse().ok()?, field()?.parse().ok()?))
}

/// Whether a process has ended; its parent need not have reaped it.
pub fn has_ended(pid: u32) -> bool {
    stat(&pid.to_string()).is_none_or(|(state, ..)| state == 'Z')
}

/// The children of a process, zombies among them.
pub fn children(parent: u32) -> usize {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let names = processes.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|pid| stat(pid).is_some_and(|(_, of, _)| of == parent)).count()
}

pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// A client that may send any message.
pub struct Caller<'a> {
    amqp: Amqp,
    reply_to: String,
    queue: &'a Queue,
}

impl Caller<'_> {
    pub fn new(queue: &Queue) -> Caller<'_> {
        let amqp = Amqp::new();
        Caller { reply_to: amqp.exclusive(), amqp, queue }
    }

    pub fn send(&self, body: &[u8], properties: AmqpProperties) {
        let properties = properties.with_reply_to(self.reply_to.clone());
        self.amqp.publish(self.queue.name(), body, properties);
    }

    /// The outcome, but for what the program wrote to standard error.
    #[track_caller]
    pub fn receive(&self) -> Outcome {
        let reply = self.amqp.next(&self.reply_to);
        let outcome = Reply::decode(&reply.properties, reply.body).unwrap().outcome;
        outcome.map_err(|error| Error { stderr: None, ..error })
    }

    #[track_caller]
    pub fn call(&self, name: &str, body: &[u8]) -> Outcome {
        self.send(body, AmqpProperties::default().with_app_id(name.into()));
        self.receive()
    }
}

pub fn failed(kind: ErrorKind, message: &str, exit_code: Option<u8>) -> Outcome {
    Err(Error { exit_code, ..Error::new(kind, message) })
}

pub fn text(outcome: Outcome) -> String {
    String::from_utf8(outcome.unwrap()).unwrap()
}

// How each way to end is answered.

#[test]
fn every_way_to_end() {
    let strange = b"\0a\n\n\xff\r\n\x1b[2J".as_slice();
    let mib_16 = vec![b'x'; 16 << 20];
    let ok = |output: &[u8]| Ok(output.to_vec());
    let error = |kind, message: &str| failed(kind, message, None);
    let over = "the result has over 16777216 bytes, which the broker takes";
    let exit = |kind, code| failed(kind, &format!("p exited with {code}"), Some(code));
    for (command, body, expected) in [
        ("cat", strange, ok(strange)),
        ("cat", &mib_16, ok(&mib_16)),
        ("true", b"", ok(b"")),
        ("true", &mib_16, ok(b"")),
        ("sh -c 'exec <&-; sleep 0.2; echo'", &mib_16, ok(b"\n")),
        ("sh -c 'exec >&-; cat >&2'", b"said", ok(b"")),
        ("sh -c 'exec 2>&-; cat'", b"said", ok(b"said")),
        ("sh -c 'exec <&- >&- 2>&-; sleep 0.2; exit 3'", b"", exit(Internal, 3)),
        ("sh -c 'cat; exit 64'", b"lost", exit(InvalidArgument, 64)),
        ("sh -c 'exit 65'", b"", exit(InvalidArgument, 65)),
        ("sh -c 'exit 75'", b"", exit(Unavailable, 75)),
        ("false", b"", exit(Internal, 1)),
        ("sh -c 'exit 255'", b"", exit(Internal, 255)),
        (
            "sh -c 'echo first >&2; cat >&2; echo >&2; exit 65'",
            b"second\r\n",
            failed(InvalidArgument, "second", Some(65)),
        ),
        ("sh -c 'printf caf\\\\351 >&2; exit 1'", b"", failed(Internal, "caf\u{fffd}", Some(1))),
        ("sh -c 'kill -9 $$'", b"", error(Internal, "p was killed by SIGKILL")),
        ("sh -c 'echo why >&2; kill -SEGV $$'", b"", error(Internal, "why")),
        ("head -c 20000000 /dev/zero", b"", error(OutOfRange, over)),
        ("yes", b"", error(OutOfRange, over)),
        ("sh -c 'trap : TERM; head -c 20000000 /dev/zero; exit 0'", b"", error(OutOfRange, over)),
        // What was left running has a second.
        ("sh -c '(sleep 0.2; echo late)& echo early'", b"", ok(b"early\nlate\n")),
        ("sh -c 'sleep 1000 & echo early'", b"", ok(b"early\n")),
        ("sh -c 'setsid sleep 5 & echo away'", b"", ok(b"away\n")),
    ] {
        let queue = Queue::new();
        let server = server(&queue, &[&format!("--procedure=p={command}")]);
        let found = Caller::new(&queue).call("p", body);
        assert!(found == expected, "{command}: {found:.200?}");
        server.signal("TERM");
        assert_eq!(server.wait().code(), 0, "{command}");
    }
}

/// The client has an exit code for each.
#[test]
fn what_a_client_says() {
    let queue = Queue::new();
    let folder = Folder::new();
    let _server = server(&queue, &[&folder.procedure("read code; echo no >&2; exit $code")]);
    for (code, exit) in [("64", 65), ("65", 65), ("75", 75), ("3", 70)] {
        let ended = queue.client(&["p", code]);
        assert_eq!((ended.code(), ended.stdout.as_str()), (exit, ""), "{ended:?}");
        let told = format!("rpc_client: p({code}): no");
        assert!(ended.stderr.starts_with(&told), "{ended:?}");
    }
}

/// Each line with the name in front, none longer than a message, and no control character as it is.
#[test]
fn what_a_program_says_is_logged() {
    let queue = Queue::new();
    let folder = Folder::new();
    let script = "head -c 1000000 /dev/zero | tr \"\\0\" e >&2; echo >&2; cat >&2; exit 65";
    let server = server(&queue, &[&folder.procedure(script)]);
    let before = server.peak_memory();
    let found = Caller::new(&queue).call("p", b"\x1b[2J\nlast");
    assert_eq!(found, failed(InvalidArgument, "last", Some(65)));
    assert!(server.peak_memory() - before <= 4, "{} MB", server.peak_memory());
    server.signal("TERM");
    let stderr = format!(
        "rpc_server: p: {}…\nrpc_server: p: \\u{{1b}}[2J\nrpc_server: p: last\n\
         rpc_server: p(\\u{{1b}}[2J\\nlast): invalid-argument, N ms\n",
        "e".repeat(1997)
    );
    let stdout = " [x] Awaiting RPC requests\n [.] p(\\u{1b}[2J\\nlast)\n";
    server.wait().timeless().expect(0, stdout, &stderr);
}

#[test]
fn how_long_each_call_took() {
    let queue = Queue::new();
    let server = server(&queue, &["-v"]);
    queue.client(&["fib", "30"]).expect(0, "832040\n", "");
    server.signal("TERM");
    let ended = server.wait().timeless();
    assert!(ended.stderr.contains("rpc_server: fib(30): result, N ms\n"), "{ended:?}");
}

/// Its child too. One ignores SIGTERM, the other is stopped.
#[test]
fn over_its_time() {
    let stubborn = "trap \"\" TERM; sleep 1000 & echo $$ $! | tr \" \" \"\\n\" > \"$0/pids\"; wait";
    let stopped = "sleep 1000 & echo $! > \"$0/pids\"; echo $$ >> \"$0/pids\"; kill -STOP $$; wait";
    for (script, least) in [(stubborn, 3), (stopped, 1)] {
        let (queue, folder) = (Queue::new(), Folder::new());
        let server = server(&queue, &["--time-limit", "1s", &folder.procedure(script)]);
        let started = Instant::now();
        let found = Caller::new(&queue).call("p", b"");
        assert_eq!(found, failed(TimedOut, "p did not end in time", None), "{script}");
        assert!(started.elapsed() >= Duration::from_secs(least), "{script}");
        for pid in folder.await_pids(2) {
            await_that("it has ended", || has_ended(pid));
        }
        await_that("they are reaped", || children(server.pid()) == 0);
    }
}

/// A client that waits for a second is not the only one whose program is killed then.
#[test]
fn over_the_callers_time() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "echo $$ > \"$0/pids\"; echo $RPC_TIME_LIMIT > \"$0/limit\"; sleep 1000";
    let server = server(&queue, &[&folder.procedure(script)]);
    let ended = queue.client(&["--timeout", "2s", "p"]);
    assert_eq!(ended.code(), 75, "{ended:?}");
    server.await_stderr("rpc_server: p(): timed-out, ");
    assert!(has_ended(folder.await_pids(1)[0]));
    let limit: f64 = folder.lines("limit")[0].parse().unwrap();
    assert!(limit > 0.0 && limit <= 2.0, "{limit}");
}

// What it gets.

#[test]
fn the_environment() {
    let queue = Queue::new();
    let url = broker().replace("amqp://", "amqp://guest:guest@");
    let files =
        "cat /proc/self/environ /proc/self/cmdline; env; ls -l /proc/self/fd; echo $0 \"$@\"";
    let procedure = format!("--procedure=p=sh -c '{files}' a \"b  c\" 'd\"e'");
    for args in [&["--time-limit", "0"][..], &[]] {
        let args = [args, &[procedure.as_str()]].concat();
        let mut command = server_command(&url, &[&["--queue", queue.name()], &args[..]].concat());
        let inherited = [("RPC_CONTENT_TYPE", "x"), ("RPC_TIME_LIMIT", "x"), ("OTHER", "kept")];
        let server = Process::spawn(command.envs(inherited));
        server.await_stdout(" [x] Awaiting RPC requests\n");
        let found = text(Caller::new(&queue).call("p", b""));
        for (wanted, is_there) in [
            ("RPC_PROCEDURE=p\n", true),
            ("RPC_REDELIVERED=0\n", true),
            ("OTHER=kept\n", true),
            ("RPC_TIME_LIMIT=600.000\n", args.len() == 1),
            ("RPC_TIME_LIMIT=", args.len() == 1),
            ("RPC_CONTENT_TYPE", false),
            ("RPC_CORRELATION_ID", false),
            ("RPC_HEADERS={}\n", true),
            ("RPC_TYPE", false),
            ("AMQP_URL", false),
            ("guest", false),
            // The server's connection and what it waits with.
            ("socket:", false),
            ("anon_inode:", false),
        ] {
            assert_eq!(found.contains(wanted), is_there, "{wanted} in {found}");
        }
        assert!(found.ends_with("\na b  c d\"e\n"), "{found}");
    }
}

/// A shell would do something about each of these.
#[test]
fn nothing_in_a_request_is_a_command() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let args = ["--queue", queue.name(), &folder.procedure("env -0; cat"), "--procedure=fib"];
    let server = Process::spawn(server_command(&broker(), &args).current_dir(&folder.0));
    server.await_stdout(" [x] Awaiting RPC requests\n");
    let hostile =
        "\n; touch t; $(touch t) `touch t` | touch t & touch t\n\" ' \\ \t\r\u{7}\u{1b}[2J";
    let amqp = Amqp::new();
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    // RabbitMQ leaves out what ends a line in a queue's name.
    let reply_to = hostile.replace(['\r', '\n'], "");
    amqp.channel.queue_declare(reply_to.as_str(), options).unwrap();
    let mut headers = FieldTable::new();
    headers.insert("PATH".into(), AmqpValue::LongString(hostile.into()));
    let properties = AmqpProperties::default()
        .with_reply_to(reply_to.clone())
        .with_correlation_id(format!("{hostile}\0"))
        .with_content_type(hostile.into())
        .with_content_encoding(hostile.into())
        .with_message_id(hostile.into())
        .with_type_(hostile.into())
        .with_cluster_id(hostile.into())
        .with_headers(headers);
    for (name, is_known) in [("p", true), (hostile, false), ("p=sh", false)] {
        let properties = properties.clone().with_app_id(name.into());
        amqp.publish(queue.name(), hostile.as_bytes(), properties);
        let reply = amqp.next(&reply_to);
        assert_eq!(reply.properties.correlation_id(), &Some(format!("{hostile}\0")));
        let outcome = Reply::decode(&reply.properties, reply.body).unwrap().outcome;
        if is_known {
            let found = text(outcome);
            let (environment, body) = found.rsplit_once('\0').unwrap();
            let mut ours: Vec<&str> = environment.split('\0').collect();
            ours.retain(|variable| variable.contains(hostile));
            ours.sort_unstable();
            let id = format!("RPC_CORRELATION_ID={hostile}\u{1a}");
            let content_type = format!("RPC_CONTENT_TYPE={hostile}");
            assert_eq!(ours, [content_type, id, format!("RPC_TYPE={hostile}")]);
            let headers = json!({ "PATH": hostile });
            assert!(environment.contains(&format!("RPC_HEADERS={headers}\0")), "{environment}");
            assert_eq!(body, hostile);
        } else {
            assert_eq!(outcome.unwrap_err().kind, ErrorKind::UnknownProcedure);
        }
    }
    assert!(!folder.path("t").exists());
    assert_eq!(children(server.pid()), 0);
}

/// Whatever is offered; a request that names none means the first.
#[test]
fn what_is_offered() {
    let queue = Queue::new();
    let _server = server(&queue, &["--procedure", "up=tr a-z A-Z", "--procedure", "fib"]);
    let caller = Caller::new(&queue);
    caller.send(b"30", AmqpProperties::default());
    assert_eq!(text(caller.receive()), "30");
    for (name, answer) in [("up", "X1"), ("ping", "pong"), ("list", "fib\nlist\nping\nup")] {
        assert_eq!(text(caller.call(name, b"x1")), answer);
    }
    assert_eq!(text(caller.call("fib", b"10")), "55");
    let message = "there is no procedure \"fun\"; there are fib, list, ping, up";
    assert_eq!(caller.call("fun", b"1"), failed(ErrorKind::UnknownProcedure, message, None));
}

// Programs that are not there.

/// Told before anything is consumed.
#[test]
fn what_cannot_be_executed_is_told_at_the_start() {
    let folder = Folder::new();
    let no_run_bit = folder.write("no-run-bit", "#!/bin/sh\n", 0o644);
    for word in ["no-such-program", no_run_bit.to_str().unwrap(), folder.0.to_str().unwrap()] {
        let queue = Queue::new();
        let option = format!("--procedure=p={word} -x");
        let args = ["--queue", queue.name(), "--procedure=fib", &option];
        let stderr = format!(
            "rpc_server: --procedure p: \"{word}\" is not a program that can be executed: it takes a \
             path, or a name in PATH, of a file with permission to execute it (chmod +x)\n"
        );
        Process::spawn(&mut server_command(&broker(), &args)).wait().expect(78, "", &stderr);
        assert_eq!(queue.state(), None);
    }
    for (args, reason) in [
        (&["--procedure=fib", "--procedure=fib=cat"][..], "--procedure fib is given twice\n"),
        (
            &["--procedure=p=cat '"],
            "invalid value 'p=cat '' for '--procedure <NAME[=COMMAND]>': a quote is open\n",
        ),
    ] {
        let ended = Process::spawn(&mut server_command(&broker(), args)).wait();
        let told = format!("rpc_server: {reason}");
        assert!(ended.code() == 64 && ended.stderr.starts_with(&told), "{ended:?}");
    }
}

#[test]
fn a_program_that_changes_while_the_server_runs() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = folder.write("p", "#!/bin/sh\necho one\n", 0o755);
    let server = server(&queue, &[&format!("--procedure=p={}", script.display())]);
    let caller = Caller::new(&queue);
    let not_started =
        |reason: &str| failed(Internal, &format!("p cannot be started: {reason}"), None);
    assert_eq!(text(caller.call("p", b"")), "one\n");
    folder.write("new", "#!/bin/sh\necho two\n", 0o755);
    fs::rename(folder.path("new"), &script).unwrap();
    assert_eq!(text(caller.call("p", b"")), "two\n");
    for (text, mode, reason) in [
        ("#!/bin/sh\n", 0o644, "Permission denied (os error 13)"),
        ("#!/no/such/shell\n", 0o755, "No such file or directory (os error 2)"),
        ("echo no line for an interpreter\n", 0o755, "Exec format error (os error 8)"),
    ] {
        folder.write("p", text, mode);
        assert_eq!(caller.call("p", b""), not_started(reason));
    }
    fs::remove_file(&script).unwrap();
    assert_eq!(caller.call("p", b""), not_started("No such file or directory (os error 2)"));
    folder.write("p", "#!/bin/sh\necho three\n", 0o755);
    assert_eq!(text(caller.call("p", b"")), "three\n");
    server.await_stderr("rpc_server: p cannot be started: Exec format error (os error 8)\n");
    assert_eq!(children(server.pid()), 0);
}

/// The limit on processes does not hold for root, so that root has another user do it.
#[test]
fn no_more_descriptors_and_no_more_processes() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let program = folder.path("rpc_server");
    fs::copy(env!("CARGO_BIN_EXE_rpc_server"), &program).unwrap();
    let args = ["--queue", queue.name(), "--procedure=p=cat"];
    let user = match is_roots(&fs::metadata(&program).unwrap()) {
        true => &["--reuid=54321", "--clear-groups"][..],
        false => &[],
    };
    let as_user = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(user).arg(program).env("AMQP_URL", broker()).env_remove("RUST_LOG");
        command
    };
    let server = Process::spawn(as_user(program.to_str().unwrap()).args(args));
    server.await_stdout(" [x] Awaiting RPC requests\n");
    let limit = |limit: &str| {
        let pid = server.pid().to_string();
        let status = as_user("prlimit").args(["--pid", &pid, limit]).status();
        assert!(status.unwrap().success(), "{limit}");
    };
    let caller = Caller::new(&queue);
    assert_eq!(text(caller.call("p", b"x")), "x");
    let before = descriptors(server.pid());
    for (least, enough, reason) in [
        ("--nofile=3:", "--nofile=1024:", "Too many open files (os error 24)"),
        ("--nproc=1:", "--nproc=1024:", "Resource temporarily unavailable (os error 11)"),
    ] {
        limit(least);
        let message = format!("p cannot be started: {reason}");
        for _ in 0..3 {
            assert_eq!(caller.call("p", b"x"), failed(Unavailable, &message, None));
            assert_eq!(text(caller.call("ping", b"")), "pong");
        }
        limit(enough);
        assert_eq!(text(caller.call("p", b"x")), "x");
    }
    assert_eq!(descriptors(server.pid()), before);
    assert_eq!(children(server.pid()), 0);
}

fn is_roots(file: &fs::Metadata) -> bool {
    std::os::unix::fs::MetadataExt::uid(file) == 0
}

// What is left of it.

/// Even if nothing that a call waits for is open any more.
#[test]
fn what_a_program_leaves_running_is_killed() {
    let queue = Queue::new();
    for script in ["sleep 1000 & echo $!", "sleep 1000 >&- 2>&- & echo $!"] {
        let _server = server(&queue, &[&format!("--procedure=p=sh -c '{script}'")]);
        let pid = text(Caller::new(&queue).call("p", b"")).trim().parse().unwrap();
        await_that("it has ended", || has_ended(pid));
    }
}

/// A script that is slow when it runs for the first time. It tells each of its processes.
const SLOW_AT_FIRST: &str = "echo $$ >> \"$0/pids\"; echo $RPC_REDELIVERED >> \"$0/redelivered\"; \
                             test $(wc -l < \"$0/pids\") != 1 || sleep 1000; cat";

#[test]
fn the_connection_is_lost() {
    let node = Node::start();
    type Event = fn(&Node);
    let events: [(&str, Event); 2] = [
        ("closed the connection", |node| node.close_connections("maintenance")),
        ("lost", |node| {
            kill(node.pid(), "KILL");
            node.restart();
        }),
    ];
    // One that takes SIGTERM, and one that does not.
    for (told, event) in events {
        for trap in ["", "trap \"\" TERM; "] {
            let (queue, folder) = (Queue::at(&node.url), Folder::new());
            let script = format!("{trap}{SLOW_AT_FIRST}");
            let server = server_at(&node.url, &queue, &[&folder.procedure(&script)]);
            let args = ["-q", "--queue", queue.name(), "--timeout", "10m", "p", "again"];
            let client = Process::spawn(&mut client_command(&node.url, &args));
            let first = folder.await_pids(1)[0];
            event(&node);
            let ended = client.wait();
            assert_eq!((ended.code(), ended.stdout.as_str()), (0, "again\n"), "{ended:?}");
            assert!(has_ended(first), "{told}");
            server.await_stderr(
                "rpc_server: p(again) is given up with its connection; it comes again, if its queue is \
                 there\n",
            );
            await_that("it is reaped", || children(server.pid()) == 0);
        }
    }
}

/// The server's own, say.
#[test]
fn a_program_that_goes_into_another_process_group() {
    let queue = Queue::new();
    let folder = Folder::new();
    let script = r#"exec perl -e "setpgrp(0, getpgrp(getppid())); sleep 3600""#;
    let server = server(&queue, &[&folder.procedure(script), "--time-limit", "2s"]);
    let stderr = "rpc_client: p(): p did not end in time (timed-out)\n";
    queue.client(&["--timeout", "10m", "p"]).expect(75, "", stderr);
    server.signal("TERM");
    assert_eq!(server.wait().code(), 0);
}

/// Which is inherited.
#[test]
fn a_server_whose_starter_ignores_sigchld() {
    let queue = Queue::new();
    let mut command = Command::new("perl");
    command.args(["-e", "$SIG{CHLD} = q(IGNORE); exec @ARGV", env!("CARGO_BIN_EXE_rpc_server")]);
    command.args(["--queue", queue.name(), "--procedure", "p=cat"]).env("AMQP_URL", broker());
    let server = Process::spawn(&mut command);
    server.await_stdout(" [x] Awaiting RPC requests\n");
    queue.client(&["p", "hello"]).expect(0, "hello\n", "");
}

/// Those that hang do not become more, however often the connection is lost.
#[test]
fn no_more_programs_run_than_there_are_workers() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let proxy = crate::proxy::Proxy::start(&broker(), |_| crate::proxy::Action::Pass);
    let script = "trap \"\" TERM; echo $$ >> \"$0/pids\"; sleep 1000 & wait; wait";
    let args = ["--workers", "2", &folder.procedure(script)];
    let server = server_at(&proxy.url, &queue, &args);
    let caller = Caller::new(&queue);
    for _ in 0..2 {
        caller.send(b"", AmqpProperties::default());
    }
    for round in 1..=3 {
        folder.await_pids(2 * round);
        await_that("the earlier ones are reaped", || children(server.pid()) == 2);
        if round < 3 {
            proxy.end_connections();
        }
    }
    let pids = folder.await_pids(6);
    assert!(pids[..4].iter().all(|pid| has_ended(*pid)));
    // Asked twice, the server ends at once, and so do they.
    server.signal("TERM");
    std::thread::sleep(Duration::from_millis(500));
    assert!(!has_ended(server.pid()));
    server.signal("TERM");
    assert_eq!(server.wait().code(), 143);
    for pid in pids {
        await_that("it has ended", || has_ended(pid));
    }
    queue.await_state((2, 0));
}

/// Ctrl-C in the server's terminal reaches the server alone, which finishes what it has in hand.
#[test]
fn a_server_that_is_asked_to_stop_finishes_its_programs() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "echo $$ > \"$0/pids\"; until test -e \"$0/go\"; do sleep 0.05; done; cat";
    let args = ["--queue", queue.name(), &folder.procedure(script)];
    let mut command = server_command(&broker(), &args);
    let server = Process::spawn(std::os::unix::process::CommandExt::process_group(&mut command, 0));
    let caller = Caller::new(&queue);
    await_that("the queue is there", || queue.state().is_some());
    caller.send(b"answered", AmqpProperties::default());
    let pid = folder.await_pids(1)[0];
    assert_eq!(stat(&pid.to_string()).map(|(_, _, group)| group), Some(pid));
    server.signal_group("INT");
    await_that("it no longer consumes", || queue.state().is_some_and(|state| state.1 == 1));
    fs::write(folder.path("go"), "").unwrap();
    assert_eq!(text(caller.receive()), "answered");
    assert_eq!(server.wait().code(), 0);
    assert!(has_ended(pid));
    queue.await_state((0, 0));
}

/// `kill -9` leaves the program behind, alone: it runs a second time meanwhile.
#[test]
fn a_server_that_is_killed() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let procedure = folder.procedure(SLOW_AT_FIRST);
    let first = server(&queue, &[&procedure]);
    let args = ["--queue", queue.name(), "--timeout", "10m", "p", "again"];
    let client = Process::spawn(&mut client_command(&broker(), &args));
    folder.await_pids(1);
    first.signal("KILL");
    await_that("the server is gone", || has_ended(first.pid()));
    let _second = server(&queue, &[&procedure]);
    client.wait().expect(0, "again\n", "");
    let pids = folder.await_pids(2);
    assert!(!has_ended(pids[0]) && pids.len() == 2);
    Command::new("kill").args(["-9", "--", &format!("-{}", pids[0])]).status().unwrap();
    assert_eq!(folder.lines("redelivered"), ["0", "1"]);
}

/// Each drill comes to the same as with a function. One line for each time that the program ran.
#[test]
fn drills_with_programs() {
    for (drill, args, runs, code, stdout) in [
        ("crash-before-reply", &["p", "x"][..], 2, 0, "x\n"),
        ("crash-before-ack", &["p", "x"], 2, 0, "x\n"),
        ("duplicate-reply", &["p", "x", "y"], 2, 0, "x\ny\n"),
        ("wrong-correlation-id", &["--timeout", "2s", "p", "x"], 1, 75, ""),
        ("slow=1s", &["p", "x"], 1, 0, "x\n"),
        ("fail", &["p", "x"], 0, 70, ""),
    ] {
        let (queue, folder) = (Queue::new(), Folder::new());
        let procedure = folder.procedure("echo >> \"$0/runs\"; cat");
        let first = server(&queue, &["--drill", drill, &procedure]);
        let args = [&["--queue", queue.name()], args].concat();
        let client = Process::spawn(&mut client_command(&broker(), &args));
        let _last = if drill.starts_with("crash") {
            assert_eq!(first.wait().code(), 128 + 9, "{drill}");
            server(&queue, &[&procedure])
        } else {
            first
        };
        let ended = client.wait();
        assert_eq!((ended.code(), ended.stdout.as_str()), (code, stdout), "{drill}: {ended:?}");
        await_that("it ran as often", || folder.lines("runs").len() == runs);
    }
}

/// One program after another leaves nothing in the server.
#[test]
fn thousands_of_programs() {
    leave_nothing("--procedure=t=true", &["t"], ["200", "3000"], 0);
}

/// Makes `few` calls and then `many`: the server has no more descriptors and memory after these than after those, and so
/// many `programs`.
#[track_caller]
pub fn leave_nothing(offer: &str, call: &[&str], [few, many]: [&str; 2], programs: usize) {
    let queue = Queue::new();
    let server = server(&queue, &["--workers", "2", offer]);
    let calls = |number| {
        let options = ["--format", "json", "--repeat", number, "--timeout", "0"];
        let ended = queue.client(&[&options, call].concat());
        assert_eq!(ended.code(), 0, "{ended:?}");
        (descriptors(server.pid()), children(server.pid()), server.peak_memory())
    };
    let (open, left, peak) = calls(few);
    let after = calls(many);
    assert_eq!((after.0, after.1, left), (open, programs, programs));
    assert!(after.2 <= peak + 1, "{peak} MB, then {} MB", after.2);
}

/// Two servers, several workers each: every call is answered once, by whichever is free.
#[test]
fn two_servers() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let procedure = folder.procedure("echo $PPID >> \"$0/parents\"; sleep 0.1; cat");
    let args = ["--workers", "2", &procedure];
    let servers = [server(&queue, &args), server(&queue, &args)];
    let numbers: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let given: Vec<&str> = numbers.iter().map(String::as_str).collect();
    let ended = queue.client(&[&["p"], &given[..]].concat());
    ended.expect(0, &(numbers.join("\n") + "\n"), "");
    let parents = folder.lines("parents");
    assert_eq!(parents.len(), 40);
    for server in servers {
        assert!(parents.contains(&server.pid().to_string()), "{parents:?}");
    }
}
