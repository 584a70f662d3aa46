"""One call: faststream_client.py URL QUEUE BODY SECONDS; the body is JSON"""
import asyncio, json, sys
from faststream.rabbit import RabbitBroker


async def main(url, queue, body, seconds):
    async with RabbitBroker(url, logger=None) as broker:
        try:
            reply = await broker.request(json.loads(body), queue, timeout=float(seconds))
        except asyncio.TimeoutError:
            sys.exit("no answer in time")
        result = await reply.decode()
        if reply.raw_message.type == "error":
            error = result["error"]
            sys.exit(f"{error['message']} ({error['kind']})")
        print(result)


asyncio.run(main(*sys.argv[1:]))
