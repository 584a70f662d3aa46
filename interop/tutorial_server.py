"""A server as the tutorials write it: fib alone, replies with nothing but the correlation id,
prefetch 1, ack after reply. tutorial_server.py URL QUEUE DECLARATION, which is JSON, such as
{"durable": true}
"""

import json
import signal
import sys

import pika


def fib(n):
    a, b = 0, 1
    for _ in range(n):
        a, b = b, a + b
    return a


def on_request(channel, method, request, body):
    n = int(body)
    print(f" [.] fib({n})", flush=True)
    channel.basic_publish(
        exchange="",
        routing_key=request.reply_to,
        properties=pika.BasicProperties(correlation_id=request.correlation_id),
        body=str(fib(n)),
    )
    channel.basic_ack(delivery_tag=method.delivery_tag)


def main():
    url, queue, declaration = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
    channel.queue_declare(queue, **json.loads(declaration))
    channel.basic_qos(prefetch_count=1)
    channel.basic_consume(queue, on_request)
    print(" [x] Awaiting RPC requests", flush=True)
    channel.start_consuming()


main()
