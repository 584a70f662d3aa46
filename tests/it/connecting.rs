//! Connections that do not come about, and connections that go: credentials, vhosts, strange
//! peers, frozen and alarmed brokers.

use crate::harness::*;
use crate::proxy::{Action, Proxy};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// `broker()` with other user information, and a path.
fn broker_as(userinfo: &str, path: &str) -> String {
    let url = broker();
    let hostport = url.rsplit(['@', '/']).next().unwrap();
    format!("amqp://{userinfo}{hostport}{path}")
}

/// A listener whose connections are handled by `peer`, in a thread for each.
fn peer(peer: impl Fn(TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let peer = std::sync::Arc::new(peer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let peer = std::sync::Arc::clone(&peer);
            thread::spawn(move || peer(stream));
        }
    });
    format!("amqp://{address}")
}

/// A port that nobody listens on.
fn refused_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn refused_port_is_told_with_the_remedy() {
    let url = format!("amqp://127.0.0.1:{}", refused_port());
    let stderr = format!(
        "rpc_client: fib: cannot reach {url}: Connection refused (os error 111); is RabbitMQ running there? (--url or AMQP_URL names another)\n"
    );
    client_at(&url, &["fib", "30"]).expect(69, "", &stderr);
    // A server waits for its broker: the two may be started in any order.
    let server = Process::spawn(&mut server_command(&url, &[]));
    let said =
        stderr.replace("rpc_client: fib:", "rpc_server:").replace(")\n", "); trying again\n");
    server.await_stderr(&said);
    server.signal("TERM");
    server.wait().expect(0, "", &said);
}

#[test]
fn unknown_host() {
    let ended = client_at("amqp://no-such-host.invalid", &["fib", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    let expected = "rpc_client: fib: cannot reach amqp://no-such-host.invalid:5672: ";
    assert!(ended.stderr.starts_with(expected), "{ended:?}");
}

#[test]
fn the_next_broker_of_a_list_is_tried() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let silent = peer(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let list =
        format!("amqp://127.0.0.1:{},{silent}?connection_timeout=200,{}", refused_port(), broker());
    // The silent one's own bound is the one that counts.
    let args = ["--connect-timeout", "10m", "--queue", queue.name(), "fib", "30"];
    let ended = client_at(&list, &args);
    ended.expect(0, "832040\n", "");
    assert!(ended.elapsed >= Duration::from_millis(200), "{ended:?}");
}

#[test]
fn all_brokers_of_a_list_are_told() {
    let (one, two) = (refused_port(), refused_port());
    let list = format!("amqp://127.0.0.1:{one},amqp://127.0.0.1:{two}");
    let ended = client_at(&list, &["fib", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    for port in [one, two] {
        let expected = format!("cannot reach amqp://127.0.0.1:{port}: Connection refused");
        assert!(ended.stderr.contains(&expected), "{ended:?}");
    }
    // The broker that answers tells more than the one that does not.
    let list = format!("amqp://127.0.0.1:{one},{}", broker_as("", "/no-such-vhost"));
    assert_eq!(client_at(&list, &["fib", "30"]).code(), 78);
}

/// `localhost` is ::1 and 127.0.0.1 on most systems, and a test node listens on one of them.
#[test]
fn all_addresses_of_a_host_are_tried() {
    let url = broker().replace("127.0.0.1", "localhost");
    let queue = Queue::new();
    let _server = server_at(&url, &queue, &[]);
    client_at(&url, &["--queue", queue.name(), "fib", "30"]).expect(0, "832040\n", "");
}

#[test]
fn wrong_password() {
    let url = broker_as("guest:s3cret@", "");
    for verbosity in ["-q", "-v", "-vv", "-vvv"] {
        let ended = client_at(&url, &[verbosity, "fib", "30"]);
        assert_eq!((ended.code(), ended.stdout.as_str()), (77, ""), "{ended:?}");
        let expected = format!(
            "rpc_client: fib: {} refused the credentials; check user and password in --url or AMQP_URL; RabbitMQ lets guest in from localhost only\n",
            shown(&url)
        );
        assert!(ended.stderr.ends_with(&expected), "{ended:?}");
        assert!(!ended.stderr.contains("s3cret"), "{ended:?}");
    }
}

/// The client library logs the login with its password; no setting brings that out.
#[test]
fn the_password_is_in_no_log() {
    let url = broker_as("guest:s3cret@", "");
    for level in ["trace", "amiquip=trace", "amiquip::io_loop::handshake_state=debug"] {
        for mut command in
            [client_command(&url, &["-vvv", "fib", "30"]), server_command(&url, &["-vvv"])]
        {
            let ended = Process::spawn(command.env("RUST_LOG", level)).wait();
            assert_eq!(ended.code(), 77, "{ended:?}");
            assert!(!ended.stderr.contains("s3cret"), "{ended:?}");
            if level == "trace" {
                assert!(ended.stderr.contains("[amiquip::"), "nothing was logged: {ended:?}");
            }
        }
    }
}

#[test]
fn missing_vhost() {
    let url = broker_as("", "/no-such-vhost");
    let stderr = format!(
        "rpc_client: fib: {} has no vhost \"no-such-vhost\"; rabbitmqctl add_vhost no-such-vhost makes it, the URI names another\n",
        shown(&url)
    );
    client_at(&url, &["fib", "30"]).expect(78, "", &stderr);
    let stderr = stderr.replace("rpc_client: fib:", "rpc_server:");
    Process::spawn(&mut server_command(&url, &[])).wait().expect(78, "", &stderr);
}

#[test]
fn a_slash_at_the_end_of_the_uri_is_a_vhost_with_an_empty_name() {
    let url = broker_as("", "/");
    let stderr = format!(
        "rpc_client: fib: {} has no vhost \"\"; the URI ends with a slash, which names the vhost \"\": without it the default vhost / is meant\n",
        shown(&url)
    );
    client_at(&url, &["fib", "30"]).expect(78, "", &stderr);
}

#[test]
fn names_and_passwords_that_need_percent_encoding() {
    let node = Node::start();
    node.ctl(&["add_vhost", "a/b c"]);
    node.ctl(&["add_user", "ü@:/", "%/@:,s3cret"]);
    node.ctl(&["set_permissions", "-p", "a/b c", "ü@:/", ".*", ".*", ".*"]);
    let user = "amqp://%C3%BC%40%3A%2F:%25%2F%40%3A%2Cs3cret@";
    let url = node.url.replace("amqp://", user) + "/a%2Fb%20c";
    let queue = Queue::at(&url);
    let _server = server_at(&url, &queue, &[]);
    queue.client(&["fib", "30"]).expect(0, "832040\n", "");
}

/// Peers that are no brokers. Each must be known for what it is before the connect timeout.
#[track_caller]
fn no_broker(url: &str, expected: &str) {
    let ended = client_at(url, &["--connect-timeout", "10m", "fib", "30"]);
    let stderr = format!("rpc_client: fib: {}\n", expected.replace("PEER", url));
    ended.expect(69, "", &stderr);
}

/// Nothing tells what this peer is: the connect timeout ends the attempt, and not before its time.
#[track_caller]
fn unfinished_handshake(url: &str) {
    let ended = client_at(url, &["--connect-timeout", "1s", "fib", "30"]);
    let stderr = format!(
        "rpc_client: fib: {url} took the connection, but did not finish the handshake within 1s; \
         is RabbitMQ listening there? (--connect-timeout allows more)\n"
    );
    ended.expect(69, "", &stderr);
    assert!(ended.elapsed >= Duration::from_secs(1), "{ended:?}");
}

#[test]
fn a_silent_peer() {
    let url = peer(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    unfinished_handshake(&url);
}

/// However many they are, and whatever time their URIs give each of them.
#[test]
fn waiting_for_silent_peers() {
    let url = peer(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let list = format!("{url}?connection_timeout=600000,{url},{url}");
    let bounds = ["--connect-timeout", "10m", "--wait", "--timeout"];
    let ended = client_at(&list, &[&bounds[..], &["2s", "fib", "30"]].concat());
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    assert!(ended.elapsed >= Duration::from_secs(2), "{ended:?}");
    // Nor is the time of a good one behind them spent.
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let list = format!("{list},{}", broker());
    let args = [&bounds[..], &["10s", "-q", "--queue", queue.name(), "fib", "30"]].concat();
    client_at(&list, &args).expect(0, "832040\n", "");
}

/// The time that is told has no nanoseconds, which what is left of a --timeout does have.
#[test]
fn waiting_for_a_silent_peer() {
    let url = peer(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let ended = client_at(&url, &["--wait", "--timeout", "1s", "fib", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    assert!(ended.stderr.ends_with(" (waited 1s)\n"), "{ended:?}");
    assert!(!ended.stderr.contains("us ") && !ended.stderr.contains("ns;"), "{ended:?}");
}

#[test]
fn a_peer_that_trickles_bytes() {
    let url = peer(|mut stream| {
        // The beginning of a connection.start frame that will be long.
        let frame = [1, 0, 0, 0, 0, 255, 255, 0, 10, 0, 10, 0, 9];
        for byte in frame.into_iter().chain(std::iter::repeat(b'x')) {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
    unfinished_handshake(&url);
}

#[test]
fn an_http_port() {
    let url = peer(|mut stream| {
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        let _ = stream.read_to_end(&mut Vec::new());
    });
    no_broker(
        &url,
        "no AMQP handshake with PEER: what answers there speaks HTTP, not AMQP; check host and port in --url or AMQP_URL",
    );
}

#[test]
fn a_broker_of_another_protocol_version() {
    let url = peer(|mut stream| {
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(b"AMQP\x00\x01\x00\x00");
    });
    no_broker(
        &url,
        "no AMQP handshake with PEER: what answers there does not speak AMQP 0-9-1; check host and port in --url or AMQP_URL",
    );
}

#[test]
fn a_peer_that_hangs_up() {
    let url = peer(|mut stream| {
        let _ = stream.read(&mut [0; 64]);
    });
    no_broker(
        &url,
        "no AMQP handshake with PEER: underlying socket closed unexpectedly; check host and port in --url or AMQP_URL",
    );
}

/// Makes a call by each program at `url`, and awaits both connections in the broker's list, by their names.
#[track_caller]
pub fn await_names(node: &Node, queue: &Queue, url: &str) {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    for given in [None, Some(["one's", "another's"])] {
        let options = given.map(|names| names.map(|name| vec!["--connection-name", name]));
        let [of_server, of_client] = options.unwrap_or_default();
        let server = server_at(url, queue, &of_server);
        let args = [&of_client[..], &["--queue", queue.name(), "fib", "-"]].concat();
        let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(url, &args));
        stdin.write_all(b"30\n").unwrap();
        client.await_stdout("832040\n");

        let programs = [("rpc_server", server.pid()), ("rpc_client", client.pid())];
        let names = match given {
            Some(names) => names.map(String::from),
            None => programs.map(|(program, pid)| format!("{program} {} {pid}", host.trim())),
        };
        await_that(&format!("connections of {names:?}"), || {
            let listed = node.ctl(&["-q", "list_connections", "client_properties"]);
            let property = |name: &String| format!("{{\"connection_name\",\"{name}\"}}");
            names.iter().all(|name| listed.contains(&property(name)))
        });
        drop(stdin);
        client.wait().expect(0, "832040\n", "");
    }
}

#[test]
fn each_connection_has_a_name_in_the_brokers_list() {
    let node = Node::start();
    await_names(&node, &Queue::at(&node.url), &node.url);
}

#[test]
fn the_connection_has_heartbeats_and_the_programs_name() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let _server = server_at(&node.url, &queue, &[]);
    let connections = node.ctl(&["list_connections", "client_properties", "timeout"]);
    let expected = format!("rpc_server {}", env!("CARGO_PKG_VERSION"));
    assert!(connections.contains(&expected), "{connections}");
    assert!(connections.lines().any(|line| line.ends_with("\t10")), "heartbeat: {connections}");
}

#[test]
fn a_user_without_permissions() {
    let node = Node::start();
    node.add_user("nobody");
    let url = node.url.replace("amqp://", "amqp://nobody:s3cret@");
    // No access to the vhost at all.
    let ended = client_at(&url, &["fib", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (77, ""), "{ended:?}");
    assert!(ended.stderr.contains("refused access"), "{ended:?}");
    assert!(ended.stderr.contains("rabbitmqctl set_permissions"), "{ended:?}");
    // Access, and not the right to create queues.
    let queue = Queue::at(&node.url);
    node.set_permissions("nobody", ["^test-", ".*", ".*"]);
    let _server = server_at(&url, &queue, &[]);
    node.set_permissions("nobody", ["^$", ".*", ".*"]);
    let args = ["--queue", queue.name()];
    let client = client_at(&url, &[&args[..], &["fib", "30"]].concat());
    let args = ["--queue", "another"];
    let server = Process::spawn(&mut server_command(&url, &args)).wait();
    for (ended, program) in [(client, "rpc_client: fib"), (server, "rpc_server")] {
        assert_eq!((ended.code(), ended.stdout.as_str()), (77, ""), "{ended:?}");
        let refused = format!("{program}: {} refused: ACCESS_REFUSED - ", shown(&url));
        assert!(ended.stderr.starts_with(&refused), "{ended:?}");
        let remedy = " refused for user 'nobody'; rabbitmqctl set_permissions gives access\n";
        assert!(ended.stderr.ends_with(remedy), "{ended:?}");
    }
}

/// What passes is no refusal: a server waits, and so does a client that is asked to.
#[test]
fn limits_of_the_broker() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    node.ctl(&["set_vhost_limits", "{\"max-connections\":0}"]);
    let ended = client_at(&node.url, &["--queue", queue.name(), "fib", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    assert!(ended.stderr.ends_with("connection limit (0) is reached\n"), "{ended:?}");
    let server = Process::spawn(&mut server_command(&node.url, &["--queue", queue.name()]));
    server.await_stderr("connection limit (0) is reached; trying again\n");
    node.ctl(&["set_vhost_limits", "{\"max-queues\":0}"]);
    // It says so again, for another reason: it may not make its queue.
    server.await_stderr(": queue limit in vhost '/' (0) is reached\n");
    assert_eq!(server.wait().code(), 78);
}

/// An operator can, though the queue is exclusive.
#[test]
fn a_reply_queue_that_is_deleted_during_the_call() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &[]);
    server.signal("STOP");
    let args = ["--queue", queue.name(), "--timeout", "10m", "fib", "30"];
    let waiting = Process::spawn(&mut client_command(&node.url, &args));
    node.await_queue("/", "messages_unacknowledged", 1);
    let queues = node.ctl(&["list_queues", "name"]);
    let reply_queue = queues.lines().find(|name| name.starts_with("amq.gen-")).unwrap();
    node.ctl(&["delete_queue", reply_queue]);
    let told = format!("rpc_client: {} deleted the reply queue; trying again\n", shown(&node.url));
    waiting.await_stderr(&told);
    server.signal("CONT");
    waiting.wait().expect(0, "832040\n", &told);
}

#[test]
fn a_frozen_broker_during_a_call() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &["--drill", "slow=1h"]);
    let pid = node.pid();
    let args = ["--queue", queue.name(), "--timeout", "3s", "fib", "93"];
    let waiting = Process::spawn(&mut client_command(&node.url, &args));
    server.await_stdout(" [.] fib(93)\n");
    kill(pid, "STOP");
    let ended = waiting.wait();
    kill(pid, "CONT");
    let stderr = format!(
        "rpc_client: fib(93): no answer within 3s: {} no longer answers; the connection was given up\n",
        shown(&node.url)
    );
    ended.expect(75, "", &stderr);
    assert!(ended.elapsed < ANSWER_LIMIT, "{ended:?}");
}

#[test]
fn a_broker_that_blocks_publishing() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let _server = server_at(&node.url, &queue, &[]);
    node.set_memory_watermark(0.0000001);
    let args = ["--queue", queue.name(), "--timeout", "3s", "fib", "30"];
    let ended = client_at(&node.url, &args);
    let shown = shown(&node.url);
    let stderr = format!(
        "rpc_client: {shown} blocks publishing (low on memory); waiting\n\
         rpc_client: fib(30): no answer within 3s: {shown} blocks publishing: low on memory; free its memory or disk\n"
    );
    ended.expect(75, "", &stderr);
    assert!((Duration::from_secs(3)..ANSWER_LIMIT).contains(&ended.elapsed), "{ended:?}");
    // A call that waits long enough is made when the alarm is over.
    let args = ["--queue", queue.name(), "--timeout", "10m", "fib", "30"];
    let waiting = Process::spawn(&mut client_command(&node.url, &args));
    waiting.await_stderr("blocks publishing");
    node.set_memory_watermark(0.4);
    let ended = waiting.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "832040\n"), "{ended:?}");
}

/// Not after a time limit for each of its calls.
#[test]
fn a_broker_that_blocks_publishing_ends_a_batch() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let _server = server_at(&node.url, &queue, &[]);
    node.set_memory_watermark(0.0000001);
    let args = ["-q", "--queue", queue.name(), "--timeout", "3s", "fib", "-"];
    let mut command = client_command(&node.url, &args);
    let (client, mut stdin) = Process::spawn_with_stdin(&mut command);
    stdin.write_all(&b"30\n".repeat(1_000)).unwrap();
    // It ends though more may come.
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
    assert!(ended.elapsed >= Duration::from_secs(3), "{ended:?}");
    let cause = format!(
        "no answer within 3s: {} blocks publishing: low on memory; free its memory or disk",
        shown(&node.url)
    );
    // The calls that were made before the broker said that it blocks: no more than are in flight at a
    // time, which is 64, unless --in-flight says otherwise. Each is told, in its order.
    let told = ended.stderr.matches(": fib(30): no answer ").count();
    assert!((1..=64).contains(&told), "{ended:?}");
    let mut expected: String =
        (1..=told).map(|line| format!("rpc_client: line {line}: fib(30): {cause}\n")).collect();
    expected += &format!("rpc_client: no more calls are made: {cause}\n");
    assert_eq!(ended.stderr, expected);
}

#[test]
fn calls_outlive_their_connection() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let busy = server_at(&node.url, &queue, &["--drill", "slow=1h"]);
    let args = ["--queue", queue.name(), "--timeout", "10m", "--format", "json", "fib", "93"];
    let patient = Process::spawn(&mut client_command(&node.url, &args));
    busy.await_stdout(" [.] fib(93)\n");
    // Or it would be back, and take the request again.
    busy.signal("STOP");
    let args = ["--queue", queue.name(), "--timeout", "10m", "--no-retry", "fib", "92"];
    let hasty = Process::spawn(&mut client_command(&node.url, &args));
    queue.await_state((1, 1));

    node.close_connections("maintenance");
    let shown = shown(&node.url);
    let closed = format!("{shown} closed the connection: CONNECTION_FORCED - maintenance");
    hasty.wait().expect(75, "", &format!("rpc_client: fib(92): {closed}\n"));
    let _server = server_at(&node.url, &queue, &[]);
    let ended = patient.wait();
    let call: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code(), &call["result"]), (0, &"12200160415121876738".into()), "{ended:?}");
    assert_eq!(call["attempts"], 2, "{ended:?}");
    let told = format!("rpc_client: {closed}; trying again\n");
    assert!(ended.stderr.starts_with(&told), "{ended:?}");
}

/// While a client has nothing to ask, the time of its next call does not run. A loss like the one before
/// is not told again.
#[test]
fn an_idle_client_outlives_its_connections() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let _server = server_at(&node.url, &queue, &[]);
    let args = ["--queue", queue.name(), "--timeout", "15s", "fib", "-"];
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(&node.url, &args));
    thread::sleep(Duration::from_secs(16));
    for answers in 1..=2 {
        node.close_connections("maintenance");
        stdin.write_all(b"30\n").unwrap();
        client.await_stdout(&"832040\n".repeat(answers));
    }
    drop(stdin);
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.lines().count()), (0, 2), "{ended:?}");
    assert_eq!(ended.stderr.matches("; trying again\n").count(), 1, "{ended:?}");
}

/// Nobody needs a broker for no calls.
#[test]
fn a_client_that_has_all_answers_needs_no_broker() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let _server = server_at(&node.url, &queue, &[]);
    let args = ["--queue", queue.name(), "--timeout", "0", "fib", "-"];
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(&node.url, &args));
    stdin.write_all(b"30\n").unwrap();
    client.await_stdout("832040\n");
    kill(node.pid(), "KILL");
    client.await_stderr("rpc_client: waiting: cannot reach ");
    drop(stdin);
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "832040\n"), "{ended:?}");
}

/// One whose time is up by then is given up, and costs the others nothing.
#[test]
fn not_all_calls_outlive_their_connection() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let busy = server_at(&node.url, &queue, &["--drill", "slow=1h"]);
    let args = ["-v", "--queue", queue.name(), "--timeout", "20s", "--in-flight", "2", "fib", "-"];
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(&node.url, &args));
    stdin.write_all(b"93\n").unwrap();
    busy.await_stdout(" [.] fib(93)\n");
    // Half of the time limit: what follows has the other half until the first call's time is up,
    // and what follows that has it until the second one's is.
    thread::sleep(Duration::from_secs(10));
    stdin.write_all(b"30\n").unwrap();
    drop(stdin);
    client.await_stderr(": fib(30), reply_to ");
    busy.signal("KILL");
    node.close_connections("maintenance");
    client.await_stderr("rpc_client: waiting: ");
    // In time, and not when the others' time is up.
    client.await_stderr("rpc_client: line 1: fib(93): no answer within 20s: nobody consumes ");
    let _server = server_at(&node.url, &queue, &[]);
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, "832040\n"), "{ended:?}");
    assert_eq!(ended.stderr.matches("; trying again\n").count(), 1, "{ended:?}");
    assert_eq!(ended.stderr.matches(": fib(93), reply_to ").count(), 1, "{ended:?}");
}

/// With what was right before, both wait for it to be right again.
#[test]
fn a_vhost_that_is_deleted_and_made_again() {
    let node = Node::start();
    let make = || {
        node.ctl(&["add_vhost", "v"]);
        node.ctl(&["set_permissions", "-p", "v", "guest", ".*", ".*", ".*"]);
    };
    make();
    let url = format!("{}/v", node.url);
    let queue = Queue::at(&url);
    let server = server_at(&url, &queue, &[]);
    server.signal("STOP");
    let args = ["--queue", queue.name(), "--timeout", "10m", "fib", "30"];
    let waiting = Process::spawn(&mut client_command(&url, &args));
    node.await_queue("v", "messages_unacknowledged", 1);
    // While RabbitMQ deletes it, there is a moment when it has no permissions, which is refused too.
    waiting.signal("STOP");
    node.ctl(&["delete_vhost", "v"]);
    waiting.signal("CONT");
    waiting.await_stderr(" has no vhost \"v\"");
    // Without its permissions it would be refused.
    waiting.signal("STOP");
    make();
    waiting.signal("CONT");
    server.signal("CONT");
    let ended = waiting.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "832040\n"), "{ended:?}");
}

#[test]
fn a_server_outlives_its_broker() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &[]);
    let shown = shown(&node.url);
    let args = ["-q", "--queue", queue.name(), "--wait", "--timeout", "10m", "fib", "30"];
    for _ in 0..2 {
        kill(node.pid(), "KILL");
        node.restart();
        client_at(&node.url, &args).expect(0, "832040\n", "");
    }
    node.close_connections("maintenance");
    client_at(&node.url, &args).expect(0, "832040\n", "");
    let ended = server.stop();
    let again = format!("rpc_server: connected to {shown} again\n");
    assert_eq!(ended.stderr.matches(&again).count(), 3, "{ended:?}");
    assert_eq!(ended.stdout.matches(" [x] Awaiting RPC requests\n").count(), 4, "{ended:?}");
}

/// A server that was asked to stop while it waits for its broker does not wait any longer.
#[test]
fn a_signal_cuts_the_wait_for_a_broker_short() {
    let url = format!("amqp://127.0.0.1:{}", refused_port());
    let server = Process::spawn(&mut server_command(&url, &["-v"]));
    // The first failure is told without a pause. The pause after the fourth takes 4 s or more.
    server.await_stderr_times("; again in ", 3);
    server.signal("INT");
    let ended = server.wait();
    assert_eq!(ended.code(), 0, "{ended:?}");
    assert!(ended.elapsed < Duration::from_secs(4), "{ended:?}");
}

/// Nor for the rest of an attempt to connect, which can take as long as there are brokers.
#[test]
fn a_signal_cuts_an_attempt_to_connect_short() {
    let (tell, connected) = std::sync::mpsc::channel();
    let url = peer(move |mut stream| {
        tell.send(()).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let server = Process::spawn(&mut server_command(&url, &["--connect-timeout", "10m"]));
    connected.recv_timeout(PATIENCE).unwrap();
    server.signal("TERM");
    server.wait().expect(0, "", "");
}

/// Nor does a client, after it lost its connection.
#[test]
fn a_signal_cuts_an_attempt_to_connect_again_short() {
    let node = Node::start();
    let proxy = Proxy::start(&node.url, |_| Action::Pass);
    let url = format!("{}?heartbeat=1", proxy.url);
    let queue = Queue::at(&node.url);
    let server = server_at(&node.url, &queue, &[]);
    server.signal("STOP");
    let limits = ["--connect-timeout", "10m", "--timeout", "10m"];
    let args = [&["--queue", queue.name()], &limits[..], &["fib", "30"]].concat();
    let waiting = Process::spawn(&mut client_command(&url, &args));
    node.await_queue("/", "messages_unacknowledged", 1);
    // Its system still takes connections.
    let pid = node.pid();
    kill(pid, "STOP");
    waiting.await_stderr("it sent no heartbeat; trying again\n");
    await_that("the attempt to connect again", || proxy.connections() == 2);
    waiting.signal("TERM");
    let ended = waiting.wait();
    kill(pid, "CONT");
    assert_eq!((ended.code(), ended.stdout.as_str()), (143, ""), "{ended:?}");
}

#[test]
fn wait_waits_for_a_broker() {
    let node = Node::start();
    let queue = Queue::at(&node.url);
    kill(node.pid(), "KILL");
    let args = ["--queue", queue.name(), "--wait", "--timeout", "10m", "fib", "30"];
    let waiting = Process::spawn(&mut client_command(&node.url, &args));
    waiting.await_stderr("rpc_client: waiting: ");
    node.restart();
    let _server = server_at(&node.url, &queue, &[]);
    let ended = waiting.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "832040\n"), "{ended:?}");
}

#[test]
fn a_bound_below_a_millisecond_is_told_as_one() {
    let url = peer(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let ended = client_at(&url, &["--connect-timeout", "1ns", "fib", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    // Which of the two steps it is that takes too long is a matter of chance.
    let is_told = ended.stderr.contains(" within 1ms; ") || ended.stderr.contains("cannot reach ");
    assert!(is_told, "{ended:?}");
}

#[test]
fn the_wait_before_the_next_attempt_is_told_in_milliseconds() {
    let url = format!("amqp://127.0.0.1:{}", refused_port());
    let server = Process::spawn(&mut server_command(&url, &["-v"]));
    server.await_stderr("; again in ");
    server.signal("TERM");
    let ended = server.wait();
    let (_, delay) = ended.stderr.split_once("; again in ").unwrap();
    assert!(humantime::parse_duration(delay.trim_end()).is_ok(), "{ended:?}");
    assert!(!delay.contains('.'), "{ended:?}");
}

#[test]
fn a_dead_first_broker_is_told_at_v() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let dead = format!("amqp://127.0.0.1:{}", refused_port());
    let list = format!("{dead},{}", broker());
    let ended = client_at(&list, &["-v", "--queue", queue.name(), "fib", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "832040\n"), "{ended:?}");
    let told = format!("rpc_client: cannot reach {dead}: Connection refused");
    assert!(ended.stderr.contains(&told), "{ended:?}");
}

/// By a server too, with what helps, and before the broker that it is connected to.
#[test]
fn a_dead_first_broker_is_told_by_a_server_at_v() {
    let (queue, dead) = (Queue::new(), format!("amqp://127.0.0.1:{}", refused_port()));
    let server = server_at(&format!("{dead},{}", broker()), &queue, &["-v"]);
    let expected = format!(
        "rpc_server: cannot reach {dead}: Connection refused (os error 111); is RabbitMQ running there? \
         (--url or AMQP_URL names another)\n\
         rpc_server: connected to {}\n",
        shown(&broker())
    );
    assert!(server.stderr().starts_with(&expected), "{}", server.stderr());
}
