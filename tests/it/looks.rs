//! How the client finds out what is the matter with its queue while it is connected, and what it tells.

use crate::harness::*;
use crate::proxy::*;
use amiquip::{AmqpProperties, AmqpValue, FieldTable, QueueDeclareOptions};
use fib_rpc::amqp::errors::AmqpErrorKind;
use fib_rpc::amqp::queue::QueueState;
use std::io::Write;
use std::sync::mpsc;

/// A look at the queue that the broker does not answer, as behind a long upload by a slow link: the question is
/// given up, and not the connection, on which another call has its answer.
#[test]
fn a_look_without_an_answer_costs_no_other_call() {
    let queue = Queue::new();
    // The first declare is the look before any call, the second the reply queue's.
    let proxy = Proxy::start(&broker(), |frame| match (frame.method, frame.nth) {
        (QUEUE_DECLARE, 3..) => Action::Stall,
        _ => Action::Pass,
    });
    let (go_on, told) = mpsc::channel();
    let mut requests = 0;
    let server = StubServer::start(&queue, 2, move |channel, request| {
        requests += 1;
        if requests == 2 {
            told.recv_timeout(PATIENCE).unwrap();
            reply(channel, request, b"in time", AmqpProperties::default());
        }
    });
    let args = ["-v", "--format", "json", "--timeout", "10s", "--in-flight", "2", "--queue"];
    let args = [&args[..], &[queue.name(), "fun", "-"]].concat();
    let (client, mut stdin) = Process::spawn_with_stdin(&mut client_command(&proxy.url, &args));
    stdin.write_all(b"1\n").unwrap();
    client.await_stderr(": fun(1), reply_to ");
    // Its limit is over well after the first one's: what the test needs is that it has not passed by then.
    std::thread::sleep(std::time::Duration::from_secs(6));
    stdin.write_all(b"2\n").unwrap();
    drop(stdin);
    client.await_stdout("\"argument\":\"1\"");
    go_on.send(()).unwrap();
    let ended = client.wait();
    server.join();
    let [late, in_time] = ended.stdout.lines().collect::<Vec<_>>()[..] else { panic!("{ended:?}") };
    let reason = "did not say in time whether anybody serves the queue";
    assert!(late.contains("no answer within 10s: ") && late.contains(reason), "{ended:?}");
    assert!(in_time.contains("\"result\":\"in time\""), "{ended:?}");
    assert!(in_time.contains("\"attempts\":1,"), "{ended:?}");
    assert_eq!((ended.code(), proxy.connections()), (75, 1), "{ended:?}");
}

/// What waits behind a call of its own batch is told with the option that is about it.
#[test]
fn a_batch_that_waits_for_itself_is_told_of_in_flight() {
    let queue = Queue::new();
    let _server = server(&queue, &["--drill", "slow=60s"]);
    let client = |in_flight: &str| {
        queue.client(&["--timeout", "1s", "--in-flight", in_flight, "--repeat", "3", "ping"])
    };
    let ended = client("3");
    let busy =
        "and may be busy with earlier calls; give more time with --timeout, or start more servers";
    let batch = "; 2 other calls of this batch awaited replies too, and this one may have waited behind them: a smaller \
         --in-flight sends each later, when its turn is near, and more rpc_server --workers answer more at a time";
    assert_eq!((ended.code(), ended.stdout.as_str()), (75, ""), "{ended:?}");
    assert!(ended.stderr.contains(busy) && ended.stderr.contains(batch), "{ended:?}");
    // There is one consumer.
    let ended = client("auto");
    assert_eq!((ended.code(), ended.stderr.matches(busy).count()), (75, 3), "{ended:?}");
    assert!(!ended.stderr.contains("--in-flight"), "{ended:?}");
}

/// With one broker: a request that its queue refuses is told as refused, and goes out again, if confirms
/// were asked for.
#[test]
fn confirms_with_one_broker() {
    let queue = Queue::new();
    Amqp::new().declare_with_room(&queue, 1);
    let server = server(&queue, &["--confirm", "--drill", "slow=100ms"]);
    let refused = format!(
        "{} refused a request: the queue \"{}\" may be full",
        shown(&broker()),
        queue.name()
    );
    let args = ["--confirm", "--timeout", "10m", "--repeat", "30", "ping"];
    let told = format!("rpc_client: {refused}; trying again\n");
    queue.client(&args).expect(0, &"pong\n".repeat(30), &told);
    assert_eq!(server.stdout().matches(" [.] ping()\n").count(), 30);
    let ended = queue.client(&["-q", "--confirm", "--no-retry", "--repeat", "30", "ping"]);
    let told = format!("rpc_client: ping(): {refused}\n");
    assert_eq!((ended.code(), ended.stderr.replace(&told, "").as_str()), (75, ""), "{ended:?}");
}

/// The server asks for confirms too: it acks when the broker has said that it has the reply.
#[test]
fn a_server_that_asks_for_confirms() {
    let queue = Queue::new();
    let selects = |args: &[&str]| {
        let proxy = Proxy::start(&broker(), |_| Action::Pass);
        let _server = server_at(&proxy.url, &queue, args);
        queue.client(&["fib", "30"]).expect(0, "832040\n", "");
        proxy.passed(CONFIRM_SELECT)
    };
    assert_eq!((selects(&[]), selects(&["--confirm"])), (0, 1));
}

/// A stream tells of no consumers: the client says what it may be.
#[test]
fn a_stream_is_no_request_queue() {
    let queue = Queue::new();
    let arguments =
        FieldTable::from([("x-queue-type".into(), AmqpValue::LongString("stream".into()))]);
    let options = QueueDeclareOptions { durable: true, arguments, ..Default::default() };
    Amqp::new().channel.queue_declare(queue.name(), options).unwrap();
    let ended = queue.client(&["ping"]);
    assert_eq!((ended.code(), ended.stdout.as_str()), (69, ""), "{ended:?}");
    assert!(ended.stderr.contains("a stream cannot be a request queue"), "{ended:?}");
}

/// What costs its channel costs an inspector nothing more: the next question has another one.
#[test]
fn an_inspector_asks_again_after_each_refusal() {
    let (missing, exclusive, there) = (Queue::new(), Queue::new(), Queue::new());
    let owner = Amqp::new();
    owner.declare(&there);
    let options = QueueDeclareOptions { exclusive: true, ..Default::default() };
    owner.channel.queue_declare(exclusive.name(), options).unwrap();
    let looker = Amqp::new();
    let ask = |queue: &Queue| {
        let answer = looker.session.inspector().ask(queue.name()).expect("it is not busy");
        answer.recv_timeout(PATIENCE).unwrap().map_err(|error| error.kind)
    };
    for _ in 0..2 {
        assert_eq!(ask(&missing), Err(AmqpErrorKind::QueueMissing));
        assert_eq!(ask(&exclusive), Err(AmqpErrorKind::QueueUnusable));
        assert_eq!(ask(&there), Ok(QueueState { messages: 0, consumers: 0, hides: false }));
    }
}

/// A question that was given up is still the broker's to answer: there is no other until then. Nor does it keep
/// the connection from being closed.
#[test]
fn an_inspector_is_busy_until_its_answer_comes() {
    let queue = Queue::new();
    Amqp::new().declare(&queue);
    let proxy = Proxy::start(&broker(), |frame| match frame.method {
        QUEUE_DECLARE => Action::Stall,
        _ => Action::Pass,
    });
    let mut looker = Amqp::at(&proxy.url);
    let ask = |looker: &Amqp| looker.session.inspector().ask(queue.name());
    let answer = ask(&looker).expect("it is not busy");
    assert!(ask(&looker).is_none());
    proxy.set(|_| Action::Pass);
    assert!(answer.recv_timeout(PATIENCE).unwrap().is_ok());
    proxy.set(|_| Action::Stall);
    drop(ask(&looker).expect("it is not busy"));
    assert!(ask(&looker).is_none());
    let started = std::time::Instant::now();
    looker.session.close();
    assert!(started.elapsed() < ANSWER_LIMIT, "{:?}", started.elapsed());
}
