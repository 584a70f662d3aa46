//! Where requests go, what they say of themselves, and how replies of other people's servers are read.

use crate::harness::*;
use amiquip::{AmqpProperties, AmqpValue, ExchangeDeclareOptions, ExchangeType, FieldTable};
use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// A direct exchange that no other test has, to which queues can be bound. It is deleted with its test. Its name has a colon.
pub struct Exchange {
    pub amqp: Amqp,
    pub name: String,
}

impl Exchange {
    fn new() -> Exchange {
        Exchange::at(&broker())
    }

    pub fn at(url: &str) -> Exchange {
        let exchange = Exchange { amqp: Amqp::at(url), name: format!("test:{}", Uuid::new_v4()) };
        exchange.declare();
        exchange
    }

    pub fn declare(&self) {
        let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
        let name = self.name.as_str();
        self.amqp.channel.exchange_declare(ExchangeType::Direct, name, options).unwrap();
    }

    pub fn delete(&self) {
        self.amqp.channel.exchange_delete(self.name.as_str(), false).unwrap();
    }

    fn bind(&self, queue: &Queue, key: &str) {
        self.amqp.declare(queue);
        let no_arguments = FieldTable::new();
        self.amqp.channel.queue_bind(queue.name(), self.name.as_str(), key, no_arguments).unwrap();
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let _ = self.amqp.channel.exchange_delete(self.name.as_str(), false);
    }
}

/// Returns what a server of somebody else's got, and what the client came to, which had this `body` for an answer.
fn requested(args: &[&str], body: &[u8]) -> (AmqpProperties, String, Ended) {
    let queue = Queue::new();
    let (sender, received) = std::sync::mpsc::channel();
    let body = body.to_vec();
    let server = StubServer::start(&queue, 1, move |channel, request| {
        sender.send((request.properties.clone(), request.body.clone())).unwrap();
        reply(channel, request, &body, AmqpProperties::default());
    });
    let ended = queue.client(args);
    server.join();
    let (properties, body) = received.recv_timeout(PATIENCE).unwrap();
    (properties, String::from_utf8(body).unwrap(), ended)
}

/// Whoever gets it sees no difference, whatever options there are by now: each property, and no other.
#[test]
fn the_tutorials_request_goes_over_the_wire_as_it_always_did() {
    let (properties, body, ended) = requested(&["fib", "30"], b"832040");
    ended.expect(0, "832040\n", "");
    assert_eq!(body, "30");
    let id = properties.correlation_id().clone().unwrap();
    let expiration = properties.expiration().clone().unwrap();
    let reply_to = properties.reply_to().clone().unwrap();
    assert!(uuid::Uuid::parse_str(&id).is_ok() && id.len() == 36, "{id}");
    assert!((1..=30_000).contains(&expiration.parse::<u32>().unwrap()), "{expiration}");
    assert!(reply_to.starts_with("amq.gen-"), "{reply_to}");
    let expected = AmqpProperties::default()
        .with_content_type("text/plain".into())
        .with_app_id("fib".into())
        .with_reply_to(reply_to)
        .with_correlation_id(id)
        .with_expiration(expiration);
    assert_eq!(properties, expected);
}

#[test]
fn what_a_request_says_of_itself() {
    let args = ["-C", "application/json", "-H", "task: tasks.add", "-H", "id:1", "", "[1]"];
    let (properties, body, ended) = requested(&args, b"3");
    ended.expect(0, "3\n", "");
    assert_eq!((properties.app_id(), body.as_str()), (&None, "[1]"));
    assert_eq!(properties.content_type().as_deref(), Some("application/json"));
    let text = |text: &str| AmqpValue::LongString(text.into());
    let headers = FieldTable::from([("task".into(), text("tasks.add")), ("id".into(), text("1"))]);
    assert_eq!(properties.headers(), &Some(headers));
    let (properties, _, ended) = requested(&["-C", "", "fib", "30"], b"832040");
    ended.expect(0, "832040\n", "");
    assert_eq!(properties.content_type(), &None);
}

#[test]
fn what_cannot_be_said_is_told_at_the_start() {
    let long = "n".repeat(256);
    for (args, told) in [
        (&["--error-at", "err"][..], "a JSON pointer begins with a slash: /err"),
        (&["--result-at", "/a~2"], "in a JSON pointer, ~0 is a ~ and ~1 a slash"),
        (&["-H", "task"], "a header is written as 'NAME: VALUE'"),
        (&["-H", &format!("{long}: x")], "a name has at most 255 bytes, and this one has 256"),
        (&["-H", "CC: x"], "CC is a list of routing keys for RabbitMQ"),
        (&["-H", "a: 1", "-H", "a: 2"], "--header a is given twice"),
        (&["-C", &long], "a name has at most 255 bytes, and this one has 256"),
        (&["-e", "x", "--queue", "y"], "cannot be used with"),
        (&["-r", "x", "--queue", "y"], "cannot be used with"),
        (&["-e", "x", "-r", &long], "a name has at most 255 bytes, and this one has 256"),
        (&["-r", "x"], "--exchange <NAME>"),
    ] {
        let ended = client(&[args, &["fib", "30"]].concat());
        assert_eq!((ended.code(), ended.stdout.as_str()), (64, ""), "{args:?}");
        assert!(ended.stderr.contains(told), "{args:?}: {ended:?}");
    }
}

/// One that is too large for a frame would end the connection, again and again.
#[test]
fn headers_that_fit_into_no_frame() {
    let value = "x".repeat(100_000);
    let (a, b) = (format!("a: {value}"), format!("b: {value}"));
    let (properties, _, ended) = requested(&["-H", &a, "fib", "30"], b"1");
    ended.expect(0, "1\n", "");
    assert_eq!(properties.headers().as_ref().unwrap().len(), 1);
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let ended = queue.client(&["-H", &a, "-H", &b, "fib", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (78, ""), "{ended:?}");
    assert!(ended.stderr.contains("the headers have 200014 bytes, and the broker's frames have "));
}

#[test]
fn errors_and_results_in_json() {
    let call = |args: &[&str], body: &str| requested(args, body.as_bytes()).2;
    let nest = ["--error-at", "/err", "--result-at", "/response", "", "{}"];
    call(&nest, r#"{"response":"pong","isDisposed":true}"#).expect(0, "pong\n", "");
    let ended = call(&nest, r#"{"err":{"message":"no"}}"#);
    ended.expect(70, "", "rpc_client: ({}): {\"message\":\"no\"} (internal)\n");
    let ended = call(&nest, "<html>");
    assert_eq!((ended.code(), ended.stdout.as_str()), (76, ""), "{ended:?}");
    // It is the procedure's own error: no other attempt is made, and the batch ends.
    let args = [&["--retries", "3", "--fail-fast"], &nest[..]].concat();
    let ended = call(&args, r#"{"err":"no"}"#);
    ended.expect(70, "", "rpc_client: ({}): no (internal)\n");
    let args = [&["--format", "raw"], &nest[..]].concat();
    call(&args, r#"{"response":{"n": 12345678901234567890123}}"#).expect(
        0,
        r#"{"n": 12345678901234567890123}"#,
        "",
    );
}

/// JSON has the reply's content type, the log its headers.
#[test]
fn what_a_reply_says_of_itself() {
    let queue = Queue::new();
    let server = StubServer::start(&queue, 2, |channel, request| {
        let headers = FieldTable::from([("a\u{1b}".into(), AmqpValue::LongInt(7))]);
        let properties = AmqpProperties::default()
            .with_content_type("application/json".into())
            .with_headers(headers);
        reply(channel, request, br#"{"status":"FAILURE","result":"why"}"#, properties);
    });
    let ended = queue.client(&["-v", "--format", "json", "fib", "30"]);
    let call: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(call["content_type"], "application/json", "{call}");
    let headers = r#": reply: result, headers {"a\u001b":7}, correlation_id "#;
    assert!(ended.stderr.contains(headers), "{ended:?}");
    let celery = ["--error-at", "/status=FAILURE", "--result-at", "/result"];
    let ended = queue.client(&[&celery[..], &["--format", "json", "fib", "30"]].concat());
    let call: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(call["error"]["message"], "FAILURE: why", "{call}");
    assert_eq!((call["error"]["kind"].as_str(), ended.code()), (Some("internal"), 70), "{call}");
    assert_eq!(call["content_type"], "application/json", "{call}");
    server.join();
}

/// A number spreads calls over queues; a part of the argument keeps together what belongs together.
#[test]
fn an_exchange_puts_calls_into_queues() {
    let exchange = Exchange::new();
    let queues = [Queue::new(), Queue::new()];
    exchange.bind(&queues[0], "rpc.1");
    exchange.bind(&queues[0], "rpc.2");
    exchange.bind(&queues[1], "rpc.3");
    let servers = queues.each_ref().map(|queue| server(queue, &[]));
    let args = ["-e", &exchange.name, "-r", "rpc.{#}", "fun", "1", "2", "3"];
    client(&args).expect(0, "100\n200\n300\n", "");
    let args = ["-e", &exchange.name, "-r", "rpc.{/.}", "a", "x/3.png", "2", "3"];
    client(&args).expect(0, "a\na\na\n", "");
    let transcripts = servers.each_ref().map(Process::stdout);
    assert!(transcripts[0].ends_with(" [.] fun(1)\n [.] fun(2)\n [.] a(2)\n"), "{transcripts:?}");
    let second = " [.] fun(3)\n [.] a(x/3.png)\n [.] a(3)\n";
    assert!(transcripts[1].ends_with(second), "{transcripts:?}");

    // Without a key, as a fanout has it; and by way of the default exchange, where it is a queue's name.
    let ended = client(&["-e", "", "-r", queues[0].name(), "ping"]);
    ended.expect(0, "pong\n", "");
    exchange.bind(&queues[1], "");
    client(&["-e", &exchange.name, "ping"]).expect(0, "pong\n", "");
}

#[test]
fn what_cannot_be_routed_is_told_with_both_names() {
    let exchange = Exchange::new();
    let (name, broker) = (exchange.name.as_str(), shown(&broker()));
    let missing = format!("there is no exchange \"{name}x\" on {broker}; ");
    let ended = client(&["-e", &format!("{name}x"), "fib", "30"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    assert!(ended.stderr.starts_with(&format!("rpc_client: fib: {missing}")), "{ended:?}");

    let no_queue = |key: &str| {
        format!("the exchange \"{name}\" on {broker} has no queue for the routing key \"{key}\"; ")
    };
    let ended = client(&["-e", name, "-r", "k.{}", "--format", "json", "fib", "30", "31"]);
    assert_eq!(ended.code(), 69, "{ended:?}");
    for (line, key) in ended.stdout.lines().zip(["k.30", "k.31"]) {
        let call: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(call["error"]["kind"], "unroutable", "{call}");
        assert!(call["error"]["message"].as_str().unwrap().starts_with(&no_queue(key)), "{call}");
    }
    // What is waited for in vain is told as what it is, and once.
    let ended = client(&["--wait", "--timeout", "2s", "-e", name, "-r", "k", "fib", "30"]);
    assert_eq!(ended.code(), 69, "{ended:?}");
    let [waiting, failed] = ended.stderr.lines().collect::<Vec<_>>()[..] else {
        panic!("{ended:?}")
    };
    assert!(waiting.starts_with(&format!("rpc_client: waiting: {}", no_queue("k"))), "{ended:?}");
    assert!(failed.starts_with(&format!("rpc_client: fib(30): {}", no_queue("k"))), "{ended:?}");
    assert!(failed.ends_with(" (waited 2s)"), "{ended:?}");
}

/// The exchange comes first, then the queue.
#[test]
fn an_exchange_is_waited_for_and_then_a_queue() {
    let (queue, exchange) = (Queue::new(), Exchange::new());
    let name = exchange.name.clone();
    exchange.delete();
    let args = ["--wait", "--timeout", "10m", "-e", &name, "-r", "k", "fib", "30", "31"];
    let client = Process::spawn(&mut client_command(&broker(), &args));
    client.await_stderr("waiting: there is no exchange ");
    exchange.declare();
    client.await_stderr("has no queue for the routing key \"k\"");
    exchange.bind(&queue, "k");
    let _server = server(&queue, &[]);
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "832040\n1346269\n"), "{ended:?}");
}

/// Not even the first one, when nobody knows how many servers there are.
#[test]
fn a_call_that_waits_for_a_queue_behind_an_exchange_holds_no_other() {
    let (queue, exchange) = (Queue::new(), Exchange::new());
    exchange.bind(&queue, "2");
    exchange.bind(&queue, "3");
    let _server = server(&queue, &[]);
    let options = ["--wait", "--timeout", "10m", "--unordered", "-e", &exchange.name, "-r", "{}"];
    let args = [&options[..], &["fun", "1", "2", "3"]].concat();
    let client = Process::spawn(&mut client_command(&broker(), &args));
    client.await_stderr("has no queue for the routing key \"1\"");
    client.await_stdout("200\n300\n");
    exchange.bind(&queue, "1");
    let ended = client.wait();
    assert_eq!((ended.code(), ended.stdout.as_str()), (0, "200\n300\n100\n"), "{ended:?}");
}

#[test]
fn a_queue_without_a_server_lets_its_share_of_the_calls_time_out() {
    let exchange = Exchange::new();
    let [served, unserved] = [Queue::new(), Queue::new()];
    exchange.bind(&served, "1");
    exchange.bind(&served, "3");
    exchange.bind(&unserved, "2");
    let _server = server(&served, &[]);
    let args = ["--timeout", "3s", "-e", &exchange.name, "-r", "{#}", "fib", "1", "2", "3"];
    let ended = client(&args);
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, "1\n2\n"), "{ended:?}");
    let told = format!(
        "rpc_client: fib(2): no answer within 3s: the exchange \"{}\" put the request into a queue, whose servers are \
         gone, or busy with earlier calls, or have thrown it away; see rabbitmqctl list_queues name messages consumers",
        exchange.name
    );
    assert!(ended.stderr.starts_with(&told), "{ended:?}");
    assert!(ended.stderr.contains("; its routing key was \"2\"\n"), "{ended:?}");
    assert!(ended.elapsed >= Duration::from_secs(3), "{ended:?}");
}

#[test]
fn an_argument_that_makes_no_routing_key_costs_no_other_call() {
    let queue = Queue::new();
    let _server = server(&queue, &[]);
    let long = "x".repeat(300);
    let args = ["-e", "", "-r", "{}", "ping", &long, queue.name()];
    let ended = client(&args);
    assert_eq!((ended.code(), ended.stdout.as_str()), (65, "pong\n"), "{ended:?}");
    let told = ": a routing key has at most 255 bytes, and this one has 300\n";
    assert!(ended.stderr.contains(told), "{ended:?}");
}

/// An exchange that is deleted ends the channel that publishes to it.
#[test]
fn an_exchange_that_is_deleted_is_named() {
    let exchange = Exchange::new();
    let queue = Queue::new();
    exchange.bind(&queue, "k");
    let _server = server(&queue, &[]);
    let args = ["--no-retry", "--timeout", "10m", "-e", &exchange.name, "-r", "k", "ping", "-"];
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(&broker(), &args));
    stdin.write_all(b"\n").unwrap();
    client.await_stdout("pong\n");
    exchange.delete();
    stdin.write_all(b"\n").unwrap();
    drop(stdin);
    let ended = client.wait();
    let told =
        format!("rpc_client: line 2: ping(): there is no exchange \"{}\" on ", exchange.name);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, "pong\n"), "{ended:?}");
    assert!(ended.stderr.contains(&told), "{ended:?}");
}

/// Whether it refuses all for long is counted anew after each request that it takes.
#[test]
fn one_refusal_long_after_another_costs_no_connection() {
    let (queue, amqp) = (Queue::new(), Amqp::new());
    amqp.declare_with_room(&queue, 1);
    let fill = || amqp.publish(queue.name(), b"", AmqpProperties::default());
    fill();
    let args = ["-v", "--confirm", "--timeout", "10m", "-e", "", "-r", queue.name(), "ping", "-"];
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(&broker(), &args));
    stdin.write_all(b"1\n").unwrap();
    client.await_stderr(" refused a request: ");
    let refused = Instant::now();
    let server = server(&queue, &[]);
    client.await_stdout("pong\n");
    server.stop();

    fill();
    queue.await_state((1, 0));
    // Longer than the client takes it.
    thread::sleep(Duration::from_secs(3).saturating_sub(refused.elapsed()));
    let before = client.stderr();
    stdin.write_all(b"2\n").unwrap();
    client.await_stderr_times("ping(2), reply_to ", 2);
    let meanwhile = client.stderr().split_off(before.len());
    assert!(!meanwhile.contains("connected to "), "{meanwhile}");
}
