//! A message's headers as one JSON object, for programs: so that no message chooses the name of a variable, and none can
//! fill an environment.
//!
//! AMQP's numbers, of whatever size, are numbers there, also times (seconds since 1970) and decimals; text is text, bytes
//! are text in base64, tables are objects. What has no value is null, and so is what is no number in JSON: infinity.

use amiquip::{AmqpValue, FieldTable};
use base64::prelude::{BASE64_STANDARD, Engine};
use serde::{Serialize, Serializer};
use std::io::{self, Write};

/// The largest object, in bytes. Linux takes a variable of up to 128 KiB (execve(2)).
pub const LIMIT: usize = 64 << 10;

/// What a message without headers has.
static NONE: FieldTable = FieldTable::new();

/// Headers that are no larger than [`LIMIT`] as JSON.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Headers<'a>(&'a FieldTable);

impl<'a> Headers<'a> {
    /// Returns a message's headers, which it may have none of. None: as JSON, they are larger than [`LIMIT`].
    pub fn new(table: Option<&'a FieldTable>) -> Option<Headers<'a>> {
        let headers = Headers(table.unwrap_or(&NONE));
        serde_json::to_writer(Room(LIMIT), &headers).is_ok().then_some(headers)
    }

    /// Returns them as a JSON object on one line.
    pub fn to_json(self) -> String {
        // It could be written when they were made.
        serde_json::to_string(&self).unwrap_or_default()
    }
}

impl Serialize for Headers<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, Value(value))))
    }
}

struct Value<'a>(&'a AmqpValue);

impl Serialize for Value<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            AmqpValue::Boolean(value) => serializer.serialize_bool(*value),
            AmqpValue::ShortShortInt(value) => serializer.serialize_i8(*value),
            AmqpValue::ShortShortUInt(value) => serializer.serialize_u8(*value),
            AmqpValue::ShortInt(value) => serializer.serialize_i16(*value),
            AmqpValue::ShortUInt(value) => serializer.serialize_u16(*value),
            AmqpValue::LongInt(value) => serializer.serialize_i32(*value),
            AmqpValue::LongUInt(value) => serializer.serialize_u32(*value),
            AmqpValue::LongLongInt(value) => serializer.serialize_i64(*value),
            AmqpValue::Timestamp(value) => serializer.serialize_u64(*value),
            AmqpValue::Float(value) => serializer.serialize_f32(*value),
            AmqpValue::Double(value) => serializer.serialize_f64(*value),
            AmqpValue::DecimalValue(value) => {
                let unit = 10_f64.powi(value.scale.into());
                serializer.serialize_f64(f64::from(value.value) / unit)
            }
            AmqpValue::LongString(value) => serializer.serialize_str(value),
            AmqpValue::ByteArray(value) => serializer.serialize_str(&BASE64_STANDARD.encode(value)),
            AmqpValue::FieldArray(values) => serializer.collect_seq(values.iter().map(Value)),
            AmqpValue::FieldTable(table) => Headers(table).serialize(serializer),
            AmqpValue::Void => serializer.serialize_unit(),
        }
    }
}

/// Takes so many bytes, and then no more.
struct Room(usize);

impl Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::WriteZero)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(table: FieldTable) -> Option<String> {
        Headers::new(Some(&table)).map(Headers::to_json)
    }

    #[test]
    fn values_of_every_type() {
        let decimal = amq_protocol::types::DecimalValue { scale: 2, value: 4_294_967_295 };
        for (value, expected) in [
            (AmqpValue::Boolean(true), "true"),
            (AmqpValue::ShortShortInt(-128), "-128"),
            (AmqpValue::ShortShortUInt(255), "255"),
            (AmqpValue::ShortInt(-1), "-1"),
            (AmqpValue::ShortUInt(65_535), "65535"),
            (AmqpValue::LongInt(-1), "-1"),
            (AmqpValue::LongUInt(u32::MAX), "4294967295"),
            (AmqpValue::LongLongInt(i64::MIN), "-9223372036854775808"),
            (AmqpValue::Timestamp(u64::MAX), "18446744073709551615"),
            (AmqpValue::Float(0.5), "0.5"),
            (AmqpValue::Double(0.1), "0.1"),
            (AmqpValue::Double(f64::INFINITY), "null"),
            (AmqpValue::DecimalValue(decimal), "42949672.95"),
            (AmqpValue::LongString("a\0\"\n".into()), r#""a\u0000\"\n""#),
            (AmqpValue::ByteArray(b"caf\xe9".to_vec()), r#""Y2Fm6Q==""#),
            (AmqpValue::FieldArray(vec![AmqpValue::Void, AmqpValue::LongInt(1)]), "[null,1]"),
            (AmqpValue::FieldTable([("b".into(), AmqpValue::Void)].into()), r#"{"b":null}"#),
            (AmqpValue::Void, "null"),
        ] {
            let table = FieldTable::from([("a".into(), value)]);
            assert_eq!(json(table), Some(format!(r#"{{"a":{expected}}}"#)));
        }
        assert_eq!(Headers::new(None).map(Headers::to_json).as_deref(), Some("{}"));
    }

    #[test]
    fn no_more_than_the_limit() {
        let table = |length| {
            let text = AmqpValue::LongString("x".repeat(length));
            FieldTable::from([("a".into(), text)])
        };
        let around = r#"{"a":""}"#.len();
        assert_eq!(json(table(LIMIT - around)).map(|json| json.len()), Some(LIMIT));
        assert_eq!(json(table(LIMIT - around + 1)), None);
    }
}
