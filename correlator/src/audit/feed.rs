//! From the bytes of a line, a piece of a log or a body to the events that matter, with everything else counted.

use super::canonical::Fingerprint;
use super::filter::{Filter, Kinds};
use super::{AuditError, Event, Kept, Reading, interpret, items};
use crate::join::{Input, Route};
use memchr::memmem;
use seclog_proto::rfc3339;
use std::borrow::Cow;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Default)]
pub struct FeedCounters {
    pub events: u64,
    pub access: u64,
    pub kept: BTreeMap<Kept, u64>,
    /// Let go, by `verb resource/subresource`.
    pub irrelevant: Kinds,
    pub malformed: u64,
}

impl FeedCounters {
    pub fn irrelevant_total(&self) -> u64 {
        self.irrelevant.total()
    }

    /// Adds another's counts to these.
    pub fn add(&mut self, other: &Self) {
        let Self { events, access, kept, irrelevant, malformed } = other;
        self.events += events;
        self.access += access;
        for (kind, count) in kept {
            *self.kept.entry(*kind).or_default() += count;
        }
        self.irrelevant.add(irrelevant);
        self.malformed += malformed;
    }
}

/// An event that matters.
#[derive(Debug, Clone)]
pub struct KeptEvent {
    /// As it came.
    pub json: String,
    pub kept: Kept,
    pub fingerprint: Fingerprint,
    /// Client-chosen where the client sent one.
    pub audit_id: String,
    /// Nanoseconds since 1970; 0 where it is not readable.
    pub stage_time: u64,
    /// The API server passes requests for other API groups on with their audit id, and whoever serves them audits them
    /// again: the same id twice means nothing there.
    pub core: bool,
    pub reading: Reading,
}

impl KeptEvent {
    /// So late that it cannot be told from a repetition.
    pub fn set_late(&mut self) {
        if let Some(access) = &mut self.reading.access {
            access.late = true;
        }
    }

    /// What it tells the join.
    pub fn inputs(self, route: Route) -> impl Iterator<Item = Input> {
        let Reading { access, pods, change, lease } = self.reading;
        let pods = pods.into_iter().map(Input::Pod);
        let access = access.map(|event| Input::Audit { route, event });
        let change = change.map(|change| Input::Monitoring(*change));
        pods.chain(access).chain(change).chain(lease.map(Input::Lease))
    }
}

/// Bytes that should have been an event.
#[derive(Debug)]
pub struct Malformed {
    pub bytes: Vec<u8>,
    /// Where they began in what was read.
    pub offset: usize,
    pub why: AuditError,
}

/// What was read at once.
#[derive(Debug, Default)]
pub struct Batch {
    pub events: Vec<KeptEvent>,
    pub malformed: Vec<Malformed>,
    /// All events, those let go among them.
    pub total: u64,
    /// The stageTimestamp of the last of all, nanoseconds since 1970; 0 where there is none.
    pub last_stage_time: u64,
}

/// Reads events, and counts.
#[derive(Debug, Default)]
pub struct Feed {
    filter: Filter,
    pub counters: FeedCounters,
}

impl Feed {
    /// Whole lines, each an event, a list or an array of events.
    pub fn lines(&mut self, text: &[u8]) -> Batch {
        let mut batch = Batch { last_stage_time: last_stage_time(text), ..Batch::default() };
        let mut candidates = Vec::new();
        batch.total = self.filter.lines(text, |line, offset| candidates.push((line, offset)));
        batch.total -= candidates.len() as u64;
        for (line, offset) in candidates {
            if let Err(why) = self.body_into(line, offset, &mut batch) {
                self.malformed(line, offset, why, &mut batch);
                batch.total += 1;
            }
        }
        self.settle(&batch);
        batch
    }

    /// A body: an `EventList`, an event or an array of events. An error for what is none of them.
    pub fn body(&mut self, text: &[u8]) -> Result<Batch, AuditError> {
        let mut batch = Batch { last_stage_time: last_stage_time(text), ..Batch::default() };
        self.body_into(text, 0, &mut batch)?;
        self.settle(&batch);
        Ok(batch)
    }

    /// One event. `None`: it does not matter.
    pub fn event(&mut self, json: &[u8]) -> Result<Option<KeptEvent>, AuditError> {
        self.counters.events += 1;
        let read = self.read(json).inspect_err(|_| self.counters.malformed += 1);
        self.counters.irrelevant.add(&std::mem::take(&mut self.filter.kinds));
        read
    }

    fn settle(&mut self, batch: &Batch) {
        self.counters.events += batch.total;
        self.counters.irrelevant.add(&std::mem::take(&mut self.filter.kinds));
    }

    fn body_into(&mut self, text: &[u8], offset: usize, batch: &mut Batch) -> Result<(), AuditError> {
        if let Some(found) = self.filter.body(text) {
            batch.total += found.events;
            for place in found.look {
                self.one(&text[place.begin..place.end], offset + place.begin, batch);
            }
            return Ok(());
        }
        let items = items(text)?;
        batch.total += items.len() as u64;
        for item in items.iter() {
            self.one(item.json.as_bytes(), offset + item.offset, batch);
        }
        Ok(())
    }

    fn one(&mut self, json: &[u8], offset: usize, batch: &mut Batch) {
        match self.read(json) {
            Ok(kept) => batch.events.extend(kept),
            Err(why) => self.malformed(json, offset, why, batch),
        }
    }

    fn malformed(&mut self, bytes: &[u8], offset: usize, why: AuditError, batch: &mut Batch) {
        self.counters.malformed += 1;
        batch.malformed.push(Malformed { bytes: bytes.to_vec(), offset, why });
    }

    /// Reads one event whole. `None`: it does not matter.
    fn read(&mut self, json: &[u8]) -> Result<Option<KeptEvent>, AuditError> {
        // The API server writes no bytes that are not UTF-8; one of them costs only its own character.
        let json: Cow<'_, str> = String::from_utf8_lossy(json);
        let event: Event = serde_json::from_str(&json).map_err(AuditError::Item)?;
        let head = event.head();
        let Some(kept) = head.kept() else {
            self.filter.kinds.count(head.verb, head.target.resource, head.target.subresource);
            return Ok(None);
        };
        let mut reading = interpret(&event)?;
        let fingerprint = Fingerprint::of(&event, &json)?;
        if let Some(access) = &mut reading.access {
            access.digest = fingerprint.whole;
        }
        *self.counters.kept.entry(kept).or_default() += 1;
        self.counters.access += u64::from(reading.access.is_some());
        Ok(Some(KeptEvent {
            kept,
            fingerprint,
            stage_time: rfc3339::parse(&event.stage_timestamp).unwrap_or_default(),
            core: event.object_ref.as_ref().is_none_or(|object| !object.api_group.contains("openshift.io")),
            audit_id: event.audit_id,
            reading,
            json: json.into_owned(),
        }))
    }
}

/// The last `stageTimestamp` of a text, however little of it is looked at otherwise.
fn last_stage_time(text: &[u8]) -> u64 {
    const KEY: &[u8] = b"\"stageTimestamp\":\"";
    let behind = memmem::rfind(text, KEY).and_then(|at| text.get(at + KEY.len()..));
    let stamp = behind.and_then(|behind| behind.split(|byte| *byte == b'"').next());
    stamp.and_then(|stamp| rfc3339::parse(std::str::from_utf8(stamp).ok()?)).unwrap_or_default()
}
