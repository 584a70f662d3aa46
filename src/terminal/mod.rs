//! What a person reads: standard output, diagnostics on standard error, and text made harmless for
//! a terminal.

pub mod logging;
pub mod output;
pub mod text;
pub mod waiting;
mod writer;
