//! Events of the audit log and lines of SPO's enricher: any bytes are read or refused, by every way in, and what an event means
//! does not depend on the way by which it came.
#![no_main]

use libfuzzer_sys::fuzz_target;
use seclog_correlator::audit::{self, Feed, Uri};
use seclog_correlator::spo;

fuzz_target!(|data: &[u8]| {
    let _ = spo::read(data);
    if let Ok(text) = std::str::from_utf8(data) {
        Uri::parse(text);
        let _ = audit::read(text);
    }
    let mut feed = Feed::default();
    let _ = feed.body(data);
    let batch = feed.lines(data);
    assert!(batch.events.len() as u64 + batch.malformed.len() as u64 <= batch.total);
    for event in batch.events {
        // The journal has the event as it came; read from there it is the same again.
        let again = Feed::default().event(event.json.as_bytes()).unwrap().expect("it was kept once");
        assert_eq!(again.reading, event.reading);
        assert_eq!(again.fingerprint, event.fingerprint);
    }
});
