//! How a server and its programs come to an end in good order: the time that a program has after SIGTERM.

use crate::commands::Folder;
use crate::harness::*;

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
