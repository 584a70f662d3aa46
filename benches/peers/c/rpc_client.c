// RPC client of RabbitMQ's tutorial six with librabbitmq:
// rpc_client URL QUEUE PROCEDURE ARGUMENT CALLS IN_FLIGHT [EXPIRATION_MS [ID_LENGTH]]; the argument "-" is
// standard input's. With a length of ids, requests are mandatory too, as this project's are.
#include "common.h"

static char *read_input(void) {
  size_t size = 0, room = 1 << 16, got;
  char *text = malloc(room);
  while ((got = fread(text + size, 1, room - size - 1, stdin)) > 0) {
    size += got;
    if (room - size < 2) text = realloc(text, room *= 2);
  }
  text[size] = 0;
  text[strcspn(text, "\n")] = 0;
  return text;
}

int main(int count, char **arguments) {
  if (count < 7 || count > 9)
    die("usage: rpc_client URL QUEUE PROCEDURE ARGUMENT CALLS IN_FLIGHT [EXPIRATION_MS [ID_LENGTH]]: it");
  int id_length = count == 9 ? atoi(arguments[8]) : 0;
  char *argument = strcmp(arguments[4], "-") == 0 ? read_input() : arguments[4];
  long calls = atol(arguments[5]), in_flight = atol(arguments[6]), sent = 0, done = 0;
  double *times = calloc(calls, sizeof *times);

  amqp_connection_state_t connection = open_connection(arguments[1]);
  amqp_queue_declare_ok_t *declared =
      amqp_queue_declare(connection, 1, amqp_empty_bytes, 0, 0, 1, 0, amqp_empty_table);
  check(connection, "declaring the reply queue");
  amqp_bytes_t reply_queue = amqp_bytes_malloc_dup(declared->queue);
  amqp_basic_consume(connection, 1, reply_queue, amqp_empty_bytes, 0, 1, 0, amqp_empty_table);
  check(connection, "basic.consume");

  double start = now_us();
  while (done < calls) {
    for (; sent < calls && sent - done < in_flight; sent++) {
      char id[64];
      snprintf(id, sizeof id, "%0*ld", id_length, sent);
      amqp_basic_properties_t properties = {
          ._flags = AMQP_BASIC_CONTENT_TYPE_FLAG | AMQP_BASIC_CORRELATION_ID_FLAG |
                    AMQP_BASIC_REPLY_TO_FLAG | AMQP_BASIC_APP_ID_FLAG,
          .content_type = amqp_cstring_bytes("text/plain"),
          .correlation_id = amqp_cstring_bytes(id),
          .reply_to = reply_queue,
          .app_id = amqp_cstring_bytes(arguments[3])};
      if (count >= 8) {
        properties._flags |= AMQP_BASIC_EXPIRATION_FLAG;
        properties.expiration = amqp_cstring_bytes(arguments[7]);
      }
      times[sent] = now_us();
      if (amqp_basic_publish(connection, 1, amqp_empty_bytes, amqp_cstring_bytes(arguments[2]), id_length > 0,
                             0, &properties, amqp_cstring_bytes(argument)) != AMQP_STATUS_OK)
        die("publishing");
    }
    amqp_envelope_t envelope;
    receive(connection, &envelope);
    char id[64];
    amqp_bytes_t echoed = envelope.message.properties.correlation_id;
    snprintf(id, sizeof id, "%.*s", (int)echoed.len, (char *)echoed.bytes);
    long call = atol(id);
    times[call] = now_us() - times[call];
    done++;
    amqp_destroy_envelope(&envelope);
  }
  print_result(calls, (now_us() - start) / 1e6, times);
  close_connection(connection);
}
