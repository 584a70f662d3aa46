//! Starts the workers of one connection, watches over them, and lets them finish when a signal asks
//! the server to stop.

use crate::amqp::connection::Session;
use crate::cancellation::{Cancelled, RunningCalls};
use crate::error::{Failure, FailureKind};
use crate::server::reconnect::ReconnectState;
use crate::server::worker::{Context, Event, STOP_LIMIT, Service, Worker, WorkerError};
use crate::signals::Stop;
use crossbeam_channel::{Receiver, RecvError, at, never, select_biased, unbounded};
use log::{info, warn};
use sd_notify::NotifyState;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long the broker may take until all workers consume.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// A worker's message in [`Service::slots`].
struct Slot(Receiver<()>);

impl Drop for Slot {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}

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

    fn are_ready(&self) -> bool {
        self.running > 0 && self.unready == 0
    }
}

/// Starts workers on `session` and watches over them, until a signal asks to stop or the connection is
/// lost. In the end it is closed: what is unacknowledged, prefetched too, goes back to the queue.
pub fn supervise(
    session: Session,
    service: Arc<Service>,
    stop: &Receiver<Stop>,
    state: &mut ReconnectState,
) -> Result<(), Failure> {
    if let Some(most) = most_expected(service.args.workers, service.args.prefetch) {
        session.inbox().expect_at_most(most);
    }
    let context = Arc::new(Context {
        service,
        endpoint: session.endpoint().clone(),
        inbox: Arc::clone(session.inbox()),
        calls: RunningCalls::default(),
        stop: unbounded(),
        events: unbounded(),
        announced: OnceLock::new(),
    });
    let mut supervisor = Supervisor { session, context, workers: Workers::default() };
    let served = supervisor.watch(stop, state);
    // No worker may go on waiting for it.
    let _ = supervisor.context.announced.set(());
    if served.is_ok() {
        info!("asked to stop: finish the calls in hand");
        notify_service_manager(NotifyState::Stopping);
        if let Err(failure) = supervisor.drain() {
            // What is not acked goes to another server, connection or no connection.
            warn!("while stopping: {failure}");
        }
    }
    supervisor.context.calls.cancel_all(Cancelled::ConnectionLost);
    supervisor.session.close();
    served
}

/// How many messages can wait for the workers: their requests, and a confirm for the reply to each.
/// None, with a prefetch of 0: any number.
fn most_expected(workers: u16, prefetch: u16) -> Option<u64> {
    (prefetch > 0).then(|| 2 * u64::from(workers) * u64::from(prefetch))
}

struct Supervisor {
    session: Session,
    context: Arc<Context>,
    workers: Workers,
}

impl Supervisor {
    fn watch(&mut self, stop: &Receiver<Stop>, state: &mut ReconnectState) -> Result<(), Failure> {
        let context = Arc::clone(&self.context);
        let (slots, ended) = &context.service.slots;
        loop {
            let too_late = self.workers.ready_by.map_or_else(never, at);
            select_biased! {
                recv(stop) -> _ => return Ok(()),
                recv(self.session.blocked_notifications()) -> notification => {
                    self.session.set_blocked(notification)?;
                }
                recv(context.events.1) -> event => self.take(event)?,
                send(slots, ()) -> _ => self.start_worker(Slot(ended.clone()))?,
                recv(too_late) -> _ => return Err(self.session.abort()),
            }
            if self.workers.are_ready() && slots.is_full() && context.announced.get().is_none() {
                if state.serves() {
                    warn!("connected to {} again", self.session.name());
                }
                context.service.transcript.line(format_args!(" [x] Awaiting RPC requests"));
                let _ = context.announced.set(());
                notify_service_manager(NotifyState::Ready);
            }
        }
    }

    fn start_worker(&mut self, slot: Slot) -> Result<(), Failure> {
        let (context, channel) = (Arc::clone(&self.context), self.session.channel()?);
        let work = move || {
            let _slot = slot;
            let mut worker = Worker::new(&context, &channel);
            let ended = catch_panic(|| (context.service.serve)(&mut worker));
            // Before the worker is dropped: its consumer waits for an answer of the broker then, or until
            // the supervisor closes the connection. Nobody receives it if the connection was lost.
            let _ = context.events.0.send(Event::Ended(ended));
        };
        let spawned = thread::Builder::new().name("worker".into()).spawn(work);
        spawned.map_err(Failure::internal("cannot start a worker"))?;
        self.workers.start(Instant::now());
        Ok(())
    }

    fn take(&mut self, event: Result<Event, RecvError>) -> Result<(), Failure> {
        match event {
            Ok(Event::Ready) => self.workers.ready(),
            Ok(Event::Ended(Ok(()))) => self.workers.running -= 1,
            Ok(Event::Ended(Err(WorkerError::Failed(failure)))) => return Err(failure),
            Ok(Event::Ended(Err(WorkerError::Consumer(error)))) => {
                let queue = &self.context.service.args.common.queue;
                return Err(error.classify(&mut self.session, queue));
            }
            Err(RecvError) => return Err(self.session.abort()),
        }
        Ok(())
    }

    /// Waits until all workers have ended, within limits.
    fn drain(&mut self) -> Result<(), Failure> {
        for _ in 0..self.workers.running {
            let _ = self.context.stop.0.send(());
        }
        let mut deadline = None;
        while self.workers.running > 0 {
            let (now, is_blocked) = (Instant::now(), self.session.is_blocked());
            let is_computing = !self.context.calls.is_empty();
            deadline = drain_deadline(deadline, now, is_computing, is_blocked);
            if deadline.is_some_and(|deadline| deadline <= now) {
                return if is_blocked { Ok(()) } else { Err(self.session.abort()) };
            }
            select_biased! {
                recv(self.context.events.1) -> event => self.take(event)?,
                recv(self.session.blocked_notifications()) -> notification => {
                    self.session.set_blocked(notification)?;
                }
                default(Duration::from_millis(100)) => {}
            }
        }
        Ok(())
    }
}

/// Until when a server that stops waits for its workers. While they compute there is no limit; then the
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

/// A worker that panics has ended too. What it used is not used again, hence `AssertUnwindSafe`.
fn catch_panic(serve: impl FnOnce() -> Result<(), WorkerError>) -> Result<(), WorkerError> {
    catch_unwind(AssertUnwindSafe(serve)).unwrap_or_else(|_| {
        let message = "a worker failed (its reason is logged above)";
        Err(WorkerError::Failed(Failure::new(FailureKind::ConnectionLost, message)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;

    #[test]
    fn a_worker_that_panics_has_ended() {
        assert!(matches!(catch_panic(|| panic!("out of luck")), Err(WorkerError::Failed(_))));
        assert!(catch_panic(|| Ok(())).is_ok());
    }

    #[test]
    fn a_slot_comes_back_when_its_worker_ends() {
        let (slots, ended) = bounded(2);
        assert!(slots.try_send(()).is_ok() && slots.try_send(()).is_ok());
        let slot = Slot(ended.clone());
        assert!(slots.try_send(()).is_err());
        drop(slot);
        assert!(slots.try_send(()).is_ok() && slots.try_send(()).is_err());
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
}
