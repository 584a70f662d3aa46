//! An error's sentence as JSON: what stands in a reply's body in place of the sentence where results are JSON, so that a
//! client which takes nothing else can read it. `{"error":{"kind":"out-of-range","message":"…"}}`.

use crate::error::ErrorKind;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The content type of such a body (RFC 8259).
pub const CONTENT_TYPE: &str = "application/json";

/// How many bytes of JSON a byte of a sentence can take, at most: `\u0001`.
const FACTOR: usize = 6;

#[derive(Serialize, Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    error: Error<'a>,
}

#[derive(Serialize, Deserialize)]
struct Error<'a> {
    /// A reply's header has it too, and that is where it is read.
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    message: Cow<'a, str>,
}

/// Returns whether a content type says that a body is JSON: `application/json`, or one with the suffix `+json` (RFC
/// 6839), whatever its parameters.
pub fn is_json(content_type: &str) -> bool {
    let essence = content_type.split_once(';').map_or(content_type, |(essence, _)| essence);
    let essence = essence.trim().to_ascii_lowercase();
    essence == CONTENT_TYPE || essence.ends_with("+json")
}

/// Returns the body that tells an error of this `kind` by this `message`, of which no more is told than `most` bytes of
/// body have room for. Empty: they have room for none.
pub fn encode(kind: ErrorKind, message: &str, most: usize) -> String {
    let mut message = message;
    loop {
        let error = Error { kind: kind.name().into(), message: message.into() };
        // Strings can always be written.
        let body = serde_json::to_string(&Body { error }).unwrap_or_default();
        let excess = body.len().saturating_sub(most);
        match (excess, message) {
            (0, _) => return body,
            (_, "") => return String::new(),
            _ => message = without_last(message, excess.div_ceil(FACTOR)),
        }
    }
}

/// Returns `text` without as many whole characters as have `least` bytes or more.
fn without_last(text: &str, least: usize) -> &str {
    let mut end = text.len().saturating_sub(least);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// Returns the sentence in the body of an error, if that is such JSON.
pub fn decode(body: &[u8]) -> Option<String> {
    let body: Body<'_> = serde_json::from_slice(body).ok()?;
    Some(body.error.message.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn which_content_types_are_json() {
        for (content_type, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/problem+json", true),
            ("application/vnd.x+json;v=1", true),
            ("text/json", false),
            ("application/json-seq", false),
            ("application/jsonx", false),
            ("text/plain; a=application/json", false),
            ("json", false),
            ("", false),
        ] {
            assert_eq!(is_json(content_type), expected, "{content_type}");
        }
    }

    #[test]
    fn a_sentence_is_read_as_it_was_written() {
        let body = encode(ErrorKind::OutOfRange, "no \"é\"\n", 1_000);
        assert_eq!(body, r#"{"error":{"kind":"out-of-range","message":"no \"é\"\n"}}"#);
        assert_eq!(decode(body.as_bytes()).as_deref(), Some("no \"é\"\n"));
        let theirs = br#"{"error":{"message":"m","code":1},"id":null}"#;
        assert_eq!(decode(theirs).as_deref(), Some("m"));
        for other in
            [&b"no"[..], b"{}", br#"{"error":"no"}"#, br#"{"error":{"message":1}}"#, b"\xff"]
        {
            assert_eq!(decode(other), None);
        }
    }

    #[test]
    fn a_sentence_that_is_too_long_is_cut() {
        for message in ["x".repeat(5_000), "\u{1}".repeat(5_000), "é".repeat(5_000)] {
            for most in [45, 46, 50, 100, 1_000] {
                let body = encode(ErrorKind::Internal, &message, most);
                assert!(body.len() <= most, "{most}");
                assert!(body.len() + 12 > most, "{most}: {body}");
                assert!(message.starts_with(&decode(body.as_bytes()).unwrap()));
            }
        }
        assert_eq!(encode(ErrorKind::Internal, "", 40), "");
    }
}
