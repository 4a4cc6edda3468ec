//! The one that writes: gathers what the join says, and commits it with the cursor.

use super::facts::{self, Facts};
use super::held::{Holding, HoldingCounts, OnDisk, RootId};
use super::retention::{self, Limits};
use super::row::{FindingRow, SessionRow, signed, unsigned};
use super::{FILE, StoreError, schema};
use crate::audit::PodFact;
use crate::join::Input;
use crate::join::finding::Finding;
use crate::join::session::Session;
use crate::telemetry::{Collect, Sample, Telemetry};
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use seclog_journal::DirectoryLock;
use seclog_proto::v1::NodeRecord;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// Beyond, the join waits until the disk has taken it.
const MOST_WAITING: usize = 64 << 20;
/// Stands beside a store that is damaged.
const CONDEMNED: &str = "damaged";
/// Of a row, besides its text.
const ROW_BYTES: usize = 512;

/// How far the store is, in one transaction with what it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Number of the journal's entry from which on the join needs them.
    pub replay_from: u64,
    /// What the join said up to this time is in the store; nanoseconds since 1970.
    pub told_until_unix_ns: u64,
    /// Number behind the last entry that was read.
    pub read_until: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Totals {
    pub sessions: u64,
    pub findings: u64,
    /// Revisions that the store has, or greater ones of the same session: what a restart told again from less.
    pub stale: u64,
    pub failures: u64,
    pub deleted: u64,
    pub bytes: u64,
    pub waiting_bytes: u64,
    pub activity: HoldingCounts,
}

#[derive(Debug)]
pub struct Store {
    connection: Connection,
    path: PathBuf,
    /// Held as long as this lives.
    _lock: DirectoryLock,
    limits: Limits,
    cursor: Cursor,
    epoch: i64,
    holding: Holding,
    facts: Facts,
    sessions: Vec<SessionRow>,
    findings: Vec<FindingRow>,
    waiting_bytes: usize,
    totals: Totals,
    shown: Shown,
}

/// What metrics show: as of the last transaction.
#[derive(Debug, Clone, Default)]
struct Shown(Arc<Mutex<Totals>>);

impl Collect for Shown {
    fn collect(&self, to: &mut Sample<'_>) -> std::fmt::Result {
        let totals = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Totals { sessions, findings, stale, failures, deleted, bytes, waiting_bytes, activity } = totals;
        let HoldingCounts { records, not_kept, let_go } = activity;
        to.counter("store_sessions", "Revisions of sessions written to the store.", sessions)?;
        to.counter("store_findings", "Findings written to the store.", findings)?;
        to.counter("store_stale", "Revisions that the store had already, or had a greater one of.", stale)?;
        to.counter("store_failures", "Transactions of the store that failed; they are tried again.", failures)?;
        to.counter("store_deleted", "Sessions and findings that retention deleted.", deleted)?;
        to.gauge("store_bytes", "Bytes in use in the store.", bytes)?;
        to.gauge("store_waiting_bytes", "Bytes that wait for the store's next transaction.", waiting_bytes)?;
        to.counter("store_records", "Node records taken for the store.", records)?;
        to.counter("store_records_not_kept", "Node records beyond what is kept of one root.", not_kept)?;
        to.counter("store_roots_let_go", "Roots whose records were let go: no session came of them.", let_go)
    }
}

impl Store {
    /// Opens or makes it. What is damaged, or of another format, is put aside and made anew: the journal has it.
    pub fn open(dir: &Path, cluster: &str, limits: Limits) -> Result<Self, StoreError> {
        schema::make_directory(dir)?;
        let lock = DirectoryLock::take(dir)
            .map_err(|source| StoreError::Io { path: dir.join("lock"), source })?
            .ok_or_else(|| StoreError::Locked(dir.to_owned()))?;
        let path = dir.join(FILE);
        let condemned = || StoreError::Damaged { path: path.clone(), why: "found in use".to_owned() };
        let opened = if dir.join(CONDEMNED).exists() { Err(condemned()) } else { schema::open(&path, cluster) };
        let connection = match opened {
            Err(error) if error.is_damage() || matches!(error, StoreError::Version { .. }) => {
                let aside = put_aside(dir).map_err(|source| StoreError::Io { path: path.clone(), source })?;
                tracing::error!(aside = %aside.display(), "{error}; it was put aside, what follows makes it anew");
                schema::open(&path, cluster)?
            }
            opened => opened?,
        };
        let about = connection.query_row("SELECT replay_from, told_until, read_until, epoch FROM about", [], |row| {
            let cursor = Cursor {
                replay_from: unsigned(row.get(0)?),
                told_until_unix_ns: unsigned(row.get(1)?),
                read_until: unsigned(row.get(2)?),
            };
            Ok((cursor, row.get(3)?))
        });
        let (cursor, epoch) = about.map_err(|source| schema::error(&path, source))?;
        let mut store = Self {
            connection,
            path,
            _lock: lock,
            limits,
            cursor,
            epoch,
            holding: Holding::default(),
            facts: Facts::default(),
            sessions: Vec::new(),
            findings: Vec::new(),
            waiting_bytes: 0,
            totals: Totals::default(),
            shown: Shown::default(),
        };
        store.totals.bytes = store.bytes()?;
        Ok(store)
    }

    pub fn register(&self, telemetry: &Telemetry) {
        telemetry.collect(self.shown.clone());
    }

    /// Where a restart goes on. `end`: number behind the journal's last entry, by which another journal is known.
    pub fn begin(&mut self, end: u64) -> Result<Cursor, StoreError> {
        if self.cursor.read_until > end {
            tracing::warn!(
                read_until = self.cursor.read_until,
                end,
                "the store has read further than this journal goes: it is another journal, and is read from its beginning"
            );
            self.epoch += 1;
            self.cursor = Cursor { replay_from: 0, read_until: 0, ..self.cursor };
            facts::forget(&self.connection, &self.path)?;
        }
        Ok(self.cursor)
    }

    /// What the join knew of pods and main processes at the journal's entry `number`.
    pub fn facts_before(&self, number: u64) -> Result<Vec<Input>, StoreError> {
        facts::before(&self.connection, &self.path, number)
    }

    /// What an audit event told of a pod, as the join keeps it.
    pub fn pod(&mut self, pod: &PodFact, entry: u64) -> Result<(), StoreError> {
        self.facts.pod(pod, entry)
    }

    /// It is damaged: the next start puts it aside.
    pub fn condemn(&self) {
        if let Err(error) = self.path.parent().map_or(Ok(()), |dir| std::fs::write(dir.join(CONDEMNED), b"")) {
            tracing::error!(path = %self.path.display(), "cannot mark the store as damaged; remove it: {error}");
        }
    }

    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    pub fn totals(&self) -> Totals {
        let waiting_bytes = (self.waiting_bytes + self.holding.ready + self.facts.bytes) as u64;
        Totals { waiting_bytes, activity: self.holding.counts, ..self.totals }
    }

    /// A node's record that goes to the join. `entry`: of the journal, that it came in; `now` is the join's time.
    pub fn record(&mut self, node: &Arc<str>, record: &NodeRecord, entry: u64, now: u64) -> Result<(), StoreError> {
        let Self { holding, facts, connection, path, epoch, .. } = self;
        facts.record(node, record, entry);
        holding.add(node, record, entry, now, |root| on_disk(connection, path, *epoch, root))
    }

    /// What the join said at this time, in the order in which it was said.
    pub fn told(&mut self, sessions: &[Session], now: u64) -> Result<(), StoreError> {
        for session in sessions {
            self.holding.want(session);
            let row = SessionRow::of(session, now)?;
            self.waiting_bytes += row.json.len() + ROW_BYTES;
            self.sessions.push(row);
        }
        Ok(())
    }

    pub fn found(&mut self, findings: &[Finding], now: u64) -> Result<(), StoreError> {
        for finding in findings {
            let row = FindingRow::of(finding, now)?;
            self.waiting_bytes += row.json.len() + ROW_BYTES;
            self.findings.push(row);
        }
        Ok(())
    }

    /// More waits than should: commit before anything else is told.
    pub fn is_full(&self) -> bool {
        self.waiting_bytes + self.holding.ready + self.facts.bytes > MOST_WAITING
    }

    /// Writes what waits and the cursor, all or nothing. After an error everything still waits.
    pub fn commit(&mut self, cursor: Cursor, now: u64) -> Result<(), StoreError> {
        let committed = self.try_commit(cursor, now);
        *self.shown.0.lock().unwrap_or_else(PoisonError::into_inner) = self.totals();
        committed
    }

    fn try_commit(&mut self, cursor: Cursor, now: u64) -> Result<(), StoreError> {
        self.holding.look(now);
        match self.write(cursor, now) {
            Ok(stale) => {
                self.totals.stale += stale;
                self.totals.sessions += self.sessions.len() as u64 - stale;
                self.totals.findings += self.findings.len() as u64;
            }
            Err(error) => {
                self.totals.failures += 1;
                return Err(error);
            }
        }
        let written = self.sessions.len() + self.findings.len();
        self.sessions.clear();
        self.findings.clear();
        self.waiting_bytes = 0;
        self.holding.was_written(cursor);
        self.facts.was_written();
        self.cursor = cursor;
        let sql = |source| schema::error(&self.path, source);
        self.totals.deleted += retention::keep_bounds(&mut self.connection, self.limits, now, written).map_err(sql)?;
        self.totals.bytes = self.bytes()?;
        Ok(())
    }

    fn write(&mut self, cursor: Cursor, now: u64) -> Result<u64, StoreError> {
        let Self { connection, path, holding, facts, sessions, findings, epoch, .. } = self;
        let sql = |source| schema::error(path, source);
        let transaction = connection.transaction().map_err(sql)?;
        let mut told: i64 = transaction.query_row("SELECT told FROM about", [], |row| row.get(0)).map_err(sql)?;
        let mut stale = 0;
        for row in sessions.iter() {
            stale += u64::from(!put_session(&transaction, row, &mut told).map_err(sql)?);
        }
        for row in findings.iter() {
            put_finding(&transaction, row, &mut told).map_err(sql)?;
        }
        if holding.ready > 0 {
            put_activity(&transaction, holding, *epoch, cursor, now, path)?;
        }
        let Cursor { replay_from, told_until_unix_ns, read_until } = cursor;
        facts.write(&transaction, replay_from).map_err(sql)?;
        let about = "UPDATE about SET told = ?1, replay_from = ?2, told_until = ?3, read_until = ?4, epoch = ?5";
        let of = params![told, signed(replay_from), signed(told_until_unix_ns), signed(read_until), *epoch];
        transaction.prepare_cached(about).and_then(|mut about| about.execute(of)).map_err(sql)?;
        transaction.commit().map_err(sql)?;
        Ok(stale)
    }

    fn bytes(&self) -> Result<u64, StoreError> {
        retention::used_bytes(&self.connection).map_err(|source| schema::error(&self.path, source))
    }
}

/// False: the store has this revision or a greater one.
fn put_session(to: &Transaction<'_>, row: &SessionRow, told: &mut i64) -> rusqlite::Result<bool> {
    let SessionRow {
        id,
        revision,
        told_at,
        begun,
        ended,
        state,
        kind,
        evidence,
        outcome,
        username,
        impersonated,
        namespace,
        pod,
        container,
        node,
        root,
        programs,
        findings,
        json,
    } = row;
    let id = id.as_bytes().as_slice();
    let known: Option<u32> = to
        .prepare_cached("SELECT revision FROM session WHERE id = ?1")?
        .query_row([id], |row| row.get(0))
        .optional()?;
    if let Some(known) = known.filter(|known| known > revision) {
        tracing::warn!(session = %row.id, known, revision, "a session was told again from less; the store keeps what it has");
        return Ok(false);
    }
    if known == Some(*revision) {
        let same = "SELECT 1 FROM document WHERE session = ?1 AND json = ?2";
        if to.prepare_cached(same)?.exists(params![id, json])? {
            return Ok(false);
        }
    }
    *told += 1;
    let told_at = signed(*told_at);
    to.prepare_cached("INSERT OR REPLACE INTO revision VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)")?
        .execute(params![
            *told,
            told_at,
            id,
            revision,
            state,
            kind,
            evidence,
            outcome,
            username,
            signed(*programs),
            signed(findings.len() as u64)
        ])?;
    let upsert = "INSERT OR REPLACE INTO session \
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)";
    to.prepare_cached(upsert)?.execute(params![
        id,
        revision,
        *told,
        told_at,
        begun,
        ended,
        state,
        kind,
        evidence,
        username,
        impersonated,
        namespace,
        pod,
        container,
        node,
        root
    ])?;
    to.prepare_cached("INSERT OR REPLACE INTO document VALUES (?1, ?2)")?.execute(params![id, json])?;
    if known.is_some() {
        to.prepare_cached("DELETE FROM names WHERE session = ?1")?.execute([id])?;
    }
    for (code, finding) in findings {
        let names = "INSERT OR IGNORE INTO names VALUES (?1, ?2, ?3)";
        to.prepare_cached(names)?.execute(params![code, id, finding.as_bytes().as_slice()])?;
    }
    Ok(true)
}

fn put_finding(to: &Transaction<'_>, row: &FindingRow, told: &mut i64) -> rusqlite::Result<()> {
    let FindingRow { id, told_at, time, code, session, json } = row;
    let id = id.as_bytes().as_slice();
    let same = "SELECT 1 FROM finding WHERE id = ?1 AND json = ?2";
    if to.prepare_cached(same)?.exists(params![id, json])? {
        return Ok(());
    }
    *told += 1;
    let session = session.as_ref().map(|session: &Uuid| session.as_bytes().as_slice());
    to.prepare_cached("INSERT OR REPLACE INTO finding VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")?.execute(params![
        id,
        *told,
        signed(*told_at),
        time,
        code,
        session,
        json
    ])?;
    Ok(())
}

fn put_activity(
    to: &Transaction<'_>,
    holding: &Holding,
    epoch: i64,
    cursor: Cursor,
    now: u64,
    path: &Path,
) -> Result<(), StoreError> {
    let sql = |source| schema::error(path, source);
    for row in holding.rows() {
        let row = row.map_err(|source| StoreError::Io { path: path.to_owned(), source })?;
        if row.raw_bytes == 0 {
            let count = "UPDATE activity SET not_kept = not_kept + ?2 \
                WHERE rowid = (SELECT max(rowid) FROM activity WHERE root = ?1)";
            let counted =
                to.prepare_cached(count).and_then(|mut it| it.execute(params![row.root, signed(row.not_kept)]));
            counted.map_err(sql)?;
            continue;
        }
        let (raw_bytes, not_kept) = (signed(row.raw_bytes), signed(row.not_kept));
        let of = params![row.root, epoch, signed(cursor.read_until), signed(now), raw_bytes, not_kept, row.records];
        to.prepare_cached("INSERT OR REPLACE INTO activity VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)")
            .and_then(|mut it| it.execute(of))
            .map_err(sql)?;
    }
    Ok(())
}

fn on_disk(connection: &Connection, path: &Path, epoch: i64, root: RootId) -> Result<OnDisk, StoreError> {
    let of = "SELECT count(*), total(raw_bytes), max(CASE epoch WHEN ?2 THEN read_until ELSE 0 END) \
        FROM activity WHERE root = ?1";
    let read = connection.prepare_cached(of).and_then(|mut of| {
        of.query_row(params![root, epoch], |row| {
            let raw_bytes: f64 = row.get(1)?;
            let read_until: Option<i64> = row.get(2)?;
            Ok(OnDisk {
                rows: unsigned(row.get(0)?),
                raw_bytes: raw_bytes as u64,
                read_until: unsigned(read_until.unwrap_or_default()),
            })
        })
    });
    read.map_err(|source| schema::error(path, source))
}

/// The one put aside before goes.
fn put_aside(dir: &Path) -> io::Result<PathBuf> {
    let aside = dir.join(format!("{FILE}.damaged"));
    for ending in ["-wal", "-shm"] {
        match std::fs::remove_file(dir.join(format!("{FILE}{ending}"))) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    std::fs::rename(dir.join(FILE), &aside)?;
    match std::fs::remove_file(dir.join(CONDEMNED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(aside),
    }
}
