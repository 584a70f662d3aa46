//! A thread that writes lines, so that nobody else waits for whoever reads them.
//!
//! No question to the system can replace it: poll(2) says that there is room, and a write of more than a page, or of a
//! line to a terminal, still waits. What waits here is a thread that does nothing else.

use crate::error::Failure;
use crate::mutex::lock;
use crate::terminal::text;
use crate::terminal::waiting::await_ready;
use rustix::event::PollFlags;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How much waits to be written at most, in bytes.
const ROOM: usize = 1 << 20;

/// How much is written at a time, in bytes: a pipe takes it in one piece (POSIX, PIPE_BUF), so that no line of
/// another process gets into the middle of one.
const PIECE: usize = 4096;

/// How long a reader that takes nothing is waited for at the end.
const STALL_LIMIT: Duration = Duration::from_millis(500);

/// Where a line goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

impl Stream {
    /// Writes all of `bytes`. `progress` is called whenever a part of them is written.
    fn write(self, bytes: &[u8], progress: impl FnMut()) -> io::Result<()> {
        match self {
            Stream::Output => write(&io::stdout(), bytes, progress),
            Stream::Error => write(&io::stderr(), bytes, progress),
        }
    }
}

/// Writes all of `bytes` to a descriptor, whether it blocks or not: who shares it with this process can change that.
fn write(to: &impl AsFd, mut bytes: &[u8], mut progress: impl FnMut()) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, &bytes[..bytes.len().min(PIECE)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes = &bytes[written..];
                progress();
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => await_ready(to, PollFlags::OUT),
            Err(error) => return Err(error.into()),
        }
    }

    Ok(())
}

/// How many lines were left out since nobody read them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinesLeftOut {
    /// Of those for standard output.
    pub stdout: u64,
    /// Of those for standard error.
    pub stderr: u64,
}

impl LinesLeftOut {
    fn count(&mut self, stream: Stream) {
        match stream {
            Stream::Output => self.stdout += 1,
            Stream::Error => self.stderr += 1,
        }
    }
}

/// Lines that wait for their thread. What is more than there is room for is left out, and counted.
pub struct Writer {
    program: &'static str,
    queue: Mutex<Queue>,
    /// Is notified when there is something to write.
    pushed: Condvar,
    /// Is notified when something was written.
    progressed: Condvar,
}

impl Writer {
    /// Starts the thread. `program` tells how many lines were left out. `failed` is told of each error of writing.
    ///
    /// # Errors
    ///
    /// [`crate::error::FailureKind::Internal`] if the system gives no thread.
    pub fn start(
        program: &'static str,
        failed: fn(Stream, io::Error),
    ) -> Result<Arc<Writer>, Failure> {
        let writer = Arc::new(Writer {
            program,
            queue: Mutex::default(),
            pushed: Condvar::new(),
            progressed: Condvar::new(),
        });

        let written = Arc::clone(&writer);
        let spawned = thread::Builder::new().name("writer".into()).spawn(move || {
            loop {
                if let (stream, Err(error)) = written.write_next() {
                    failed(stream, error);
                }
            }
        });

        spawned.map_err(Failure::internal("cannot start a thread to write"))?;
        Ok(writer)
    }

    /// Gives a line, with its newline, to the thread. Never waits. Returns whether there was room for it.
    pub fn push(&self, stream: Stream, line: &str) -> bool {
        let had_room = self.lock().push(stream, line);
        if had_room {
            self.pushed.notify_one();
        }
        had_room
    }

    /// Waits until all is written, but not past `deadline`, and half a second for a reader that takes nothing. Returns
    /// whether all is written.
    pub fn finish(&self, deadline: Instant) -> bool {
        let mut queue = self.lock();
        let (mut seen, mut stalled_at) = (queue.progress, Instant::now() + STALL_LIMIT);
        while !queue.is_done() {
            let limit = stalled_at.min(deadline).saturating_duration_since(Instant::now());
            if limit.is_zero() {
                return false;
            }
            let waited = self.progressed.wait_timeout(queue, limit);
            queue = waited.unwrap_or_else(PoisonError::into_inner).0;
            if queue.progress != seen {
                (seen, stalled_at) = (queue.progress, Instant::now() + STALL_LIMIT);
            }
        }
        true
    }

    /// Waits for something to write, and writes it.
    fn write_next(&self) -> (Stream, io::Result<()>) {
        let Chunk { stream, lines } = self.next();
        let result = stream.write(lines.as_bytes(), || {
            self.lock().progress += 1;
            self.progressed.notify_all();
        });
        self.lock().written(&lines);
        self.progressed.notify_all();
        (stream, result)
    }

    fn next(&self) -> Chunk {
        let mut queue = self.lock();
        loop {
            match queue.next(self.program) {
                Some(chunk) => return chunk,
                None => {
                    queue = self.pushed.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Returns how many lines were left out in all.
    pub fn left_out(&self) -> LinesLeftOut {
        self.lock().left_out_in_all
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        lock(&self.queue)
    }
}

/// Lines of one stream that are written together.
#[derive(Debug, PartialEq, Eq)]
struct Chunk {
    stream: Stream,
    lines: String,
}

#[derive(Debug, Default)]
struct Queue {
    chunks: VecDeque<Chunk>,
    /// How many bytes are not written yet, those that are being written included.
    bytes: usize,
    /// How many lines were left out since the last one that was not, and where the first of them would have gone.
    left_out: Option<(Stream, u64)>,
    /// How many lines were ever left out.
    left_out_in_all: LinesLeftOut,
    /// Grows whenever something was written.
    progress: u64,
}

impl Queue {
    /// Takes a line, or leaves it out. After the first one that is left out, all are until the others are written: that
    /// makes one gap rather than many.
    fn push(&mut self, stream: Stream, line: &str) -> bool {
        if self.left_out.is_some() || self.bytes + line.len() > ROOM {
            self.left_out.get_or_insert((stream, 0)).1 += 1;
            self.left_out_in_all.count(stream);
            return false;
        }
        self.bytes += line.len();
        match self.chunks.back_mut() {
            Some(last) if last.stream == stream && last.lines.len() + line.len() <= PIECE => {
                last.lines += line;
            }
            _ => self.chunks.push_back(Chunk { stream, lines: line.into() }),
        }

        true
    }

    /// Takes what is to be written next. Behind all others, that is how many lines were left out.
    fn next(&mut self, program: &str) -> Option<Chunk> {
        if let Some(chunk) = self.chunks.pop_front() {
            return Some(chunk);
        }
        let (stream, lines) = self.left_out.take()?;
        let lines = text::count(lines, "line was", "lines were");
        let lines = format!("{program}: {lines} left out here, since nobody read them\n");
        self.bytes += lines.len();
        Some(Chunk { stream, lines })
    }

    /// Makes room: what [`Queue::next`] gave is written, or cannot be.
    fn written(&mut self, lines: &str) {
        self.bytes -= lines.len();
    }

    fn is_done(&self) -> bool {
        self.bytes == 0 && self.left_out.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::ioctl_fionbio;
    use std::io::Read;
    use std::os::fd::OwnedFd;

    /// All that is to be written, as far as nothing more is pushed.
    fn rest(queue: &mut Queue) -> Vec<(Stream, String)> {
        let next = || {
            let chunk = queue.next("p")?;
            queue.written(&chunk.lines);
            Some((chunk.stream, chunk.lines))
        };
        std::iter::from_fn(next).collect()
    }

    #[test]
    fn lines_are_written_in_the_order_in_which_they_were_told() {
        let mut queue = Queue::default();
        for (stream, line) in [
            (Stream::Output, "a\n"),
            (Stream::Output, "b\n"),
            (Stream::Error, "c\n"),
            (Stream::Output, "d\n"),
        ] {
            assert!(queue.push(stream, line));
        }
        assert!(!queue.is_done());
        let expected =
            [(Stream::Output, "a\nb\n"), (Stream::Error, "c\n"), (Stream::Output, "d\n")];
        assert_eq!(rest(&mut queue), expected.map(|(stream, lines)| (stream, lines.to_owned())));
        assert!(queue.is_done());
    }

    #[test]
    fn what_is_written_in_one_piece_has_whole_lines() {
        let mut queue = Queue::default();
        let long = "x".repeat(PIECE / 2) + "\n";
        for line in [&long, &long, "short\n", &"y".repeat(5 * PIECE), "z\n"] {
            assert!(queue.push(Stream::Error, line));
        }
        let lengths: Vec<usize> = rest(&mut queue).iter().map(|(_, lines)| lines.len()).collect();
        assert_eq!(lengths, [long.len(), long.len() + 6, 5 * PIECE, 2]);
    }

    #[test]
    fn lines_that_there_is_no_room_for_are_counted_in_one_gap() {
        let mut queue = Queue::default();
        let line = "x".repeat(999) + "\n";
        let taken = (0..2000).take_while(|_| queue.push(Stream::Error, &line)).count();
        assert_eq!(taken, ROOM / line.len());
        // What is being written still counts, and there is no second gap behind a short line.
        let first = queue.next("p").unwrap();
        queue.written(&first.lines);
        assert!(!queue.push(Stream::Error, "short\n"));
        assert_eq!(queue.left_out_in_all, LinesLeftOut { stdout: 0, stderr: 2 });
        let written = rest(&mut queue);
        let (stream, last) = written.last().unwrap();
        let expected = "p: 2 lines were left out here, since nobody read them\n";
        assert_eq!((*stream, last.as_str()), (Stream::Error, expected));
        assert!(queue.is_done() && queue.push(Stream::Error, "again\n"));
        assert_eq!(rest(&mut queue), [(Stream::Error, "again\n".to_owned())]);
    }

    /// Whoever shares a pipe or a terminal can have made it so.
    #[test]
    fn a_descriptor_that_does_not_block_takes_all_the_same() {
        let (mut reader, writer) = io::pipe().unwrap();
        let writer = OwnedFd::from(writer);
        ioctl_fionbio(&writer, true).unwrap();
        let sent = vec![b'x'; 1 << 20];
        let (length, mut parts) = (sent.len(), 0);
        let read = thread::spawn(move || {
            let mut read = Vec::new();
            reader.read_to_end(&mut read).unwrap();
            read.len()
        });
        write(&writer, &sent, || parts += 1).unwrap();
        drop(writer);
        assert_eq!(read.join().unwrap(), length);
        assert!(parts >= length / PIECE, "{parts}");
    }
}
