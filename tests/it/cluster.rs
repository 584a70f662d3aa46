//! Three real nodes, a quorum queue, servers and clients spread over them, and nodes that die in
//! the middle of a batch: every answer arrives, right and once.

use crate::harness::*;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use uuid::Uuid;

struct Cluster {
    folder: PathBuf,
    urls: Vec<String>,
}

impl Cluster {
    fn start() -> Cluster {
        let folder = std::env::temp_dir().join(format!("fib-rpc-cluster-{}", Uuid::new_v4()));
        let mut cluster = Cluster { folder, urls: Vec::new() };
        let starting = Starting::await_turn();
        let urls = cluster.script(&["start"]);
        drop(starting);
        cluster.urls = urls.split(',').map(str::to_owned).collect();
        assert_eq!(cluster.urls.len(), 3, "{urls}");
        cluster
    }

    /// All nodes, beginning with the one of this index.
    fn url_from(&self, first: usize) -> String {
        let mut urls = self.urls.clone();
        urls.rotate_left(first);
        urls.join(",")
    }

    #[track_caller]
    fn script(&self, args: &[&str]) -> String {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/cluster.sh");
        let output = Command::new(script)
            .args(args)
            .env("CLUSTER_DIR", &self.folder)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "cluster.sh {args:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap().trim().into()
    }

    /// The index of the node that leads the queue, asked of the node of index `of`.
    fn leader(&self, of: usize, queue: &Queue) -> usize {
        let number = (of + 1).to_string();
        let leaders = self.script(&["ctl", &number, "list_queues", "name", "leader"]);
        let line = leaders.lines().find(|line| line.starts_with(queue.name())).unwrap();
        let leader = line.split('\t').nth(1).unwrap();
        let pids = (1..=3).map(|n| self.script(&["ctl", &n.to_string(), "eval", "node()."]));
        let nodes: Vec<String> = pids.map(|name| name.trim_matches('\'').to_owned()).collect();
        nodes.iter().position(|node| node == leader).unwrap_or_else(|| panic!("{leader} {nodes:?}"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.script(&["kill"]);
    }
}

#[test]
fn killing_any_node_in_the_middle_of_a_batch_costs_no_call() {
    const CALLS: u64 = 5_000;
    let cluster = Cluster::start();
    let queue = Queue::at(&cluster.urls[0]);
    let args = ["--queue-type", "quorum", "--prefetch", "8"];
    let servers = [0, 1, 2].map(|n| server_at(&cluster.url_from(n), &queue, &args));

    let leader = cluster.leader(0, &queue);
    for victim in [leader, (leader + 1) % 3, (leader + 2) % 3] {
        let number = (victim + 1).to_string();
        let victim = cluster.script(&["pid", &number]).parse().unwrap();
        let input: String = (0..CALLS).map(|n| format!("{n}\n")).collect();
        let clients = [0, 1, 2].map(|n| {
            let args = ["-q", "--timeout", "10m", "--wait", "--queue", queue.name(), "fun", "-"];
            let mut command = client_command(&cluster.url_from(n), &args);
            feed(&mut command, input.clone().into_bytes())
        });
        for client in &clients {
            client.await_stdout("\n50000\n");
        }
        kill(victim, "KILL");
        let running = clients.iter().filter(|client| !client.stdout().ends_with("\n499900\n"));
        assert!(running.count() > 0, "the batch was over too soon");
        for client in clients {
            let ended = client.wait_for(5 * PATIENCE);
            let expected: String = (0..CALLS).map(|n| n * 100).map(|n| format!("{n}\n")).collect();
            assert_eq!((ended.code(), ended.stderr.as_str()), (0, ""), "{:?}", ended.elapsed);
            assert!(ended.stdout == expected, "wrong, missing or repeated answers");
        }
        cluster.script(&["restart", &number]);
    }
    for server in servers {
        server.signal("TERM");
        let ended = server.wait();
        assert_eq!(ended.code(), 0, "{ended:?}");
    }
}
