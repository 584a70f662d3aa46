//! What a coprocess reads and writes: a line for each request, and a line for each reply.

use crate::command::{Invocation, memory};
use crate::error::{ErrorKind, Failure};
use crate::json_headers::Headers;
use base64::prelude::{BASE64_STANDARD, Engine};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::time::Instant;

/// What a coprocess answers.
pub type Outcome = Result<Vec<u8>, Failure<ErrorKind>>;

/// How many bytes of JSON a byte of a result can take, at most: `\u0001`.
const JSON_FACTOR: usize = 6;

/// How many bytes a line of JSON may have besides its result.
const JSON_REST: usize = 64 << 10;

/// What the lines are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// The argument, and the result, as they are.
    Text,
    /// JSON objects, in the words of `rpc_client --format json`.
    Json,
}

/// A request as an object. What there is not is null, but for the argument, which is in one of two fields.
#[derive(Serialize)]
struct JsonRequest<'a> {
    procedure: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    argument: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    argument_base64: Option<String>,
    correlation_id: Option<&'a str>,
    content_type: Option<&'a str>,
    routing_key: Option<&'a str>,
    r#type: Option<&'a str>,
    /// Null if they are too large.
    headers: Option<Headers<'a>>,
    redelivered: bool,
    /// Seconds until nobody waits any more, when the request is written.
    time_limit: Option<f64>,
}

/// A reply as an object. It has one of these fields, and any others.
#[derive(Deserialize)]
struct JsonReply<'a> {
    #[serde(borrow)]
    result: Option<Cow<'a, str>>,
    #[serde(borrow)]
    result_base64: Option<Cow<'a, str>>,
    #[serde(borrow)]
    error: Option<JsonError<'a>>,
}

#[derive(Deserialize)]
struct JsonError<'a> {
    #[serde(borrow)]
    kind: Cow<'a, str>,
    message: String,
}

impl Protocol {
    /// Checks whether there is a request with this `argument` for the procedure `name`.
    pub fn check(self, name: &str, argument: &[u8]) -> Result<(), Failure<ErrorKind>> {
        match self {
            Protocol::Text if argument.contains(&b'\n') => {
                let message =
                    format!("{name} takes one line, and the argument has a newline in it");
                Err(Failure::new(ErrorKind::InvalidArgument, message))
            }
            Protocol::Json if !memory::has_room_for(argument.len()) => {
                let message = "the server has no memory for the argument";
                Err(Failure::new(ErrorKind::Unavailable, message))
            }
            Protocol::Text | Protocol::Json => Ok(()),
        }
    }

    /// Returns the line that asks for an answer, without its newline.
    pub fn request<'a>(self, invocation: &Invocation<'a>) -> Cow<'a, [u8]> {
        match self {
            Protocol::Text => invocation.input.into(),
            Protocol::Json => json_request(invocation).into(),
        }
    }

    /// Returns how long a line can be that is a result of up to `most` bytes.
    pub fn longest_reply(self, most: usize) -> usize {
        match self {
            Protocol::Text => most,
            Protocol::Json => most.saturating_mul(JSON_FACTOR).saturating_add(JSON_REST),
        }
    }

    /// Returns what a line says, which came without its newline. The error says why it is no reply.
    pub fn reply(self, line: Vec<u8>, most: usize) -> Result<Outcome, String> {
        match self {
            Protocol::Text => Ok(Ok(line)),
            Protocol::Json => json_reply(&line, most),
        }
    }
}

fn json_request(invocation: &Invocation<'_>) -> Vec<u8> {
    let text = str::from_utf8(invocation.input).ok();
    let left = invocation.deadline.map(|at| at.saturating_duration_since(Instant::now()));
    let request = JsonRequest {
        procedure: invocation.about.procedure,
        argument: text,
        argument_base64: text.is_none().then(|| BASE64_STANDARD.encode(invocation.input)),
        correlation_id: invocation.about.correlation_id,
        content_type: invocation.about.content_type,
        routing_key: invocation.about.routing_key,
        r#type: invocation.about.message_type,
        headers: invocation.about.headers(),
        redelivered: invocation.about.is_redelivered,
        time_limit: left.map(|limit| limit.as_secs_f64()),
    };
    // Strings and numbers can always be written.
    serde_json::to_vec(&request).unwrap_or_default()
}

fn json_reply(line: &[u8], most: usize) -> Result<Outcome, String> {
    let reply: JsonReply<'_> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let result = match reply {
        JsonReply { result: Some(result), result_base64: None, error: None } => {
            result.into_owned().into_bytes()
        }
        JsonReply { result: None, result_base64: Some(result), error: None } => {
            let bytes = BASE64_STANDARD.decode(result.as_bytes());
            bytes.map_err(|error| format!("result_base64: {error}"))?
        }
        JsonReply { result: None, result_base64: None, error: Some(error) } => {
            let kind = ErrorKind::from_str(&error.kind, false).map_err(|_| {
                let kinds = ErrorKind::value_variants().iter().map(|kind| kind.name());
                let kinds: Vec<&str> = kinds.collect();
                format!("the kinds of errors are {}", kinds.join(", "))
            })?;
            return Ok(Err(Failure::new(kind, error.message)));
        }
        _ => return Err("it has not one of result, result_base64 and error".into()),
    };

    if result.len() > most {
        let message = format!("the result has {} bytes; the broker takes {most}", result.len());
        return Ok(Err(Failure::new(ErrorKind::OutOfRange, message)));
    }
    Ok(Ok(result))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cancellation::CallHandle;
    use crate::command::About;

    fn request(protocol: Protocol, input: &[u8]) -> Result<String, Failure<ErrorKind>> {
        let handle = CallHandle::default();
        let about = About {
            procedure: "p",
            correlation_id: Some("7"),
            routing_key: Some("q"),
            is_redelivered: true,
            ..About::default()
        };
        let invocation = Invocation { about, most: 1_000, ..Invocation::new(input, &handle) };
        protocol.check("p", input)?;
        Ok(String::from_utf8(protocol.request(&invocation).into_owned()).unwrap())
    }

    #[test]
    fn a_request_is_one_line() {
        assert_eq!(request(Protocol::Text, b" a\0 ").unwrap(), " a\0 ");
        let refused = request(Protocol::Text, b"a\n").unwrap_err();
        assert_eq!(refused.kind, ErrorKind::InvalidArgument);
        let rest = r#""correlation_id":"7","content_type":null,"routing_key":"q","type":null,"headers":{},"redelivered":true,"time_limit":null}"#;
        for (argument, field) in [
            (&b"a\n\"\0"[..], r#""argument":"a\n\"\u0000""#),
            (b"caf\xe9", r#""argument_base64":"Y2Fm6Q==""#),
            (b"", r#""argument":"""#),
        ] {
            let expected = format!(r#"{{"procedure":"p",{field},{rest}"#);
            assert_eq!(request(Protocol::Json, argument).unwrap(), expected);
        }
    }

    #[test]
    fn what_a_reply_may_be() {
        let json = |line: &str| Protocol::Json.reply(line.into(), 10);
        for (line, expected) in [
            (r#"{"result":"a\nb"}"#, Ok(&b"a\nb"[..])),
            (r#" {"result_base64":"Y2Fm6Q==","result":null,"more":[1]} "#, Ok(b"caf\xe9")),
            (r#"{"result":""}"#, Ok(b"")),
            (
                r#"{"error":{"kind":"unavailable","message":"later","x":1}}"#,
                Err((ErrorKind::Unavailable, "later")),
            ),
            (
                r#"{"result":"12345678901"}"#,
                Err((ErrorKind::OutOfRange, "the result has 11 bytes; the broker takes 10")),
            ),
        ] {
            let expected: Outcome = match expected {
                Ok(result) => Ok(result.into()),
                Err((kind, message)) => Err(Failure::new(kind, message)),
            };
            assert_eq!(json(line), Ok(expected), "{line}");
        }
        assert_eq!(Protocol::Text.reply(b"a\r".into(), 10), Ok(Ok(b"a\r".into())));
    }

    #[test]
    fn what_is_no_reply() {
        for line in [
            "",
            "42",
            "[]",
            "{}",
            "{\"result\":42}",
            "{\"result\":\"a\"} {}",
            "{\"result\":\"a\"",
            "nonsense",
            r#"{"result":"a","result_base64":"YQ=="}"#,
            r#"{"result":"a","error":{"kind":"internal","message":"m"}}"#,
            r#"{"result":null}"#,
            r#"{"result":"a","result":"b"}"#,
            r#"{"result_base64":"Y2Fm6Q"}"#,
            r#"{"error":"bad"}"#,
            r#"{"error":{"kind":"internal"}}"#,
            r#"{"error":{"kind":"bad","message":"m"}}"#,
            "{\"result\":\"\u{1}\"}",
        ] {
            assert!(Protocol::Json.reply(line.into(), 10).is_err(), "{line}");
        }
        assert!(Protocol::Json.reply(b"{\"result\":\"caf\xe9\"}".into(), 10).is_err());
    }

    /// Whatever bytes a result has, there is a line for it that is short enough.
    #[test]
    fn the_longest_line() {
        assert_eq!(Protocol::Text.longest_reply(10), 10);
        let line =
            serde_json::to_string(&serde_json::json!({ "result": "\u{1}".repeat(1_000) })).unwrap();
        assert!(line.len() <= Protocol::Json.longest_reply(1_000));
        assert_eq!(Protocol::Json.reply(line.into(), 1_000), Ok(Ok(vec![1; 1_000])));
    }
}
