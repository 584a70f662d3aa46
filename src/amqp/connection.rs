//! An [`Endpoint`] to an open AMQP connection, and the guards around it: opening and closing take
//! bounded time whatever the broker does, and an error tells what broke.

use crate::amqp::client_properties::{ClientProperties, Opening};
use crate::amqp::errors::{self, AmqpError, AmqpErrorKind, OpenError, Remedy};
use crate::amqp::inbox::{Close, Inbox};
use crate::amqp::inspector::Inspector;
use crate::amqp::sanitizer::FRAME_MAX;
use crate::amqp::traffic::Traffic;
use crate::amqp::transport::{self, Transport};
use crate::amqp::uri::Endpoint;
use crate::amqp::watchdog::{Flow, Watchdog};
use crate::mutex::lock;
use amiquip::{
    Auth, Channel, Connection, ConnectionBlockedNotification, ConnectionOptions, ConnectionTuning,
    Error, Return,
};
use crossbeam_channel::{Receiver, RecvError};
use log::{debug, warn};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Bound on a synchronous method (a declare, a cancel) unless [`OpenConnection::set_call_timeout`] shortens
/// it: a broker that takes longer, while nothing else moves on the connection, is taken for dead.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// Bound on closing a connection in good order, while nothing moves on it.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// Bound on closing a connection while the broker blocks it, and so does not read that it is closed.
/// A connection that has ended already tells its cause in this time.
const BLOCKED_CLOSE_TIMEOUT: Duration = Duration::from_millis(100);

/// How many frames may wait for the library's I/O thread. A message is three; with the library's
/// own bound of 16, a client with calls in flight and a server with requests at hand sleep and wake
/// every few messages. What waits here is what is in flight anyway.
const FRAMES_AHEAD: usize = 1024;

/// A connection that an [`Inspector`] opens a channel on while somebody else uses it. None once it was closed.
pub(super) type SharedConnection = Arc<Mutex<Option<Connection>>>;

/// What is of no use any more, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Broken {
    /// One channel, or none yet: the error is one of [`errors::of_channel`], and the connection is still good.
    Channel(AmqpError),
    /// The connection: the error is [`AmqpErrorKind::ConnectionLost`] or [`AmqpErrorKind::Blocked`].
    Connection(AmqpError),
}

impl From<Broken> for AmqpError {
    fn from(broken: Broken) -> AmqpError {
        match broken {
            Broken::Channel(error) | Broken::Connection(error) => error,
        }
    }
}

/// An open connection and what is known of it. Dropping it closes it.
pub struct OpenConnection {
    connection: SharedConnection,
    inspector: Inspector,
    watchdog: Watchdog,
    call_timeout: Duration,
    blocked_notifications: Receiver<ConnectionBlockedNotification>,
    /// The broker's reason, while it blocks publishing.
    blocked: Option<String>,
    endpoint: Endpoint,
    /// The endpoint as messages name it.
    name: String,
    failed_attempts: Vec<AmqpError>,
    inbox: Arc<Inbox>,
}

impl OpenConnection {
    /// Opens a connection to the first of `endpoints` that accepts one, and tells it the client's `properties` (shown
    /// by `rabbitmqctl list_connections client_properties`). `limit` bounds each attempt, from resolving the name to
    /// the end of the AMQP handshake, unless the endpoint has a bound of its own.
    ///
    /// # Errors
    ///
    /// If none does, why, of each.
    pub fn open(
        endpoints: &[Endpoint],
        limit: Duration,
        properties: &ClientProperties,
    ) -> Result<OpenConnection, OpenError> {
        OpenConnection::open_within(Duration::MAX, endpoints, limit, properties)
    }

    /// Opens a connection as [`OpenConnection::open`] does, with a bound on all attempts together: each gets an equal
    /// share of the time that is `left`.
    /// Fails as that does.
    pub fn open_within(
        left: Duration,
        endpoints: &[Endpoint],
        limit: Duration,
        properties: &ClientProperties,
    ) -> Result<OpenConnection, OpenError> {
        let began = Instant::now();
        let mut attempts = Vec::new();
        for (endpoint, remaining) in endpoints.iter().zip((1..=endpoints.len() as u32).rev()) {
            let share = left.saturating_sub(began.elapsed()) / remaining;
            let limit = endpoint.connection_timeout.unwrap_or(limit).min(share);
            match OpenConnection::open_one(endpoint, limit, properties) {
                Ok(mut connection) => {
                    connection.failed_attempts = attempts;
                    return Ok(connection);
                }
                Err(error) => attempts.push(error),
            }
        }

        Err(OpenError { attempts })
    }

    fn open_one(
        endpoint: &Endpoint,
        limit: Duration,
        properties: &ClientProperties,
    ) -> Result<OpenConnection, AmqpError> {
        let deadline = Instant::now() + limit;
        let socket = transport::dial(endpoint, deadline)?;
        let traffic = Arc::new(Traffic::default());
        let watchdog = socket.try_clone();
        let watchdog = watchdog.and_then(|socket| Watchdog::new(socket, Arc::clone(&traffic)));
        let watchdog = watchdog.map_err(|error| {
            let message = format!("cannot watch the connection: {error}");
            AmqpError::new(AmqpErrorKind::Internal, message)
        })?;

        let began = Instant::now();
        let left = deadline.saturating_duration_since(began);
        let mut is_in_login = false;
        let inbox = Arc::new(Inbox::default());
        let opened: Result<_, AmqpError> = watchdog.bounded(left, || {
            let opening = Opening::new(&properties.connection_name);
            let transport =
                transport::establish(endpoint, socket, opening, Arc::clone(&inbox), traffic)?;
            handshake(transport, options(endpoint, properties)).map_err(|error| {
                is_in_login = matches!(error, Error::InvalidCredentials);
                let error = told(error, &inbox);
                match inbox.violation() {
                    Some(reason) => errors::no_handshake(endpoint, &reason),
                    None => errors::of_handshake(endpoint, error, began.elapsed()),
                }
            })
        });

        if watchdog.fired() {
            return Err(errors::handshake_too_slow(endpoint, limit, is_in_login));
        }

        let (connection, blocked_notifications) = opened?;
        let connection = Arc::new(Mutex::new(Some(connection)));
        Ok(OpenConnection {
            inspector: Inspector::new(Arc::clone(&connection), endpoint.to_string()),
            connection,
            watchdog,
            call_timeout: CALL_TIMEOUT,
            blocked_notifications,
            blocked: None,
            endpoint: endpoint.clone(),
            name: endpoint.to_string(),
            failed_attempts: Vec::new(),
            inbox,
        })
    }

    /// Returns what counts the messages that come by this connection. Whoever knows how many can wait at a time says so
    /// by [`Inbox::expect_at_most`]. What is taken is counted by [`crate::amqp::consumer::CountedConsumer`],
    /// [`crate::amqp::confirms::Confirms`], [`OpenConnection::returned`] and [`OpenConnection::set_blocked`].
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Returns where the connection goes.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Returns where the connection goes, for messages: without the password.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns why there is no connection to the brokers that stood before this one in the list, of each.
    pub fn failed_attempts(&self) -> &[AmqpError] {
        &self.failed_attempts
    }

    fn lock_connection(&self) -> MutexGuard<'_, Option<Connection>> {
        lock(&self.connection)
    }

    /// Returns how many bytes have gone over the connection by now, to the broker or both ways.
    pub fn count(&self, flow: Flow) -> u64 {
        self.watchdog.count(flow)
    }

    /// Opens a channel.
    /// Fails with what [`OpenConnection::classify`] returns.
    pub fn channel(&mut self) -> Result<Channel, AmqpError> {
        let open = || match self.lock_connection().as_mut() {
            Some(connection) => connection.open_channel(None),
            None => Err(Error::ClientClosedConnection),
        };
        let opened = bounded(&self.watchdog, self.call_timeout, open);
        opened.map_err(|error| self.classify(error))
    }

    /// Returns who looks at queues meanwhile, on a channel apart.
    pub fn inspector(&self) -> &Inspector {
        &self.inspector
    }

    /// Calls a synchronous method of a channel of this connection, within bounded time.
    /// Fails with what [`OpenConnection::classify`] returns.
    pub fn call<T>(&mut self, method: impl FnOnce() -> amiquip::Result<T>) -> Result<T, AmqpError> {
        let answer = bounded(&self.watchdog, self.call_timeout, method);
        answer.map_err(|error| self.classify(error))
    }

    /// Calls a synchronous method of a channel of this connection, within `limit`.
    /// Fails with what [`OpenConnection::classify`] returns.
    pub fn call_within<T>(
        &mut self,
        limit: Duration,
        method: impl FnOnce() -> amiquip::Result<T>,
    ) -> Result<T, AmqpError> {
        let answer = self.watchdog.bounded(limit, method);
        answer.map_err(|error| self.classify(error))
    }

    /// Bounds each synchronous method from now on: a broker that needs longer than `limit` is taken for dead, and in
    /// any case one that needs longer than 10 s. Returns the bound that was in force.
    pub fn set_call_timeout(&mut self, limit: Duration) -> Duration {
        std::mem::replace(&mut self.call_timeout, limit.min(CALL_TIMEOUT))
    }

    /// Returns where the broker tells that it blocks this connection's publishing, and that it no longer
    /// does; what is received is to be handed to [`OpenConnection::set_blocked`]. RabbitMQ, "Blocked
    /// Connection Notifications".
    pub fn blocked_notifications(&self) -> &Receiver<ConnectionBlockedNotification> {
        &self.blocked_notifications
    }

    /// Keeps what was received from [`OpenConnection::blocked_notifications`], and logs it.
    ///
    /// # Errors
    ///
    /// Why the connection is gone, if it is.
    pub fn set_blocked(
        &mut self,
        received: Result<ConnectionBlockedNotification, RecvError>,
    ) -> Result<(), AmqpError> {
        let notification = received.map_err(|RecvError| self.classify(Error::EventLoopDropped))?;
        self.inbox.taken();
        let name = &self.name;
        self.blocked = match notification {
            ConnectionBlockedNotification::Blocked(reason) => {
                warn!("{name} blocks publishing ({reason}); waiting");
                Some(reason)
            }
            ConnectionBlockedNotification::Unblocked => {
                warn!("{name} no longer blocks publishing");
                None
            }
        };
        Ok(())
    }

    /// Returns the request in what was received from [`Channel::listen_for_returns`].
    ///
    /// # Errors
    ///
    /// Why the connection is gone, if it is.
    pub fn returned(&mut self, received: Result<Return, RecvError>) -> Result<Return, AmqpError> {
        let returned = received.map_err(|RecvError| self.classify(Error::EventLoopDropped))?;
        self.inbox.taken();
        Ok(returned)
    }

    /// Returns whether the broker blocks this connection's publishing. It reads nothing more from the
    /// connection then: a synchronous method would wait in vain.
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Returns the error that publishing is at the moment, if the broker blocks it.
    pub fn blocked(&self) -> Option<AmqpError> {
        let reason = self.blocked.as_ref()?;
        let message = format!("{} blocks publishing: {reason}", self.name);
        let error = AmqpError::new(AmqpErrorKind::Blocked, message);
        Some(error.with_remedy(Remedy::FreeResources))
    }

    /// Ends the connection of a broker that took too long, so that whatever still waits for it returns.
    pub fn abort(&mut self) -> AmqpError {
        self.watchdog.fire();
        self.classify(Error::EventLoopDropped)
    }

    /// Returns the error of what [`OpenConnection::diagnose`] says is broken, by an error of the client library.
    pub fn classify(&mut self, error: Error) -> AmqpError {
        self.diagnose(error).into()
    }

    /// Returns what an error of the client library says is broken. If it is the connection, this closes it: the
    /// library reports a lost connection as a dropped event loop, and its cause only to who closes it.
    pub fn diagnose(&mut self, error: Error) -> Broken {
        match errors::of_channel(&self.name, &error) {
            Some(error) => Broken::Channel(error),
            None => Broken::Connection(self.lost(error)),
        }
    }

    fn lost(&mut self, error: Error) -> AmqpError {
        let is_aborted = self.watchdog.fired();
        let cause = self.close_connection().err().unwrap_or(error);
        if let Some(reason) = self.inbox.violation() {
            let message = format!("the connection to {} was ended: {reason}", self.name);
            return AmqpError::new(AmqpErrorKind::ConnectionLost, message);
        }
        if !is_aborted {
            return errors::of_connection(&self.name, &told(cause, &self.inbox));
        }
        self.blocked().unwrap_or_else(|| {
            let message = format!("{} no longer answers; the connection was given up", self.name);
            AmqpError::new(AmqpErrorKind::ConnectionLost, message)
        })
    }

    /// Closes the connection in good order, or gives it up when that takes longer than 2 s. Channels
    /// and consumers on it should be dropped only afterwards: each would wait for an answer of its own.
    ///
    /// The work is done by then, so that an error is of no consequence; it is logged.
    pub fn close(&mut self) {
        if let Err(error) = self.close_connection() {
            debug!("closing the connection to {}: {error}", self.name);
        }
    }

    fn close_connection(&mut self) -> Result<(), Error> {
        while let Ok(notification) = self.blocked_notifications.try_recv() {
            // There was a notification, so that this is no error.
            let _ = self.set_blocked(Ok(notification));
        }
        let limit = if self.is_blocked() { BLOCKED_CLOSE_TIMEOUT } else { CLOSE_TIMEOUT };
        // An inspector may have it at the moment, and waits for the broker; it returns when the bound is over.
        self.watchdog.bounded_standstill(limit, Flow::Sent, || {
            match self.lock_connection().take() {
                Some(connection) => connection.close(),
                None => Ok(()),
            }
        })
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        let _ = self.close_connection();
    }
}

/// Opens a connection on a transport. Returns it with what tells that the broker blocks it.
fn handshake(
    transport: Transport,
    options: ConnectionOptions<Auth>,
) -> amiquip::Result<(Connection, Receiver<ConnectionBlockedNotification>)> {
    let tuning = ConnectionTuning::default().mem_channel_bound(FRAMES_AHEAD);
    let mut connection = Connection::insecure_open_stream(transport, options, tuning)?;
    let blocked = connection.listen_for_connection_blocked()?;
    Ok((connection, blocked))
}

/// Returns the error with the broker's reason, where the library failed in the middle of being told that the
/// connection is closed.
fn told(error: Error, inbox: &Inbox) -> Error {
    match (error, inbox.connection_close()) {
        (Error::IoThreadPanic | Error::EventLoopDropped, Some(Close { code, text })) => {
            Error::ServerClosedConnection { code: *code, message: text.clone() }
        }
        (error, _) => error,
    }
}

/// Runs a synchronous method with a bound: on standing still, unless whoever waits for it has a shorter one of his own.
fn bounded<T>(watchdog: &Watchdog, limit: Duration, method: impl FnOnce() -> T) -> T {
    if limit < CALL_TIMEOUT {
        watchdog.bounded(limit, method)
    } else {
        watchdog.bounded_standstill(limit, Flow::Either, method)
    }
}

fn options(endpoint: &Endpoint, properties: &ClientProperties) -> ConnectionOptions<Auth> {
    ConnectionOptions::default()
        .auth(endpoint.credentials.clone())
        .virtual_host(endpoint.vhost.clone())
        .heartbeat(endpoint.heartbeat)
        .channel_max(endpoint.channel_max)
        .frame_max(FRAME_MAX)
        .information(Some(properties.information.clone()))
}
