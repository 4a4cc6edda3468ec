//! What the filter lets go, the whole parse would not have kept: whatever the bytes, as a line, as an event and within a body.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seclog_correlator::audit::{Decision, Event, Filter};
use serde_json::Value;

/// The whole parse; where a key stands twice, by whichever reading makes more of it.
fn is_kept(json: &[u8]) -> bool {
    let text = String::from_utf8_lossy(json);
    let strict = serde_json::from_str::<Event>(&text).ok();
    let last_wins = || serde_json::from_value::<Event>(serde_json::from_str::<Value>(&text).ok()?).ok();
    strict.or_else(last_wins).is_some_and(|event| event.head().kept().is_some())
}

fuzz_target!(|data: &[u8]| {
    for (at, line) in data.split(|byte| *byte == b'\n').enumerate() {
        let line = line.trim_ascii_end();
        if is_kept(line) {
            assert_eq!(Filter::default().event(line), Decision::Look, "an event that matters was let go");
            let mut looked_at = 0;
            Filter::default().lines(line, |_, _| looked_at += 1);
            assert_eq!(looked_at, 1, "line {at} matters and was let go");
            let body = [&b"{\"kind\":\"EventList\",\"items\":["[..], line, b"]}"].concat();
            // What a parser must look at is looked at whole.
            if let Some(found) = Filter::default().body(&body) {
                assert_eq!((found.events, found.look.len()), (1, 1), "an item that matters was let go");
            }
        }
    }
    // All lines of a text, in their places; and what is found lies within it.
    let mut found = Vec::new();
    let lines = Filter::default().lines(data, |line, at| {
        assert!(data[at..].starts_with(line));
        found.push(line);
    });
    assert!(found.len() as u64 <= lines);
    let wanted = data.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii_end).filter(|line| is_kept(line));
    for line in wanted {
        assert!(found.contains(&line), "a line that matters was let go among others");
    }
    if let Some(body) = Filter::default().body(data) {
        assert!(body.look.iter().all(|place| place.begin < place.end && place.end <= data.len()));
        assert!(body.look.len() as u64 <= body.events);
    }
});
