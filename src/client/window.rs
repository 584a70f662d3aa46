//! The calls that are under way, and the order in which they leave: that of the input, or the one in which they
//! are finished.

use crate::cli;
use crate::client::call::{Call, Outcome, Tally};
use crate::client::deadline::Deadline;
use crate::client::input::MAX_BYTES;
use crate::client::pace::Servers;
use crate::error::Failure;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

/// How many calls may rest at a time: where so many fail, no more are made for now.
const MOST_RESTING: usize = 1_024;

/// Calls, oldest first. In input order the oldest is the next to leave, and whatever is finished earlier waits behind
/// it; so there are never more than `--in-flight`, whatever the length of the input, and no more are made while those
/// results have [`MAX_BYTES`]. Without an order, none waits for another. A call that rests takes no other's place. Without
/// a number, how many await a reply is bounded by a [`super::pace::Pace`] too.
#[derive(Debug)]
pub struct Window {
    calls: VecDeque<Call>,
    is_ordered: bool,
    most: usize,
    tally: Rc<Tally>,
}

impl Window {
    /// Makes a window without calls, of the size and with the order that `args` ask for.
    pub fn new(args: &cli::Client) -> Window {
        Window {
            calls: VecDeque::new(),
            is_ordered: !args.unordered,
            most: args.in_flight.most(),
            tally: Rc::new(Tally::new(args)),
        }
    }

    /// Returns what the calls come to. What bounds their arguments is the input.
    pub fn tally(&self) -> &Rc<Tally> {
        &self.tally
    }

    /// Adds a call, which is the newest.
    pub fn push(&mut self, call: Call) -> &mut Call {
        self.calls.push_back(call);
        let newest = self.calls.len() - 1;
        &mut self.calls[newest]
    }

    /// Returns the calls that await a reply, oldest first.
    pub fn pending(&self) -> impl DoubleEndedIterator<Item = &Call> {
        self.calls.iter().filter(|call| call.is_pending())
    }

    /// Returns the calls that await a reply, oldest first, to be changed.
    pub fn pending_mut(&mut self) -> impl DoubleEndedIterator<Item = &mut Call> {
        self.calls.iter_mut().filter(|call| call.is_pending())
    }

    /// Ends the rest of the calls whose next attempt is due `by` then, the first of them first, for as many as have a
    /// turn: the others rest on.
    pub fn wake(&mut self, by: Instant) {
        while let Some(due) = self.next_due().filter(|due| *due <= by) {
            if let Some(call) = self.calls.iter_mut().find(|call| call.due() == Some(due)) {
                call.wake(by);
            }
        }
    }

    /// Finishes every call that has no outcome, with `failure`.
    pub fn give_up(&mut self, failure: &Failure) {
        self.calls.iter_mut().for_each(|call| call.give_up(failure.clone()));
    }

    /// Returns whether a call rests after an attempt that failed, until its next one.
    pub fn has_resting(&self) -> bool {
        self.tally.resting.get() > 0
    }

    /// Returns when the next attempt is due of the calls that rest, if one has a turn now.
    pub fn next_due(&self) -> Option<Instant> {
        match self.has_resting() && self.has_turn() {
            true => self.calls.iter().filter_map(Call::due).min(),
            false => None,
        }
    }

    /// Returns the first deadline of the pending calls.
    pub fn first_deadline(&self) -> Option<Deadline> {
        let mut deadlines = self.pending().map(|call| call.deadline);
        match self.tally.retried.get() {
            // All calls have the same time limit, so that the oldest is the first.
            0 => deadlines.next(),
            _ => deadlines.min(),
        }
    }

    /// Returns the last deadline of the calls without an outcome.
    pub fn last_deadline(&self) -> Option<Deadline> {
        let unfinished = self.calls.iter().filter(|call| !call.is_finished());
        let mut deadlines = unfinished.map(Call::last_deadline);
        match self.tally.retried.get() {
            0 => deadlines.next_back(),
            _ => deadlines.max(),
        }
    }

    /// Returns whether there are no calls, finished or not.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Returns whether another call may be made.
    pub fn has_room(&self) -> bool {
        let resting = self.tally.resting.get();
        self.calls.len() - resting < self.most
            && resting < MOST_RESTING
            && self.tally.result_bytes.get() < MAX_BYTES
            && self.has_turn()
    }

    /// Returns whether another call may await a reply, of those that rest or a new one. Whatever is finished and waits
    /// behind a call that rests does not keep that one from being made again.
    ///
    /// A call that came back, since no queue is there for it, keeps no server busy: beside one of them there is as much
    /// room as without it. But where many came back the next ones may, too, and their time would run.
    fn has_turn(&self) -> bool {
        let Tally { awaiting, finished, resting, .. } = &*self.tally;
        let pending = self.calls.len() - finished.get() - resting.get();
        let came_back = pending.saturating_sub(awaiting.get());
        pending < self.most
            && self.tally.has_room(awaiting.get())
            && self.tally.has_room(came_back.saturating_sub(1))
    }

    /// Returns whether another call would have its turn if there were more servers.
    pub fn lacks_servers(&self) -> bool {
        let awaiting = self.tally.awaiting.get();
        awaiting < self.most && !self.tally.has_room(awaiting)
    }

    /// Takes how many servers there are; `again`, if there were none for a while.
    pub fn served_by(&mut self, servers: Servers, again: bool) {
        self.tally.served_by(servers, again);
    }

    /// Takes out the next finished call: the oldest of all, or without an order the oldest of those that are
    /// finished.
    pub fn take_next(&mut self) -> Option<(Call, Outcome)> {
        if self.tally.finished.get() == 0 {
            return None;
        }
        let next = match self.is_ordered {
            true => 0,
            false => self.calls.iter().position(Call::is_finished)?,
        };
        let outcome = self.calls.get_mut(next)?.take_outcome()?;
        Some((self.calls.remove(next)?, outcome))
    }

    /// Takes out every finished call, and drops the others.
    pub fn take_all(&mut self) -> impl Iterator<Item = (Call, Outcome)> {
        std::mem::take(&mut self.calls).into_iter().filter_map(|mut call| {
            let outcome = call.take_outcome()?;
            Some((call, outcome))
        })
    }

    /// Drops the calls that are given up if one has failed: in input order all that are behind it, and without an
    /// order all that are not finished either. Returns how many they are, or None if none has failed.
    pub fn end_at_first_failure(&mut self) -> Option<usize> {
        let first = self.calls.iter().position(Call::has_failed)?;
        let before = self.calls.len();
        self.calls.truncate(first + 1);
        if !self.is_ordered {
            self.calls.retain(Call::is_finished);
        }
        Some(before - self.calls.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::input::Argument;
    use crate::error::FailureKind;
    use clap::Parser;
    use std::time::Duration;

    /// Returns a window of three, with the calls a, b and c.
    fn window(options: &[&str]) -> Window {
        let args = [&["rpc_client", "--in-flight=3"], options, &["fib"]].concat();
        let mut window = Window::new(&cli::Client::parse_from(args));
        for name in ["a", "b", "c"] {
            push(&mut window, name);
        }
        window
    }

    fn push(window: &mut Window, name: &str) {
        let argument = Argument::new(name.into(), None);
        let args = cli::Client::parse_from(["rpc_client", "--retries=1", "fib"]);
        window.push(Call::new(argument, Instant::now(), &args, &Rc::clone(window.tally())));
    }

    fn finish(window: &mut Window, name: &str, outcome: Outcome) {
        let is_it = |call: &&mut Call| **call.argument.bytes == *name.as_bytes();
        window.pending_mut().find(is_it).unwrap().finish(outcome);
    }

    fn names(calls: impl Iterator<Item = Call>) -> Vec<String> {
        calls.map(|call| String::from_utf8(call.argument.bytes.to_vec()).unwrap()).collect()
    }

    /// The names of those that leave now.
    fn take(window: &mut Window) -> Vec<String> {
        names(std::iter::from_fn(|| Some(window.take_next()?.0)))
    }

    fn failure() -> Outcome {
        Err(Failure::new(FailureKind::BadReply, "it failed"))
    }

    #[test]
    fn in_order_the_oldest_holds_the_others() {
        let mut window = window(&[]);
        finish(&mut window, "b", Ok("2".into()));
        assert_eq!(take(&mut window), [""; 0]);
        assert!(!window.has_room());
        finish(&mut window, "a", Ok("1".into()));
        assert_eq!(take(&mut window), ["a", "b"]);
        assert!(window.has_room());
    }

    #[test]
    fn without_an_order_each_leaves_when_it_is_finished() {
        let mut window = window(&["--unordered"]);
        finish(&mut window, "c", Ok("3".into()));
        assert_eq!(take(&mut window), ["c"]);
        assert!(window.has_room());
        push(&mut window, "d");
        assert!(!window.has_room());
        finish(&mut window, "b", failure());
        assert_eq!(take(&mut window), ["b"]);
        assert_eq!(window.pending().count(), 2);
    }

    #[test]
    fn without_an_order_the_first_failure_that_came_gives_up_all_that_have_no_result() {
        let mut window = window(&["--unordered"]);
        assert_eq!(window.end_at_first_failure(), None);
        finish(&mut window, "b", failure());
        assert_eq!(window.end_at_first_failure(), Some(2));
        assert_eq!(take(&mut window), ["b"]);
        assert!(window.is_empty());
    }

    #[test]
    fn what_the_calls_come_to_is_right_however_they_leave() {
        let mut window = window(&[]);
        for (name, result) in [("a", "1"), ("b", "22"), ("c", "333")] {
            finish(&mut window, name, Ok(result.into()));
        }
        let totals =
            |window: &Window| (window.tally().finished.get(), window.tally().result_bytes.get());
        assert_eq!(totals(&window), (3, 6));
        let (call, _) = window.take_next().unwrap();
        assert_eq!(totals(&window), (2, 6), "the result is still there");
        drop(call);
        assert_eq!(totals(&window), (2, 5));
        assert_eq!(window.take_all().count(), 2);
        assert_eq!(totals(&window), (0, 0));
    }

    #[test]
    fn a_call_that_failed_for_the_time_being_rests_and_holds_no_other() {
        let for_now = || Err(Failure::new(FailureKind::TimedOut, "it failed"));
        let mut window = window(&["--unordered"]);
        let (first, last) = (window.first_deadline().unwrap(), window.last_deadline().unwrap());
        assert!(window.next_due().is_none() && !window.has_room());
        finish(&mut window, "a", for_now());
        assert_eq!(take(&mut window), [""; 0]);
        assert_eq!(window.pending().count(), 2);
        assert!(window.has_room() && window.has_resting());
        assert!(window.first_deadline().unwrap() > first, "nobody waits for it");
        assert!(window.last_deadline().unwrap() > last, "its next attempt has its whole time");

        let due = window.next_due().unwrap();
        window.wake(due - Duration::from_nanos(1));
        assert!(window.has_resting(), "its time has not come");
        window.wake(due);
        assert!(!window.has_resting() && !window.has_room());
        assert_eq!(window.pending().filter(|call| call.is_unsent).count(), 1);
        finish(&mut window, "a", for_now());
        assert_eq!(take(&mut window), ["a"], "it had two attempts");
    }

    /// Those that are finished and wait behind it, in input order, take no place from it.
    #[test]
    fn calls_that_rest_are_made_again_as_there_is_room() {
        for options in [&[][..], &["--unordered"]] {
            let mut window = window(options);
            for name in ["a", "b"] {
                finish(&mut window, name, Err(Failure::new(FailureKind::TimedOut, "it failed")));
            }
            push(&mut window, "d");
            push(&mut window, "e");
            let later = Instant::now() + Duration::from_secs(3600);
            for (finished, resting) in [("c", 2), ("d", 1)] {
                window.wake(later);
                assert_eq!((window.pending().count(), window.tally().resting.get()), (3, resting));
                assert!(window.next_due().is_none(), "there is no room");
                finish(&mut window, finished, Ok("1".into()));
                assert!(window.next_due().is_some());
            }
            window.wake(later);
            assert_eq!((window.pending().count(), window.has_resting()), (3, false));
        }
    }

    #[test]
    fn the_end_of_a_batch_does_not_wait_for_what_rests() {
        let mut window = window(&[]);
        finish(&mut window, "b", Err(Failure::new(FailureKind::Blocked, "it failed")));
        finish(&mut window, "c", Ok("3".into()));
        window.give_up(&Failure::new(FailureKind::TimedOut, "no more"));
        assert_eq!(take(&mut window), ["a", "b", "c"]);
        assert!(!window.has_resting());
    }
}
