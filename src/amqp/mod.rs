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
#[cfg(feature = "tls")]
pub mod tls;
pub mod transport;
pub mod uri;
pub mod watchdog;

/// Longest name that AMQP can carry, in bytes: queue names, `app_id` and the like are short
/// strings (AMQP 0-9-1, section 4.2.5.3). The client library does not check this, and a longer
/// one costs the connection.
pub const MAX_NAME: usize = 255;
