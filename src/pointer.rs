//! JSON pointers (RFC 6901): where in a reply of somebody else's server the result stands, or its error. Nothing here
//! does I/O.

use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;
use std::str::FromStr;

/// A pointer into a JSON document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pointer {
    written: String,
    /// The names and indices on the way, without escapes.
    tokens: Vec<String>,
}

impl Pointer {
    /// Returns the pointer as it was written.
    pub fn as_str(&self) -> &str {
        &self.written
    }

    /// Returns the JSON that the pointer leads to, just as it stands in `document`: a number keeps all its digits, an
    /// object its order. None: nothing is there.
    pub fn find<'a>(&self, document: &'a RawValue) -> Option<&'a RawValue> {
        self.tokens.iter().try_fold(document, |json, token| child(json, token))
    }
}

impl FromStr for Pointer {
    type Err = String;

    /// Reads a pointer. The empty one leads to the whole document.
    fn from_str(text: &str) -> Result<Pointer, String> {
        let mut parts = text.split('/');
        if parts.next() != Some("") {
            return Err(format!("a JSON pointer begins with a slash: /{text}"));
        }
        let tokens = parts.map(unescaped).collect::<Option<_>>();
        let tokens = tokens.ok_or("in a JSON pointer, ~0 is a ~ and ~1 a slash")?;
        Ok(Pointer { written: text.into(), tokens })
    }
}

/// Returns a pointer's token without its escapes. None: a `~` is none.
fn unescaped(token: &str) -> Option<String> {
    let mut pieces = token.split('~');
    let mut text = pieces.next()?.to_owned();
    for piece in pieces {
        let (sign, rest) = match piece.as_bytes().first()? {
            b'0' => ('~', &piece[1..]),
            b'1' => ('/', &piece[1..]),
            _ => return None,
        };
        text.push(sign);
        text.push_str(rest);
    }
    Some(text)
}

/// Returns what an object has under a name, or an array at an index. One level is read at a time, and nothing of it kept
/// that is not wanted, so that a large document takes no more memory than it has.
fn child<'a>(json: &'a RawValue, token: &str) -> Option<&'a RawValue> {
    // What is neither an object nor an array is an error, and so has nothing.
    serde_json::Deserializer::from_str(json.get()).deserialize_any(Child(token)).ok()?
}

/// Finds what has this name or index. Of several, the last.
struct Child<'t>(&'t str);

impl<'de> Visitor<'de> for Child<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object or an array")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = object.next_key::<String>()? {
            match name == self.0 {
                true => found = Some(object.next_value()?),
                false => drop(object.next_value::<IgnoredAny>()?),
            }
        }
        Ok(found)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let wanted = index(self.0);
        let (mut found, mut at) = (None, 0);
        while let Some(element) = array.next_element()? {
            if wanted == Some(at) {
                found = Some(element);
            }
            at += 1;
        }
        Ok(found)
    }
}

/// Returns an array's index, which has no leading zeros.
fn index(token: &str) -> Option<usize> {
    let is_index =
        token == "0" || !token.starts_with('0') && token.bytes().all(|byte| byte.is_ascii_digit());
    token.parse().ok().filter(|_| is_index)
}

/// Returns a JSON string's text, and anything else as it stands.
pub fn text_of(json: &RawValue) -> String {
    serde_json::from_str(json.get()).unwrap_or_else(|_| json.get().to_owned())
}

/// What makes a reply an error: something that stands somewhere in its JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ErrorAt {
    /// Where it stands.
    pub pointer: Pointer,
    /// What it must be. None: anything but null and false.
    pub value: Option<String>,
}

impl ErrorAt {
    /// Returns what says that this `document` is an error, if anything does.
    pub fn find<'a>(&self, document: &'a RawValue) -> Option<&'a RawValue> {
        let found = self.pointer.find(document)?;
        let is_error = match &self.value {
            Some(value) => text_of(found) == *value,
            None => !matches!(found.get(), "null" | "false"),
        };
        is_error.then_some(found)
    }
}

impl FromStr for ErrorAt {
    type Err = String;

    /// Reads `POINTER` or `POINTER=VALUE`: the first `=` ends the pointer.
    fn from_str(text: &str) -> Result<ErrorAt, String> {
        let (pointer, value) = match text.split_once('=') {
            Some((pointer, value)) => (pointer, Some(value.to_owned())),
            None => (text, None),
        };
        Ok(ErrorAt { pointer: pointer.parse()?, value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(pointer: &str, document: &str) -> Option<String> {
        let document = serde_json::from_str(document).unwrap();
        let pointer: Pointer = pointer.parse().unwrap();
        pointer.find(document).map(|json| json.get().to_owned())
    }

    /// The examples of RFC 6901, section 5, but for those that differ in nothing else from others.
    #[test]
    fn pointers_lead_where_the_rfc_says() {
        let document =
            r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"i\\j":5,"k\"l":6," ":7,"m~n":8}"#;
        for (pointer, found) in [
            ("", document),
            ("/foo", r#"["bar","baz"]"#),
            ("/foo/0", r#""bar""#),
            ("/", "0"),
            ("/a~1b", "1"),
            ("/c%d", "2"),
            ("/i\\j", "5"),
            ("/k\"l", "6"),
            ("/ ", "7"),
            ("/m~0n", "8"),
        ] {
            assert_eq!(find(pointer, document).as_deref(), Some(found), "{pointer}");
        }
        for nowhere in ["/foo/2", "/foo/00", "/foo/-", "/foo/+1", "/foo/", "/bar", "/foo/0/0"] {
            assert_eq!(find(nowhere, document), None, "{nowhere}");
        }
        assert_eq!(find("/a", r#"{"a":1,"b":[{"a":3}],"a":2}"#).as_deref(), Some("2"));
        // ~01 is ~1, and not a slash.
        assert_eq!(find("/~01", r#"{"~1":1,"/":2}"#).as_deref(), Some("1"));
    }

    #[test]
    fn what_is_found_is_as_it_was_written() {
        let document =
            r#"{"n": 280571172992510140037611932413038677189525, "o": {"b": 1.0, "a": 1E2}}"#;
        let fib = "280571172992510140037611932413038677189525";
        assert_eq!(find("/n", document).as_deref(), Some(fib));
        assert_eq!(find("/o", document).as_deref(), Some(r#"{"b": 1.0, "a": 1E2}"#));
    }

    #[test]
    fn what_is_no_pointer_is_refused() {
        for (text, why) in [
            ("err", "a JSON pointer begins with a slash: /err"),
            ("=FAILURE2", ""),
            ("/a~", "in a JSON pointer, ~0 is a ~ and ~1 a slash"),
            ("/a~2", "in a JSON pointer, ~0 is a ~ and ~1 a slash"),
            ("/a~~0", "in a JSON pointer, ~0 is a ~ and ~1 a slash"),
        ] {
            let refused = ErrorAt::from_str(text).err().unwrap_or_default();
            assert_eq!(refused, why, "{text}");
        }
    }

    #[test]
    fn an_error_is_what_is_there_or_has_the_value() {
        let is_error = |at: &str, document: &str| {
            let at: ErrorAt = at.parse().unwrap();
            at.find(serde_json::from_str(document).unwrap()).map(text_of)
        };
        for (document, sentence) in [
            (r#"{"err":"no"}"#, Some("no")),
            (r#"{"err":{"message":"no"}}"#, Some(r#"{"message":"no"}"#)),
            (r#"{"err":0}"#, Some("0")),
            (r#"{"err":""}"#, Some("")),
            (r#"{"err":null}"#, None),
            (r#"{"err":false}"#, None),
            (r#"{"response":1}"#, None),
            ("[1]", None),
            ("1", None),
        ] {
            assert_eq!(is_error("/err", document).as_deref(), sentence, "{document}");
        }
        for (at, document, is) in [
            ("/status=FAILURE", r#"{"status":"FAILURE"}"#, true),
            ("/status=FAILURE", r#"{"status":"SUCCESS"}"#, false),
            ("/status=FAILURE", "{}", false),
            ("/code=500", r#"{"code":500}"#, true),
            ("/ok=false", r#"{"ok":false}"#, true),
            ("/a=b=c", r#"{"a":"b=c"}"#, true),
            ("/a=", r#"{"a":""}"#, true),
        ] {
            assert_eq!(is_error(at, document).is_some(), is, "{at} of {document}");
        }
    }
}
