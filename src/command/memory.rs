//! Whether there is memory for a result: where it is bounded (`ulimit -v`), what cannot be had aborts the process.

#[cfg(target_env = "gnu")]
use nix::libc;
use std::io;

/// A result of up to so many bytes needs no more memory than what the server needs in any case.
const SMALL: usize = 64 << 10;

/// What the server needs for everything else, in bytes.
const SPARE: usize = 16 << 20;

/// Has all threads share two of glibc's arenas. By default each thread reserves 64 MiB of address space for one of its own,
/// and for a moment twice that: where address space is bounded, others find none meanwhile. To be called before there are
/// other threads (mallopt(3)).
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) changes how malloc(3) works from now on, and nothing else.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

/// Returns whether there is memory for a result of `length` bytes, until it is published: for itself, for the frames
/// that it goes into, and for the client library's buffer, which grows by doubling.
pub fn has_room_for(length: usize) -> bool {
    let needed = length.saturating_mul(5).saturating_add(SPARE);
    // Nothing is written there, so that this takes address space alone, and only for a moment.
    length <= SMALL || Vec::<u8>::new().try_reserve_exact(needed).is_ok()
}

/// Adds `bytes` to a result. [`io::ErrorKind::OutOfMemory`] if there is no memory for it, until it is published.
pub fn append(result: &mut Vec<u8>, bytes: &[u8]) -> io::Result<()> {
    let length = result.len() + bytes.len();
    if length > result.capacity() {
        let capacity = length.max(2 * result.capacity());
        if !has_room_for(capacity) {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        result.try_reserve_exact(capacity - result.len())?;
    }
    result.extend_from_slice(bytes);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_grows_as_long_as_there_is_room() {
        assert!(has_room_for(1 << 20));
        assert!(!has_room_for(usize::MAX / 2));
        let mut result = Vec::new();
        for _ in 0..100 {
            append(&mut result, &[b'x'; 10_000]).unwrap();
        }
        assert_eq!(result, [b'x'; 1_000_000]);
        assert!(result.capacity() <= 2_000_000);
    }
}
