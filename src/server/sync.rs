//! What threads wait for, by its name: permits of which there are so many, and a door that opens once.

use crate::mutex::lock;
use crossbeam_channel::{Receiver, Sender, TryRecvError, bounded};
use std::convert::Infallible;
use std::sync::Mutex;

/// So many permits. `select!` can wait for one beside other things, which a lock cannot.
#[derive(Debug)]
pub struct Semaphore {
    /// Has a message for each permit that is out.
    taken: Sender<()>,
    given_back: Receiver<()>,
}

impl Semaphore {
    /// Returns a semaphore with so many permits, 1 at least.
    pub fn new(permits: usize) -> Semaphore {
        let (taken, given_back) = bounded(permits);
        Semaphore { taken, given_back }
    }

    /// Returns where a permit is taken: a message that is sent there takes one, and must be followed by a call of
    /// [`Semaphore::permit`].
    pub fn waiting(&self) -> &Sender<()> {
        &self.taken
    }

    /// Returns the permit that was taken by a message to [`Semaphore::waiting`].
    pub fn permit(&self) -> Permit {
        Permit(self.given_back.clone())
    }

    /// Returns whether all permits are out.
    pub fn is_exhausted(&self) -> bool {
        self.taken.is_full()
    }
}

/// A permit of a [`Semaphore`], which has it back when this is dropped.
#[derive(Debug)]
pub struct Permit(Receiver<()>);

impl Drop for Permit {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
    }
}

/// A door that opens once, for all who wait before it. `select!` can wait for it beside other things.
#[derive(Debug)]
pub struct Latch {
    /// Keeps `opened` from disconnecting. Nothing is ever sent.
    closed: Mutex<Option<Sender<Infallible>>>,
    opened: Receiver<Infallible>,
}

impl Default for Latch {
    fn default() -> Latch {
        let (closed, opened) = bounded(0);
        Latch { closed: Mutex::new(Some(closed)), opened }
    }
}

impl Latch {
    /// Opens the door, for good.
    pub fn open(&self) {
        *lock(&self.closed) = None;
    }

    /// Returns whether the door is open.
    pub fn is_open(&self) -> bool {
        self.opened.try_recv() == Err(TryRecvError::Disconnected)
    }

    /// Waits until the door is open.
    pub fn wait(&self) {
        // Disconnected: nothing else comes.
        let _ = self.opened.recv();
    }

    /// Returns what disconnects when the door is opened.
    pub fn opened(&self) -> &Receiver<Infallible> {
        &self.opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_comes_back_when_it_is_dropped() {
        let semaphore = Semaphore::new(2);
        let take = || semaphore.waiting().try_send(()).ok().map(|()| semaphore.permit());
        let (first, _second) = (take().unwrap(), take().unwrap());
        assert!(semaphore.is_exhausted() && take().is_none());
        drop(first);
        assert!(!semaphore.is_exhausted());
        let _third = take().unwrap();
        assert!(take().is_none());
    }

    #[test]
    fn a_latch_lets_all_go_on_who_wait_and_who_come_later() {
        let latch = Latch::default();
        assert!(!latch.is_open());
        std::thread::scope(|scope| {
            let waiting = [scope.spawn(|| latch.wait()), scope.spawn(|| latch.wait())];
            latch.open();
            assert!(waiting.into_iter().all(|waiting| waiting.join().is_ok()));
        });
        latch.wait();
        assert!(latch.is_open() && latch.opened().recv().is_err());
    }
}
