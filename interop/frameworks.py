"""The cases with a framework at the other end. Each framework has a client and a server of its own, `NAME_client.py` and
`NAME_server.py`, as its documentation would have them.
"""

import functools
import importlib.util
import os
import sys

from harness import HERE, Skipped, Wrong, at_once, case_of, expect, expect_in

JSON = ("--content-type", "application/json")

# Adds what the body has, or fails.
ADD = ("--procedure", "*=jq -c '.x + .y'")

CANNOT_ADD = 'string ("a") and number (2) cannot be added (internal)\n'


def needs(module):
    """A case that is skipped where there is no such framework: its versions here want a newer Python."""

    def wrap(function):
        @functools.wraps(function)
        def case_with(case):
            if importlib.util.find_spec(module) is None:
                raise Skipped(f"there is no {module}, whose version wants Python 3.11 or newer")
            function(case)

        return case_with

    return wrap


their_client = case_of("a framework's client, our server")


def expect_calls(case, client, server_options):
    """A result, an error, a body that no program could take, and no answer."""
    queue, unserved = case.queue(), case.queue(durable=True)
    case.our_server(queue, *JSON, *server_options)
    result, error, wrong, none = at_once(
        functools.partial(case.program, client, to, body, seconds)
        for to, body, seconds in [
            (queue, '{"x": 40, "y": 2}', "30"),
            (queue, '{"x": "a", "y": 2}', "30"),
            (queue, "[1]", "30"),
            (unserved, '{"x": 40, "y": 2}', "1"),
        ]
    )
    expect("result", (0, "42\n", ""), result)
    expect("exit code of an error", 1, error[0])
    expect_in("the error", CANNOT_ADD, error[2])
    expect("exit code of a wrong body", 1, wrong[0])
    expect_in("the error of a wrong body", 'Cannot index array with string "', wrong[2])
    expect("no answer", (1, "", "no answer in time\n"), none)


@their_client
@needs("aio_pika")
def aio_pika_calls(case):
    expect_calls(case, "aio_pika_client.py", ADD)


@their_client
@needs("faststream")
def faststream_calls(case):
    expect_calls(case, "faststream_client.py", ADD)


@their_client
@needs("faststream")
def faststream_calls_by_its_own_name(case):
    queue = case.queue()
    case.our_server(queue, *JSON)
    code, _, stderr = case.program("faststream_client.py", queue, '"30"', "30")
    expect("exit code", 1, code)
    expect_in("the error", 'there is no procedure "faststream-', stderr)


@their_client
@needs("kombu")
def kombu_calls(case):
    expect_calls(case, "kombu_client.py", ADD)


@their_client
@needs("kombu")
def kombu_takes_no_text(case):
    queue = case.queue()
    case.our_server(queue, *ADD)
    code, _, stderr = case.program("kombu_client.py", queue, '{"x": 40, "y": 2}', "30")
    expect("exit code", 1, code)
    expect_in("the error", "ContentDisallowed", stderr)


@their_client
@needs("celery")
def celery_calls(case):
    queue, unserved = case.queue(), case.queue(durable=True)
    tasks = f"*='{sys.executable}' '{os.path.join(HERE, 'celery_tasks.py')}'"
    case.our_server(queue, *JSON, "--json-coprocess", tasks)
    result, error, unknown, wrong, none = at_once(
        functools.partial(case.program, "celery_client.py", to, task, arguments, seconds)
        for to, task, arguments, seconds in [
            (queue, "add", "[40, 2]", "30"),
            (queue, "add", '[40, "2"]', "30"),
            (queue, "sub", "[40, 2]", "30"),
            (queue, "add", "[1]", "30"),
            (unserved, "add", "[40, 2]", "1"),
        ]
    )
    expect("result", (0, "42\n", ""), result)
    expect_in("the error", "TypeError: unsupported operand type(s) for +", error[2])
    expect_in("the unknown task", "KeyError: ", unknown[2])
    expect_in("the wrong arguments", "TypeError: ", wrong[2])
    expect("no answer", (1, "", "no answer in time\n"), none)


@their_client
@needs("celery")
def celery_gets_an_error_of_ours(case):
    queue = case.queue()
    case.our_server(queue, *JSON, "--procedure", "*=false")
    code, _, stderr = case.program("celery_client.py", queue, "add", "[40, 2]", "30")
    # It looks for its own status, whatever the reply is.
    expect("the end of their client", (1, "KeyError: 'status'\n"), (code, stderr))


our_client = case_of("our client, a framework's server")


def fails(case, what, queue, code, kind, *words):
    """The sentence of a call of ours that fails."""
    ended, stdout, stderr = case.our_client(queue, *words)
    expect(what, (code, ""), (ended, stdout))
    if not stderr.rstrip().endswith(f"({kind})"):
        raise Wrong(f"{what}: expected {kind}, came {stderr}")
    return stderr


@our_client
@needs("aio_pika")
def aio_pika_answers(case):
    queue = case.queue()
    case.their_server("aio_pika_server.py", queue)
    call = functools.partial(case.our_client, queue, *JSON, "")
    expect("result", (0, "42\n", ""), call('{"x": 40, "y": 2}'))
    error = fails(case, "error", queue, 70, "internal", *JSON, "", '{"x": "a", "y": 2}')
    expect_in("the error", ": TypeError(", error)
    error = fails(case, "wrong body", queue, 70, "internal", *JSON, "", "no")
    expect_in("the error of a wrong body", ": JSONDecodeError(", error)
    late = ("--timeout", "1s", *JSON, "", '{"x": "slow", "y": ""}')
    expect("late", 75, case.our_client(queue, *late)[0])


@our_client
@needs("faststream")
def faststream_answers(case):
    queue = case.queue()
    case.their_server("faststream_server.py", queue)
    expect("result", (0, "42\n", ""), case.our_client(queue, *JSON, "", '{"x": 40, "y": 2}'))
    # It answers nothing else: an exception and a wrong body cost the whole time.
    for body in ('{"x": "a", "y": 2}', "no"):
        words = ("--timeout", "1s", *JSON, "", body)
        expect(f"a call with {body}", 75, case.our_client(queue, *words)[0])


@our_client
@needs("kombu")
def kombu_answers(case):
    queue = case.queue()
    server = case.their_server("kombu_server.py", queue)
    paths = ("--result-at", "/sum", "--error-at", "/error")
    words = (*JSON, *paths, "")
    expect("result", (0, "42\n", ""), case.our_client(queue, *words, '{"x": 40, "y": 2}'))
    code, _, stderr = case.our_client(queue, *words, '{"x": "a", "y": 2}')
    expect("exit code of an error", 70, code)
    expect_in("the error", "TypeError(", stderr)
    # Text ends this server, as any that does not catch what kombu raises.
    words = ("--timeout", "2s", "add", "no")
    expect("a call with text", 75, case.our_client(queue, *words)[0])
    server.end(1)
    expect_in("their server's end", "ContentDisallowed", server.errors)


@our_client
@needs("celery")
def celery_answers(case):
    queue = case.queue()
    case.their_server("celery_server.py", queue)
    headers = ("-H", "task: add", "-H", "id: 1")
    paths = ("--result-at", "/result", "--error-at", "/status=FAILURE")
    words = (*JSON, *headers, *paths, "")
    expect("result", (0, "42\n", ""), case.our_client(queue, *words, "[[40, 2], {}, {}]"))
    code, _, _ = case.our_client(queue, *words, '[[40, "2"], {}, {}]')
    expect("exit code of an error", 70, code)
    # It drops what it cannot read.
    expect("a call with no JSON", 75, case.our_client(queue, "--timeout", "1s", *words, "no")[0])
