//! Messages that no client library would publish: a hand-written AMQP 0-9-1 publisher, which puts
//! any bytes at all in place of a message's properties.

use super::PATIENCE;
use std::io::{Read, Write};
use std::net::TcpStream;

// Property flags, AMQP 0-9-1 section 4.2.6.1: which properties follow, the first one highest.
pub const CONTENT_TYPE: u16 = 1 << 15;
pub const CONTENT_ENCODING: u16 = 1 << 14;
pub const HEADERS: u16 = 1 << 13;
pub const CORRELATION_ID: u16 = 1 << 10;
pub const REPLY_TO: u16 = 1 << 9;

pub fn short_string(bytes: &[u8]) -> Vec<u8> {
    [&[bytes.len() as u8], bytes].concat()
}

pub fn table(content: &[u8]) -> Vec<u8> {
    [&(content.len() as u32).to_be_bytes(), content].concat()
}

/// A table in a table in a table, `depth` of them.
pub fn nested(depth: usize) -> Vec<u8> {
    // From the outside in: an empty name, type F, and the length of what is left.
    let content = (1..depth).rev().flat_map(|inner| {
        let length = 6 * (inner - 1) as u32;
        [0, b'F'].into_iter().chain(length.to_be_bytes())
    });
    table(&content.collect::<Vec<u8>>())
}

/// Properties that would end the client library's connection, in two ways that RabbitMQ passes on.
pub fn unreadable() -> [(u16, Vec<u8>); 2] {
    let header = table(b"\x01kS\0\0\0\x01v");
    let properties = [short_string(b"caf\xe9"), header].concat();
    [(CONTENT_TYPE | HEADERS, properties.clone()), (CONTENT_ENCODING | HEADERS, properties)]
}

/// Publishes to a queue of the node at `url`, and returns when the broker has the message. A node whose
/// `frame_max` allows it takes properties that are larger than usual.
pub fn publish(url: &str, queue: &str, flags: u16, properties: &[u8], body: &[u8]) {
    let frame_max = FRAME_MAX.max(properties.len() + 22);
    let mut peer = Peer::open(url, frame_max);
    let routing_key = short_string(queue.as_bytes());
    peer.send(1, 1, &[&[0, 60, 0, 40, 0, 0, 0][..], &routing_key, &[0]].concat());
    let size = (body.len() as u64).to_be_bytes();
    let header = [&[0, 60, 0, 0][..], &size, &flags.to_be_bytes(), properties].concat();
    peer.send(2, 1, &header);
    for chunk in body.chunks(FRAME_MAX - 8) {
        peer.send(3, 1, chunk);
    }
    // channel.close, and its answer: everything before it has been taken.
    peer.send(1, 1, &[0, 20, 0, 40, 0, 200, 0, 0, 0, 0, 0]);
    peer.expect([0, 20, 0, 41]);
}

pub const FRAME_MAX: usize = 131_072;

/// A frame as AMQP 0-9-1, section 2.3.5, has it: type 1 is a method, 2 a content header, 3 a body.
pub fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
    let size = (payload.len() as u32).to_be_bytes();
    [&[kind][..], &channel.to_be_bytes(), &size, payload, &[0xce]].concat()
}

struct Peer(TcpStream);

impl Peer {
    fn open(url: &str, frame_max: usize) -> Peer {
        let hostport = url.rsplit(['@', '/']).next().unwrap();
        let stream = TcpStream::connect(hostport).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut peer = Peer(stream);
        peer.0.write_all(b"AMQP\0\0\x09\x01").unwrap();
        peer.expect([0, 10, 0, 10]);
        let login = table(b"\0guest\0guest");
        let start_ok = [&[0, 10, 0, 11, 0, 0, 0, 0][..], &short_string(b"PLAIN"), &login];
        peer.send(1, 0, &[&start_ok.concat(), &short_string(b"en_US")[..]].concat());
        peer.expect([0, 10, 0, 30]);
        let frame_max = (frame_max as u32).to_be_bytes();
        peer.send(1, 0, &[&[0, 10, 0, 31, 0, 8][..], &frame_max, &[0, 0]].concat());
        peer.send(1, 0, &[&[0, 10, 0, 40][..], &short_string(b"/"), &[0, 0]].concat());
        peer.expect([0, 10, 0, 41]);
        peer.send(1, 1, &[0, 20, 0, 10, 0]);
        peer.expect([0, 20, 0, 11]);
        peer
    }

    fn send(&mut self, kind: u8, channel: u16, payload: &[u8]) {
        self.0.write_all(&frame(kind, channel, payload)).unwrap();
    }

    /// Reads up to the method with this class and number.
    fn expect(&mut self, method: [u8; 4]) {
        loop {
            let mut head = [0; 7];
            self.0.read_exact(&mut head).unwrap();
            let size = u32::from_be_bytes(head[3..7].try_into().unwrap()) as usize;
            let mut payload = vec![0; size + 1];
            self.0.read_exact(&mut payload).unwrap();
            if head[0] == 1 {
                assert!(payload.starts_with(&method), "{:?}", String::from_utf8_lossy(&payload));
                return;
            }
        }
    }
}
