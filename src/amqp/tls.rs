//! TLS below a connection, by rustls. Nothing of it is built, loaded or read unless a URI is `amqps`.

use crate::amqp::errors::{AmqpError, AmqpErrorKind};
use crate::amqp::uri::{Endpoint, Tls};
use log::{debug, error};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{self, WebPkiSupportedAlgorithms, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    AlertDescription as Alert, CertificateError, ClientConfig, ClientConnection,
    DigitallySignedStruct, Error as TlsError, InvalidMessage, OtherError, PeerIncompatible,
    RootCertStore, SignatureScheme,
};
use std::fmt;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;

/// TLS over a socket that does not block.
pub struct TlsStream {
    session: ClientConnection,
    /// What is registered with a poll.
    pub socket: mio::net::TcpStream,
    /// How many bytes of the last write's buffer are encrypted, and not yet reported as written since the
    /// socket takes no more.
    taken: usize,
}

impl TlsStream {
    /// Does the handshake over a dialled connection. Blocks until it is done.
    ///
    /// # Errors
    ///
    /// [`AmqpErrorKind::Configuration`] for a certificate that cannot be read or is not trusted,
    /// [`AmqpErrorKind::BrokerUnreachable`] if the peer does not speak TLS.
    pub fn connect(
        endpoint: &Endpoint,
        tls: &Tls,
        mut socket: TcpStream,
    ) -> Result<TlsStream, AmqpError> {
        let mut session = client_connection(tls, endpoint).map_err(|reason| {
            AmqpError::new(AmqpErrorKind::Configuration, format!("cannot use {endpoint}: {reason}"))
        })?;

        let connected = session.complete_io(&mut socket);
        let connected = connected.and_then(|_| mio::net::TcpStream::from_stream(socket));
        let error = match connected {
            Ok(socket) => return Ok(TlsStream { session, socket, taken: 0 }),
            Err(error) => error,
        };

        let has_answered = session.negotiated_cipher_suite().is_some();
        Err(tls_error(endpoint, &error, has_answered).unwrap_or_else(|| {
            let message = format!("no TLS handshake with {endpoint}: {error}");
            AmqpError::new(AmqpErrorKind::BrokerUnreachable, message)
        }))
    }

    /// Sends what is encrypted.
    fn send(&mut self) -> io::Result<()> {
        while self.session.wants_write() {
            self.session.write_tls(&mut self.socket)?;
        }
        Ok(())
    }
}

/// Reads the socket only when all that came is handed out: whoever reads until there is nothing more, as
/// mio's edge-triggered mode asks for, has read the socket to its end then.
impl Read for TlsStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            // What came before an error is handed out before it. After that, this returns it again.
            let processed = self.session.process_new_packets();
            // An alert about what came. If the socket takes no more, the next call sends it.
            let _ = self.send();
            match self.session.reader().read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    processed.map_err(io::Error::other)?;
                }
                // AMQP says itself when a connection ends in good order: what TLS says of it, or not,
                // makes no difference.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                result => return result,
            }
            self.session.read_tls(&mut self.socket)?;
        }
    }
}

/// What is encrypted cannot be taken back, nor may the caller think it sent: it would no longer wait for
/// the socket. So a buffer that did not go out as a whole counts as not written at all; the next call,
/// which begins with the same bytes, sends the rest, and says so.
impl Write for TlsStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.flush()?;
        if self.taken == 0 {
            self.taken = self.session.writer().write(buffer)?;
            self.flush()?;
        }
        Ok(std::mem::take(&mut self.taken))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send().map_err(|error| {
            if error.kind() != io::ErrorKind::WouldBlock {
                // A peer that closes a connection may have said before why.
                let _ = self.session.read_tls(&mut self.socket);
                if let Err(reason) = self.session.process_new_packets() {
                    return io::Error::other(reason);
                }
            }
            error
        })
    }
}

/// Returns what the broker's certificate has to be for, and which part of the URI says so.
fn expected_name(endpoint: &Endpoint) -> (&str, &'static str) {
    match &endpoint.tls {
        Some(Tls { server_name_indication: Some(name), .. }) => (name, "server_name_indication"),
        _ => (&endpoint.host, "host"),
    }
}

fn client_connection(tls: &Tls, endpoint: &Endpoint) -> Result<ClientConnection, String> {
    let (name, part) = expected_name(endpoint);
    let name = ServerName::try_from(name.to_owned()).map_err(|_| {
        format!("no certificate can be for the {part} {name}: it is no DNS name and no IP address")
    })?;
    let builder = ClientConfig::builder().dangerous();
    let builder = builder.with_custom_certificate_verifier(Arc::new(Verifier::new(tls)?));

    let config = match (&tls.certfile, &tls.keyfile) {
        (Some(certfile), Some(keyfile)) => builder
            .with_client_auth_cert(certificates(certfile, "certfile")?, private_key(keyfile)?)
            .map_err(|error| of_client_certificate(certfile, keyfile, &error))?,
        _ => builder.with_no_client_auth(),
    };
    ClientConnection::new(Arc::new(config), name).map_err(|error| format!("no TLS: {error}"))
}

/// Tells why a client's certificate and key cannot be used.
fn of_client_certificate(certfile: &Path, keyfile: &Path, error: &TlsError) -> String {
    let (certfile, keyfile) = (certfile.display(), keyfile.display());
    match error {
        TlsError::InconsistentKeys(_) => {
            format!(
                "{keyfile} (keyfile) is not the key of the certificate in {certfile} (certfile)"
            )
        }
        _ => format!("{certfile} (certfile) and {keyfile} (keyfile): {error}; {KEYS}"),
    }
}

/// Reads who is trusted: the system's authorities, and those in a file.
fn authorities(cacertfile: Option<&Path>) -> Result<RootCertStore, String> {
    let mut authorities = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in system.errors {
        debug!("the system's authorities: {error}");
    }
    authorities.add_parsable_certificates(system.certs);
    if let Some(path) = cacertfile {
        for certificate in certificates(path, "cacertfile")? {
            authorities
                .add(certificate)
                .map_err(|error| format!("{} (cacertfile): {error}", path.display()))?;
        }
    }
    Ok(authorities)
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
}

fn certificates(path: &Path, parameter: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_slice_iter(&read(path)?).collect::<Result<Vec<_>, _>>();
    let path = path.display();
    match certificates {
        Ok(none) if none.is_empty() => Err(format!("{path} ({parameter}) has no PEM certificate")),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(format!("{path} ({parameter}): {error}")),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let pem = read(path)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| {
        let (text, path) = (String::from_utf8_lossy(&pem), path.display());
        // PKCS #8 (RFC 7468, section 11), and what OpenSSL made before (RFC 1421, section 4.6.1.1).
        if ["BEGIN ENCRYPTED PRIVATE KEY", "4,ENCRYPTED"].iter().any(|mark| text.contains(mark)) {
            return format!(
                "{path} (keyfile) is encrypted; openssl pkey -in {path} -out NEW_FILE decrypts it"
            );
        }
        format!("{path} (keyfile) has no PEM private key that can be read: {error}")
    })
}

/// The keys that ring can use. What else brokers have in practice is named.
const KEYS: &str = "the key of a certificate has to be RSA with 2,048 to 8,192 bits, ECDSA P-256 or P-384, or Ed25519 \
                    (not P-521, nor shorter RSA)";

/// Verifies as rustls does by itself, but tells which keys cannot be used.
#[derive(Debug)]
struct Verifier {
    /// Who is trusted. None: everybody, `verify=verify_none`.
    authorities: Option<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    /// Reads who is trusted. The error says which file cannot be read.
    fn new(tls: &Tls) -> Result<Verifier, String> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        if tls.verify_none {
            // As an error, since whoever reads the log must see it.
            error!(
                "verify=verify_none is unsafe: anybody on the way can read the password and the calls"
            );
            return Ok(Verifier { authorities: None, algorithms });
        }

        let authorities = authorities(tls.cacertfile.as_deref())?;
        Ok(Verifier { authorities: Some(authorities), algorithms })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some(authorities) = &self.authorities else {
            return Ok(ServerCertVerified::assertion());
        };

        let certificate = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            authorities,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        verify_server_name(&certificate, name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let verified =
            crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms);
        verified.map_err(|error| of_signature(certificate, error))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let verified =
            crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms);
        verified.map_err(|error| of_signature(certificate, error))
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Tells why what the broker signed during the handshake is not accepted, though its certificate is.
fn of_signature(certificate: &CertificateDer<'_>, error: TlsError) -> TlsError {
    let TlsError::InvalidCertificate(reason) = &error else { return error };
    let reason = match (unusable_key(certificate), reason) {
        (Some(key), _) => {
            format!("the key of its certificate is {key}, which cannot be used; {KEYS}")
        }
        (None, CertificateError::BadSignature) => {
            "it did not prove that it has the key of its certificate".into()
        }
        _ => return error,
    };
    CertificateError::Other(OtherError(Arc::new(SignatureRefused(reason)))).into()
}

/// What [`of_signature`] has to say.
#[derive(Debug)]
struct SignatureRefused(String);

impl std::error::Error for SignatureRefused {}

impl fmt::Display for SignatureRefused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns the kind of a certificate's key, if it is one that ring cannot use and brokers have.
fn unusable_key(certificate: &CertificateDer<'_>) -> Option<&'static str> {
    /// The curve secp521r1 in DER (RFC 5480, section 2.1.1.1).
    const P521: &[u8] = b"\x06\x05\x2b\x81\x04\x00\x23";
    /// The algorithm rsaEncryption in DER (RFC 8017, appendix C).
    const RSA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01";
    /// How long an RSA key of 2,048 bits is at least, in bytes: its modulus has 256, what is around it 36.
    const RSA_2048: usize = 256 + 36;

    let key = ParsedCertificate::try_from(certificate).ok()?.subject_public_key_info();
    let has = |id: &[u8]| key.windows(id.len()).any(|window| window == id);
    match () {
        () if has(P521) => Some("ECDSA P-521"),
        () if has(RSA) && key.len() < RSA_2048 => Some("RSA with fewer than 2,048 bits"),
        () => None,
    }
}

/// Tells why TLS ended the opening of a connection, if it was that. With TLS 1.3 a client learns only after
/// the handshake that its certificate is missing or refused (RFC 8446, section 4.4.2.4).
pub fn refusal(endpoint: &Endpoint, error: &io::Error) -> Option<AmqpError> {
    tls_error(endpoint, error, true)
}

/// Does what [`refusal`] does. `has_answered`: by then, the broker had chosen among what the client offered.
fn tls_error(endpoint: &Endpoint, error: &io::Error, has_answered: bool) -> Option<AmqpError> {
    let error = error.get_ref()?.downcast_ref()?;
    debug!("TLS handshake with {endpoint}: {error}");
    let (kind, cause) = cause(endpoint, error, has_answered);
    Some(AmqpError::new(kind, format!("no TLS handshake with {endpoint}: {cause}")))
}

fn cause(endpoint: &Endpoint, error: &TlsError, has_answered: bool) -> (AmqpErrorKind, String) {
    let configuration = match error {
        TlsError::InvalidCertificate(error) => of_certificate(endpoint, error),
        TlsError::AlertReceived(Alert::ProtocolVersion)
        | TlsError::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13) => {
            "it offers no version of TLS that this program accepts (1.2 and 1.3)".into()
        }
        TlsError::PeerIncompatible(_) => error.to_string(),
        // It does not know the client's certificate yet, nor that there is none (RFC 8446, section 4.1.1).
        TlsError::AlertReceived(
            alert @ (Alert::HandshakeFailure | Alert::InsufficientSecurity),
        ) if !has_answered => {
            format!("it refused all that this program can use ({alert:?}); {KEYS}")
        }
        // Those two pass, perhaps.
        TlsError::AlertReceived(alert)
            if !matches!(alert, Alert::InternalError | Alert::UserCanceled) =>
        {
            let remedy = match &endpoint.tls {
                Some(Tls { certfile: Some(_), .. }) => "it may not trust the client certificate",
                _ => "it may want a client certificate that it trusts",
            };
            format!("it refused ({alert:?}); {remedy}: see certfile and keyfile")
        }
        TlsError::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge,
        ) => {
            let cause = "what answers there speaks no TLS: is it an amqp:// port?";
            return (AmqpErrorKind::BrokerUnreachable, cause.into());
        }
        _ => return (AmqpErrorKind::BrokerUnreachable, error.to_string()),
    };

    (AmqpErrorKind::Configuration, configuration)
}

fn of_certificate(endpoint: &Endpoint, error: &CertificateError) -> String {
    let cause = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired"
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet; is the clock right?"
        }
        CertificateError::NotValidForNameContext { presented, .. } if presented.is_empty() => {
            "its certificate has no subject alternative name, and a common name is not enough"
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            let (name, part) = expected_name(endpoint);
            let remedy = match part {
                "host" => "; behind a tunnel, server_name_indication in the URI names the host",
                _ => " (server_name_indication)",
            };
            return format!("its certificate is for another host than {name}{remedy}");
        }
        CertificateError::UnknownIssuer => {
            "no authority that is trusted here signed its certificate; cacertfile names one"
        }
        CertificateError::BadSignature => {
            let cause = "an authority of that name did, with another key, or with a key that cannot be used";
            return format!(
                "no authority that is trusted here signed its certificate; cacertfile names one ({cause}; {KEYS})"
            );
        }
        CertificateError::UnsupportedSignatureAlgorithmContext { .. }
        | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            return format!(
                "the key of an authority that signed its certificate cannot be used; {KEYS}"
            );
        }
        CertificateError::Other(OtherError(reason)) if reason.is::<SignatureRefused>() => {
            return reason.to_string();
        }
        _ => {
            let rule = "it has to be an X.509 certificate of version 3, for a server, and not an authority's";
            return format!("its certificate is not accepted ({error}); {rule}");
        }
    };

    cause.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::client_properties::ClientProperties;
    use crate::amqp::connection::OpenConnection;
    use crate::amqp::uri;
    use mio::{Events, Poll, PollOpt, Ready, Token};
    use rustls::{ServerConfig, ServerConnection, SupportedProtocolVersion, version};
    use std::net::TcpListener;
    use std::ops::Range;
    use std::process::Command;
    use std::thread::{self, JoinHandle};
    use std::time::Duration;

    /// A failing test waits as long as this.
    const PATIENCE: Duration = Duration::from_secs(120);

    /// A file with a certificate for localhost, its own authority, and its key.
    struct Pem(std::path::PathBuf);

    impl Pem {
        fn new() -> Pem {
            let path = std::env::temp_dir().join(format!("fib-rpc-{}.pem", uuid::Uuid::new_v4()));
            let made = Command::new("openssl")
                .args("req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes".split(' '))
                .args("-subj /CN=test -addext subjectAltName=DNS:localhost".split(' '))
                .args("-addext basicConstraints=CA:FALSE -keyout /dev/stdout".split(' '))
                .output()
                .unwrap();
            assert!(made.status.success(), "{made:?}");
            std::fs::write(&path, made.stdout).unwrap();
            Pem(path)
        }
    }

    impl Drop for Pem {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    /// A peer that is `then` called after the handshake, unless it is to ask for a certificate: none
    /// comes, and it has refused that when its thread ends.
    fn peer(
        pem: &Pem,
        version: &'static SupportedProtocolVersion,
        asks: bool,
        then: fn(ServerConnection, TcpStream),
    ) -> (Endpoint, JoinHandle<()>) {
        let provider = Arc::new(ring::default_provider());
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[version])
            .unwrap();
        let roots = Arc::new(authorities(Some(&pem.0)).unwrap());
        let verifier =
            rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider).build();
        let builder = match asks {
            true => builder.with_client_cert_verifier(verifier.unwrap()),
            false => builder.with_no_client_auth(),
        };
        let chain = certificates(&pem.0, "certfile").unwrap();
        let config = builder.with_single_cert(chain, private_key(&pem.0).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let uri = format!("amqps://localhost:{port}?cacertfile={}", pem.0.display());
        let thread = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut session = ServerConnection::new(Arc::new(config)).unwrap();
            let handshake = session.complete_io(&mut socket);
            assert_eq!(handshake.is_err(), asks, "{handshake:?}");
            if !asks {
                then(session, socket);
            }
        });
        (uri::parse_list(&uri).unwrap().remove(0), thread)
    }

    fn connect(endpoint: &Endpoint) -> TlsStream {
        let socket = TcpStream::connect(("127.0.0.1", endpoint.port)).unwrap();
        TlsStream::connect(endpoint, endpoint.tls.as_ref().unwrap(), socket).unwrap()
    }

    fn await_error(mut step: impl FnMut() -> io::Result<usize>) -> io::Error {
        loop {
            match step() {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return error,
                _ => thread::yield_now(),
            }
        }
    }

    /// How much goes each way, and the longest part of it at a time.
    const TOTAL: usize = 25_000_000;
    const MOST: usize = 100_000;

    /// The bytes that stand at `range` of what either side sends.
    fn bytes(range: Range<usize>) -> &'static [u8] {
        /// A prime number.
        const PERIOD: usize = 65_537;
        static BYTES: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
        let bytes = BYTES.get_or_init(|| {
            let mut random = fastrand::Rng::with_seed(11);
            let period: Vec<u8> = (0..PERIOD).map(|_| random.u8(..)).collect();
            period.iter().copied().cycle().take(PERIOD + MOST).collect()
        });
        &bytes[range.start % PERIOD..][..range.len()]
    }

    fn part(from: usize, most: usize) -> Range<usize> {
        from..TOTAL.min(from + fastrand::usize(1..=most))
    }

    /// Reads slowly: a few bytes at a time, and only after it has written about as many.
    fn echoless_peer(mut session: ServerConnection, mut socket: TcpStream) {
        let (mut sent, mut received) = (0, 0);
        let mut buffer = vec![0; MOST];
        while sent < TOTAL || received < TOTAL {
            let next = part(sent, 3000);
            session.writer().write_all(bytes(next.clone())).unwrap();
            sent = next.end;
            // Before the end only: the client reads no more than what it is to receive.
            if sent < TOTAL
                && session.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3)
                && fastrand::u8(..) == 0
            {
                session.refresh_traffic_keys().unwrap();
            }
            while session.wants_write() {
                session.write_tls(&mut socket).unwrap();
            }
            if received < TOTAL {
                let few = fastrand::u64(1..3000);
                assert_ne!(session.read_tls(&mut (&socket).take(few)).unwrap(), 0);
                session.process_new_packets().unwrap();
                while let Ok(read) = session.reader().read(&mut buffer) {
                    assert!(buffer[..read] == *bytes(received..received + read), "at {received}");
                    received += read;
                }
            }
        }
        // The client leaves first.
        let _ = socket.read(&mut [0; 1]);
    }

    /// As amiquip's `run_io_loop` does it. Returns how often the socket took no more.
    fn exchange(stream: &mut TlsStream) -> usize {
        // Less than what one write takes.
        stream.socket.set_send_buffer_size(20_000).unwrap();
        let (poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(8));
        poll.register(&stream.socket, Token(0), Ready::writable(), PollOpt::edge()).unwrap();
        let (mut queued, mut received, mut blocked) = (0, 0, 0);
        let mut output: Vec<u8> = Vec::new();
        let mut buffer = vec![0; MOST];
        while !output.is_empty() || queued < TOTAL || received < TOTAL {
            poll.poll(&mut events, Some(PATIENCE)).unwrap();
            assert!(
                !events.is_empty(),
                "{queued} queued, {} unsent, {received} received",
                output.len()
            );
            let had_output = !output.is_empty();
            for event in &events {
                let mut written = 0;
                while event.readiness().is_writable() && written < output.len() {
                    match stream.write(&output[written..]) {
                        Ok(length) => {
                            assert_ne!(length, 0);
                            written += length;
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                            blocked += 1;
                            break;
                        }
                    }
                }
                output.drain(..written);
                while event.readiness().is_readable() {
                    let room = fastrand::usize(1..MOST);
                    match stream.read(&mut buffer[..room]) {
                        Ok(read) => {
                            assert_ne!(read, 0);
                            assert!(buffer[..read] == *bytes(received..received + read));
                            received += read;
                        }
                        Err(error) => {
                            assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                            break;
                        }
                    }
                }
            }
            while output.len() < 1_000_000 && queued < TOTAL {
                let next = part(queued, MOST);
                output.extend_from_slice(bytes(next.clone()));
                queued = next.end;
            }
            let readable = Ready::readable();
            if !output.is_empty() {
                let both = readable | Ready::writable();
                poll.reregister(&stream.socket, Token(0), both, PollOpt::edge()).unwrap();
            } else if had_output {
                poll.reregister(&stream.socket, Token(0), readable, PollOpt::edge()).unwrap();
            }
        }
        blocked
    }

    #[test]
    fn all_arrives_both_ways_at_a_slow_peer() {
        let pem = Pem::new();
        for version in [&version::TLS12, &version::TLS13] {
            let (endpoint, peer) = peer(&pem, version, false, echoless_peer);
            let mut stream = connect(&endpoint);
            let blocked = exchange(&mut stream);
            assert!(blocked > 10, "the socket took no more {blocked} times only");
            drop(stream);
            peer.join().unwrap();
        }
    }

    #[test]
    fn the_name_in_the_uri_is_what_the_broker_is_told() {
        let pem = Pem::new();
        let (mut endpoint, peer) = peer(&pem, &version::TLS13, false, |session, _| {
            assert_eq!(session.server_name(), Some("localhost"));
        });
        endpoint.host = "127.0.0.1".into();
        endpoint.tls.as_mut().unwrap().server_name_indication = Some("localhost".into());
        drop(connect(&endpoint));
        peer.join().unwrap();
    }

    #[test]
    fn an_alert_about_what_came_is_sent_by_who_reads() {
        let pem = Pem::new();
        let (endpoint, peer) = peer(&pem, &version::TLS13, false, |mut session, mut socket| {
            socket.write_all(b"no TLS record").unwrap();
            assert_ne!(session.read_tls(&mut socket).unwrap(), 0);
            let alert = session.process_new_packets().unwrap_err();
            assert_eq!(alert, rustls::Error::AlertReceived(Alert::DecodeError));
        });
        let mut stream = connect(&endpoint);
        await_error(|| stream.read(&mut [0]));
        peer.join().unwrap();
    }

    /// With TLS 1.3 it is told after the handshake. The peer has closed the connection by then.
    #[test]
    fn a_certificate_that_is_missing_is_told_by_who_writes_and_who_reads() {
        let pem = Pem::new();
        type Step = fn(&mut TlsStream) -> io::Result<usize>;
        for step in
            [(|stream| stream.write(b"AMQP\0\0\x09\x01")) as Step, |stream| stream.read(&mut [0])]
        {
            let (endpoint, peer) = peer(&pem, &version::TLS13, true, |_, _| {});
            let mut stream = connect(&endpoint);
            peer.join().unwrap();
            let error = await_error(|| step(&mut stream));
            let refusal = refusal(&endpoint, &error).unwrap_or_else(|| panic!("{error}"));
            let message = format!(
                "no TLS handshake with {endpoint}: it refused (CertificateRequired); it may want a \
                 client certificate that it trusts: see certfile and keyfile"
            );
            assert_eq!(refusal, AmqpError::new(AmqpErrorKind::Configuration, message));
        }
    }

    #[test]
    fn a_broker_that_dies_after_the_handshake_is_not_taken_for_one_that_wants_a_certificate() {
        let pem = Pem::new();
        let (endpoint, peer) = peer(&pem, &version::TLS13, false, |_, _| {});
        let (endpoints, properties) =
            (std::slice::from_ref(&endpoint), ClientProperties::new("test"));
        let error = OpenConnection::open(endpoints, PATIENCE, &properties).err().unwrap();
        assert_eq!(error.kind(), AmqpErrorKind::BrokerUnreachable, "{error}");
        let expected = format!("no AMQP handshake with {endpoint}: ");
        assert!(error.to_string().starts_with(&expected), "{error}");
        peer.join().unwrap();
    }
}
