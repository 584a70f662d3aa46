// A service of @golevelup/nestjs-rabbitmq: server.mjs URL EXCHANGE QUEUE. Ends at SIGTERM.
import { Injectable } from '@nestjs/common';
import { MessageHandlerErrorBehavior, RabbitRPC, start } from './module.mjs';

const [url, exchange, queue] = process.argv.slice(2);

class Calculator {
    sum({ numbers }) {
        return { sum: numbers.reduce((a, b) => a + b, 0) };
    }
    // Its end is waited for when the server ends.
    sleep() {
        return new Promise((resolve) => setTimeout(() => resolve({}), 4_000));
    }
}

// What the decorators of TypeScript do.
Injectable()(Calculator);
for (const name of ['sum', 'sleep']) {
    const method = Object.getOwnPropertyDescriptor(Calculator.prototype, name);
    RabbitRPC({
        exchange,
        routingKey: `calculator.${name}`,
        queue: `${queue}.${name}`,
        queueOptions: { autoDelete: true },
        errorBehavior: MessageHandlerErrorBehavior.ACK,
        errorHandler: (channel, message, error) => {
            const { replyTo, correlationId } = message.properties;
            const reply = Buffer.from(JSON.stringify({ error: error.message }));
            channel.publish('', replyTo, reply, { correlationId });
            channel.ack(message);
        },
    })(Calculator.prototype, name, method);
}

const service = await start(url, exchange, [Calculator]);
process.once('SIGTERM', () => service.close().then(() => process.exit(0)));
console.log(' [x] Awaiting RPC requests');
