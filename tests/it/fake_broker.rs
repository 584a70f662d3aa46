//! A peer in the broker's place that tells the lies which no broker tells: frames by a script.

use crate::harness::PATIENCE;
use crate::harness::raw::{frame, short_string, table};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

// Class and number of the methods that scripts use most (AMQP 0-9-1, section 1.3).
pub const CLOSE: [u8; 4] = [0, 10, 0, 50];
pub const OPEN_OK: [u8; 4] = [0, 10, 0, 41];
pub const QUEUE_DECLARE: [u8; 4] = [0, 50, 0, 10];

/// Listens on a port of its own until the test ends.
pub struct FakeBroker {
    pub url: String,
    connections: Arc<AtomicUsize>,
}

impl FakeBroker {
    /// Runs `script` for each connection that is made, on a thread of its own. The connection
    /// ends with the script, and so does the script when the connection ends.
    pub fn start(
        script: impl Fn(&mut Conversation) -> io::Result<()> + Send + Sync + 'static,
    ) -> FakeBroker {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("amqp://{}", listener.local_addr().unwrap());
        let connections = Arc::new(AtomicUsize::new(0));
        let (count, script) = (Arc::clone(&connections), Arc::new(script));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, script) = (stream.unwrap(), Arc::clone(&script));
                count.fetch_add(1, Ordering::SeqCst);
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                stream.set_nodelay(true).unwrap();
                thread::spawn(move || script(&mut Conversation(stream)));
            }
        });
        FakeBroker { url, connections }
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// One connection, seen from the broker's side.
pub struct Conversation(pub TcpStream);

impl Conversation {
    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// Sends a method: its class and number, then its arguments.
    pub fn method(&mut self, channel: u16, method: [u8; 4], arguments: &[u8]) -> io::Result<()> {
        self.send(&frame(1, channel, &[&method[..], arguments].concat()))
    }

    /// Reads one frame: its type, channel and payload.
    pub fn read(&mut self) -> io::Result<(u8, u16, Vec<u8>)> {
        let mut head = [0; 7];
        self.0.read_exact(&mut head)?;
        let [kind, high, low, size @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes(size) as usize + 1];
        self.0.read_exact(&mut payload)?;
        payload.pop();
        Ok((kind, u16::from_be_bytes([high, low]), payload))
    }

    /// Reads up to a method, and returns its channel and its arguments.
    pub fn expect(&mut self, method: [u8; 4]) -> io::Result<(u16, Vec<u8>)> {
        loop {
            let (kind, channel, payload) = self.read()?;
            if kind == 1 && payload.starts_with(&method) {
                return Ok((channel, payload[4..].to_vec()));
            }
        }
    }

    /// Reads to the end of the connection.
    pub fn drain(&mut self) -> io::Result<()> {
        io::copy(&mut self.0, &mut io::sink()).map(drop)
    }

    /// Reads the protocol header with which a client begins.
    pub fn greeted(&mut self) -> io::Result<()> {
        self.0.read_exact(&mut [0; 8])
    }

    /// The handshake up to the client's credentials (connection.start-ok).
    pub fn start(&mut self) -> io::Result<()> {
        self.greeted()?;
        let texts = [table(b"PLAIN"), table(b"en_US")].concat();
        let start = [&[0, 9, 0, 0, 0, 0][..], &texts].concat();
        self.method(0, [0, 10, 0, 10], &start)?;
        self.expect([0, 10, 0, 11]).map(drop)
    }

    /// The handshake from connection.tune to the client's connection.open.
    pub fn tune(&mut self, frame_max: u32) -> io::Result<()> {
        let tune = [&[0, 0][..], &frame_max.to_be_bytes(), &[0, 0]].concat();
        self.method(0, [0, 10, 0, 30], &tune)?;
        self.expect([0, 10, 0, 40]).map(drop)
    }

    /// The whole handshake.
    pub fn log_in(&mut self) -> io::Result<()> {
        self.start()?;
        self.tune(131_072)?;
        self.method(0, OPEN_OK, &[0])
    }

    /// Answers what comes up to a basic.consume, and that too. Returns the consumer's channel. A
    /// queue that is declared has no messages, and a consumer; the consumer's tag is `tag`.
    pub fn serve_until_consume(&mut self) -> io::Result<u16> {
        loop {
            let (_, channel, payload) = self.read()?;
            let (answer, arguments) = match payload.get(..4) {
                Some([0, 20, 0, 10]) => ([0, 20, 0, 11], table(b"")),
                Some([0, 20, 0, 40]) => ([0, 20, 0, 41], vec![]),
                Some([0, 50, 0, 10]) => {
                    let counts = [0, 0, 0, 0, 0, 0, 0, 1];
                    ([0, 50, 0, 11], [&short_string(b"amq.gen-fake")[..], &counts].concat())
                }
                Some([0, 60, 0, 10]) => ([0, 60, 0, 11], vec![]),
                Some([0, 85, 0, 10]) => ([0, 85, 0, 11], vec![]),
                Some([0, 60, 0, 20]) => {
                    self.method(channel, [0, 60, 0, 21], &short_string(b"tag"))?;
                    return Ok(channel);
                }
                _ => continue,
            };
            self.method(channel, answer, &arguments)?;
        }
    }
}

/// The beginning of a message to the consumer of [`Conversation::serve_until_consume`].
pub fn deliver(channel: u16, number: u64) -> Vec<u8> {
    let tag = short_string(b"tag");
    let number = number.to_be_bytes();
    frame(1, channel, &[&[0, 60, 0, 60][..], &tag, &number, &[0, 0, 0]].concat())
}

/// A content header that announces a body of `size` bytes; `properties` are flags and values.
pub fn header(channel: u16, size: u64, properties: &[u8]) -> Vec<u8> {
    frame(2, channel, &[&[0, 60, 0, 0][..], &size.to_be_bytes(), properties].concat())
}
