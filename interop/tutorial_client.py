"""A client as the tutorials write it: one connection, fib alone, nothing of app_id and errors.
tutorial_client.py URL QUEUE N...
"""

import sys
import uuid

import pika


class FibonacciClient:
    def __init__(self, url, queue):
        self.queue = queue
        self.connection = pika.BlockingConnection(pika.URLParameters(url))
        self.channel = self.connection.channel()
        self.reply_queue = self.channel.queue_declare(queue="", exclusive=True).method.queue
        self.channel.basic_consume(self.reply_queue, self.on_reply, auto_ack=True)

    def on_reply(self, channel, method, reply, body):
        if reply.correlation_id == self.awaited:
            self.result = int(body)

    def call(self, n):
        self.result, self.awaited = None, str(uuid.uuid4())
        self.channel.basic_publish(
            exchange="",
            routing_key=self.queue,
            properties=pika.BasicProperties(reply_to=self.reply_queue, correlation_id=self.awaited),
            body=str(n),
        )
        while self.result is None:
            self.connection.process_data_events(time_limit=None)
        return self.result


def main():
    url, queue, *numbers = sys.argv[1:]
    client = FibonacciClient(url, queue)
    for n in numbers:
        print(f" [x] Requesting fib({n})")
        print(f" [.] Got {client.call(n)}")
    client.connection.close()


main()
