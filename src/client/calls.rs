//! The client's calls between input and output: which are awaited, which are done, and whose turn
//! it is. Pure bookkeeping; what is published, received and written is the client's business.

use crate::error::Failure;
use std::collections::VecDeque;
use std::time::Instant;

/// One call, from its argument to its outcome.
#[derive(Debug)]
pub struct Call {
    /// The argument, as it is sent.
    pub argument: Vec<u8>,
    /// Its line of standard input, from 1, if that is where it came from.
    pub line: Option<u64>,
    /// When it was begun, to be published at once.
    pub started: Instant,
    /// When its outcome was known.
    pub ended: Instant,
    /// When to give up. None: never.
    pub deadline: Option<Instant>,
    /// How often it was published: 1 unless a connection was lost, or the broker refused it.
    pub attempts: u32,
    /// That of the last attempt. An earlier attempt's reply is not awaited any more.
    pub correlation_id: String,
    /// Which message of its channel the last attempt was, as publisher confirms count, until the
    /// broker has confirmed or refused it.
    pub unconfirmed: Option<u64>,
    /// Whether it refused it: it is to go out again.
    pub refused: bool,
    /// None while it is awaited.
    pub outcome: Option<Result<String, Failure>>,
}

impl Call {
    /// Sets its outcome.
    pub fn end(&mut self, outcome: Result<String, Failure>) {
        self.ended = Instant::now();
        self.outcome = Some(outcome);
    }
}

/// Calls in input order. The oldest of them is the next to be told, and whatever comes in earlier
/// waits behind it: so there are never more than `in_flight`, whatever the length of the input.
#[derive(Debug)]
pub struct Batch {
    calls: VecDeque<Call>,
    in_flight: usize,
}

impl Batch {
    /// An empty batch, with room for `in_flight` calls.
    pub fn new(in_flight: usize) -> Batch {
        Batch { calls: VecDeque::new(), in_flight }
    }

    /// Whether there is room for another call.
    pub fn has_room(&self) -> bool {
        self.calls.len() < self.in_flight
    }

    /// Whether no call is left.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Adds a call behind the others, where it stays until it is done and told.
    pub fn push(&mut self, call: Call) -> &mut Call {
        self.calls.push_back(call);
        let newest = self.calls.len() - 1;
        &mut self.calls[newest]
    }

    /// The calls that are still awaited, oldest first.
    pub fn awaited(&mut self) -> impl Iterator<Item = &mut Call> {
        self.calls.iter_mut().filter(|call| call.outcome.is_none())
    }

    /// The awaited call with this correlation id.
    pub fn find(&mut self, correlation_id: Option<&str>) -> Option<&mut Call> {
        let id = correlation_id?;
        self.awaited().find(|call| call.correlation_id == id)
    }

    /// When the first of the awaited calls has to be given up. All calls have the same timeout:
    /// that is the oldest.
    pub fn deadline(&self) -> Option<Instant> {
        self.calls.iter().find(|call| call.outcome.is_none())?.deadline
    }

    /// Takes the oldest call out, once it is done, and its outcome.
    pub fn pop_done(&mut self) -> Option<(Call, Result<String, Failure>)> {
        let outcome = self.calls.front_mut()?.outcome.take()?;
        Some((self.calls.pop_front()?, outcome))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn call(id: &str, deadline: Instant) -> Call {
        Call {
            argument: Vec::new(),
            line: None,
            started: deadline,
            ended: deadline,
            deadline: Some(deadline),
            attempts: 1,
            correlation_id: id.into(),
            unconfirmed: Some(1),
            refused: false,
            outcome: None,
        }
    }

    #[test]
    fn results_come_out_in_input_order_and_the_window_is_bounded() {
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let mut batch = Batch::new(2);
        batch.push(call("a", now));
        assert!(batch.has_room());
        batch.push(call("b", later));
        assert!(!batch.has_room());

        batch.find(Some("b")).unwrap().end(Ok("2".into()));
        assert!(batch.find(Some("b")).is_none(), "a second reply is a duplicate");
        assert!(batch.find(Some("x")).is_none() && batch.find(None).is_none());
        assert!(batch.pop_done().is_none(), "a comes first");
        assert!(!batch.has_room(), "b waits behind a");
        assert_eq!(batch.deadline(), Some(now));

        batch.find(Some("a")).unwrap().end(Ok("1".into()));
        assert_eq!(batch.deadline(), None);
        let told: Vec<_> = std::iter::from_fn(|| batch.pop_done()?.1.ok()).collect();
        assert_eq!(told, ["1", "2"]);
        assert!(batch.is_empty());
    }
}
