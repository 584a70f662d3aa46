//! What of a stranger's text reaches a terminal, a pipe and a JSON object; and standard outputs that
//! are closed, full, or read by nobody.

use crate::commands::Folder;
use crate::harness::*;
use amiquip::{AmqpProperties, QueueDeclareOptions};
use pty_process::{Size, blocking};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

/// Sets a window's title, rings the bell, is a C1 control, turns the text around, and is invisible.
const STRANGE: &str = "a\x1b]0;title\x07\u{9b}\u{202e}\u{feff}\u{200b}b\r\n\tc";

/// The same, as a line of standard error and as a result on a terminal have it.
const ONE_LINE: &str = "a\\u{1b}]0;title\\u{7}\\u{9b}\\u{202e}\\u{feff}\\u{200b}b\\r\\n\\tc";
const ON_A_TERMINAL: &str = "a\\u{1b}]0;title\\u{7}\\u{9b}\\u{202e}\\u{feff}\\u{200b}b\\r\n\tc";

/// A server that answers one request, with `body`; an error if `is_error`.
fn answering(queue: &Queue, body: &str, is_error: bool) -> StubServer {
    let body = body.to_owned();
    StubServer::start(queue, 1, move |channel, request| {
        let properties = match is_error {
            true => AmqpProperties::default().with_type_("error".into()),
            false => AmqpProperties::default(),
        };
        reply(channel, request, body.as_bytes(), properties);
    })
}

/// A call with these arguments that a server answers so.
#[track_caller]
fn answered(args: &[&str], body: &str, is_error: bool) -> Ended {
    let queue = Queue::new();
    let server = answering(&queue, body, is_error);
    let ended = queue.client(&[args, &["fib", "30"]].concat());
    server.join();
    ended
}

/// The same, in a terminal: what that shows.
fn shown_in_a_terminal(args: &[&str], body: &str) -> String {
    let queue = Queue::new();
    let server = answering(&queue, body, false);
    let (code, screen) = in_a_terminal(&queue, args);
    assert_eq!(code, Some(0), "{screen}");
    server.join();
    screen
}

/// The exit code of a call, and what its terminal shows.
fn in_a_terminal(queue: &Queue, args: &[&str]) -> (Option<i32>, String) {
    let (mut pty, pts) = blocking::open().unwrap();
    pty.resize(Size::new(50, 500)).unwrap();
    let mut client = blocking::Command::new(env!("CARGO_BIN_EXE_rpc_client"))
        .args(["--queue", queue.name()])
        .args(args)
        .args(["fib", "30"])
        .env("AMQP_URL", broker())
        .env_remove("RUST_LOG")
        .spawn(pts)
        .unwrap();
    let mut screen = Vec::new();
    // It ends with an error, when nobody has the terminal open any more.
    let _ = pty.read_to_end(&mut screen);
    let screen = String::from_utf8(screen).unwrap().replace("\r\n", "\n");
    (client.wait().unwrap().code(), screen)
}

// Errors: one line each, without control characters, of bounded length.

#[test]
fn an_error_reply_cannot_forge_a_second_diagnostic() {
    let stderr = "rpc_client: fib(30): BAD\\nrpc_client: second line (internal)\n";
    answered(&[], "BAD\nrpc_client: second line", true).expect(70, "", stderr);
}

#[test]
fn what_an_error_reply_says_is_one_line_of_visible_characters() {
    let stderr = format!("rpc_client: fib(30): {ONE_LINE} (internal)\n");
    answered(&[], STRANGE, true).expect(70, "", &stderr);
}

#[test]
fn a_long_error_reply_is_cut() {
    let ended = answered(&[], &"é".repeat(1_000_000), true);
    let stderr = format!("rpc_client: fib(30): {}…\n", "é".repeat(2_000 - "fib(30): ".len()));
    ended.expect(70, "", &stderr);
}

#[test]
fn a_queues_name_is_escaped_in_both_programs() {
    let name = format!("\x1b[31m{}", Queue::new().name());
    let ended = client(&["--queue", &name, "fib", "30"]);
    let shown = name.replace('\x1b', "\\u{1b}");
    let expected = format!("rpc_client: fib: there is no queue \"{shown}\" on ");
    assert_eq!(ended.code(), 69, "{ended:?}");
    assert!(ended.stderr.starts_with(&expected), "{ended:?}");
    let amqp = Amqp::new();
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    amqp.channel.queue_declare(name.as_str(), options).unwrap();
    let server = Process::spawn(&mut server_command(&broker(), &["--queue", &name])).wait();
    let expected = format!("rpc_server: the queue \"{shown}\" on ");
    assert!(server.stderr.starts_with(&expected), "{server:?}");
}

#[test]
fn what_the_broker_says_is_escaped_in_both_programs() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &["--drill", "slow=1h"]);
    let args = ["--queue", queue.name(), "--no-retry", "fib", "93"];
    let waiting = Process::spawn(&mut client_command(&node.url, &args));
    server.await_stdout(" [.] fib(93)\n");
    node.ctl(&["close_all_connections", "one\x1b[31m\ntwo"]);
    let closed = format!(
        "{} closed the connection: CONNECTION_FORCED - one\\u{{1b}}[31m\\ntwo",
        shown(&node.url)
    );
    waiting.wait().expect(75, "", &format!("rpc_client: fib(93): {closed}\n"));
    server.await_stderr(&format!("rpc_server: {closed}; trying again\n"));
}

#[test]
fn an_argument_that_is_refused_is_escaped() {
    // Of the others, clap itself shows nothing.
    let ended = client(&["--timeout", "\u{202e}", "fib", "30"]);
    assert_eq!(ended.code(), 64, "{ended:?}");
    let expected = "rpc_client: invalid value '\\u{202e}' for '--timeout <DURATION>'";
    assert!(ended.stderr.starts_with(expected), "{ended:?}");
}

// Results: a terminal gets no control characters, a pipe the bytes.

#[test]
fn a_result_on_a_terminal() {
    let plain = format!("{ON_A_TERMINAL}\n");
    assert_eq!(shown_in_a_terminal(&["-q"], STRANGE), plain);
    assert_eq!(shown_in_a_terminal(&["--format", "plain"], STRANGE), plain);
    let transcript = format!(" [x] Requesting fib(30)\n [.] Got {ON_A_TERMINAL}\n");
    assert_eq!(shown_in_a_terminal(&[], STRANGE), transcript);
    let json = shown_in_a_terminal(&["--format", "json"], STRANGE);
    assert!(!json.trim_end().contains(char::is_control), "{json:?}");
}

#[test]
fn a_terminal_gets_no_raw_result() {
    let (code, screen) = in_a_terminal(&Queue::new(), &["--format", "raw"]);
    let line = "rpc_client: --format raw could upset a terminal: send standard output to a file or a pipe, or take --format plain\n";
    assert!(code == Some(64) && screen.starts_with(line), "{code:?}: {screen}");
}

#[test]
fn a_result_in_a_pipe() {
    answered(&[], STRANGE, false).expect(0, &format!("{STRANGE}\n"), "");
    let transcript = format!(" [x] Requesting fib(30)\n [.] Got {STRANGE}\n");
    answered(&["--format", "transcript"], STRANGE, false).expect(0, &transcript, "");
}

// Progress and colours.

/// What a terminal shows that is a client's standard error, with this as its standard input and output
/// if any; the client has 25 calls to make, of 60 ms each at least.
fn progress(
    queue: &Queue,
    args: &[&str],
    stdin: Option<Stdio>,
    stdout: Option<Stdio>,
    term: &str,
) -> String {
    let (mut pty, pts) = blocking::open().unwrap();
    pty.resize(Size::new(50, 500)).unwrap();
    let mut command = blocking::Command::new(env!("CARGO_BIN_EXE_rpc_client"))
        .args(["--queue", queue.name(), "--in-flight", "1"])
        .args(args)
        .env("AMQP_URL", broker())
        .env("TERM", term)
        .env_remove("RUST_LOG");
    if let Some(stdin) = stdin {
        command = command.stdin(stdin);
    }
    if let Some(stdout) = stdout {
        command = command.stdout(stdout);
    }
    let mut client = command.spawn(pts).unwrap();
    let mut screen = Vec::new();
    let _ = pty.read_to_end(&mut screen);
    assert!(client.wait().unwrap().success());
    String::from_utf8(screen).unwrap()
}

#[test]
fn a_long_batch_tells_its_progress() {
    let queue = Queue::new();
    let _server = server(&queue, &["--drill", "slow=60ms"]);
    let folder = std::env::temp_dir().join(format!("fib-rpc-progress-{}", std::process::id()));
    std::fs::create_dir(&folder).unwrap();
    let (input, output) = (folder.join("in"), folder.join("out"));
    std::fs::write(&input, "1\n".repeat(5)).unwrap();
    let file = || Some(File::create(&output).unwrap().into());
    let null = || Some(Stdio::null());
    let known = regex::Regex::new(r"\S \d+ of 25 calls, \d+/(?:s|min), \d+s, \d+s left").unwrap();
    let args = ["--repeat", "25", "fib", "1"];
    for stdout in [file(), null()] {
        let screen = progress(&queue, &args, None, stdout, "xterm");
        assert!(known.is_match(&screen), "{screen:?}");
    }
    assert_eq!(std::fs::read_to_string(&output).unwrap(), "1\n".repeat(25));
    // A file has as many calls as its bytes are worth.
    let args = ["--repeat", "5", "fib", "-"];
    let stdin = Some(File::open(&input).unwrap().into());
    let screen = progress(&queue, &args, stdin, file(), "xterm");
    let estimated =
        regex::Regex::new(r"\S \d+ of about 25 calls, \d+/(?:s|min), \d+s, \d+s left").unwrap();
    assert!(estimated.is_match(&screen), "{screen:?}");
    // Of a pipe nobody knows.
    let (reader, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&b"1\n".repeat(25)).unwrap();
    drop(writer);
    let screen = progress(&queue, &["fib", "-"], Some(reader.into()), null(), "xterm");
    let unknown = regex::Regex::new(r"\S \d+ calls, \d+/(?:s|min), \d+s *\r").unwrap();
    assert!(unknown.is_match(&screen) && !screen.contains(" left"), "{screen:?}");
    std::fs::remove_dir_all(&folder).unwrap();
}

/// With results in files, the terminal has room for it.
#[test]
fn the_progress_tells_what_was_made_again_or_skipped() {
    let (queue, folder) = (Queue::new(), Folder::new());
    // The line is there after a second.
    let script = "read n; mkdir $0/tried-$n && exit 75; sleep 0.2; echo $n";
    let _server = server(&queue, &[&folder.procedure(script)]);
    std::fs::write(folder.path("out-7"), "7\n").unwrap();
    let output = folder.path("out-{}").display().to_string();
    let options = ["--retries", "1", "--skip-existing", "--output", &output, "--format", "plain"];
    let arguments: Vec<String> = (1..=26).map(|n| n.to_string()).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let args = [&options[..], &["p"], &arguments].concat();
    let screen = progress(&queue, &args, None, None, "xterm");
    let told = r"\S \d+ of 25 calls, \d+ made again, 1 skipped, \d+/(?:s|min), ";
    assert!(regex::Regex::new(told).unwrap().is_match(&screen), "{screen:?}");
    assert!(!screen.contains("failed"), "{screen:?}");
    // Names in a file: by their bytes, less those that are skipped. Half of them are.
    (14..=26).for_each(|n| std::fs::remove_file(folder.path(&format!("out-{n}"))).unwrap());
    (14..=26).for_each(|n| std::fs::remove_dir(folder.path(&format!("tried-{n}"))).unwrap());
    let names = folder.path("names");
    std::fs::write(&names, arguments.join("\n") + "\n").unwrap();
    let args = [&options[..], &["p", "-"]].concat();
    let stdin = Some(File::open(names).unwrap().into());
    let screen = progress(&queue, &args, stdin, None, "xterm");
    let told = r"\S \d+ of about 13 calls, \d+ made again, 13 skipped, \d+/(?:s|min), ";
    assert!(regex::Regex::new(told).unwrap().is_match(&screen), "{screen:?}");
}

/// The progress line makes room for others.
#[test]
fn lines_beside_the_progress() {
    let queue = Queue::new();
    let _server = server(&queue, &["--drill", "slow=60ms"]);
    let args = ["-v", "--repeat", "25", "fib", "1"];
    let screen = progress(&queue, &args, None, Some(Stdio::null()), "xterm");
    assert!(screen.contains(" of 25 calls, "), "{screen:?}");
    let in_the_middle = regex::Regex::new(r"[^\r\nK]rpc_client: ").unwrap();
    assert!(!in_the_middle.is_match(&screen), "{screen:?}");
}

#[test]
fn no_progress_is_drawn_where_it_disturbs() {
    let queue = Queue::new();
    let _server = server(&queue, &["--drill", "slow=60ms"]);
    let args = ["--repeat", "25", "fib", "1"];
    let (mut reader, writer) = std::io::pipe().unwrap();
    assert_eq!(progress(&queue, &args, None, Some(writer.into()), "xterm"), "");
    let mut results = String::new();
    reader.read_to_string(&mut results).unwrap();
    assert_eq!(results, "1\n".repeat(25));
    let null = || Some(Stdio::null());
    assert_eq!(progress(&queue, &args, None, null(), "dumb"), "");
    assert_eq!(progress(&queue, &[&["-q"], &args[..]].concat(), None, null(), "xterm"), "");
    let plain = [&["--format", "plain"], &args[..]].concat();
    assert_eq!(progress(&queue, &plain, None, None, "xterm"), "1\r\n".repeat(25));
}

#[test]
fn colours_are_a_terminals_that_wants_them() {
    for (term, no_color, has_colours) in
        [("xterm", None, true), ("xterm", Some("1"), false), ("dumb", None, false)]
    {
        for program in [env!("CARGO_BIN_EXE_rpc_client"), env!("CARGO_BIN_EXE_rpc_server")] {
            let (mut pty, pts) = blocking::open().unwrap();
            let mut command = blocking::Command::new(program).arg("--help").env("TERM", term);
            // With CI there are colours on any terminal.
            for name in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "CI"] {
                command = command.env_remove(name);
            }
            if let Some(value) = no_color {
                command = command.env("NO_COLOR", value);
            }
            let mut child = command.spawn(pts).unwrap();
            let mut screen = String::new();
            let _ = pty.read_to_string(&mut screen);
            assert!(child.wait().unwrap().success());
            assert_eq!(screen.contains('\x1b'), has_colours, "{program} {term} {no_color:?}");
        }
    }
}

// JSON: what was said, escaped as JSON does it.

#[test]
fn json_has_texts_as_they_are() {
    let texts = format!("{STRANGE}\x7f\u{e0041}\"é");
    let escaped = "\"a\\u001b]0;title\\u0007\\u009b\\u202e\\ufeff\\u200bb\\r\\n\\tc\\u007f\\udb40\\udc41\\\"é\"";
    let ended = answered(&["--format", "json"], &texts, true);
    assert_eq!((ended.code(), ended.stderr.as_str()), (70, ""), "{ended:?}");
    assert!(ended.stdout.contains(&format!("\"message\":{escaped}}}")), "{ended:?}");
    let call: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(call["error"]["message"], texts.as_str());
    let ended = answered(&["--format", "json"], &texts, false);
    assert!(ended.stdout.contains(&format!("\"result\":{escaped},")), "{ended:?}");
    // What a server of ours says of an argument, which is a stranger's to it.
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let ended = queue.client(&["--format", "json", "fib", "\u{9b}1\nx"]);
    let message = "fib takes an integer in decimal digits, not \\\"\\u009b1\\nx\\\"";
    assert!(ended.stdout.contains(message), "{ended:?}");
    assert!(ended.stdout.contains("\"argument\":\"\\u009b1\\nx\""), "{ended:?}");
}

/// A call that could not be made has waited as long as the client has.
#[test]
fn json_of_calls_that_were_not_made() {
    let queue = Queue::new();
    let args = ["-q", "--wait", "--timeout", "300ms", "--format", "json", "--stats"];
    let ended = queue.client(&[&args[..], &["fib", "1", "2"]].concat());
    assert_eq!(ended.code(), 69, "{ended:?}");
    let calls: Vec<serde_json::Value> =
        ended.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(calls.len(), 2);
    for call in &calls {
        assert_eq!(call["correlation_id"], serde_json::Value::Null, "{call}");
        assert!(call["elapsed_ms"].as_f64().unwrap() >= 300.0, "{call}");
    }
    assert!(ended.stderr.starts_with("rpc_client: 2 calls, 2 failed, "), "{ended:?}");
}

#[test]
fn statistics_count_calls_that_were_not_made() {
    let queue = Queue::new();
    let ended = queue.client(&["--stats", "--repeat", "2", "fib", "1", "2"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    let [why, stats] = ended.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{ended:?}") };
    assert!(why.starts_with("rpc_client: fib: there is no queue "), "{ended:?}");
    assert!(stats.starts_with("rpc_client: 4 calls, 4 failed, "), "{ended:?}");
}

// Standard outputs that take nothing.

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

#[test]
fn help_that_cannot_be_written_is_a_failure() {
    for option in ["--help", "--version"] {
        for mut command in [client_command("", &[option]), server_command("", &[option])] {
            let output = command.stdout(full()).stderr(Stdio::piped()).output().unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(70), "{option}: {stderr}");
            let expected =
                ": cannot write to standard output: No space left on device (os error 28)\n";
            assert!(stderr.ends_with(expected), "{option}: {stderr}");
        }
    }
    // A reader that has gone away wanted no more.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output =
        client_command("", &["--help"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}

/// `program` with a standard output that is closed from the start.
fn closed(program: &str, url: &str, args: &[&str]) -> Command {
    let script = "exec \"$0\" \"$@\" >&-";
    let mut command = Command::new("sh");
    command.args(["-c", script, program]).args(args);
    command.env("AMQP_URL", url).env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

#[test]
fn a_result_is_not_lost_on_a_closed_standard_output() {
    let queue = Queue::new();
    let server = server(&queue, &[]);
    let program = env!("CARGO_BIN_EXE_rpc_client");
    let stderr = "rpc_client: cannot write to standard output: it is closed\n";
    for format in ["plain", "transcript", "json"] {
        let args = ["--queue", queue.name(), "--format", format, "fib", "30"];
        Process::spawn(&mut closed(program, &broker(), &args)).wait().expect(70, "", stderr);
    }
    Process::spawn(&mut closed(program, "", &["--help"])).wait().expect(70, "", stderr);
    // It was not called for nothing.
    server.signal("TERM");
    server.wait().expect(0, " [x] Awaiting RPC requests\n", "");
    // What is thrown away on purpose is no failure.
    let queue = Queue::new();
    let _server = crate::harness::server(&queue, &[]);
    for null in [OpenOptions::new().write(true), OpenOptions::new().read(true).write(true)] {
        let null = null.open("/dev/null").unwrap();
        let mut command = client_command(&broker(), &["--queue", queue.name(), "fib", "30"]);
        let output = command.stdout(null).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    }
}

/// A server on `queue` with this standard output goes on serving, says `told` once, and ends in good
/// order.
#[track_caller]
fn serves_without_a_transcript(queue: &Queue, command: &mut Command, told: &str) {
    let mut server = command.stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..2 {
        queue.client(&["-q", "--wait", "fib", "30", "29"]).expect(0, "832040\n514229\n", "");
    }
    kill(server.id(), "TERM");
    let mut stderr = String::new();
    server.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(server.wait().unwrap().code(), Some(0), "{stderr}");
    assert_eq!(stderr, format!("rpc_server: {told}\n"));
    queue.await_state((0, 0));
}

const GOES_ON: &str = "the server goes on without its transcript";

#[test]
fn a_server_goes_on_without_its_transcript() {
    let queue = Queue::new();
    let args = ["--queue", queue.name()];
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let told = format!("nobody reads standard output any more; {GOES_ON}");
    let mut command = server_command(&broker(), &args);
    serves_without_a_transcript(&queue, command.stdout(writer), &told);

    let told = format!(
        "cannot write to standard output: No space left on device (os error 28); {GOES_ON}"
    );
    let mut command = server_command(&broker(), &args);
    serves_without_a_transcript(&queue, command.stdout(full()), &told);

    let told = format!("cannot write to standard output: it is closed; {GOES_ON}");
    let mut command = closed(env!("CARGO_BIN_EXE_rpc_server"), &broker(), &args);
    serves_without_a_transcript(&queue, &mut command, &told);
}

/// Nor does it wait for a reader that does not read, neither with a call nor when it is asked to stop.
#[test]
fn a_server_goes_on_though_nobody_reads_its_transcript() {
    let queue = Queue::new();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (mut filler, (tell, filled)) = (writer.try_clone().unwrap(), mpsc::channel());
    // It holds 16 pages. One more that waits keeps it full.
    thread::spawn(move || {
        while filler.write_all(&[b'.'; 4096]).is_ok() {
            let _ = tell.send(());
        }
    });
    for _ in 0..16 {
        filled.recv_timeout(PATIENCE).unwrap();
    }
    let mut command = server_command(&broker(), &["--queue", queue.name(), "--workers", "2"]);
    let told = "nobody reads standard output, which is full; the transcript has gaps from now on";
    serves_without_a_transcript(&queue, command.stdout(writer), told);
    reader.read_exact(&mut [0; 4096]).unwrap();
}

// Small things.

#[test]
fn a_bad_rust_log_is_told_like_any_warning() {
    let mut command = client_command("amqp://h:x", &["fib", "30"]);
    let ended = Process::spawn(command.env("RUST_LOG", "fib_rpc=loud\x1b")).wait();
    assert_eq!(ended.code(), 78, "{ended:?}");
    let expected = "rpc_client: RUST_LOG is ignored: ";
    assert!(ended.stderr.starts_with(expected), "{ended:?}");
    assert!(ended.stderr.contains("loud\\u{1b}"), "{ended:?}");
    assert_eq!(ended.stderr.lines().count(), 2, "{ended:?}");
}

#[test]
fn of_an_option_that_is_given_twice_the_last_counts() {
    let queue = Queue::new();
    let server =
        server(&queue, &["--max-n", "1", "--max-n", "100", "--workers", "1", "--workers", "2"]);
    queue.await_state((0, 2));
    let args = ["--queue", "another", "--queue", queue.name(), "--wait", "--wait", "--stats"];
    let more = ["--stats", "-v", "-q", "--format", "json", "--format", "plain", "fib", "30", "29"];
    let ended = client(&[&args[..], &more].concat());
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "832040\n514229\n"), "{ended:?}");
    assert!(ended.stderr.starts_with("rpc_client: 2 calls, 0 failed, "), "{ended:?}");
    let ended = queue.client(&["-q", "-v", "-v", "-q", "-v", "fib", "30"]);
    assert!(ended.stderr.starts_with("rpc_client: connected to "), "{ended:?}");
    server.signal("TERM");
    assert_eq!(server.wait().code(), 0);
}

/// Without confirms, nothing tells that the broker rejected a request.
#[test]
fn a_full_queue_that_rejects_is_named_as_a_possibility() {
    let queue = Queue::new();
    let amqp = Amqp::new();
    amqp.declare_with_room(&queue, 1);
    let server = server(&queue, &[]);
    server.signal("STOP");
    let properties = AmqpProperties::default().with_reply_to(amqp.exclusive());
    amqp.publish(queue.name(), b"1", properties.clone());
    queue.await_state((0, 1));
    amqp.publish(queue.name(), b"2", properties);
    queue.await_state((1, 1));
    let ended = queue.client(&["--timeout", "300ms", "fib", "30"]);
    let expected = format!(
        "rpc_client: fib(30): no answer within 300ms: 1 consumer serves the queue \"{}\", where 1 request waits, and may be busy with earlier calls; give more time with --timeout, or start more servers; a queue with a length limit and reject-publish may have rejected the request: --confirm tells\n",
        queue.name()
    );
    ended.expect(75, "", &expected);
}

/// A worker is a consumer, and no server.
#[test]
fn consumers_are_not_told_as_servers() {
    let queue = Queue::new();
    let server = server(&queue, &["--workers", "2"]);
    server.signal("STOP");
    let ended = queue.client(&["--timeout", "300ms", "fib", "30"]);
    let expected = "no answer within 300ms: 2 consumers serve the queue ";
    assert!(ended.stderr.contains(expected), "{ended:?}");
}
