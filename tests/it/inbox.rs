//! What came by a connection and waits for a worker is counted; what nobody will take any more is not.

use crate::harness::*;

/// How many requests are prefetched: each of 600 kB, so that all of them together are more than the 16 MiB that may wait
/// beyond what was asked for.
const PREFETCH: &str = "40";

#[test]
fn what_a_closed_channel_had_prefetched_waits_no_longer() {
    let node = Node::with_consumer_timeout(3000);
    let queue = Queue::at(&node.url);
    let options = ["--workers", "1", "--prefetch", PREFETCH, "--procedure", "p=sleep 600"];
    let server = server_at(&node.url, &queue, &options);
    let arguments = format!("{}\n", "1".repeat(600_000)).repeat(40);
    let args =
        ["-q", "--queue", queue.name(), "--in-flight", PREFETCH, "--timeout", "10m", "p", "-"];
    let _client = feed(&mut client_command(&node.url, &args), arguments.into_bytes());

    // Each time, the broker delivers again what it had delivered before.
    let ended = |told: &str| told.contains("more messages than were asked for");
    await_that("channels were closed", || {
        let told = server.stderr();
        told.matches("a worker starts again").count() >= 4 || ended(&told)
    });
    queue.await_state((0, 1));
    assert!(!ended(&server.stderr()), "{}", server.stderr());
}
