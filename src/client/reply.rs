//! What a reply says to this client: that of `rpc_server` in its properties, that of somebody else's server perhaps in its
//! JSON, where the options say.

use crate::cli;
use crate::client::call::Outcome;
use crate::error::{ErrorKind, Failure, FailureKind};
use crate::json_headers::Headers;
use crate::pointer::{ErrorAt, Pointer, text_of};
use crate::protocol::Reply;
use amiquip::{AmqpProperties, FieldTable};
use serde_json::value::RawValue;
use std::fmt;

/// A reply, as the client has read it.
#[derive(Debug)]
pub struct Received {
    /// What the call comes to.
    pub outcome: Outcome,
    /// What the body is, as far as the server says.
    pub content_type: Option<String>,
    /// `result`, or what kind of error it is by its properties. None: it is no reply.
    kind: Option<&'static str>,
    headers: Option<FieldTable>,
}

/// What it is, for the log, with its headers if it has any.
impl fmt::Display for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "reply: {}", self.kind.unwrap_or("empty"))?;
        match self.headers.as_ref().map(|table| Headers::new(Some(table))) {
            None => Ok(()),
            Some(Some(headers)) => write!(f, ", headers {}", headers.to_json()),
            Some(None) => f.write_str(", headers too large to be told"),
        }
    }
}

/// How replies are read.
#[derive(Debug, Clone, Copy)]
pub struct Reading<'a> {
    error_at: Option<&'a ErrorAt>,
    result_at: Option<&'a Pointer>,
}

impl<'a> Reading<'a> {
    /// Returns how `args` read replies.
    pub fn new(args: &'a cli::Client) -> Reading<'a> {
        Reading { error_at: args.error_at.as_ref(), result_at: args.result_at.as_ref() }
    }

    /// Reads the reply with these properties and this body.
    pub fn read(self, properties: &AmqpProperties, body: Vec<u8>) -> Received {
        let reply = Reply::decode(properties, body);
        let kind = reply.as_ref().ok().map(Reply::kind);
        let outcome = reply
            .and_then(|reply| reply.outcome.map_err(Failure::from))
            .and_then(|body| self.outcome(body));
        let content_type = properties.content_type().clone();
        Received { outcome, content_type, kind, headers: properties.headers().clone() }
    }

    /// Returns what a `body` comes to that is no error by its properties.
    fn outcome(self, body: Vec<u8>) -> Outcome {
        if self.error_at.is_none() && self.result_at.is_none() {
            return Ok(body);
        }
        let document = serde_json::from_slice(&body).ok();
        if let Some(error) = self.error_at.and_then(|at| self.error(at, document?)) {
            return Err(error);
        }
        let Some(result_at) = self.result_at else { return Ok(body) };
        let missing = |what: &str| {
            let at = result_at.as_str();
            let message = format!("there is no result at \"{at}\": the reply {what}");
            Failure::new(FailureKind::BadReply, message)
        };
        let document = document.ok_or_else(|| missing("is not JSON"))?;
        let found = result_at.find(document).ok_or_else(|| missing("has nothing there"))?;
        Ok(text_of(found).into_bytes())
    }

    /// Returns the error that a `document` has. Its sentence is what stands there; if that had to be a certain value, it
    /// tells nothing, and what stands where a result would be is told with it.
    fn error(self, at: &ErrorAt, document: &RawValue) -> Option<Failure> {
        let found = text_of(at.find(document)?);
        let more = at.value.as_ref().and(self.result_at).and_then(|at| at.find(document));
        let message = match more.map(text_of) {
            Some(more) => format!("{found}: {more}"),
            None if found.is_empty() => {
                format!("the reply has \"\" at \"{}\"", at.pointer.as_str())
            }
            None => found,
        };
        Some(Failure::new(FailureKind::Procedure(ErrorKind::Internal), message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use amiquip::AmqpValue;
    use clap::Parser;

    /// Reads a reply as a client with these options does.
    fn read(options: &[&str], properties: &AmqpProperties, body: &[u8]) -> Received {
        let args = [&["rpc_client"], options, &["fib"]].concat();
        Reading::new(&cli::Client::parse_from(args)).read(properties, body.into())
    }

    fn outcome(options: &[&str], body: &str) -> Result<String, (u8, String)> {
        let outcome = read(options, &AmqpProperties::default(), body.as_bytes()).outcome;
        let told = outcome.map_err(|failure| (failure.kind.code(), failure.message));
        told.map(|result| String::from_utf8(result).unwrap())
    }

    fn failed<T>(code: u8, message: &str) -> Result<T, (u8, String)> {
        Err((code, message.into()))
    }

    #[test]
    fn a_reply_of_nestjs() {
        let options = &["--error-at=/err", "--result-at=/response"];
        let result = |body| outcome(options, body);
        assert_eq!(result(r#"{"response":"pong","isDisposed":true}"#), Ok("pong".into()));
        assert_eq!(result(r#"{"response":{"b": 1.0},"err":null}"#), Ok(r#"{"b": 1.0}"#.into()));
        assert_eq!(result(r#"{"response":null}"#), Ok("null".into()));
        let sentence = r#"{"status":"error","message":"no"}"#;
        let body = format!(r#"{{"err":{sentence},"isDisposed":true}}"#);
        assert_eq!(result(&body), failed(70, sentence));
        let nothing = "there is no result at \"/response\": the reply has nothing there";
        assert_eq!(result(r#"{"isDisposed":true}"#), failed(76, nothing));
    }

    #[test]
    fn a_reply_of_celery() {
        let body = r#"{"status":"FAILURE","result":{"exc_type":"ValueError"}}"#;
        let failure = failed(70, "FAILURE");
        assert_eq!(outcome(&["--error-at=/status=FAILURE"], body), failure);
        let options = &["--error-at=/status=FAILURE", "--result-at=/result"];
        assert_eq!(outcome(options, body), failed(70, r#"FAILURE: {"exc_type":"ValueError"}"#));
        let result = r#"{"status":"SUCCESS","result":280571172992510140037611932413038677189525}"#;
        let whole = "280571172992510140037611932413038677189525";
        assert_eq!(outcome(options, result), Ok(whole.into()));
    }

    #[test]
    fn a_reply_that_is_not_json() {
        for body in ["832040 832041", "{", "caf\u{e9}", "{\"err\":1} "] {
            let is_json = body.ends_with(' ');
            assert_eq!(outcome(&["--error-at=/err"], body).is_ok(), !is_json, "{body}");
        }
        let why = "there is no result at \"/response\": the reply is not JSON";
        assert_eq!(outcome(&["--result-at=/response"], "<html>"), failed(76, why));
        let bytes = read(&["--error-at=/err"], &AmqpProperties::default(), b"\xff\x00");
        assert_eq!(bytes.outcome, Ok(b"\xff\x00".to_vec()));
        assert_eq!(
            outcome(&["--error-at=/err"], r#"{"err":""}"#),
            failed(70, r#"the reply has "" at "/err""#)
        );
    }

    /// What the properties say is an error is one, whatever its body is.
    #[test]
    fn an_error_of_rpc_server() {
        let headers =
            FieldTable::from([("error".into(), AmqpValue::LongString("out-of-range".into()))]);
        let properties = AmqpProperties::default()
            .with_type_("error".into())
            .with_content_type("text/plain".into())
            .with_headers(headers);
        let received = read(&["--result-at=/x"], &properties, b"too large");
        assert_eq!(
            received.to_string(),
            r#"reply: out-of-range, headers {"error":"out-of-range"}"#
        );
        assert_eq!(received.content_type.as_deref(), Some("text/plain"));
        let failure = received.outcome.unwrap_err();
        assert_eq!((failure.kind.name(), failure.message.as_str()), ("out-of-range", "too large"));
        assert_eq!(read(&[], &AmqpProperties::default(), b"1").to_string(), "reply: result");
    }

    /// Digits by the million, as deep as it gets.
    #[test]
    fn hostile_json() {
        let deep = "[".repeat(1_000_000);
        assert_eq!(outcome(&["--error-at=/0/0"], &deep), Ok(deep.clone()));
        let deep = format!("{deep}{}", "]".repeat(1_000_000));
        assert!(outcome(&["--result-at=/0/0"], &deep).is_ok());
    }
}
