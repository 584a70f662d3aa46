//! Everything between a broker's URI and a channel that can be used: URIs, sockets, TLS,
//! connections, queues, and the guards around them.
//!
//! For any program, as a library would be: nothing here knows of options or exit codes. An error says what is wrong, and
//! [`errors::Remedy`] what would help; the program has the words for it.

pub mod backoff;
pub mod binding;
pub mod client_properties;
pub mod confirms;
pub mod connection;
pub mod consumer;
pub mod errors;
pub mod exchange;
pub mod inbox;
pub mod inspector;
pub mod presence;
pub mod queue;
pub mod sanitizer;
#[cfg(feature = "tls")]
pub mod tls;
pub mod traffic;
pub mod transport;
pub mod uri;
pub mod watchdog;

/// Longest name that AMQP can carry, in bytes: queue names, `app_id` and the like are short
/// strings (AMQP 0-9-1, section 4.2.5.3). The client library does not check this, and a longer
/// one costs the connection.
pub const MAX_NAME: usize = 255;

/// Largest body that a broker takes with its own defaults, in bytes: `max_message_size` is
/// 16 MiB since RabbitMQ 4.0. A larger one costs the channel.
pub const MAX_BODY: usize = 16 << 20;

/// Returns the name, if AMQP can carry it, or what is wrong with it.
pub fn name(text: &str) -> Result<String, String> {
    match text {
        "" => Err("a name cannot be empty".into()),
        _ => short_string("a name", text.into()),
    }
}

/// Returns the text, which may be empty, if it is a short string, or what is wrong with it. `what` it is: "a name".
pub fn short_string(what: &str, text: String) -> Result<String, String> {
    match text.len() {
        0..=MAX_NAME => Ok(text),
        length => Err(format!("{what} has at most {MAX_NAME} bytes, and this one has {length}")),
    }
}
