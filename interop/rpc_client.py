"""One call: rpc_client.py URL QUEUE PROCEDURE ARGUMENT"""
import sys, uuid, pika

url, queue, procedure, argument = sys.argv[1:]
channel = pika.BlockingConnection(pika.URLParameters(url)).channel()
reply_queue = channel.queue_declare("", exclusive=True).method.queue
call = str(uuid.uuid4())
properties = pika.BasicProperties(app_id=procedure, reply_to=reply_queue, correlation_id=call)
channel.basic_publish("", queue, argument, properties)
for _, reply, body in channel.consume(reply_queue, auto_ack=True, inactivity_timeout=30):
    if reply is None:
        sys.exit("no answer within 30 seconds")
    if reply.correlation_id == call:
        break
if reply.type == "error":
    sys.exit(f"{body.decode()} ({reply.headers['error']})")
print(body.decode())
