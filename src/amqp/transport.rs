//! The byte stream below a connection: TCP with TCP_NODELAY, TLS if asked for, and a look at the
//! first bytes.

use crate::amqp::uri::{Endpoint, Tls};
use crate::error::{Failure, Kind};
use amiquip::IoStream;
#[cfg(feature = "tls")]
use log::{debug, error};
use mio::{Evented, Poll, PollOpt, Ready, Token};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

/// A TCP connection to one of the endpoint's addresses. All are tried in turn, each with an
/// equal share of the time that is left.
///
/// # Errors
///
/// [`Kind::BrokerUnreachable`], with the last address's error.
pub fn dial(endpoint: &Endpoint, deadline: Instant) -> Result<TcpStream, Failure> {
    let unreachable = |reason: &dyn std::fmt::Display| {
        let message = format!(
            "cannot reach {endpoint}: {reason}; is RabbitMQ running there? (--url or AMQP_URL names another)"
        );
        Failure::new(Kind::BrokerUnreachable, message)
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

/// The host's addresses. The system's resolver has no time limit of its own, hence the thread;
/// one that hangs is left behind.
fn resolve(endpoint: &Endpoint, deadline: Instant) -> io::Result<Vec<SocketAddr>> {
    if let Ok(ip) = endpoint.host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, endpoint.port)]);
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

/// A stream ready for the AMQP handshake.
pub struct Transport {
    stream: Stream,
    /// Where the peer's first bytes are collected, until they are known to be AMQP.
    opening: Option<Vec<u8>>,
    /// Whether the last read brought about one message.
    has_one: bool,
}

/// A read of at most so many bytes is one small message, not a stretch of many.
const ONE: usize = 400;

enum Stream {
    Plain(mio::net::TcpStream),
    #[cfg(feature = "tls")]
    Tls(Box<native_tls::TlsStream<mio::net::TcpStream>>),
}

/// Makes a transport of a dialled connection, with the TLS handshake if the endpoint wants one.
/// Blocks until a handshake is done: to be called under a [`crate::amqp::watchdog::Watchdog`].
///
/// # Errors
///
/// [`Kind::Configuration`] for a certificate that cannot be read or is not trusted,
/// [`Kind::BrokerUnreachable`] if the peer does not speak TLS.
pub fn establish(endpoint: &Endpoint, socket: TcpStream) -> Result<Transport, Failure> {
    let io_failure = |error: io::Error| {
        Failure::new(Kind::BrokerUnreachable, format!("cannot reach {endpoint}: {error}"))
    };
    let stream = match &endpoint.tls {
        None => Stream::Plain(mio::net::TcpStream::from_stream(socket).map_err(io_failure)?),
        Some(tls) => handshake(endpoint, tls, socket)?,
    };
    Ok(Transport { stream, opening: Some(Vec::new()), has_one: false })
}

#[cfg(not(feature = "tls"))]
fn handshake(endpoint: &Endpoint, _: &Tls, _: TcpStream) -> Result<Stream, Failure> {
    let message =
        format!("cannot use {endpoint}: this program was built without TLS (feature `tls`)");
    Err(Failure::new(Kind::Configuration, message))
}

#[cfg(feature = "tls")]
fn handshake(endpoint: &Endpoint, tls: &Tls, socket: TcpStream) -> Result<Stream, Failure> {
    let connector = connector(tls).map_err(|reason| {
        Failure::new(Kind::Configuration, format!("cannot use {endpoint}: {reason}"))
    })?;
    let io_failure = |error: io::Error| {
        Failure::new(Kind::BrokerUnreachable, format!("cannot reach {endpoint}: {error}"))
    };
    // A clone shares the socket's blocking mode: the handshake blocks, what follows does not.
    let mode = socket.try_clone().map_err(io_failure)?;
    let socket = mio::net::TcpStream::from_stream(socket).map_err(io_failure)?;
    mode.set_nonblocking(false).map_err(io_failure)?;
    let stream = connector.connect(&endpoint.host, socket).map_err(|error| match error {
        native_tls::HandshakeError::Failure(error) => tls_failure(endpoint, &error),
        // Not to be had on a blocking socket.
        native_tls::HandshakeError::WouldBlock(_) => io_failure(io::ErrorKind::WouldBlock.into()),
    })?;
    mode.set_nonblocking(true).map_err(io_failure)?;
    Ok(Stream::Tls(Box::new(stream)))
}

#[cfg(feature = "tls")]
fn connector(tls: &Tls) -> Result<native_tls::TlsConnector, String> {
    let read = |path: &std::path::Path| {
        std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
    };
    let mut builder = native_tls::TlsConnector::builder();
    if let Some(path) = &tls.cacertfile {
        let pem = String::from_utf8_lossy(&read(path)?).into_owned();
        // native-tls takes one certificate at a time.
        const END: &str = "-----END CERTIFICATE-----";
        let mut found = false;
        for certificate in pem.split_inclusive(END).filter(|part| part.ends_with(END)) {
            let authority = native_tls::Certificate::from_pem(certificate.as_bytes())
                .map_err(|error| format!("{} (cacertfile): {error}", path.display()))?;
            builder.add_root_certificate(authority);
            found = true;
        }
        if !found {
            return Err(format!("{} (cacertfile) has no PEM certificate", path.display()));
        }
    }
    if let (Some(certificate), Some(key)) = (&tls.certfile, &tls.keyfile) {
        let identity = native_tls::Identity::from_pkcs8(&read(certificate)?, &read(key)?).map_err(
            |error| {
                let (certificate, key) = (certificate.display(), key.display());
                format!("{certificate} (certfile) and {key} (keyfile, PKCS #8): {error}")
            },
        )?;
        builder.identity(identity);
    }
    if !tls.verify_peer {
        // Said with -q too.
        error!(
            "verify=verify_none is unsafe: anybody on the way can read the password and the calls"
        );
        builder.danger_accept_invalid_certs(true).danger_accept_invalid_hostnames(true);
    }
    builder.build().map_err(|error| format!("no TLS: {error}"))
}

/// Whether the peer's certificate is at fault, or the peer speaks no TLS at all. The reasons are
/// OpenSSL's; those of other systems' libraries are told as they are.
#[cfg(feature = "tls")]
fn tls_failure(endpoint: &Endpoint, error: &native_tls::Error) -> Failure {
    let reason = error.to_string();
    debug!("TLS handshake with {endpoint}: {reason}");
    let text = reason.to_lowercase();
    let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let (kind, cause) = if has(&["expired"]) {
        (Kind::Configuration, "its certificate has expired".into())
    } else if has(&["hostname mismatch", "ip address mismatch"]) {
        let host = &endpoint.host;
        (Kind::Configuration, format!("its certificate is for another host than {host}"))
    } else if has(&["local issuer", "self-signed", "self signed"]) {
        let cause =
            "no authority that is trusted here signed its certificate; cacertfile names one";
        (Kind::Configuration, cause.into())
    } else if has(&["unsupported protocol", "protocol version", "version too low"]) {
        let cause = "it offers no version of TLS that this program accepts (1.2 and 1.3)";
        (Kind::Configuration, cause.into())
    } else if has(&["certificate", "alert"]) {
        (Kind::Configuration, format!("{reason}; see cacertfile, certfile and keyfile"))
    } else if has(&["wrong version number", "packet length too long"]) {
        (Kind::BrokerUnreachable, "what answers there speaks no TLS: is it an amqp:// port?".into())
    } else {
        (Kind::BrokerUnreachable, reason)
    };
    Failure::new(kind, format!("no TLS handshake with {endpoint}: {cause}"))
}

impl Transport {
    /// Looks at what has come so far, `bytes` being the newest of it.
    ///
    /// What follows a protocol header is a method frame on channel 0, `connection.start`: type
    /// 1, channel 0, then the size (AMQP 0-9-1, sections 2.2.4 and 2.3.5). A peer that speaks
    /// another protocol would make the client library take its text for a size of a gigabyte.
    fn inspect(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some(opening) = &mut self.opening else { return Ok(()) };
        opening.extend_from_slice(&bytes[..bytes.len().min(7 - opening.len())]);
        let amqp = [1, 0, 0, 0];
        let common = opening.len().min(amqp.len());
        if opening[..common] != amqp[..common] {
            let what = match &opening[..] {
                [b'H', b'T', b'T', ..] => "what answers there speaks HTTP, not AMQP",
                [b'A', b'M', b'Q', ..] => "what answers there does not speak AMQP 0-9-1",
                [0x15, 0x03, ..] => "what answers there wants TLS: is it an amqps:// port?",
                _ => "what answers there does not speak AMQP",
            };
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        if opening.len() == 7 {
            self.opening = None;
        }
        Ok(())
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let result = match &mut self.stream {
            Stream::Plain(stream) => stream.read(buffer),
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.read(buffer),
        };
        match result {
            Ok(read) => {
                self.inspect(&buffer[..read])?;
                self.has_one = read <= ONE;
            }
            // The library's I/O thread goes to sleep now, and has just woken the thread that answers
            // the message. If that runs first, its answer is there before the sleep begins.
            Err(_) if std::mem::take(&mut self.has_one) => thread::yield_now(),
            Err(_) => {}
        }
        result
    }
}

impl Write for Transport {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.write(buffer),
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.write(buffer),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.stream {
            Stream::Plain(stream) => stream.flush(),
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.flush(),
        }
    }
}

impl Transport {
    fn socket(&self) -> &mio::net::TcpStream {
        match &self.stream {
            Stream::Plain(stream) => stream,
            #[cfg(feature = "tls")]
            Stream::Tls(stream) => stream.get_ref(),
        }
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
        self.socket().register(poll, token, interest, opts)
    }

    fn reregister(
        &self,
        poll: &Poll,
        token: Token,
        interest: Ready,
        opts: PollOpt,
    ) -> io::Result<()> {
        self.socket().reregister(poll, token, interest, opts)
    }

    fn deregister(&self, poll: &Poll) -> io::Result<()> {
        self.socket().deregister(poll)
    }
}

impl IoStream for Transport {}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

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
