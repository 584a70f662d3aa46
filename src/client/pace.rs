//! How many calls may await a reply at a time if nobody says a number: enough to keep the servers busy, and so few that
//! none times out behind the others. This decides; nothing here waits, or asks anybody.
//!
//! A call waits in the queue while the calls before it are answered: so many of them at the rate of the replies. As in TCP's
//! slow start, it begins with few, one call for each consumer, and with each reply there are more.

use crate::amqp::queue::QueueState;
use crate::cli::{self, InFlight};
use std::time::{Duration, Instant};

/// How many more calls may be under way after a reply. With one, as TCP has it, there would be 64 of them after six round
/// trips, and a batch of 256 fast calls would feel that. With so many it is two round trips.
const GROWTH: usize = 15;

/// Of how many replies the mean time between two is taken. The last few tell soon that servers slow down or are gone;
/// many of them remember calls that take long, should they be rare.
const FEW: u32 = 8;
const MANY: u32 = 512;

/// Who consumes from a queue, as far as that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Servers {
    /// How many there are. 0: nobody knows.
    pub consumers: u32,
    /// Whether they consume only while they have nothing to do, as servers do whose calls run at most once. Seen is then
    /// that they are there, and not what each can do at a time.
    pub hide: bool,
}

impl From<QueueState> for Servers {
    fn from(state: QueueState) -> Servers {
        Servers { consumers: state.consumers, hide: state.hides }
    }
}

impl Servers {
    /// Somebody may serve the calls, and nobody knows how many.
    pub const UNKNOWN: Servers = Servers { consumers: 0, hide: false };
}

/// How many calls may await a reply.
#[derive(Debug)]
pub struct Pace {
    /// How many there can be at the most.
    most: usize,
    /// How long a call may wait behind others. None: for ever.
    patience: Option<Duration>,
    servers: Servers,
    /// How many calls may be under way by what has been answered.
    size: usize,
    /// Since when the next reply is awaited.
    since: Instant,
    few: Mean,
    many: Mean,
}

impl Pace {
    /// Makes the pace that `args` ask for, `now`. None: they say a number.
    pub fn new(args: &cli::Client, now: Instant) -> Option<Pace> {
        match args.in_flight {
            InFlight::Number(_) => None,
            InFlight::Auto => Some(Pace {
                most: args.in_flight.most(),
                patience: (!args.timeout.is_zero()).then(|| args.timeout / 4),
                servers: Servers::UNKNOWN,
                size: 1,
                since: now,
                few: Mean::of(FEW),
                many: Mean::of(MANY),
            }),
        }
    }

    /// Begins with these servers, perhaps again, after nobody could be reached.
    pub fn begin(&mut self, servers: Servers, now: Instant) {
        (self.servers, self.since) = (servers, now);
        self.size = self.consumers();
    }

    /// Takes how many servers there are by now, while so many calls are `awaiting` their replies.
    pub fn count(&mut self, servers: Servers, awaiting: usize) {
        let before = self.servers;
        self.servers.hide |= servers.hide;
        self.servers.consumers = match (servers, self.servers.hide) {
            (Servers { consumers: 0, .. }, _) => before.consumers,
            (Servers { consumers, .. }, false) => consumers,
            // Each process is seen once, whatever its workers.
            (Servers { consumers, hide: true }, _) => before.consumers.max(consumers),
            // Those that are seen have nothing to do; the others have the calls.
            (Servers { consumers, hide: false }, true) => {
                before.consumers.max(consumers.saturating_add(awaiting as u32))
            }
        };
        self.size = self.size.max(self.consumers());
    }

    /// Takes it that a call was begun, and none was under way.
    pub fn begins_to_wait(&mut self, now: Instant) {
        self.since = now;
    }

    /// Takes it that a reply came.
    pub fn reply(&mut self, now: Instant) {
        let gap = now.saturating_duration_since(self.since).as_secs_f64();
        self.few.add(gap);
        self.many.add(gap);
        self.since = now;
        self.size = (self.size + GROWTH).min(self.limit(now)).min(self.most);
    }

    /// Returns whether another call may be begun, while so many are `awaiting` their replies.
    pub fn has_room(&self, awaiting: usize, now: Instant) -> bool {
        // Whoever waits for ever does not time out.
        let Some(_) = self.patience else { return awaiting < self.most };
        awaiting < self.size && (awaiting < self.consumers() || awaiting < self.limit(now))
    }

    /// Returns how many consumers there are, or one if nobody knows.
    fn consumers(&self) -> usize {
        (self.servers.consumers as usize).clamp(1, self.most)
    }

    /// Returns how many calls there may be so that none waits for too long: each consumer has one, and the others are
    /// answered in time at the rate of the replies. The wait for the next reply counts as soon as it is a long one.
    fn limit(&self, now: Instant) -> usize {
        let pause = now.saturating_duration_since(self.since).as_secs_f64();
        let (many, spread) = self.many.with_at_least(pause);
        let (few, _) = self.few.with_at_least(pause);
        let behind =
            self.patience.map_or(self.most, |limit| calls_within(limit, many.max(few), spread));
        // Those that were begun together end together: behind them another such round fits, or none.
        let consumers = self.consumers();
        consumers + behind.min(self.most) / consumers * consumers
    }
}

/// Returns how many calls are answered within `limit` if the next reply comes after `gap` seconds in the mean, with that
/// standard deviation; and within twice the limit if several of them take long.
fn calls_within(limit: Duration, gap: f64, deviation: f64) -> usize {
    let limit = limit.as_secs_f64();
    // So many calls take gap * calls + unlucky * sqrt(calls): that is twice the limit.
    let unlucky = 3.0 * deviation;
    let root = ((unlucky * unlucky + 8.0 * gap * limit).sqrt() - unlucky) / (2.0 * gap);
    // Without a gap yet, as many as there are numbers: a conversion to an integer saturates.
    (limit / gap).min(root * root).max(0.0) as usize
}

/// The mean of the last numbers and of their squares, roughly: the older ones fade.
#[derive(Debug)]
struct Mean {
    of_numbers: f64,
    of_squares: f64,
    /// How many numbers came, up to those that it is of.
    came: u32,
    of: u32,
}

impl Mean {
    fn of(of: u32) -> Mean {
        Mean { of_numbers: 0.0, of_squares: 0.0, came: 0, of }
    }

    fn add(&mut self, number: f64) {
        (self.of_numbers, self.of_squares) = self.with(number);
        self.came = (self.came + 1).min(self.of);
    }

    fn with(&self, number: f64) -> (f64, f64) {
        let part = 1.0 / f64::from((self.came + 1).min(self.of));
        let toward = |mean: f64, number: f64| mean + (number - mean) * part;
        (toward(self.of_numbers, number), toward(self.of_squares, number * number))
    }

    /// Returns the mean and the standard deviation if the next number is this one or a larger one: what is not known yet
    /// does not lower the mean.
    fn with_at_least(&self, number: f64) -> (f64, f64) {
        let (mean, squares) = match number > self.of_numbers {
            true => self.with(number),
            false => (self.of_numbers, self.of_squares),
        };
        (mean, (squares - mean * mean).max(0.0).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::collections::VecDeque;

    /// The time limit of each call, in seconds.
    const TIMEOUT: f64 = 30.0;

    fn pace(options: &[&str]) -> Option<Pace> {
        let args = [&["rpc_client", "--timeout=30s"], options, &["fib"]].concat();
        Pace::new(&cli::Client::parse_from(args), Instant::now())
    }

    fn servers(consumers: u32) -> Servers {
        Servers { consumers, hide: false }
    }

    /// From when to when a server is there, in seconds.
    type Presence = (f64, f64);

    const ALWAYS: Presence = (0.0, f64::INFINITY);

    /// A batch of calls for servers that compute one at a time. Messages take no time.
    struct Batch<'a> {
        calls: usize,
        /// How many seconds a call takes, by its number and the time when it is begun.
        takes: &'a dyn Fn(usize, f64) -> f64,
        servers: &'a [Presence],
    }

    /// What a batch came to.
    #[derive(Debug, Default, PartialEq)]
    struct Ended {
        makespan: f64,
        /// When the last call was published that had no answer in time, and how many had none.
        late: Option<f64>,
        failed: usize,
        /// How long the slowest of the others took.
        slowest: f64,
        /// The most that were under way at a time.
        most: usize,
    }

    /// A call, and when its server is done with it.
    #[derive(Clone, Copy)]
    struct Sent {
        number: usize,
        published: f64,
        ends: f64,
    }

    /// The calls of a batch that are under way.
    struct Run<'a> {
        batch: &'a Batch<'a>,
        now: f64,
        waiting: VecDeque<Sent>,
        /// The call that each server has.
        served: Vec<Option<Sent>>,
        ended: Ended,
    }

    impl Batch<'_> {
        fn run(&self) -> Ended {
            let start = Instant::now();
            let served = vec![None; self.servers.len()];
            let (waiting, ended) = (VecDeque::new(), Ended::default());
            let mut run = Run { batch: self, now: 0.0, waiting, served, ended };
            let mut pace = pace(&[]).unwrap();
            pace.begin(run.count(), start);
            let (mut made, mut looked) = (0, 0.0);
            while made < self.calls || run.awaiting() > 0 {
                let time = start + Duration::from_secs_f64(run.now);
                (0..run.end_calls()).for_each(|_| pace.reply(time));
                if run.now >= looked + 1.0 {
                    pace.count(run.count(), run.awaiting());
                    looked = run.now;
                }
                while made < self.calls && pace.has_room(run.awaiting(), time) {
                    if run.awaiting() == 0 {
                        pace.begins_to_wait(time);
                    }
                    run.waiting.push_back(Sent { number: made, published: run.now, ends: 0.0 });
                    made += 1;
                }
                run.begin_calls();
                run.ended.most = run.ended.most.max(run.awaiting());
                run.ended.makespan = run.now;
                run.now = run.next_change(looked + 1.0);
            }
            run.ended
        }
    }

    impl Run<'_> {
        fn is_there(&self, server: usize) -> bool {
            let (from, to) = self.batch.servers[server];
            from <= self.now && self.now < to
        }

        fn count(&self) -> Servers {
            servers((0..self.served.len()).filter(|server| self.is_there(*server)).count() as u32)
        }

        fn all(&self) -> impl Iterator<Item = &Sent> {
            self.waiting.iter().chain(self.served.iter().flatten())
        }

        /// How many are not given up. A server goes on with what it has begun.
        fn awaiting(&self) -> usize {
            self.all().filter(|call| self.now < call.published + TIMEOUT).count()
        }

        /// Ends what is done or expired, and returns how many replies that are. What a server leaves goes back.
        fn end_calls(&mut self) -> usize {
            let mut replies = 0;
            for server in 0..self.served.len() {
                let Some(call) = self.served[server] else { continue };
                if !self.is_there(server) {
                    self.waiting.push_front(call);
                } else if call.ends > self.now {
                    continue;
                } else if self.now < call.published + TIMEOUT {
                    replies += 1;
                    self.ended.slowest = self.ended.slowest.max(self.now - call.published);
                } else {
                    self.fail(call);
                }
                self.served[server] = None;
            }
            let now = self.now;
            let is_over = move |call: &Sent| now >= call.published + TIMEOUT;
            let expired: Vec<Sent> = self.waiting.iter().copied().filter(is_over).collect();
            self.waiting.retain(|call| !is_over(call));
            expired.into_iter().for_each(|call| self.fail(call));
            replies
        }

        fn fail(&mut self, call: Sent) {
            self.ended.failed += 1;
            self.ended.late =
                Some(self.ended.late.map_or(call.published, |late| late.max(call.published)));
        }

        fn begin_calls(&mut self) {
            for server in 0..self.served.len() {
                if self.served[server].is_some() || !self.is_there(server) {
                    continue;
                }
                let Some(call) = self.waiting.pop_front() else { return };
                let ends = self.now + (self.batch.takes)(call.number, self.now);
                self.served[server] = Some(Sent { ends, ..call });
            }
        }

        fn next_change(&self, look: f64) -> f64 {
            let ends = self.served.iter().flatten().map(|call| call.ends);
            let limits = self.all().map(|call| call.published + TIMEOUT);
            let servers = self.batch.servers.iter().flat_map(|server| [server.0, server.1]);
            let all = ends.chain(limits).chain(servers).chain([look]);
            all.filter(|time| *time > self.now).fold(f64::INFINITY, f64::min)
        }
    }

    #[track_caller]
    fn about(value: f64, wanted: f64) {
        assert!((value - wanted).abs() < 1e-3, "{value} instead of {wanted}");
    }

    #[test]
    fn one_worker_is_busy_all_the_time_and_no_call_waits_for_long() {
        let ended = Batch { calls: 40, takes: &|_, _| 1.0, servers: &[ALWAYS] }.run();
        about(ended.makespan, 40.0);
        about(ended.slowest, 8.0);
        assert_eq!((ended.failed, ended.most), (0, 8));
    }

    /// They never wait for one another, or a whole call of the one before.
    #[test]
    fn calls_that_take_most_of_their_time_are_made_as_servers_are_there_for_them() {
        for (takes, servers, makespan, most) in [
            (20.0, &[ALWAYS][..], 600.0, 1),
            (20.0, &[ALWAYS; 3], 200.0, 3),
            (7.5, &[ALWAYS; 3], 75.0, 3),
            (5.0, &[ALWAYS], 150.0, 2),
        ] {
            let ended = Batch { calls: 30, takes: &|_, _| takes, servers }.run();
            about(ended.makespan, makespan);
            assert_eq!((ended.failed, ended.most), (0, most), "{takes}: {ended:?}");
        }
    }

    #[test]
    fn fast_calls_are_soon_as_many_as_with_a_number() {
        let ended = Batch { calls: 256, takes: &|_, _| 1e-4, servers: &[ALWAYS] }.run();
        about(ended.makespan, 256e-4);
        assert_eq!((ended.failed, ended.most), (0, 64));
    }

    /// Of those that were under way by then, nobody can take any back.
    #[test]
    fn no_call_fails_that_is_made_after_servers_have_slowed_down() {
        let takes = |_, now| if now < 1.0 { 0.001 } else { 1.0 };
        let ended = Batch { calls: 2000, takes: &takes, servers: &[ALWAYS] }.run();
        assert!(ended.failed < 40 && ended.late.unwrap() < 1.01, "{ended:?}");
        let takes = |number: usize, _| 0.01 * 1.01_f64.powi(number.min(600) as i32);
        let ended = Batch { calls: 1000, takes: &takes, servers: &[ALWAYS] }.run();
        assert_eq!(ended.failed, 0, "{ended:?}");
    }

    /// One of a hundred calls takes a hundred times as long.
    #[test]
    fn rare_calls_that_take_long_let_no_other_fail() {
        let takes = |number: usize, _| match fastrand::Rng::with_seed(number as u64).u32(0..100) {
            0 => 10.0,
            _ => 0.1,
        };
        for servers in [&[ALWAYS][..], &[ALWAYS; 4]] {
            let ended = Batch { calls: 5000, takes: &takes, servers }.run();
            let work: f64 = (0..5000).map(|number| takes(number, 0.0)).sum();
            let bound = work / servers.len() as f64;
            assert_eq!(ended.failed, 0, "{ended:?}");
            assert!(ended.makespan < bound + 10.0, "{ended:?}, of {bound} s");
        }
    }

    /// What they come to is used within a second, however long a call takes; those that go leave their calls to others.
    #[test]
    fn servers_come_and_go() {
        let some = (60.0, 200.0);
        let come_and_go = [ALWAYS, some, some, some, some, some, some];
        let run = |calls, takes, servers| Batch { calls, takes: &|_, _| takes, servers }.run();
        let ended = run(1000, 1.0, &come_and_go);
        assert!(ended.failed == 0 && ended.makespan < 200.0, "{ended:?}");
        let ended = run(300, 5.0, &come_and_go);
        assert!(ended.failed <= 6 && ended.makespan < 700.0, "{ended:?}");
        let ended = run(100, 20.0, &[ALWAYS, (60.0, 1e9), (60.0, 1e9), (60.0, 1e9)]);
        about(ended.makespan, 60.0 + 20.0 * 25.0);
        assert_eq!(ended.failed, 0, "{ended:?}");
        // The only one is away for a while.
        let ended = run(100, 1.0, &[(0.0, 10.2), (25.0, 1e9)]);
        assert!(ended.failed == 0 && ended.makespan < 116.0, "{ended:?}");
    }

    #[test]
    fn a_number_is_taken_as_it_is() {
        assert!(pace(&["--in-flight=64"]).is_none());
    }

    #[test]
    fn what_cannot_time_out_is_not_held_back() {
        let pace = pace(&["--timeout=0"]).unwrap();
        assert!(pace.has_room(63, pace.since) && !pace.has_room(64, pace.since));
    }

    /// Who works does not consume. They show themselves beside the queue, by one consumer for all their workers.
    #[test]
    fn servers_that_hide_while_they_work_are_not_forgotten() {
        let mut pace = pace(&[]).unwrap();
        let hidden = Servers { consumers: 1, hide: true };
        pace.begin(servers(4), pace.since);
        pace.count(hidden, 4);
        assert_eq!(pace.consumers(), 4);
        // Two more have come.
        pace.count(servers(2), 4);
        assert_eq!(pace.consumers(), 6);
        pace.count(servers(1), 5);
        pace.count(hidden, 6);
        assert_eq!(pace.consumers(), 6);
        // After the loss of a connection, others may be there.
        pace.begin(hidden, pace.since);
        assert_eq!(pace.consumers(), 1);
    }

    #[test]
    fn where_nobody_knows_how_many_there_are_it_begins_with_one() {
        let mut pace = pace(&[]).unwrap();
        pace.begin(Servers::UNKNOWN, pace.since);
        assert!(pace.has_room(0, pace.since) && !pace.has_room(1, pace.since));
        pace.count(servers(3), 1);
        pace.count(Servers::UNKNOWN, 1);
        assert!(pace.has_room(2, pace.since) && !pace.has_room(3, pace.since));
        pace.begin(servers(u32::MAX), pace.since);
        assert!(pace.has_room(63, pace.since) && !pace.has_room(64, pace.since));
    }
}
