// What server and client of @golevelup/nestjs-rabbitmq have in common: an application with these providers.
import 'reflect-metadata';
import { Module } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import golevelup from '@golevelup/nestjs-rabbitmq';

export const { AmqpConnection, MessageHandlerErrorBehavior, RabbitMQModule, RabbitRPC } = golevelup;

export function start(url, exchange, providers) {
    class Service {}
    Module({
        imports: [
            RabbitMQModule.forRoot({
                uri: url,
                exchanges: exchange ? [{ name: exchange, type: 'topic' }] : [],
                connectionInitOptions: { wait: true, timeout: 10_000 },
            }),
        ],
        providers,
    })(Service);
    return NestFactory.createApplicationContext(Service, { logger: false });
}
