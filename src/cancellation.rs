//! Ends a call that is being computed, from another thread than the one that computes it.

use crate::mutex::lock;
use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter};
use std::ops::Deref;
use std::sync::{Arc, Mutex};

/// Why a call was ended before it had an outcome. Its request comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// The connection that its request came by was lost.
    ConnectionLost,
    /// The broker closed the channel that its request came by. The connection is still good.
    ChannelClosed,
}

/// A handle on one call, for whoever computes it and for whoever may have to end it.
#[derive(Debug, Default)]
pub struct CallHandle(Mutex<HandleState>);

#[derive(Debug, Default)]
struct HandleState {
    cancelled: Option<Cancelled>,
    is_stop_requested: bool,
    /// Is dropped to wake whoever waits with the descriptor of [`CallHandle::waker`].
    waker: Option<PipeWriter>,
}

impl CallHandle {
    /// Asks whoever computes the call to end it. The first reason counts.
    pub fn cancel(&self, reason: Cancelled) {
        let mut state = lock(&self.0);
        state.cancelled.get_or_insert(reason);
        state.waker = None;
    }

    /// Tells whoever computes the call that the server is to stop. The call goes on.
    pub fn request_stop(&self) {
        let mut state = lock(&self.0);
        state.is_stop_requested = true;
        state.waker = None;
    }

    /// Returns why the call is to end, if it is.
    pub fn cancelled(&self) -> Option<Cancelled> {
        lock(&self.0).cancelled
    }

    /// Returns whether the server is to stop.
    pub fn is_stop_requested(&self) -> bool {
        lock(&self.0).is_stop_requested
    }

    /// Returns a descriptor that poll(2) reports the next time the call is cancelled or a stop is requested. The one
    /// that was returned before is not reported any more.
    pub fn waker(&self) -> io::Result<PipeReader> {
        let (reader, writer) = io::pipe()?;
        let mut state = lock(&self.0);
        if state.cancelled.is_none() {
            state.waker = Some(writer);
        }
        Ok(reader)
    }
}

/// The calls that are computed for one connection, each by the number of its channel, on which there is one at a
/// time.
#[derive(Debug, Default)]
pub struct RunningCalls(Mutex<CallsByChannel>);

#[derive(Debug, Default)]
struct CallsByChannel {
    calls: HashMap<u16, Arc<CallHandle>>,
    /// What holds for the calls that begin from now on, too.
    cancelled: Option<Cancelled>,
    is_stop_requested: bool,
}

impl RunningCalls {
    /// Adds the call that came by `channel`, until what is returned is dropped.
    pub fn begin(&self, channel: u16) -> RunningCall<'_> {
        let handle = Arc::new(CallHandle::default());
        let mut running = lock(&self.0);
        if let Some(reason) = running.cancelled {
            handle.cancel(reason);
        }
        if running.is_stop_requested {
            handle.request_stop();
        }
        running.calls.insert(channel, Arc::clone(&handle));
        RunningCall { calls: self, channel, handle }
    }

    /// Returns whether there are any.
    pub fn is_empty(&self) -> bool {
        lock(&self.0).calls.is_empty()
    }

    /// Cancels the call that came by `channel`, if there is one.
    pub fn cancel(&self, channel: u16, reason: Cancelled) {
        if let Some(handle) = lock(&self.0).calls.get(&channel) {
            handle.cancel(reason);
        }
    }

    /// Cancels all of them, and those that begin from now on.
    pub fn cancel_all(&self, reason: Cancelled) {
        let mut running = lock(&self.0);
        running.cancelled.get_or_insert(reason);
        running.calls.values().for_each(|handle| handle.cancel(reason));
    }

    /// Tells all of them, and those that begin from now on, that the server is to stop.
    pub fn request_stop(&self) {
        let mut running = lock(&self.0);
        running.is_stop_requested = true;
        running.calls.values().for_each(|handle| handle.request_stop());
    }
}

/// A call of [`RunningCalls`].
#[derive(Debug)]
pub struct RunningCall<'a> {
    calls: &'a RunningCalls,
    channel: u16,
    handle: Arc<CallHandle>,
}

impl Deref for RunningCall<'_> {
    type Target = CallHandle;

    fn deref(&self) -> &CallHandle {
        &self.handle
    }
}

impl Drop for RunningCall<'_> {
    fn drop(&mut self) {
        let mut running = lock(&self.calls.0);
        // The number can be another channel's by now, with a call of its own.
        if running.calls.get(&self.channel).is_some_and(|call| Arc::ptr_eq(call, &self.handle)) {
            running.calls.remove(&self.channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn a_call_is_cancelled_by_its_channel_and_wakes_who_waits() {
        let calls = RunningCalls::default();
        let (one, two) = (calls.begin(1), calls.begin(2));
        let mut waker = one.waker().unwrap();
        calls.cancel(1, Cancelled::ChannelClosed);
        assert_eq!(waker.read(&mut [0]).unwrap(), 0);
        calls.cancel_all(Cancelled::ConnectionLost);
        assert_eq!(one.cancelled(), Some(Cancelled::ChannelClosed), "the first reason counts");
        assert_eq!(two.cancelled(), Some(Cancelled::ConnectionLost));
        assert_eq!(two.waker().unwrap().read(&mut [0]).unwrap(), 0, "it is too late to wait");
        drop((one, two));
        assert!(calls.is_empty());
        assert_eq!(calls.begin(3).cancelled(), Some(Cancelled::ConnectionLost));
    }

    #[test]
    fn a_stop_that_is_requested_wakes_and_cancels_nothing() {
        let calls = RunningCalls::default();
        let call = calls.begin(1);
        let mut waker = call.waker().unwrap();
        assert!(!call.is_stop_requested());
        calls.request_stop();
        assert_eq!(waker.read(&mut [0]).unwrap(), 0);
        assert!(call.is_stop_requested() && call.cancelled().is_none());
        let mut waker = call.waker().unwrap();
        calls.cancel(1, Cancelled::ChannelClosed);
        assert_eq!(waker.read(&mut [0]).unwrap(), 0);
        assert!(calls.begin(2).is_stop_requested());
    }

    #[test]
    fn a_call_that_ends_late_and_another_on_a_channel_of_the_same_number() {
        let calls = RunningCalls::default();
        let old = calls.begin(3);
        calls.cancel(3, Cancelled::ChannelClosed);
        let new = calls.begin(3);
        drop(old);
        assert!(!calls.is_empty() && new.cancelled().is_none());
        calls.cancel(3, Cancelled::ConnectionLost);
        assert_eq!(new.cancelled(), Some(Cancelled::ConnectionLost));
        drop(new);
        assert!(calls.is_empty());
    }
}
