//! What holds of every input, tried on many: the decoders of what comes from outside never panic,
//! and what one program writes is what the other reads. `PROPTEST_CASES` is another number of inputs.

use amq_protocol::frame::generation::gen_frame;
use amq_protocol::frame::{AMQPFrame, parse_frame};
use amq_protocol::types::AMQPValue;
use clap::ValueEnum;
use fib_rpc::amqp::MAX_NAME;
use fib_rpc::amqp::sanitizer::{self, Piece, Sanitizer, Type};
use fib_rpc::amqp::uri;
use fib_rpc::cancellation::CallHandle;
use fib_rpc::command::Invocation;
use fib_rpc::error::ErrorKind;
use fib_rpc::fib::{self, Algorithm};
use fib_rpc::procedure::{Error, Outcome, Procedures, Settings};
use fib_rpc::protocol::{Reply, Request};
use fib_rpc::terminal::text;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;

const SETTINGS: Settings =
    Settings { algorithm: Algorithm::FastDoubling, max_n: 1_000, coprocess_calls: None };

/// What a built-in procedure answers. It looks at nothing but the input.
fn call(name: &str, argument: &[u8]) -> Outcome {
    let handle = CallHandle::default();
    let invocation = Invocation::new(argument, &handle);
    Procedures::new(&[], SETTINGS).unwrap().call(name, &invocation).unwrap()
}

/// Text as a URI might have it: its own characters are likelier than others.
fn uri_like() -> impl Strategy<Value = String> {
    let pieces = prop_oneof![
        Just("amqp://".to_owned()),
        Just("amqps://".to_owned()),
        Just(",".to_owned()),
        "[:/@?#&=%\\[\\],+]",
        "%[0-9a-fA-F]{0,2}",
        "[0-9]{1,6}",
        "heartbeat=|verify=|connection_timeout=|cacertfile=",
        "[a-z]{1,5}",
        any::<char>().prop_map(String::from),
    ];
    prop::collection::vec(pieces, 0..12).prop_map(|pieces| pieces.concat())
}

/// A name that a message can have. One with a SUB in it was mended on the way.
fn name() -> impl Strategy<Value = String> {
    any::<String>().prop_filter("no name", |name| name.len() <= MAX_NAME && !name.contains('\x1a'))
}

fn escaped(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn no_uri_panics(uri in uri_like()) {
        let _ = uri::parse_list(&uri);
        let _ = uri::has_password(&uri);
    }

    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = uri::parse_list(&text);
        let _ = uri::parse_list(&format!("amqp://{text}"));
    }

    /// Wherever a password is put that was not escaped, no error has a word of it.
    #[test]
    fn no_error_shows_a_password(
        // What may be taken for a port first: the likeliest way for a rest to be taken for a vhost.
        password in "[0-9]{0,3}/?[a-z0-9/@:?#%,\\[\\]&=]{0,6}Sesame[a-z0-9/@:?#%,\\[\\]&=]{0,6}",
        rest in prop::sample::select(&["", "/vhost?heartbeat=5"]),
    ) {
        let url = format!("amqp://user:{password}@host:5672{rest}");
        match uri::parse_list(&url) {
            Err(error) => prop_assert!(!error.to_string().contains("Sesame"), "{error}"),
            Ok(endpoints) => {
                prop_assert!(!format!("{endpoints:?}").contains("Sesame"), "{endpoints:?}");
            }
        }
    }

    #[test]
    fn what_is_escaped_comes_back(user in "[^\0]{1,20}", password in "[^\0]{0,20}", vhost in "[^\0]{0,20}") {
        let url = format!("amqp://{}:{}@h/{}", escaped(&user), escaped(&password), escaped(&vhost));
        let endpoints = uri::parse_list(&url).unwrap();
        let expected = uri::Credentials::Plain { username: user, password };
        prop_assert!(endpoints[0].credentials == expected);
        prop_assert_eq!(&endpoints[0].vhost, &vhost);
    }

    #[test]
    fn a_request_is_read_as_it_was_written(
        procedure in name(),
        argument in any::<Vec<u8>>(),
        reply_to in name(),
        id in name(),
        expiration in prop::option::of(0..u32::MAX),
    ) {
        let request = Request {
            procedure: &procedure,
            argument: &argument,
            reply_to: Some(&reply_to).filter(|name| !name.is_empty()).map(String::as_str),
            correlation_id: Some(&id),
            expiration: expiration.map(|ms| Duration::from_millis(ms.into())),
            content_type: Some("text/plain"),
            ..Request::default()
        };
        let publish = request.to_publish("queue");
        prop_assert_eq!(Request::decode(&publish.properties, publish.body), request);
    }

    #[test]
    fn a_reply_is_read_as_it_was_written(
        correlation_id in prop::option::of(name()),
        result in any::<Vec<u8>>(),
        message in "(?s).{0,100}",
        exit_code in any::<Option<u8>>(),
        stderr in prop::option::of("(?s).{0,100}"),
        kind in prop::option::of(prop::sample::select(ErrorKind::value_variants())),
        content_type in name(),
    ) {
        let outcome = match kind {
            Some(kind) => Err(Error { exit_code, stderr, ..Error::new(kind, message) }),
            None => Ok(result),
        };
        let reply = Reply { correlation_id, outcome, content_type: Some(content_type) };
        let publish = reply.to_publish("queue");
        prop_assert_eq!(Reply::decode(&publish.properties, publish.body.to_vec()), Ok(reply));
    }

    #[test]
    fn no_request_panics(procedure in any::<String>(), argument in any::<Vec<u8>>()) {
        for name in [procedure.as_str(), "fib", "fun", "a", "b", "ping", "list"] {
            // A panic is caught, and is an internal error.
            let answered = call(name, &argument);
            let kind = answered.err().map(|error| error.kind);
            prop_assert!(kind != Some(ErrorKind::Internal), "{name}");
        }
    }

    #[test]
    fn fun_is_a_hundred_times_n(n in any::<i64>()) {
        let product = call("fun", n.to_string().as_bytes());
        prop_assert_eq!(product.unwrap(), (i128::from(n) * 100).to_string().into_bytes());
    }

    /// F(m + n + 1) = F(m)·F(n) + F(m+1)·F(n+1), Knuth, TAOCP volume 1, 1.2.8 (6).
    #[test]
    fn fibonacci_numbers_add_up(m in 0..3_000u64, n in 0..3_000u64) {
        let f = |n| fib::fib(n, Algorithm::FastDoubling);
        prop_assert_eq!(f(m + n + 1), f(m) * f(n) + f(m + 1) * f(n + 1));
    }

    #[test]
    fn nothing_harmful_gets_through(text in any::<String>()) {
        let message = text::message(&text);
        prop_assert!(!message.contains(text::is_harmful) && !message.contains('\n'));
        let shown = text::on_terminal(&text).replace(['\n', '\t'], "");
        prop_assert!(!shown.contains(text::is_harmful), "{shown:?}");
    }

    #[test]
    fn an_excerpt_in_a_message_is_one_short_line(bytes in any::<Vec<u8>>()) {
        let shown = text::message(&text::excerpt(&bytes));
        prop_assert!(!shown.contains(char::is_control));
        let escape = '\u{10ffff}'.escape_unicode().count();
        prop_assert!(shown.chars().count() <= 64 * escape + 1);
    }
}

// The sanitizer: what a broker sends.

/// Makes what a broker sends, or would never send.
struct Broker {
    random: fastrand::Rng,
    /// Whether text is UTF-8, and no table nested too deep.
    is_clean: bool,
}

impl Broker {
    fn new(seed: u64, is_clean: bool) -> Broker {
        Broker { random: fastrand::Rng::with_seed(seed), is_clean }
    }

    fn octets(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.random.u8(..)).collect()
    }

    fn text(&mut self, most: usize) -> Vec<u8> {
        let length = self.random.usize(..=most);
        match self.random.u8(..4) {
            0 if !self.is_clean => self.octets(length),
            0 => "é€🦀".chars().cycle().take(length / 4).collect::<String>().into_bytes(),
            _ => vec![self.random.alphanumeric() as u8; length],
        }
    }

    fn short_text(&mut self) -> Vec<u8> {
        let text = self.text(20);
        [&[text.len() as u8], &text[..]].concat()
    }

    fn long(content: &[u8]) -> Vec<u8> {
        [&(content.len() as u32).to_be_bytes(), content].concat()
    }

    fn table(&mut self, depth: usize) -> Vec<u8> {
        let mut content = Vec::new();
        for index in 0..self.random.u8(..4) {
            // No name twice: the library would keep one of the values.
            let name = [&[index][..], &self.text(8)].concat();
            content.push(name.len() as u8);
            content.extend(name);
            content.extend(self.value(depth));
        }
        Broker::long(&content)
    }

    fn array(&mut self, depth: usize) -> Vec<u8> {
        let elements = self.random.u8(..4);
        let content: Vec<u8> = (0..elements).flat_map(|_| self.value(depth)).collect();
        Broker::long(&content)
    }

    /// A tower of tables and arrays, higher than is sane.
    fn tower(&mut self, height: usize) -> Vec<u8> {
        let mut content = b"V".to_vec();
        for _ in 0..height {
            let is_table = self.random.bool();
            let name = if is_table { &b"\0"[..] } else { b"" };
            let kind = if is_table { b'F' } else { b'A' };
            content = [&[kind], &Broker::long(&[name, &content].concat())[..]].concat();
        }
        content
    }

    fn value(&mut self, depth: usize) -> Vec<u8> {
        if !self.is_clean && depth == 0 && self.random.u8(..20) == 0 {
            return self.tower(200);
        }
        let kinds = if depth < 4 { &b"VtbBsUuIifDLldTSxFA"[..] } else { b"VtbBsUuIifDLldTSx" };
        let kind = kinds[self.random.usize(..kinds.len())];
        let value = match kind {
            b'V' => vec![],
            b't' => vec![self.random.u8(..2)],
            b'b' | b'B' => self.octets(1),
            b's' | b'U' | b'u' => self.octets(2),
            b'I' | b'i' | b'f' => self.octets(4),
            b'D' => self.octets(5),
            b'L' | b'l' | b'd' | b'T' => self.octets(8),
            b'S' => Broker::long(&self.text(40)),
            b'x' => Broker::long(&self.octets(10)),
            b'F' => self.table(depth + 1),
            _ => self.array(depth + 1),
        };
        [&[kind], &value[..]].concat()
    }

    fn argument(&mut self, kind: Type) -> Vec<u8> {
        match kind {
            Type::Octets(length) => self.octets(length),
            Type::ShortText => self.short_text(),
            Type::LongText => Broker::long(&self.text(300)),
            Type::Table => self.table(0),
        }
    }

    fn frame(kind: u8, channel: u16, payload: &[u8]) -> Vec<u8> {
        [&[kind][..], &channel.to_be_bytes(), &Broker::long(payload), &[0xce]].concat()
    }

    fn method(&mut self, class: u16, number: u16, channel: u16) -> Option<Vec<u8>> {
        let (_, types) = sanitizer::method(class, number)?;
        let mut payload = [class.to_be_bytes(), number.to_be_bytes()].concat();
        for &kind in types {
            payload.extend(self.argument(kind));
        }
        Some(Broker::frame(1, channel, &payload))
    }

    fn message(&mut self, channel: u16) -> Vec<u8> {
        let number = [50, 60, 71][self.random.usize(..3)];
        let mut stream = self.method(60, number, channel).unwrap();
        let pieces: Vec<usize> =
            (0..self.random.u8(..3)).map(|_| self.random.usize(1..200)).collect();
        let size = pieces.iter().sum::<usize>() as u64;
        let flags = self.random.u16(..) & !0b11;
        let mut header = [&[0, 60, 0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat();
        for (index, kind) in sanitizer::PROPERTIES.into_iter().enumerate() {
            if flags & (1 << (15 - index)) != 0 {
                header.extend(self.argument(kind));
            }
        }
        stream.extend(Broker::frame(2, channel, &header));
        for piece in pieces {
            stream.extend(Broker::frame(3, channel, &self.octets(piece)));
        }
        stream
    }

    fn stream(&mut self) -> Vec<u8> {
        const METHODS: [(u16, u16); 12] = [
            (10, 60),
            (10, 61),
            (20, 11),
            (20, 40),
            (50, 11),
            (50, 41),
            (60, 21),
            (60, 30),
            (60, 72),
            (60, 80),
            (60, 120),
            (85, 11),
        ];
        let mut stream = self.method(10, 10, 0).unwrap();
        for _ in 0..self.random.u8(..4) {
            let channel = self.random.u16(1..4);
            let (class, number) = METHODS[self.random.usize(..METHODS.len())];
            stream.extend(match self.random.u8(..4) {
                0 => Broker::frame(8, 0, &[]),
                1 => self.method(class, number, channel).unwrap(),
                _ => self.message(channel),
            });
            // Nothing comes for a channel that was closed until it is opened again.
            if (class, number) == (20, 40) {
                stream.extend(self.method(20, 11, channel).unwrap());
            }
        }
        stream
    }

    /// Does some harm to a stream, wherever it strikes.
    fn harm(&mut self, stream: &mut Vec<u8>) {
        for _ in 0..self.random.u8(1..4) {
            let at = self.random.usize(..stream.len().max(1));
            match self.random.u8(..8) {
                _ if stream.len() < 2 => return,
                0 => drop(stream.remove(at)),
                1 => stream.insert(at, self.random.u8(..)),
                2 => stream.truncate(at.max(1)),
                3 => stream[at] = 0xff,
                4 => stream[at] = stream[at].wrapping_add(1),
                _ => stream[at] = self.random.u8(..),
            }
        }
    }

    /// What becomes of a stream that comes in pieces: what is handed on, and why no more is.
    fn send(&mut self, stream: &[u8]) -> (Vec<u8>, Option<String>) {
        let mut sanitizer = Sanitizer::new(Arc::default());
        let (mut buffer, mut checked) = (Vec::new(), 0);
        let mut rest = stream;
        while !rest.is_empty() {
            let most = if self.random.bool() { rest.len() } else { rest.len().min(9) };
            let (piece, later) = rest.split_at(self.random.usize(1..=most));
            (rest, _) = (later, buffer.extend_from_slice(piece));
            loop {
                match sanitizer.check(&mut buffer[checked..]) {
                    Ok(Piece::Incomplete) => break,
                    Ok(Piece::Checked(length)) => checked += length,
                    Ok(Piece::Discarded(length)) => drop(buffer.drain(checked..checked + length)),
                    Err(reason) => {
                        buffer.truncate(checked);
                        return (buffer, Some(reason));
                    }
                }
            }
        }
        buffer.truncate(checked);
        (buffer, None)
    }
}

/// The frames of a stream, the last of them whole or not.
fn frames(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut frames = Vec::new();
    while let Some(&[_, _, _, b0, b1, b2, b3]) = stream.first_chunk() {
        let size = u32::from_be_bytes([b0, b1, b2, b3]) as usize + 8;
        let Some((frame, rest)) = stream.split_at_checked(size) else { break };
        frames.push(frame);
        stream = rest;
    }
    frames
}

/// The library reads a frame, and the same properties that it announces. Returns the frame as the
/// library would write it, of which the size says whether it was understood.
fn read_by_the_library(frame: &[u8]) -> Vec<u8> {
    let (rest, read) = parse_frame(frame).expect("the library cannot read it");
    assert!(rest.is_empty());
    let mut space = vec![0; 2 * frame.len() + 100];
    let written = gen_frame((&mut space[..], 0), &read).unwrap().1;
    space.truncate(written);
    if frame[0] == 2 {
        assert_eq!(space[19..21], frame[19..21], "flags of the properties");
        if let AMQPFrame::Header(_, _, header) = &read
            && let Some(headers) = header.properties.headers()
        {
            assert!(headers.values().all(|value| depth(value) < sanitizer::DEPTH_MAX));
        }
    }
    space
}

fn depth(value: &AMQPValue) -> usize {
    match value {
        AMQPValue::FieldTable(table) => 1 + table.values().map(depth).max().unwrap_or(0),
        AMQPValue::FieldArray(array) => 1 + array.iter().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// The sanitizer's table of methods says what the library makes of them.
#[test]
fn the_library_reads_the_same_methods() {
    let mut broker = Broker::new(1, true);
    let numbers = (0..=100).flat_map(|class| (0..=130).map(move |number| (class, number)));
    let methods: Vec<_> = numbers.filter_map(|(c, n)| broker.method(c, n, 0)).collect();
    assert_eq!(methods.len(), 37);
    for frame in methods {
        assert_eq!(read_by_the_library(&frame).len(), frame.len(), "{frame:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn what_is_in_order_passes_unchanged(seed in any::<u64>()) {
        let mut broker = Broker::new(seed, true);
        let stream = broker.stream();
        prop_assert_eq!(broker.send(&stream), (stream.clone(), None));
        for frame in frames(&stream) {
            prop_assert_eq!(read_by_the_library(frame).len(), frame.len());
        }
    }

    /// Each message arrives, with all of its bytes but those that the library cannot read.
    #[test]
    fn what_is_no_text_or_nested_deep_is_mended(seed in any::<u64>()) {
        let mut broker = Broker::new(seed, false);
        let stream = broker.stream();
        let (mended, reason) = broker.send(&stream);
        prop_assert_eq!((mended.len(), reason), (stream.len(), None));
        for (before, after) in stream.iter().zip(&mended).filter(|(before, after)| before != after) {
            let is_nested = *after == b'x' && b"FA".contains(before);
            prop_assert!(is_nested || *after == sanitizer::SUBSTITUTE && !before.is_ascii());
        }
        for frame in frames(&mended) {
            prop_assert!(read_by_the_library(frame).len() <= frame.len());
        }
    }

    #[test]
    fn what_is_handed_on_can_be_read_whatever_came(seed in any::<u64>()) {
        let mut broker = Broker::new(seed, false);
        let mut stream = broker.stream();
        broker.harm(&mut stream);
        let (one, why) = broker.send(&stream);
        for frame in frames(&one) {
            read_by_the_library(frame);
        }
        // However it was cut.
        let (other, because) = broker.send(&stream);
        prop_assert_eq!(frames(&one), frames(&other));
        prop_assert_eq!(why, because);
    }
}
