//! A count of what has come in and was not taken yet.
//!
//! The client library queues what comes for its user without a bound. A broker, or a stranger who
//! floods a queue, could fill the memory so.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

/// How much memory may be taken by what nobody asked for, in bytes.
const MAX_EXCESS: u64 = 16 << 20;

/// What the thread that reads a connection and those that take messages from it both know.
#[derive(Debug, Default)]
pub struct Inbox {
    /// How many came and were not taken.
    waiting: AtomicU64,
    /// How many may wait, however large they are. Until it is known: any number.
    expected: OnceLock<u64>,
    /// How many bytes came since no more than that waited.
    excess: AtomicU64,
    violation: OnceLock<String>,
}

impl Inbox {
    /// From now on, for good, no more than `most` messages are expected to wait at any time: deliveries, returned
    /// messages, publisher confirms and notices of a blocked connection, all together. More may come
    /// for a moment, since the broker does not know when one is taken; but when more wait, and they
    /// came with more than 16 MiB, the connection ends.
    pub fn expect_at_most(&self, most: u64) {
        let _ = self.expected.set(most);
    }

    /// To be called for each message that was taken from one of the connection's receivers.
    pub fn taken(&self) {
        let _ = self.waiting.fetch_update(SeqCst, SeqCst, |waiting| waiting.checked_sub(1));
    }

    /// Whether one message waits.
    pub fn has_one(&self) -> bool {
        self.waiting.load(SeqCst) == 1
    }

    /// A message has come that takes `size` bytes of memory. Fails if that cannot be borne.
    pub fn arrived(&self, size: u64) -> Result<(), &'static str> {
        if self.expects(self.waiting.fetch_add(1, SeqCst)) {
            self.excess.store(0, SeqCst);
        }
        self.grown(size)
    }

    /// The message that arrived last takes another `size` bytes. Fails if that cannot be borne.
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

    /// Why reading ended, if it was because the peer broke the protocol's rules or flooded us.
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
}
