//! What a broker sends, checked and mended before the client library sees it.
//!
//! The library trusts the broker: text that is not UTF-8 ends its connection, a table that is nested deep
//! overflows its stack, and it allocates whatever size is announced. A message can do the first two to
//! every program that gets it, one after the other. So in each frame (AMQP 0-9-1, section 2.3.5):
//!
//! - Bytes that are not UTF-8, where text belongs, become [`SUBSTITUTE`], one for one.
//! - A table or an array that is nested deeper than [`DEPTH_MAX`] becomes a byte array, which has the same layout.
//! - What comes for a channel that the broker has closed is left out: RabbitMQ 3.10 can close one twice, and the
//!   library would end the connection.
//! - What breaks the rules of the protocol, or the limits below, is an error that says what it was.
//!
//! No size of a frame ever changes, so that it is done in place.

use crate::amqp::inbox::{Close, Inbox};
use std::collections::HashSet;
use std::sync::Arc;

/// What stands in place of a byte that is not UTF-8: ASCII's SUB, which is made for this.
pub const SUBSTITUTE: u8 = 0x1a;

/// The largest frame that we agree to, in bytes (connection.tune): what RabbitMQ proposes.
pub const FRAME_MAX: u32 = 131_072;

/// The largest frame for a content header, in bytes. RabbitMQ sends one that is larger than
/// was agreed, if the message came in by a connection with a larger `frame_max`.
const HEADER_FRAME_MAX: u32 = 4 << 20;

/// The largest body, in bytes: RabbitMQ cannot be told to take more (`max_message_size`).
const BODY_MAX: u64 = 512 << 20;

/// How deep tables and arrays can be nested.
pub const DEPTH_MAX: usize = 100;

// What the library's structures take in memory beside the bytes: for a message, for a publisher confirm or
// a notice of a blocked connection, and for a value in a table or an array.
const MESSAGE_SIZE: u64 = 1024;
const NOTICE_SIZE: u64 = 256;
const VALUE_SIZE: u64 = 128;

/// The type of a frame that is a method (AMQP 0-9-1, section 4.2.3).
pub const METHOD: u8 = 1;

// The other types, a frame's last octet, and the size of what surrounds a payload.
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;
const FRAME_END: u8 = 0xce;
const HEAD: usize = 7;
const OVERHEAD: usize = HEAD + 1;

/// The type of an argument or a property (AMQP 0-9-1, section 4.2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// So many octets: a number, or bits.
    Octets(usize),
    /// Up to 255 bytes.
    ShortText,
    /// Up to 4 GiB.
    LongText,
    /// Names and values.
    Table,
}

use Type::{LongText, Octets, ShortText, Table};

/// The properties of a message, in the order of their flags, the highest first (section 1.8).
pub const PROPERTIES: [Type; 14] = [
    ShortText, // content_type
    ShortText, // content_encoding
    Table,     // headers
    Octets(1), // delivery_mode
    Octets(1), // priority
    ShortText, // correlation_id
    ShortText, // reply_to
    ShortText, // expiration
    ShortText, // message_id
    Octets(8), // timestamp
    ShortText, // type
    ShortText, // user_id
    ShortText, // app_id
    ShortText, // cluster_id
];

/// Returns the name and the arguments of a method that a broker sends, by its class and number (AMQP
/// 0-9-1, section 1.3, and RabbitMQ, "AMQP 0-9-1 Protocol Extensions"). None: no broker sends it.
#[rustfmt::skip]
pub fn method(class: u16, number: u16) -> Option<(&'static str, &'static [Type])> {
    const CLOSE: &[Type] = &[Octets(2), ShortText, Octets(2), Octets(2)];
    Some(match (class, number) {
        (10, 10) => ("connection.start", &[Octets(1), Octets(1), Table, LongText, LongText]),
        (10, 20) => ("connection.secure", &[LongText]),
        (10, 30) => ("connection.tune", &[Octets(2), Octets(4), Octets(2)]),
        (10, 41) => ("connection.open-ok", &[ShortText]),
        (10, 50) => ("connection.close", CLOSE),
        (10, 51) => ("connection.close-ok", &[]),
        (10, 60) => ("connection.blocked", &[ShortText]),
        (10, 61) => ("connection.unblocked", &[]),
        (20, 11) => ("channel.open-ok", &[LongText]),
        (20, 20) => ("channel.flow", &[Octets(1)]),
        (20, 21) => ("channel.flow-ok", &[Octets(1)]),
        (20, 40) => ("channel.close", CLOSE),
        (20, 41) => ("channel.close-ok", &[]),
        (40, 11) => ("exchange.declare-ok", &[]),
        (40, 21) => ("exchange.delete-ok", &[]),
        (40, 31) => ("exchange.bind-ok", &[]),
        (40, 51) => ("exchange.unbind-ok", &[]),
        (50, 11) => ("queue.declare-ok", &[ShortText, Octets(4), Octets(4)]),
        (50, 21) => ("queue.bind-ok", &[]),
        (50, 31) => ("queue.purge-ok", &[Octets(4)]),
        (50, 41) => ("queue.delete-ok", &[Octets(4)]),
        (50, 51) => ("queue.unbind-ok", &[]),
        (60, 11) => ("basic.qos-ok", &[]),
        (60, 21) => ("basic.consume-ok", &[ShortText]),
        (60, 30) => ("basic.cancel", &[ShortText, Octets(1)]),
        (60, 31) => ("basic.cancel-ok", &[ShortText]),
        (60, 50) => ("basic.return", &[Octets(2), ShortText, ShortText, ShortText]),
        (60, 60) => ("basic.deliver", &[ShortText, Octets(8), Octets(1), ShortText, ShortText]),
        (60, 71) => ("basic.get-ok", &[Octets(8), Octets(1), ShortText, ShortText, Octets(4)]),
        (60, 72) => ("basic.get-empty", &[ShortText]),
        (60, 80) => ("basic.ack", &[Octets(8), Octets(1)]),
        (60, 111) => ("basic.recover-ok", &[]),
        (60, 120) => ("basic.nack", &[Octets(8), Octets(1)]),
        (85, 11) => ("confirm.select-ok", &[]),
        (90, 11) => ("tx.select-ok", &[]),
        (90, 21) => ("tx.commit-ok", &[]),
        (90, 31) => ("tx.rollback-ok", &[]),
        _ => return None,
    })
}

/// Follows one connection's stream, from the broker's first byte on.
pub struct Sanitizer {
    inbox: Arc<Inbox>,
    phase: ConnectionPhase,
    /// The largest frame that the broker takes, in bytes; until it says so, what we agree to.
    proposed: u32,
    /// What is still to come of a body frame, its last octet included.
    body_frame: usize,
    /// Messages that have not come to their end.
    contents: Vec<Content>,
    /// The channels that the broker closed, and that were not opened again.
    closed: HashSet<u16>,
}

/// What a [`Sanitizer`] says of the bytes that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// More bytes are needed; those that are there are to be presented again with them.
    Incomplete,
    /// So many bytes can be handed on: a whole frame, or what there is of a body.
    Checked(usize),
    /// So many bytes, a whole frame, are to be left out.
    Discarded(usize),
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionPhase {
    /// Nothing has come yet.
    New,
    /// The broker speaks AMQP 0-9-1, and the connection is not open yet.
    Handshake,
    /// The connection is open.
    Open,
    /// The broker closed the connection, or agreed to that: nothing of what follows counts.
    Closed,
}

struct Content {
    channel: u16,
    /// How many bytes of the body are still to come. None: the content header is.
    left: Option<u64>,
}

impl Sanitizer {
    /// Returns the sanitizer of a new connection, which counts in `inbox` what the client library queues.
    pub fn new(inbox: Arc<Inbox>) -> Sanitizer {
        Sanitizer {
            inbox,
            phase: ConnectionPhase::New,
            proposed: FRAME_MAX,
            body_frame: 0,
            contents: Vec::new(),
            closed: HashSet::new(),
        }
    }

    /// Returns how far the connection has come with what was checked so far.
    pub fn phase(&self) -> ConnectionPhase {
        self.phase
    }

    /// Returns whether more of a body is to come, in this frame or in another one.
    pub fn expects_body(&self) -> bool {
        self.contents.iter().any(|content| content.left.is_some())
    }

    /// Returns how many bytes are still to come of a body frame that has begun.
    pub fn missing(&self) -> usize {
        self.body_frame
    }

    /// Checks the next piece of the stream, and mends it in place. `bytes` begins where the piece before
    /// it ended, and may have more than one.
    /// An error is a sentence about the broker, "it", after which the stream cannot be followed.
    pub fn check(&mut self, bytes: &mut [u8]) -> Result<Piece, String> {
        if self.body_frame > 0 {
            let length = bytes.len().min(self.body_frame);
            if length == 0 {
                return Ok(Piece::Incomplete);
            }
            self.body_frame -= length;
            if self.body_frame == 0 {
                check_end(bytes[length - 1])?;
            }
            return Ok(Piece::Checked(length));
        }

        if self.phase == ConnectionPhase::New {
            inspect_first(bytes)?;
        }
        let Some(&[kind, high, low, ref size @ ..]) = bytes.first_chunk::<HEAD>() else {
            return Ok(Piece::Incomplete);
        };
        let (channel, size) = (u16::from_be_bytes([high, low]), u32::from_be_bytes(*size) as usize);
        let most = match kind {
            METHOD | BODY | HEARTBEAT => self.frame_max(),
            HEADER => self.proposed.min(HEADER_FRAME_MAX) as usize,
            _ => return Err(format!("it sent a frame of type {kind}, which AMQP does not have")),
        };

        if size > most - OVERHEAD {
            let size = size as u64 + OVERHEAD as u64;
            return Err(format!("it sent a frame of {size} bytes, where {most} are the most"));
        }
        let is_closed = self.closed.contains(&channel);
        if kind == BODY && !is_closed {
            self.begin_body(channel, size)?;
            self.body_frame = size + 1;
            return Ok(Piece::Checked(HEAD));
        }

        let Some(frame) = bytes.get_mut(..size + OVERHEAD) else { return Ok(Piece::Incomplete) };
        check_end(frame[size + HEAD])?;
        let payload = &mut frame[HEAD..size + HEAD];

        // What opens it again, or agrees that it is closed, is for the library.
        if is_closed && !(kind == METHOD && matches!(payload, [0, 20, 0, 11 | 41, ..])) {
            return Ok(Piece::Discarded(size + OVERHEAD));
        }
        match kind {
            METHOD => self.check_method(channel, payload)?,
            HEADER => self.check_header(channel, payload)?,
            _ => {}
        }

        Ok(Piece::Checked(size + OVERHEAD))
    }

    fn content(&mut self, channel: u16) -> Option<&mut Content> {
        self.contents.iter_mut().find(|content| content.channel == channel)
    }

    fn begin_body(&mut self, channel: u16, size: usize) -> Result<(), String> {
        let size = size as u64;
        let Some(Content { left: Some(left), .. }) = self.content(channel) else {
            return Err("it sent a body that belongs to no message".into());
        };
        *left = left.checked_sub(size).ok_or("it sent a body that is longer than was announced")?;
        self.contents.retain(|content| content.left != Some(0));
        Ok(self.inbox.grown(size)?)
    }

    fn check_method(&mut self, channel: u16, payload: &mut [u8]) -> Result<(), String> {
        let Some((&mut [c0, c1, n0, n1], arguments)) = payload.split_first_chunk_mut() else {
            return Err("it sent a method without a number".into());
        };
        let id = (u16::from_be_bytes([c0, c1]), u16::from_be_bytes([n0, n1]));
        let Some((name, types)) = method(id.0, id.1) else {
            let (class, number) = id;
            return Err(format!("it sent method {number} of class {class}, which no broker sends"));
        };
        let mut reader = FieldReader { rest: &mut arguments[..], values: 0 };
        if types.iter().try_for_each(|&argument| reader.read(argument)).is_none() {
            return Err(format!("it sent a {name} whose arguments cannot be read"));
        }
        match id {
            (10, 10) => self.phase = ConnectionPhase::Handshake,
            (10, 30) => {
                // 0 is no limit. The library refuses a broker that takes less than 4,096 (frame-min-size).
                if let &mut [_, _, b0, b1, b2, b3, ..] = arguments {
                    let proposed = u32::from_be_bytes([b0, b1, b2, b3]);
                    self.proposed = if proposed == 0 { u32::MAX } else { proposed.max(4096) };
                    self.inbox.agreed(self.frame_max());
                }
            }
            (10, 41) => self.phase = ConnectionPhase::Open,
            (10, 50) => {
                self.phase = ConnectionPhase::Closed;
                self.inbox.connection_closed(close(arguments));
            }
            (10, 51) => self.phase = ConnectionPhase::Closed,
            (20, 11) => {
                self.closed.remove(&channel);
                self.inbox.channel_opened(channel);
            }
            (20, 40) => {
                self.contents.retain(|content| content.channel != channel);
                self.closed.insert(channel);
                self.inbox.channel_closed(channel, &close(arguments));
            }
            (20, 41) => self.contents.retain(|content| content.channel != channel),
            (60, 50 | 60 | 71) => {
                if self.content(channel).is_some() {
                    return Err(format!("it sent a {name} in the middle of another message"));
                }
                self.contents.push(Content { channel, left: None });
                // A message that was asked for by basic.get is not queued.
                if id != (60, 71) {
                    self.inbox.arrived(MESSAGE_SIZE)?;
                }
                if id == (60, 60) {
                    self.inbox.delivered(channel);
                }
            }
            (60, 80 | 120) | (10, 60 | 61) => self.inbox.arrived(NOTICE_SIZE)?,
            _ => {}
        }

        Ok(())
    }

    /// Returns the size of the largest frame but for content headers, in bytes.
    fn frame_max(&self) -> usize {
        self.proposed.min(FRAME_MAX) as usize
    }

    fn check_header(&mut self, channel: u16, payload: &mut [u8]) -> Result<(), String> {
        let length = payload.len();
        let is_large = length + OVERHEAD > self.frame_max();
        let announced: u64 = self.contents.iter().filter_map(|content| content.left).sum();
        let Some(Content { left: left @ None, .. }) = self.content(channel) else {
            return Err("it sent a content header that belongs to no message".into());
        };
        let mut reader = FieldReader { rest: payload, values: 0 };
        let Some(size) = reader.content_header(is_large) else {
            return Err("it sent a message whose properties cannot be read".into());
        };
        if size > BODY_MAX.saturating_sub(announced) {
            return Err(format!(
                "it announced a body of {size} bytes, where {BODY_MAX} are the most"
            ));
        }

        *left = Some(size);
        self.contents.retain(|content| content.left != Some(0));
        Ok(self.inbox.grown(length as u64 + reader.values * VALUE_SIZE)?)
    }
}

/// Looks at what there is of the first frame, a `connection.start`: a method on channel 0. A peer that
/// speaks another protocol would have its text taken for a size.
fn inspect_first(bytes: &[u8]) -> Result<(), String> {
    let amqp = [METHOD, 0, 0, 0];
    if bytes.iter().zip(&amqp).all(|(byte, expected)| byte == expected) {
        return Ok(());
    }
    Err(match bytes {
        [b'H', b'T', b'T', ..] => "what answers there speaks HTTP, not AMQP",
        [b'A', b'M', b'Q', ..] => "what answers there does not speak AMQP 0-9-1",
        [0x15, 0x03, ..] => "what answers there wants TLS: is it an amqps:// port?",
        _ => "what answers there does not speak AMQP",
    }
    .into())
}

/// Returns what the arguments of a connection.close or a channel.close say, which have been checked.
fn close(arguments: &[u8]) -> Close {
    match arguments {
        &[high, low, length, ref text @ ..] => {
            let text = &text[..text.len().min(length.into())];
            let code = u16::from_be_bytes([high, low]);
            Close { code, text: String::from_utf8_lossy(text).into_owned() }
        }
        _ => Close { code: 0, text: String::new() },
    }
}

fn check_end(octet: u8) -> Result<(), String> {
    match octet {
        FRAME_END => Ok(()),
        _ => Err(format!("it sent a frame that ends with {octet:#04x} instead of 0xce")),
    }
}

/// Reads values, mending them on the way. None: they do not end where their frame or table does, or
/// have a type that does not exist.
struct FieldReader<'a> {
    rest: &'a mut [u8],
    /// How many values there were in tables and arrays.
    values: u64,
}

impl<'a> FieldReader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a mut [u8]> {
        self.rest.split_off_mut(..length)
    }

    fn number<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    fn short_text(&mut self) -> Option<()> {
        let [length] = self.number()?;
        self.take(length.into()).map(mend)
    }

    /// Reads what has its length before it, in four bytes.
    fn long(&mut self) -> Option<&'a mut [u8]> {
        let length = u32::from_be_bytes(self.number()?);
        self.take(length as usize)
    }

    fn read(&mut self, kind: Type) -> Option<()> {
        match kind {
            Octets(length) => self.take(length).map(drop),
            ShortText => self.short_text(),
            LongText => self.long().map(mend),
            Table => self.entries(true, 1),
        }
    }

    /// Reads the payload of a content header frame. Returns the size that it announces. If the frame is larger
    /// than was agreed, its table is not worth what it costs to take it apart.
    fn content_header(&mut self, is_large: bool) -> Option<u64> {
        self.take(4)?; // class and weight
        let size = u64::from_be_bytes(self.number()?);
        let flags = u16::from_be_bytes(self.number()?);

        // The last two are for properties that there are none of.
        if flags & 0b11 != 0 {
            return None;
        }
        for (index, &property) in PROPERTIES.iter().enumerate() {
            if flags & (1 << (15 - index)) != 0 {
                if is_large && property == Table {
                    flatten(self.rest);
                }
                self.read(property)?;
            }
        }

        Some(size)
    }

    /// Reads a table at `depth`, or an array, which has no names.
    fn entries(&mut self, have_names: bool, depth: usize) -> Option<()> {
        let mut entries = FieldReader { rest: self.long()?, values: 0 };
        while !entries.rest.is_empty() {
            if have_names {
                entries.short_text()?;
            }
            entries.value(depth)?;
        }
        self.values += entries.values;
        Some(())
    }

    /// Reads a value in a table or an array at `depth`, with the type before it (section 4.2.5.5, and RabbitMQ,
    /// "AMQP 0-9-1 Errata", section 3, which the client library follows).
    fn value(&mut self, depth: usize) -> Option<()> {
        self.values += 1;
        let [kind] = self.take(1)? else { return None };
        if depth >= DEPTH_MAX && matches!(kind, b'F' | b'A') {
            *kind = b'x';
        }
        match *kind {
            b'V' => Some(()),
            b't' | b'b' | b'B' => self.take(1).map(drop),
            b's' | b'U' | b'u' => self.take(2).map(drop),
            b'I' | b'i' | b'f' => self.take(4).map(drop),
            b'D' => self.take(5).map(drop),
            b'L' | b'l' | b'd' | b'T' => self.take(8).map(drop),
            b'S' => self.long().map(mend),
            b'x' => self.long().map(drop),
            b'F' => self.entries(true, depth + 1),
            b'A' => self.entries(false, depth + 1),
            _ => None,
        }
    }
}

/// Makes the table that comes next one byte array with an empty name, if it is long enough for that.
fn flatten(table: &mut [u8]) {
    if let Some((length, content)) = table.split_first_chunk_mut()
        && let Some(length) = u32::from_be_bytes(*length).checked_sub(6)
        && let Some((head, _)) = content.split_first_chunk_mut::<6>()
    {
        *head = [0, b'x', 0, 0, 0, 0];
        head[2..].copy_from_slice(&length.to_be_bytes());
    }
}

/// Puts a [`SUBSTITUTE`] in place of each byte that is not UTF-8.
fn mend(text: &mut [u8]) {
    let mut at = 0;
    while let Err(error) = std::str::from_utf8(&text[at..]) {
        let bad = at + error.valid_up_to();
        at = error.error_len().map_or(text.len(), |length| bad + length);
        text[bad..at].fill(SUBSTITUTE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN_OK: &[u8] = &[1, 0, 0, 0, 0, 0, 5, 0, 10, 0, 41, 0, 0xce];

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = (payload.len() as u32).to_be_bytes();
        [&[kind, 0, 1][..], &size, payload, &[FRAME_END]].concat()
    }

    fn deliver() -> Vec<u8> {
        frame(METHOD, &[0, 60, 0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])
    }

    fn header(size: u64, properties: &[u8]) -> Vec<u8> {
        frame(HEADER, &[&[0, 60, 0, 0][..], &size.to_be_bytes(), properties].concat())
    }

    /// Tables in tables, from the outside in.
    fn nested(depth: usize) -> Vec<u8> {
        let length = |depth: usize| (6 * (depth as u32 - 1)).to_be_bytes();
        let inner = (1..depth).rev().flat_map(|depth| [[0, b'F'].to_vec(), length(depth).to_vec()]);
        [length(depth).to_vec()].into_iter().chain(inner).flatten().collect()
    }

    /// What is handed on of a stream that is there as a whole, and why no more is.
    fn check(mut stream: Vec<u8>) -> (Vec<u8>, Option<String>) {
        let mut sanitizer =
            Sanitizer { phase: ConnectionPhase::Open, ..Sanitizer::new(Arc::default()) };
        let mut checked = 0;
        let reason = loop {
            match sanitizer.check(&mut stream[checked..]) {
                Ok(Piece::Incomplete) => break None,
                Ok(Piece::Checked(length)) => checked += length,
                Ok(Piece::Discarded(length)) => drop(stream.drain(checked..checked + length)),
                Err(reason) => break Some(reason),
            }
        };
        stream.truncate(checked);
        (stream, reason)
    }

    #[track_caller]
    fn refused(stream: Vec<u8>, reason: &str) {
        assert_eq!(check(stream).1.as_deref(), Some(reason));
    }

    #[test]
    fn what_is_not_utf8_becomes_substitutes() {
        // A content_type and a correlation_id.
        let flags = [0x84, 0];
        let mended = |text: &[u8]| {
            let text = [&[text.len() as u8], text].concat();
            let stream = [deliver(), header(0, &[&flags, &text[..], b"\x01i"].concat())].concat();
            let (checked, reason) = check(stream);
            assert_eq!(reason, None);
            checked[deliver().len() + HEAD + 15..checked.len() - 3].to_vec()
        };
        assert_eq!(mended(b"caf\xe9"), b"caf\x1a");
        assert_eq!(mended("café".as_bytes()), "café".as_bytes());
        assert_eq!(mended(b"\xc3"), b"\x1a");
        assert_eq!(mended(b"a\xffb\xf0\x9f\xa6c"), b"a\x1ab\x1a\x1a\x1ac");
    }

    #[test]
    fn a_table_that_is_nested_too_deep_becomes_bytes() {
        let message = |depth| {
            let properties = [&[0x20, 0][..], &nested(depth)].concat();
            [deliver(), header(0, &properties)].concat()
        };
        assert_eq!(check(message(DEPTH_MAX)), (message(DEPTH_MAX), None));
        let (checked, reason) = check(message(DEPTH_MAX + 1));
        assert_eq!(reason, None);
        let changed = message(DEPTH_MAX + 1);
        let changes: Vec<_> = changed.iter().zip(&checked).filter(|(a, b)| a != b).collect();
        assert_eq!(changes, [(&b'F', &b'x')]);
        // As many as fit into a frame.
        assert_eq!(check(message(20_000)).0.len(), message(20_000).len());
    }

    #[test]
    fn a_header_that_is_larger_than_was_agreed_loses_its_table() {
        let tune = frame(METHOD, &[0, 10, 0, 30, 0, 0, 0, 0x20, 0, 0, 0, 0]);
        let properties = [&[0x20, 0][..], &nested(200_000)].concat();
        let large = header(0, &properties);
        let (checked, reason) = check([&tune[..], &deliver(), &large].concat());
        assert_eq!(reason, None);
        let table = &checked[tune.len() + deliver().len() + HEAD + 14..];
        assert_eq!(table[4..6], [0, b'x']);
        let reason = "it sent a frame of 1200020 bytes, where 131072 are the most";
        refused([deliver(), large].concat(), reason);
    }

    /// Whatever there is of it: a head alone, too.
    #[test]
    fn a_body_that_has_not_come_yet_is_waited_for() {
        let whole = [deliver(), header(2, &[0, 0]), frame(BODY, b"12")].concat();
        for missing in 0..OVERHEAD {
            let there = whole[..whole.len() - missing].to_vec();
            let (checked, reason) = check(there.clone());
            let known = if missing > 3 { whole.len() - OVERHEAD - 2 } else { there.len() };
            assert_eq!((checked.len(), reason), (known, None), "{missing}");
        }
    }

    #[test]
    fn frames_that_break_the_rules_are_named() {
        refused(frame(4, b""), "it sent a frame of type 4, which AMQP does not have");
        let reason = "it sent a frame of 4294967303 bytes, where 131072 are the most";
        refused(vec![1, 0, 0, 0xff, 0xff, 0xff, 0xff], reason);
        let mut cut = frame(BODY, b"");
        cut[HEAD] = 0;
        refused(
            [deliver(), header(1, &[0, 0]), cut].concat(),
            "it sent a frame that ends with 0x00 instead of 0xce",
        );
        refused(frame(METHOD, &[0, 60, 0]), "it sent a method without a number");
        let reason = "it sent method 40 of class 60, which no broker sends";
        refused(frame(METHOD, &[0, 60, 0, 40]), reason);
        let reason = "it sent a queue.declare-ok whose arguments cannot be read";
        refused(frame(METHOD, &[0, 50, 0, 11, 9]), reason);
    }

    #[test]
    fn contents_that_break_the_rules_are_named() {
        refused(frame(BODY, b"1"), "it sent a body that belongs to no message");
        refused(
            [deliver(), frame(BODY, b"1")].concat(),
            "it sent a body that belongs to no message",
        );
        refused(header(1, &[0, 0]), "it sent a content header that belongs to no message");
        let reason = "it sent a basic.deliver in the middle of another message";
        refused([deliver(), deliver()].concat(), reason);
        let reason = "it sent a body that is longer than was announced";
        refused([deliver(), header(1, &[0, 0]), frame(BODY, b"12")].concat(), reason);
        let reason = "it sent a message whose properties cannot be read";
        refused([deliver(), header(1, &[0x20, 0, 0, 0, 0, 3, 0, b'?', 0])].concat(), reason);
        refused([deliver(), header(1, &[0, 1])].concat(), reason);
        let reason = "it announced a body of 536870913 bytes, where 536870912 are the most";
        refused([deliver(), header(BODY_MAX + 1, &[0, 0])].concat(), reason);
        // What a channel has left unfinished when it is closed does not count.
        let close_ok = frame(METHOD, &[0, 20, 0, 41]);
        let again = [&deliver()[..], &close_ok, &deliver()].concat();
        assert_eq!(check(again.clone()), (again, None));
    }

    /// RabbitMQ 3.10 can do both.
    #[test]
    fn what_comes_for_a_closed_channel_is_left_out() {
        let close = frame(METHOD, &[0, 20, 0, 40, 1, 0x96, 2, b'n', b'o', 0, 0, 0, 0]);
        let open_ok = frame(METHOD, &[0, 20, 0, 11, 0, 0, 0, 0]);
        let message = [deliver(), header(2, &[0, 0]), frame(BODY, b"12")].concat();
        let close_ok = frame(METHOD, &[0, 20, 0, 41]);
        let twice = [&message[..], &close, &close, &message, &close_ok].concat();
        assert_eq!(check(twice), ([&message[..], &close, &close_ok].concat(), None));
        let again = [&close[..], &open_ok, &message, &close].concat();
        assert_eq!(check(again.clone()), (again, None));
    }

    #[test]
    fn why_a_channel_and_a_connection_were_closed_is_known() {
        let inbox = Arc::new(Inbox::default());
        let mut sanitizer =
            Sanitizer { phase: ConnectionPhase::Open, ..Sanitizer::new(Arc::clone(&inbox)) };
        let mut close = frame(METHOD, &[0, 20, 0, 40, 1, 0x96, 2, b'n', b'o', 0, 0, 0, 0]);
        sanitizer.check(&mut close).unwrap();
        assert!(inbox.is_closed(1) && inbox.connection_close().is_none());
        let mut close = frame(METHOD, &[0, 10, 0, 50, 2, 0x1d, 2, b'n', b'o', 0, 0, 0, 0]);
        close[2] = 0;
        sanitizer.check(&mut close).unwrap();
        assert_eq!(inbox.connection_close(), Some(&Close { code: 541, text: "no".into() }));
    }

    #[test]
    fn what_is_announced_is_bounded_over_all_channels() {
        let mut other = [deliver(), header(BODY_MAX, &[0, 0])].concat();
        let half = [deliver(), header(BODY_MAX / 2 + 1, &[0, 0])].concat();
        assert_eq!(check(other.clone()), (other.clone(), None));
        (other[2], other[deliver().len() + 2]) = (2, 2);
        let reason = "it announced a body of 536870912 bytes, where 536870912 are the most";
        refused([half, other].concat(), reason);
    }

    #[test]
    fn the_first_bytes_tell_another_protocol() {
        let first = |bytes: &[u8]| Sanitizer::new(Arc::default()).check(&mut bytes.to_vec());
        assert_eq!(first(b""), Ok(Piece::Incomplete));
        assert_eq!(first(&[1, 0]), Ok(Piece::Incomplete));
        let http = Err("what answers there speaks HTTP, not AMQP".into());
        assert_eq!(first(b"HTTP/1.1 400"), http);
        assert_eq!(first(b"HTT"), http);
        assert_eq!(
            first(b"AMQP\x03\x01\0\0"),
            Err("what answers there does not speak AMQP 0-9-1".into())
        );
        assert_eq!(
            first(&[0x15, 3, 1]),
            Err("what answers there wants TLS: is it an amqps:// port?".into())
        );
        assert_eq!(first(b"SSH-"), Err("what answers there does not speak AMQP".into()));
    }

    #[test]
    fn the_phase_follows_the_methods() {
        let mut sanitizer = Sanitizer::new(Arc::default());
        let start = [&[0, 10, 0, 10, 0, 9][..], &[0; 12]].concat();
        let mut stream = frame(METHOD, &start);
        stream[2] = 0;
        assert_eq!(sanitizer.check(&mut stream), Ok(Piece::Checked(stream.len())));
        assert_eq!(sanitizer.phase(), ConnectionPhase::Handshake);
        assert_eq!(sanitizer.check(&mut OPEN_OK.to_vec()), Ok(Piece::Checked(OPEN_OK.len())));
        assert_eq!(sanitizer.phase(), ConnectionPhase::Open);
        let mut close_ok = frame(METHOD, &[0, 10, 0, 51]);
        assert_eq!(sanitizer.check(&mut close_ok), Ok(Piece::Checked(close_ok.len())));
        assert_eq!(sanitizer.phase(), ConnectionPhase::Closed);
    }

    #[test]
    fn more_messages_than_were_asked_for_end_it() {
        let inbox = Arc::new(Inbox::default());
        inbox.expect_at_most(1);
        let mut sanitizer = Sanitizer { phase: ConnectionPhase::Open, ..Sanitizer::new(inbox) };
        let message = [deliver(), header(0, &[0, 0])].concat();
        let mut sent = 0;
        let reason = loop {
            let mut stream = message.clone();
            let (method, content) = stream.split_at_mut(deliver().len());
            if let Err(reason) = sanitizer.check(method).and_then(|_| sanitizer.check(content)) {
                break reason;
            }
            sent += 1;
        };
        let expected = "it sent more messages than were asked for, faster than they are taken";
        assert_eq!(reason, expected);
        assert!((10_000..20_000).contains(&sent), "{sent}");
    }
}
