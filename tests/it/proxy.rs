//! A TCP proxy between a program and a real broker. It knows where AMQP frames begin and end: it
//! ends, holds back or delays a connection at the methods that a rule names, and counts what passes.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// Class and number of a method, AMQP 0-9-1 section 1.2. They say who sends it, too.
pub type Method = (u16, u16);
pub const CONNECTION_CLOSE: Method = (10, 50);
pub const CHANNEL_OPEN_OK: Method = (20, 11);
pub const CHANNEL_CLOSE_OK: Method = (20, 41);
pub const QUEUE_DECLARE: Method = (50, 10);
pub const QUEUE_DECLARE_OK: Method = (50, 11);
pub const BASIC_CONSUME_OK: Method = (60, 21);
pub const BASIC_CANCEL_OK: Method = (60, 31);
pub const BASIC_PUBLISH: Method = (60, 40);
pub const BASIC_DELIVER: Method = (60, 60);
pub const CONFIRM_SELECT: Method = (85, 10);

/// A frame with connection.close: 320, CONNECTION_FORCED, as when an operator closes connections.
const CLOSE: &[u8] = b"\x01\0\0\0\0\0\x1c\0\x0a\0\x32\x01\x40\x11CONNECTION_FORCED\0\0\0\0\xce";

/// A method frame on its way.
pub struct Frame<'a> {
    pub method: Method,
    /// The how manieth of its method it is on its connection, from 1.
    pub nth: usize,
    /// Class, number and arguments.
    pub payload: &'a [u8],
}

/// What becomes of a method frame.
pub enum Action {
    Pass,
    /// Its connection ends before it gets through.
    End,
    /// Its connection ends with it: connection.close comes in one segment with it.
    PassAndClose,
    /// What goes the same way on its connection stops until the rule is another one.
    Stall,
    /// What goes the same way on its connection stops for so long.
    Delay(Duration),
    /// This payload, of the same length, goes on in its place.
    Replace(Vec<u8>),
}

type Rule = Arc<dyn Fn(&Frame<'_>) -> Action + Send + Sync>;

/// Lives as long as its test; with it end its connections.
pub struct Proxy {
    pub url: String,
    shared: Arc<Shared>,
}

struct Shared {
    rule: Mutex<Rule>,
    /// Both ends of each connection that there ever was.
    connections: Mutex<Vec<[TcpStream; 2]>>,
    passed: Mutex<HashMap<Method, usize>>,
}

impl Proxy {
    /// A proxy for the broker at `url` where `rule` decides on each method frame.
    pub fn start(url: &str, rule: impl Fn(&Frame<'_>) -> Action + Send + Sync + 'static) -> Proxy {
        let broker = url.rsplit(['@', '/']).next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("amqp://{}", listener.local_addr().unwrap());
        let (connections, passed) = (Mutex::default(), Mutex::default());
        let rule: Rule = Arc::new(rule);
        let shared = Arc::new(Shared { rule: Mutex::new(rule), connections, passed });
        let proxy = Proxy { url, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                // A broker that a test has killed takes no connections.
                let Ok(far) = TcpStream::connect(&broker) else { continue };
                for (source, sink, opening) in [(&near, &far, 8), (&far, &near, 0)] {
                    let shared = Arc::clone(&shared);
                    let (source, sink) = (source.try_clone().unwrap(), sink.try_clone().unwrap());
                    thread::spawn(move || shared.pass_on(source, sink, opening));
                }
                shared.connections.lock().unwrap().push([near, far]);
            }
        });
        proxy
    }

    /// From now on, another rule decides.
    pub fn set(&self, rule: impl Fn(&Frame<'_>) -> Action + Send + Sync + 'static) {
        *self.shared.rule.lock().unwrap() = Arc::new(rule);
    }

    /// Ends all connections that there are.
    pub fn end_connections(&self) {
        for end in self.shared.connections.lock().unwrap().iter().flatten() {
            let _ = end.shutdown(Shutdown::Both);
        }
    }

    /// How many connections there were.
    pub fn connections(&self) -> usize {
        self.shared.connections.lock().unwrap().len()
    }

    /// How many frames of a method got through.
    pub fn passed(&self, method: Method) -> usize {
        self.shared.passed.lock().unwrap().get(&method).copied().unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(|_| Action::End);
        self.end_connections();
    }
}

impl Shared {
    fn pass_on(&self, mut source: TcpStream, mut sink: TcpStream, opening: u64) {
        let _ = self.pass_frames(&mut source, &mut sink, opening);
        let _ = source.shutdown(Shutdown::Both);
        let _ = sink.shutdown(Shutdown::Both);
    }

    /// Passes on `opening` octets, which are a client's protocol header, and then frames.
    fn pass_frames(
        &self,
        from: &mut TcpStream,
        to: &mut TcpStream,
        opening: u64,
    ) -> io::Result<()> {
        to.set_nodelay(true)?;
        io::copy(&mut from.take(opening), to)?;
        let mut seen = HashMap::<Method, usize>::new();
        loop {
            // Type, channel and size, then the payload and an octet for its end.
            let mut frame = vec![0; 7];
            from.read_exact(&mut frame)?;
            let size = u32::from_be_bytes([frame[3], frame[4], frame[5], frame[6]]) as usize;
            frame.resize(7 + size + 1, 0);
            from.read_exact(&mut frame[7..])?;
            let (1, [_, _, _, _, _, _, _, payload @ ..]) = (frame[0], &frame[..]) else {
                to.write_all(&frame)?;
                continue;
            };
            let number = |at| u16::from_be_bytes([payload[at], payload[at + 1]]);
            let method = (number(0), number(2));
            *seen.entry(method).or_default() += 1;
            let action = self.decide(&Frame { method, nth: seen[&method], payload });
            if let Action::End = action {
                return Ok(());
            }
            *self.passed.lock().unwrap().entry(method).or_default() += 1;
            if let Action::Replace(payload) = &action {
                frame[7..].copy_from_slice(payload);
            }
            if let Action::PassAndClose = action {
                to.write_all(&[&frame, CLOSE].concat())?;
                // The client's answer ends the connection, since the broker did not ask for it.
                return io::copy(from, &mut io::sink()).map(drop);
            }
            to.write_all(&frame)?;
        }
    }

    /// What the rule says once it does not say to wait.
    fn decide(&self, frame: &Frame<'_>) -> Action {
        loop {
            let rule = Arc::clone(&self.rule.lock().unwrap());
            match rule(frame) {
                Action::Stall => thread::sleep(Duration::from_millis(20)),
                Action::Delay(delay) => {
                    thread::sleep(delay);
                    return Action::Pass;
                }
                action => return action,
            }
        }
    }
}

/// Returns the URI of a way to the broker at `url` that takes `rate` bytes a second from the programs, once it has let the
/// first ones pass that a connection and a queue need.
pub fn slow_link(url: &str, rate: u32) -> String {
    let broker = url.rsplit(['@', '/']).next().unwrap().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for mut near in listener.incoming().flatten() {
            // A broker that a test has killed takes no connections.
            let Ok(mut far) = TcpStream::connect(&broker) else { continue };
            let (mut back, mut forth) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            thread::spawn(move || {
                let _ = io::copy(&mut back, &mut forth);
                let _ = forth.shutdown(Shutdown::Both);
            });
            thread::spawn(move || {
                let (mut piece, mut free) = ([0; 10_000], 2_000);
                let most = piece.len().min(rate as usize / 10);
                while let Ok(read @ 1..) = near.read(&mut piece[..most]) {
                    if far.write_all(&piece[..read]).is_err() {
                        break;
                    }
                    let paid = read.saturating_sub(free);
                    free -= free.min(read);
                    thread::sleep(Duration::from_secs(1) * paid as u32 / rate);
                }
                let _ = far.shutdown(Shutdown::Both);
            });
        }
    });
    format!("amqp://{address}")
}
