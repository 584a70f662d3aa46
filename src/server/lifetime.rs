//! When a server ends by itself: after so many calls, or when it had nothing to do for so long. It ends as after a signal.

use crate::mutex::lock;
use crate::server::sync::Latch;
use crossbeam_channel::Receiver;
use humantime::format_duration;
use std::convert::Infallible;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What is left of a server's time, for all its workers on all its connections together.
#[derive(Debug)]
pub struct Lifetime {
    max_calls: Option<u64>,
    idle_exit: Option<Duration>,
    state: Mutex<State>,
    /// Is opened when the last call begins.
    used_up: Latch,
}

#[derive(Debug)]
struct State {
    /// Calls that have begun.
    begun: u64,
    /// Calls that a worker may begin and has not begun.
    reserved: u64,
    /// Requests that workers have in hand.
    in_hand: usize,
    /// When there was none any more, or the server began to await them.
    idle_since: Instant,
}

impl Lifetime {
    /// Returns the time of a server that ends after `max_calls`, or `idle_exit` after its last one. None: it does not.
    pub fn new(max_calls: Option<u64>, idle_exit: Option<Duration>) -> Lifetime {
        let state = State { begun: 0, reserved: 0, in_hand: 0, idle_since: Instant::now() };
        Lifetime { max_calls, idle_exit, state: Mutex::new(state), used_up: Latch::default() }
    }

    /// Reserves one call for a worker. None: others have all that are left.
    pub fn reserve(&self) -> Option<Reservation<'_>> {
        let mut state = lock(&self.state);
        if self.max_calls.is_some_and(|most| state.begun + state.reserved >= most) {
            return None;
        }
        state.reserved += 1;
        Some(Reservation { lifetime: self, has_begun: false })
    }

    /// Takes note that a worker has a request in hand, until what is returned is dropped.
    pub fn take_in_hand(&self) -> RequestInHand<'_> {
        lock(&self.state).in_hand += 1;
        RequestInHand(self)
    }

    /// Takes note that the server awaits requests from now on: without a broker it does not know whether there are any.
    pub fn await_requests(&self) {
        lock(&self.state).idle_since = Instant::now();
    }

    /// Returns what disconnects when the last call begins.
    pub fn used_up(&self) -> &Receiver<Infallible> {
        self.used_up.opened()
    }

    /// Returns whether the last call has begun.
    pub fn is_used_up(&self) -> bool {
        self.used_up.is_open()
    }

    /// Returns when to look whether the server has had nothing to do for too long. None: never.
    pub fn next_look(&self, now: Instant) -> Option<Instant> {
        let state = lock(&self.state);
        let since = if state.in_hand > 0 { now } else { state.idle_since };
        since.checked_add(self.idle_exit?)
    }

    /// Returns why a server that awaits requests is to end, if it is.
    pub fn end(&self, now: Instant) -> Option<String> {
        if let (Some(most), true) = (self.max_calls, self.is_used_up()) {
            return Some(format!("call {most} is the last one (--max-calls)"));
        }
        let state = lock(&self.state);
        let limit = self.idle_exit.filter(|_| state.in_hand == 0)?;
        let is_over = now.saturating_duration_since(state.idle_since) >= limit;
        is_over.then(|| format!("nothing to do for {} (--idle-exit)", format_duration(limit)))
    }
}

/// A call that a worker may begin. Unless it has begun, another worker may begin one when this is dropped.
#[derive(Debug)]
pub struct Reservation<'a> {
    lifetime: &'a Lifetime,
    has_begun: bool,
}

impl Reservation<'_> {
    /// Takes note that the call begins.
    pub fn begin(mut self) {
        self.has_begun = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.lifetime.state);
        state.reserved -= 1;
        state.begun += u64::from(self.has_begun);
        if self.lifetime.max_calls == Some(state.begun) {
            self.lifetime.used_up.open();
        }
    }
}

/// A request that a worker has in hand.
#[derive(Debug)]
pub struct RequestInHand<'a>(&'a Lifetime);

impl Drop for RequestInHand<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.in_hand -= 1;
        state.idle_since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_calls_begin_than_there_may_be() {
        let lifetime = Lifetime::new(Some(2), None);
        let (first, second) = (lifetime.reserve().unwrap(), lifetime.reserve().unwrap());
        assert!(lifetime.reserve().is_none());
        drop(first);
        let first = lifetime.reserve().unwrap();
        first.begin();
        assert!(lifetime.reserve().is_none() && lifetime.end(Instant::now()).is_none());
        second.begin();
        let end = lifetime.end(Instant::now());
        assert_eq!(end.as_deref(), Some("call 2 is the last one (--max-calls)"));
        assert!(lifetime.used_up().recv().is_err());
    }

    #[test]
    fn a_server_is_idle_from_the_end_of_its_last_call() {
        const LIMIT: Duration = Duration::from_secs(60);
        let lifetime = Lifetime::new(None, Some(LIMIT));
        lifetime.await_requests();
        let later = Instant::now() + LIMIT;
        assert_eq!(lifetime.end(Instant::now()), None);
        let end = lifetime.end(later);
        assert_eq!(end.as_deref(), Some("nothing to do for 1m (--idle-exit)"));
        let request = lifetime.take_in_hand();
        assert_eq!((lifetime.end(later), lifetime.next_look(later)), (None, Some(later + LIMIT)));
        drop(request);
        assert!(lifetime.end(later).is_none() && lifetime.next_look(later) > Some(later));
        assert!(lifetime.reserve().is_some());
    }

    #[test]
    fn a_server_without_limits_never_ends() {
        let lifetime = Lifetime::new(None, None);
        (0..3).for_each(|_| lifetime.reserve().unwrap().begin());
        let later = Instant::now() + Duration::from_secs(1 << 20);
        assert_eq!((lifetime.end(later), lifetime.next_look(later)), (None, None));
    }
}
