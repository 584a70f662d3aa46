"""One call: aio_pika_client.py URL QUEUE ARGUMENTS SECONDS; the arguments are a JSON object"""
import asyncio, json, sys, aio_pika
from aio_pika.patterns import JsonRPC
from aio_pika.patterns.rpc import JsonRPCError


async def main(url, queue, arguments, seconds):
    async with await aio_pika.connect(url) as connection:
        rpc = await JsonRPC.create(await connection.channel())
        try:
            call = rpc.call(queue, json.loads(arguments))
            print(await asyncio.wait_for(call, float(seconds)))
        except JsonRPCError as failure:
            error = failure.args[1]["error"]
            sys.exit(f"{error['message']} ({error['kind']})")
        except asyncio.TimeoutError:
            sys.exit("no answer in time")


asyncio.run(main(*sys.argv[1:]))
