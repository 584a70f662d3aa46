//! A sure bound on calls that can block for ever.
//!
//! Every synchronous call of the client library waits for the broker, and a frozen broker, a
//! memory alarm or a peer that trickles bytes can make it wait without end. What always ends such
//! a call is the end of the connection below it: so a thread waits for the deadline, and shuts the
//! socket down.

use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Shuts a socket down when a deadline passes. One thread for each, which ends with it.
pub struct Watchdog(Arc<Watch>);

struct Watch {
    socket: TcpStream,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    deadline: Option<Instant>,
    /// When the thread looks next. It is not woken for a deadline that is later than that, nor
    /// for one that is over: calls come one after another, and most take a moment.
    next_look: Option<Instant>,
    has_fired: bool,
    has_ended: bool,
}

impl Watchdog {
    /// Watches over `socket`, a clone of the connection's own. Fails if there is no thread to be had.
    pub fn new(socket: TcpStream) -> io::Result<Watchdog> {
        let watch = Watch { socket, state: Mutex::default(), changed: Condvar::new() };
        let watch = Arc::new(watch);
        let watched = Arc::clone(&watch);
        thread::Builder::new().name("watchdog".into()).spawn(move || watched.run())?;
        Ok(Watchdog(watch))
    }

    /// Ends the connection now, as if a deadline had passed.
    pub fn fire(&self) {
        self.0.end_connection(&mut self.0.state());
    }

    /// Runs `call`, which uses the connection, and ends the connection if it takes longer than
    /// `limit`: then `call` returns an error, and [`Watchdog::fired`] tells why.
    pub fn bounded<T>(&self, limit: Duration, call: impl FnOnce() -> T) -> T {
        let deadline = Instant::now() + limit;
        let mut state = self.0.state();
        state.deadline = Some(deadline);
        if state.next_look.is_none_or(|look| look > deadline) {
            self.0.changed.notify_one();
        }
        drop(state);
        let result = call();
        self.0.state().deadline = None;
        result
    }

    /// Whether a deadline has passed, and the connection was ended for it.
    pub fn fired(&self) -> bool {
        self.0.state().has_fired
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.state().has_ended = true;
        self.0.changed.notify_one();
    }
}

impl Watch {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics with the lock held; if it did, the state would be whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut state = self.state();
        while !state.has_ended {
            let left = state.deadline.map(|deadline| deadline.duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                self.end_connection(&mut state);
                state.deadline = None;
                continue;
            }
            state.next_look = state.deadline;
            let waited = self.changed.wait_timeout(state, left.unwrap_or(Duration::MAX));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn end_connection(&self, state: &mut State) {
        state.has_fired = true;
        // Fails only if the connection is gone already, which is as good.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::net::TcpListener;

    /// Enough for what does nothing, in a thread that has to wait for a processor.
    const PROMPT: Duration = Duration::from_secs(5);

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
        assert_eq!(watchdog.bounded(PROMPT, || 7), 7);
        // Longer than the limit, to see that the deadline was taken back.
        near.set_read_timeout(Some(PROMPT + Duration::from_secs(1))).unwrap();
        assert!(near.read(&mut [0; 1]).is_err());
        assert!(!watchdog.fired());
        drop(far);
    }

    /// The thread is not woken for each deadline.
    #[test]
    fn later_and_earlier_deadlines_are_kept_too() {
        let second = Duration::from_secs(1);
        let far = 60 * second;
        for (first, second) in [(PROMPT, PROMPT + second), (far, second)] {
            let (mut near, _far) = pair();
            let watchdog = Watchdog::new(near.try_clone().unwrap()).unwrap();
            watchdog.bounded(first, || ());
            let started = Instant::now();
            watchdog.bounded(second, || near.read(&mut [0; 1]).unwrap());
            assert!(watchdog.fired());
            let elapsed = started.elapsed();
            assert!((second..far).contains(&elapsed), "{elapsed:?} for {second:?}");
        }
    }
}
