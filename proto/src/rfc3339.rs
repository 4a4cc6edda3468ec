//! Nanoseconds since 1970 as RFC 3339 text in UTC, for JSON: numbers of that size do not survive every JSON reader.

use serde::{Deserialize, Deserializer, Serializer, de::Error as _};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// `2026-11-23T22:30:04.372321256Z`. Every `u64` has such a form.
pub fn format(unix_ns: u64) -> String {
    Text::new(unix_ns).as_str().to_owned()
}

/// The form without an allocation: every record has at least one time.
struct Text([u8; 30]);

impl Text {
    /// Days to a date by eras of 400 years from the first of March of the year 0, as in
    /// <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>; no `u64` is later than 2554.
    fn new(unix_ns: u64) -> Self {
        const DAY: u64 = 86_400;
        let (seconds, nanoseconds) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
        let (days, second) = (seconds / DAY + 719_468, seconds % DAY);
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * from_march + 2) / 5 + 1;
        let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
        let year = 400 * era + year_of_era + u64::from(month <= 2);

        let mut text = *b"0000-00-00T00:00:00.000000000Z";
        let fields = [
            (0..4, year),
            (5..7, month),
            (8..10, day),
            (11..13, second / 3600),
            (14..16, second / 60 % 60),
            (17..19, second % 60),
            (20..29, nanoseconds),
        ];
        for (place, mut value) in fields {
            for digit in text[place].iter_mut().rev() {
                *digit = b'0' + (value % 10) as u8;
                value /= 10;
            }
        }
        Self(text)
    }

    fn as_str(&self) -> &str {
        // ASCII by the lines above.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Any RFC 3339 time from 1970 to 2554; `None` otherwise.
pub fn parse(text: &str) -> Option<u64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    u64::try_from(time.unix_timestamp_nanos()).ok()
}

pub fn serialize<S: Serializer>(unix_ns: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(Text::new(*unix_ns).as_str())
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
    fn leap_days_and_the_ends_of_the_range_are_written() {
        for (unix_ns, text) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (951_782_399_999_999_999, "2000-02-28T23:59:59.999999999Z"),
            (951_782_400_000_000_000, "2000-02-29T00:00:00.000000000Z"),
            (4_107_542_400_000_000_001, "2100-03-01T00:00:00.000000001Z"),
            (u64::MAX, "2554-07-21T23:34:33.709551615Z"),
        ] {
            assert_eq!(format(unix_ns), text);
        }
    }

    #[test]
    fn times_before_1970_and_other_text_are_refused() {
        assert_eq!(parse("1969-12-31T23:59:59Z"), None);
        assert_eq!(parse("yesterday"), None);
        assert_eq!(parse("1970-01-01T01:00:00.5+01:00"), Some(500_000_000));
    }
}
