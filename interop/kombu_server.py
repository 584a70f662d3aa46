"""Adds: kombu_server.py URL QUEUE"""
import signal, sys, kombu

url, name = sys.argv[1:]
signal.signal(signal.SIGTERM, lambda *_: sys.exit())


def add(body, message):
    reply_to, call = message.properties["reply_to"], message.properties["correlation_id"]
    try:
        result = {"sum": body["x"] + body["y"]}
    except Exception as failure:
        result = {"error": repr(failure)}
    producer.publish(result, routing_key=reply_to, correlation_id=call)
    message.ack()


with kombu.Connection(url) as connection:
    producer = connection.Producer(serializer="json")
    queue = kombu.Queue(name, durable=True)
    with kombu.Consumer(connection, queue, callbacks=[add], accept=["json"], prefetch_count=1):
        print(" [x] Awaiting RPC requests", flush=True)
        while True:
            connection.drain_events()
