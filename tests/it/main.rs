//! Tests of the two programs, as processes, against a real RabbitMQ node: the one that `AMQP_URL`
//! names, or one that they start; and for tests that freeze a node or change its users, nodes of their
//! own. `scripts/test.sh` runs them all.

mod addressing;
mod at_most_once;
mod batch;
mod bounds;
mod callers;
mod calls;
mod channels;
mod client;
mod cluster;
mod commands;
mod connecting;
mod coprocesses;
mod descendants;
mod drills;
mod effects;
mod fake_broker;
mod faults;
mod files;
mod fleet;
mod folder;
mod harness;
mod hostile;
mod inbox;
mod looks;
mod metrics;
mod program_output;
mod proxy;
mod readme;
mod replies;
mod scripts;
mod server;
mod service;
mod strangers;
mod surroundings;
mod terminal;
mod tls;
mod tls_keys;
mod unread;
