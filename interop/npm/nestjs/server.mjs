// A microservice of NestJS: server.mjs URL QUEUE. Ends at SIGTERM.
import 'reflect-metadata';
import { Controller, Module } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import { MessagePattern, RpcException, Transport } from '@nestjs/microservices';

const [url, queue] = process.argv.slice(2);

class Calculator {
    sum(numbers) {
        return numbers.reduce((a, b) => a + b, 0);
    }
    describe(name) {
        return { name, tags: ['a', 'b'] };
    }
    refuse() {
        throw new RpcException('numbers are wanted');
    }
    crash() {
        throw new Error('a bug');
    }
    nothing() {}
    sleep() {
        return new Promise(() => {});
    }
}

// What the decorators of TypeScript do.
Controller()(Calculator);
for (const name of Object.getOwnPropertyNames(Calculator.prototype).filter((name) => name !== 'constructor')) {
    const method = Object.getOwnPropertyDescriptor(Calculator.prototype, name);
    MessagePattern(name)(Calculator.prototype, name, method);
}
class Service {}
Module({ controllers: [Calculator] })(Service);

const service = await NestFactory.createMicroservice(Service, {
    transport: Transport.RMQ,
    options: { urls: [url], queue, queueOptions: { durable: true }, prefetchCount: 10 },
    logger: false,
});
process.once('SIGTERM', () => service.close().then(() => process.exit(0)));
await service.listen();
console.log(' [x] Awaiting RPC requests');
