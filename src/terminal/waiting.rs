//! Standard streams that are waited for. Who shares a pipe or a terminal with this process can have made it non-blocking
//! (fcntl(2), O_NONBLOCK), as Node.js does: where it would wait, it fails then.

use rustix::event::{PollFd, PollFlags, poll};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;

/// A stream that waits where the one in it, being non-blocking, fails.
#[derive(Debug)]
pub struct Waiting<T>(pub T);

impl<T: Write + AsFd> Write for Waiting<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        retry(&mut self.0, PollFlags::OUT, |stream| stream.write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        retry(&mut self.0, PollFlags::OUT, Write::flush)
    }
}

impl<T: Read + AsFd> Read for Waiting<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        retry(&mut self.0, PollFlags::IN, |stream| stream.read(buffer))
    }
}

/// Does `step`, after a wait wherever it has to be waited for.
fn retry<S: AsFd, T>(
    stream: &mut S,
    ready: PollFlags,
    mut step: impl FnMut(&mut S) -> io::Result<T>,
) -> io::Result<T> {
    loop {
        match step(stream) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => await_ready(stream, ready),
            done => return done,
        }
    }
}

/// Waits until a descriptor is `ready`. Whatever comes of it, what is done next tells.
pub fn await_ready(stream: &impl AsFd, ready: PollFlags) {
    let _ = poll(&mut [PollFd::new(stream, ready)], None);
}
