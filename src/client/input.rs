//! The client's arguments: those of the command line, and what standard input has.

use crate::amqp::MAX_BODY;
use crate::cli::{self, SendOn};
use crate::client::destination;
use crate::client::outputs::{Outputs, Target};
use crate::error::{Failure, FailureKind};
use crate::mutex::lock;
use crate::template::Template;
use crate::terminal::output;
use crate::terminal::waiting::Waiting;
use crossbeam_channel::{Receiver, Select, Sender, bounded};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, StdinLock};
use std::ops::Deref;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

/// How many arguments are read ahead.
const AHEAD: usize = 64;

/// How many bytes the arguments that were read may have together, those read ahead and those in flight, or else
/// it is one argument alone.
pub const MAX_BYTES: usize = 32 << 20;

/// A longer argument is cut to this: one byte more than a broker takes is too much already.
const LONGEST: u64 = MAX_BODY as u64 + 1;

/// The argument of one call.
#[derive(Debug, Clone)]
pub struct Argument {
    /// The argument, without what ended it. One that is repeated is there once.
    pub bytes: Arc<Bytes>,
    /// Which line of standard input it is, from 1; None: it was on the command line, or is all of
    /// standard input.
    pub line: Option<u64>,
    /// What is in the file that the argument names, if that is what is sent.
    content: Option<Arc<Bytes>>,
    /// Where the result goes, if that is a file.
    pub target: Option<Arc<Target>>,
    /// The routing key of the request, if that goes to an exchange.
    pub routing_key: Option<String>,
    /// What keeps the call from being made: the file cannot be read, the result's cannot be written, or there is no
    /// routing key.
    pub obstacle: Option<Failure>,
}

impl Argument {
    /// Makes an argument of `bytes` that no limit counts.
    pub fn new(bytes: Vec<u8>, line: Option<u64>) -> Argument {
        Argument::of(Bytes { bytes, budget: None }, line)
    }

    fn of(bytes: Bytes, line: Option<u64>) -> Argument {
        Argument {
            bytes: Arc::new(bytes),
            line,
            content: None,
            target: None,
            routing_key: None,
            obstacle: None,
        }
    }

    /// Returns the body of the call's request.
    pub fn body(&self) -> &[u8] {
        self.content.as_ref().unwrap_or(&self.bytes)
    }

    /// Writes the call's result to its file, if it goes to one: nothing is left to be told then.
    pub fn store(&self, result: Vec<u8>) -> Result<Vec<u8>, Failure> {
        match &self.target {
            Some(target) => target.store(&result).map(|()| Vec::new()),
            None => Ok(result),
        }
    }
}

/// The bytes of an argument. They count against the limit on all of them until they are dropped.
#[derive(Debug)]
pub struct Bytes {
    bytes: Vec<u8>,
    budget: Option<Arc<Budget>>,
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(budget) = &self.budget {
            budget.give_back(self.bytes.len());
        }
    }
}

/// A bound on the bytes of all arguments that there are at a time.
#[derive(Debug, Default)]
struct Budget {
    used: Mutex<usize>,
    has_more: Condvar,
}

impl Budget {
    /// Waits until `bytes` fit beside what there is, or there is nothing else.
    fn spend(self: &Arc<Budget>, bytes: Vec<u8>) -> Bytes {
        let is_over = |used: &mut usize| *used > 0 && *used + bytes.len() > MAX_BYTES;
        let used = self.has_more.wait_while(self.used(), is_over);
        *used.unwrap_or_else(PoisonError::into_inner) += bytes.len();
        Bytes { bytes, budget: Some(Arc::clone(self)) }
    }

    fn give_back(&self, bytes: usize) {
        *self.used() -= bytes;
        self.has_more.notify_one();
    }

    fn used(&self) -> MutexGuard<'_, usize> {
        // Nothing panics with the lock held; if it did, the number would be whole.
        lock(&self.used)
    }
}

/// The calls that are not made, since their outputs are there: counted by who reads the input.
#[derive(Debug, Default)]
pub struct Skipped {
    /// How many there are.
    pub calls: AtomicU64,
    /// How many bytes of standard input they have, with those that end a line.
    pub bytes: AtomicU64,
}

impl Skipped {
    fn count(&self, argument: &Argument) {
        self.calls.fetch_add(1, SeqCst);
        if argument.line.is_some() {
            self.bytes.fetch_add(argument.bytes.len() as u64 + 1, SeqCst);
        }
    }
}

/// Where arguments come from.
pub struct Input {
    arguments: Receiver<Result<Argument, Failure>>,
    has_ended: Arc<AtomicBool>,
}

impl Input {
    /// Opens the input that `args` describe: each argument in turn, as often as it is to be repeated; in place of
    /// an argument `-`, what standard input has, as it comes; without any argument, one that is empty. It ends
    /// with the first error of reading.
    ///
    /// Calls whose outputs are there are counted in `skipped`, if they are to be skipped.
    ///
    /// Standard input is read on a thread of its own, so that an input which pauses keeps no reply waiting.
    /// Fails if the system has no thread to give.
    pub fn open(args: &cli::Client, skipped: Arc<Skipped>) -> io::Result<Input> {
        let arguments = match &args.arguments[..] {
            [] => vec![OsString::new()],
            some => some.to_vec(),
        };
        let are_few = args.repeat == 1 && args.stdins() == 0 && !args.files;
        let (sender, receiver) = bounded(if are_few { arguments.len() } else { AHEAD });
        let has_ended = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            sender,
            repeat: args.repeat,
            // The arguments of a command line are all there to begin with.
            budget: (!are_few).then(Arc::default),
            line: 0,
            names_files: args.files,
            outputs: Outputs::new(args),
            routing_key: args
                .exchange
                .as_ref()
                .map(|_| args.routing_key.clone().unwrap_or_default()),
            number: 0,
            skipped,
            has_ended: Arc::clone(&has_ended),
        };

        let send_on = args.send_on.unwrap_or(SendOn::Newline);
        let read = move || drop(reader.read(arguments, send_on));
        if are_few {
            read();
        } else {
            thread::Builder::new().name("input".into()).spawn(read)?;
        }

        Ok(Input { arguments: receiver, has_ended })
    }

    /// Returns where arguments come, in their order. A failure to read more is the last.
    pub fn arguments(&self) -> &Receiver<Result<Argument, Failure>> {
        &self.arguments
    }

    /// Waits until an argument is there, or nothing more will come.
    pub fn await_first(&self) {
        let mut first = Select::new();
        first.recv(&self.arguments);
        first.ready();
    }

    /// Returns whether nothing has been read that was not taken.
    pub fn is_empty(&self) -> bool {
        self.arguments.is_empty()
    }

    /// Returns whether everything was read and taken. It may be so a moment before this says it.
    pub fn is_over(&self) -> bool {
        self.has_ended.load(SeqCst) && self.is_empty()
    }
}

/// Why reading ends early: it failed, or nobody receives any more.
struct ReadingEnded;

/// Reads arguments, and sends each as often as it is to be repeated.
struct Reader {
    sender: Sender<Result<Argument, Failure>>,
    repeat: u64,
    /// What bounds the bytes of all arguments, if they are many.
    budget: Option<Arc<Budget>>,
    /// The number of the last line that was read of standard input.
    line: u64,
    /// Whether what is in a file is sent, and not its name.
    names_files: bool,
    outputs: Option<Outputs>,
    /// The template of routing keys, if requests go to an exchange.
    routing_key: Option<Template>,
    /// The number of the last call.
    number: u64,
    skipped: Arc<Skipped>,
    has_ended: Arc<AtomicBool>,
}

impl Reader {
    fn read(mut self, arguments: Vec<OsString>, send_on: SendOn) -> Result<(), ReadingEnded> {
        for argument in arguments {
            if argument != "-" {
                self.send(Ok(argument.into_vec()), None)?;
                continue;
            }
            match send_on {
                // Rust has /dev/null there then.
                _ if output::stdin_was_closed() => self.send(Err(Errno::BADF.into()), None)?,
                SendOn::Eof => self.send(whole(stdin()), None)?,
                SendOn::Newline => self.read_lines(b'\n')?,
                SendOn::Nul => self.read_lines(b'\0')?,
            }
        }
        Ok(())
    }

    fn read_lines(&mut self, end: u8) -> Result<(), ReadingEnded> {
        for bytes in lines(BufReader::new(stdin()), end) {
            self.line += 1;
            self.send(bytes, Some(self.line))?;
        }
        Ok(())
    }

    fn send(&mut self, bytes: io::Result<Vec<u8>>, line: Option<u64>) -> Result<(), ReadingEnded> {
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => {
                let failure = Failure::internal("cannot read standard input")(error);
                let _ = self.sender.send(Err(failure));
                return Err(ReadingEnded);
            }
        };

        let argument = Argument::of(self.spend(bytes), line);
        for _ in 0..self.repeat {
            self.number += 1;
            match self.complete(argument.clone()) {
                Some(argument) => self.sender.send(Ok(argument)).map_err(|_| ReadingEnded)?,
                None => self.skipped.count(&argument),
            }
        }
        Ok(())
    }

    /// Adds what the call needs: its routing key, where its result goes, then what is sent. None if the call is skipped.
    fn complete(&mut self, mut argument: Argument) -> Option<Argument> {
        if let Some(template) = &self.routing_key {
            match destination::routing_key(template, &argument.bytes, self.number) {
                Ok(key) => argument.routing_key = Some(key),
                Err(failure) => argument.obstacle = Some(failure),
            }
        }

        if let Some(outputs) = &mut self.outputs {
            match outputs.target(&argument.bytes, self.number) {
                Ok(target) => argument.target = Some(Arc::new(target?)),
                Err(failure) => argument.obstacle = Some(failure),
            }
        }

        if self.names_files && argument.obstacle.is_none() {
            match read_file(&argument.bytes) {
                Ok(content) => argument.content = Some(Arc::new(self.spend(content))),
                Err(failure) => argument.obstacle = Some(failure),
            }
        }
        Some(argument)
    }

    fn spend(&self, bytes: Vec<u8>) -> Bytes {
        match &self.budget {
            Some(budget) => budget.spend(bytes),
            None => Bytes { bytes, budget: None },
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.has_ended.store(true, SeqCst);
    }
}

/// Reads what is in the file of this name, up to [`LONGEST`].
fn read_file(name: &[u8]) -> Result<Vec<u8>, Failure> {
    let path = Path::new(OsStr::from_bytes(name));
    open(path).and_then(whole).map_err(|error| {
        let message = format!("cannot read the file: {error}");
        Failure::new(FailureKind::NoInput, message)
    })
}

/// Opens a file that is read without waiting for anybody, since all calls behind it would wait too; or what the client
/// was given open, as a shell names its `<(…)`.
fn open(path: &Path) -> io::Result<File> {
    let is_stdin = path == "/dev/stdin" || path == "/dev/fd/0";
    if is_stdin && output::stdin_was_closed() {
        // Rust has /dev/null there then.
        return Err(Errno::BADF.into());
    }
    if path == "/dev/stdin" || path.starts_with("/dev/fd") {
        return File::open(path);
    }

    let flags = OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    match file.metadata()?.file_type().is_fifo() {
        true => Err(io::Error::other(
            "it is a FIFO, for whose end all calls would wait; store it in a file first",
        )),
        false => Ok(file),
    }
}

/// Returns standard input, for this thread alone.
fn stdin() -> Waiting<StdinLock<'static>> {
    Waiting(io::stdin().lock())
}

/// Reads all of `input`, up to [`LONGEST`].
fn whole(input: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(LONGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Reads the lines of `input`, without the byte that ends each. What is beyond [`LONGEST`] is read when the
/// next one is, and thrown away: an input without that byte, such as `/dev/zero`, takes no memory
/// without end.
fn lines(mut input: impl BufRead, end: u8) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    let mut is_cut = false;
    let mut next = move || {
        if is_cut {
            input.skip_until(end)?;
        }
        let mut line = Vec::new();
        if input.by_ref().take(LONGEST).read_until(end, &mut line)? == 0 {
            return Ok(None);
        }
        let has_end = line.pop_if(|last| *last == end).is_some();
        is_cut = line.len() as u64 == LONGEST && !has_end;
        Ok(Some(line))
    };
    std::iter::from_fn(move || next().transpose())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that is too large for the limit goes alone.
    #[test]
    fn arguments_wait_until_their_bytes_fit() {
        let budget = Arc::new(Budget::default());
        let large = budget.spend(vec![0; MAX_BYTES + 1]);
        let (sender, received) = bounded(1);
        let spender = Arc::clone(&budget);
        thread::spawn(move || {
            let both = [(); 2].map(|()| spender.spend(vec![0; MAX_BYTES / 2]));
            sender.send(both).unwrap();
        });
        assert!(received.try_recv().is_err());
        drop(large);
        let both = received.recv().unwrap();
        assert_eq!(*budget.used(), MAX_BYTES);
        drop(both);
        assert_eq!(*budget.used(), 0);
    }

    #[test]
    fn lines_have_no_ends_and_no_more_than_a_broker_takes() {
        let read_to =
            |end, input: &[u8]| lines(input, end).collect::<io::Result<Vec<_>>>().unwrap();
        let read = |input: &[u8]| read_to(b'\n', input);
        assert_eq!(read_to(b'\0', b"1\n\0\0\xff"), [&b"1\n"[..], b"", b"\xff"]);
        assert_eq!(read(b""), [b""; 0]);
        assert_eq!(read(b"1\n\n2\r\n3"), [&b"1"[..], b"", b"2\r", b"3"]);
        for (length, kept) in [(MAX_BODY, MAX_BODY), (MAX_BODY + 1, MAX_BODY + 1)] {
            let long = vec![b'9'; length];
            let lengths = |input: &[u8]| read(input).iter().map(Vec::len).collect::<Vec<_>>();
            assert_eq!(lengths(&long), [kept]);
            assert_eq!(whole(&long[..]).unwrap().len(), kept);
            assert_eq!(whole(io::repeat(0)).unwrap().len(), MAX_BODY + 1);
            assert_eq!(lengths(&[&long, &b"\n1"[..]].concat()), [kept, 1]);
            assert_eq!(lengths(&[&long, &b"9999\n22\n"[..]].concat()), [MAX_BODY + 1, 2]);
        }
    }
}
