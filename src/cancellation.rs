//! Ends a call that is being computed, from another thread than the one that computes it.

use crate::mutex::lock;
use crossbeam_channel::{Receiver, Sender, bounded};
use std::collections::HashMap;
use std::io::{self, PipeReader, PipeWriter};
use std::ops::Deref;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Why a call was ended before it had an outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// The connection that its request came by was lost. The request comes again.
    ConnectionLost,
    /// The broker closed the channel that its request came by. The connection is still good, and the request comes again.
    ChannelClosed,
    /// Nobody waits for its reply any more. The request does not come again.
    CallerGone,
}

/// A handle on one call, for whoever computes it and for whoever may have to end it.
#[derive(Debug, Default)]
pub struct CallHandle(Mutex<HandleState>);

#[derive(Debug, Default)]
struct HandleState {
    cancelled: Option<Cancelled>,
    is_stop_requested: bool,
    /// Whether nothing cancels it.
    is_kept: bool,
    /// Is dropped to wake whoever waits with the descriptor of [`CallHandle::waker`].
    waker: Option<PipeWriter>,
}

impl CallHandle {
    /// Lets the call go on to its end, whatever becomes of its connection: its request does not come again.
    pub fn keep(&self) {
        let mut state = lock(&self.0);
        state.is_kept = true;
        state.cancelled = None;
    }

    /// Asks whoever computes the call to end it, unless it is kept. The first reason counts.
    pub fn cancel(&self, reason: Cancelled) {
        let mut state = lock(&self.0);
        if state.is_kept {
            return;
        }
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
#[derive(Debug)]
pub struct RunningCalls {
    state: Mutex<CallsByChannel>,
    begun: (Sender<()>, Receiver<()>),
}

#[derive(Debug, Default)]
struct CallsByChannel {
    calls: HashMap<u16, Running>,
    /// What holds for the calls that begin from now on, too.
    cancelled: Option<Cancelled>,
    is_stop_requested: bool,
}

#[derive(Debug)]
struct Running {
    handle: Arc<CallHandle>,
    reply_to: Option<Arc<str>>,
    began: Instant,
}

impl Default for RunningCalls {
    fn default() -> RunningCalls {
        RunningCalls { state: Mutex::default(), begun: bounded(1) }
    }
}

impl RunningCalls {
    /// Adds the call that came by `channel` and began then, until what is returned is dropped. Its reply is awaited in the
    /// queue `reply_to`.
    pub fn begin(&self, channel: u16, reply_to: Option<&str>, began: Instant) -> RunningCall<'_> {
        let handle = Arc::new(CallHandle::default());
        let call =
            Running { handle: Arc::clone(&handle), reply_to: reply_to.map(Arc::from), began };
        let mut running = lock(&self.state);
        if let Some(reason) = running.cancelled {
            handle.cancel(reason);
        }
        if running.is_stop_requested {
            handle.request_stop();
        }
        running.calls.insert(channel, call);
        drop(running);

        self.notify();
        RunningCall { calls: self, channel, handle }
    }

    /// Returns what has a message if a call has begun since the last message was taken.
    pub fn begun(&self) -> &Receiver<()> {
        &self.begun.1
    }

    /// Puts a message into [`RunningCalls::begun`], without a call.
    pub fn notify(&self) {
        // It has one if it is full.
        let _ = self.begun.0.try_send(());
    }

    /// Returns the queue that awaits the reply to each of them, and when the call began.
    pub fn reply_queues(&self) -> Vec<(Arc<str>, Instant)> {
        let running = lock(&self.state);
        let calls = running.calls.values();
        calls.filter_map(|call| Some((Arc::clone(call.reply_to.as_ref()?), call.began))).collect()
    }

    /// Cancels those whose replies are awaited in the queue `reply_to`, and that had begun by `latest`.
    pub fn cancel_for(&self, reply_to: &str, latest: Instant, reason: Cancelled) {
        for call in lock(&self.state).calls.values() {
            if call.began <= latest && call.reply_to.as_deref() == Some(reply_to) {
                call.handle.cancel(reason);
            }
        }
    }

    /// Returns whether no call is computed.
    pub fn is_empty(&self) -> bool {
        lock(&self.state).calls.is_empty()
    }

    /// Cancels the call that came by `channel`, if there is one.
    pub fn cancel(&self, channel: u16, reason: Cancelled) {
        if let Some(call) = lock(&self.state).calls.get(&channel) {
            call.handle.cancel(reason);
        }
    }

    /// Cancels all of them, and those that begin from now on.
    pub fn cancel_all(&self, reason: Cancelled) {
        let mut running = lock(&self.state);
        running.cancelled.get_or_insert(reason);
        running.calls.values().for_each(|call| call.handle.cancel(reason));
    }

    /// Tells all of them, and those that begin from now on, that the server is to stop.
    pub fn request_stop(&self) {
        let mut running = lock(&self.state);
        running.is_stop_requested = true;
        running.calls.values().for_each(|call| call.handle.request_stop());
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
        let mut running = lock(&self.calls.state);
        let call = running.calls.get(&self.channel);
        // The number can be another channel's by now, with a call of its own.
        if call.is_some_and(|call| Arc::ptr_eq(&call.handle, &self.handle)) {
            running.calls.remove(&self.channel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Duration;

    fn begin(calls: &RunningCalls, channel: u16) -> RunningCall<'_> {
        calls.begin(channel, None, Instant::now())
    }

    #[test]
    fn a_call_is_cancelled_by_its_channel_and_wakes_who_waits() {
        let calls = RunningCalls::default();
        let (one, two) = (begin(&calls, 1), begin(&calls, 2));
        let mut waker = one.waker().unwrap();
        calls.cancel(1, Cancelled::ChannelClosed);
        assert_eq!(waker.read(&mut [0]).unwrap(), 0);
        calls.cancel_all(Cancelled::ConnectionLost);
        assert_eq!(one.cancelled(), Some(Cancelled::ChannelClosed), "the first reason counts");
        assert_eq!(two.cancelled(), Some(Cancelled::ConnectionLost));
        assert_eq!(two.waker().unwrap().read(&mut [0]).unwrap(), 0, "it is too late to wait");
        drop((one, two));
        assert!(calls.is_empty());
        assert_eq!(begin(&calls, 3).cancelled(), Some(Cancelled::ConnectionLost));
    }

    #[test]
    fn a_call_that_is_kept_is_not_cancelled_and_hears_of_a_stop() {
        let calls = RunningCalls::default();
        calls.cancel_all(Cancelled::ConnectionLost);
        let call = begin(&calls, 1);
        call.keep();
        calls.cancel(1, Cancelled::ChannelClosed);
        assert_eq!(call.cancelled(), None);
        calls.request_stop();
        assert!(call.is_stop_requested());
    }

    #[test]
    fn a_stop_that_is_requested_wakes_and_cancels_nothing() {
        let calls = RunningCalls::default();
        let call = begin(&calls, 1);
        let mut waker = call.waker().unwrap();
        assert!(!call.is_stop_requested());
        calls.request_stop();
        assert_eq!(waker.read(&mut [0]).unwrap(), 0);
        assert!(call.is_stop_requested() && call.cancelled().is_none());
        let mut waker = call.waker().unwrap();
        calls.cancel(1, Cancelled::ChannelClosed);
        assert_eq!(waker.read(&mut [0]).unwrap(), 0);
        assert!(begin(&calls, 2).is_stop_requested());
    }

    #[test]
    fn a_call_that_ends_late_and_another_on_a_channel_of_the_same_number() {
        let calls = RunningCalls::default();
        let old = begin(&calls, 3);
        calls.cancel(3, Cancelled::ChannelClosed);
        let new = begin(&calls, 3);
        drop(old);
        assert!(!calls.is_empty() && new.cancelled().is_none());
        calls.cancel(3, Cancelled::ConnectionLost);
        assert_eq!(new.cancelled(), Some(Cancelled::ConnectionLost));
        drop(new);
        assert!(calls.is_empty());
    }

    #[test]
    fn calls_are_cancelled_by_the_queue_that_awaits_their_replies() {
        let calls = RunningCalls::default();
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let ended = calls.begin(1, Some("gone"), now);
        let others = [
            calls.begin(2, Some("gone"), later),
            calls.begin(3, Some("there"), now),
            calls.begin(4, None, now),
        ];
        calls.cancel_for("gone", now, Cancelled::CallerGone);
        assert_eq!(ended.cancelled(), Some(Cancelled::CallerGone));
        assert!(others.iter().all(|other| other.cancelled().is_none()));
        let mut queues = calls.reply_queues();
        queues.sort();
        let [gone, there] = ["gone", "there"].map(Arc::from);
        assert_eq!(queues, [(Arc::clone(&gone), now), (gone, later), (there, now)]);
    }

    #[test]
    fn that_calls_have_begun_is_told_once_until_it_is_heard() {
        let calls = RunningCalls::default();
        assert!(calls.begun().is_empty());
        drop((begin(&calls, 1), begin(&calls, 2)));
        assert!(calls.begun().try_recv().is_ok() && calls.begun().is_empty());
    }
}
