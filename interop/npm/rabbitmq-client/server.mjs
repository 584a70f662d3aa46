// A server by rabbitmq-client: server.mjs URL QUEUE. A body that comes as JSON has numbers, and their sum is the result; any
// other comes as bytes, and goes back in capitals. Ends at SIGTERM.
import { Connection } from 'rabbitmq-client';
import { broker } from './broker.mjs';

const [url, queue] = process.argv.slice(2);
const connection = new Connection(broker(url));
const consumer = connection.createConsumer({ queue, queueOptions: { durable: true } }, async (request, reply) => {
    const { body } = request;
    if (Buffer.isBuffer(body) || typeof body === 'string') {
        await reply(String(body).toUpperCase());
    } else if (Array.isArray(body?.numbers)) {
        await reply({ result: body.numbers.reduce((a, b) => a + b, 0) });
    } else if (body?.sleep) {
        // It is acked, and never answered.
    } else {
        await reply({ error: { message: 'numbers are wanted' } });
    }
});
consumer.once('ready', () => console.log(' [x] Awaiting RPC requests'));
process.once('SIGTERM', async () => {
    await consumer.close();
    await connection.close();
    process.exit(0);
});
