//! The process and its system: signals.

pub mod signals;
