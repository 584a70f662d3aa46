// RPC server of RabbitMQ's tutorial six with librabbitmq: rpc_server URL QUEUE PREFETCH
#include "common.h"

static uint64_t fib(uint64_t n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }

static int is(amqp_bytes_t bytes, const char *text) {
  return bytes.len == strlen(text) && memcmp(bytes.bytes, text, bytes.len) == 0;
}

// The reply is to be freed.
static amqp_bytes_t answer(amqp_bytes_t procedure, amqp_bytes_t argument) {
  amqp_bytes_t reply = amqp_bytes_malloc(argument.len + 32);
  if (is(procedure, "fun")) {
    memcpy(reply.bytes, argument.bytes, argument.len);
    memcpy((char *)reply.bytes + argument.len, "00", 2);
    reply.len = argument.len + 2;
  } else if (is(procedure, "fib")) {
    char digits[32];
    snprintf(digits, sizeof digits, "%.*s", (int)argument.len, (char *)argument.bytes);
    reply.len = sprintf(reply.bytes, "%ju", (uintmax_t)fib(strtoull(digits, NULL, 10)));
  } else {
    memcpy(reply.bytes, "pong", 4);
    reply.len = 4;
  }
  return reply;
}

int main(int count, char **arguments) {
  if (count != 4) die("usage: rpc_server URL QUEUE PREFETCH: it");
  amqp_connection_state_t connection = open_connection(arguments[1]);
  amqp_bytes_t queue = amqp_cstring_bytes(arguments[2]);

  amqp_queue_declare(connection, 1, queue, 0, 1, 0, 0, amqp_empty_table);
  check(connection, "declaring the queue");
  amqp_basic_qos(connection, 1, 0, atoi(arguments[3]), 0);
  check(connection, "basic.qos");
  amqp_basic_consume(connection, 1, queue, amqp_empty_bytes, 0, 0, 0, amqp_empty_table);
  check(connection, "basic.consume");
  puts("Awaiting RPC requests");
  fflush(stdout);

  for (;;) {
    amqp_envelope_t envelope;
    receive(connection, &envelope);
    amqp_basic_properties_t *request = &envelope.message.properties;
    amqp_basic_properties_t properties = {
        ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG,
        .content_type = amqp_cstring_bytes("text/plain"),
        .correlation_id = request->correlation_id};
    // As this project's server, to a client that sends what this project's does: ids of a UUID's length.
    if (request->correlation_id.len == 36) {
      properties._flags |= AMQP_BASIC_TYPE_FLAG;
      properties.type = amqp_cstring_bytes("result");
    }
    amqp_bytes_t procedure =
        request->_flags & AMQP_BASIC_APP_ID_FLAG ? request->app_id : amqp_empty_bytes;
    amqp_bytes_t reply = answer(procedure, envelope.message.body);
    if (amqp_basic_publish(connection, 1, amqp_empty_bytes, request->reply_to, 0, 0, &properties,
                           reply) != AMQP_STATUS_OK)
      die("publishing");
    if (amqp_basic_ack(connection, 1, envelope.delivery_tag, 0) != AMQP_STATUS_OK) die("ack");
    amqp_bytes_free(reply);
    amqp_destroy_envelope(&envelope);
  }
}
