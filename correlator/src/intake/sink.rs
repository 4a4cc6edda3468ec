//! Where followed lines go: events of the audit log to the [trail](super::trail), lines of SPO's JSON enricher to the journal.

use super::now;
use super::trail::{Origin, RouteHealth, Trail, TrailError};
use crate::audit::Feed;
use crate::join::Route;
use crate::journal::{Entry, Journal};
use crate::spo;
use crate::telemetry::Telemetry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use seclog_proto::v1::{SourcePosition, SpoLines};
use std::path::Path;

/// Bytes of lines in one entry of the journal, about.
const ENTRY_BYTES: usize = 4 << 20;
const SECOND_NS: u64 = 1_000_000_000;

/// What kind of lines a source has. Clones lead to the same place.
#[derive(Debug, Clone)]
pub enum Kind {
    Audit(Trail),
    Spo(SpoIntake),
}

/// Takes the lines of one source.
#[derive(Debug)]
pub(super) enum Sink {
    Audit { trail: Trail, origin: Origin, health: RouteHealth, feed: Box<Feed> },
    Spo { intake: SpoIntake, source: String },
}

/// Lines of SPO's JSON enricher, as they came. Clones are the same intake.
#[derive(Debug, Clone)]
pub struct SpoIntake {
    journal: Journal,
    counts: SpoCounts,
}

#[derive(Debug, Clone, Default)]
struct SpoCounts {
    lines: Counter,
    /// What the enricher says of itself.
    other: Counter,
    gaps: Counter,
    errors: Counter,
    last: Gauge,
}

impl SpoIntake {
    pub fn new(journal: Journal, telemetry: &Telemetry) -> Self {
        let counts = SpoCounts::default();
        let SpoCounts { lines, other, gaps, errors, last } = &counts;
        telemetry.register("spo_lines", "Records of SPO's JSON enricher that came.", lines.clone());
        telemetry.register("spo_other_lines", "Lines beside them that are no records, let go.", other.clone());
        telemetry.register("spo_gaps", "Times that lines may have been lost.", gaps.clone());
        telemetry.register("spo_errors", "Times that lines could not be read or kept; tried again.", errors.clone());
        telemetry.register("spo_last_arrival_seconds", "When a record came last, seconds since 1970.", last.clone());
        Self { journal, counts }
    }

    async fn take(&self, source: &str, text: &[u8], position: Option<SourcePosition>) -> Result<(), TrailError> {
        let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.is_empty());
        let (mut records, mut other) = (Vec::new(), 0);
        for line in lines {
            if spo::is_record(line) { records.push(line) } else { other += 1 }
        }
        let count = records.len() as u64;
        let mut chunks: Vec<Vec<Vec<u8>>> = Vec::new();
        let mut bytes = ENTRY_BYTES;
        for record in records {
            if bytes + record.len() > ENTRY_BYTES {
                chunks.push(Vec::new());
                bytes = 0;
            }
            bytes += record.len();
            if let Some(chunk) = chunks.last_mut() {
                chunk.push(record.to_vec());
            }
        }
        let entry = |lines, position| Entry::SpoLines(SpoLines { source: source.to_owned(), lines, position });
        match chunks.pop() {
            Some(last) => {
                for chunk in chunks {
                    self.journal.append(entry(chunk, None)).await?;
                }
                self.journal.append(entry(last, position)).await?;
            }
            // Nothing but a place: it goes with what comes next.
            None if position.is_some() => self.journal.note(entry(Vec::new(), position)).await?,
            None => {}
        }
        self.counts.lines.inc_by(count);
        self.counts.other.inc_by(other);
        if count > 0 {
            self.counts.last.set(i64::try_from(now() / SECOND_NS).unwrap_or(i64::MAX));
        }
        Ok(())
    }
}

impl Kind {
    /// For a file.
    pub(super) fn of_file(&self, path: &Path) -> Sink {
        match self {
            Self::Audit(trail) => Sink::audit(trail, Route::File, format!("file/{}", path.display())),
            Self::Spo(intake) => Sink::Spo { intake: intake.clone(), source: format!("spo/{}", path.display()) },
        }
    }

    pub(super) fn of_stdin(&self) -> Sink {
        match self {
            Self::Audit(trail) => Sink::audit(trail, Route::Stdin, "stdin".to_owned()),
            Self::Spo(intake) => Sink::Spo { intake: intake.clone(), source: "spo/stdin".to_owned() },
        }
    }

    /// What the lines are, for people.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Audit(_) => "audit log",
            Self::Spo(_) => "SPO's log",
        }
    }
}

impl Sink {
    pub(super) fn audit(trail: &Trail, route: Route, source: String) -> Self {
        let health = trail.health(route);
        Self::Audit { trail: trail.clone(), origin: Origin { route, source }, health, feed: Box::default() }
    }

    pub(super) fn source(&self) -> &str {
        match self {
            Self::Audit { origin, .. } => &origin.source,
            Self::Spo { source, .. } => source,
        }
    }

    pub(super) fn journal(&self) -> &Journal {
        match self {
            Self::Audit { trail, .. } => trail.journal(),
            Self::Spo { intake, .. } => &intake.journal,
        }
    }

    /// Returns when the journal has the lines. `position` is told the time of the last event, as is who calls; 0: there is
    /// none.
    pub(super) async fn take(
        &mut self,
        text: &[u8],
        position: impl FnOnce(u64) -> Option<SourcePosition>,
    ) -> Result<u64, TrailError> {
        match self {
            Self::Audit { trail, origin, feed, .. } => {
                let batch = feed.lines(text);
                let last = batch.last_stage_time;
                trail.take(origin.clone(), batch, position(last)).await?;
                Ok(last)
            }
            Self::Spo { intake, source } => {
                intake.take(source, text, position(0)).await?;
                Ok(0)
            }
        }
    }

    /// Lines may be missing.
    pub(super) async fn lost(&self, reason: &str, count: Option<u64>) -> Result<(), TrailError> {
        match self {
            Self::Audit { trail, origin, .. } => trail.lost(origin, reason, count).await,
            Self::Spo { intake, source } => {
                intake.counts.gaps.inc();
                tracing::warn!(source, count, "lines of SPO's enricher may be missing: {reason}");
                Ok(())
            }
        }
    }

    /// The source was read to its present end; its last event was of this time.
    pub(super) fn is_read_until(&self, time: u64) {
        if let Self::Audit { health, .. } = self {
            health.is_read_until(time);
        }
    }

    /// The source could not be read, or its lines not be kept. It is tried again.
    pub(super) fn failed(&self) {
        match self {
            Self::Audit { health, .. } => health.failed(),
            Self::Spo { intake, .. } => drop(intake.counts.errors.inc()),
        }
    }
}
