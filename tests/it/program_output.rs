//! What a program writes, and what is wrong with it: its standard error in the log and at the caller's, files that are
//! nothing to execute, results that there is no memory for.

use crate::commands::{Caller, Folder, text};
use crate::harness::*;
use amiquip::{AmqpProperties, AmqpValue};
use fib_rpc::error::ErrorKind::{OutOfRange, TimedOut, Unavailable};
use std::fs;
use std::process::Command;

/// The header `stderr` of the reply to one call of `p`.
fn stderr_of(queue: &Queue) -> Option<String> {
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    amqp.publish(queue.name(), b"", AmqpProperties::default().with_reply_to(reply_to.clone()));
    let reply = amqp.next(&reply_to);
    match reply.properties.headers().as_ref()?.get("stderr") {
        Some(AmqpValue::LongString(stderr)) => Some(stderr.clone()),
        _ => None,
    }
}

/// The last line is seldom the reason.
#[test]
fn the_caller_gets_what_a_failed_program_wrote_to_standard_error() {
    for (script, stderr) in [
        ("echo why >&2; echo Try --help. >&2; exit 1", Some("why\nTry --help.\n")),
        ("echo why >&2; kill -9 $$", Some("why\n")),
        ("echo why >&2; sleep 1000", Some("why\n")),
        ("echo why >&2; yes", Some("why\n")),
        ("printf \"caf\\351\" >&2; exit 1", Some("caf\u{fffd}")),
        ("echo why >&2", None),
        ("echo >&2; exit 1", None),
    ] {
        let queue = Queue::new();
        let procedure = format!("--procedure=p=sh -c '{script}'");
        let _server = server(&queue, &["--time-limit", "3s", &procedure]);
        assert_eq!(stderr_of(&queue).as_deref(), stderr, "{script}");
    }
}

/// At most 4 KiB, the last ones.
#[test]
fn the_caller_gets_the_end_of_standard_error() {
    let queue = Queue::new();
    let script = "yes no | head -n 100000 >&2; echo last >&2; exit 1";
    let _server = server(&queue, &[&format!("--procedure=p=sh -c '{script}'")]);
    let stderr = stderr_of(&queue).unwrap();
    assert_eq!(stderr.len(), 4096);
    assert!(stderr.ends_with("no\nno\nlast\n"), "{stderr}");
}

#[test]
fn the_client_tells_what_a_failed_program_wrote_to_standard_error() {
    let queue = Queue::new();
    let script = "printf \"why\\n\\033[2J\\r\\nhint\\n\" >&2; exit 3";
    let _server = server(&queue, &[&format!("--procedure=p=sh -c '{script}'")]);
    queue.client(&["p"]).expect(70, "", "rpc_client: p(): hint (internal)\n");
    let told = queue.client(&["-v", "p"]).stderr;
    for line in ["why", "\\u{1b}[2J", "hint"] {
        let line = format!("rpc_client: p(), standard error: {line}\n");
        assert!(told.contains(&line), "{line} in {told}");
    }
    let json = queue.client(&["-q", "--format", "json", "p"]).stdout;
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let error = serde_json::json!({
        "kind": "internal", "message": "hint", "exit_code": 3, "stderr": "why\n\u{1b}[2J\r\nhint\n"
    });
    assert_eq!(json["error"], error);
}

/// It is drawn with carriage returns, a hundred times a second.
#[test]
fn progress_is_seen_while_the_program_runs() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let script = "for i in $(seq 200); do printf \"frame=%d\\r\" $i >&2; sleep 0.01; done; \
                  until test -e $0/go; do sleep 0.05; done; echo disk full >&2; exit 1";
    let server = server(&queue, &[&folder.procedure(script)]);
    let caller = Caller::new(&queue);
    caller.send(b"", AmqpProperties::default());
    server.await_stderr("rpc_server: p: frame=1\n");
    fs::write(folder.path("go"), "").unwrap();
    assert_eq!(caller.receive().unwrap_err().message, "disk full");
    server.signal("TERM");
    let ended = server.wait();
    assert!(ended.stderr.contains("\nrpc_server: p: disk full\n"), "{ended:?}");
    let drawn = ended.stderr.matches("frame=").count();
    assert!(drawn < 150, "{drawn} lines, of which each but the last was drawn over");
}

/// The system would tell each of them as "No such file or directory", or as "Exec format error", and only to callers.
#[test]
fn what_is_no_program_is_told_at_the_start() {
    let folder = Folder::new();
    for (name, content, reason) in [
        (
            "missing",
            "#!/no/such/bash\n",
            "is a script, and its interpreter /no/such/bash is not there",
        ),
        (
            "crlf",
            "#!/bin/sh\r\necho\r\n",
            "is a script whose line #!/bin/sh ends with a carriage return",
        ),
        ("none", "echo hi\n", "has no line such as #!/bin/sh at its beginning"),
        ("empty", "", "is an empty file"),
        ("foreign", "MZ\0\0", "is not a program for this system"),
        (
            "nested",
            "#!FOLDER/missing\n",
            "is a script, and its interpreter FOLDER/missing is a script, and its",
        ),
        (
            "env",
            "#!/usr/bin/env no-such-node\n",
            "is a script, and its interpreter no-such-node, which",
        ),
    ] {
        let here = folder.0.to_str().unwrap();
        let path = folder.write(name, &content.replace("FOLDER", here), 0o755);
        let queue = Queue::new();
        let option = format!("--procedure=p={}", path.display());
        let args = ["--queue", queue.name(), &option];
        let ended = Process::spawn(&mut server_command(&broker(), &args)).wait();
        let reason = reason.replace("FOLDER", here);
        let told = format!("rpc_server: --procedure p: \"{}\" {reason}", path.display());
        assert!(ended.code() == 78 && ended.stderr.starts_with(&told), "{ended:?}");
        assert_eq!(queue.state(), None);
    }
}

#[test]
fn an_operator_of_the_shell_is_no_operator_here() {
    let queue = Queue::new();
    let server = server(&queue, &["--procedure=p=echo a | cat"]);
    server.await_stderr(
        "rpc_server: --procedure p: no shell is involved, so that | is an argument of the program; \
         --procedure \"p=sh -c '…'\" has a shell take it for what it means there\n",
    );
    assert_eq!(text(Caller::new(&queue).call("p", b"")), "a | cat\n");
}

/// Whatever the limit is, the server goes on.
#[test]
fn a_result_that_there_is_no_memory_for() {
    let mut unavailable = 0;
    for megabytes in [60, 100, 150, 200, 300, 400] {
        let queue = Queue::new();
        let limited = format!("ulimit -v {}; exec \"$0\" \"$@\"", megabytes << 10);
        let mut command = Command::new("sh");
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_rpc_server"), "--queue", queue.name()]);
        command.args(["--procedure=p=head -c 16000000 /dev/zero"]).env("AMQP_URL", broker());
        let server = Process::spawn(&mut command);
        server.await_stdout(" [x] Awaiting RPC requests\n");
        let caller = Caller::new(&queue);
        for _ in 0..3 {
            match caller.call("p", b"") {
                Ok(result) => assert_eq!(result.len(), 16_000_000),
                Err(error) => {
                    assert_eq!(error.kind, Unavailable, "{megabytes} MiB: {error}");
                    unavailable += 1;
                }
            }
        }
        let ended = queue.client(&["-q", "ping"]);
        assert_eq!(ended.stdout, "pong\n", "{megabytes} MiB: {ended:?}");
    }
    assert!(unavailable > 0);
}

/// Lines are logged between two looks at the clock, and never too many.
#[test]
fn a_time_limit_holds_for_a_program_that_floods_standard_error() {
    let queue = Queue::new();
    let procedures = ["--procedure=p=sh -c 'yes \"\" >&2'", "--procedure=q=sh -c 'yes >&2 & yes'"];
    let _server = server(&queue, &[&["--time-limit", "1s"], &procedures[..]].concat());
    let caller = Caller::new(&queue);
    assert_eq!(caller.call("p", b"").unwrap_err().kind, TimedOut);
    assert!(matches!(caller.call("q", b"").unwrap_err().kind, TimedOut | OutOfRange));
}
