//! Starts the workers of one connection, watches over them, and lets them finish when a signal asks
//! the server to stop.

use crate::amqp::connection::Session;
use crate::error::{Failure, FailureKind};
use crate::process::signals::Stop;
use crate::server::reconnect::ReconnectState;
use crate::server::worker::{Context, Event, STOP_LIMIT, Serve, Service, Worker, WorkerError};
use crossbeam_channel::{Receiver, Sender, at, never, select_biased, unbounded};
use log::{info, warn};
use sd_notify::NotifyState;
use std::io::{self, PipeWriter};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How long the broker may take until all workers consume.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// How often it looks whether there is anything left to wait for.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Room for workers. A worker that computes for a connection which is lost keeps its slot, so that there
/// are never more than `--workers` of them, on all connections together.
pub struct Slots {
    free: Receiver<()>,
    freed: Sender<()>,
}

/// Room for one worker, given back when it is dropped.
struct Slot(Sender<()>);

impl Slots {
    /// Room for so many workers.
    pub fn new(workers: u16) -> Slots {
        let (freed, free) = unbounded();
        for _ in 0..workers {
            let _ = freed.send(());
        }
        Slots { free, freed }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Nobody receives it if the server has ended.
        let _ = self.0.send(());
    }
}

/// The workers of one connection, as far as counting goes.
#[derive(Debug, Default)]
struct Workers {
    started: u16,
    ready: u16,
    ended: u16,
    /// When all that were started must be ready.
    ready_by: Option<Instant>,
}

impl Workers {
    fn start(&mut self, now: Instant) {
        self.started += 1;
        self.ready_by = self.ready_by.or(Some(now + READY_LIMIT));
    }

    fn ready(&mut self) {
        self.ready += 1;
        if self.are_ready() {
            self.ready_by = None;
        }
    }

    fn are_ready(&self) -> bool {
        self.started > 0 && self.ready == self.started
    }

    fn running(&self) -> u16 {
        self.started - self.ended
    }
}

/// What to do while a server that was asked to stop waits for its workers.
#[derive(Debug, PartialEq, Eq)]
enum Draining {
    Wait,
    Done,
    GiveUp,
}

/// How long to wait for workers that finish their requests: without limit while they compute, and for a
/// bounded time for the broker to take and answer the last of what they send.
#[derive(Debug, Default)]
struct Drain {
    deadline: Option<Instant>,
}

impl Drain {
    fn step(&mut self, now: Instant, running: u16, computing: usize, blocked: bool) -> Draining {
        if running == 0 {
            return Draining::Done;
        }
        if computing > 0 {
            self.deadline = None;
            return Draining::Wait;
        }
        // A broker that blocks the connection reads nothing from it, neither replies nor acks.
        if blocked {
            return Draining::Done;
        }
        match *self.deadline.get_or_insert(now + STOP_LIMIT) <= now {
            true => Draining::GiveUp,
            false => Draining::Wait,
        }
    }
}

/// Watches over one connection and its workers.
pub struct Supervisor<'a> {
    session: Session,
    context: Arc<Context>,
    serve: Serve,
    slots: &'a Slots,
    workers: Workers,
    events: Receiver<Event>,
    stop_workers: Sender<()>,
    /// Dropped when the connection is lost, so that the workers read the end of this pipe.
    alive: PipeWriter,
}

impl<'a> Supervisor<'a> {
    /// For workers that `serve` on channels of `session`.
    ///
    /// # Errors
    ///
    /// [`FailureKind::Internal`] if the system has no more pipes.
    pub fn new(
        session: Session,
        service: &Arc<Service>,
        serve: Serve,
        slots: &'a Slots,
    ) -> Result<Supervisor<'a>, Failure> {
        let (connection, alive) = io::pipe().map_err(|error| {
            Failure::new(FailureKind::Internal, format!("cannot open a pipe: {error}"))
        })?;
        if let Some(most) = service.most_waiting() {
            session.inbox().expect_at_most(most);
        }
        let (stop_workers, stop) = unbounded();
        let (sender, events) = unbounded();
        let context = Arc::new(Context {
            service: Arc::clone(service),
            endpoint: session.endpoint().clone(),
            inbox: Arc::clone(session.inbox()),
            connection,
            stop,
            events: sender,
            computing: AtomicUsize::new(0),
        });
        let workers = Workers::default();
        Ok(Supervisor { session, context, serve, slots, workers, events, stop_workers, alive })
    }

    /// Starts the workers and watches over them, until a signal asks to stop. Then the connection is
    /// closed: what is unacknowledged, the prefetched requests among it, goes back to the queue.
    ///
    /// # Errors
    ///
    /// Why the connection was lost.
    pub fn run(mut self, stop: &Receiver<Stop>, state: &mut ReconnectState) -> Result<(), Failure> {
        let served = self.watch(stop, state);
        if served.is_ok() {
            info!("asked to stop: finish the calls in hand");
            notify_service_manager(NotifyState::Stopping);
            if let Err(failure) = self.drain() {
                // What is not acked goes to another server, connection or no connection.
                warn!("while stopping: {failure}");
            }
        }
        drop(self.alive);
        self.session.close();
        served
    }

    fn watch(&mut self, stop: &Receiver<Stop>, state: &mut ReconnectState) -> Result<(), Failure> {
        // Held from the start of the workers until the server says that it awaits requests, so that this
        // comes before any of them.
        let context = Arc::clone(&self.context);
        let (mut transcript, mut is_announced) = (None, false);
        loop {
            let too_late = self.workers.ready_by.map_or_else(never, at);
            select_biased! {
                recv(stop) -> _ => return Ok(()),
                recv(self.session.blocked_notifications()) -> notification => {
                    self.session.set_blocked(notification)?;
                }
                recv(self.events) -> event => match event {
                    Ok(Event::Ready) => self.workers.ready(),
                    Ok(Event::Ended(Err(error))) => return Err(self.classify(error)),
                    Ok(Event::Ended(Ok(()))) => self.workers.ended += 1,
                    Err(_) => return Err(self.session.abort()),
                },
                recv(self.slots.free) -> _ => {
                    if !is_announced {
                        transcript.get_or_insert_with(|| context.service.transcript.hold());
                    }
                    self.start_worker()?;
                }
                recv(too_late) -> _ => return Err(self.session.abort()),
            }
            if self.workers.are_ready()
                && self.slots.free.is_empty()
                && let Some(mut transcript) = transcript.take()
            {
                is_announced = true;
                if state.serves() {
                    warn!("connected to {} again", self.session.name());
                }
                transcript.line(format_args!(" [x] Awaiting RPC requests"));
                notify_service_manager(NotifyState::Ready);
            }
        }
    }

    fn start_worker(&mut self) -> Result<(), Failure> {
        let slot = Slot(self.slots.freed.clone());
        let (context, channel) = (Arc::clone(&self.context), self.session.channel()?);
        let serve = self.serve;
        let work = move || {
            let _slot = slot;
            let mut worker = Worker::new(&context, &channel);
            let ended = catch_panic(|| serve(&mut worker));
            // Before the worker is dropped: its consumer waits for an answer of the broker then, or until
            // the supervisor closes the connection. Nobody receives it if the connection was lost.
            let _ = context.events.send(Event::Ended(ended));
        };
        thread::Builder::new().name("worker".into()).spawn(work).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("cannot start a worker: {error}"))
        })?;
        self.workers.start(Instant::now());
        Ok(())
    }

    /// Waits until all workers have ended.
    fn drain(&mut self) -> Result<(), Failure> {
        for _ in 0..self.workers.running() {
            let _ = self.stop_workers.send(());
        }
        let mut drain = Drain::default();
        loop {
            let computing = self.context.computing.load(Ordering::SeqCst);
            let running = self.workers.running();
            match drain.step(Instant::now(), running, computing, self.session.is_blocked()) {
                Draining::Done => return Ok(()),
                Draining::GiveUp => return Err(self.session.abort()),
                Draining::Wait => {}
            }
            select_biased! {
                recv(self.events) -> event => match event {
                    Ok(Event::Ended(Ok(()))) => self.workers.ended += 1,
                    Ok(Event::Ended(Err(error))) => return Err(self.classify(error)),
                    Ok(Event::Ready) => {}
                    Err(_) => return Err(self.session.abort()),
                },
                recv(self.session.blocked_notifications()) -> notification => {
                    self.session.set_blocked(notification)?;
                }
                default(LOOK_INTERVAL) => {}
            }
        }
    }

    fn classify(&mut self, error: WorkerError) -> Failure {
        match error {
            WorkerError::Consumer(error) => {
                error.classify(&mut self.session, &self.context.service.queue)
            }
            WorkerError::Failed(failure) => failure,
            WorkerError::Panicked => {
                let message = "a worker failed (its reason is logged above)";
                Failure::new(FailureKind::ConnectionLost, message)
            }
        }
    }
}

/// Tells a service manager, if one started the server and wants to know (sd_notify(3), `Type=notify`).
fn notify_service_manager(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(std::slice::from_ref(&state)) {
        warn!("cannot tell the service manager {state:?}: {error}");
    }
}

/// A worker that panics has ended too. What it used is not used again, hence `AssertUnwindSafe`.
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
    fn a_slot_comes_back_when_its_worker_ends() {
        let slots = Slots::new(2);
        assert!(slots.free.try_recv().is_ok() && slots.free.try_recv().is_ok());
        let slot = Slot(slots.freed.clone());
        assert!(slots.free.try_recv().is_err());
        drop(slot);
        assert!(slots.free.try_recv().is_ok() && slots.free.try_recv().is_err());
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
        assert!(!workers.are_ready());
        workers.ready();
        assert!(workers.are_ready() && workers.ready_by.is_none());
        // One that starts later has as long.
        workers.start(now + READY_LIMIT);
        assert_eq!(workers.ready_by, Some(now + 2 * READY_LIMIT));
        workers.ended += 1;
        assert_eq!(workers.running(), 2);
    }

    #[test]
    fn a_server_that_stops_waits_for_what_is_computed_and_not_for_ever_for_a_broker() {
        let now = Instant::now();
        let mut drain = Drain::default();
        assert_eq!(drain.step(now, 2, 1, false), Draining::Wait);
        assert_eq!(drain.step(now + 60 * STOP_LIMIT, 2, 1, true), Draining::Wait);
        let computed = now + 61 * STOP_LIMIT;
        assert_eq!(drain.step(computed, 2, 0, false), Draining::Wait);
        assert_eq!(drain.step(computed + STOP_LIMIT / 2, 2, 0, false), Draining::Wait);
        assert_eq!(drain.step(computed + STOP_LIMIT, 2, 0, false), Draining::GiveUp);
        assert_eq!(drain.step(computed, 2, 0, true), Draining::Done);
        assert_eq!(drain.step(computed, 0, 0, false), Draining::Done);
    }
}
