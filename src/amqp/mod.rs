//! Everything between a broker's URI and a channel that can be used: URIs, sockets, TLS,
//! connections, queues, and the guards around them.

pub mod backoff;
pub mod confirms;
pub mod connection;
pub mod consumer;
pub mod errors;
pub mod inbox;
pub mod queue;
pub mod sanitizer;
pub mod transport;
pub mod uri;
pub mod watchdog;
