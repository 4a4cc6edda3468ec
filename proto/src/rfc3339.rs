//! Nanoseconds since 1970 as RFC 3339 text in UTC, for JSON: numbers of that size do not survive every JSON reader.

use serde::{Deserialize, Deserializer, Serializer, de::Error as _};
use time::{OffsetDateTime, format_description::well_known::Rfc3339, macros::format_description};

/// `2026-11-23T22:30:04.372321256Z`. Every `u64` has such a form.
pub fn format(unix_ns: u64) -> String {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:9]Z");
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ns))
        .ok()
        .and_then(|time| time.format(form).ok())
        .unwrap_or_else(|| unix_ns.to_string())
}

/// Any RFC 3339 time from 1970 to 2554; `None` otherwise.
pub fn parse(text: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp_nanos()).ok()
}

pub fn serialize<S: Serializer>(unix_ns: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&format(*unix_ns))
}

pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse(&text).ok_or_else(|| D::Error::custom(format!("not an RFC 3339 time from 1970 to 2554: {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::{format, parse};
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_time_reads_back(unix_ns: u64) {
            prop_assert_eq!(parse(&format(unix_ns)), Some(unix_ns));
        }
    }

    #[test]
    fn times_before_1970_and_other_text_are_refused() {
        assert_eq!(parse("1969-12-31T23:59:59Z"), None);
        assert_eq!(parse("yesterday"), None);
        assert_eq!(parse("1970-01-01T01:00:00.5+01:00"), Some(500_000_000));
    }
}
