//! What threads wait for, by its name: permits of which there are so many, and a door that opens once.

use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::OnceLock;

/// So many permits. `select!` can wait for one beside other things, which a lock cannot.
#[derive(Debug)]
pub struct Semaphore {
    /// Has a message for each permit that is out.
    taken: Sender<()>,
    given_back: Receiver<()>,
}

impl Semaphore {
    /// Returns one with so many permits, 1 at least.
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

/// A door that opens once, for all who wait before it.
#[derive(Debug, Default)]
pub struct Latch(OnceLock<()>);

impl Latch {
    /// Opens it, for good.
    pub fn open(&self) {
        let _ = self.0.set(());
    }

    /// Returns whether it is open.
    pub fn is_open(&self) -> bool {
        self.0.get().is_some()
    }

    /// Waits until it is open.
    pub fn wait(&self) {
        self.0.wait();
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
}
