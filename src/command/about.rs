//! What a program is told of its request beside the input: in environment variables, or in the object that a program which
//! stays gets.

use crate::json_headers::{self, Headers};
use crate::terminal::text::excerpt;
use amiquip::FieldTable;
use log::warn;

/// What a request says beside its argument, as far as programs are told. A text is 0 to 255 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct About<'a> {
    /// The procedure that it names; empty if it names none.
    pub procedure: &'a str,
    /// Its correlation id, if it has one.
    pub correlation_id: Option<&'a str>,
    /// What the argument is, as far as the caller says.
    pub content_type: Option<&'a str>,
    /// The key that it was published with. None: it did not come from a broker.
    pub routing_key: Option<&'a str>,
    /// Its property `type`, if it has one.
    pub message_type: Option<&'a str>,
    /// Its headers, if it has any.
    pub headers: Option<&'a FieldTable>,
    /// Whether it was delivered before.
    pub is_redelivered: bool,
}

impl<'a> About<'a> {
    /// Returns the headers for a program. None, with a warning: they are too large.
    pub fn headers(&self) -> Option<Headers<'a>> {
        let headers = Headers::new(self.headers);
        if headers.is_none() {
            warn!(
                "the headers of a request for \"{}\" are over {} KiB of JSON, and are kept from the program",
                excerpt(self.procedure.as_bytes()),
                json_headers::LIMIT >> 10
            );
        }
        headers
    }
}

/// The environment variables that belong to a call: none for a program that is started for more than one.
#[derive(Debug, Default)]
pub struct CallVariables<'a> {
    about: About<'a>,
    headers: Option<String>,
    redelivered: Option<&'a str>,
    time_limit: Option<String>,
}

impl<'a> CallVariables<'a> {
    /// Returns the variables of a call that has so many seconds left, if its time is limited.
    pub fn new(about: About<'a>, seconds: Option<f64>) -> CallVariables<'a> {
        CallVariables {
            about,
            headers: about.headers().map(Headers::to_json),
            redelivered: Some(if about.is_redelivered { "1" } else { "0" }),
            time_limit: seconds.map(|seconds| format!("{seconds:.3}")),
        }
    }

    /// Returns each variable that a call can have, with its value if this one has it. `name` is the procedure's, where it
    /// is not the call that says so.
    pub fn all<'b>(&'b self, name: &'b str) -> [(&'static str, Option<&'b str>); 8] {
        let is_of_call = self.redelivered.is_some();
        [
            ("RPC_PROCEDURE", Some(if is_of_call { self.about.procedure } else { name })),
            ("RPC_CORRELATION_ID", self.about.correlation_id),
            ("RPC_CONTENT_TYPE", self.about.content_type),
            ("RPC_ROUTING_KEY", self.about.routing_key),
            ("RPC_TYPE", self.about.message_type),
            ("RPC_HEADERS", self.headers.as_deref()),
            ("RPC_REDELIVERED", self.redelivered),
            ("RPC_TIME_LIMIT", self.time_limit.as_deref()),
        ]
    }
}
