//! What `rpc_client` has around its loop: the state of its calls, their input and output, the
//! diagnosis of a call that fails, and the waiting for what is not there.

pub mod calls;
pub mod diagnosis;
pub mod input;
pub mod report;
pub mod retry;
