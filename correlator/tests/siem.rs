//! A SIEM that keeps of each id the greatest revision ends with what happened, whatever was told in between and in whatever
//! order lines reach it.
//!
//! After a change that is meant, SECLOG_GOLDEN=write renews the file; read the difference before committing it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::audit::Feed;
use seclog_correlator::join::{Config, Input, Join, Route, Source};
use seclog_correlator::outlet::{Format, Outlet};
use seclog_proto::v1::NodeRecord;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

const SECOND: u64 = 1_000_000_000;
/// The middle third of the API server's events are so late, seconds: a log that is read later has them.
const LATE: u64 = 400;

fn here(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

/// The recordings by the second in which they arrive: nodes' records at once, audit events in time, then late, then in time.
fn arrivals() -> BTreeMap<u64, Vec<Input>> {
    let mut arrivals: BTreeMap<u64, Vec<Input>> = BTreeMap::new();
    let records = std::fs::read_to_string(here("../../tests/fixtures/derived/node-records.jsonl")).unwrap();
    for line in records.lines() {
        let record: NodeRecord = serde_json::from_str(line).unwrap();
        let at = record.time_unix_ns / SECOND + 1;
        arrivals.entry(at).or_default().push(Input::Node { node: "node-1".into(), record });
    }
    let log = support::read("kas-audit.log");
    let events = Feed::default().lines(log.as_bytes()).events;
    let third = events.len() / 3;
    for (number, event) in events.into_iter().enumerate() {
        for input in event.inputs(Route::File) {
            let Input::Audit { event, .. } = &input else {
                // What pods and nodes are is known from the beginning.
                arrivals.entry(0).or_default().push(input);
                continue;
            };
            let late = if (third..2 * third).contains(&number) { LATE } else { 2 };
            arrivals.entry(event.stage_time / SECOND + late).or_default().push(input);
        }
    }
    arrivals
}

/// The lines of an outlet that was told as it happened.
fn lines() -> Vec<String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out.jsonl");
    let mut outlet = Outlet::open(&path, Format::Json).unwrap();
    let mut join = Join::new(Config::new("guest"));
    let arrivals = arrivals();
    let first = arrivals.keys().copied().find(|second| *second > 0).unwrap();
    let last = *arrivals.keys().last().unwrap();
    let mut arrivals = arrivals;
    for input in arrivals.remove(&0).into_iter().flatten() {
        join.apply(input);
    }
    for second in first..=last + 60 {
        for input in arrivals.remove(&second).into_iter().flatten() {
            join.apply(input);
        }
        join.apply(Input::Watermark { source: Source::Node("node-1".into()), until: second * SECOND });
        outlet.write(&join.apply(Input::Now(second * SECOND))).unwrap();
        outlet.write_findings(&join.take_findings()).unwrap();
    }
    outlet.write(&join.finish()).unwrap();
    std::fs::read_to_string(&path).unwrap().lines().map(str::to_owned).collect()
}

/// What docs/sessions.md tells a SIEM to do.
fn upserted<'a>(lines: impl Iterator<Item = &'a String>) -> BTreeMap<String, Value> {
    let mut table: BTreeMap<String, Value> = BTreeMap::new();
    for line in lines {
        let line: Value = serde_json::from_str(line).unwrap();
        if line["kind"] == "finding" {
            continue;
        }
        let id = line["id"].as_str().unwrap().to_owned();
        let revision = |line: &Value| line["revision"].as_u64().unwrap();
        if table.get(&id).is_none_or(|known| revision(known) < revision(&line)) {
            table.insert(id, line);
        }
    }
    table
}

fn row(session: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let by = session["superseded_by"].as_str().map(|by| format!(" -> {by}")).unwrap_or_default();
    format!(
        "{} {} r{} {} {} {} {} {} ran {}{by}",
        text(&session["start"]),
        text(&session["id"]),
        session["revision"],
        text(&session["state"]),
        text(&session["kind"]),
        text(&session["evidence"]),
        text(&session["user"]["username"]),
        text(&session["where"]["pod"]),
        session["ran"].as_array().map_or(0, Vec::len),
    )
}

#[test]
fn a_siem_that_upserts_ends_with_what_happened() {
    let lines = lines();
    let table = upserted(lines.iter());
    assert!(
        lines.len() > table.len() * 3 / 2,
        "{} lines of {} ids: hardly anything was revised",
        lines.len(),
        table.len()
    );

    // Lines overtake each other and come twice.
    let backwards = upserted(lines.iter().rev().chain(lines.iter().step_by(3)));
    assert_eq!(backwards, table);

    let mut rows: Vec<String> = table.values().map(row).collect();
    rows.sort();
    let mut found = String::new();
    rows.iter().for_each(|row| writeln!(found, "{row}").unwrap());
    let golden = here("golden/siem.txt");
    if std::env::var("SECLOG_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(&golden, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&golden).unwrap();
    for (number, (expected, found)) in expected.lines().zip(found.lines()).enumerate() {
        assert_eq!(expected, found, "{}:{}", golden.display(), number + 1);
    }
    assert_eq!(expected.lines().count(), found.lines().count());
}

#[test]
fn what_is_left_is_what_is_told_of_the_same_records_all_at_once() {
    let stands = |(_, session): &(String, Value)| session["state"] != "superseded" && session["kind"] != "probe";
    let without_revision = |(id, mut session): (String, Value)| {
        session.as_object_mut().unwrap().remove("revision");
        (id, session)
    };
    let at_once = std::fs::read_to_string(here("golden/recordings.jsonl")).unwrap();
    let at_once: Vec<String> = at_once.lines().map(str::to_owned).collect();
    let whole = |lines: &[String]| -> BTreeMap<String, Value> {
        upserted(lines.iter()).into_iter().filter(stands).map(without_revision).collect()
    };
    let (told, at_once) = (whole(&lines()), whole(&at_once));
    assert_eq!(told.keys().collect::<Vec<_>>(), at_once.keys().collect::<Vec<_>>());
    for (id, session) in &told {
        assert_eq!(session, &at_once[id]);
    }
}

#[test]
fn what_was_superseded_names_a_session_that_stands() {
    let table = upserted(lines().iter());
    let superseded: Vec<&Value> = table.values().filter(|session| session["state"] == "superseded").collect();
    assert!(superseded.len() > 3, "{}", superseded.len());
    for by in superseded.iter().filter_map(|session| session["superseded_by"].as_str()) {
        assert_ne!(table[by]["state"], "superseded", "{by}");
        assert!(table[by]["user"]["username"].is_string(), "{by}");
    }
}
