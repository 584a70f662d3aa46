//! A server whose transcript or log goes where nobody reads it, or where there is no more room; and a client whose
//! streams do not block.

use crate::harness::*;
use pty_process::blocking;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use std::cell::RefCell;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const SERVER: &str = env!("CARGO_BIN_EXE_rpc_server");
const CLIENT: &str = env!("CARGO_BIN_EXE_rpc_client");

/// A server whose outputs are not [`Process`]'s. It is killed when its test ends.
struct Server(RefCell<Child>);

impl Server {
    /// Asks it to stop, and waits until it has ended in good order.
    #[track_caller]
    fn stop(self) {
        kill(self.0.borrow().id(), "TERM");
        await_that("the end of the server", || self.0.borrow_mut().try_wait().unwrap().is_some());
        let status = self.0.borrow_mut().wait().unwrap();
        assert_eq!(status.code(), Some(0), "{status}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.get_mut().kill();
        let _ = self.0.get_mut().wait();
    }
}

/// Starts a server with these as its outputs, which only it has open then.
fn server_writing(
    queue: &Queue,
    args: &[&str],
    stdout: impl Into<Stdio>,
    stderr: impl Into<Stdio>,
) -> Server {
    let args = [&["--queue", queue.name()], args].concat();
    let mut command = server_command(&broker(), &args);
    Server(RefCell::new(command.stdout(stdout).stderr(stderr).spawn().unwrap()))
}

/// Calls `fun` with this number, this often.
#[track_caller]
fn call_fun(queue: &Queue, number: &str, calls: usize) {
    let args = ["-q", "--queue", queue.name(), "--wait", "--fail-fast", "fun", "-"];
    let input = format!("{number}\n").repeat(calls);
    let ended = feed(&mut client_command(&broker(), &args), input.into_bytes()).wait();
    let answered = ended.stdout.matches(&format!("{number}00\n")).count();
    assert_eq!((ended.code(), answered), (0, calls), "{}", ended.stderr);
}

/// Where a terminal's lines are not read, as with one that hangs or is stopped with Ctrl-S, a server answers all
/// calls, and stops when it is asked to.
#[track_caller]
fn serves_in_a_terminal_that_nobody_reads(args: &[&str], stdout: bool, stderr: bool) {
    let queue = Queue::new();
    let (pty, pts) = blocking::open().unwrap();
    let mut command = blocking::Command::new(SERVER)
        .args(["--queue", queue.name()])
        .args(args)
        .env("AMQP_URL", broker())
        .env_remove("RUST_LOG")
        .stdin(Stdio::null());
    if !stdout {
        command = command.stdout(Stdio::null());
    }
    if !stderr {
        command = command.stderr(Stdio::null());
    }
    let server = Server(RefCell::new(command.spawn(pts).unwrap()));
    call_fun(&queue, &"9".repeat(40), 1500);
    server.stop();
    drop(pty);
}

#[test]
fn a_transcript_in_a_terminal_that_nobody_reads() {
    serves_in_a_terminal_that_nobody_reads(&["--workers", "2"], true, false);
}

#[test]
fn a_log_in_a_terminal_that_nobody_reads() {
    serves_in_a_terminal_that_nobody_reads(&["-v"], false, true);
}

#[test]
fn transcript_and_log_in_a_terminal_that_nobody_reads() {
    serves_in_a_terminal_that_nobody_reads(&["-v"], true, true);
}

/// A program that logs its argument and 2,000 characters that become 18 KB of escapes.
const LONG_LINES: &str = r#"told=sh -c "cat >&2; yes '󠁁' | head -n 2000 | tr -d '\n' >&2""#;

/// More than a page, which is all that poll(2) promises.
#[test]
fn a_line_that_is_longer_than_what_a_pipe_has_room_for() {
    let queue = Queue::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let server = server_writing(&queue, &["--procedure", LONG_LINES], Stdio::null(), writer);
    for _ in 0..8 {
        queue.client(&["-q", "--wait", "told", "1"]).expect(0, "\n", "");
    }
    server.stop();
    let mut log = String::new();
    reader.read_to_string(&mut log).unwrap();
    assert!(log.starts_with("rpc_server: told: 1\\u{e0041}\\u{e0041}"), "{}", &log[..100]);
    assert!((18_000..=65_536).contains(&log.len()), "{}", log.len());
}

/// Those that there was room for come in order, and behind them how many did not.
#[test]
fn how_many_lines_were_left_out_is_told() {
    const CALLS: usize = 120;
    let queue = Queue::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let server = server_writing(&queue, &["--procedure", LONG_LINES], Stdio::null(), writer);
    let numbers: String = (1..=CALLS).map(|n| format!("{n}\n")).collect();
    let client = ["-q", "--queue", queue.name(), "--wait", "--in-flight", "1", "told", "-"];
    let ended = feed(&mut client_command(&broker(), &client), numbers.into_bytes()).wait();
    ended.expect(0, &"\n".repeat(CALLS), "");

    let log = Captured::start(reader);
    let count = regex::Regex::new(
        r"(?m)^rpc_server: (\d+) lines were left out here, since nobody read them$",
    )
    .unwrap();
    assert!(log.await_that(|log| count.is_match(log)), "{}", log.text());
    queue.client(&["told", "behind the gap"]).expect(0, "\n", "");
    assert!(log.await_that(|log| log.contains("behind the gap")), "{}", log.text());
    let text = log.text();
    let lines: Vec<&str> = text.lines().collect();
    let [told @ .., gap, behind] = &lines[..] else { panic!("{text}") };
    for (line, n) in told.iter().zip(1..) {
        assert!(line.starts_with(&format!("rpc_server: told: {n}\\u{{e0041}}")), "{line}");
    }
    let left_out: usize = count.captures(gap).unwrap()[1].parse().unwrap();
    assert_eq!(told.len() + left_out, CALLS);
    assert!(behind.starts_with("rpc_server: told: behind the gap"), "{behind}");
    server.stop();
    assert!(log.whole().lines().count() == lines.len(), "{}", log.text());
}

/// As in `2>&1`: what belongs together is told together.
#[test]
fn transcript_and_log_stay_in_order_where_both_go_to_one_place() {
    let queue = Queue::new();
    let (reader, writer) = std::io::pipe().unwrap();
    let server = server_writing(&queue, &["-v"], writer.try_clone().unwrap(), writer);
    let log = Captured::start(reader);
    call_fun(&queue, "1", 500);
    server.stop();
    let text = log.whole();
    let of_a_call: Vec<&str> = text
        .lines()
        .filter_map(|line| match line {
            " [.] fun(1)" => Some("transcript"),
            line if line.starts_with("rpc_server: delivery: fun(1), ") => Some("delivery"),
            line if line.starts_with("rpc_server: fun(1): result, ") => Some("result"),
            _ => None,
        })
        .collect();
    assert_eq!(of_a_call, ["delivery", "transcript", "result"].repeat(500));
}

/// A program with this limit on the size of its files, in blocks of 512 bytes (POSIX, ulimit), with its standard output
/// and standard error as `redirections` say.
fn limited(blocks: u32, redirections: &str, program: &str, args: &[&str]) -> Command {
    let script = format!("ulimit -f {blocks} && exec \"$0\" \"$@\" {redirections}");
    let mut command = self::program("sh", &broker(), &["-c", &script, program]);
    command.args(args);
    command
}

/// A name that no other test has, for a file that is removed in the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        Scratch(std::env::temp_dir().join(format!("fib-rpc-{}", uuid::Uuid::new_v4())))
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    fn length(&self) -> u64 {
        self.0.metadata().unwrap().len()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_server_goes_on_when_its_log_has_reached_the_limit_of_a_file() {
    let (queue, log) = (Queue::new(), Scratch::new());
    let args = ["-v", "--queue", queue.name()];
    let to_log = format!("2>{}", log.path());
    let server = Process::spawn(&mut limited(8, &to_log, SERVER, &args));
    call_fun(&queue, "1", 200);
    assert_eq!(log.length(), 8 * 512);
    server.signal("TERM");
    assert_eq!(server.wait().code(), 0);
}

#[test]
fn a_server_goes_on_when_its_transcript_has_reached_the_limit_of_a_file() {
    let (queue, transcript) = (Queue::new(), Scratch::new());
    let to_file = format!(">{}", transcript.path());
    let server = Process::spawn(&mut limited(2, &to_file, SERVER, &["--queue", queue.name()]));
    call_fun(&queue, "1", 200);
    server.signal("TERM");
    let told = "rpc_server: cannot write to standard output: File too large (os error 27); the server goes on without its transcript\n";
    server.wait().expect(0, "", told);
    assert_eq!(transcript.length(), 2 * 512);
}

/// Results, and failures on standard error. It is full before anybody reads.
#[test]
fn a_client_waits_for_whoever_reads_a_pipe_that_does_not_block() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    // The last line of failures says how many there were.
    for (argument, calls, code, lines) in [("5000", "200", 0, 200), ("x", "2000", 65, 2001)] {
        let (reader, writer) = std::io::pipe().unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        let shared = writer.try_clone().unwrap();
        let both = ["-c", "exec \"$0\" \"$@\" 2>&1", CLIENT, "--queue", queue.name()];
        let args = [&both[..], &["--repeat", calls, "fib", argument]].concat();
        let client = Process::spawn_writing(&mut program("sh", &broker(), &args), writer.into());
        await_that("the pipe is full", || {
            let mut fds = [PollFd::new(&shared, PollFlags::OUT)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() == 0
        });
        drop(shared);
        // Not that it must have: a client that does not wait has ended by then.
        std::thread::sleep(Duration::from_secs(1));
        let told = Captured::start(reader).whole();
        assert_eq!((client.wait().code(), told.lines().count()), (code, lines));
    }
}

#[test]
fn a_client_waits_for_whoever_writes_to_a_pipe_that_does_not_block() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let (reader, mut writer) = std::io::pipe().unwrap();
    ioctl_fionbio(&reader, true).unwrap();
    let mut command = client_command(&broker(), &["-q", "--queue", queue.name(), "fun", "-"]);
    let client = Process::spawn(command.stdin(reader));
    for n in 1..=2 {
        writeln!(writer, "{n}").unwrap();
        client.await_stdout(&format!("{n}00\n"));
    }
    drop(writer);
    client.wait().expect(0, "100\n200\n", "");
}

#[test]
fn a_result_that_does_not_fit_into_the_limit_of_a_file_is_a_failure() {
    let (queue, result) = (Queue::new(), Scratch::new());
    let _server = server(&queue, &[]);
    let to_file = format!(">{}", result.path());
    let args = ["--queue", queue.name(), "fib", "100000"];
    let ended = Process::spawn(&mut limited(8, &to_file, CLIENT, &args)).wait();
    let told = "rpc_client: cannot write to standard output: File too large (os error 27)\n";
    ended.expect(70, "", told);
}

/// Programs have the signal as it is by default, even if whoever started the server ignores it.
#[test]
fn a_program_does_not_ignore_the_limit_of_a_file() {
    let queue = Queue::new();
    let procedure = r#"limit=sh -c "kill -s XFSZ \$\$; echo ignored""#;
    let script = "trap '' XFSZ && exec \"$0\" \"$@\"";
    let mut command = program("sh", &broker(), &["-c", script, SERVER]);
    let server = Process::spawn(command.args(["--queue", queue.name(), "--procedure", procedure]));
    server.await_stdout(" [x] Awaiting RPC requests\n");
    let ended = queue.client(&["limit"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (70, ""), "{ended:?}");
    assert!(ended.stderr.contains("SIGXFSZ"), "{ended:?}");
}
