//! Which callers are still there, by what looks at the queues that await their replies told. This decides whom to look
//! for, and remembers who is gone; nothing here does I/O, and nothing waits.
//!
//! A client's reply queue is there as long as the client's connection, so that a look at the queue tells whether
//! anybody waits. RabbitMQ recommends that look itself ("Direct Reply-to"). It has its price: the look at a queue that is
//! another connection's alone is refused, which costs its channel, and which RabbitMQ logs. So a caller is looked for only
//! once its calls take a second or more, and then once a second.

use crate::mutex::lock;
use crate::terminal::text::{count, short_queue};
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a caller has to be known before it is looked for, and the shortest time between two looks for it.
const INTERVAL: Duration = Duration::from_secs(1);

/// The shortest time between two looks, whomever for.
const PACE: Duration = Duration::from_millis(20);

/// How long a caller is known of whom no call was seen.
const FORGOTTEN: Duration = Duration::from_secs(5);

/// How long no request of a caller that is gone has come when it is told how many did.
const QUIET: Duration = Duration::from_secs(1);

/// How many callers are known at a time, and how many of those that are gone.
const CALLERS_MAX: usize = 1024;

/// What the names of queues begin with that clients declare without a name.
const GENERATED: &str = "amq.gen-";

/// The prefix of the names of direct reply-to (RabbitMQ, "Direct Reply-to").
const DIRECT_REPLY_TO: &str = "amq.rabbitmq.reply-to.";

/// Returns whether this is a name of direct reply-to. Of those, a broken one ends its connection in RabbitMQ 3.10, also if
/// it is only looked at.
pub fn is_direct_reply_to(queue: &str) -> bool {
    queue.starts_with(DIRECT_REPLY_TO)
}

/// Returns whether the broker made this name up. No queue has such a name a second time, and no client can choose one.
pub fn is_made_up(queue: &str) -> bool {
    queue.starts_with(GENERATED) || is_direct_reply_to(queue)
}

/// What a look at a queue told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// The queue is there.
    There,
    /// The queue is not there, so that nobody awaits anything in it.
    Gone,
    /// The broker says that this queue is none of our business.
    Refused,
    /// The look cost the connection that it was made on.
    Deadly,
    /// The broker has told nothing in time.
    Unknown,
}

/// The callers whose calls were seen of late, each known by the queue that awaits its replies.
#[derive(Debug, Default)]
pub struct Callers {
    known: HashMap<Arc<str>, Caller>,
    last_sample: Option<Instant>,
    last_look: Option<Instant>,
    /// Whether queues with a generated name are not looked at any more, since that was refused.
    are_generated_refused: bool,
}

#[derive(Debug)]
struct Caller {
    first_seen: Instant,
    last_seen: Instant,
    last_look: Option<Instant>,
    /// Whether it is never to be looked for again.
    is_excluded: bool,
}

impl Caller {
    /// Returns when it is to be looked for.
    fn due(&self) -> Instant {
        self.last_look.unwrap_or(self.first_seen) + INTERVAL
    }
}

impl Callers {
    /// Takes note of the callers of all calls that are `running`, with the times when these began, and forgets those of
    /// whom no call was seen for some time.
    pub fn sample(&mut self, running: &[(Arc<str>, Instant)], now: Instant) {
        self.last_sample = Some(now);
        for (reply_to, _) in running {
            if let Some(caller) = self.known.get_mut(reply_to) {
                caller.last_seen = now;
            }
        }
        let is_seen = |caller: &Caller| now.duration_since(caller.last_seen) < FORGOTTEN;
        self.known.retain(|_, caller| caller.is_excluded || is_seen(caller));
        for (reply_to, began) in running {
            self.see(reply_to, *began, now);
        }
    }

    fn see(&mut self, reply_to: &Arc<str>, began: Instant, now: Instant) {
        if self.known.contains_key(reply_to) {
            return;
        }
        if self.known.len() >= CALLERS_MAX {
            // It has a call, and nobody is looked for who has none.
            self.known.retain(|_, caller| caller.last_seen == now && !caller.is_excluded);
        }
        if self.known.len() < CALLERS_MAX {
            let caller =
                Caller { first_seen: began, last_seen: now, last_look: None, is_excluded: false };
            self.known.insert(Arc::clone(reply_to), caller);
        }
    }

    /// Returns the caller that is to be looked for next, and when, of those who had a call at the last sample. None:
    /// nobody is.
    pub fn next(&self) -> Option<(Arc<str>, Instant)> {
        let candidates = self.known.iter().filter(|(reply_to, caller)| {
            let is_refused = self.are_generated_refused && reply_to.starts_with(GENERATED);
            let is_busy = Some(caller.last_seen) == self.last_sample;
            is_busy && !is_refused && !caller.is_excluded
        });
        let (reply_to, caller) = candidates.min_by_key(|(_, caller)| caller.due())?;

        let free = self.last_look.map(|last| last + PACE);
        Some((Arc::clone(reply_to), free.map_or(caller.due(), |free| caller.due().max(free))))
    }

    /// Takes note that a caller is looked for.
    pub fn look(&mut self, reply_to: &str, now: Instant) {
        self.last_look = Some(now);
        if let Some(caller) = self.known.get_mut(reply_to) {
            caller.last_look = Some(now);
        }
    }

    /// Takes note of what a look told. Returns whether it is the first one that was refused.
    pub fn looked(&mut self, reply_to: &str, told: Look) -> bool {
        match told {
            Look::Refused if reply_to.starts_with(GENERATED) => {
                return !std::mem::replace(&mut self.are_generated_refused, true);
            }
            Look::Refused | Look::Deadly => {
                if let Some(caller) = self.known.get_mut(reply_to) {
                    caller.is_excluded = true;
                }
            }
            Look::There | Look::Gone | Look::Unknown => {}
        }
        false
    }
}

/// The callers that are gone, for all who deal with their requests.
#[derive(Debug, Default)]
pub struct GoneCallers {
    /// Whether there were any, so that nobody has to look it up as long as there were not.
    are_there: AtomicBool,
    /// Whether something is to be told of them.
    have_reports: AtomicBool,
    state: Mutex<GoneState>,
}

#[derive(Debug, Default)]
struct GoneState {
    tallies: HashMap<Box<str>, Tally>,
    /// The oldest first.
    order: VecDeque<Box<str>>,
}

/// What became of the requests of one of them.
#[derive(Debug)]
struct Tally {
    /// Whether a call of its was told of.
    is_told: bool,
    /// Calls that were ended, and not told of.
    ended: u32,
    /// Requests that were dropped before they were begun.
    dropped: u32,
    last: Instant,
}

impl GoneCallers {
    /// Takes note that a caller is gone. Returns whether that is news.
    pub fn insert(&self, reply_to: &str, now: Instant) -> bool {
        let mut state = lock(&self.state);
        if state.tallies.contains_key(reply_to) {
            return false;
        }
        if state.order.len() >= CALLERS_MAX
            && let Some(oldest) = state.order.pop_front()
        {
            state.tallies.remove(&oldest);
        }
        state.order.push_back(reply_to.into());
        let tally = Tally { is_told: false, ended: 0, dropped: 0, last: now };
        state.tallies.insert(reply_to.into(), tally);
        self.are_there.store(true, SeqCst);
        true
    }

    /// Takes note that there is a queue of that name again.
    pub fn remove(&self, reply_to: &str) {
        if !self.are_there.load(SeqCst) {
            return;
        }
        let mut state = lock(&self.state);
        if state.tallies.remove(reply_to).is_some() {
            state.order.retain(|name| **name != *reply_to);
        }
    }

    /// Returns whether a request whose reply this queue awaits can be dropped, and counts it as dropped then. It cannot if
    /// the client chose the name: another client, with a queue of the same name, may have sent it since.
    pub fn drop_request(&self, reply_to: &str, now: Instant) -> bool {
        if !self.are_there.load(SeqCst) || !is_made_up(reply_to) {
            return false;
        }
        let mut state = lock(&self.state);
        let Some(tally) = state.tallies.get_mut(reply_to) else { return false };
        tally.dropped += 1;
        tally.last = now;
        self.have_reports.store(true, SeqCst);
        true
    }

    /// Takes note that a call was ended since its caller is gone. Returns whether it is the first one of that caller's,
    /// which is told of at once.
    pub fn end_call(&self, reply_to: &str, now: Instant) -> bool {
        let mut state = lock(&self.state);
        let Some(tally) = state.tallies.get_mut(reply_to) else { return true };
        if !std::mem::replace(&mut tally.is_told, true) {
            return true;
        }
        tally.ended += 1;
        tally.last = now;
        self.have_reports.store(true, SeqCst);
        false
    }

    /// Returns whether something is to be told, now or later.
    pub fn have_reports(&self) -> bool {
        self.have_reports.load(SeqCst)
    }

    /// Returns a sentence for each caller of whom more is to be told than its first call, if nothing more has come of it
    /// since `quiet_since`.
    fn reports(&self, quiet_since: Option<Instant>) -> Vec<String> {
        if !self.have_reports() {
            return Vec::new();
        }
        let mut state = lock(&self.state);
        let (mut reports, mut is_left) = (Vec::new(), false);
        for (reply_to, tally) in &mut state.tallies {
            if (tally.ended, tally.dropped) == (0, 0) {
                continue;
            }
            if quiet_since.is_some_and(|since| since < tally.last) {
                is_left = true;
                continue;
            }
            reports.push(tally.report(reply_to));
            (tally.ended, tally.dropped) = (0, 0);
        }
        self.have_reports.store(is_left, SeqCst);
        reports
    }

    /// Returns what is to be told of those of whom nothing has come for some time.
    pub fn reports_of_quiet(&self, now: Instant) -> Vec<String> {
        self.reports(now.checked_sub(QUIET))
    }

    /// Returns all that is to be told.
    pub fn all_reports(&self) -> Vec<String> {
        self.reports(None)
    }
}

impl Tally {
    fn report(&self, reply_to: &str) -> String {
        let queue = short_queue(reply_to);
        let ended = count(self.ended, "more call was ended", "more calls were ended");
        let dropped = count(self.dropped, "request was dropped", "requests were dropped");
        let what = match (self.ended, self.dropped) {
            (_, 0) => ended,
            (0, _) => dropped,
            _ => format!("{ended}, {dropped}"),
        };
        format!("nobody waits at {queue} any more: {what}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    fn name(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    #[test]
    fn a_caller_is_looked_for_after_a_second_and_then_once_a_second() {
        let (mut callers, began) = (Callers::default(), Instant::now());
        let queue = name("amq.gen-1");
        assert_eq!(callers.next(), None);

        let mut looks = Vec::new();
        for elapsed in (0..5_000).step_by(50).map(|ms| ms * MILLISECOND) {
            let now = began + elapsed;
            callers.sample(&[(Arc::clone(&queue), began)], now);
            if callers.next().is_some_and(|(_, due)| due <= now) {
                callers.look(&queue, now);
                assert!(!callers.looked(&queue, Look::There));
                looks.push(elapsed.as_millis());
            }
        }
        assert_eq!(looks, [1_000, 2_000, 3_000, 4_000]);
    }

    #[test]
    fn a_single_short_call_costs_no_look_and_a_batch_of_them_does() {
        let (mut callers, began) = (Callers::default(), Instant::now());
        let at = |ms: u32| began + ms * MILLISECOND;
        callers.sample(&[(name("amq.gen-1"), began)], at(900));
        assert_eq!(callers.next().map(|(_, due)| due), Some(began + INTERVAL));
        callers.sample(&[], at(1_000));
        assert_eq!(callers.next(), None, "its call is over");

        callers.sample(&[(name("amq.gen-1"), at(1_200))], at(1_250));
        assert_eq!(callers.next().map(|(_, due)| due), Some(began + INTERVAL));
        callers.sample(&[], at(1_250) + FORGOTTEN);
        assert!(callers.known.is_empty());
    }

    #[test]
    fn the_one_that_waits_longest_is_looked_for_first_and_not_too_many_at_once() {
        let (mut callers, now) = (Callers::default(), Instant::now());
        let then = now + 3 * INTERVAL;
        let calls = [(1, "b"), (0, "a"), (2, "c")];
        callers.sample(&calls.map(|(ms, queue)| (name(queue), now + ms * MILLISECOND)), then);
        let mut order = Vec::new();
        for nth in 0..3 {
            let (queue, due) = callers.next().unwrap();
            assert_eq!(due <= then, nth == 0, "{queue}");
            assert!(due <= then + PACE);
            callers.look(&queue, then);
            order.push(queue);
        }
        assert_eq!(order, [name("a"), name("b"), name("c")]);
    }

    #[test]
    fn what_is_refused_or_deadly_is_not_looked_at_again() {
        let (mut callers, now) = (Callers::default(), Instant::now());
        let then = now + INTERVAL;
        let see = |callers: &mut Callers, queue| {
            callers.sample(&[(name(queue), now)], then);
            callers.next().is_some()
        };
        assert!(see(&mut callers, "chosen"));
        assert!(!callers.looked("chosen", Look::Refused), "it says nothing of others");
        assert!(!see(&mut callers, "chosen"));

        let direct = "amq.rabbitmq.reply-to.x.y";
        assert!(see(&mut callers, direct));
        callers.looked(direct, Look::Deadly);
        assert!(!see(&mut callers, direct));
        callers.sample(&[], then + 2 * FORGOTTEN);
        assert!(!see(&mut callers, direct), "for good");

        assert!(see(&mut callers, "amq.gen-1"));
        assert!(callers.looked("amq.gen-1", Look::Refused), "the first one is told");
        assert!(!see(&mut callers, "amq.gen-2") && !callers.looked("amq.gen-2", Look::Refused));
        assert!(see(&mut callers, "another"));
    }

    #[test]
    fn what_is_known_is_bounded() {
        let (mut callers, gone, now) = (Callers::default(), GoneCallers::default(), Instant::now());
        for number in 0..=CALLERS_MAX {
            callers.see(&name(&number.to_string()), now, now);
            gone.insert(&format!("amq.gen-{number}"), now);
        }
        assert_eq!(callers.known.len(), CALLERS_MAX);
        assert_eq!(lock(&gone.state).tallies.len(), CALLERS_MAX);
        assert!(!gone.drop_request("amq.gen-0", now) && gone.drop_request("amq.gen-1", now));

        for caller in callers.known.values_mut() {
            caller.is_excluded = true;
        }
        callers.see(&name("another"), now, now);
        assert_eq!(callers.known.len(), 1);
    }

    /// However many others had short calls of late.
    #[test]
    fn a_caller_with_a_long_call_is_looked_for_among_many_with_short_ones() {
        let (mut callers, began) = (Callers::default(), Instant::now());
        let long = (name("long"), began);
        let short = |number: usize| (name(&number.to_string()), began);
        callers.sample(&(0..CALLERS_MAX).map(short).collect::<Vec<_>>(), began);
        let then = began + INTERVAL;
        callers.sample(&[short(0), long], then);
        for queue in ["0", "long"] {
            assert!(callers.known.contains_key(queue), "{queue}");
            callers.look(&callers.next().unwrap().0, then);
        }
        assert!(callers.known.values().all(|caller| caller.last_look == Some(then)));
    }

    #[test]
    fn one_call_of_a_caller_that_is_gone_is_told_of_and_the_others_are_counted() {
        let (gone, now) = (GoneCallers::default(), Instant::now());
        let (queue, later) = ("amq.gen-1", now + 2 * QUIET);
        assert!(!gone.drop_request(queue, now), "it is there");
        assert!(gone.insert(queue, now) && !gone.insert(queue, now));
        assert!(gone.end_call(queue, now));
        assert!(!gone.have_reports());

        assert!(!gone.end_call(queue, now) && gone.drop_request(queue, now));
        assert!(gone.drop_request(queue, now));
        assert_eq!(gone.reports_of_quiet(now), [""; 0], "more may come");
        let report =
            "nobody waits at amq.gen-1 any more: 1 more call was ended, 2 requests were dropped";
        assert_eq!(gone.reports_of_quiet(later), [report]);
        assert!(!gone.have_reports());
        assert_eq!(gone.all_reports(), [""; 0]);

        assert!(gone.drop_request(queue, later));
        let report = "nobody waits at amq.gen-1 any more: 1 request was dropped";
        assert_eq!(gone.all_reports(), [report]);
    }

    #[test]
    fn a_name_that_a_client_chose_can_be_anothers_and_come_back() {
        let (gone, now) = (GoneCallers::default(), Instant::now());
        assert!(gone.insert("replies", now));
        assert!(!gone.drop_request("replies", now));
        assert!(gone.end_call("replies", now) && !gone.end_call("replies", now));
        gone.remove("replies");
        assert!(gone.insert("replies", now) && gone.end_call("replies", now));
    }
}
