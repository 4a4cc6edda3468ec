//! Times as people type them.

use seclog_proto::rfc3339;

const SECOND_NS: u64 = 1_000_000_000;

/// `2026-11-23T22:30:04Z` with any offset; `2026-11-23`, `2026-11-23 22:30` or with seconds, in UTC; or so long ago: `90s`,
/// `15m`, `2h`, `7d`, `2w`.
pub(super) fn parse(text: &str, now: u64) -> Result<u64, String> {
    let text = text.trim();
    if let Some(ago) = ago(text) {
        return Ok(now.saturating_sub(ago));
    }
    let form = text.replacen(' ', "T", 1);
    let full = match form.len() {
        10 => format!("{form}T00:00:00Z"),
        16 => format!("{form}:00Z"),
        19 => format!("{form}Z"),
        _ => form.clone(),
    };
    let time = rfc3339::parse(&form).or_else(|| rfc3339::parse(&full));
    time.ok_or_else(|| {
        format!("{text:?} is no time: use 2026-11-23, \"2026-11-23 22:30\" (UTC), RFC 3339, or an age as 15m, 2h, 7d")
    })
}

fn ago(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(seconds)?.checked_mul(SECOND_NS)
}

#[cfg(test)]
mod tests {
    use super::parse;
    use seclog_proto::rfc3339;

    #[test]
    fn times_read_as_people_type_them() {
        let now = rfc3339::parse("2026-11-24T10:00:00Z").unwrap();
        for (text, time) in [
            ("2026-11-23", "2026-11-23T00:00:00Z"),
            ("2026-11-23 22:30", "2026-11-23T22:30:00Z"),
            ("2026-11-23T22:30:04", "2026-11-23T22:30:04Z"),
            ("2026-11-23T22:30:04.5+01:00", "2026-11-23T21:30:04.5Z"),
            ("15m", "2026-11-24T09:45:00Z"),
            ("1d", "2026-11-23T10:00:00Z"),
            ("0s", "2026-11-24T10:00:00Z"),
        ] {
            assert_eq!(parse(text, now), Ok(rfc3339::parse(time).unwrap()), "{text}");
        }
        for text in ["", "m", "yesterday", "2026-13-01", "15", "ä", "99999999999999999w", "2026-11-23 25:00"] {
            assert!(parse(text, now).is_err(), "{text}");
        }
    }
}
