//! Answers GET and HEAD over HTTP, one response for each connection, on one thread for all of them.
//!
//! The small servers that there are start a thread for each connection, or wait for whoever is slow: here a stranger must
//! not be able to cost the server more than this thread. So it never waits for one connection, has no more than
//! `CONNECTIONS_MAX`, reads no more than `HEAD_MAX` of each, and gives up each after `TIME_LIMIT`. When there is no
//! room for another one, the oldest goes: those who only hold connections keep nobody out.

use crate::error::Failure;
use httparse::Status;
use log::debug;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

/// How many connections there are at a time.
const CONNECTIONS_MAX: usize = 32;

/// How long a connection may last in all.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// How much of a request is read for its head, in bytes.
const HEAD_MAX: usize = 8192;

/// How many lines a head may have.
const HEADERS_MAX: usize = 64;

/// How much is read, and thrown away, of what comes behind a head, in bytes: a response is lost if its connection is closed
/// with something unread (RFC 9112, section 9.6).
const REST_MAX: usize = 64 << 10;

/// How long nothing is accepted after the system had no descriptor for a connection.
const PAUSE: Duration = Duration::from_millis(100);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request<'a> {
    /// The path, without a query.
    pub path: &'a str,
    /// The header `Accept`, if it is there.
    pub accept: Option<&'a str>,
}

/// What is answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status and its phrase.
    pub status: &'static str,
    /// The header `Content-Type`.
    pub content_type: &'static str,
    /// The body. To HEAD it is not sent.
    pub body: String,
}

impl Response {
    /// Returns a response that is a line of text.
    pub fn text(status: &'static str, line: &str) -> Response {
        let content_type = "text/plain; charset=utf-8";
        Response { status, content_type, body: format!("{line}\n") }
    }

    /// Returns the response as it is sent.
    fn to_bytes(&self, is_head: bool) -> Vec<u8> {
        let Response { status, content_type, body } = self;
        let allow = if *status == METHOD_NOT_ALLOWED { "Allow: GET, HEAD\r\n" } else { "" };
        let length = body.len();
        let body = if is_head { "" } else { body };
        format!(
            "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {length}\r\n\
             Cache-Control: no-store\r\n{allow}Connection: close\r\n\r\n{body}"
        )
        .into()
    }
}

const METHOD_NOT_ALLOWED: &str = "405 Method Not Allowed";

/// Starts the thread that answers, by `respond`, whoever connects to `listener`, until the process ends.
///
/// # Errors
///
/// [`crate::error::FailureKind::Internal`] if the system gives no thread.
pub fn serve(
    listener: TcpListener,
    respond: impl Fn(&Request<'_>) -> Response + Send + 'static,
) -> Result<(), Failure> {
    let failed = Failure::internal("cannot start a thread for --metrics");
    listener.set_nonblocking(true).map_err(failed)?;
    let mut server = Server { listener, connections: VecDeque::new(), not_before: None, respond };
    let spawned = thread::Builder::new().name("metrics".into()).spawn(move || {
        loop {
            server.turn();
        }
    });
    spawned.map(drop).map_err(failed)
}

struct Server<F> {
    listener: TcpListener,
    /// The oldest first.
    connections: VecDeque<Connection>,
    /// Nothing is accepted before this.
    not_before: Option<Instant>,
    respond: F,
}

impl<F: Fn(&Request<'_>) -> Response> Server<F> {
    /// Waits for something to do, and does it.
    fn turn(&mut self) {
        self.wait();
        let (now, respond) = (Instant::now(), &self.respond);
        // Before there are more of them: one that can be answered now does not make room for others.
        self.connections.retain_mut(|connection| connection.advance(now, respond));
        self.not_before = self.not_before.filter(|at| *at > now);
        if self.not_before.is_none() {
            self.accept(now);
        }
    }

    fn wait(&self) {
        let listener = PollFd::new(&self.listener, PollFlags::IN);
        let listener = self.not_before.is_none().then_some(listener);
        let connections = self.connections.iter().map(Connection::awaited);
        let mut fds: Vec<PollFd<'_>> = listener.into_iter().chain(connections).collect();
        let deadlines = self.connections.iter().map(|connection| connection.deadline);
        let until = deadlines.chain(self.not_before).min();
        let limit = until.map(|until| until.saturating_duration_since(Instant::now()));
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        // If it fails, the look comes a little early.
        let _ = retry_on_intr(|| poll(&mut fds, limit.as_ref()));
    }

    /// Accepts who has come, no more of them than there can be at a time.
    fn accept(&mut self, now: Instant) {
        for _ in 0..CONNECTIONS_MAX {
            match self.listener.accept() {
                Ok((socket, _)) => self.begin(socket, now),
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return,
                    // It has gone again.
                    ErrorKind::ConnectionAborted | ErrorKind::Interrupted => {}
                    _ => {
                        debug!("no connection for --metrics: {error}");
                        self.not_before = Some(now + PAUSE);
                        return;
                    }
                },
            }
        }
    }

    fn begin(&mut self, socket: TcpStream, now: Instant) {
        if socket.set_nonblocking(true).is_err() {
            return;
        }
        let state = State::Head(Vec::new());
        let mut connection = Connection { socket, deadline: now + TIME_LIMIT, state };
        if !connection.advance(now, &self.respond) {
            return;
        }
        if self.connections.len() >= CONNECTIONS_MAX {
            self.connections.pop_front();
        }
        self.connections.push_back(connection);
    }
}

struct Connection {
    socket: TcpStream,
    deadline: Instant,
    state: State,
}

/// How far a connection has come.
enum State {
    /// What has come of the request's head.
    Head(Vec<u8>),
    /// The response, and how many bytes of it are sent.
    Response(Vec<u8>, usize),
    /// How many bytes were thrown away behind the head.
    Rest(usize),
}

impl Connection {
    /// Does what can be done without waiting. Returns whether something is left to do.
    fn advance(&mut self, now: Instant, respond: &impl Fn(&Request<'_>) -> Response) -> bool {
        if self.deadline <= now {
            return false;
        }
        loop {
            match self.step(respond) {
                Ok(true) => {}
                Ok(false) => return false,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return true,
                    ErrorKind::Interrupted => {}
                    _ => return false,
                },
            }
        }
    }

    /// Reads or writes once. Returns whether something is left to do.
    fn step(&mut self, respond: &impl Fn(&Request<'_>) -> Response) -> io::Result<bool> {
        match &mut self.state {
            State::Head(head) => {
                let mut buffer = [0; HEAD_MAX];
                let read = self.socket.read(&mut buffer[head.len()..])?;
                head.extend_from_slice(&buffer[head.len()..head.len() + read]);
                if let Some(response) = answer(head, respond) {
                    self.state = State::Response(response, 0);
                    return Ok(true);
                }
                Ok(read > 0)
            }
            State::Response(response, sent) => {
                *sent += self.socket.write(&response[*sent..])?;
                if *sent == response.len() {
                    self.socket.shutdown(Shutdown::Write)?;
                    self.state = State::Rest(0);
                }
                Ok(true)
            }
            State::Rest(length) => {
                let read = self.socket.read(&mut [0; 4096])?;
                *length += read;
                Ok(read > 0 && *length < REST_MAX)
            }
        }
    }

    /// Returns what poll(2) is to wait for.
    fn awaited(&self) -> PollFd<'_> {
        let flags = match self.state {
            State::Response(..) => PollFlags::OUT,
            State::Head(_) | State::Rest(_) => PollFlags::IN,
        };
        PollFd::new(&self.socket, flags)
    }
}

/// Returns what is sent to a request of which this has come. None: its head has not come to its end.
fn answer(head: &[u8], respond: &impl Fn(&Request<'_>) -> Response) -> Option<Vec<u8>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let response = match request.parse(head) {
        Ok(Status::Complete(_)) => match request.method {
            Some("GET" | "HEAD") => respond(&asked(&request)),
            _ => Response::text(METHOD_NOT_ALLOWED, "Only GET and HEAD are answered."),
        },
        Ok(Status::Partial) if head.len() < HEAD_MAX => return None,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            let line = format!("At most {HEADERS_MAX} headers and {HEAD_MAX} bytes are read.");
            Response::text("431 Request Header Fields Too Large", &line)
        }
        Err(error) => Response::text("400 Bad Request", &format!("This is no request: {error}.")),
    };
    Some(response.to_bytes(request.method == Some("HEAD")))
}

fn asked<'a>(request: &httparse::Request<'_, 'a>) -> Request<'a> {
    let target = request.path.unwrap_or_default();
    // A proxy may be told the whole URI (RFC 9112, section 3.2.2).
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |slash| &rest[slash..]),
        None => target,
    };
    let path = path.split('?').next().unwrap_or_default();
    let accept = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case("accept"));
    let accept = accept.and_then(|header| str::from_utf8(header.value).ok());
    Request { path, accept }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(head: &str) -> Option<String> {
        let respond = |request: &Request<'_>| Response::text("200 OK", &format!("{request:?}"));
        answer(head.as_bytes(), &respond).map(|response| String::from_utf8(response).unwrap())
    }

    #[test]
    fn what_is_asked_for() {
        let asked =
            |head: &str| answered(head).unwrap().split_once("\r\n\r\n").unwrap().1.to_owned();
        let request = |path, accept| format!("{:?}\n", Request { path, accept });
        assert_eq!(asked("GET /a?b=c HTTP/1.1\r\nHost: h\r\n\r\n"), request("/a", None));
        assert_eq!(asked("GET http://h:1/a HTTP/1.1\r\n\r\n"), request("/a", None));
        assert_eq!(asked("GET http://h HTTP/1.0\r\n\r\n"), request("/", None));
        assert_eq!(asked("GET / HTTP/1.0\nACCEPT: x\n\n"), request("/", Some("x")));
        assert_eq!(asked("HEAD /a HTTP/1.1\r\n\r\n"), "");
    }

    #[test]
    fn what_is_no_request() {
        let status = |head: &str| answered(head).map(|response| response[9..12].to_owned());
        assert_eq!(status("GET /a HTTP/1.1\r\nHost: h\r\n"), None);
        assert_eq!(status(""), None);
        for head in [
            "\x16\x03\x01\x02",
            "PRI * HTTP/2.0\r\n\r\n",
            "GET\r\n\r\n",
            "GET /a HTTP/1.1\r\n:\r\n",
        ] {
            assert_eq!(status(head).as_deref(), Some("400"), "{head:?}");
        }
        assert_eq!(status("POST / HTTP/1.1\r\n\r\n").as_deref(), Some("405"));
        assert!(answered("POST / HTTP/1.1\r\n\r\n").unwrap().contains("\r\nAllow: GET, HEAD\r\n"));
        let long = format!("GET /{} HTTP/1.1\r\n", "a".repeat(HEAD_MAX));
        assert_eq!(status(&long[..HEAD_MAX]).as_deref(), Some("431"));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(status(&many).as_deref(), Some("431"));
    }
}
