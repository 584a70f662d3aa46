//! Room for header tables that are nested as deep as a frame allows.
//!
//! A message's headers can hold a table in a table in a table: some 20,000 in a frame of 128 KiB.
//! Reading them recurses in the client library's I/O thread, dropping them in ours, and the stack
//! that a thread has by default ends long before: the process would be killed for one message.

use std::io;
use std::thread::{self, ScopedJoinHandle};

/// Enough for the deepest tables in a release build, in bytes. It is address space: what is not
/// used takes no memory.
const SIZE: usize = 64 << 20;

/// Runs `program` on a thread with a large stack, and gives the same to all threads that are
/// started later. To be called first in `main`, while there is but one thread.
///
/// # Errors
///
/// If the system has no thread to give. A panic of `program` goes on in the caller.
pub fn run_deep<T: Send>(program: impl FnOnce() -> T + Send) -> io::Result<T> {
    // SAFETY: no other thread exists that could read the environment meanwhile.
    unsafe { std::env::set_var("RUST_MIN_STACK", SIZE.to_string()) };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("main".into()).spawn_scoped(scope, program)?;
        Ok(ScopedJoinHandle::join(thread).unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}
