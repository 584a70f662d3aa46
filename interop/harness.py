"""What the cases share: queues and processes that end with their case, a server and a client whose
messages a case writes, and the run itself. Whatever a case waits for, an alarm ends the wait.
"""

import collections
import concurrent.futures
import contextlib
import os
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
import uuid

import pika

HERE = os.path.dirname(os.path.abspath(__file__))

# How long a case may take, and then its end. Only a failing one takes this long.
PATIENCE = 60

# A broker that denies transient queues names this feature in its refusal (RabbitMQ, "Deprecated
# Features").
DENIED = "transient_nonexcl_queues"

REFUSALS = (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker)


GROUPS = {}


def case_of(group):
    def add(function):
        GROUPS.setdefault(group, []).append(function)
        return function

    return add


class Wrong(Exception):
    """Something else came than was expected."""


class Skipped(Exception):
    """This broker does not allow what the case is about."""


def brief(value):
    text = repr(value)
    return text if len(text) <= 600 else f"{text[:300]} ... {text[-300:]}"


def expect(what, wanted, came):
    if came != wanted:
        raise Wrong(f"{what}: expected {brief(wanted)}, came {brief(came)}")


def expect_in(what, wanted, came):
    if wanted not in came:
        raise Wrong(f"{what}: expected {brief(wanted)} in it, came {brief(came)}")


def is_set(properties):
    """The properties that a message has."""
    return {name: value for name, value in vars(properties).items() if value is not None}


def connect():
    return pika.BlockingConnection(pika.URLParameters(os.environ["AMQP_URL"]))


def versions():
    with contextlib.closing(connect()) as connection:
        broker = connection._impl.server_properties  # pika has no public name for them
    ours = run([our("rpc_client"), "--version"])[1].strip()
    theirs = f"pika {pika.__version__}, Python {platform.python_version()}"
    return f"{ours}, {theirs}, {broker['product']} {broker['version']}"


class Process:
    """A server of either side, ready. Asked to stop, it must end well."""

    def __init__(self, command):
        # Unbuffered: what follows the first line is for communicate.
        self.child = subprocess.Popen(
            command,
            bufsize=0,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.transcript, self.errors = "", ""

    def __enter__(self):
        try:
            self.transcript = self.child.stdout.readline().decode()
            if self.transcript != " [x] Awaiting RPC requests\n":
                self.finish()
                raise Wrong(f"a server did not start: {self.transcript}{self.errors}")
        except BaseException:
            self.child.kill()
            self.finish()
            raise
        return self

    def finish(self):
        if self.child.returncode is None:
            transcript, errors = self.child.communicate(timeout=PATIENCE)
            self.transcript += transcript.decode()
            self.errors = errors.decode()

    def end(self, code):
        """Waits for its end. Then `transcript` and `errors` have all that it wrote."""
        self.finish()
        expect("exit code of a server", code, self.child.returncode)

    def stop(self):
        self.child.terminate()
        self.end(0)

    def __exit__(self, failure, *_):
        if failure is None and self.child.returncode is None:
            self.stop()
        elif failure is not None:
            self.child.kill()
            self.finish()
            sys.stderr.write(self.errors)


class Server(threading.Thread):
    """A server of theirs whose replies the case writes: for each request, `answer(properties, body)`
    has bodies and properties of replies. Keeps the requests."""

    def __init__(self, queue, answer):
        super().__init__(daemon=True)
        self.answer, self.requests, self.failure = answer, [], None
        self.connection = connect()
        self.channel = self.connection.channel()
        self.channel.basic_qos(prefetch_count=1)
        self.channel.basic_consume(queue, self.on_request)

    def on_request(self, channel, method, request, body):
        self.requests.append((request, body))
        for reply, properties in self.answer(request, body):
            channel.basic_publish("", request.reply_to, reply, pika.BasicProperties(**properties))
        channel.basic_ack(method.delivery_tag)

    def run(self):
        try:
            self.channel.start_consuming()
        except Exception as failure:  # told by __exit__
            self.failure = failure

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        if not self.failure:
            self.connection.add_callback_threadsafe(self.channel.stop_consuming)
            self.join(PATIENCE)
            self.connection.close()
        if self.failure:
            raise self.failure


class Client:
    """A client of theirs whose requests the case writes. Replies come to `reply_queue`, or to an
    exclusive queue."""

    def __init__(self, channel, queue, reply_queue=None):
        self.channel, self.queue, self.replies = channel, queue, collections.deque()
        self.reply_queue = reply_queue or channel.queue_declare("", exclusive=True).method.queue
        channel.basic_consume(self.reply_queue, self.on_reply, auto_ack=True)

    def on_reply(self, channel, method, reply, body):
        self.replies.append((is_set(reply), body.decode(errors="surrogateescape")))

    def send(self, body, **properties):
        properties.setdefault("reply_to", self.reply_queue)
        self.channel.basic_publish("", self.queue, body, pika.BasicProperties(**properties))

    def receive(self):
        """The properties of the next reply, and its body."""
        while not self.replies:
            self.channel.connection.process_data_events(time_limit=None)
        return self.replies.popleft()

    def call(self, body, **properties):
        """The body of the reply that has the request's correlation id."""
        correlation_id = properties.setdefault("correlation_id", str(uuid.uuid4()))
        self.send(body, **properties)
        reply, body = self.receive()
        expect("correlation id", correlation_id, reply.get("correlation_id"))
        return body


class Case(contextlib.ExitStack):
    """What belongs to one case, and ends with it."""

    def __init__(self):
        super().__init__()
        self.connection = connect()
        self.callback(lambda: self.connection.is_open and self.connection.close())

    def channel(self):
        if not self.connection.is_open:
            self.connection = connect()
        return self.connection.channel()

    def queue(self, **declaration):
        """A queue of a new name; without a declaration, it is not there yet."""
        name = f"fib-rpc-interop-{uuid.uuid4()}"
        self.callback(lambda: self.channel().queue_delete(name))
        if declaration:
            self.declare(name, **declaration)
        return name

    def exchange(self, kind):
        """An exchange of a new name, durable."""
        name = f"fib-rpc-interop-{uuid.uuid4()}"
        self.callback(lambda: self.channel().exchange_delete(name))
        self.channel().exchange_declare(name, kind, durable=True)
        return name

    def declare(self, queue, **declaration):
        """What the broker tells of the queue."""
        try:
            return self.channel().queue_declare(queue, **declaration).method
        except REFUSALS as refusal:
            if DENIED in refusal.reply_text:
                raise Skipped("this broker denies transient queues") from refusal
            raise

    def refusal(self, queue, **declaration):
        """Why the broker refuses a declaration."""
        try:
            self.channel().queue_declare(queue, **declaration)
        except REFUSALS as refusal:
            return f"{refusal.reply_code} {refusal.reply_text}"
        raise Wrong(f"the broker did not refuse the declaration {declaration}")

    def client(self, queue, reply_queue=None):
        return Client(self.channel(), queue, reply_queue)

    def server(self, queue, answer):
        return self.enter_context(Server(queue, answer))

    def our_server(self, queue, *options):
        return self.enter_context(Process([our("rpc_server"), "--queue", queue, *options]))

    def our_client(self, queue, *words, stdin=""):
        """Exit code, standard output, standard error."""
        return run([our("rpc_client"), "--queue", queue, *words], stdin)

    def their_server(self, program, queue):
        return self.enter_context(Process(theirs(program, queue)))

    def tutorial_server(self, queue, declaration='{"passive": true}'):
        return self.enter_context(Process(theirs("tutorial_server.py", queue, declaration)))

    def program(self, name, queue, *words):
        """Exit code, standard output, standard error."""
        return run(theirs(name, queue, *words))


def our(program):
    return os.path.join(sys.argv[1], program)


def theirs(program, *words):
    return [sys.executable, os.path.join(HERE, program), os.environ["AMQP_URL"], *words]


def at_once(calls):
    """What each of these functions returns, in their order."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return list(pool.map(lambda call: call(), calls))


def run(command, stdin=""):
    done = subprocess.run(command, input=stdin, capture_output=True, encoding="utf-8")
    return done.returncode, done.stdout, done.stderr


def on_alarm(*_):
    signal.alarm(PATIENCE)
    raise Wrong(f"expected an end within {PATIENCE} s, came none")


def stop(number, _):
    # Once is enough: what this leads to is the end of processes and queues.
    for name in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    sys.exit(128 + number)


def place(failure):
    """The line of a case at which it failed."""
    for frame in reversed(traceback.extract_tb(failure.__traceback__)):
        file = os.path.basename(frame.filename)
        if file in ("cases.py", "frameworks.py", "npm_cases.py"):
            return f"{file}:{frame.lineno}: "
    return ""


def judge(function):
    """ok, FAILED or skipped, and why."""
    signal.alarm(PATIENCE)
    try:
        with Case() as case:
            function(case)
        return "ok", ""
    except Skipped as reason:
        return "skipped", str(reason)
    except Wrong as failure:
        return "FAILED", f"{place(failure)}{failure}"
    except Exception as failure:
        return "FAILED", f"{place(failure)}{type(failure).__name__}: {failure}"
    finally:
        signal.alarm(0)


def main(groups, words):
    """Runs the cases whose name has one of the words in it; 0 if none failed."""
    for name in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(name, stop)
    signal.signal(signal.SIGALRM, on_alarm)
    os.environ.pop("RUST_LOG", None)
    # Of several brokers, pika knows the first.
    os.environ["AMQP_URL"] = os.environ["AMQP_URL"].split(",")[0]
    try:
        print(versions(), flush=True)
    except ValueError:  # whose text can have the password in it
        print("interop: pika cannot read the URI in AMQP_URL", file=sys.stderr)
        return 69
    except (pika.exceptions.AMQPError, OSError) as failure:
        print(f"interop: pika cannot use the broker of AMQP_URL: {failure!r}", file=sys.stderr)
        return 69
    started, outcomes = time.monotonic(), []
    for group, functions in groups.items():
        chosen = [f for f in functions if not words or any(word in f.__name__ for word in words)]
        if chosen:
            print(group, flush=True)
        for function in chosen:
            outcome, why = judge(function)
            print(f"  {outcome:8}{function.__name__}{why and ': '}{why}", flush=True)
            outcomes.append(outcome)
    if not outcomes:
        print(f"interop: no case has {' or '.join(words)} in its name", file=sys.stderr)
        return 64
    counts = [f"{outcomes.count(outcome)} {outcome}" for outcome in ("ok", "FAILED", "skipped")]
    print(f"{', '.join(counts)} in {time.monotonic() - started:.0f} s")
    return 1 if "FAILED" in outcomes else 0
