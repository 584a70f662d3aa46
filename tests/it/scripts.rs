//! `scripts/broker.sh`: what it gives to a command, and that it leaves nothing behind; what
//! `scripts/package.sh`, `scripts/interop.sh` and `scripts/scale.sh` refuse.

use crate::commands::has_ended;
use crate::harness::*;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A folder for temporary files, which nothing but the script uses.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        let path = std::env::temp_dir().join(format!("fib-rpc-scripts-{}", Uuid::new_v4()));
        fs::create_dir(&path).unwrap();
        Folder(path)
    }

    fn is_empty(&self) -> bool {
        fs::read_dir(&self.0).unwrap().next().is_none()
    }

    /// The process id of the node's Erlang VM, once it was started.
    fn pid(&self) -> Option<String> {
        let run = fs::read_dir(&self.0).ok()?.next()?.ok()?.path();
        let pid = fs::read_to_string(run.join("fib-rpc-node/beam.pid")).ok()?;
        pid.ends_with('\n').then(|| pid.trim().to_owned())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const BROKER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/broker.sh");

/// `broker.sh run -- sh -c COMMAND`, with a process group of its own, as from a terminal.
fn run(tmp: &Path, command: &str) -> Command {
    let mut run = alone(tmp, BROKER);
    run.args(["run", "--", "sh", "-c", command]);
    run
}

/// `program`, as if no broker and no `broker.sh run` was there.
fn alone(tmp: &Path, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    for variable in
        ["AMQP_URL", "AMQPS_URL", "BROKER_DIR", "BROKER_RUN_DIR", "BROKER_CONF", "BROKER_PLUGINS"]
    {
        command.env_remove(variable);
    }
    command.env("TMPDIR", tmp).stdin(Stdio::null()).process_group(0);
    command
}

/// Whether there is such a process. One that nobody has reaped yet is dead.
fn is_alive(pid: &str) -> bool {
    !has_ended(pid.parse().unwrap())
}

#[track_caller]
fn is_gone(pid: &str) {
    assert!(!is_alive(pid), "process {pid} is still there");
}

#[test]
fn a_command_gets_a_broker_and_its_exit_code_is_the_scripts() {
    let tmp = Folder::new();
    let call = format!(
        "cat $BROKER_DIR/fib-rpc-node/beam.pid; {} fib 30; exit 42",
        env!("CARGO_BIN_EXE_rpc_client")
    );
    let ended = Process::spawn(&mut run(&tmp.0, &call)).wait();
    assert_eq!(ended.code(), 42, "{ended:?}");
    assert!(ended.stderr.starts_with("rpc_client: fib: there is no queue"), "{ended:?}");
    is_gone(ended.stdout.trim());
    assert!(tmp.is_empty());
}

#[test]
fn ctrl_c_leaves_nothing() {
    let tmp = Folder::new();
    let running = Process::spawn(&mut run(&tmp.0, "echo ready; sleep 60"));
    running.await_stdout("ready\n");
    let pid = tmp.pid().unwrap();
    running.signal_group("INT");
    running.wait().expect(130, "ready\n", "");
    is_gone(&pid);
    assert!(tmp.is_empty());
}

#[test]
fn ctrl_c_during_the_start_leaves_nothing() {
    let tmp = Folder::new();
    let starting = Process::spawn(&mut run(&tmp.0, "echo ready"));
    let began = Instant::now();
    let pid = loop {
        if let Some(pid) = tmp.pid() {
            break pid;
        }
        assert!(began.elapsed() < PATIENCE, "no node was started");
        thread::sleep(Duration::from_millis(5));
    };
    // A bash that is in the middle of a command substitution may lose SIGINT (5.2 does, a few times in
    // a hundred). A person presses Ctrl-C again.
    while is_alive(&pid) {
        assert!(began.elapsed() < PATIENCE, "Ctrl-C does not end it");
        starting.signal_group("INT");
        thread::sleep(Duration::from_millis(200));
    }
    starting.wait().expect(130, "", "");
    assert!(tmp.is_empty());
}

#[test]
fn a_start_that_fails_leaves_nothing() {
    let tmp = Folder::new();
    let mut run = run(&tmp.0, "echo ready");
    let ended = Process::spawn(run.env("BROKER_CONF", "no_such_setting = 1")).wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    let said = "broker.sh: the RabbitMQ node did not start: its process ended; from its log:\n";
    assert!(ended.stderr.starts_with(said), "{ended:?}");
    assert!(tmp.is_empty());
}

/// Also of one that the command started and left behind.
#[test]
fn a_guarded_command_leaves_no_node() {
    let tmp = Folder::new();
    let call = format!(
        "export BROKER_DIR=$TMPDIR/left; {BROKER} start >/dev/null && {BROKER} pid; exit 42"
    );
    let mut guard = alone(&tmp.0, BROKER);
    let ended = Process::spawn(guard.args(["guard", "--", "sh", "-c", &call])).wait();
    assert_eq!((ended.code(), ended.stderr.as_str()), (42, ""), "{ended:?}");
    assert!(tmp.is_empty());
    // Whose parent has ended is reaped by the system, in its time.
    await_that("the node is gone", || !is_alive(ended.stdout.trim()));
}

/// However they end: nothing of them can be done by then.
#[test]
fn tests_that_are_killed_leave_no_node() {
    let tmp = Folder::new();
    let mut tests = alone(&tmp.0, std::env::current_exe().unwrap());
    let name = "scripts::a_node_listens_on_loopback_only";
    let tests = Process::spawn(tests.args(["--exact", name]));
    await_that("a node is started", || tmp.pid().is_some());
    let pid = tmp.pid().unwrap();
    tests.signal("KILL");
    await_that("the node is gone", || !is_alive(&pid) && tmp.is_empty());
}

#[test]
fn no_folder_for_temporary_files() {
    let ended = Process::spawn(&mut run(Path::new("/no/such/folder"), "echo ready")).wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    let said = "broker.sh: could not make a folder in /no/such/folder; name another in TMPDIR\n";
    assert!(ended.stderr.ends_with(said), "{ended:?}");
}

/// With the same address, and nothing of what it had, whether it runs or not.
#[test]
fn a_reset_node_is_empty() {
    let node = Node::start();
    for is_killed in [false, true] {
        node.ctl(&["add_user", "somebody", "secret"]);
        if is_killed {
            kill(node.pid(), "KILL");
        }
        assert_eq!(node.script(&["reset"]), "");
        assert_eq!(node.script(&["url"]), node.url);
        assert_eq!(node.ctl(&["-s", "list_users"]), "guest\t[administrator]");
    }
}

/// AMQP, the distribution port and epmd.
#[cfg(target_os = "linux")]
#[test]
fn a_node_listens_on_loopback_only() {
    let node = Node::start();
    let first: u16 = node.url.rsplit(':').next().unwrap().parse().unwrap();
    let mut found = 0;
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // "  0: 0100007F:1600 00000000:0000 0A …": addresses and ports in hexadecimal, 0A listens.
        for socket in fs::read_to_string(table).unwrap().lines().skip(1) {
            let words: Vec<&str> = socket.split_whitespace().collect();
            let (address, port) = words[1].split_once(':').unwrap();
            let port = u16::from_str_radix(port, 16).unwrap();
            if words[3] == "0A" && (first..first + 5).contains(&port) {
                let loopback = ["0100007F", "00000000000000000000000001000000"];
                assert!(loopback.contains(&address), "port {port} at {address}");
                found += 1;
            }
        }
    }
    assert!(found >= 3, "{found} sockets");
}

/// Static programs need a target of Rust that has to be installed. A rustc that has none stands in for
/// this machine's, which may have it.
#[test]
fn static_programs_without_their_target() {
    let tmp = Folder::new();
    let rustc = tmp.0.join("rustc");
    let script = "#!/bin/sh\ncase $* in\n-vV) echo host: x86_64-unknown-linux-gnu ;;\n*) echo /none ;;\nesac\n";
    fs::write(&rustc, script).unwrap();
    fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", tmp.0.display(), std::env::var("PATH").unwrap());
    let package = |word: &str| {
        let mut command = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/package.sh"));
        Process::spawn(command.arg(word).env("PATH", &path)).wait()
    };
    package("--static").expect(
        69,
        "",
        "package.sh: Rust's target x86_64-unknown-linux-musl is not installed; type: rustup target \
         add x86_64-unknown-linux-musl\n",
    );
    package("--no").expect(
        64,
        "",
        "package.sh: unknown word: --no; usage: package.sh [--static | --try]\n",
    );
}

/// One that is too old is as good as none.
#[test]
fn frameworks_of_node_js_without_it() {
    let folder = Folder::new();
    let node = folder.0.join("node");
    fs::write(&node, "#!/bin/sh\nexit 1\n").unwrap();
    fs::set_permissions(&node, fs::Permissions::from_mode(0o755)).unwrap();
    let path = format!("{}:{}", folder.0.display(), std::env::var("PATH").unwrap());
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/interop.sh");
    let mut command = alone(&folder.0, script);
    let ended = Process::spawn(command.arg("--npm").env("PATH", path)).wait();
    let told = "interop.sh: missing: Node.js 20.19 or newer with npm; install it (https://nodejs.org), then run this again\n";
    ended.expect(69, "", told);
}

#[test]
fn so_many_clients_are_no_number() {
    let folder = Folder::new();
    for (words, given) in
        [(&["--number"][..], ""), (&["--number", "0"], "0"), (&["--number", "1k"], "1k")]
    {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/scale.sh");
        let ended = Process::spawn(alone(&folder.0, script).args(words)).wait();
        let told = format!("scale.sh: --number takes a number, 1 or more, not '{given}'\n");
        ended.expect(64, "", &told);
    }
}
