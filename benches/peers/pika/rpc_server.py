"""RPC server of RabbitMQ's tutorial six with pika: rpc_server.py URL QUEUE PREFETCH"""

import signal
import subprocess
import sys

import pika


def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)


def answer(procedure, argument):
    if procedure == "fun":
        return argument + b"00"
    if procedure == "true":
        return subprocess.run(["true"], input=argument, capture_output=True, check=True).stdout
    if procedure == "fib":
        return str(fib(int(argument)))
    return "pong"


def on_request(channel, method, request, body):
    channel.basic_publish(
        exchange="",
        routing_key=request.reply_to,
        properties=pika.BasicProperties(
            content_type="text/plain", correlation_id=request.correlation_id
        ),
        body=answer(request.app_id, body),
    )
    channel.basic_ack(delivery_tag=method.delivery_tag)


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: rpc_server.py URL QUEUE PREFETCH")
    url, queue, prefetch = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    connection = pika.BlockingConnection(pika.URLParameters(url))
    channel = connection.channel()
    channel.queue_declare(queue=queue, durable=True)
    channel.basic_qos(prefetch_count=int(prefetch))
    channel.basic_consume(queue=queue, on_message_callback=on_request)
    print("Awaiting RPC requests", flush=True)
    channel.start_consuming()


main()
