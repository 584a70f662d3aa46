//! What holds of every input, tried on many: the decoders of what comes from outside never panic,
//! and what one program writes is what the other reads.

use fib_rpc::amqp::uri;
use fib_rpc::error::ErrorKind;
use fib_rpc::fib::{self, Algorithm};
use fib_rpc::procedure::{self, Error, Settings};
use fib_rpc::protocol::{MAX_NAME, Reply, Request};
use fib_rpc::terminal::text;
use proptest::prelude::*;
use std::time::Duration;

const SETTINGS: Settings = Settings { algorithm: Algorithm::FastDoubling, max_n: 1_000 };

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

fn name() -> impl Strategy<Value = String> {
    any::<String>().prop_filter("too long", |name| name.len() <= MAX_NAME)
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
            Err(failure) => prop_assert!(!failure.message.contains("Sesame"), "{failure}"),
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
        };
        let publish = request.to_publish("queue");
        prop_assert_eq!(Request::decode(&publish.properties, publish.body), request);
    }

    #[test]
    fn a_reply_is_read_as_it_was_written(
        correlation_id in prop::option::of(name()),
        body in "(?s).{1,100}",
        kind in prop::option::of(prop::sample::select(&ErrorKind::ALL)),
    ) {
        let outcome = kind.map_or(Ok(body.clone()), |kind| Err(Error::new(kind, body)));
        let reply = Reply { correlation_id, outcome };
        let publish = reply.to_publish("queue");
        prop_assert_eq!(Reply::decode(&publish.properties, publish.body.to_vec()), Ok(reply));
    }

    #[test]
    fn no_request_panics(procedure in any::<String>(), argument in any::<Vec<u8>>()) {
        for name in [procedure.as_str(), "fib", "fun", "a", "b", "ping", "list"] {
            // A panic is caught, and is an internal error.
            let answered = procedure::call(name, &argument, &SETTINGS);
            let kind = answered.err().map(|error| error.kind);
            prop_assert!(kind != Some(ErrorKind::Internal), "{name}");
        }
    }

    #[test]
    fn fun_is_a_hundred_times_n(n in any::<i64>()) {
        let product = procedure::call("fun", n.to_string().as_bytes(), &SETTINGS);
        prop_assert_eq!(product.unwrap(), (i128::from(n) * 100).to_string());
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
