//! What a client tells a broker of itself: the client properties of connection.start-ok (AMQP 0-9-1, section 1.4.2.3;
//! RabbitMQ, "Connections").
//!
//! The client library can set `information`, and not `connection_name`, by which RabbitMQ lists connections. So that
//! one is put into the frame on its way to the socket.

use crate::amqp::name;
use crate::amqp::sanitizer::METHOD;
use crate::terminal::text::{excerpt, is_harmful};
use std::io;

/// What a broker is told of a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientProperties {
    /// The program and its version.
    pub information: String,
    /// What tells this connection from others in the broker's list of them.
    pub connection_name: String,
}

impl ClientProperties {
    /// Makes those of a `program`: its connection's name is the program, the host and the number of the process, as in
    /// `rpc_server host.example 4242`.
    pub fn new(program: &str) -> ClientProperties {
        let system = rustix::system::uname();
        // Whatever bytes root has chosen (sethostname(2)).
        let host = excerpt(system.nodename().to_bytes()).replace(is_harmful, "\u{fffd}");
        ClientProperties {
            information: format!("{program} {}", env!("CARGO_PKG_VERSION")),
            connection_name: format!("{program} {host} {}", std::process::id()),
        }
    }
}

/// Returns the text, if it can be a connection's name: 1 to 255 bytes without control characters. Otherwise what is
/// wrong with it.
pub fn connection_name(text: &str) -> Result<String, String> {
    match text.chars().find(|c| is_harmful(*c)) {
        Some(c) => {
            let shown = c.escape_default();
            Err(format!("a connection's name has no control characters, and this one has {shown}"))
        }
        None => name(text),
    }
}

/// How long the protocol header is, which a client sends first (AMQP 0-9-1, section 4.2.2).
const PROTOCOL_HEADER: usize = 8;

/// The largest frame that a broker takes before connection.tune, in bytes (AMQP 0-9-1, frame-min-size).
const FRAME_MIN_SIZE: usize = 4096;

/// What a client writes at the beginning: the protocol header, then connection.start-ok, which gets the connection's
/// name. What comes after it passes as it is.
pub struct Opening {
    /// How much of the protocol header is still to be written.
    header: usize,
    /// The connection's name, until the frame is there.
    name: Option<String>,
    named: Option<Named>,
}

/// A frame with the name in it. It has the password too: nothing is to show it.
#[cfg_attr(test, derive(Debug, PartialEq, Eq))]
struct Named {
    /// What is still to be written of it.
    rest: Vec<u8>,
    /// The length of the frame without it, which the client has.
    length: usize,
}

impl Opening {
    /// Makes the beginning of a connection that gets a name.
    pub fn new(connection_name: &str) -> Opening {
        Opening { header: PROTOCOL_HEADER, name: Some(connection_name.into()), named: None }
    }

    /// Writes by `write` what the client writes; both are like [`io::Write::write`]. Returns how many of the client's
    /// `bytes` are written. The frame that gets the name counts as written when all of it is: until then the client
    /// gets the error of `write`, and comes again with the same bytes. It is known by being whole in the first `bytes`
    /// behind the header, since the library writes all that it has at a time.
    pub fn write(
        &mut self,
        bytes: &[u8],
        mut write: impl FnMut(&[u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        if self.header > 0 {
            let written = write(&bytes[..bytes.len().min(self.header)])?;
            self.header -= written;
            return Ok(written);
        }

        if let Some(name) = self.name.take() {
            self.named = named(bytes, &name);
        }
        let Some(Named { rest, length }) = &mut self.named else { return write(bytes) };
        while !rest.is_empty() {
            match write(rest)? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => drop(rest.drain(..written)),
            }
        }

        let length = *length;
        self.named = None;
        Ok(length)
    }
}

/// Returns the frame at the beginning of `bytes` with the name in it. None if that is not connection.start-ok as a
/// whole, or would become larger than a broker takes: a long password has precedence.
fn named(bytes: &[u8], name: &str) -> Option<Named> {
    // Type, channel and size; class and method; the size of the client properties, and then these.
    let (&[METHOD, 0, 0, s0, s1, s2, s3, 0, 10, 0, 11, t0, t1, t2, t3], _) =
        bytes.split_first_chunk()?
    else {
        return None;
    };
    let [size, table] = [[s0, s1, s2, s3], [t0, t1, t2, t3]].map(u32::from_be_bytes);
    let length = 7 + size as usize + 1;
    let behind = bytes.get(15..length)?;

    // A short string, the type of a long one, and that (AMQP 0-9-1, section 4.2.5.5).
    let key = b"\x0fconnection_nameS";
    let entry = [key, &(name.len() as u32).to_be_bytes()[..], name.as_bytes()].concat();
    let grown = |size: u32| (size + entry.len() as u32).to_be_bytes();
    let rest = [&bytes[..3], &grown(size), &bytes[7..11], &grown(table), &entry, behind].concat();
    (rest.len() <= FRAME_MIN_SIZE).then_some(Named { rest, length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use amq_protocol::frame::generation::gen_frame;
    use amq_protocol::frame::{AMQPFrame, parse_frame};
    use amq_protocol::protocol::AMQPClass;
    use amq_protocol::protocol::connection::{AMQPMethod, StartOk, TuneOk};
    use amq_protocol::types::{AMQPValue, FieldTable};

    const NAME: &str = "rpc_server höst.example 4242";

    fn bytes(method: AMQPMethod) -> Vec<u8> {
        let frame = AMQPFrame::Method(0, AMQPClass::Connection(method));
        let mut bytes = vec![0; 2 * FRAME_MIN_SIZE];
        let (_, length) = gen_frame((&mut bytes, 0), &frame).unwrap();
        bytes.truncate(length);
        bytes
    }

    /// As the library makes it, with as many of its kinds of values.
    fn start_ok(password: &str) -> StartOk {
        let mut capabilities = FieldTable::new();
        capabilities.insert("connection.blocked".into(), AMQPValue::Boolean(true));
        let mut properties = FieldTable::new();
        properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
        properties.insert("product".into(), AMQPValue::LongString("amiquip".into()));
        StartOk {
            client_properties: properties,
            mechanism: "PLAIN".into(),
            response: format!("\0guest\0{password}"),
            locale: "en_US".into(),
        }
    }

    fn with_name(mut start_ok: StartOk, name: &str) -> StartOk {
        let value = AMQPValue::LongString(name.into());
        start_ok.client_properties.insert("connection_name".into(), value);
        start_ok
    }

    fn parsed(bytes: &[u8]) -> AMQPFrame {
        let (rest, frame) = parse_frame(bytes).unwrap();
        assert_eq!(rest, b"");
        frame
    }

    #[test]
    fn the_name_is_one_more_property_and_all_else_stays() {
        for name in [NAME, "", &"x".repeat(255)] {
            let plain = bytes(AMQPMethod::StartOk(start_ok("guest")));
            let Named { rest, length } = named(&[&plain[..], b"behind"].concat(), name).unwrap();
            assert_eq!(length, plain.len());
            let expected = bytes(AMQPMethod::StartOk(with_name(start_ok("guest"), name)));
            assert_eq!(parsed(&rest), parsed(&expected));
        }
    }

    #[test]
    fn other_frames_and_parts_of_one_get_no_name() {
        let whole = bytes(AMQPMethod::StartOk(start_ok("guest")));
        for length in 0..whole.len() {
            assert_eq!(named(&whole[..length], NAME), None, "{length}");
        }
        let tune_ok = TuneOk { channel_max: 1, frame_max: 4096, heartbeat: 10 };
        assert_eq!(named(&bytes(AMQPMethod::TuneOk(tune_ok)), NAME), None);
        // The same on another channel, and as a frame of another type.
        for (at, octet) in [(2, 1), (0, 2)] {
            let mut other = whole.clone();
            other[at] = octet;
            assert_eq!(named(&other, NAME), None);
        }
    }

    #[test]
    fn a_long_password_has_precedence() {
        let room = FRAME_MIN_SIZE - bytes(AMQPMethod::StartOk(with_name(start_ok(""), NAME))).len();
        let with_password = |length| bytes(AMQPMethod::StartOk(start_ok(&"p".repeat(length))));
        let largest = named(&with_password(room), NAME).unwrap();
        assert_eq!(largest.rest.len(), FRAME_MIN_SIZE);
        assert_eq!(named(&with_password(room + 1), NAME), None);
    }

    /// As amiquip's `write_to_stream` does it, to a socket that takes `most` bytes, and then nothing once.
    fn write_all(opening: &mut Opening, mut output: &[u8], most: usize) -> Vec<u8> {
        let (mut socket, mut is_full) = (Vec::new(), true);
        while !output.is_empty() {
            let written = opening.write(output, |bytes| {
                is_full = !is_full;
                if is_full {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let taken = bytes.len().min(most);
                socket.extend_from_slice(&bytes[..taken]);
                Ok(taken)
            });
            match written {
                Ok(written) => output = &output[written..],
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        socket
    }

    #[test]
    fn no_byte_is_lost_or_repeated_however_little_the_socket_takes() {
        let header = b"AMQP\0\0\x09\x01";
        let plain = bytes(AMQPMethod::StartOk(start_ok("guest")));
        let rest = b"whatever comes then".repeat(100);
        let named = named(&plain, NAME).unwrap().rest;
        let expected = [&header[..], &named, &rest].concat();
        for most in (1..=expected.len()).step_by(7) {
            // All at once, and each when the one before is written.
            let mut opening = Opening::new(NAME);
            let together = [&header[..], &plain, &rest].concat();
            assert!(write_all(&mut opening, &together, most) == expected, "{most}");
            let mut opening = Opening::new(NAME);
            let parts = [&header[..], &plain, &rest];
            let written = parts.map(|part| write_all(&mut opening, part, most)).concat();
            assert!(written == expected, "{most}");
        }
    }

    #[test]
    fn a_socket_that_takes_nothing_is_an_error() {
        let mut opening = Opening { header: 0, ..Opening::new(NAME) };
        let plain = bytes(AMQPMethod::StartOk(start_ok("guest")));
        let error = opening.write(&plain, |_| Ok(0)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }

    #[test]
    fn the_names_that_a_connection_can_have() {
        let ClientProperties { information, connection_name: given } = ClientProperties::new("p");
        assert_eq!(information, concat!("p ", env!("CARGO_PKG_VERSION")));
        let parts: Vec<&str> = given.split(' ').collect();
        let pid = std::process::id().to_string();
        assert!(matches!(parts[..], ["p", _, number] if number == pid), "{given}");
        for good in [&given, "batch of 3 o'clock", "höst", &"x".repeat(255)] {
            assert_eq!(connection_name(good).as_deref(), Ok(good));
        }
        for (bad, reason) in [
            ("", "a name cannot be empty"),
            (&"x".repeat(256), "a name has at most 255 bytes, and this one has 256"),
            ("a\nb", "a connection's name has no control characters, and this one has \\n"),
            ("\u{9b}2J", "a connection's name has no control characters, and this one has \\u{9b}"),
        ] {
            assert_eq!(connection_name(bad), Err(reason.into()));
        }
    }
}
