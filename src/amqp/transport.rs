//! The byte stream below a connection: TCP with TCP_NODELAY, TLS if asked for, and a check of all
//! that comes.

use crate::amqp::client_properties::Opening;
use crate::amqp::errors::{AmqpError, AmqpErrorKind, Remedy};
use crate::amqp::inbox::Inbox;
use crate::amqp::sanitizer::{ConnectionPhase, METHOD, Piece, Sanitizer};
#[cfg(feature = "tls")]
use crate::amqp::tls::TlsStream;
use crate::amqp::traffic::Traffic;
use crate::amqp::uri::{Endpoint, Tls};
use amiquip::IoStream;
use mio::{Evented, Poll, PollOpt, Ready, Registration, SetReadiness, Token};
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Opens a TCP connection to one of the endpoint's addresses. All are tried in turn, each with an
/// equal share of the time that is left.
///
/// # Errors
///
/// [`AmqpErrorKind::BrokerUnreachable`], with the last address's error.
pub fn dial(endpoint: &Endpoint, deadline: Instant) -> Result<TcpStream, AmqpError> {
    let unreachable = |reason: &dyn std::fmt::Display| {
        let message = format!("cannot reach {endpoint}: {reason}");
        AmqpError::new(AmqpErrorKind::BrokerUnreachable, message).with_remedy(Remedy::StartBroker)
    };
    let addresses = resolve(endpoint, deadline).map_err(|error| unreachable(&error))?;
    connect(&addresses, deadline).map_err(|error| unreachable(&error))
}

fn connect(addresses: &[SocketAddr], deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for (index, address) in addresses.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / (addresses.len() - index) as u32;
        // connect_timeout refuses a time of zero.
        match TcpStream::connect_timeout(address, share.max(Duration::from_millis(1))) {
            Ok(stream) => {
                // Nagle's algorithm and delayed acknowledgements together stall each call for
                // some 40 ms: a call is several small writes (RFC 896, RFC 1122 4.2.3.2).
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }

    Err(last)
}

/// Returns the host's addresses. The system's resolver has no time limit of its own, hence the thread;
/// one that hangs is left behind.
fn resolve(endpoint: &Endpoint, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = endpoint.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, endpoint.port)]);
    }
    if endpoint.host == "localhost" {
        // Always these (RFC 6761, section 6.3). Looking them up takes a twelfth of a call's time.
        let loopback: [IpAddr; 2] = [Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()];
        return Ok(loopback.map(|ip| SocketAddr::new(ip, endpoint.port)).to_vec());
    }

    let (tell, answer) = crossbeam_channel::bounded(1);
    let name = (endpoint.host.clone(), endpoint.port);
    thread::Builder::new().name("resolver".into()).spawn(move || {
        let addresses = (name.0.as_str(), name.1).to_socket_addrs();
        let _ = tell.send(addresses.map(Iterator::collect));
    })?;
    answer.recv_deadline(deadline).unwrap_or_else(|_| {
        Err(io::Error::new(io::ErrorKind::TimedOut, "the host name was not resolved in time"))
    })
}

/// A stream ready for the AMQP handshake, of which only what a [`Sanitizer`] has checked is read.
pub struct Transport {
    stream: Box<dyn SocketStream>,
    opening: Opening,
    sanitizer: Sanitizer,
    inbox: Arc<Inbox>,
    traffic: Arc<Traffic>,
    /// What came from the socket. Before `start`: handed out; `start..checked`: can be read;
    /// `checked..end`: not checked yet.
    buffer: Vec<u8>,
    start: usize,
    checked: usize,
    end: usize,
    /// Whether the next read is to pretend that nothing more has come.
    pauses: bool,
    /// Wakes the library's loop after such a read.
    alarm: (Registration, SetReadiness),
}

/// Room for a stretch of small messages.
const BUFFER_SIZE: usize = 64 << 10;

/// How much of it is used while a large body comes, which goes past it for the most part. The library asks
/// for as much at a time.
const PIECE: usize = 4096;

/// How often to look for the rest of a body frame, before it is waited for.
const LOOKS: usize = 100;

/// A connected socket, with or without TLS.
trait SocketStream: Read + Write + Send {
    fn socket(&self) -> &mio::net::TcpStream;
}

impl SocketStream for mio::net::TcpStream {
    fn socket(&self) -> &mio::net::TcpStream {
        self
    }
}

#[cfg(feature = "tls")]
impl SocketStream for TlsStream {
    fn socket(&self) -> &mio::net::TcpStream {
        &self.socket
    }
}

/// Makes a transport of a dialled connection, with the TLS handshake if the endpoint wants one.
/// `opening` is what the client is to write first; `inbox` counts what comes, and says why reading failed; `traffic` counts
/// bytes. Blocks until a handshake is done: to be called under a [`crate::amqp::watchdog::Watchdog`].
///
/// # Errors
///
/// [`AmqpErrorKind::Configuration`] for a certificate that cannot be read or is not trusted,
/// [`AmqpErrorKind::BrokerUnreachable`] if the peer does not speak TLS.
pub fn establish(
    endpoint: &Endpoint,
    socket: TcpStream,
    opening: Opening,
    inbox: Arc<Inbox>,
    traffic: Arc<Traffic>,
) -> Result<Transport, AmqpError> {
    let io_error = |error: io::Error| {
        AmqpError::new(
            AmqpErrorKind::BrokerUnreachable,
            format!("cannot reach {endpoint}: {error}"),
        )
    };
    let stream: Box<dyn SocketStream> = match &endpoint.tls {
        None => Box::new(mio::net::TcpStream::from_stream(socket).map_err(io_error)?),
        Some(tls) => handshake(endpoint, tls, socket)?,
    };
    Ok(Transport {
        stream,
        opening,
        sanitizer: Sanitizer::new(Arc::clone(&inbox)),
        inbox,
        traffic,
        buffer: vec![0; BUFFER_SIZE],
        start: 0,
        checked: 0,
        end: 0,
        pauses: false,
        alarm: Registration::new2(),
    })
}

#[cfg(not(feature = "tls"))]
fn handshake(
    endpoint: &Endpoint,
    _: &Tls,
    _: TcpStream,
) -> Result<Box<dyn SocketStream>, AmqpError> {
    let message =
        format!("cannot use {endpoint}: this program was built without TLS (feature `tls`)");
    Err(AmqpError::new(AmqpErrorKind::Configuration, message))
}

#[cfg(feature = "tls")]
fn handshake(
    endpoint: &Endpoint,
    tls: &Tls,
    socket: TcpStream,
) -> Result<Box<dyn SocketStream>, AmqpError> {
    Ok(Box::new(TlsStream::connect(endpoint, tls, socket)?))
}

impl Transport {
    /// Checks what can be checked of what came.
    fn check(&mut self) {
        loop {
            let phase = self.sanitizer.phase();
            let is_method = self.buffer.get(self.checked) == Some(&METHOD);
            match self.sanitizer.check(&mut self.buffer[self.checked..self.end]) {
                Ok(Piece::Incomplete) => return,
                Ok(Piece::Checked(length)) => self.checked += length,
                Ok(Piece::Discarded(length)) => {
                    self.buffer.copy_within(self.checked + length..self.end, self.checked);
                    self.end -= length;
                    continue;
                }
                Err(reason) => return self.inbox.violated(reason),
            }
            // amiquip misreads a frame that comes in the same read as the last one of the handshake, or as
            // connection.close. So it gets one method for each read.
            self.pauses =
                is_method && matches!(phase, ConnectionPhase::New | ConnectionPhase::Handshake);
            if self.pauses || self.sanitizer.phase() == ConnectionPhase::Closed {
                return;
            }
        }
    }

    /// Reads from the socket, once. Returns how many bytes came: 0 at its end.
    fn fill(&mut self) -> io::Result<usize> {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            (self.start, self.checked) = (0, 0);
        }

        if self.end == self.buffer.len() {
            // A large frame, of a size that the sanitizer has seen.
            self.buffer.resize(2 * self.end, 0);
        } else if self.end == 0 && self.buffer.len() > BUFFER_SIZE {
            self.buffer = vec![0; BUFFER_SIZE];
        }

        let free = self.buffer.len() - self.end;
        let most = if self.sanitizer.expects_body() { free.min(PIECE) } else { free };
        let read = self.stream.read(&mut self.buffer[self.end..self.end + most]);
        match &read {
            Ok(read) => {
                self.end += read;
                self.traffic.count_received(*read);
            }
            // The library's I/O thread goes to sleep now, and has just woken the thread that answers
            // the message. If that runs first, its answer is there before the sleep begins.
            Err(_) if self.inbox.has_one() => thread::yield_now(),
            Err(_) => {}
        }

        read
    }

    /// Reads what is already on its way: to look for it again takes less time than to sleep until it comes.
    fn read_body(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        for _ in 0..LOOKS {
            match self.stream.read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::yield_now(),
                result => return result,
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }
}

/// The library reads until there is nothing more, and then waits for the socket to tell of new bytes
/// (mio's edge-triggered mode): so all that is checked is handed out before that, and when there is more
/// in spite of it, the alarm says so.
impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.start < self.checked {
                let read = (&self.buffer[self.start..self.checked]).read(buffer)?;
                self.start += read;
                return Ok(read);
            }
            if let Some(reason) = self.inbox.violation() {
                return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
            }
            if std::mem::take(&mut self.pauses) {
                self.alarm.1.set_readiness(Ready::readable())?;
                return Err(io::ErrorKind::WouldBlock.into());
            }
            if self.sanitizer.phase() == ConnectionPhase::Closed {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let missing = self.sanitizer.missing();
            if missing > 0 && self.checked == self.end {
                // The rest of a body frame goes past our buffer, which saves a copy of a large body.
                let most = buffer.len().min(missing);
                let read = self.read_body(&mut buffer[..most])?;
                self.traffic.count_received(read);
                match self.sanitizer.check(&mut buffer[..read]) {
                    Ok(_) => return Ok(read),
                    Err(reason) => self.inbox.violated(reason),
                }
                continue;
            }
            self.check();
            let is_settled = self.start < self.checked || self.inbox.violation().is_some();
            if !is_settled && self.fill()? == 0 {
                return Ok(0);
            }
        }
    }
}

impl Write for Transport {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let Transport { opening, stream, traffic, .. } = self;
        opening.write(buffer, |bytes| {
            let written = stream.write(bytes)?;
            traffic.count_written(written);
            Ok(written)
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

impl Evented for Transport {
    fn register(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        opts: PollOpt,
    ) -> io::Result<()> {
        self.alarm.0.register(poll, token, Ready::readable(), PollOpt::edge())?;
        self.stream.socket().register(poll, token, interest, opts)
    }

    fn reregister(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        opts: PollOpt,
    ) -> io::Result<()> {
        self.stream.socket().reregister(poll, token, interest, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        Evented::deregister(&self.alarm.0, poll)?;
        self.stream.socket().deregister(poll)
    }
}

impl IoStream for Transport {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn localhost_needs_no_resolver() {
        let endpoint = &crate::amqp::uri::parse_list("amqp://localhost:1234").unwrap()[0];
        let addresses = resolve(endpoint, Instant::now()).unwrap();
        assert_eq!(addresses, ["[::1]:1234", "127.0.0.1:1234"].map(|text| text.parse().unwrap()));
    }

    /// Here and not by a call: `localhost` has one address on many machines, and a call has nothing
    /// to wait for where the system sends its writes together.
    #[test]
    fn the_next_address_is_tried_and_has_nodelay() {
        let any = "127.0.0.1:0";
        let broker = TcpListener::bind(any).unwrap();
        let refused = TcpListener::bind(any).unwrap().local_addr().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        let stream = connect(&[refused, broker.local_addr().unwrap()], deadline).unwrap();
        assert_eq!(stream.peer_addr().unwrap(), broker.local_addr().unwrap());
        assert!(stream.nodelay().unwrap());
        let error = connect(&[refused, refused], deadline).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
