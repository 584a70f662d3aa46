"""RPC client of RabbitMQ's tutorial six with pika:
rpc_client.py URL QUEUE PROCEDURE ARGUMENT CALLS IN_FLIGHT; the argument "-" is standard input's.
"""

import sys
import time

import pika


class Client:
    def __init__(self, url, queue, procedure, argument):
        self.queue, self.procedure, self.argument = queue, procedure, argument
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.reply_queue = self.channel.queue_declare(queue="", exclusive=True).method.queue
        self.channel.basic_consume(
            queue=self.reply_queue, on_message_callback=self.on_reply, auto_ack=True
        )
        self.began, self.latencies = [], []

    def publish(self):
        call = len(self.began)
        self.began.append(time.perf_counter())
        self.channel.basic_publish(
            exchange="",
            routing_key=self.queue,
            properties=pika.BasicProperties(
                content_type="text/plain",
                correlation_id=str(call),
                reply_to=self.reply_queue,
                app_id=self.procedure,
            ),
            body=self.argument,
        )

    def on_reply(self, channel, method, reply, body):
        self.latencies.append(time.perf_counter() - self.began[int(reply.correlation_id)])

    def call(self, calls, in_flight):
        while len(self.latencies) < calls:
            while len(self.began) < min(calls, len(self.latencies) + in_flight):
                self.publish()
            self.connection.process_data_events(time_limit=None)


def main():
    if len(sys.argv) != 7:
        sys.exit("usage: rpc_client.py URL QUEUE PROCEDURE ARGUMENT CALLS IN_FLIGHT")
    url, queue, procedure, argument = sys.argv[1:5]
    calls, in_flight = int(sys.argv[5]), int(sys.argv[6])
    if argument == "-":
        argument = sys.stdin.read().strip()
    client = Client(url, queue, procedure, argument)
    start = time.perf_counter()
    client.call(calls, in_flight)
    seconds = time.perf_counter() - start
    latencies = sorted(client.latencies)
    p50, p99 = (latencies[int((calls - 1) * share)] * 1e6 for share in (0.5, 0.99))
    # Before the connection is closed: the time until then is measured, too.
    print(f"{calls} {seconds:.6f} {p50:.1f} {p99:.1f}", flush=True)
    client.connection.close()


main()
