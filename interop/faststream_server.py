"""Adds: faststream_server.py URL QUEUE"""
import asyncio, sys
from faststream import FastStream
from faststream.rabbit import RabbitBroker, RabbitQueue

url, queue = sys.argv[1:]
broker = RabbitBroker(url, logger=None)
app = FastStream(broker, logger=None)


@broker.subscriber(RabbitQueue(queue, durable=True))
async def add(x: int, y: int) -> int:
    return x + y


@app.after_startup
async def ready():
    print(" [x] Awaiting RPC requests", flush=True)


asyncio.run(app.run())
