//! Requests and replies, to and from AMQP messages. Both directions of each are side by side,
//! so that what one program writes can be checked against what the other reads.
//!
//! Request: `reply_to` and `correlation_id` as in RabbitMQ's tutorial six, the procedure's name
//! in `app_id` (absent, as in what the tutorial's clients send: the server's first one, `fib` unless
//! its options say otherwise), the argument as the body. Reply: the request's `correlation_id`;
//! `type` says `result` or `error` (absent means `result`, which is what the tutorial's servers
//! send). A result may be any bytes. On an error the header `error` has its kind, `exit_code` what a
//! program exited with, if it did, `stderr` the end of what it wrote to standard error, and the body is a sentence, in
//! JSON where results are JSON.

use crate::amqp::sanitizer::SUBSTITUTE;
use crate::command::{About, STDERR_LIMIT};
use crate::error::{ErrorKind, Failure, FailureKind};
use crate::json_error::{self, is_json};
use crate::procedure::{Error, Outcome};
use crate::terminal::text;
use amiquip::{AmqpProperties, AmqpValue, Delivery, FieldTable, Publish};
use clap::ValueEnum;
use std::fmt;
use std::time::Duration;

/// Longest expiration that RabbitMQ takes, in milliseconds: 2³² − 1, some 49 days.
pub const MAX_EXPIRATION: Duration = Duration::from_millis(u32::MAX as u64);

const TYPE_RESULT: &str = "result";
const TYPE_ERROR: &str = "error";
const HEADER_ERROR: &str = "error";
const HEADER_EXIT_CODE: &str = "exit_code";
const HEADER_STDERR: &str = "stderr";

/// A call, as it stands in a message.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Request<'a> {
    /// The procedure's name: 0 to 255 bytes, none for a message that names none. A worker puts the name of the server's
    /// first procedure into such a delivery before it hands it on.
    pub procedure: &'a str,
    /// The argument. Any bytes: whether they are text is for the server to judge.
    pub argument: &'a [u8],
    /// The queue that awaits the reply: 1 to 255 bytes. None: the request cannot be answered, since it
    /// has no such name, or since that or its correlation id came with bytes that are not UTF-8.
    pub reply_to: Option<&'a str>,
    /// Comes back in the reply, which is how the client tells replies apart.
    pub correlation_id: Option<&'a str>,
    /// How long the broker keeps the request for a server, up to [`MAX_EXPIRATION`]; less than a
    /// millisecond is sent as one. None: for ever.
    pub expiration: Option<Duration>,
    /// What the argument is, as far as the client says. In what is published, an empty text says nothing, and None leaves
    /// it to the argument's bytes.
    pub content_type: Option<&'a str>,
    /// The key that it was delivered with. None: it was not delivered.
    pub routing_key: Option<&'a str>,
    /// Its property `type`. None in what is published.
    pub message_type: Option<&'a str>,
    /// Its headers. None in what is published.
    pub headers: Option<&'a FieldTable>,
    /// Whether the request was delivered before. A request that is published is new.
    pub is_redelivered: bool,
}

impl<'a> Request<'a> {
    /// Returns the message to publish with this routing key; by way of the default exchange, that is the request queue.
    /// `mandatory`: the broker returns it if there is no queue for it.
    pub fn to_publish(&self, routing_key: &str) -> Publish<'a> {
        let mut properties = AmqpProperties::default();
        let content_type = self.content_type.unwrap_or_else(|| content_type(self.argument));
        if !content_type.is_empty() {
            properties = properties.with_content_type(content_type.into());
        }
        if !self.procedure.is_empty() {
            properties = properties.with_app_id(self.procedure.into());
        }
        if let Some(reply_to) = self.reply_to {
            properties = properties.with_reply_to(reply_to.into());
        }
        if let Some(correlation_id) = self.correlation_id {
            properties = properties.with_correlation_id(correlation_id.into());
        }
        if let Some(expiration) = self.expiration {
            // A server may read 0 as no limit at all.
            let milliseconds = expiration.as_millis().max(1);
            properties = properties.with_expiration(milliseconds.to_string());
        }

        let publish = Publish::with_properties(self.argument, routing_key, properties);
        Publish { mandatory: true, ..publish }
    }

    /// Returns the request in a delivery. Every delivery is one: what is wrong with it shows when the
    /// procedure is called, or in the lack of a `reply_to`.
    pub fn from_delivery(delivery: &'a Delivery) -> Request<'a> {
        let request = Request::decode(&delivery.properties, &delivery.body);
        let routing_key = Some(delivery.routing_key.as_str());
        Request { routing_key, is_redelivered: delivery.redelivered, ..request }
    }

    /// Returns the request in a message with these properties and this body.
    pub fn decode(properties: &'a AmqpProperties, body: &'a [u8]) -> Request<'a> {
        let is_whole = |text: &str| !text.as_bytes().contains(&SUBSTITUTE);
        let correlation_id = properties.correlation_id().as_deref();
        let milliseconds = properties.expiration().as_deref().and_then(|ms| ms.parse().ok());
        Request {
            procedure: properties.app_id().as_deref().unwrap_or_default(),
            argument: body,
            reply_to: properties
                .reply_to()
                .as_deref()
                .filter(|name| !name.is_empty() && is_whole(name))
                .filter(|_| correlation_id.is_none_or(is_whole)),
            correlation_id,
            expiration: milliseconds.map(Duration::from_millis),
            content_type: properties.content_type().as_deref(),
            routing_key: None,
            message_type: properties.type_().as_deref(),
            headers: properties.headers().as_ref(),
            is_redelivered: false,
        }
    }

    /// Returns what a program is told of it beside the argument.
    pub fn about(&self) -> About<'a> {
        About {
            procedure: self.procedure,
            correlation_id: self.correlation_id,
            content_type: self.content_type,
            routing_key: self.routing_key,
            message_type: self.message_type,
            headers: self.headers,
            is_redelivered: self.is_redelivered,
        }
    }
}

/// The call as a person knows it, `fib(30)`, each part cut to 64 characters.
impl fmt::Display for Request<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::call(self.procedure, self.argument))
    }
}

/// What the replies of a server are.
#[derive(Debug, Clone, Copy)]
pub struct ReplyFormat<'a> {
    /// What results are said to be. None: text or bytes, whichever each is.
    pub content_type: Option<&'a str>,
    /// The largest body that the broker takes, in bytes.
    pub most: usize,
}

/// An answer: a result, or an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The request's correlation id.
    pub correlation_id: Option<String>,
    /// What the procedure answered. In a reply that goes out, an error's message is the body: a sentence, or JSON.
    pub outcome: Outcome,
    /// What the body is said to be. None in a reply that goes out: text or bytes, whichever it is.
    pub content_type: Option<String>,
}

impl Reply {
    /// Returns the reply to `request` with the procedure's `outcome`; an error instead if the result has
    /// more bytes than there may be. Of an error's sentence, no more than that is told.
    pub fn for_request(
        request: &Request<'_>,
        outcome: Outcome,
        ReplyFormat { content_type, most }: ReplyFormat<'_>,
    ) -> Reply {
        let mut outcome = Reply::bounded(outcome, most);
        let content_type = match &mut outcome {
            Ok(_) => content_type,
            Err(error) => error_body(error, content_type.is_some_and(is_json), most),
        };
        Reply {
            correlation_id: request.correlation_id.map(str::to_owned),
            outcome,
            content_type: content_type.map(str::to_owned),
        }
    }

    /// Returns the `outcome`, or an error instead if that is a result of more than `most` bytes.
    pub fn bounded(outcome: Outcome, most: usize) -> Outcome {
        match outcome {
            Ok(result) if result.len() > most => Err(Reply::too_large(result.len(), most)),
            outcome => outcome,
        }
    }

    /// Returns the error instead of a result of `length` bytes where the broker takes no more than `most`.
    pub fn too_large(length: usize, most: usize) -> Error {
        let message = format!("the result has {length} bytes; the broker takes {most}");
        Error::new(ErrorKind::OutOfRange, message)
    }

    /// Returns what the reply is, for a log: `result`, or the kind of error.
    pub fn kind(&self) -> &'static str {
        match &self.outcome {
            Ok(_) => TYPE_RESULT,
            Err(error) => error.kind.name(),
        }
    }

    /// Returns the message to publish to the queue `reply_to`, by way of the default exchange.
    pub fn to_publish(&self, reply_to: &str) -> Publish<'_> {
        let mut properties = AmqpProperties::default();
        if let Some(correlation_id) = &self.correlation_id {
            properties = properties.with_correlation_id(correlation_id.clone());
        }
        let (body, properties) = match &self.outcome {
            Ok(result) => (&result[..], properties.with_type_(TYPE_RESULT.into())),
            Err(error) => {
                let mut headers = FieldTable::new();
                let kind = AmqpValue::LongString(error.kind.name().into());
                headers.insert(HEADER_ERROR.into(), kind);
                if let Some(code) = error.exit_code {
                    headers.insert(HEADER_EXIT_CODE.into(), AmqpValue::LongInt(code.into()));
                }
                if let Some(stderr) = &error.stderr {
                    let stderr = AmqpValue::LongString(stderr.clone());
                    headers.insert(HEADER_STDERR.into(), stderr);
                }
                let properties = properties.with_type_(TYPE_ERROR.into()).with_headers(headers);
                (error.message.as_bytes(), properties)
            }
        };

        let content_type = self.content_type.as_deref().unwrap_or(content_type(body));
        let properties = properties.with_content_type(content_type.into());
        Publish::with_properties(body, reply_to, properties)
    }

    /// Returns the reply in a message with these properties and this body. An error's sentence may be in JSON. An error of no
    /// known kind is [`ErrorKind::Internal`]. An empty body that is not said to be the result is a
    /// [`FailureKind::BadReply`]: no tutorial's server answers so.
    pub fn decode(properties: &AmqpProperties, body: Vec<u8>) -> Result<Reply, Failure> {
        let outcome = match properties.type_().as_deref() {
            Some(TYPE_ERROR) => Err(Error {
                kind: error_kind(properties),
                message: error_sentence(properties, &body),
                exit_code: exit_code(properties),
                stderr: stderr(properties),
            }),
            kind if body.is_empty() && kind != Some(TYPE_RESULT) => {
                let message = "the reply is empty: what answered is not an RPC server";
                return Err(Failure::new(FailureKind::BadReply, message));
            }
            _ => Ok(body),
        };
        Ok(Reply {
            correlation_id: properties.correlation_id().clone(),
            outcome,
            content_type: properties.content_type().clone(),
        })
    }
}

/// Makes an error's message its body, of at most `most` bytes, and returns its content type, if that has to be said.
fn error_body(error: &mut Error, is_json: bool, most: usize) -> Option<&'static str> {
    if is_json {
        error.message = json_error::encode(error.kind, &error.message, most);
        return Some(json_error::CONTENT_TYPE);
    }
    while error.message.len() > most {
        error.message.pop();
    }
    None
}

/// Returns the sentence in the body of an error.
fn error_sentence(properties: &AmqpProperties, body: &[u8]) -> String {
    let is_json = properties.content_type().as_deref().is_some_and(is_json);
    let sentence = if is_json { json_error::decode(body) } else { None };
    sentence.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned())
}

fn content_type(body: &[u8]) -> &'static str {
    let is_text = body.is_ascii() || std::str::from_utf8(body).is_ok();
    if is_text { "text/plain" } else { "application/octet-stream" }
}

fn header<'a>(properties: &'a AmqpProperties, name: &str) -> Option<&'a AmqpValue> {
    properties.headers().as_ref()?.get(name)
}

/// Returns the exit code in the headers. Client libraries differ in the type that they choose for a small number.
fn exit_code(properties: &AmqpProperties) -> Option<u8> {
    let code: i64 = match *header(properties, HEADER_EXIT_CODE)? {
        AmqpValue::ShortShortInt(code) => code.into(),
        AmqpValue::ShortShortUInt(code) => code.into(),
        AmqpValue::ShortInt(code) => code.into(),
        AmqpValue::ShortUInt(code) => code.into(),
        AmqpValue::LongInt(code) => code.into(),
        AmqpValue::LongUInt(code) => code.into(),
        AmqpValue::LongLongInt(code) => code,
        _ => return None,
    };
    code.try_into().ok()
}

fn stderr(properties: &AmqpProperties) -> Option<String> {
    let AmqpValue::LongString(stderr) = header(properties, HEADER_STDERR)? else { return None };
    Some(text::last_bytes(stderr, STDERR_LIMIT).into())
}

fn error_kind(properties: &AmqpProperties) -> ErrorKind {
    let Some(AmqpValue::LongString(name)) = header(properties, HEADER_ERROR) else {
        return ErrorKind::Internal;
    };
    let known = ErrorKind::value_variants().iter().find(|kind| kind.name() == name);
    known.copied().unwrap_or(ErrorKind::Internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_the_tutorials_properties_and_the_procedure() {
        let request = Request {
            procedure: "fun",
            argument: b"7",
            reply_to: Some("amq.gen-x"),
            correlation_id: Some("id"),
            expiration: Some(Duration::from_millis(1_500)),
            ..Request::default()
        };
        let publish = request.to_publish("rpc_queue");
        assert_eq!((publish.body, publish.routing_key.as_str()), (&b"7"[..], "rpc_queue"));
        assert!(publish.mandatory);
        let properties = AmqpProperties::default()
            .with_content_type("text/plain".into())
            .with_app_id("fun".into())
            .with_reply_to("amq.gen-x".into())
            .with_correlation_id("id".into())
            .with_expiration("1500".into());
        assert_eq!(publish.properties, properties);
        let bytes = Request { argument: b"caf\xe9", ..request }.to_publish("rpc_queue");
        assert_eq!(bytes.properties.content_type().as_deref(), Some("application/octet-stream"));
    }

    /// A server may read 0 as no limit at all.
    #[test]
    fn less_than_a_millisecond_is_sent_as_one() {
        for (microseconds, sent) in [(0, "1"), (1, "1"), (999, "1"), (1_999, "1"), (2_000, "2")] {
            let expiration = Some(Duration::from_micros(microseconds));
            let publish = Request { expiration, ..Request::default() }.to_publish("rpc_queue");
            assert_eq!(publish.properties.expiration().as_deref(), Some(sent), "{microseconds}");
        }
    }

    #[test]
    fn a_request_whose_ids_were_mended_cannot_be_answered() {
        let readable = AmqpProperties::default()
            .with_reply_to("amq.gen-x".into())
            .with_correlation_id("id".into());
        let properties = [
            readable.clone(),
            readable.clone().with_reply_to("amq.gen-\u{1a}".into()),
            readable.with_correlation_id("\u{1a}\u{1a}".into()),
        ];
        let reply_to = properties.each_ref().map(|all| Request::decode(all, b"").reply_to);
        assert_eq!(reply_to, [Some("amq.gen-x"), None, None]);
    }

    #[test]
    fn an_error_names_its_kind_in_a_header() {
        for &kind in ErrorKind::value_variants() {
            let reply = Reply {
                correlation_id: None,
                outcome: Err(Error::new(kind, "no")),
                content_type: None,
            };
            let properties = reply.to_publish("q").properties;
            assert_eq!(properties.type_().as_deref(), Some("error"));
            assert_eq!(error_kind(&properties), kind);
        }
        assert_eq!(error_kind(&AmqpProperties::default()), ErrorKind::Internal);
    }

    #[test]
    fn an_exit_code_is_a_number_of_any_type_and_fits_a_byte() {
        let sent = Error { exit_code: Some(255), ..Error::new(ErrorKind::Internal, "no") };
        let reply = Reply { correlation_id: None, outcome: Err(sent), content_type: None };
        assert_eq!(exit_code(&reply.to_publish("q").properties), Some(255));
        for (value, code) in [
            (AmqpValue::ShortShortInt(7), Some(7)),
            (AmqpValue::ShortShortUInt(255), Some(255)),
            (AmqpValue::ShortInt(128), Some(128)),
            (AmqpValue::ShortUInt(256), None),
            (AmqpValue::LongInt(-1), None),
            (AmqpValue::LongUInt(7), Some(7)),
            (AmqpValue::LongLongInt(7), Some(7)),
            (AmqpValue::LongString("7".into()), None),
        ] {
            let mut headers = FieldTable::new();
            headers.insert(HEADER_EXIT_CODE.into(), value.clone());
            let properties = AmqpProperties::default().with_headers(headers);
            assert_eq!(exit_code(&properties), code, "{value:?}");
        }
    }

    #[test]
    fn what_a_program_wrote_to_standard_error_goes_with_its_error() {
        for (sent, received) in
            [("why\n".into(), "why\n".into()), ("é".repeat(4_000), "é".repeat(STDERR_LIMIT / 2))]
        {
            let error = Error { stderr: Some(sent), ..Error::new(ErrorKind::Internal, "no") };
            let reply = Reply { correlation_id: None, outcome: Err(error), content_type: None };
            assert_eq!(stderr(&reply.to_publish("q").properties), Some(received));
        }
        let mut headers = FieldTable::new();
        headers.insert(HEADER_STDERR.into(), AmqpValue::LongInt(1));
        assert_eq!(stderr(&AmqpProperties::default().with_headers(headers)), None);
    }

    #[test]
    fn a_result_that_no_broker_takes_is_an_error() {
        let request =
            Request { procedure: "fun", correlation_id: Some("id"), ..Request::default() };
        let format = ReplyFormat { content_type: None, most: 5 };
        let fits = Reply::for_request(&request, Ok(b"00000".to_vec()), format);
        assert_eq!(fits.outcome, Ok("00000".into()));
        let reply = Reply::for_request(&request, Ok(b"000000".to_vec()), format);
        assert_eq!(reply.correlation_id.as_deref(), Some("id"));
        let error = reply.outcome.unwrap_err();
        assert_eq!((error.kind, error.message.as_str()), (ErrorKind::OutOfRange, "the r"));
    }

    #[test]
    fn what_replies_are_said_to_be() {
        let id = Request { correlation_id: Some("id"), ..Request::default() };
        let sentence = "no \"such\" thing";
        let json = r#"{"error":{"kind":"internal","message":"no \"such\" thing"}}"#;
        for (content_type, of_error, body) in [
            (None, "text/plain", sentence),
            (Some("image/png"), "text/plain", sentence),
            (Some("application/json"), "application/json", json),
            (Some("application/geo+json"), "application/json", json),
        ] {
            let format = ReplyFormat { content_type, most: 100 };
            let result = Reply::for_request(&id, Ok("1".into()), format);
            let published = result.to_publish("q");
            let said = published.properties.content_type().as_deref();
            assert_eq!(said, content_type.or(Some("text/plain")));

            let error = Error::new(ErrorKind::Internal, sentence);
            let reply = Reply::for_request(&id, Err(error.clone()), format);
            let published = reply.to_publish("q");
            assert_eq!(published.properties.content_type().as_deref(), Some(of_error));
            assert_eq!(str::from_utf8(published.body), Ok(body));
            let read = Reply::decode(&published.properties, published.body.into()).unwrap();
            assert_eq!(read.outcome, Err(error));
        }
    }
}
