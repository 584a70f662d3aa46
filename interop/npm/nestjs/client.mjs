// One call by NestJS: client.mjs URL QUEUE PATTERN JSON. Writes the result as JSON; an error to standard error.
import 'reflect-metadata';
import { ClientProxyFactory, Transport } from '@nestjs/microservices';
import { firstValueFrom, timeout } from 'rxjs';

const [url, queue, pattern, data] = process.argv.slice(2);
const client = ClientProxyFactory.create({
    transport: Transport.RMQ,
    options: { urls: [url], queue, queueOptions: { durable: true } },
});
let code = 0;
try {
    const result = await firstValueFrom(client.send(pattern, JSON.parse(data)).pipe(timeout(10_000)));
    console.log(JSON.stringify(result));
} catch (error) {
    console.error(JSON.stringify(error?.message ?? error));
    code = 1;
}
await client.close();
process.exit(code);
