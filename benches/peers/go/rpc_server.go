// RPC server of RabbitMQ's tutorial six with amqp091-go: rpc_server URL QUEUE PREFETCH
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"strconv"

	amqp "github.com/rabbitmq/amqp091-go"
)

func check(err error, what string) {
	if err != nil {
		log.Fatalf("%s: %s", what, err)
	}
}

func fib(n uint64) uint64 {
	if n < 2 {
		return n
	}
	return fib(n-1) + fib(n-2)
}

func answer(procedure string, argument []byte) []byte {
	switch procedure {
	case "fun":
		return append(argument, "00"...)
	case "fib":
		n, err := strconv.ParseUint(string(argument), 10, 64)
		check(err, "the argument of fib")
		return []byte(strconv.FormatUint(fib(n), 10))
	}
	return []byte("pong")
}

func main() {
	if len(os.Args) != 4 {
		log.Fatal("usage: rpc_server URL QUEUE PREFETCH")
	}
	prefetch, err := strconv.Atoi(os.Args[3])
	check(err, "PREFETCH")
	connection, err := amqp.Dial(os.Args[1])
	check(err, "connecting")
	defer connection.Close()
	channel, err := connection.Channel()
	check(err, "opening a channel")
	queue, err := channel.QueueDeclare(os.Args[2], true, false, false, false, nil)
	check(err, "declaring the queue")
	check(channel.Qos(prefetch, 0, false), "basic.qos")
	requests, err := channel.Consume(queue.Name, "", false, false, false, false, nil)
	check(err, "basic.consume")
	fmt.Println("Awaiting RPC requests")

	for request := range requests {
		reply := amqp.Publishing{
			ContentType:   "text/plain",
			CorrelationId: request.CorrelationId,
			Body:          answer(request.AppId, request.Body),
		}
		err := channel.PublishWithContext(context.Background(), "", request.ReplyTo, false, false, reply)
		check(err, "publishing")
		check(request.Ack(false), "ack")
	}
}
