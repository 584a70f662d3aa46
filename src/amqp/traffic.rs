//! How many bytes have gone over a connection: limits are for standing still, and where bytes flow there is progress.

use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// What counts as flowing, in bytes a second. A peer that takes or sends less than that has as good as stopped.
const FLOOR: u64 = 16 << 10;

/// The bytes of one connection, counted by the thread that reads and writes it.
#[derive(Debug, Default)]
pub struct Traffic {
    received: AtomicU64,
    written: AtomicU64,
}

impl Traffic {
    /// Counts bytes that came.
    pub fn count_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Relaxed);
    }

    /// Counts bytes that the system took, to send them.
    pub fn count_written(&self, bytes: usize) {
        self.written.fetch_add(bytes as u64, Relaxed);
    }

    /// Returns how many bytes have come by now.
    pub fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }

    /// Returns how many bytes have arrived at the other end of `socket` by now, which is the connection's. Megabytes
    /// that were written can still be on their way.
    pub fn sent(&self, socket: &TcpStream) -> u64 {
        self.written.load(Relaxed).saturating_sub(unsent(socket))
    }
}

/// Returns whether so many bytes in that time are a flow.
pub fn flows(bytes: u64, time: Duration) -> bool {
    bytes as f64 >= FLOOR as f64 * time.as_secs_f64()
}

/// Returns how many bytes the system has taken and the other end has not acknowledged (tcp(7), `SIOCOUTQ`).
#[cfg(target_os = "linux")]
fn unsent(socket: &TcpStream) -> u64 {
    use rustix::ioctl::{Getter, ioctl};
    const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
    // SAFETY: the request writes an int, and nothing else (tcp(7)).
    let unsent = unsafe { ioctl(socket, Getter::<SIOCOUTQ, std::ffi::c_int>::new()) };
    unsent.ok().and_then(|unsent| unsent.try_into().ok()).unwrap_or(0)
}

/// Returns 0: where the system does not tell, what was written counts as sent.
#[cfg(not(target_os = "linux"))]
fn unsent(_: &TcpStream) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    #[test]
    fn a_trickle_is_no_flow() {
        let second = Duration::from_secs(1);
        assert!(!flows(0, second) && !flows(1, second) && !flows(FLOOR, 2 * second));
        assert!(flows(FLOOR, second) && flows(2 * FLOOR, second));
    }

    #[test]
    fn what_the_other_end_does_not_take_is_not_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut far = listener.accept().unwrap().0;
        near.set_nonblocking(true).unwrap();
        let (traffic, mut total) = (Traffic::default(), 0);
        while let Ok(written) = near.write(&[0; 65536]) {
            traffic.count_written(written);
            total += written as u64;
        }
        // What is in the other end's buffer has arrived.
        let sent = traffic.sent(&near);
        assert!(sent < total, "{sent} of {total}");
        thread::spawn(move || while far.read(&mut [0; 65536]).is_ok_and(|read| read > 0) {});
        while traffic.sent(&near) < total {
            thread::yield_now();
        }
    }
}
