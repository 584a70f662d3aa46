// One call by @golevelup/nestjs-rabbitmq: client.mjs URL EXCHANGE ROUTING_KEY JSON APP_ID. Writes the result as JSON; an
// error to standard error. An exchange '' is the default one, where the routing key is a queue.
import { AmqpConnection, start } from './module.mjs';

const [url, exchange, routingKey, data, appId] = process.argv.slice(2);
const service = await start(url, exchange, []);
let code = 0;
try {
    const result = await service.get(AmqpConnection).request({
        exchange,
        routingKey,
        payload: JSON.parse(data),
        timeout: 10_000,
        publishOptions: { appId },
    });
    console.log(JSON.stringify(result));
} catch (error) {
    console.error(error.message);
    code = 1;
}
await service.close();
process.exit(code);
