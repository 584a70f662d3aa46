//! The headers that a client's requests have, as its options name them.

use crate::amqp::name;
use amiquip::{AmqpValue, FieldTable};
use std::str::FromStr;

/// Headers by which RabbitMQ routes a message to more queues (RabbitMQ, "Sender-selected Distribution"). It closes the
/// channel if one is not a list, and here each is a string.
const LISTS: [&str; 2] = ["CC", "BCC"];

/// What a header takes beside its name and its value: their lengths, and the value's type (AMQP 0-9-1, section 4.2.5.5).
const OVERHEAD: usize = 6;

/// A header: a name of 1 to 255 bytes, and a string.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: String,
    value: String,
}

impl FromStr for Header {
    type Err = String;

    /// Reads `NAME: VALUE`. White space around both is none of theirs.
    fn from_str(text: &str) -> Result<Header, String> {
        let form = "a header is written as 'NAME: VALUE'";
        let (header, value) = text.split_once(':').ok_or(form)?;
        let header = name(header.trim())?;
        if LISTS.contains(&header.as_str()) {
            return Err(format!(
                "{header} is a list of routing keys for RabbitMQ, and here a header is a string"
            ));
        }
        Ok(Header { name: header, value: value.trim().into() })
    }
}

/// Returns the table that goes with a message. None: there are no headers.
pub fn table(headers: &[Header]) -> Option<FieldTable> {
    let fields = headers
        .iter()
        .map(|header| (header.name.clone(), AmqpValue::LongString(header.value.clone())));
    Some(fields.collect()).filter(|table: &FieldTable| !table.is_empty())
}

/// Returns how many bytes the headers take in a message.
pub fn size(headers: &[Header]) -> usize {
    headers.iter().map(|header| header.name.len() + header.value.len() + OVERHEAD).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_a_name_and_a_string() {
        for (text, name, value) in [
            ("task: tasks.add", "task", "tasks.add"),
            ("id:1", "id", "1"),
            ("a:", "a", ""),
            ("time: 12:30", "time", "12:30"),
            ("Content Type :  x ", "Content Type", "x"),
        ] {
            let header = Header { name: name.into(), value: value.into() };
            assert_eq!(text.parse(), Ok(header), "{text}");
        }
        let long = format!("{}: x", "n".repeat(256));
        for (text, why) in [
            ("task", "a header is written as 'NAME: VALUE'"),
            (": x", "a name cannot be empty"),
            (&long, "a name has at most 255 bytes, and this one has 256"),
            ("BCC: q", "BCC is a list of routing keys for RabbitMQ, and here a header is a string"),
        ] {
            assert_eq!(text.parse::<Header>(), Err(why.into()), "{text}");
        }
    }

    #[test]
    fn no_headers_are_no_table() {
        assert_eq!((table(&[]), size(&[])), (None, 0));
        let header: Header = "id: 1".parse().unwrap();
        assert_eq!(size(std::slice::from_ref(&header)), 9);
        let expected = FieldTable::from([("id".into(), AmqpValue::LongString("1".into()))]);
        assert_eq!(table(&[header]), Some(expected));
    }
}
