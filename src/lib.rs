//! Remote procedure calls over RabbitMQ, by two blocking programs: RabbitMQ's tutorial six in
//! synchronous Rust. The loops that the tutorial is about are in `src/bin/`; what is pure, done
//! before the first channel opens, or guards against faults, is here.
//!
//! | module | what it has |
//! |---|---|
//! | [`cli`] | both programs' arguments |
//! | [`uri`] | AMQP URIs → endpoints |
//! | [`connection`] | an endpoint → an open connection; what its errors mean |
//! | [`transport`] | the byte stream below a connection: TCP, TLS |
//! | [`watchdog`] | the bound on calls that can block for ever |
//! | [`backoff`] | how long to wait before the next attempt to connect |
//! | [`patience`] | how long the client waits for what is not there |
//! | [`queue`] | the request queue: found as it is, or created |
//! | [`diagnosis`] | what a look at the request queue tells of a call that fails |
//! | [`input`] | the client's arguments and standard input |
//! | [`batch`] | the client's calls between input and output |
//! | [`message`] | requests and replies ↔ AMQP messages |
//! | [`procedure`] | name → function, and what can go wrong in it |
//! | [`fib`] | Fibonacci numbers |
//! | [`drill`] | what the server does wrong on purpose |
//! | [`exit`] | what went wrong → exit code |
//! | [`report`] | results, failures and statistics of the client's calls |
//! | [`output`] | standard output, and the end of a program |
//! | [`text`] | a stranger's bytes, fit for a terminal |
//! | [`logging`], [`signals`] | diagnostics on stderr; SIGINT and SIGTERM |
//! | [`stack`] | room for deeply nested headers |
//!
//! Server: delivery → [`message::Request`] → [`procedure::call`] → [`fib`] → [`message::Reply`] →
//! publish → ack. Client: arguments → [`message::Request`] → publish → receive, skip other
//! ids → [`message::Reply`] → standard output → [`exit`].

#![warn(missing_docs)]

pub mod backoff;
pub mod batch;
pub mod cli;
pub mod connection;
pub mod diagnosis;
pub mod drill;
pub mod exit;
pub mod fib;
pub mod input;
pub mod logging;
pub mod message;
pub mod output;
pub mod patience;
pub mod procedure;
pub mod queue;
pub mod report;
pub mod signals;
pub mod stack;
pub mod text;
pub mod transport;
pub mod uri;
pub mod watchdog;
