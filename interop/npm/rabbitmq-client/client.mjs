// One call by rabbitmq-client: client.mjs URL QUEUE PROCEDURE ARGUMENT. Writes type, content type and body of the reply; an
// error to standard error.
import { Connection } from 'rabbitmq-client';
import { broker } from './broker.mjs';

const [url, queue, appId, argument] = process.argv.slice(2);
const connection = new Connection(broker(url));
const client = connection.createRPCClient({ timeout: 10_000 });
let code = 0;
try {
    const reply = await client.send({ routingKey: queue, appId }, argument);
    console.log(JSON.stringify([reply.type, reply.contentType, reply.body]));
} catch (error) {
    console.error(error.message);
    code = 1;
}
await client.close();
await connection.close();
process.exit(code);
