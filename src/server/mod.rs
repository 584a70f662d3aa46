//! What `rpc_server` has around its loop.

pub mod drill;
