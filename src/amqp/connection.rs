//! An [`Endpoint`] to an open AMQP connection, and the guards around it: opening and closing take
//! bounded time whatever the broker does, and an error tells what broke.

use crate::amqp::inbox::Inbox;
use crate::amqp::sanitizer::FRAME_MAX;
use crate::amqp::transport;
use crate::amqp::uri::{Credentials, Endpoint};
use crate::amqp::watchdog::Watchdog;
use crate::error::{Failure, Kind};
use crate::terminal::text;
use amiquip::{
    Auth, Channel, Confirm, ConfirmPayload, Connection, ConnectionBlockedNotification,
    ConnectionOptions, ConnectionTuning, Error,
};
use crossbeam_channel::Receiver;
use log::{debug, info, warn};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bound on a synchronous method (a declare, a cancel) unless [`Session::hurry`] shortens it: a
/// broker that takes longer is taken for dead.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Bound on closing a connection in good order.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// How many frames may wait for the library's I/O thread. A message is three; with the library's
/// own bound of 16, a client with calls in flight and a server with requests at hand sleep and wake
/// every few messages. What waits here is what is in flight anyway.
const FRAMES_AHEAD: usize = 1024;

/// RabbitMQ lets 3 s pass before it closes a connection whose credentials it refuses. What the
/// client library reports as refused credentials sooner was a broker that went away meanwhile.
const SHORTEST_REFUSAL: Duration = Duration::from_secs(2);

/// What helps where RabbitMQ says "refused for user".
const PERMISSIONS: &str = "rabbitmqctl set_permissions gives access";

// Reply codes, AMQP 0-9-1 section 1.5.
const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const RESOURCE_LOCKED: u16 = 405;
const PRECONDITION_FAILED: u16 = 406;
const NOT_ALLOWED: u16 = 530;

/// An open connection and what is known of it. Dropping it closes it.
pub struct Session {
    /// None once it was closed.
    connection: Option<Connection>,
    watchdog: Watchdog,
    answer_limit: Duration,
    notices: Receiver<ConnectionBlockedNotification>,
    blocked: Option<String>,
    endpoint: String,
    inbox: Arc<Inbox>,
}

impl Session {
    /// Opens a connection to the first of `endpoints` that accepts one, as `program` (shown by
    /// `rabbitmqctl list_connections client_properties`). `limit` bounds each attempt, from
    /// resolving the name to the end of the AMQP handshake, unless the endpoint has a bound of
    /// its own.
    ///
    /// # Errors
    ///
    /// If none does, all of their failures in one; the kind is that of the first whose broker
    /// could be reached, since that one tells most.
    pub fn open(
        endpoints: &[Endpoint],
        limit: Duration,
        program: &str,
    ) -> Result<Session, Failure> {
        Session::open_within(Duration::MAX, endpoints, limit, program)
    }

    /// The same, with a bound on all attempts together, whatever each of them has: each gets an equal
    /// share of the time that is `left`.
    ///
    /// # Errors
    ///
    /// As of [`Session::open`].
    pub fn open_within(
        left: Duration,
        endpoints: &[Endpoint],
        limit: Duration,
        program: &str,
    ) -> Result<Session, Failure> {
        let began = Instant::now();
        let mut failures: Vec<Failure> = Vec::new();
        for (endpoint, attempts) in endpoints.iter().zip((1..=endpoints.len() as u32).rev()) {
            let share = left.saturating_sub(began.elapsed()) / attempts;
            let limit = endpoint.connection_timeout.unwrap_or(limit).min(share);
            match Session::open_one(endpoint, limit, program) {
                Ok(session) => {
                    for failure in failures {
                        info!("{failure}");
                    }
                    return Ok(session);
                }
                Err(failure) => failures.push(failure),
            }
        }
        let reached = failures.iter().find(|failure| failure.kind != Kind::BrokerUnreachable);
        let kind = reached.map_or(Kind::BrokerUnreachable, |failure| failure.kind);
        let messages: Vec<String> = failures.into_iter().map(|failure| failure.message).collect();
        Err(Failure::new(kind, messages.join("; and ")))
    }

    fn open_one(endpoint: &Endpoint, limit: Duration, program: &str) -> Result<Session, Failure> {
        let deadline = Instant::now() + limit;
        let socket = transport::dial(endpoint, deadline)?;
        let watchdog = socket.try_clone().and_then(Watchdog::new).map_err(|error| {
            Failure::new(Kind::Internal, format!("no thread to watch the connection: {error}"))
        })?;
        let left = deadline.saturating_duration_since(Instant::now());
        let (began, mut in_login) = (Instant::now(), false);
        let inbox = Arc::new(Inbox::default());
        let opened: Result<_, Failure> = watchdog.bounded(left, || {
            let transport = transport::establish(endpoint, socket, Arc::clone(&inbox))?;
            let tuning = ConnectionTuning::default().mem_channel_bound(FRAMES_AHEAD);
            let mut connection =
                Connection::insecure_open_stream(transport, options(endpoint, program), tuning)
                    .map_err(|error| {
                        in_login = matches!(error, Error::InvalidCredentials);
                        // What the library reports as refused credentials, whatever it was.
                        let error = inbox.violation().map_or(error, violation);
                        refusal(endpoint, error, began.elapsed())
                    })?;
            let notices = connection
                .listen_for_connection_blocked()
                .map_err(|error| refusal(endpoint, error, began.elapsed()))?;
            Ok((connection, notices))
        });
        if watchdog.fired() {
            let limit = text::duration(limit.max(Duration::from_millis(1)));
            let mut message = format!(
                "{endpoint} took the connection, but did not finish the handshake within {limit}; \
                 is RabbitMQ listening there? (--connect-timeout allows more)"
            );
            if in_login {
                message += "; RabbitMQ takes its time to refuse credentials: check them too";
            }
            return Err(Failure::new(Kind::BrokerUnreachable, message));
        }
        let (connection, notices) = opened?;
        info!("connected to {endpoint}");
        let endpoint = endpoint.to_string();
        Ok(Session {
            connection: Some(connection),
            watchdog,
            answer_limit: ANSWER_LIMIT,
            notices,
            blocked: None,
            endpoint,
            inbox,
        })
    }

    /// Counts what comes by this connection. Whoever knows how many messages can wait at a time says so
    /// by [`Inbox::expect_at_most`], and then calls [`Inbox::taken`] for each message that is taken from
    /// a receiver; of those that come from [`Session::notices`], [`Session::note`] does so.
    pub fn inbox(&self) -> &Arc<Inbox> {
        &self.inbox
    }

    /// Where the connection goes, for messages.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// Opens a channel.
    ///
    /// # Errors
    ///
    /// As [`Session::explain`] has them.
    pub fn channel(&mut self) -> Result<Channel, Failure> {
        let opened = match &mut self.connection {
            Some(connection) => {
                self.watchdog.bounded(self.answer_limit, || connection.open_channel(None))
            }
            None => Err(Error::ClientClosedConnection),
        };
        opened.map_err(|error| self.explain(error))
    }

    /// Calls a synchronous method of a channel of this connection, within bounded time.
    ///
    /// # Errors
    ///
    /// As [`Session::explain`] has them.
    pub fn ask<T>(&mut self, method: impl FnOnce() -> amiquip::Result<T>) -> Result<T, Failure> {
        self.within(self.answer_limit, method)
    }

    /// The same, with a bound of one's own.
    ///
    /// # Errors
    ///
    /// As [`Session::explain`] has them.
    pub fn within<T>(
        &mut self,
        limit: Duration,
        method: impl FnOnce() -> amiquip::Result<T>,
    ) -> Result<T, Failure> {
        let answer = self.watchdog.bounded(limit, method);
        answer.map_err(|error| self.explain(error))
    }

    /// From now on, takes a broker that needs longer than `limit` to answer for dead, and in any
    /// case one that needs longer than 10 s. Returns the bound that was in force.
    pub fn hurry(&mut self, limit: Duration) -> Duration {
        std::mem::replace(&mut self.answer_limit, limit.min(ANSWER_LIMIT))
    }

    /// Where the broker tells that it blocks this connection's publishing, and that it no longer
    /// does; each message is to be handed to [`Session::note`]. RabbitMQ, "Blocked Connection
    /// Notifications".
    pub fn notices(&self) -> &Receiver<ConnectionBlockedNotification> {
        &self.notices
    }

    /// Takes note of what came from [`Session::notices`], and tells it.
    pub fn note(&mut self, notice: ConnectionBlockedNotification) {
        self.inbox.taken();
        self.blocked = match notice {
            ConnectionBlockedNotification::Blocked(reason) => {
                warn!("{} blocks publishing ({reason}); waiting", self.endpoint);
                Some(reason)
            }
            ConnectionBlockedNotification::Unblocked => {
                warn!("{} no longer blocks publishing", self.endpoint);
                None
            }
        };
    }

    /// Why the connection is gone, after one of its receivers disconnected.
    pub fn lost(&mut self) -> Failure {
        self.explain(Error::EventLoopDropped)
    }

    /// The broker's reason, while it blocks this connection's publishing. A broker that does
    /// reads nothing more from the connection: a synchronous method would wait in vain.
    pub fn blocked(&self) -> Option<&str> {
        self.blocked.as_deref()
    }

    /// The failure that this is, while the broker blocks this connection's publishing.
    pub fn obstruction(&self) -> Option<Failure> {
        let endpoint = &self.endpoint;
        self.blocked().map(|reason| {
            let message =
                format!("{endpoint} blocks publishing: {reason}; free its memory or disk");
            Failure::new(Kind::Blocked, message)
        })
    }

    /// The broker took too long: ends the connection, so that whatever still waits for it returns.
    pub fn give_up(&mut self) -> Failure {
        self.watchdog.fire();
        self.lost()
    }

    /// What an error of the client library means. Unless it is of one channel alone, or of none, this
    /// closes the connection, since closing is what brings out the cause: the library reports a lost
    /// connection as a dropped event loop.
    pub fn explain(&mut self, error: Error) -> Failure {
        if let Error::ServerClosedChannel { code, message, .. } = &error {
            let remedy = match message.contains("refused for user") {
                true => format!("; {PERMISSIONS}"),
                false => String::new(),
            };
            let kind = match *code {
                ACCESS_REFUSED => Kind::AccessRefused,
                NOT_FOUND => Kind::QueueMissing,
                RESOURCE_LOCKED => Kind::QueueUnusable,
                PRECONDITION_FAILED if message.contains("message size") => Kind::TooLarge,
                PRECONDITION_FAILED => Kind::Configuration,
                _ => Kind::ConnectionLost,
            };
            return Failure::new(kind, format!("{} refused: {message}{remedy}", self.endpoint));
        }
        if let Error::ExhaustedChannelIds = error {
            let message = format!(
                "{} gives no more channels: see channel_max in the URI or on the broker (each of the server's --workers needs one)",
                self.endpoint
            );
            return Failure::new(Kind::Configuration, message);
        }
        let cause = self.close_connection().err().unwrap_or(error);
        match self.obstruction() {
            Some(failure) if self.watchdog.fired() => failure,
            _ => Failure::new(Kind::ConnectionLost, self.how_lost(&cause)),
        }
    }

    fn how_lost(&self, cause: &Error) -> String {
        let endpoint = &self.endpoint;
        if let Some(reason) = self.inbox.violation() {
            return format!("the connection to {endpoint} was ended: {reason}");
        }
        match cause {
            _ if self.watchdog.fired() => {
                format!("{endpoint} no longer answers; the connection was given up")
            }
            Error::ServerClosedConnection { message, .. } => {
                format!("{endpoint} closed the connection: {message}")
            }
            Error::MissedServerHeartbeats => {
                format!("{endpoint} no longer answers: it sent no heartbeat")
            }
            Error::UnexpectedSocketClose
            | Error::IoErrorReadingSocket { .. }
            | Error::IoErrorWritingSocket { .. } => {
                format!("the connection to {endpoint} was lost ({cause})")
            }
            _ => format!("the connection to {endpoint} failed: {cause}"),
        }
    }

    /// Closes the connection in good order, or gives it up when that takes longer than 2 s, or
    /// at once when the broker reads nothing from it. Channels and consumers on it should be
    /// dropped only afterwards: each would wait for an answer of its own.
    ///
    /// The work is done by then, so that an error is of no consequence; it is logged.
    pub fn close(&mut self) {
        if let Err(error) = self.close_connection() {
            debug!("closing the connection to {}: {error}", self.endpoint);
        }
    }

    fn close_connection(&mut self) -> Result<(), Error> {
        while let Ok(notice) = self.notices.try_recv() {
            self.note(notice);
        }
        let limit = if self.blocked.is_some() { Duration::ZERO } else { CLOSE_LIMIT };
        match self.connection.take() {
            Some(connection) => self.watchdog.bounded(limit, || connection.close()),
            None => Ok(()),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.close_connection();
    }
}

/// The largest body that the broker takes, as it says in a failure of [`Kind::TooLarge`]: "message
/// size 2090 is larger than configured max size 1000".
pub fn size_limit(failure: &Failure) -> Option<usize> {
    failure.message.rsplit(' ').next()?.parse().ok()
}

/// Puts a channel into confirm mode: from now on the broker tells of each message that it has it
/// (RabbitMQ, "Consumer Acknowledgements and Publisher Confirms").
///
/// # Errors
///
/// Those of the channel.
pub fn confirm_mode(channel: &Channel) -> amiquip::Result<Receiver<Confirm>> {
    let confirms = channel.listen_for_publisher_confirms()?;
    channel.enable_publisher_confirms()?;
    Ok(confirms)
}

/// Whether a confirm is about the message of this number, which counts those that were published on
/// the channel since it is in confirm mode, from 1.
pub fn covers(confirm: &ConfirmPayload, number: u64) -> bool {
    match confirm.multiple {
        true => number <= confirm.delivery_tag,
        false => number == confirm.delivery_tag,
    }
}

fn options(endpoint: &Endpoint, program: &str) -> ConnectionOptions<Auth> {
    let auth = match &endpoint.credentials {
        Credentials::Plain { username, password } => {
            Auth::Plain { username: username.clone(), password: password.clone() }
        }
        Credentials::External => Auth::External,
    };
    ConnectionOptions::default()
        .auth(auth)
        .virtual_host(endpoint.vhost.clone())
        .heartbeat(endpoint.heartbeat)
        .channel_max(endpoint.channel_max)
        .frame_max(FRAME_MAX)
        .information(Some(format!("{program} {}", env!("CARGO_PKG_VERSION"))))
}

/// Why a broker that was reached did not open the connection, `after` a time.
fn refusal(endpoint: &Endpoint, error: Error, after: Duration) -> Failure {
    let (kind, message) = match &error {
        Error::InvalidCredentials if after < SHORTEST_REFUSAL => (
            Kind::BrokerUnreachable,
            format!(
                "{endpoint} closed the connection during the login; if it goes on to, check user and password"
            ),
        ),
        Error::InvalidCredentials => {
            let remedy = match endpoint.credentials {
                Credentials::Plain { .. } => {
                    "check user and password in --url or AMQP_URL; RabbitMQ lets guest in from localhost only"
                }
                Credentials::External => {
                    "check the client certificate, and that a user has its name"
                }
            };
            (Kind::AccessRefused, format!("{endpoint} refused the credentials; {remedy}"))
        }
        Error::UnsupportedAuthMechanism { available, requested } => (
            Kind::Configuration,
            format!(
                "{endpoint} does not offer the authentication mechanism {requested}, but {available}"
            ),
        ),
        Error::ServerClosedConnection { code: NOT_ALLOWED, message }
            if message.ends_with("not found") =>
        {
            let vhost = &endpoint.vhost;
            let remedy = match vhost.as_str() {
                "" => "the URI ends with a slash, which names the vhost \"\": without it the default vhost / is meant".into(),
                _ => format!("rabbitmqctl add_vhost {vhost} makes it, the URI names another"),
            };
            (Kind::Configuration, format!("{endpoint} has no vhost \"{vhost}\"; {remedy}"))
        }
        // "access to vhost 'x' refused for user 'y'", and not "...: connection limit (7) is reached",
        // which has the same code and passes.
        Error::ServerClosedConnection { code: NOT_ALLOWED, message }
            if message.contains("refused for user") && !message.ends_with("is reached") =>
        {
            (Kind::AccessRefused, format!("{endpoint} refused access: {message}; {PERMISSIONS}"))
        }
        Error::ServerClosedConnection { message, .. } => {
            (Kind::BrokerUnreachable, format!("{endpoint} closed the connection: {message}"))
        }
        // With TLS 1.3, a client learns only after the handshake that its certificate is missing or
        // refused (RFC 8446, section 4.4.2.4), by an alert that a reset can overtake.
        Error::UnexpectedSocketClose
        | Error::IoErrorReadingSocket { .. }
        | Error::IoErrorWritingSocket { .. }
            if endpoint.tls.is_some() && !speaks_otherwise(&error) =>
        {
            debug!("{endpoint} ended the TLS connection: {error}");
            let message = format!(
                "{endpoint} ended the connection after the TLS handshake; most likely it wants a \
                 client certificate that it trusts: see certfile and keyfile in its URI"
            );
            (Kind::Configuration, message)
        }
        Error::IoErrorReadingSocket { source } => (
            Kind::BrokerUnreachable,
            format!(
                "no AMQP handshake with {endpoint}: {source}; check host and port in --url or AMQP_URL"
            ),
        ),
        _ => (
            Kind::BrokerUnreachable,
            format!(
                "no AMQP handshake with {endpoint}: {error}; check host and port in --url or AMQP_URL"
            ),
        ),
    };
    Failure::new(kind, message)
}

/// The error with which [`crate::amqp::transport`] ends what breaks the rules.
fn violation(reason: &str) -> Error {
    let source = io::Error::new(io::ErrorKind::InvalidData, reason);
    Error::IoErrorReadingSocket { source }
}

/// Whether this is such an error.
fn speaks_otherwise(error: &Error) -> bool {
    let Error::IoErrorReadingSocket { source } = error else { return false };
    source.kind() == io::ErrorKind::InvalidData
}
