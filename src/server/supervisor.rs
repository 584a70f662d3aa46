//! Starts the workers of one connection, watches over them, and lets them finish when a signal asks
//! the server to stop.

use crate::amqp::backoff::Backoff;
use crate::amqp::connection::{Broken, OpenConnection};
use crate::amqp::consumer::ConsumerError;
use crate::amqp::errors::AmqpError;
use crate::amqp::watchdog::Flow;
use crate::amqp::{MAX_BODY, errors, traffic};
use crate::cancellation::{Cancelled, RunningCalls};
use crate::error::{Failure, FailureKind};
use crate::server::at_most_once::show_presence;
use crate::server::probes::Probes;
use crate::server::reconnect::ReconnectState;
use crate::server::remembered::{Hands, Memory};
use crate::server::sync::{Latch, Permit};
use crate::server::worker::{
    ConnectionContext, STOP_LIMIT, Service, Stage, Worker, WorkerError, WorkerEvent,
};
use crate::signals::Stop;
use crossbeam_channel::{Receiver, RecvError, at, bounded, never, select_biased, unbounded};
use log::{info, warn};
use sd_notify::NotifyState;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

/// How long the broker may take until all workers consume.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// The longest pause before a worker is started in place of one whose channel was closed.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The workers of one connection, as far as counting goes.
#[derive(Debug, Default)]
struct Workers {
    running: u16,
    unready: u16,
    /// When none may be unready any more.
    ready_by: Option<Instant>,
}

impl Workers {
    fn start(&mut self, now: Instant) {
        self.running += 1;
        self.unready += 1;
        self.ready_by.get_or_insert(now + READY_LIMIT);
    }

    fn ready(&mut self) {
        self.unready -= 1;
        if self.unready == 0 {
            self.ready_by = None;
        }
    }

    /// Returns how many consume.
    fn consuming(&self) -> u16 {
        self.running.saturating_sub(self.unready)
    }

    fn are_ready(&self) -> bool {
        self.running > 0 && self.unready == 0
    }
}

/// Starts workers on `connection` and watches over them, until a signal asks to stop or the connection is
/// lost. In the end it is closed: what is unacknowledged, prefetched too, goes back to the queue.
pub fn supervise(
    mut connection: OpenConnection,
    service: Arc<Service>,
    stop: &Receiver<Stop>,
    state: &mut ReconnectState,
) -> Result<(), Failure> {
    if let Some(most) = most_expected(service.args.workers, service.args.prefetch) {
        connection.inbox().expect_at_most(most);
    }
    if service.args.prefetch != 1 {
        connection.inbox().record_arrivals();
    }

    // Its workers are no consumers of the queue while they compute.
    let apart = if service.args.at_most_once { connection.channel().ok() } else { None };
    let queue = &service.args.common.queue;
    let _shown = apart.as_ref().and_then(|apart| show_presence(&mut connection, apart, queue));

    // The broker may be another one than before.
    service.remembered.forget_sizes();
    let context = Arc::new(ConnectionContext {
        service,
        endpoint: connection.endpoint().clone(),
        inbox: Arc::clone(connection.inbox()),
        calls: RunningCalls::default(),
        hands: Hands::default(),
        max_body: AtomicUsize::new(MAX_BODY),
        is_lost: AtomicBool::new(false),
        giving_back: AtomicUsize::new(0),
        stop: Latch::default(),
        events: unbounded(),
        announced: Latch::default(),
    });

    let closed = Arc::downgrade(&context);
    connection.inbox().on_channel_close(Box::new(move |channel, close| {
        if let Some(context) = closed.upgrade() {
            context.channel_closed(channel, close);
        }
    }));

    let _connected = context.service.observer.connected();
    let (workers, restarts) = (Workers::default(), Restarts::new());
    let connect_timeout = context.service.args.common.connect_timeout;
    let probes =
        Probes::new(context.service.isolated.inspector(connection.endpoint(), connect_timeout));
    let mut supervisor = Supervisor { connection, context, workers, moved: 0, restarts, probes };
    let served = supervisor.watch(stop, state);

    // No worker may go on waiting for it.
    supervisor.context.announced.open();
    if served.is_ok() {
        let why = supervisor.context.service.lifetime.end(Instant::now());
        info!("{}: finish the calls in hand", why.as_deref().unwrap_or("asked to stop"));
        notify_service_manager(NotifyState::Stopping);
        supervisor.context.service.observer.stopping();
        if let Err(failure) = supervisor.drain() {
            // What is not acked goes to another server, connection or no connection.
            warn!("while stopping: {failure}");
        }
    }

    for report in supervisor.context.service.gone.all_reports() {
        warn!("{report}");
    }
    supervisor.context.is_lost.store(true, SeqCst);
    supervisor.context.calls.cancel_all(Cancelled::ConnectionLost);
    supervisor.connection.close();
    supervisor.remember_lost();
    served
}

/// Returns how many messages can wait for the workers: their requests, and a confirm for the reply to each.
/// None, with a prefetch of 0: any number.
fn most_expected(workers: u16, prefetch: u16) -> Option<u64> {
    (prefetch > 0).then(|| 2 * u64::from(workers) * u64::from(prefetch))
}

struct Supervisor {
    connection: OpenConnection,
    context: Arc<ConnectionContext>,
    workers: Workers,
    /// How many bytes had gone over the connection when the workers' time to be ready began.
    moved: u64,
    restarts: Restarts,
    probes: Probes,
}

/// When workers are started in place of those whose channels were closed: at once, but after growing pauses where one is
/// closed soon after another.
struct Restarts {
    backoff: Backoff,
    last: Option<Instant>,
    /// None is started before this.
    not_before: Option<Instant>,
}

impl Restarts {
    fn new() -> Restarts {
        let backoff = Backoff::new(Duration::from_millis(200), LONGEST_PAUSE);
        Restarts { backoff, last: None, not_before: None }
    }

    /// Takes note of a channel that was closed. One pause is enough for all that are closed before it is over.
    fn closed(&mut self, now: Instant) {
        if !self.are_due(now) {
            return;
        }
        match self.last.replace(now) {
            Some(last) if now.duration_since(last) < 2 * LONGEST_PAUSE => {
                self.not_before = Some(now + self.backoff.delay());
            }
            _ => self.backoff.reset(),
        }
    }

    /// Returns whether a worker can be started.
    fn are_due(&mut self, now: Instant) -> bool {
        self.not_before = self.not_before.filter(|at| *at > now);
        self.not_before.is_none()
    }
}

impl Supervisor {
    fn watch(&mut self, stop: &Receiver<Stop>, state: &mut ReconnectState) -> Result<(), Failure> {
        let context = Arc::clone(&self.context);
        let (slots, lifetime) = (&context.service.slots, &context.service.lifetime);

        // Takes nothing.
        let (closed, _receiver) = bounded(0);
        let nothing = never();
        loop {
            let are_due = self.restarts.are_due(Instant::now());
            let slot = if are_due { slots.waiting() } else { &closed };
            let pause = alarm(self.restarts.not_before);
            let too_late = alarm(self.workers.ready_by);
            let probe_at = self.probes.advance(&self.connection, &context);
            let begun = if probe_at.is_some() { &nothing } else { context.calls.begun() };
            let probe = alarm(probe_at);
            let idle = match context.announced.is_open() {
                true => alarm(lifetime.next_look(Instant::now())),
                false => never(),
            };
            select_biased! {
                recv(stop) -> _ => return Ok(()),
                recv(lifetime.used_up()) -> _ => return Ok(()),
                recv(idle) -> _ => if lifetime.end(Instant::now()).is_some() {
                    return Ok(());
                },
                recv(self.connection.blocked_notifications()) -> notification => {
                    self.connection.set_blocked(notification)?;
                }
                recv(context.events.1) -> event => self.take(event)?,
                send(slot, ()) -> _ => self.start_worker(slots.permit())?,
                recv(pause) -> _ => {}
                recv(too_late) -> _ => self.grant_more_time()?,
                recv(self.probes.answer()) -> answer => self.probes.take(answer, &context),
                recv(probe) -> _ => {}
                recv(begun) -> _ => self.probes.resume(),
            }
            context.service.observer.consuming(self.workers.consuming());
            if self.workers.are_ready() && slots.is_exhausted() && !context.announced.is_open() {
                if state.serves() {
                    warn!("connected to {} again", self.connection.name());
                }
                context.service.transcript.line(format_args!(" [x] Awaiting RPC requests"));
                lifetime.await_requests();
                context.announced.open();
                notify_service_manager(NotifyState::Ready);
            }
        }
    }

    /// Ends the connection, on which the workers do not consume yet, unless bytes flow: the answers may come behind
    /// large requests.
    fn grant_more_time(&mut self) -> Result<(), Failure> {
        let moved = self.connection.count(Flow::Either);
        if !traffic::flows(moved.saturating_sub(self.moved), READY_LIMIT) {
            return Err(self.connection.abort().into());
        }
        self.moved = moved;
        self.workers.ready_by = Some(Instant::now() + READY_LIMIT);
        Ok(())
    }

    fn start_worker(&mut self, slot: Permit) -> Result<(), Failure> {
        let (context, channel) = (Arc::clone(&self.context), self.connection.channel()?);
        let work = move || {
            let _slot = slot;
            let mut worker = Worker::new(&context, &channel);
            let ended = catch_panic(|| (context.service.serve)(&mut worker));
            let ended = ended.map_err(|error| worker.with_reason(error));
            // Before the worker is dropped: its consumer waits for an answer of the broker then, or until
            // the supervisor closes the connection. Nobody receives it if the connection was lost.
            let _ = context.events.0.send(WorkerEvent::Ended(ended, worker.stage()));
        };

        let spawned = thread::Builder::new().name("worker".into()).spawn(work);
        spawned.map_err(Failure::internal("cannot start a worker"))?;
        if self.workers.ready_by.is_none() {
            self.moved = self.connection.count(Flow::Either);
        }
        self.workers.start(Instant::now());
        Ok(())
    }

    fn take(&mut self, event: Result<WorkerEvent, RecvError>) -> Result<(), Failure> {
        match event {
            Ok(WorkerEvent::Ready) => self.workers.ready(),
            Ok(WorkerEvent::Ended(Ok(()), _)) => self.workers.running -= 1,
            Ok(WorkerEvent::Ended(Err(WorkerError::Panicked), _)) => {
                // It is opened again: what made the worker panic may be over.
                let message = "a worker failed (its reason is logged above)";
                return Err(Failure::new(FailureKind::ConnectionLost, message));
            }
            Ok(WorkerEvent::Ended(Err(WorkerError::Consumer(error)), stage)) => {
                self.recover(error, stage)?
            }
            Err(RecvError) => return Err(self.connection.abort().into()),
        }
        Ok(())
    }

    /// Has another worker take the place of one that has ended, if it had consumed, and only its channel is gone.
    fn recover(&mut self, error: ConsumerError, stage: Stage) -> Result<(), Failure> {
        let broken = match error {
            ConsumerError::Amiquip(error) => self.connection.diagnose(error),
            gone @ ConsumerError::QueueDeleted => {
                let queue = &self.context.service.args.common.queue;
                return Err(gone.classify(&mut self.connection, queue).into());
            }
        };

        match (broken, stage) {
            (Broken::Channel(error), Stage::Consuming) => {
                warn!("{}; a worker starts again", Failure::from(error));
                self.workers.running -= 1;
                self.restarts.closed(Instant::now());
                Ok(())
            }
            (broken, _) => Err(AmqpError::from(broken).into()),
        }
    }

    /// Remembers the requests whose replies were out when the connection was lost. If the broker ended it with an
    /// error, it may have been for one of them.
    fn remember_lost(&self) {
        let memory = match self.connection.inbox().connection_close() {
            Some(close) if errors::is_connection_fault(close) => Memory::Suspect,
            _ => Memory::Answered,
        };
        self.context.hands.connection_lost(memory, &self.context.service.remembered);
    }

    /// Waits until all workers have ended, within limits.
    fn drain(&mut self) -> Result<(), Failure> {
        self.context.stop.open();
        let context = Arc::clone(&self.context);
        let (mut deadline, mut sent, mut is_told) = (None, 0, false);
        while self.workers.running > 0 {
            self.probes.advance(&self.connection, &context);
            let (now, is_blocked) = (Instant::now(), self.connection.is_blocked());
            // A broker that reads nothing takes nothing back.
            if !is_blocked && !is_told {
                is_told = true;
                self.context.calls.request_stop();
            }
            let is_attended = self.context.giving_back.load(SeqCst) == 0;
            let is_computing = is_attended && !self.context.calls.is_empty();
            if deadline.is_none() {
                sent = self.connection.count(Flow::Sent);
            }
            deadline = drain_deadline(deadline, now, is_computing, is_blocked);
            if deadline.is_some_and(|deadline| deadline <= now) {
                // A large reply by a slow link takes its time.
                let sent_since = self.connection.count(Flow::Sent).saturating_sub(sent);
                if !is_blocked && traffic::flows(sent_since, STOP_LIMIT) {
                    deadline = None;
                    continue;
                }
                return if is_blocked { Ok(()) } else { Err(self.connection.abort().into()) };
            }
            select_biased! {
                recv(self.context.events.1) -> event => self.take(event)?,
                recv(self.connection.blocked_notifications()) -> notification => {
                    self.connection.set_blocked(notification)?;
                }
                recv(self.probes.answer()) -> answer => self.probes.take(answer, &context),
                recv(context.calls.begun()) -> _ => self.probes.resume(),
                default(Duration::from_millis(100)) => {}
            }
        }

        Ok(())
    }
}

/// Returns what gets a message at this time, if there is one.
fn alarm(time: Option<Instant>) -> Receiver<Instant> {
    match time {
        Some(time) => at(time),
        None => never(),
    }
}

/// Returns until when a server that stops waits for its workers. While they compute there is no limit; then the
/// broker has some time to take and answer what they send, unless it blocks, and so reads nothing.
fn drain_deadline(
    deadline: Option<Instant>,
    now: Instant,
    is_computing: bool,
    is_blocked: bool,
) -> Option<Instant> {
    match (is_computing, is_blocked) {
        (true, _) => None,
        (false, true) => Some(now),
        (false, false) => deadline.or(Some(now + STOP_LIMIT)),
    }
}

/// Tells a service manager, if one started the server and wants to know (sd_notify(3), `Type=notify`).
fn notify_service_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(&state)) {
        warn!("cannot tell the service manager {state:?}: {error}");
    }
}

/// Runs a worker's loop. One that panics has ended too: what it used is not used again, hence `AssertUnwindSafe`.
fn catch_panic(serve: impl FnOnce() -> Result<(), WorkerError>) -> Result<(), WorkerError> {
    catch_unwind(AssertUnwindSafe(serve)).unwrap_or(Err(WorkerError::Panicked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_panics_has_ended() {
        assert!(matches!(catch_panic(|| panic!("out of luck")), Err(WorkerError::Panicked)));
        assert!(catch_panic(|| Ok(())).is_ok());
    }

    #[test]
    fn all_workers_have_the_same_time_to_be_ready() {
        let now = Instant::now();
        let mut workers = Workers::default();
        assert!(!workers.are_ready());
        workers.start(now);
        workers.start(now + READY_LIMIT / 2);
        assert_eq!(workers.ready_by, Some(now + READY_LIMIT));
        workers.ready();
        assert!(!workers.are_ready() && workers.ready_by.is_some());
        workers.ready();
        assert!(workers.are_ready() && workers.ready_by.is_none());
        // One that starts later has as long.
        workers.start(now + READY_LIMIT);
        assert_eq!(workers.ready_by, Some(now + 2 * READY_LIMIT));
        assert_eq!(workers.running, 3);
    }

    #[test]
    fn a_request_and_a_confirm_can_wait_for_each_place_that_the_prefetch_gives() {
        assert_eq!(most_expected(1, 1), Some(2));
        assert_eq!(most_expected(3, 10), Some(60));
        assert_eq!(most_expected(256, u16::MAX), Some(33_553_920));
        assert_eq!(most_expected(3, 0), None);
    }

    #[test]
    fn a_server_that_stops_waits_for_what_is_computed_and_not_for_ever_for_a_broker() {
        let now = Instant::now();
        assert_eq!(drain_deadline(None, now, true, false), None);
        assert_eq!(drain_deadline(None, now, true, true), None);
        let deadline = drain_deadline(None, now, false, false);
        assert_eq!(deadline, Some(now + STOP_LIMIT));
        assert_eq!(drain_deadline(deadline, now + STOP_LIMIT / 2, false, false), deadline);
        assert_eq!(drain_deadline(deadline, now + STOP_LIMIT / 2, true, false), None);
        assert_eq!(drain_deadline(deadline, now, false, true), Some(now));
    }

    #[test]
    fn a_channel_that_is_closed_again_and_again_is_opened_after_growing_pauses() {
        let (mut restarts, mut now) = (Restarts::new(), Instant::now());
        assert!(restarts.are_due(now));
        restarts.closed(now);
        assert!(restarts.are_due(now), "the first one at once");
        let mut pauses = Vec::new();
        for _ in 0..8 {
            // Many at once.
            (0..32).for_each(|_| restarts.closed(now));
            let pause = restarts.not_before.unwrap() - now;
            assert!(!restarts.are_due(now));
            pauses.push(pause);
            now += pause;
            assert!(restarts.are_due(now));
        }
        assert!(pauses[0] <= Duration::from_millis(200) && pauses[7] >= LONGEST_PAUSE / 2);
        now += 3 * LONGEST_PAUSE;
        restarts.closed(now);
        assert!(restarts.are_due(now), "it is long ago");
    }
}
