//! Remote procedure calls over RabbitMQ, by two blocking programs: RabbitMQ's tutorial six in
//! synchronous Rust. The loops that the tutorial is about are in `src/bin/`; the steps that they call, and
//! what guards them against faults, are here.
//!
//! | module | what it has |
//! |---|---|
//! | [`drill`] | the server's loop, with what it does wrong on purpose |
//! | [`client`] | what the client has around its loop: calls, input, output, diagnosis, retries |
//! | [`server`] | what the server has around its loop: workers, and who watches over them |
//! | [`metrics`] | a server's numbers and health, and who is told them over HTTP |
//! | [`program`] | the start and the end of a program |
//! | [`cli`] | both programs' arguments |
//! | [`template`] | what is made from each call's argument: the name of the file for its result, its routing key |
//! | [`mod@pointer`] | where in a reply's JSON something stands |
//! | [`header`] | the headers of requests, as the options name them |
//! | [`protocol`] | requests and replies ↔ AMQP messages |
//! | [`json_error`] | an error's sentence as JSON |
//! | [`procedure`] | name → function or program (each kind is a variant of one enum), and what can go wrong in it |
//! | [`coprocess`] | programs that stay: started with the server, asked and answering by lines, started anew |
//! | [`command`] | programs: started, fed, read, bounded, reaped, and killed with all that they started |
//! | [`json_headers`] | a message's headers as JSON |
//! | [`cancellation`] | ends a call that is being computed |
//! | [`fib`] | Fibonacci numbers |
//! | [`remedies`] | what is told of an error of [`amqp`]: what helps, and the exit code |
//! | [`amqp`] | URIs, connections, queues, and the guards around them; knows nothing of the programs |
//! | [`terminal`] | standard output, diagnostics on stderr, text made harmless |
//! | [`signals`] | the first one asks to stop, the second ends |
//! | `mutex` | how a mutex is locked |
//! | [`error`] | what went wrong → exit code; imports nothing of ours |
//!
//! Imports point downwards in this table only.

#![warn(missing_docs)]

pub mod amqp;
pub mod cancellation;
pub mod cli;
pub mod client;
pub mod command;
pub mod coprocess;
pub mod drill;
pub mod error;
pub mod fib;
pub mod header;
pub mod json_error;
pub mod json_headers;
pub mod metrics;
mod mutex;
pub mod pointer;
pub mod procedure;
pub mod program;
pub mod protocol;
pub mod remedies;
pub mod server;
pub mod signals;
pub mod template;
pub mod terminal;
