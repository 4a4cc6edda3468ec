//! The audit trail: what every route brought, put together. One event is in the journal once, by however many routes and
//! however often it came; the routes are noted.
//!
//! What holds:
//! - [`Trail::take`] returns when the journal has what was taken. Takers go one after the other, so that a copy of what
//!   another route is just handing over is not answered before that is safe.
//! - What could not be written is forgotten again, so that who comes again is heard.
//! - Two contents of one audit id and stage are both kept, and a finding says so.
//! - With two routes or more configured, an event that came by one alone is a finding once the horizon is over.
//! - An event older than the horizon that is not known is marked late: it may be a repetition of what is forgotten.
//! - After a restart the journal says what was known.

mod health;
mod memory;
mod quarantine;
mod recover;

pub use health::{RouteHealth, RouteMetrics};
pub use quarantine::{Quarantine, QuarantineError};

use super::{audit_events, audit_loss, now};
use crate::audit::{Batch, Kept, KeptEvent};
use crate::join::Route;
use crate::join::finding::Code;
use crate::journal::{Entry, Journal, JournalError};
use crate::telemetry::Telemetry;
use crate::timestamp::Timestamp;
use memory::{Changes, Memory, Verdict};
use seclog_proto::v1::{AuditFinding, AuditRoute, AuditSeen, AuditSighting, AuditWatermark, SourcePosition};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, watch};

/// Bytes of events in one entry of the journal, about.
const ENTRY_BYTES: usize = 4 << 20;
/// How often routes and watermark are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// One finding tells of all events that were alone in so many looks.
const JUDGE_EVERY: u32 = 10;

#[derive(Debug, Clone)]
pub struct TrailOptions {
    /// The routes that are configured.
    pub routes: Vec<Route>,
    /// How long after an event came it may come by another route; older ones are late. Nanoseconds.
    pub horizon_ns: u64,
    /// A route by which nothing came for so long is silent. API servers are never idle: nodes renew leases. Nanoseconds.
    pub silent_ns: u64,
    /// Where bytes that should have been events are kept.
    pub quarantine: PathBuf,
    /// Bytes that are kept there.
    pub quarantine_bytes: u64,
}

impl TrailOptions {
    pub fn new(routes: Vec<Route>, quarantine: PathBuf) -> Self {
        let second = 1_000_000_000;
        Self { routes, horizon_ns: 900 * second, silent_ns: 120 * second, quarantine, quarantine_bytes: 64 << 20 }
    }
}

/// Clones are the same trail.
#[derive(Debug, Clone)]
pub struct Trail(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    journal: Journal,
    options: TrailOptions,
    memory: Mutex<Memory>,
    quarantine: Quarantine,
    health: RouteMetrics,
}

/// From where a batch came.
#[derive(Debug, Clone)]
pub struct Origin {
    pub route: Route,
    /// A peer's address, a file's name, a pod's.
    pub source: String,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// In the journal by this.
    pub new: u64,
    /// Known by another route.
    pub seen: u64,
    /// Known by this route.
    pub repeated: u64,
    pub late: u64,
    pub quarantined: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum TrailError {
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Quarantine(#[from] QuarantineError),
}

impl TrailError {
    /// The journal is closed: the process is ending.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Journal(JournalError::Closed))
    }
}

/// What of a batch is to be written.
#[derive(Debug, Default)]
struct Sorted {
    fresh: Vec<String>,
    late: Vec<String>,
    sightings: Vec<AuditSighting>,
    findings: Vec<Entry>,
    changes: Changes,
    taken: Taken,
}

impl Trail {
    /// Opens the quarantine and reads from the journal's files what was known before.
    pub fn open(journal: Journal, options: TrailOptions, telemetry: &Telemetry) -> Result<Self, TrailError> {
        let quarantine = Quarantine::open(&options.quarantine, options.quarantine_bytes)?;
        let memory = recover::memory(&journal, now().saturating_sub(options.horizon_ns));
        let health = RouteMetrics::new(&options.routes, now(), telemetry);
        let shared = Shared { journal, options, memory: Mutex::new(memory), quarantine, health };
        Ok(Self(Arc::new(shared)))
    }

    pub fn journal(&self) -> &Journal {
        &self.0.journal
    }

    /// The health of one source of a route, to be told what happens there.
    pub fn health(&self, route: Route) -> RouteHealth {
        self.0.health.source(route)
    }

    /// A route could not be read; it is tried again.
    pub fn failed(&self, route: Route) {
        self.0.health.failed(route);
    }

    /// Takes what a route brought; returns when the journal has it. `position`: how far the source has been read with it.
    /// Goes on to its end when nobody waits for it any more.
    pub async fn take(
        &self,
        origin: Origin,
        batch: Batch,
        position: Option<SourcePosition>,
    ) -> Result<Taken, TrailError> {
        let trail = self.clone();
        let taking = tokio::spawn(async move { trail.take_whole(&origin, batch, position).await });
        taking.await.unwrap_or(Err(TrailError::Journal(JournalError::Closed)))
    }

    async fn take_whole(
        &self,
        origin: &Origin,
        batch: Batch,
        position: Option<SourcePosition>,
    ) -> Result<Taken, TrailError> {
        let Shared { journal, quarantine, health, .. } = &*self.0;
        let Batch { events, malformed, total, last_stage_time } = batch;
        let lost = malformed.len() as u64;
        if lost > 0 {
            quarantine.keep(origin, &malformed)?;
        }
        let mut memory = self.0.memory.lock().await;
        let sorted = self.sort(&mut memory, origin, events);
        let Sorted { fresh, late, sightings, findings, changes, mut taken } = sorted;
        taken.quarantined = lost;
        let mut entries = findings;
        let source = &origin.source;
        if lost > 0 {
            entries.push(audit_loss(source, "events that could not be read", Some(lost)));
        }
        for chunk in chunks(late) {
            let mut entry = audit_events(origin.route, source, chunk, None);
            if let Entry::AuditEvents(events) = &mut entry {
                events.late = true;
            }
            entries.push(entry);
        }
        if !sightings.is_empty() {
            let (route, source) = (origin.route.to_string(), source.clone());
            entries.push(Entry::AuditSeen(AuditSeen { route, source, sightings, position: None }));
        }
        entries.extend(chunks(fresh).into_iter().map(|chunk| audit_events(origin.route, source, chunk, None)));
        let result = write(journal, entries, origin, position).await;
        if let Err(error) = result {
            memory.take_back(changes);
            health.refused(origin.route);
            return Err(error.into());
        }
        drop(memory);
        health.took(origin.route, total, last_stage_time, now(), &taken);
        Ok(taken)
    }

    fn sort(&self, memory: &mut Memory, origin: &Origin, events: Vec<KeptEvent>) -> Sorted {
        let now = now();
        let mut sorted = Sorted::default();
        for event in events {
            let verdict = memory.offer(&event, origin.route, now, &mut sorted.changes);
            match verdict {
                Verdict::New { contradicts, reuses } => {
                    sorted.findings.extend(findings(&event, origin, contradicts, reuses, now));
                    let is_late =
                        event.stage_time > 0 && event.stage_time.saturating_add(self.0.options.horizon_ns) < now;
                    sorted.taken.new += 1;
                    sorted.taken.late += u64::from(is_late);
                    if is_late { sorted.late.push(event.json) } else { sorted.fresh.push(event.json) }
                }
                Verdict::Seen => {
                    sorted.taken.seen += 1;
                    let digest = event.fingerprint.whole.0.to_vec();
                    let stage_time_unix_ns = event.stage_time;
                    sorted.sightings.push(AuditSighting { digest, stage_time_unix_ns });
                }
                Verdict::Repeated => sorted.taken.repeated += 1,
            }
        }
        sorted
    }

    /// Events that may be missing.
    pub async fn lost(&self, origin: &Origin, reason: &str, count: Option<u64>) -> Result<(), TrailError> {
        self.0.health.gap(origin.route);
        self.0.journal.append(audit_loss(&origin.source, reason, count)).await?;
        Ok(())
    }

    /// Looks at routes and horizon until told to stop.
    pub async fn watch(self, mut stop: watch::Receiver<bool>) {
        let mut silent: BTreeMap<Route, u64> = BTreeMap::new();
        let (mut watermark, mut looks) = (0, 0_u32);
        loop {
            let stopped = tokio::time::timeout(LOOK_EVERY, stop.wait_for(|stop| *stop)).await.is_ok();
            if stopped {
                return;
            }
            let Shared { journal, options, health, .. } = &*self.0;
            let mut entries = Vec::new();
            let (until, heard) = health.watermark();
            if heard > watermark {
                watermark = heard;
                entries.push(Entry::AuditWatermark(AuditWatermark { until_unix_ns: until }));
            }
            let now_silent = health.silent(now(), options.silent_ns);
            for route in &options.routes {
                let since = now_silent.get(route).copied();
                if since.is_some() != silent.contains_key(route) {
                    let silent_since_unix_ns = since.unwrap_or_default();
                    entries.push(Entry::AuditRoute(AuditRoute { route: route.to_string(), silent_since_unix_ns }));
                    match since {
                        Some(since) => {
                            tracing::warn!(%route, since = %Timestamp(since), "no audit event comes any more")
                        }
                        None => tracing::info!(%route, "audit events come again"),
                    }
                }
            }
            silent = now_silent;
            looks += 1;
            if looks.is_multiple_of(JUDGE_EVERY) {
                entries.extend(self.judge(now().saturating_sub(options.horizon_ns), &silent).await);
            }
            for entry in entries {
                if journal.note(entry).await.is_err() {
                    return;
                }
            }
        }
    }

    /// Findings about events that came by one route alone and should have come by another.
    pub async fn judge(&self, before: u64, silent: &BTreeMap<Route, u64>) -> Vec<Entry> {
        let Shared { options, memory, health, .. } = &*self.0;
        let mut memory = memory.lock().await;
        health.remembers(memory.len(), memory.forgotten);
        let mut alone = memory.judge(before);
        drop(memory);
        if options.routes.len() < 2 {
            return Vec::new();
        }
        // What was before another route began is not missing there.
        alone.retain(|event| {
            options.routes.iter().any(|route| *route != event.route && health.began(*route, event.stage_time))
        });
        let of = |route: &Route| {
            let (from, until, count, access, named) = memory::summary(&alone, *route)?;
            let others = options.routes.iter().filter(|other| *other != route).map(|other| match silent.get(other) {
                Some(since) => format!("{other} (silent since {})", Timestamp(*since)),
                None => other.to_string(),
            });
            let others: Vec<String> = others.collect();
            let text = format!(
                "{count} audit events, {access} of them remote access, came by {route} alone and not by {}; they are of {} to {}",
                others.join(" or "),
                Timestamp(from),
                Timestamp(until),
            );
            let records = named.into_iter().map(str::to_owned).collect();
            Some(finding(Code::OneRouteOnly, from, &format!("{route} {from} {until} {count}"), text, records))
        };
        options.routes.iter().filter_map(of).collect()
    }
}

/// Writes the entries in their order; the last of them carries the position.
async fn write(
    journal: &Journal,
    entries: Vec<Entry>,
    origin: &Origin,
    position: Option<SourcePosition>,
) -> Result<(), JournalError> {
    let mut entries = entries;
    let Some(mut last) = entries.pop() else {
        // Nothing but a place: it goes with what comes next.
        return match position {
            Some(_) => {
                let none: [String; 0] = [];
                journal.note(audit_events(origin.route, &origin.source, none, position)).await
            }
            None => Ok(()),
        };
    };
    match &mut last {
        Entry::AuditEvents(events) => events.position = position,
        Entry::AuditSeen(seen) => seen.position = position,
        Entry::AuditLoss(loss) => loss.position = position,
        _ => {}
    }
    let mut pending = Vec::with_capacity(entries.len() + 1);
    for entry in entries {
        pending.push(journal.send(entry).await?);
    }
    pending.push(journal.send(last).await?);
    for mut pending in pending {
        pending.written().await?;
    }
    Ok(())
}

/// In pieces of what one entry should hold.
fn chunks(events: Vec<String>) -> Vec<Vec<String>> {
    let mut chunks: Vec<Vec<String>> = Vec::new();
    let mut bytes = ENTRY_BYTES;
    for event in events {
        if bytes + event.len() > ENTRY_BYTES {
            chunks.push(Vec::new());
            bytes = 0;
        }
        bytes += event.len();
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(event);
        }
    }
    chunks
}

fn findings(event: &KeptEvent, origin: &Origin, contradicts: bool, reuses: bool, now: u64) -> Vec<Entry> {
    let mut found = Vec::new();
    let time = if event.stage_time > 0 { event.stage_time } else { now };
    let (audit_id, digest) = (&event.audit_id, event.fingerprint.whole);
    // Of remote access the join says so itself, where the session is.
    if contradicts && event.kept != Kept::Access {
        let text = format!(
            "two contents of one moment of the request with audit id {audit_id:?}; one came by {}",
            origin.route
        );
        found.push(finding(Code::AuditDisagreement, time, &format!("{digest:?}"), text, vec![audit_id.clone()]));
    }
    if reuses {
        let text = format!("another request with audit id {audit_id:?} is known at the same stage");
        found.push(finding(Code::AuditIdReused, time, &format!("{digest:?}"), text, vec![audit_id.clone()]));
    }
    found
}

fn finding(code: Code, time: u64, subject: &str, text: String, records: Vec<String>) -> Entry {
    let (code, subject) = (code.as_str().to_owned(), subject.to_owned());
    Entry::AuditFinding(AuditFinding { code, time_unix_ns: time, subject, text, records })
}
