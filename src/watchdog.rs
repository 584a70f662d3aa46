//! A sure bound on calls that can block for ever.
//!
//! Every synchronous call of the client library waits for the broker, and a frozen broker, a
//! memory alarm or a peer that trickles bytes can make it wait without end; none of its own
//! timeouts covers them all. What always ends such a call is the end of the connection below
//! it: so a thread waits for the deadline, and shuts the socket down.

use crossbeam_channel::{RecvTimeoutError, Sender, unbounded};
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Shuts a socket down when a deadline passes. One thread for each, which ends with it.
#[derive(Debug)]
pub struct Watchdog {
    socket: Arc<TcpStream>,
    deadlines: Sender<Option<Instant>>,
    fired: Arc<AtomicBool>,
}

impl Watchdog {
    /// Watches over `socket`, a clone of the connection's own.
    ///
    /// # Errors
    ///
    /// If the system has no thread to give.
    pub fn new(socket: TcpStream) -> io::Result<Watchdog> {
        let (deadlines, changes) = unbounded();
        let fired = Arc::new(AtomicBool::new(false));
        let socket = Arc::new(socket);
        let (watched, tell) = (Arc::clone(&socket), Arc::clone(&fired));
        let watch = move || {
            let mut deadline: Option<Instant> = None;
            loop {
                let change = match deadline {
                    Some(deadline) => changes.recv_deadline(deadline),
                    None => changes.recv().map_err(RecvTimeoutError::from),
                };
                match change {
                    Ok(change) => deadline = change,
                    Err(RecvTimeoutError::Timeout) => {
                        bite(&watched, &tell);
                        deadline = None;
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        };
        thread::Builder::new().name("watchdog".into()).spawn(watch)?;
        Ok(Watchdog { socket, deadlines, fired })
    }

    /// Ends the connection now, as if a deadline had passed.
    pub fn fire(&self) {
        bite(&self.socket, &self.fired);
    }

    /// Runs `call`, which uses the connection, and ends the connection if it takes longer than
    /// `limit`: then `call` returns an error, and [`Watchdog::fired`] tells why.
    pub fn bounded<T>(&self, limit: Duration, call: impl FnOnce() -> T) -> T {
        // The thread lives as long as this sender: sending cannot fail.
        let _ = self.deadlines.send(Some(Instant::now() + limit));
        let result = call();
        let _ = self.deadlines.send(None);
        result
    }

    /// Whether a deadline has passed, and the connection was ended for it.
    pub fn fired(&self) -> bool {
        self.fired.load(Ordering::SeqCst)
    }
}

fn bite(socket: &TcpStream, fired: &AtomicBool) {
    fired.store(true, Ordering::SeqCst);
    // Fails only if the connection is gone already, which is as good.
    let _ = socket.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    }

    #[test]
    fn a_read_that_nothing_answers_ends_at_the_deadline() {
        let (mut near, _far) = pair();
        let watchdog = Watchdog::new(near.try_clone().unwrap()).unwrap();
        let started = Instant::now();
        let read = watchdog.bounded(Duration::from_millis(100), || near.read(&mut [0; 1]));
        assert_eq!(read.unwrap(), 0);
        assert!(watchdog.fired());
        assert!(started.elapsed() >= Duration::from_millis(100));
    }

    #[test]
    fn a_call_in_time_leaves_the_connection_alone() {
        let (mut near, far) = pair();
        let watchdog = Watchdog::new(near.try_clone().unwrap()).unwrap();
        let limit = Duration::from_millis(50);
        assert_eq!(watchdog.bounded(limit, || 7), 7);
        // Longer than the limit, to see that the deadline was taken back.
        near.set_read_timeout(Some(limit * 3)).unwrap();
        assert!(near.read(&mut [0; 1]).is_err());
        assert!(!watchdog.fired());
        drop(far);
    }
}
