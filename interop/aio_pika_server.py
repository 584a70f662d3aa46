"""Adds: aio_pika_server.py URL QUEUE"""
import asyncio, signal, sys, aio_pika
from aio_pika.patterns import JsonRPC


async def add(*, x, y):
    await asyncio.sleep(5 if x == "slow" else 0)
    return x + y


async def main(url, queue):
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with await aio_pika.connect(url) as connection:
        rpc = await JsonRPC.create(await connection.channel())
        await rpc.register(queue, add, durable=True)
        print(" [x] Awaiting RPC requests", flush=True)
        await stop.wait()


asyncio.run(main(*sys.argv[1:]))
