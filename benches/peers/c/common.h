// What the C programs share: a connection to the broker of an amqp:// URL, errors, and a clock.
#include <amqp.h>
#include <amqp_tcp_socket.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static inline void die(const char *what) {
  fprintf(stderr, "%s failed\n", what);
  exit(1);
}

static inline void check(amqp_connection_state_t connection, const char *what) {
  amqp_rpc_reply_t reply = amqp_get_rpc_reply(connection);
  if (reply.reply_type != AMQP_RESPONSE_NORMAL) die(what);
}

static inline amqp_connection_state_t open_connection(const char *url) {
  struct amqp_connection_info info;
  char *copy = strdup(url);
  amqp_default_connection_info(&info);
  if (amqp_parse_url(copy, &info) != AMQP_STATUS_OK) die("parsing the URL");
  amqp_connection_state_t connection = amqp_new_connection();
  amqp_socket_t *socket = amqp_tcp_socket_new(connection);
  if (amqp_socket_open(socket, info.host, info.port) != AMQP_STATUS_OK) die("connecting");
  amqp_rpc_reply_t reply = amqp_login(connection, info.vhost, 0, AMQP_DEFAULT_FRAME_SIZE, 0,
                                      AMQP_SASL_METHOD_PLAIN, info.user, info.password);
  if (reply.reply_type != AMQP_RESPONSE_NORMAL) die("login");
  amqp_channel_open(connection, 1);
  check(connection, "opening a channel");
  free(copy);
  return connection;
}

static inline void close_connection(amqp_connection_state_t connection) {
  amqp_channel_close(connection, 1, AMQP_REPLY_SUCCESS);
  amqp_connection_close(connection, AMQP_REPLY_SUCCESS);
  amqp_destroy_connection(connection);
}

static inline void receive(amqp_connection_state_t connection, amqp_envelope_t *envelope) {
  amqp_maybe_release_buffers(connection);
  amqp_rpc_reply_t reply = amqp_consume_message(connection, envelope, NULL, 0);
  if (reply.reply_type != AMQP_RESPONSE_NORMAL) die("receiving");
}

static inline double now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e6 + now.tv_nsec / 1e3;
}

static inline int by_size(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

// Sorts the latencies, and prints what the bench reads.
static inline void print_result(long count, double seconds, double *latencies_us) {
  qsort(latencies_us, count, sizeof *latencies_us, by_size);
  printf("%ld %.6f %.1f %.1f\n", count, seconds, latencies_us[(count - 1) / 2],
         latencies_us[(long)((count - 1) * 0.99)]);
  // Before the connection is closed: the time until then is measured, too.
  fflush(stdout);
}
