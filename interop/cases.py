"""The two programs with pika at the other end: cases.py FOLDER [WORD...], on the broker of AMQP_URL.
FOLDER has rpc_server and rpc_client. With words, only the cases whose name has one of them in it.
docs/interop.md has a row for each case.
"""

import datetime
import decimal
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from base64 import b64decode

from harness import GROUPS, HERE, Process, Wrong
from harness import case_of, expect, expect_in, is_set, main, our, run

CLASSIC = {"durable": True}
QUORUM = {"durable": True, "arguments": {"x-queue-type": "quorum"}}
TRANSIENT = {"durable": False}

BYTES = {"content_type": "application/octet-stream"}

def fib(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return str(a)


LIST = "a\nb\nfib\nfun\nlist\nping"

their_client = case_of("their client, our server")


@their_client
def the_client_of_the_page(case):
    queue = case.queue()
    case.our_server(queue)
    expect("fib(30)", (0, "832040\n", ""), case.program("rpc_client.py", queue, "fib", "30"))
    expect("ping", (0, "pong\n", ""), case.program("rpc_client.py", queue, "ping", ""))
    stderr = "fib takes n from 0 to 1000000, not -1 (out-of-range)\n"
    expect("fib(-1)", (1, "", stderr), case.program("rpc_client.py", queue, "fib", "-1"))


@their_client
def a_tutorial_client(case):
    queue = case.queue()
    server = case.our_server(queue)
    transcript = " [x] Requesting fib(30)\n [.] Got 832040\n [x] Requesting fib(0)\n [.] Got 0\n"
    expect("the client", (0, transcript, ""), case.program("tutorial_client.py", queue, "30", "0"))
    server.stop()
    transcript = " [x] Awaiting RPC requests\n [.] fib(30)\n [.] fib(0)\n"
    expect("the server", transcript, server.transcript)


@their_client
def what_a_reply_carries(case):
    queue = case.queue()
    case.our_server(queue)
    client = case.client(queue)
    client.send("30", correlation_id="1")
    text = {"content_type": "text/plain", "correlation_id": "1"}
    expect("result", ({**text, "type": "result"}, "832040"), client.receive())
    client.send("x", correlation_id="1", app_id="fun")
    error = {**text, "type": "error", "headers": {"error": "invalid-argument"}}
    expect("error", (error, 'fun takes an integer in decimal digits, not "x"'), client.receive())


@their_client
def a_named_reply_queue(case):
    queue, replies = case.queue(), case.queue(**CLASSIC)
    case.our_server(queue)
    expect("result", "832040", case.client(queue, replies).call("30"))


@their_client
def direct_reply_to(case):
    queue = case.queue()
    case.our_server(queue)
    client = case.client(queue, "amq.rabbitmq.reply-to")
    for n in range(10):
        expect(f"fib({n})", fib(n), client.call(str(n)))


@their_client
def a_client_that_calls_1001_times(case):
    queue = case.queue()
    case.our_server(queue, "--workers", "2", "--prefetch", "16")
    client, expected, came = case.client(queue), {}, {}
    for call in range(1001):
        n = str(call % 300)
        procedure, result = [
            ("ping", "pong"),
            ("fun", "0" if n == "0" else n + "00"),
            ("fib", fib(int(n))),
            ("a", "a"),
            ("b", "b"),
            ("list", LIST),
        ][call % 6]
        correlation_id = str(uuid.uuid4())
        client.send(n, app_id=procedure, correlation_id=correlation_id)
        expected[correlation_id] = result
    for _ in expected:
        reply, body = client.receive()
        came.setdefault(reply.get("correlation_id"), []).append(body)
    expect("correlation ids", expected.keys(), came.keys())
    for correlation_id, result in expected.items():
        expect("result", [result], came[correlation_id])


@their_client
def no_correlation_id(case):
    queue = case.queue()
    case.our_server(queue)
    client = case.client(queue)
    for n in ("10", "20", "x"):
        client.send(n)
    plain = {"content_type": "text/plain", "type": "result"}
    expect("fib(10)", (plain, "55"), client.receive())
    expect("fib(20)", (plain, "6765"), client.receive())
    reply, _ = client.receive()
    expect("type and correlation id", ("error", None), (reply["type"], reply.get("correlation_id")))


@their_client
def correlation_ids_of_all_kinds(case):
    queue = case.queue()
    case.our_server(queue)
    client = case.client(queue)
    for correlation_id in (
        "1",  # C++
        "0.84931703010.13904710390.4418571029",  # Ruby, JavaScript
        "QWERTYUIOPASDFGHJKLZXCVBNMQWERTY",  # Go
        "LTU3NjQ2MDc1MjMwMzQyMzM1OQ==",  # Elixir
        "6741f3b8d3a1c",  # PHP
        "3F2504E0-4F89-41D3-9A0C-0305E82C3301",  # Swift
        "",
        "two words, and café",
        "x" * 255,
    ):
        expect("result", "832040", client.call("30", correlation_id=correlation_id))


@their_client
def a_binary_correlation_id(case):
    queue = case.queue()
    server = case.our_server(queue)
    client = case.client(queue)
    client.send("30", correlation_id=b"\xe9\x80" * 8)  # Erlang
    expect("the next call", "pong", client.call("", app_id="ping"))
    server.stop()
    expect_in("its diagnostics", "dropped", server.errors)


@their_client
def integers_as_text(case):
    queue = case.queue()
    case.our_server(queue)
    client = case.client(queue)
    for body in ("30", "30\n", "30\r\n", " 30 ", "\t30\n", "+30", "0030", b"30"):
        expect(f"fib({body!r})", "832040", client.call(body))
    for body, result in (("-7", "-700"), ("-0", "0"), ("9" * 40, "9" * 40 + "00")):
        expect(f"fun({body!r})", result, client.call(body, app_id="fun"))


@their_client
def errors(case):
    queue = case.queue()
    case.our_server(queue)
    client = case.client(queue)
    integer = 'fib takes an integer in decimal digits, not "{}"'
    unknown = 'there is no procedure "Fib"; there are a, b, fib, fun, list, ping'
    for procedure, body, kind, sentence in (
        ("fib", "", "invalid-argument", integer.format("")),
        ("fib", "1.5", "invalid-argument", integer.format("1.5")),
        ("fib", b"\xff", "invalid-argument", "the argument of fib is not UTF-8 text"),
        ("fib", "-1", "out-of-range", "fib takes n from 0 to 1000000, not -1"),
        ("Fib", "30", "unknown-procedure", unknown),
    ):
        client.send(body, app_id=procedure, correlation_id="1")
        reply, came = client.receive()
        expect("type", "error", reply["type"])
        expect("error", ({"error": kind}, sentence), (reply["headers"], came))
    expect("a good call after them", "55", client.call("10"))


@their_client
def every_property_and_field_type(case):
    queue = case.queue()
    case.our_server(queue)
    headers = {
        "boolean": True,
        "integer": -7,
        "long": 1 << 40,
        "text": "café",
        "bytes": b"\xff\x00",
        "decimal": decimal.Decimal("1.50"),
        "timestamp": datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone.utc),
        "nothing": None,
        "array": [1, "two", None, [3]],
        "table": {"in": {"in": "it"}},
    }
    properties = {
        "headers": headers,
        "delivery_mode": 2,
        "priority": 5,
        "expiration": "60000",
        "message_id": "m",
        "timestamp": 946684800,
        "type": "call",
        "cluster_id": "c",
    }
    client = case.client(queue)
    for name, value in properties.items():
        expect(name, "832040", client.call("30", **{name: value}))
    expect("all of them", "832040", client.call("30", **properties))


@their_client
def content_types(case):
    queue = case.queue()
    case.our_server(queue)
    client = case.client(queue)
    for kind in ("text/plain; charset=utf-8", "application/json", "application/octet-stream"):
        came = client.call("30", content_type=kind, content_encoding="utf-8")
        expect(kind, "832040", came)


@their_client
def persistent_requests_with_priorities(case):
    queue = case.queue(durable=True, arguments={"x-max-priority": 9})
    client = case.client(queue)
    for priority in (0, 5, 9):
        client.send(str(priority), app_id="fun", priority=priority, delivery_mode=2)
    # What is confirmed is in the queue.
    client.channel.confirm_delivery()
    client.send("3", app_id="fun", priority=3, delivery_mode=2)
    case.our_server(queue)
    expect("results", ["900", "500", "300", "0"], [client.receive()[1] for _ in range(4)])


@their_client
def bodies_of_many_frames(case):
    queue = case.queue()
    case.our_server(queue)
    digits = "7" * 300_000
    expect("fun", digits + "00", case.client(queue).call(digits, app_id="fun"))


@their_client
def programs(case):
    queue, every = case.queue(), bytes(range(256))
    fail = "fail=sh -c 'cat >&2; exit 3'"
    case.our_server(queue, "--procedure", "cat=cat", "--procedure", fail)
    client = case.client(queue)
    client.send(every, correlation_id="1")
    result, body = client.receive()
    expect("the result", every, body.encode(errors="surrogateescape"))
    expect("its properties", {**BYTES, "correlation_id": "1", "type": "result"}, result)
    client.send("so it is\n", app_id="fail", correlation_id="2")
    error, body = client.receive()
    headers = {"error": "internal", "exit_code": 3, "stderr": "so it is\n"}
    expect("the error", (headers, "so it is"), (error["headers"], body))


our_client = case_of("our client, their server")


def expect_a_batch(case, queue, calls):
    """fib of 0, 1 and so on, in one run of our client."""
    stdin = "".join(f"{n}\n" for n in range(calls))
    stdout = "".join(f"{fib(n)}\n" for n in range(calls))
    expect("a batch", (0, stdout, ""), case.our_client(queue, "fib", "-", stdin=stdin))


@our_client
def a_tutorial_server(case):
    queue = case.queue()
    server = case.tutorial_server(queue, json.dumps(QUORUM))
    came = case.our_client(queue, "--format", "transcript", "fib", "30")
    expect("one call", (0, " [x] Requesting fib(30)\n [.] Got 832040\n", ""), came)
    expect_a_batch(case, queue, 300)
    server.stop()
    expect("requests served", 301, server.transcript.count(" [.] fib("))


@our_client
def a_tutorial_server_that_dies_of_a_request(case):
    queue = case.queue()
    server = case.tutorial_server(queue, json.dumps(QUORUM))
    came = case.our_client(queue, "--timeout", "2s", "fib", "x")
    expect("exit code and results", (75, ""), came[:2])
    expect_in("its diagnostics", f'nobody consumes from the queue "{queue}" any more', came[2])
    server.end(1)
    expect_in("their diagnostics", "ValueError: invalid literal for int()", server.errors)


def reply(request, body, **properties):
    """As `Case.server` wants it, with the request's correlation id."""
    return body, {"correlation_id": request.correlation_id, **properties}


@our_client
def what_a_request_carries(case):
    queue = case.queue(**CLASSIC)
    server = case.server(queue, lambda request, body: [reply(request, "answer")])
    for options, procedure, argument in (([], "fun", ["7"]), (["--timeout", "0"], "ping", [])):
        came = case.our_client(queue, *options, procedure, *argument)
        expect("the client", (0, "answer\n", ""), came)
        properties, body = server.requests.pop()
        properties = is_set(properties)
        expect("body", "".join(argument), body.decode())
        correlation_id = uuid.UUID(properties.pop("correlation_id"))
        expect("version of the UUID", 4, correlation_id.version)
        expect_in("reply_to", "amq.gen-", properties.pop("reply_to"))
        if not options:
            # The default time limit, less what it took to get here.
            expect("expiration", True, 25_000 < int(properties.pop("expiration")) <= 30_000)
        expect("the rest", {"content_type": "text/plain", "app_id": procedure}, properties)


@our_client
def an_empty_reply(case):
    queue = case.queue(**CLASSIC)
    case.server(queue, lambda request, body: [reply(request, "")])
    stderr = "rpc_client: fib(x): the reply is empty: what answered is not an RPC server\n"
    expect("the client", (76, "", stderr), case.our_client(queue, "fib", "x"))


@our_client
def any_bytes_both_ways(case):
    queue, every = case.queue(**CLASSIC), bytes(range(256))
    server = case.server(queue, lambda request, body: [reply(request, body, type="result")])
    client = [our("rpc_client"), "--queue", queue, "--send-on", "eof", "cat", "-", "--format"]
    raw = subprocess.run([*client, "raw"], input=every, capture_output=True)
    expect("the client", (0, every, b""), (raw.returncode, raw.stdout, raw.stderr))
    request, body = server.requests.pop()
    expect("the request", ("application/octet-stream", every), (request.content_type, body))
    called = json.loads(subprocess.run([*client, "json"], input=every, stdout=subprocess.PIPE).stdout)
    for field in ("argument", "result"):
        expect(field, (None, every), (called.get(field), b64decode(called[f"{field}_base64"])))
    empty = case.our_client(queue, "cat", "")
    expect("an empty result", (0, "\n", ""), empty)


@our_client
def errors_of_theirs(case):
    queue = case.queue(**CLASSIC)
    errors = {
        "1": ({"headers": {"error": "invalid-argument"}}, 65, "invalid-argument"),
        "2": ({"headers": {"error": "out-of-range"}}, 65, "out-of-range"),
        "3": ({"headers": {"error": "unknown-procedure"}}, 65, "unknown-procedure"),
        "4": ({"headers": {"error": "internal"}}, 70, "internal"),
        "5": ({"headers": {"error": "another"}}, 70, "internal"),
        "6": ({"headers": {"error": 5}}, 70, "internal"),
        "7": ({}, 70, "internal"),
        "8": ({"headers": {"error": "unavailable"}}, 75, "unavailable"),
        "9": ({"headers": {"error": "timed-out"}}, 75, "timed-out"),
    }
    case.server(
        queue,
        lambda request, body: [reply(request, "alas", type="error", **errors[body.decode()][0])],
    )
    for argument, (_, code, kind) in errors.items():
        stderr = f"rpc_client: fib({argument}): alas ({kind})\n"
        expect("the client", (code, "", stderr), case.our_client(queue, "fib", argument))


@our_client
def exit_codes_of_theirs(case):
    queue = case.queue(**CLASSIC)
    codes = [3, 0, 255, 256, -1, 1 << 40, "3", None]

    def answer(request, body):
        headers = {"error": "internal", "exit_code": codes[int(body)]}
        return [reply(request, "alas", type="error", headers=headers)]

    case.server(queue, answer)
    numbers = [str(n) for n in range(len(codes))]
    _, stdout, _ = case.our_client(queue, "--format", "json", "fib", *numbers)
    told = [json.loads(line)["error"].get("exit_code") for line in stdout.splitlines()]
    expect("exit codes", [3, 0, 255, None, None, None, None, None], told)


@our_client
def replies_of_all_kinds(case):
    queue = case.queue(**CLASSIC)
    replies = [
        {},
        {"content_type": "application/json", "content_encoding": "utf-8"},
        {"type": "answer"},
        {"headers": {"error": "out-of-range", "n": 1, "table": {"list": [1, None, b"\xff"]}}},
        {"delivery_mode": 2, "priority": 9, "timestamp": 946684800, "message_id": "m"},
    ]
    case.server(queue, lambda request, body: [reply(request, " café\n", **replies[int(body)])])
    arguments = [str(n) for n in range(len(replies))]
    came = case.our_client(queue, "fib", *arguments)
    expect("the client", (0, " café\n" * len(replies), ""), came)


@our_client
def a_reply_of_many_frames(case):
    queue = case.queue(**CLASSIC)
    case.server(queue, lambda request, body: [reply(request, body + b"00")])
    digits = "7" * 300_000
    came = case.our_client(queue, "fun", "-", stdin=digits)
    expect("the client", (0, digits + "00\n", ""), came)


@our_client
def wrong_ids_first_and_replies_twice(case):
    queue = case.queue(**CLASSIC)

    def answer(request, body):
        yield "1", {"correlation_id": str(uuid.uuid4())}
        yield "2", {}
        yield reply(request, fib(int(body)))
        yield reply(request, "3")

    case.server(queue, answer)
    came = case.our_client(queue, "-v", "--in-flight", "1", "fib", "10", "20", "30")
    expect("exit code and results", (0, "55\n6765\n832040\n"), came[:2])
    # Of the last one the duplicate may come too late to be seen.
    discarded = came[2].count("discard a reply")
    expect("replies discarded", min(max(discarded, 8), 9), discarded)


@our_client
def a_reply_after_the_time_limit(case):
    queue, kept = case.queue(**CLASSIC), []

    def answer(request, body):
        kept.append(request)
        if len(kept) == 2:
            yield reply(kept[0], "late")
            yield reply(kept[1], "in time")

    case.server(queue, answer)
    came = case.our_client(queue, "--timeout", "2s", "--in-flight", "1", "fib", "10", "20")
    expect("exit code and results", (75, "in time\n"), came[:2])
    expect_in("its diagnostics", "rpc_client: fib(10): no answer within 2s: ", came[2])


@our_client
def two_servers_that_reply_twice(case):
    queue = case.queue(**CLASSIC)

    def answer(request, body):
        yield "wrong", {"correlation_id": request.correlation_id[::-1]}
        yield reply(request, fib(int(body)))
        yield reply(request, "twice")

    servers = [case.server(queue, answer) for _ in range(2)]
    expect_a_batch(case, queue, 200)
    served = [len(server.requests) for server in servers]
    expect("requests, and servers that had some", (200, True), (sum(served), all(served)))


@our_client
def a_server_that_acks_and_never_replies(case):
    queue = case.queue(**CLASSIC)
    server = case.server(queue, lambda request, body: [])
    came = case.our_client(queue, "--timeout", "1s", "fib", "30")
    expect("exit code and results", (75, ""), came[:2])
    expect_in("its diagnostics", "no answer within 1s: 1 consumer serves the queue", came[2])
    expect("requests", 1, len(server.requests))


@our_client
def json_for_a_program(case):
    queue = case.queue()
    case.our_server(queue)
    code, stdout, stderr = case.our_client(queue, "--format", "json", "fib", "30", "café", "-5")
    summary = "rpc_client: 2 of 3 calls failed: 1 invalid-argument, 1 out-of-range\n"
    expect("exit code and diagnostics", (65, summary), (code, stderr))
    calls = [json.loads(line) for line in stdout.splitlines()]
    for call in calls:
        uuid.UUID(call.pop("correlation_id"))
        if not 0 < call.pop("elapsed_ms") < 30_000:
            raise Wrong(f"elapsed_ms: expected milliseconds, came {stdout}")
    invalid = 'fib takes an integer in decimal digits, not "café"'
    outside = "fib takes n from 0 to 1000000, not -5"
    wanted = [
        {"argument": "30", "ok": True, "result": "832040"},
        {
            "argument": "café",
            "ok": False,
            "error": {"kind": "invalid-argument", "message": invalid},
        },
        {"argument": "-5", "ok": False, "error": {"kind": "out-of-range", "message": outside}},
    ]
    all_have = {"procedure": "fib", "attempts": 1, "content_type": "text/plain"}
    expect("calls", [{**all_have, **call} for call in wanted], calls)


queues = case_of("request queues")


def use_as_it_is(case, declaration):
    queue = case.queue(**declaration)
    ours = case.our_server(queue)
    expect("our client, our server", (0, "832040\n", ""), case.our_client(queue, "fib", "30"))
    came = case.program("tutorial_client.py", queue, "30")
    expect("their client, our server", (0, " [x] Requesting fib(30)\n [.] Got 832040\n", ""), came)
    ours.stop()
    case.tutorial_server(queue, json.dumps(declaration))
    expect("our client, their server", (0, "832040\n", ""), case.our_client(queue, "fib", "30"))
    # Would be refused if it were another queue by now.
    expect("consumers", 1, case.declare(queue, **declaration).consumer_count)


@queues
def their_transient_queue(case):
    use_as_it_is(case, TRANSIENT)


@queues
def their_durable_queue(case):
    use_as_it_is(case, CLASSIC)


@queues
def their_quorum_queue(case):
    use_as_it_is(case, QUORUM)


def used_by_them(case, queue, declaration):
    ways = ({"passive": True}, declaration)
    for way in ways:
        expect("consumers", 1, case.declare(queue, **way).consumer_count)
    for way in ways:
        server = case.tutorial_server(queue, json.dumps(way))
        expect("a call", (0, "832040\n", ""), case.our_client(queue, "fib", "30"))
        server.stop()


def refused(case, queue, declaration, argument, reason):
    sentence = f"PRECONDITION_FAILED - inequivalent arg '{argument}' for queue '{queue}' in vhost"
    came = case.refusal(queue, **declaration)
    expect_in("the refusal", f"406 {sentence}", came)
    expect_in("its reason", reason, came)
    # What a learner sees: a traceback, whose last line has it.
    code, _, stderr = case.program("tutorial_server.py", queue, json.dumps(declaration))
    expect("exit code of their server", 1, code)
    expect_in("its last line", f'ChannelClosedByBroker: (406, "{sentence}', stderr.splitlines()[-1])


NOT_DURABLE = ("durable", "received 'false' but current is 'true'")


@queues
def our_classic_queue(case):
    queue = case.queue()
    expect_in("the refusal", "404 NOT_FOUND", case.refusal(queue, passive=True))
    case.our_server(queue)
    used_by_them(case, queue, CLASSIC)
    refused(case, queue, TRANSIENT, *NOT_DURABLE)
    refused(case, queue, QUORUM, "x-queue-type", "'quorum'")


@queues
def our_quorum_queue(case):
    queue = case.queue()
    case.our_server(queue, "--queue-type", "quorum")
    used_by_them(case, queue, QUORUM)
    refused(case, queue, TRANSIENT, *NOT_DURABLE)
    refused(case, queue, CLASSIC, "x-queue-type", "'quorum'")


@queues
def a_server_of_each_on_one_queue(case):
    queue = case.queue()
    servers = [case.our_server(queue), case.tutorial_server(queue)]
    expect_a_batch(case, queue, 1001)
    for server in servers:
        server.stop()
    served = [server.transcript.count(" [.] fib(") for server in servers]
    expect("requests, and servers that had some", (1001, True), (sum(served), all(served)))


@queues
def the_tutorials_programs_on_amiquip(case):
    # They have its name built in; no other case uses it.
    queue = "rpc_queue"
    case.callback(lambda: case.channel().queue_delete(queue))
    transcript = " [x] Requesting fib(30)\n [.] Got 832040\n"
    server = case.enter_context(Process([our("examples/tutorial_six_server")]))
    came = case.program("tutorial_client.py", queue, "30")
    expect("pika's client, amiquip's server", (0, transcript, ""), came)
    server.child.terminate()
    server.end(-signal.SIGTERM)
    case.tutorial_server(queue, json.dumps(QUORUM))
    came = run([our("examples/tutorial_six_client"), "30"])
    expect("amiquip's client, pika's server", (0, transcript, ""), came)


import frameworks  # noqa: E402  its cases come here

page = case_of("docs/interop.md")


def read(path):
    with open(os.path.join(HERE, path), encoding="utf-8") as file:
        return file.read()


@page
def the_page_shows_a_client_that_runs(case):
    shown = re.findall(r"(?ms)^```python\n(.*?)^```", read("../docs/interop.md"))
    expect("its Python", [read("rpc_client.py")], shown)


@page
def the_page_has_a_row_for_each_case(case):
    _, tried = read("../docs/interop.md").split("## What was tried")
    rows = re.findall(r"(?m)^\| `(\w+)` \|", tried)
    cases = [case.__name__ for group in GROUPS if "/" not in group for case in GROUPS[group]]
    expect("cases without a row", [], [name for name in cases if name not in rows])
    expect("rows in the cases' order", cases, rows)


sys.exit(main(GROUPS, sys.argv[2:]))
