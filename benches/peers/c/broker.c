// What the broker costs without any RPC: a connection publishes to a queue of its own and consumes
// from it. broker URL MESSAGES IN_FLIGHT; prints MESSAGES SECONDS P50_US P99_US.
#include "common.h"

int main(int count, char **arguments) {
  if (count != 4) die("usage: broker URL MESSAGES IN_FLIGHT: it");
  long messages = atol(arguments[2]), in_flight = atol(arguments[3]), sent = 0, done = 0;
  double *times = calloc(messages, sizeof *times);

  amqp_connection_state_t connection = open_connection(arguments[1]);
  amqp_queue_declare_ok_t *declared =
      amqp_queue_declare(connection, 1, amqp_empty_bytes, 0, 0, 1, 0, amqp_empty_table);
  check(connection, "declaring the queue");
  amqp_bytes_t queue = amqp_bytes_malloc_dup(declared->queue);
  amqp_basic_consume(connection, 1, queue, amqp_empty_bytes, 0, 1, 0, amqp_empty_table);
  check(connection, "basic.consume");

  double start = now_us();
  // The one queue keeps the order.
  for (; done < messages; done++) {
    for (; sent < messages && sent - done < in_flight; sent++) {
      times[sent] = now_us();
      if (amqp_basic_publish(connection, 1, amqp_empty_bytes, queue, 0, 0, NULL,
                             amqp_cstring_bytes("ping")) != AMQP_STATUS_OK)
        die("publishing");
    }
    amqp_envelope_t envelope;
    receive(connection, &envelope);
    times[done] = now_us() - times[done];
    amqp_destroy_envelope(&envelope);
  }
  print_result(messages, (now_us() - start) / 1e6, times);
  close_connection(connection);
}
