//! Everything between a broker's URI and a channel that can be used: URIs, sockets, TLS,
//! connections, queues, and the guards around them.

pub mod backoff;
pub mod connection;
pub mod queue;
pub mod transport;
pub mod uri;
pub mod watchdog;
