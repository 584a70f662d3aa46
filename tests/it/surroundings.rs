//! What other software on the machine, or an unusual broker, does to the two programs.

use crate::commands::{Caller, Folder, children, failed, text};
use crate::harness::*;
use amiquip::AmqpProperties;
use fib_rpc::error::ErrorKind::TimedOut;

/// A debugger gets the exit status of what it follows before the server does, and may be in no hurry (ptrace(2)).
#[cfg(target_os = "linux")]
#[test]
fn a_program_that_a_debugger_holds_keeps_nobody_waiting() {
    use nix::libc;

    let (queue, folder) = (Queue::new(), Folder::new());
    let held = folder.procedure("echo $$ > $0/pids; exec sleep 1000");
    let args = ["--workers", "2", "--time-limit", "5s", &held, "--procedure=cat=cat"];
    let server = server(&queue, &args);
    let caller = Caller::new(&queue);
    caller.send(b"", AmqpProperties::default().with_app_id("p".into()));
    let pid = folder.await_pids(1)[0];

    // SAFETY: PTRACE_SEIZE takes no addresses.
    let seized = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid as libc::pid_t, 0, 0) };
    assert_eq!(seized, 0, "{}", std::io::Error::last_os_error());
    assert_eq!(caller.receive(), failed(TimedOut, "p did not end in time", None));
    for _ in 0..3 {
        assert_eq!(text(Caller::new(&queue).call("cat", b"served")), "served");
    }
    assert_eq!(children(server.pid()), 1, "it is held");

    // SAFETY: without a place for the status, there is no address either.
    while unsafe { libc::waitpid(pid as libc::pid_t, std::ptr::null_mut(), 0) } > 0 {}
    await_that("it is reaped", || children(server.pid()) == 0);
}

/// The properties of a message have to fit into one frame, and 4,096 bytes are the smallest that a broker may ask for.
#[test]
fn what_a_program_wrote_to_standard_error_fits_into_any_frame() {
    let node = Node::configured("frame_max = 4096", &[]);
    let queue = Queue::at(&node.url);
    let script = "--procedure=p=sh -c 'yes why | head -c 9999 >&2; exit 3'";
    let server = server_at(&node.url, &queue, &[script]);
    let args = ["--format", "json", "--queue", queue.name(), "p", &"x".repeat(255)];
    let ended = client_at(&node.url, &args);
    assert_eq!(ended.code(), 70, "{ended:?}");
    let told = ended.stdout.matches("why").count();
    assert!(told > 800, "{told} lines: {ended:?}");
    assert!(!server.stderr().contains("FRAME_ERROR"), "{}", server.stderr());
}

/// In a sandbox, say. What a server adopts it has to reap, and without /proc it cannot know what that is.
#[cfg(target_os = "linux")]
#[test]
fn a_server_without_proc_adopts_nothing() {
    let queue = Queue::new();
    let mut command = std::process::Command::new("unshare");
    let script = "mount -t tmpfs none /proc || exit 99; exec \"$0\" \"$@\"";
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]);
    command.args([env!("CARGO_BIN_EXE_rpc_server"), "--queue", queue.name()]);
    command.args(["--procedure=p=sh -c '(exec > /dev/null 2>&1 < /dev/null; sleep 0.1 &) ; cat'"]);
    let server = Process::spawn(command.env("AMQP_URL", broker()));
    await_that("it serves, or has ended", || {
        server.stdout().contains("Awaiting") || crate::commands::has_ended(server.pid())
    });
    if !server.stdout().contains("Awaiting") {
        // Whoever runs this may make no namespaces.
        return;
    }
    for _ in 0..3 {
        assert_eq!(text(Caller::new(&queue).call("p", b"served")), "served");
    }
    await_that("nothing is left that has ended", || children(server.pid()) == 0);
}
