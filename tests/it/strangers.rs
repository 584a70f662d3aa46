//! A server for clients that know nothing of it: what its replies are said to be, a procedure for all names, what a program
//! learns of a request, and exchanges that hand requests on.

use crate::addressing::Exchange;
use crate::commands::{Caller, Folder};
use crate::harness::*;
use amiquip::{AmqpProperties, AmqpValue, FieldTable, Publish};
use fib_rpc::error::ErrorKind;
use fib_rpc::protocol::Reply;
use serde_json::{Value, json};
use uuid::Uuid;

/// Content type and body of the reply to a request with these properties.
#[track_caller]
fn call(queue: &Queue, properties: AmqpProperties, body: &[u8]) -> (String, String) {
    let amqp = Amqp::new();
    let reply_to = amqp.exclusive();
    amqp.publish(queue.name(), body, properties.with_reply_to(reply_to.clone()));
    let reply = amqp.next(&reply_to);
    let said = reply.properties.content_type().clone().unwrap();
    (said, String::from_utf8(reply.body).unwrap())
}

fn app_id(name: &str) -> AmqpProperties {
    AmqpProperties::default().with_app_id(name.into())
}

#[test]
fn what_results_are_said_to_be() {
    let queue = Queue::new();
    let failing = "--procedure=fail=sh -c 'echo \"no \\\"way\\\"\" >&2; exit 65'";
    let args = ["--content-type", "application/json", failing, "--procedure=fun"];
    let server = server(&queue, &args);
    let json_type = "application/json".to_owned();
    assert_eq!(call(&queue, app_id("fun"), b"7"), (json_type.clone(), "700".into()));
    let error = r#"{"error":{"kind":"invalid-argument","message":"no \"way\""}}"#;
    assert_eq!(call(&queue, app_id("fail"), b"7"), (json_type, error.into()));

    // Our own client finds the sentence, and knows the kind as ever.
    queue.client(&["fun", "7"]).expect(0, "700\n", "");
    let sentence = "rpc_client: fail(7): no \"way\" (invalid-argument)\n";
    queue.client(&["fail", "7"]).expect(65, "", sentence);
    let ended = queue.client(&["--format", "json", "fail", "7"]);
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.code(), &told["error"]["message"]), (65, &json!("no \"way\"")));
    server.stop();

    let args = ["--content-type", "image/png", failing, "--procedure=fun", "--at-most-once"];
    let _server = crate::harness::server(&queue, &args);
    assert_eq!(call(&queue, app_id("fun"), b"7"), ("image/png".into(), "700".into()));
    let error = ("text/plain".into(), "no \"way\"".into());
    assert_eq!(call(&queue, app_id("fail"), b"7"), error);
}

/// Requests with each property that a program is told of.
fn told() -> AmqpProperties {
    let headers = FieldTable::from([
        ("task".into(), AmqpValue::LongString("add\0\"".into())),
        ("PATH".into(), AmqpValue::FieldArray(vec![AmqpValue::LongInt(1), AmqpValue::Void])),
    ]);
    AmqpProperties::default().with_type_("a\0type".into()).with_headers(headers)
}

const HEADERS: &str = r#"{"PATH":[1,null],"task":"add\u0000\""}"#;

#[test]
fn what_a_program_is_told_of_a_request() {
    let queue = Queue::new();
    let script = "env | grep ^RPC_ | grep -v RPC_RUN | sort";
    let any = format!("--procedure=*=sh -c '{script}'");
    let server = server(&queue, &[&any, "--procedure=up=tr a-z A-Z", "--time-limit", "0"]);
    let variables = |procedure: &str, headers: &str, kind: &str| {
        let own = format!("RPC_ROUTING_KEY={}\n{kind}", queue.name());
        format!("{headers}RPC_PROCEDURE={procedure}\nRPC_REDELIVERED=0\n{own}")
    };
    let headers = format!("RPC_HEADERS={HEADERS}\n");
    let whole = variables("", &headers, "RPC_TYPE=a\u{1a}type\n");
    assert_eq!(call(&queue, told(), b"").1, whole);
    let named = told().with_app_id("x=y".into());
    assert_eq!(call(&queue, named, b"").1, whole.replace("PROCEDURE=", "PROCEDURE=x=y"));
    assert_eq!(call(&queue, app_id("*"), b"").1, variables("*", "RPC_HEADERS={}\n", ""));
    // What is named is called.
    assert_eq!(call(&queue, app_id("up"), b"up").1, "UP");
    assert_eq!(call(&queue, app_id("list"), b"").1, "*\nlist\nping\nup");

    let large = AmqpValue::LongString("x".repeat(64 << 10));
    let large = AmqpProperties::default().with_headers([("a".into(), large)].into());
    assert_eq!(call(&queue, large.with_app_id("large".into()), b"").1, variables("large", "", ""));
    let warning = "rpc_server: the headers of a request for \"large\" are over 64 KiB of JSON, and are kept from the program\n";
    assert_eq!(server.stop().stderr, warning);
}

/// The tutorial's clients name no procedure.
#[test]
fn whose_a_request_is_that_names_no_procedure() {
    let queue = Queue::new();
    for (args, answer) in [
        (&["--procedure=up=echo up", "--procedure=*=echo any"][..], "any\n"),
        (&["--procedure=*=echo any", "--procedure=fib"], "832040"),
        (&["--procedure=up=echo up", "--procedure=fib"], "up\n"),
    ] {
        let server = server(&queue, args);
        let (_, came) = call(&queue, AmqpProperties::default(), b"30");
        assert_eq!(came, answer, "{args:?}");
        server.stop();
    }
}

#[test]
fn a_program_that_stays_serves_any_name() {
    let queue = Queue::new();
    let echo = "jq --unbuffered -c '{result:(del(.correlation_id,.time_limit)|tojson)}'";
    let server = server(&queue, &[&format!("--json-coprocess=*={echo}")]);
    let (_, line) = call(&queue, told().with_app_id("add".into()), b"1");
    let came: Value = serde_json::from_str(&line).unwrap();
    let expected = json!({
        "procedure": "add", "argument": "1", "content_type": null, "redelivered": false,
        "routing_key": queue.name(), "type": "a\0type",
        "headers": serde_json::from_str::<Value>(HEADERS).unwrap(),
    });
    assert_eq!(came, expected);
    let (_, line) = call(&queue, AmqpProperties::default(), b"");
    let came: Value = serde_json::from_str(&line).unwrap();
    assert_eq!((&came["procedure"], &came["headers"]), (&json!(""), &json!({})));
    server.stop();

    let _server = crate::harness::server(&queue, &["--coprocess=*=sed -u s/^/$/"]);
    assert_eq!(call(&queue, app_id("dollars"), b"5").1, "$5");
    let caller = Caller::new(&queue);
    let refused = caller.call("dollars", b"1\n2").unwrap_err();
    assert_eq!(refused.kind, ErrorKind::InvalidArgument);
}

/// What Celery sends and awaits, as far as a client's part goes (Celery, "Message Protocol"). `scripts/interop.sh` has
/// Celery itself.
#[test]
fn a_program_serves_what_celerys_clients_send() {
    let (queue, folder) = (Queue::new(), Folder::new());
    let tasks = folder.write(
        "tasks",
        concat!(
            "#!/bin/sh\n",
            "jq -c --argjson headers \"$RPC_HEADERS\" '",
            "{task_id: $headers.id, children: [], traceback: null} +\n",
            "if $headers.task == \"add\" then {status: \"SUCCESS\", result: (.[0] | add)}\n",
            "else {status: \"FAILURE\", result: {exc_type: \"NotRegistered\", exc_message: [$headers.task]}} end'\n"
        ),
        0o755,
    );
    let any = format!("--procedure=*={}", tasks.display());
    let _server = server(&queue, &["--content-type", "application/json", &any]);
    for (task, expected) in [
        ("add", json!({"status": "SUCCESS", "result": 42})),
        (
            "sub",
            json!({"status": "FAILURE", "result": {"exc_type": "NotRegistered", "exc_message": ["sub"]}}),
        ),
    ] {
        let text = |text: &str| AmqpValue::LongString(text.into());
        let headers = [("task", text(task)), ("id", text("1")), ("retries", AmqpValue::LongInt(0))];
        let headers = headers.map(|(name, value)| (name.into(), value)).into();
        let request = AmqpProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_correlation_id("1".into())
            .with_headers(headers);
        let (said, body) = call(&queue, request, b"[[40, 2], {}, {\"callbacks\": null}]");
        let mut came: Value = serde_json::from_str(&body).unwrap();
        assert_eq!((said.as_str(), &came["task_id"]), ("application/json", &json!("1")));
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(came[name].take(), *value, "{task}");
        }
    }
}

/// What comes back for a request to an exchange with this key.
#[track_caller]
fn call_by(exchange: &Exchange, key: &str) -> Vec<u8> {
    let amqp = &exchange.amqp;
    let reply_to = amqp.exclusive();
    let properties = AmqpProperties::default().with_reply_to(reply_to.clone());
    let publish = Publish::with_properties(b"30", key, properties);
    amqp.channel.basic_publish(exchange.name.as_str(), publish).unwrap();
    let reply = amqp.next(&reply_to);
    Reply::decode(&reply.properties, reply.body).unwrap().outcome.unwrap()
}

#[test]
fn an_exchange_hands_requests_on_also_after_a_reconnect() {
    let node = Node::start();
    let (queue, mut exchange) = (Queue::at(&node.url), Exchange::at(&node.url));
    let bind = |key: &str| format!("--bind={}:{key}", exchange.name.replace(':', "\\:"));
    let keys = ["1", "", "a:b\\"];
    let args = keys.map(bind);
    let server = server_at(&node.url, &queue, &args.each_ref().map(String::as_str));
    for key in keys {
        assert_eq!(call_by(&exchange, key), b"832040", "{key}");
    }

    // Gone, and the server waits for it; there again, without the bindings, which it makes anew.
    exchange.delete();
    node.close_connections("test");
    server.await_stderr(&format!("there is no exchange \"{}\" on ", exchange.name));
    exchange.amqp = Amqp::at(&node.url);
    exchange.declare();
    server.await_stderr(&format!("connected to {} again\n", shown(&node.url)));
    for key in keys {
        assert_eq!(call_by(&exchange, key), b"832040", "{key}");
    }
    server.stop();
}

#[test]
fn an_exchange_that_is_not_there_ends_the_server() {
    let (queue, exchange) = (Queue::new(), format!("test-{}", Uuid::new_v4()));
    let bind = format!("--bind={exchange}:1");
    let args = ["--queue", queue.name(), &bind, "--bind=amq.direct:1"];
    let ended = Process::spawn(&mut server_command(&broker(), &args)).wait();
    let at = shown(&broker());
    let message = format!(
        "rpc_server: there is no exchange \"{exchange}\" on {at}; declare it first, or name another with --bind\n"
    );
    ended.expect(69, "", &message);

    let ended = Process::spawn(&mut server_command(&broker(), &["--bind", "rpc"])).wait();
    assert_eq!(ended.code(), 64, "{ended:?}");
    assert!(ended.stderr.contains("EXCHANGE:KEY is wanted"), "{ended:?}");
}
