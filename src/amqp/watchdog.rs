//! A sure bound on calls that can block for ever.
//!
//! Every synchronous call of the client library waits for the broker, and a frozen broker, a
//! memory alarm or a peer that trickles bytes can make it wait without end. What always ends such
//! a call is the end of the connection below it: so a thread waits for the deadline, and shuts the
//! socket down.

use crate::amqp::traffic::{Traffic, flows};
use crate::mutex::lock;
use std::io;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How many times a limit is granted again because bytes flow. Whoever sends without end does not hold a call for ever.
const EXTENSIONS_MAX: u32 = 30;

/// Shuts a socket down when a deadline passes. One thread for each, which ends with it.
pub struct Watchdog(Arc<Watch>);

struct Watch {
    socket: TcpStream,
    traffic: Arc<Traffic>,
    state: Mutex<WatchState>,
    changed: Condvar,
}

#[derive(Default)]
struct WatchState {
    deadline: Option<Instant>,
    /// What takes the deadline's place if bytes flow until then. None: nothing does.
    extension: Option<Extension>,
    /// When the thread looks next. It is not woken for a deadline that is later than that, nor
    /// for one that is over: calls come one after another, and most take a moment.
    next_look: Option<Instant>,
    has_fired: bool,
    has_ended: bool,
}

/// The bytes that keep a limit on standing still from passing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The bytes that arrive at the other end.
    Sent,
    /// The bytes of both directions.
    Either,
}

/// How a deadline is put off.
struct Extension {
    by: Duration,
    /// Which bytes are to flow.
    flow: Flow,
    /// How many there were when the time began that the deadline ends.
    counted: u64,
    /// How many times it can still be put off.
    left: u32,
}

impl Watchdog {
    /// Watches over `socket`, a clone of the connection's own, whose bytes `traffic` counts. Fails if there is no
    /// thread to be had.
    pub fn new(socket: TcpStream, traffic: Arc<Traffic>) -> io::Result<Watchdog> {
        let (state, changed) = (Mutex::default(), Condvar::new());
        let watch = Watch { socket, traffic, state, changed };
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
        self.watch(limit, None, call)
    }

    /// Runs `call` as [`Watchdog::bounded`] does, but the limit is on standing still: as long as such bytes
    /// `flow`, whoever waits may be waiting behind them. It is granted again then, up to 30 times.
    pub fn bounded_standstill<T>(
        &self,
        limit: Duration,
        flow: Flow,
        call: impl FnOnce() -> T,
    ) -> T {
        let counted = self.0.count(flow);
        self.watch(limit, Some(Extension { by: limit, flow, counted, left: EXTENSIONS_MAX }), call)
    }

    /// Returns how many such bytes there were by now.
    pub fn count(&self, flow: Flow) -> u64 {
        self.0.count(flow)
    }

    fn watch<T>(
        &self,
        limit: Duration,
        extension: Option<Extension>,
        call: impl FnOnce() -> T,
    ) -> T {
        let deadline = Instant::now() + limit;
        let mut state = self.0.state();
        state.deadline = Some(deadline);
        state.extension = extension;
        if state.next_look.is_none_or(|look| look > deadline) {
            self.0.changed.notify_one();
        }
        drop(state);
        let result = call();
        self.0.state().deadline = None;
        result
    }

    /// Returns whether a deadline has passed, and the connection was ended for it.
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
    fn state(&self) -> MutexGuard<'_, WatchState> {
        // Nothing panics with the lock held; if it did, the state would be whole.
        lock(&self.state)
    }

    fn run(&self) {
        let mut state = self.state();
        while !state.has_ended {
            let left = state.deadline.map(|deadline| deadline.duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                if let Some(deadline) = self.extended(&mut state) {
                    state.deadline = Some(deadline);
                    continue;
                }
                self.end_connection(&mut state);
                state.deadline = None;
                continue;
            }
            state.next_look = state.deadline;
            let waited = self.changed.wait_timeout(state, left.unwrap_or(Duration::MAX));
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns the next deadline, if bytes flowed until this one.
    fn extended(&self, state: &mut WatchState) -> Option<Instant> {
        let extension = state.extension.as_mut().filter(|extension| extension.left > 0)?;
        let counted = self.count(extension.flow);
        if !flows(counted.saturating_sub(extension.counted), extension.by) {
            return None;
        }
        extension.left -= 1;
        extension.counted = counted;
        Some(Instant::now() + extension.by)
    }

    /// Returns how many such bytes there were by now.
    fn count(&self, flow: Flow) -> u64 {
        let sent = self.traffic.sent(&self.socket);
        match flow {
            Flow::Sent => sent,
            Flow::Either => sent + self.traffic.received(),
        }
    }

    fn end_connection(&self, state: &mut WatchState) {
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
        let watchdog = Watchdog::new(near.try_clone().unwrap(), Arc::default()).unwrap();
        let started = Instant::now();
        let read = watchdog.bounded(Duration::from_millis(100), || near.read(&mut [0; 1]));
        assert_eq!(read.unwrap(), 0);
        assert!(watchdog.fired());
        assert!(started.elapsed() >= Duration::from_millis(100));
    }

    #[test]
    fn a_call_in_time_leaves_the_connection_alone() {
        let (mut near, far) = pair();
        let watchdog = Watchdog::new(near.try_clone().unwrap(), Arc::default()).unwrap();
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
            let watchdog = Watchdog::new(near.try_clone().unwrap(), Arc::default()).unwrap();
            watchdog.bounded(first, || ());
            let started = Instant::now();
            watchdog.bounded(second, || near.read(&mut [0; 1]).unwrap());
            assert!(watchdog.fired());
            let elapsed = started.elapsed();
            assert!((second..far).contains(&elapsed), "{elapsed:?} for {second:?}");
        }
    }

    #[test]
    fn a_limit_on_standing_still_is_granted_again_while_bytes_flow() {
        let limit = Duration::from_millis(500);
        let (mut near, _far) = pair();
        let traffic = Arc::new(Traffic::default());
        let watchdog = Watchdog::new(near.try_clone().unwrap(), Arc::clone(&traffic)).unwrap();
        let counted = Arc::clone(&traffic);
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let flow = thread::spawn(move || {
            // Enough in each limit, whenever this thread gets a processor.
            while stopped.recv_timeout(Duration::from_millis(10)).is_err() {
                counted.count_received(1 << 20);
            }
        });
        near.set_read_timeout(Some(4 * limit)).unwrap();
        let read = watchdog.bounded_standstill(limit, Flow::Either, || near.read(&mut [0; 1]));
        assert!(read.is_err() && !watchdog.fired(), "{read:?}");
        stop.send(()).unwrap();
        flow.join().unwrap();
        near.set_read_timeout(None).unwrap();
        // A trickle.
        traffic.count_received(100);
        let read = watchdog.bounded_standstill(limit, Flow::Either, || near.read(&mut [0; 1]));
        assert_eq!(read.unwrap(), 0);
        assert!(watchdog.fired());
    }
}
