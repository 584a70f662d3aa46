"""One call: kombu_client.py URL QUEUE BODY SECONDS; the body is JSON"""
import json, socket, sys, uuid, kombu

url, queue, body, seconds = sys.argv[1:]
call, came = str(uuid.uuid4()), []


def on_reply(result, message):
    if message.properties["correlation_id"] == call:
        came.append((result, message))


with kombu.Connection(url) as connection:
    replies = kombu.Queue(f"replies-{call}", exclusive=True, auto_delete=True, durable=False)
    with kombu.Consumer(connection, replies, callbacks=[on_reply], accept=["json"], no_ack=True):
        connection.Producer(serializer="json").publish(
            json.loads(body), routing_key=queue, reply_to=replies.name, correlation_id=call
        )
        try:
            while not came:
                connection.drain_events(timeout=float(seconds))
        except socket.timeout:
            sys.exit("no answer in time")
result, message = came[0]
if message.properties.get("type") == "error":
    sys.exit(f"{result['error']['message']} ({result['error']['kind']})")
print(result)
