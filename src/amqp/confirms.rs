//! Publisher confirms: the broker tells of each message that it has taken it, or that it refused it
//! (RabbitMQ, "Consumer Acknowledgements and Publisher Confirms").

use crate::amqp::inbox::Inbox;
use amiquip::{Channel, Confirm, ConfirmPayload};
use crossbeam_channel::{Receiver, never};
use std::ops::RangeInclusive;
use std::sync::Arc;

/// The confirms of one channel. Messages are numbered from 1 in the order in which they are
/// published on it, which is how the broker counts them too.
pub struct Confirms {
    receiver: Receiver<Confirm>,
    published: u64,
    /// Where confirms are counted that are taken.
    inbox: Arc<Inbox>,
}

impl Confirms {
    /// Puts `channel`, one of the connection of that `inbox`, into confirm mode, before anything is published on it.
    pub fn enable(channel: &Channel, inbox: &Arc<Inbox>) -> amiquip::Result<Confirms> {
        let receiver = channel.listen_for_publisher_confirms()?;
        channel.enable_publisher_confirms()?;
        Ok(Confirms { receiver, published: 0, inbox: Arc::clone(inbox) })
    }

    /// Returns the confirms of a channel that is not in confirm mode: none ever comes.
    pub fn disabled() -> Confirms {
        Confirms { receiver: never(), published: 0, inbox: Arc::default() }
    }

    /// Returns the confirms of `channel`, which is put into confirm mode if they are `wanted`.
    pub fn new(channel: &Channel, inbox: &Arc<Inbox>, wanted: bool) -> amiquip::Result<Confirms> {
        if wanted { Confirms::enable(channel, inbox) } else { Ok(Confirms::disabled()) }
    }

    /// Returns where confirms come from; what is received is to be handed to [`Confirms::take`].
    pub fn receiver(&self) -> &Receiver<Confirm> {
        &self.receiver
    }

    /// Returns what a confirm says that was received from [`Confirms::receiver`].
    pub fn take(&self, confirm: Confirm) -> Confirmed {
        self.inbox.taken();
        confirm.into()
    }

    /// Counts a message that is published now, and returns its number.
    pub fn count_published(&mut self) -> u64 {
        self.published += 1;
        self.published
    }
}

/// What a [`Confirm`] says.
#[derive(Debug)]
pub struct Confirmed {
    numbers: RangeInclusive<u64>,
    /// Whether it is an ack: the broker took the messages. Otherwise it is a nack: the broker refused them.
    pub is_ack: bool,
}

impl From<Confirm> for Confirmed {
    fn from(confirm: Confirm) -> Confirmed {
        let (ConfirmPayload { delivery_tag: last, multiple }, is_ack) = match confirm {
            Confirm::Ack(payload) => (payload, true),
            Confirm::Nack(payload) => (payload, false),
        };
        Confirmed { numbers: if multiple { 1..=last } else { last..=last }, is_ack }
    }
}

impl Confirmed {
    /// Returns whether the confirm is about the message with this number.
    pub fn is_about(&self, number: u64) -> bool {
        self.numbers.contains(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_confirm_can_be_about_many_messages() {
        let payload = |multiple| ConfirmPayload { delivery_tag: 3, multiple };
        let about = |confirm: Confirm| {
            let confirmed = Confirmed::from(confirm);
            let numbers: Vec<u64> = (1..=4).filter(|n| confirmed.is_about(*n)).collect();
            (numbers, confirmed.is_ack)
        };
        assert_eq!(about(Confirm::Ack(payload(false))), (vec![3], true));
        assert_eq!(about(Confirm::Ack(payload(true))), (vec![1, 2, 3], true));
        assert_eq!(about(Confirm::Nack(payload(true))), (vec![1, 2, 3], false));
    }
}
