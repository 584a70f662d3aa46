//! A TCP proxy between a program and a real broker. It knows where AMQP frames begin and end: it
//! ends, holds back or delays a connection at the methods that a rule names, and counts what passes.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

/// Class and number of a method, AMQP 0-9-1 section 1.2.
pub type Method = (u16, u16);
pub const CHANNEL_OPEN_OK: Method = (20, 11);
pub const QUEUE_DECLARE: Method = (50, 10);
pub const QUEUE_DECLARE_OK: Method = (50, 11);
pub const BASIC_CONSUME_OK: Method = (60, 21);
pub const BASIC_PUBLISH: Method = (60, 40);
pub const BASIC_DELIVER: Method = (60, 60);

/// Who sent a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    Client,
    Broker,
}

/// A method frame on its way.
pub struct Frame<'a> {
    pub from: Side,
    pub method: Method,
    /// The how manieth of this method it is on its connection, from 1.
    pub nth: usize,
    /// The method's arguments, class and number before them.
    pub payload: &'a [u8],
}

/// What becomes of a method frame.
pub enum Action {
    Pass,
    /// Its connection ends before the frame gets through.
    End,
    /// Its connection ends with this frame.
    PassAndEnd,
    /// Its direction of its connection stops until the rule is another one.
    Stall,
    /// Its direction of its connection stops for so long.
    Delay(Duration),
}

type Rule = Arc<dyn Fn(&Frame<'_>) -> Action + Send + Sync>;

struct Shared {
    rule: RwLock<Rule>,
    /// Both ends of each connection that there ever was.
    connections: Mutex<Vec<[TcpStream; 2]>>,
    passed: Mutex<HashMap<(Side, Method), usize>>,
}

/// A proxy that lives as long as its test; with it end its connections.
pub struct Proxy {
    pub url: String,
    shared: Arc<Shared>,
}

impl Proxy {
    /// One in front of the broker at `broker`, where `rule` decides on each method frame.
    pub fn start(
        broker: &str,
        rule: impl Fn(&Frame<'_>) -> Action + Send + Sync + 'static,
    ) -> Proxy {
        let address = broker.rsplit(['@', '/']).next().unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("amqp://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            rule: RwLock::new(Arc::new(rule)),
            connections: Mutex::default(),
            passed: Mutex::default(),
        });
        let proxy = Proxy { url, shared: Arc::clone(&shared) };
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let Ok(far) = TcpStream::connect(&address) else { continue };
                let clone = || Ok::<_, io::Error>([near.try_clone()?, far.try_clone()?]);
                let [[source, sink], [back, front], kept] =
                    [clone, clone, clone].map(|c| c().unwrap());
                shared.connections.lock().unwrap().push(kept);
                let (out, home) = (Arc::clone(&shared), Arc::clone(&shared));
                thread::spawn(move || out.pass_on(Side::Client, source, sink));
                thread::spawn(move || home.pass_on(Side::Broker, front, back));
            }
        });
        proxy
    }

    /// From now on, another rule decides.
    pub fn set(&self, rule: impl Fn(&Frame<'_>) -> Action + Send + Sync + 'static) {
        *self.shared.rule.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(rule);
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

    /// How many frames with a method got through.
    pub fn passed(&self, from: Side, method: Method) -> usize {
        self.shared.passed.lock().unwrap().get(&(from, method)).copied().unwrap_or_default()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(|_| Action::End);
        self.end_connections();
    }
}

impl Shared {
    fn pass_on(&self, from: Side, mut source: TcpStream, mut sink: TcpStream) {
        let _ = self.pass_frames(from, &mut source, &mut sink);
        let _ = source.shutdown(Shutdown::Both);
        let _ = sink.shutdown(Shutdown::Both);
    }

    fn pass_frames(
        &self,
        from: Side,
        source: &mut TcpStream,
        sink: &mut TcpStream,
    ) -> io::Result<()> {
        sink.set_nodelay(true)?;
        if from == Side::Client {
            io::copy(&mut source.take(8), sink)?; // the protocol header
        }
        let mut seen = HashMap::<Method, usize>::new();
        loop {
            // Type, channel and size, then the payload and an octet for its end.
            let mut head = [0; 7];
            source.read_exact(&mut head)?;
            let [.., a, b, c, d] = head;
            let mut rest = vec![0; u32::from_be_bytes([a, b, c, d]) as usize + 1];
            source.read_exact(&mut rest)?;
            let mut is_last = false;
            if let (1, [a, b, c, d, ..]) = (head[0], &rest[..]) {
                let method = (u16::from_be_bytes([*a, *b]), u16::from_be_bytes([*c, *d]));
                let nth = seen.entry(method).or_default();
                *nth += 1;
                match self.decide(&Frame { from, method, nth: *nth, payload: &rest }) {
                    Action::End => return Ok(()),
                    Action::PassAndEnd => is_last = true,
                    _ => {}
                }
                *self.passed.lock().unwrap().entry((from, method)).or_default() += 1;
            }
            sink.write_all(&[&head[..], &rest].concat())?;
            if is_last {
                return Ok(());
            }
        }
    }

    /// What the rule says, once it does not say to wait.
    fn decide(&self, frame: &Frame<'_>) -> Action {
        loop {
            let rule = Arc::clone(&self.rule.read().unwrap());
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
