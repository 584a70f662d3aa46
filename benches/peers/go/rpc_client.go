// RPC client of RabbitMQ's tutorial six with amqp091-go:
// rpc_client URL QUEUE PROCEDURE ARGUMENT CALLS IN_FLIGHT; the argument "-" is standard input's.
package main

import (
	"context"
	"fmt"
	"io"
	"log"
	"os"
	"sort"
	"strconv"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func check(err error, what string) {
	if err != nil {
		log.Fatalf("%s: %s", what, err)
	}
}

func main() {
	if len(os.Args) != 7 {
		log.Fatal("usage: rpc_client URL QUEUE PROCEDURE ARGUMENT CALLS IN_FLIGHT")
	}
	argument := os.Args[4]
	if argument == "-" {
		input, err := io.ReadAll(os.Stdin)
		check(err, "reading standard input")
		argument = strings.TrimSpace(string(input))
	}
	calls, err := strconv.Atoi(os.Args[5])
	check(err, "CALLS")
	inFlight, err := strconv.Atoi(os.Args[6])
	check(err, "IN_FLIGHT")

	connection, err := amqp.Dial(os.Args[1])
	check(err, "connecting")
	channel, err := connection.Channel()
	check(err, "opening a channel")
	replyQueue, err := channel.QueueDeclare("", false, false, true, false, nil)
	check(err, "declaring the reply queue")
	replies, err := channel.Consume(replyQueue.Name, "", true, false, false, false, nil)
	check(err, "basic.consume")

	body := []byte(argument)
	began := make([]time.Time, calls)
	latencies := make([]time.Duration, calls)
	start := time.Now()
	for sent, done := 0, 0; done < calls; done++ {
		for ; sent < calls && sent-done < inFlight; sent++ {
			began[sent] = time.Now()
			err := channel.PublishWithContext(context.Background(), "", os.Args[2], false, false, amqp.Publishing{
				ContentType:   "text/plain",
				CorrelationId: strconv.Itoa(sent),
				ReplyTo:       replyQueue.Name,
				AppId:         os.Args[3],
				Body:          body,
			})
			check(err, "publishing")
		}
		reply, open := <-replies
		if !open {
			log.Fatal("the connection was lost")
		}
		call, err := strconv.Atoi(reply.CorrelationId)
		check(err, "the correlation id")
		latencies[call] = time.Since(began[call])
	}
	seconds := time.Since(start).Seconds()

	sort.Slice(latencies, func(i, j int) bool { return latencies[i] < latencies[j] })
	percentile := func(share float64) float64 {
		return float64(latencies[int(float64(calls-1)*share)].Nanoseconds()) / 1e3
	}
	fmt.Printf("%d %.6f %.1f %.1f\n", calls, seconds, percentile(0.5), percentile(0.99))
	check(connection.Close(), "closing")
}
