"""The two programs with frameworks of Node.js at the other end: npm_cases.py FOLDER NPM [WORD...], on the broker of AMQP_URL.
FOLDER has rpc_server and rpc_client, NPM what is in npm/ with all that it needs. With words, only the cases whose name has
one of them in it. docs/interop.md has a row for each case.
"""

import json
import os
import re
import sys
import uuid

from harness import GROUPS, HERE, Process, case_of, expect, expect_in, main, run

NPM = sys.argv[2]

JSON = ("--content-type", "application/json")


def program(path, *words):
    return ["node", os.path.join(NPM, path), os.environ["AMQP_URL"], *words]


def call(path, *words):
    """Exit code, standard output, standard error of a client of theirs. NestJS logs to the former."""
    code, stdout, stderr = run(program(path, *words))
    lines = [line for line in stdout.splitlines() if "[Nest]" not in line]
    return code, "\n".join(lines), stderr.strip()


def told(ended):
    """Exit code and standard error, of a call of ours without a result."""
    code, stdout, stderr = ended
    expect("a result of a call that fails", "", stdout)
    return code, stderr


def expect_told(what, code, sentence, ended):
    came, stderr = told(ended)
    expect(f"{what}: exit code", code, came)
    expect_in(what, sentence, stderr)


nestjs = case_of("NestJS")

NEST = (*JSON, "--error-at", "/err", "--result-at", "/response")


def packet(pattern, data, **more):
    return json.dumps({"pattern": pattern, "data": data, "id": "1", **more})


def nest_server(case):
    queue = case.queue()
    case.enter_context(Process(program("nestjs/server.mjs", queue)))
    return lambda *words: case.our_client(queue, *words)


@nestjs
def a_nestjs_server(case):
    client = nest_server(case)
    expect("sum", (0, "6\n", ""), client(*NEST, "", packet("sum", [1, 2, 3])))
    described = (0, '{"name":"x","tags":["a","b"]}\n', "")
    expect("an object", described, client(*NEST, "", packet("describe", "x")))
    expect("without -C", (0, "6\n", ""), client(*NEST[2:], "", packet("sum", [1, 2, 3])))
    whole = (0, '{"response":6,"isDisposed":true}\n', "")
    expect("without pointers", whole, client("", packet("sum", [1, 2, 3])))


@nestjs
def errors_of_a_nestjs_server(case):
    client = nest_server(case)
    refused = client(*NEST, "", packet("refuse", None))
    expect_told("RpcException", 70, '"message":"numbers are wanted"} (internal)', refused)
    crashed = client(*NEST, "", packet("crash", None))
    expect_told("an exception", 70, '"message":"Internal server error"} (internal)', crashed)
    unknown = client(*NEST, "", packet("none", None))
    expect_told("an unknown pattern", 70, "There is no matching message handler defined", unknown)
    nothing = client(*NEST, "", packet("nothing", None))
    expect_told("no result", 76, 'there is no result at "/response"', nothing)


@nestjs
def what_a_nestjs_server_throws_away(case):
    client = nest_server(case)
    thrown = "or a server has thrown the request away: see its log"
    for what, body in [
        ("no JSON", "sum"),
        ("an event: no id", json.dumps({"pattern": "sum", "data": [1]})),
        ("a handler that never ends", packet("sleep", None)),
    ]:
        expect_told(what, 75, thrown, client(*NEST, "--timeout", "1s", "", body))


@nestjs
def a_nestjs_client(case):
    queue = case.queue(durable=True)
    sum_of = """sum=jq -c '{response: (.data | add), isDisposed: true}'"""
    case.our_server(queue, "--procedure", sum_of)
    expect("sum", (0, "6", ""), call("nestjs/client.mjs", queue, "sum", "[1, 2, 3]"))
    expect("the same, in JSON", (0, '"ab"', ""), call("nestjs/client.mjs", queue, "sum", '["a", "b"]'))


@nestjs
def a_nestjs_client_gets_an_error(case):
    queue = case.queue(durable=True)
    sum_of = """sum=jq -c 'if .data | type == "array" then {response: (.data | add)} else {err: "numbers are wanted"} end
        | .isDisposed = true'"""
    case.our_server(queue, *JSON, "--procedure", sum_of)
    came = call("nestjs/client.mjs", queue, "sum", '"x"')
    expect("an error of the program's", (1, "", '"numbers are wanted"'), came)
    fails = case.queue(durable=True)
    case.our_server(fails, *JSON, "--procedure", "sum=false")
    error = '{"error":{"kind":"internal","message":"sum exited with 1"}}'
    came = call("nestjs/client.mjs", fails, "sum", "[1]")
    expect("an error of ours is a result", (0, error, ""), came)


golevelup = case_of("@golevelup/nestjs-rabbitmq")


def golevelup_server(case):
    """Their queues are gone when their server is."""
    exchange, queue = case.exchange("topic"), f"fib-rpc-interop-{uuid.uuid4()}"
    case.enter_context(Process(program("golevelup/server.mjs", exchange, queue)))
    options = ("--exchange", exchange, *JSON, "--error-at", "/error")
    return exchange, lambda *words: our_client(*options, *words)


def our_client(*words):
    return run([os.path.join(sys.argv[1], "rpc_client"), *words])


@golevelup
def a_golevelup_server(case):
    _, client = golevelup_server(case)
    sum_of = client("--result-at", "/sum", "--routing-key", "calculator.sum", "", '{"numbers":[1,2]}')
    expect("sum", (0, "3\n", ""), sum_of)


@golevelup
def errors_of_a_golevelup_server(case):
    exchange, client = golevelup_server(case)
    key = ("--routing-key", "calculator.sum", "")
    expect_told("an exception", 70, "numbers.reduce is not a function", client(*key, '{"numbers":1}'))
    expect_told("no JSON", 70, "is not valid JSON (internal)", client(*key, "sum"))
    sleep = client("--timeout", "1s", "--routing-key", "calculator.sleep", "", "{}")
    expect_told("a slow handler", 75, 'its routing key was "calculator.sleep"', sleep)
    unroutable = f'the exchange "{exchange}" on '
    none = client("--routing-key", "none", "", "{}")
    expect_told("no such key", 69, unroutable, none)
    expect_told("no such key", 69, 'has no queue for the routing key "none"', none)


@golevelup
def a_golevelup_client(case):
    queue, exchange = case.queue(), case.exchange("topic")
    sum_of = ("--procedure", "sum=jq -c '{sum: (.numbers | add)}'")
    case.our_server(queue, *JSON, *sum_of, "--bind", f"{exchange}:sum")
    for what, client in [
        ("by way of an exchange", ("golevelup/client.mjs", exchange, "sum")),
        ("straight to the queue", ("golevelup/client.mjs", "", queue)),
    ]:
        expect(what, (0, '{"sum":3}', ""), call(*client, '{"numbers":[1,2]}', "sum"))
    code, error, stderr = call(*client, '{"numbers":1}', "sum")
    expect("an error is a result", (0, ""), (code, stderr))
    expect_in("its kind", '{"error":{"kind":"internal","message":"jq: ', error)


rabbitmq_client = case_of("rabbitmq-client")


def plain_server(case):
    queue = case.queue()
    case.enter_context(Process(program("rabbitmq-client/server.mjs", queue)))
    return lambda *words: case.our_client(queue, *words)


@rabbitmq_client
def a_server_by_rabbitmq_client(case):
    client = plain_server(case)
    expect("text", (0, "ABC\n", ""), client("", "abc"))
    numbers = '{"numbers":[1,2]}'
    expect("JSON", (0, "3\n", ""), client(*JSON, "--result-at", "/result", "", numbers))
    expect("JSON as text", (0, '{"NUMBERS":[1,2]}\n', ""), client("", numbers))


@rabbitmq_client
def errors_of_a_server_by_rabbitmq_client(case):
    client = plain_server(case)
    options = (*JSON, "--error-at", "/error/message", "--result-at", "/result", "--timeout", "1s", "")
    expect_told("an error", 70, "numbers are wanted (internal)", client(*options, '{"a":1}'))
    expect_told("no answer", 75, "thrown the request away", client(*options, '{"sleep":1}'))
    expect_told("no JSON", 76, "the reply is not JSON", client(*options, "sum"))


@rabbitmq_client
def a_client_by_rabbitmq_client(case):
    queue, jsons = case.queue(), case.queue()
    case.our_server(queue)
    client = "rabbitmq-client/client.mjs"
    result = (0, '["result","text/plain","832040"]', "")
    expect("a result", result, call(client, queue, "fib", "30"))
    sentence = 'fib takes an integer in decimal digits, not "x"'
    error = (0, json.dumps(["error", "text/plain", sentence], separators=(",", ":")), "")
    expect("an error", error, call(client, queue, "fib", "x"))
    case.our_server(jsons, *JSON)
    result = (0, '["result","application/json",832040]', "")
    expect("a result in JSON", result, call(client, jsons, "fib", "30"))


page = case_of("docs/interop.md")


@page
def the_page_has_a_row_for_each_case_and_the_versions(case):
    with open(os.path.join(HERE, "../docs/interop.md"), encoding="utf-8") as file:
        _, section = file.read().split("## With frameworks of Node.js")
    rows = re.findall(r"(?m)^\|.*\| `(\w+)` \|$", section)
    cases = [case.__name__ for group in GROUPS if "/interop" not in group for case in GROUPS[group]]
    expect("rows in the cases' order", cases, rows)
    for folder in ("nestjs", "golevelup", "rabbitmq-client"):
        with open(os.path.join(NPM, folder, "package.json"), encoding="utf-8") as file:
            for name, version in json.load(file)["dependencies"].items():
                if name.startswith(("@golevelup/", "@nestjs/microservices", "rabbitmq-client")):
                    expect_in("the page", f"{name} {version}", section)


sys.exit(main(GROUPS, sys.argv[3:]))
