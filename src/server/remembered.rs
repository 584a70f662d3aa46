//! What a server remembers of requests that come again: which of them it computed too long for the broker, whose reply
//! was too large, and whose reply was out when a channel or a connection ended.

use crate::amqp::errors::ChannelFault;
use crate::mutex::lock;
use crate::protocol::Request;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// How many requests are remembered. The oldest goes when there are more.
const REQUESTS_MAX: usize = 65_536;

/// How many of the requests that a worker has answered are kept track of, however large its prefetch is.
const ANSWERED_MAX: usize = 1024;

/// How much of a body tells it from others, in bytes: ids do, as a rule.
const BODY_START: usize = 1024;

/// Tells a request from others, also when it comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(u64);

/// What is remembered of a request. Of two, the later in this list counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// The request's reply was out when its channel or its connection ended, for whatever reason.
    Answered,
    /// The request's reply was out when the broker ended the connection with an error.
    Suspect,
    /// The request's reply was larger than the broker takes.
    TooLarge {
        /// The size of the reply, in bytes.
        length: usize,
        /// The largest body that the broker takes, in bytes.
        limit: usize,
    },
    /// The request was computed for longer than the broker's `consumer_timeout`.
    TimedOut,
}

/// The requests that are remembered.
#[derive(Debug, Default)]
pub struct Remembered {
    hasher: RandomState,
    requests: Mutex<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    memories: HashMap<RequestId, Memory>,
    /// The oldest first.
    order: VecDeque<RequestId>,
}

impl Remembered {
    /// Returns what tells this request from others.
    pub fn id(&self, request: &Request<'_>) -> RequestId {
        let start = &request.argument[..request.argument.len().min(BODY_START)];
        let ids = (request.correlation_id, request.reply_to, request.procedure);
        RequestId(self.hasher.hash_one((ids, request.argument.len(), start)))
    }

    /// Remembers this of a request, unless more than that is remembered of it.
    pub fn insert(&self, id: RequestId, memory: Memory) {
        let mut requests = lock(&self.requests);
        if requests.memories.get(&id).is_some_and(|known| *known >= memory) {
            return;
        }
        if requests.memories.insert(id, memory).is_some() {
            return;
        }
        requests.order.push_back(id);
        if requests.order.len() > REQUESTS_MAX
            && let Some(oldest) = requests.order.pop_front()
        {
            requests.memories.remove(&oldest);
        }
    }

    /// Returns what is remembered of a request.
    pub fn get(&self, id: RequestId) -> Option<Memory> {
        lock(&self.requests).memories.get(&id).copied()
    }

    /// Forgets whose reply was too large: another broker may take more.
    pub fn forget_sizes(&self) {
        let mut requests = lock(&self.requests);
        let is_size = |memory: &Memory| matches!(memory, Memory::TooLarge { .. });
        requests.memories.retain(|_, memory| !is_size(memory));
        let Requests { memories, order } = &mut *requests;
        order.retain(|id| memories.contains_key(id));
    }
}

/// The requests that a worker has in hand, as far as the broker knows.
#[derive(Debug)]
pub struct InHand {
    most_answered: usize,
    is_closed: AtomicBool,
    state: Mutex<InHandState>,
}

#[derive(Debug, Default)]
struct InHandState {
    computed: Option<Computed>,
    /// The requests that were answered and of which the broker may not have the ack, with the sizes of the replies.
    answered: VecDeque<(RequestId, usize)>,
}

/// A request that is computed.
#[derive(Debug, Clone, Copy)]
struct Computed {
    id: RequestId,
    arrived: Instant,
    began: Instant,
}

impl InHand {
    /// Returns no requests yet, for a worker with this `prefetch`: no more than that are unacknowledged at a time.
    pub fn new(prefetch: u16) -> InHand {
        let most_answered = match prefetch {
            0 => ANSWERED_MAX,
            some => usize::from(some).min(ANSWERED_MAX),
        };
        InHand { most_answered, is_closed: AtomicBool::new(false), state: Mutex::default() }
    }

    /// Returns whether the broker has closed the worker's channel. The channel's number can be another worker's by now.
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(SeqCst)
    }

    /// Takes note that the broker has closed the worker's channel.
    pub fn close(&self) {
        self.is_closed.store(true, SeqCst);
    }

    /// Takes note that the request that came `arrived` is computed, until what is returned is dropped.
    pub fn compute(&self, id: RequestId, arrived: Instant) -> Computing<'_> {
        lock(&self.state).computed = Some(Computed { id, arrived, began: Instant::now() });
        Computing(self)
    }

    /// Takes note that a reply to a request is about to go out: a result of so many bytes, or an error.
    pub fn answer(&self, id: RequestId, length: usize) {
        let mut state = lock(&self.state);
        if state.answered.len() == self.most_answered {
            state.answered.pop_front();
        }
        state.answered.push_back((id, length));
    }

    /// Returns whether this request is computed.
    pub fn computes(&self, id: RequestId) -> bool {
        lock(&self.state).computed.is_some_and(|computed| computed.id == id)
    }

    /// Remembers what the end of the channel, which the broker has closed, says of the requests in hand.
    pub fn channel_closed(&self, fault: ChannelFault, now: Instant, remembered: &Remembered) {
        self.close();
        let state = lock(&self.state);
        for &(id, length) in &state.answered {
            let memory = match fault {
                ChannelFault::TooLarge { limit } if length > limit => {
                    Memory::TooLarge { length, limit }
                }
                _ => Memory::Answered,
            };
            remembered.insert(id, memory);
        }

        if let (ChannelFault::ConsumerTimeout, Some(computed)) = (fault, state.computed)
            && computed.took_most_of_its_time(now)
        {
            remembered.insert(computed.id, Memory::TimedOut);
        }
    }

    /// Remembers this of the requests whose replies were out when the connection was lost.
    pub fn connection_lost(&self, memory: Memory, remembered: &Remembered) {
        for &(id, _) in &lock(&self.state).answered {
            remembered.insert(id, memory);
        }
    }
}

impl Computed {
    /// Returns whether the request was computed for at least half of the time since it came. Otherwise those before it,
    /// for which it waited, took longer.
    fn took_most_of_its_time(&self, now: Instant) -> bool {
        2 * now.duration_since(self.began) >= now.duration_since(self.arrived)
    }
}

/// A request of [`InHand`] that is computed.
pub struct Computing<'a>(&'a InHand);

impl Drop for Computing<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).computed = None;
    }
}

/// What the workers of one connection have in hand, each with the number of its channel. A worker whose channel was closed
/// can still be there when another one has a channel with that number.
#[derive(Debug, Default)]
pub struct Hands(Mutex<Vec<(u16, Arc<InHand>)>>);

impl Hands {
    /// Adds what the worker on `channel` has in hand, in place of that of one that had such a channel and is gone.
    pub fn insert(&self, channel: u16, in_hand: Arc<InHand>) {
        let mut hands = lock(&self.0);
        hands.retain(|(number, old)| *number != channel || Arc::strong_count(old) > 1);
        hands.push((channel, in_hand));
    }

    /// Returns what the worker that has `channel` now has in hand.
    pub fn get(&self, channel: u16) -> Option<Arc<InHand>> {
        let hands = lock(&self.0);
        let newest = hands.iter().rfind(|(number, _)| *number == channel);
        newest.map(|(_, in_hand)| Arc::clone(in_hand))
    }

    /// Returns whether another worker than the one with `own` computes this request.
    pub fn computes(&self, id: RequestId, own: &InHand) -> bool {
        let hands = lock(&self.0);
        let mut others = hands.iter().filter(|(_, other)| !ptr::eq(&raw const **other, own));
        others.any(|(_, other)| other.computes(id))
    }

    /// Remembers this of the requests whose replies were out when the connection was lost.
    pub fn connection_lost(&self, memory: Memory, remembered: &Remembered) {
        lock(&self.0).iter().for_each(|(_, in_hand)| in_hand.connection_lost(memory, remembered));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_request_is_known_again_by_its_ids_and_its_body() {
        let remembered = Remembered::default();
        let request = Request { correlation_id: Some("1"), argument: b"30", ..Request::default() };
        let again = Request { is_redelivered: true, ..request };
        assert_eq!(remembered.id(&request), remembered.id(&again));
        for other in [
            Request { correlation_id: Some("2"), ..request },
            Request { correlation_id: None, ..request },
            Request { argument: b"31", ..request },
            Request { procedure: "fun", ..request },
        ] {
            assert_ne!(remembered.id(&request), remembered.id(&other), "{other:?}");
        }
    }

    #[test]
    fn the_worst_is_remembered_and_not_of_too_many() {
        let remembered = Remembered::default();
        remembered.insert(RequestId(0), Memory::Suspect);
        remembered.insert(RequestId(0), Memory::Answered);
        assert_eq!(remembered.get(RequestId(0)), Some(Memory::Suspect));
        remembered.insert(RequestId(0), Memory::TimedOut);
        remembered.insert(RequestId(1), Memory::TooLarge { length: 2, limit: 1 });
        remembered.forget_sizes();
        assert_eq!(remembered.get(RequestId(1)), None);
        assert_eq!(remembered.get(RequestId(0)), Some(Memory::TimedOut));
        for id in 2..=REQUESTS_MAX as u64 + 1 {
            remembered.insert(RequestId(id), Memory::Answered);
        }
        assert_eq!(remembered.get(RequestId(0)), None, "the oldest");
        assert!(remembered.get(RequestId(2)).is_some());
        assert_eq!(lock(&remembered.requests).memories.len(), REQUESTS_MAX);
    }

    #[test]
    fn a_request_that_waited_behind_others_is_not_condemned_for_their_time() {
        let now = Instant::now() + 100 * SECOND;
        let computed = |waited: u32, took: u32| {
            let computed = Computed {
                id: RequestId(1),
                arrived: now - (waited + took) * SECOND,
                began: now - took * SECOND,
            };
            computed.took_most_of_its_time(now)
        };
        assert!(computed(0, 30) && computed(10, 20) && computed(15, 15));
        assert!(!computed(20, 10) && !computed(30, 0));
    }

    #[test]
    fn what_a_closed_channel_says_of_those_in_hand() {
        let remembered = Remembered::default();
        let in_hand = InHand::new(2);
        for (id, length) in [(1, 900), (2, 90), (3, 900)] {
            in_hand.answer(RequestId(id), length);
        }
        let now = Instant::now();
        in_hand.channel_closed(ChannelFault::TooLarge { limit: 100 }, now, &remembered);
        let memories = [1, 2, 3].map(|id| remembered.get(RequestId(id)));
        let too_large = Memory::TooLarge { length: 900, limit: 100 };
        assert_eq!(memories, [None, Some(Memory::Answered), Some(too_large)]);
        let computing = in_hand.compute(RequestId(4), now);
        assert!(in_hand.computes(RequestId(4)));
        in_hand.channel_closed(ChannelFault::Other, now, &remembered);
        assert_eq!(remembered.get(RequestId(4)), None);
        in_hand.channel_closed(ChannelFault::ConsumerTimeout, now + SECOND, &remembered);
        assert_eq!(remembered.get(RequestId(4)), Some(Memory::TimedOut));
        drop(computing);
        assert!(!in_hand.computes(RequestId(4)));
    }

    /// The library gives a number to the next channel as soon as the broker has closed the one that had it.
    #[test]
    fn a_worker_that_is_about_to_end_and_another_on_a_channel_of_the_same_number() {
        let (hands, remembered) = (Hands::default(), Remembered::default());
        let [old, new] = [(); 2].map(|()| Arc::new(InHand::new(1)));
        let now = Instant::now();
        hands.insert(3, Arc::clone(&old));
        let computing = old.compute(RequestId(1), now);
        hands.get(3).unwrap().channel_closed(ChannelFault::Other, now, &remembered);
        hands.insert(3, Arc::clone(&new));
        assert!(old.is_closed() && !new.is_closed());
        assert!(hands.computes(RequestId(1), &new) && !hands.computes(RequestId(1), &old));
        hands.get(3).unwrap().channel_closed(ChannelFault::Other, now, &remembered);
        assert!(new.is_closed());
        drop(computing);
        drop(old);
        hands.insert(3, new);
        assert_eq!(lock(&hands.0).len(), 2, "the first is gone");
    }
}
