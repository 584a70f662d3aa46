//! What the thread that reads a connection knows before everybody else: how much has come in and was not taken yet,
//! which channels the broker closed, and when each delivery came.
//!
//! The client library queues what comes for its user without a bound. A broker, or a stranger who
//! floods a queue, could fill the memory so. And it tells that a channel was closed only to whoever next waits for
//! something on it, which a thread that computes does not.

use crate::mutex::lock;
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Mutex, OnceLock};
use std::time::Instant;

/// How much memory may be taken by what nobody asked for, in bytes.
const MAX_EXCESS: u64 = 16 << 20;

/// The smallest frame that a peer has to take, in bytes (AMQP 0-9-1, section 1.2, frame-min-size).
const FRAME_MIN: usize = 4096;

/// How much of a content header is left for all but what headers have room for, in bytes: names, ids and overhead.
const PROPERTIES_ROOM: usize = 768;

/// Why the broker closed a channel or a connection (AMQP 0-9-1, channel.close and connection.close).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Close {
    /// The reply code (AMQP 0-9-1, section 1.5).
    pub code: u16,
    /// The broker's sentence.
    pub text: String,
}

/// What is called, by the thread that reads, with each channel that the broker closes.
pub type OnChannelClose = Box<dyn Fn(u16, &Close) + Send + Sync>;

/// What the thread that reads a connection and those that take messages from it both know.
#[derive(Default)]
pub struct Inbox {
    /// How many came and were not taken.
    waiting: AtomicU64,
    /// How many may wait, however large they are. Until it is known: any number.
    expected: OnceLock<u64>,
    /// How many bytes came since no more than that waited.
    excess: AtomicU64,
    violation: OnceLock<String>,
    /// The largest frame that both sides take, in bytes. Unknown until the broker has said so.
    frame_max: OnceLock<usize>,
    connection_close: OnceLock<Close>,
    on_channel_close: OnceLock<OnChannelClose>,
    /// The channels that the broker closed, and that were not opened again.
    closed: Mutex<HashSet<u16>>,
    /// When the deliveries came that wait, by their channels. Empty unless somebody asked for it.
    arrivals: OnceLock<Mutex<HashMap<u16, VecDeque<Instant>>>>,
}

impl Inbox {
    /// Bounds, for good, how many messages are expected to wait at any time, to `most`: deliveries, returned
    /// messages, publisher confirms and notices of a blocked connection, all together. More may come
    /// for a moment, since the broker does not know when one is taken; but when more wait, and they
    /// came with more than 16 MiB, the connection ends.
    pub fn expect_at_most(&self, most: u64) {
        let _ = self.expected.set(most);
    }

    /// Keeps the largest frame that both sides take, in bytes.
    pub(crate) fn agreed(&self, frame_max: usize) {
        let _ = self.frame_max.set(frame_max);
    }

    /// Returns how many bytes the headers of a message may take: what is left of a frame beside the other properties,
    /// which have some 300. A content header must fit into one frame (AMQP 0-9-1, section 4.2.6.1).
    pub fn headers_max(&self) -> usize {
        self.frame_max.get().unwrap_or(&FRAME_MIN).saturating_sub(PROPERTIES_ROOM)
    }

    /// Counts a message that was taken from one of the connection's receivers. Where messages come from does so; a
    /// message that is forgotten here counts as waiting for ever.
    pub(super) fn taken(&self) {
        let _ = self.waiting.fetch_update(SeqCst, SeqCst, |waiting| waiting.checked_sub(1));
    }

    /// Returns whether one message waits, and no other.
    pub fn has_one(&self) -> bool {
        self.waiting.load(SeqCst) == 1
    }

    /// Counts a message that has come and takes `size` bytes of memory. Fails if that cannot be borne.
    pub fn arrived(&self, size: u64) -> Result<(), &'static str> {
        if self.expects(self.waiting.fetch_add(1, SeqCst)) {
            self.excess.store(0, SeqCst);
        }
        self.grown(size)
    }

    /// Counts another `size` bytes of the message that arrived last. Fails if that cannot be borne.
    pub fn grown(&self, size: u64) -> Result<(), &'static str> {
        let excess = self.excess.fetch_add(size, SeqCst) + size;
        if excess <= MAX_EXCESS || self.expects(self.waiting.load(SeqCst)) {
            return Ok(());
        }
        Err("it sent more messages than were asked for, faster than they are taken")
    }

    fn expects(&self, waiting: u64) -> bool {
        self.expected.get().is_none_or(|most| waiting <= *most)
    }

    /// Has `hook` called from now on with each channel that the broker closes, at once: before anybody is told who
    /// waits for something on it. It must be quick.
    pub fn on_channel_close(&self, hook: OnChannelClose) {
        let _ = self.on_channel_close.set(hook);
    }

    /// Returns whether the broker closed this channel.
    pub fn is_closed(&self, channel: u16) -> bool {
        lock(&self.closed).contains(&channel)
    }

    /// Takes note of a channel that the broker closed.
    pub(crate) fn channel_closed(&self, channel: u16, close: &Close) {
        lock(&self.closed).insert(channel);
        if let Some(hook) = self.on_channel_close.get() {
            hook(channel, close);
        }
    }

    /// Takes note of a channel that is open, perhaps with the number of one that was closed.
    pub(crate) fn channel_opened(&self, channel: u16) {
        lock(&self.closed).remove(&channel);
        if let Some(arrivals) = self.arrivals.get() {
            lock(arrivals).remove(&channel);
        }
    }

    /// Returns why the broker closed the connection, if it did.
    pub fn connection_close(&self) -> Option<&Close> {
        self.connection_close.get()
    }

    /// Takes note that the broker closed the connection.
    pub(crate) fn connection_closed(&self, close: Close) {
        let _ = self.connection_close.set(close);
    }

    /// Remembers from now on when each delivery comes, until [`Inbox::arrival`] takes it.
    pub fn record_arrivals(&self) {
        let _ = self.arrivals.set(Mutex::default());
    }

    /// Takes note of a delivery that comes by this channel.
    pub(crate) fn delivered(&self, channel: u16) {
        if let Some(arrivals) = self.arrivals.get() {
            lock(arrivals).entry(channel).or_default().push_back(Instant::now());
        }
    }

    /// Returns when the delivery came that is the next to be taken from this channel's consumer. To be called once for
    /// each. None if that is not recorded.
    pub fn arrival(&self, channel: u16) -> Option<Instant> {
        lock(self.arrivals.get()?).get_mut(&channel)?.pop_front()
    }

    /// Returns why reading ended, if it was because the peer broke the protocol's rules or flooded us.
    pub fn violation(&self) -> Option<&str> {
        self.violation.get().map(String::as_str)
    }

    /// Keeps the first reason for which reading ended.
    pub(crate) fn violated(&self, reason: String) {
        let _ = self.violation.set(reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn what_was_asked_for_may_have_any_size() {
        let inbox = Inbox::default();
        assert!((0..100).all(|_| inbox.arrived(MAX_EXCESS).is_ok()));
        let inbox = Inbox::default();
        inbox.expect_at_most(2);
        assert!(inbox.arrived(MAX_EXCESS).is_ok() && inbox.arrived(1).is_ok());
        assert!(inbox.grown(MAX_EXCESS).is_ok());
    }

    #[test]
    fn what_nobody_asked_for_has_a_limit() {
        let inbox = Inbox::default();
        inbox.expect_at_most(1);
        assert!(inbox.arrived(MAX_EXCESS).is_ok());
        assert!(inbox.arrived(1).is_ok() && inbox.arrived(MAX_EXCESS - 1).is_ok());
        assert!(inbox.arrived(1).is_err());
    }

    /// One more than expected is normal: it came before the one that was taken was acked.
    #[test]
    fn the_limit_begins_anew_when_what_was_not_asked_for_is_taken() {
        let inbox = Inbox::default();
        inbox.expect_at_most(1);
        assert!(inbox.arrived(1).is_ok());
        for _ in 0..10 {
            assert!(inbox.arrived(MAX_EXCESS).is_ok());
            inbox.taken();
        }
    }

    #[test]
    fn taking_what_was_not_counted_does_no_harm() {
        let inbox = Inbox::default();
        inbox.expect_at_most(0);
        inbox.taken();
        assert!(inbox.arrived(MAX_EXCESS + 1).is_err());
    }

    #[test]
    fn a_channel_that_was_closed_is_told_at_once_and_can_be_opened_again() {
        let inbox = Inbox::default();
        let told = Arc::new(Mutex::new(Vec::new()));
        let tell = Arc::clone(&told);
        inbox.on_channel_close(Box::new(move |channel, close| {
            lock(&tell).push((channel, close.code));
        }));
        let close = Close { code: 406, text: "no".into() };
        inbox.channel_closed(3, &close);
        assert_eq!(*lock(&told), [(3, 406)]);
        assert!(inbox.is_closed(3) && !inbox.is_closed(4));
        inbox.channel_opened(3);
        assert!(!inbox.is_closed(3));
    }

    #[test]
    fn arrivals_are_taken_in_their_order_and_cost_nothing_unless_asked_for() {
        let inbox = Inbox::default();
        inbox.delivered(1);
        assert_eq!(inbox.arrival(1), None);
        inbox.record_arrivals();
        inbox.delivered(1);
        inbox.delivered(2);
        inbox.delivered(1);
        let (first, second) = (inbox.arrival(1).unwrap(), inbox.arrival(1).unwrap());
        assert!(first <= second);
        assert_eq!(inbox.arrival(1), None);
        inbox.channel_opened(2);
        assert_eq!(inbox.arrival(2), None, "its channel is another one now");
    }
}
