//! Node records until it is known whether a session tells of them, and until the next transaction.
//!
//! Most roots are none that anybody asks for: probes, and the main processes of containers. Their records are held in
//! memory for as long as a session may still come of them, and then let go. Is there no room in memory, the oldest go to
//! disk, and from there when no session has come.

use super::StoreError;
use super::writer::Cursor;
use crate::join::session::{Kind, RootProcess, Session};
use prost::Message as _;
use rusqlite::types::{ToSql, ToSqlOutput};
use seclog_proto::v1::NodeRecord;
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

const SECOND_NS: u64 = 1_000_000_000;
/// The join tells of a root in this time, or lets it go.
const ENTRY_WITHIN_NS: u64 = 1_200 * SECOND_NS;
/// A main process is a session's where somebody made the container to enter it, which is known soon.
const MAIN_WITHIN_NS: u64 = 300 * SECOND_NS;
/// Of a main process of which no session tells.
const MAIN_BYTES: usize = 64 << 10;
/// Of one root, on disk and held.
const ROOT_BYTES: u64 = 16 << 20;
/// Held of all roots of which no session tells.
const HELD_BYTES: usize = 64 << 20;
/// How often to look for what can be let go.
const LOOK_EVERY_NS: u64 = 10 * SECOND_NS;
const ZSTD_LEVEL: i32 = 1;
/// Namespace of root ids, itself a random UUID.
const ROOTS: Uuid = Uuid::from_u128(0x0f6e_9f0d_41f4_4c0c_9a57_1d7a_30ad_8c52);

/// A session root of one cluster, in 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct RootId(pub(super) Uuid);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Root {
    node: Arc<str>,
    boot_id: Box<str>,
}

/// Records of one root that are not on disk yet.
#[derive(Debug)]
struct Held {
    root: Root,
    id: RootId,
    /// Each with its length before it.
    records: Vec<u8>,
    not_kept: u64,
    /// By the join's time.
    first_at: u64,
    last_at: u64,
    is_main: bool,
    /// A session tells of it.
    wanted: bool,
    /// There was no room: to disk with it.
    spilled: bool,
    /// Bytes on disk, before compression.
    written: u64,
    /// Entries before this one are on disk.
    read_until: u64,
}

/// Rows to be written.
#[derive(Debug)]
pub(super) struct ActivityRow {
    pub(super) root: RootId,
    pub(super) raw_bytes: u64,
    pub(super) not_kept: u64,
    /// Compressed.
    pub(super) records: Vec<u8>,
}

/// What the disk has of a root: bytes, and up to which entry.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct OnDisk {
    pub(super) rows: u64,
    pub(super) raw_bytes: u64,
    pub(super) read_until: u64,
}

#[derive(Debug, Default)]
pub(super) struct Holding {
    /// By start and pid: hardly ever two.
    roots: HashMap<(u64, u32), Vec<Held>>,
    /// Bytes of roots that nobody wants yet.
    unwanted: usize,
    /// Bytes to be written.
    pub(super) ready: usize,
    looked_at: u64,
    pub(super) counts: HoldingCounts,
}

/// What became of node records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HoldingCounts {
    pub records: u64,
    /// More of one root than is kept.
    pub not_kept: u64,
    /// Of roots of which no session tells.
    pub let_go: u64,
}

impl RootId {
    fn new(node: &str, boot_id: &str, start_boottime_ns: u64, pid: u32) -> Self {
        let mut name = Vec::with_capacity(node.len() + boot_id.len() + 21);
        name.extend_from_slice(node.as_bytes());
        name.push(0);
        name.extend_from_slice(boot_id.as_bytes());
        name.extend_from_slice(&start_boottime_ns.to_be_bytes());
        name.extend_from_slice(&pid.to_be_bytes());
        Self(Uuid::new_v5(&ROOTS, &name))
    }

    /// Whose records are the session's. Attaching reaches a main process, whose programs are not the session's.
    pub(super) fn of(session: &Session) -> Option<Self> {
        let root = session.root.as_ref().filter(|_| session.kind != Kind::Probe)?;
        let RootProcess { node, boot_id, pid, start_boottime_ns, .. } = root;
        let made_to_enter = matches!(session.kind, Kind::DebugContainer | Kind::DebugNode);
        let is_its_own = root.entry != "start" || made_to_enter;
        is_its_own.then(|| Self::new(node, boot_id, *start_boottime_ns, *pid))
    }
}

impl ToSql for RootId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.0.as_bytes().as_slice()))
    }
}

impl Holding {
    /// `entry`: of the journal, which the record came in. `on_disk` is asked for a root that is not known.
    pub(super) fn add(
        &mut self,
        node: &Arc<str>,
        record: &NodeRecord,
        entry: u64,
        now: u64,
        on_disk: impl FnOnce(RootId) -> Result<OnDisk, StoreError>,
    ) -> Result<(), StoreError> {
        let Some(root) = record.session_root.as_ref().filter(|root| root.pid != 0) else { return Ok(()) };
        let is_main = root.entry == "start";
        let process = (root.start_boottime_ns, root.pid);
        let of_pid = self.roots.entry(process).or_default();
        let known = of_pid.iter().position(|held| *held.root.boot_id == *record.boot_id && held.root.node == *node);
        let at = match known {
            Some(at) => at,
            // What a main process does later is not asked for.
            None if is_main && record.time_boot_ns.saturating_sub(root.start_boottime_ns) > MAIN_WITHIN_NS => {
                if of_pid.is_empty() {
                    self.roots.remove(&process);
                }
                return Ok(());
            }
            None => {
                let id = RootId::new(node, &record.boot_id, root.start_boottime_ns, root.pid);
                let OnDisk { rows, raw_bytes, read_until } = on_disk(id)?;
                of_pid.push(Held {
                    root: Root { node: Arc::clone(node), boot_id: record.boot_id.as_str().into() },
                    id,
                    records: Vec::new(),
                    not_kept: 0,
                    first_at: now,
                    last_at: now,
                    is_main,
                    wanted: rows > 0,
                    spilled: false,
                    written: raw_bytes,
                    read_until,
                });
                of_pid.len() - 1
            }
        };
        let Some(held) = of_pid.get_mut(at) else { return Ok(()) };
        held.last_at = now;
        if entry < held.read_until {
            return Ok(());
        }
        self.counts.records += 1;
        let length = record.encoded_len();
        let most = if is_main && !held.wanted { MAIN_BYTES as u64 } else { ROOT_BYTES };
        if held.written + (held.records.len() + length) as u64 > most {
            held.not_kept += 1;
            self.counts.not_kept += 1;
            // Something to be written.
            self.ready += usize::from(held.wanted || held.spilled);
            return Ok(());
        }
        let before = held.records.len();
        // There is room in a Vec.
        let _ = record.encode_length_delimited(&mut held.records);
        let added = held.records.len() - before;
        *(if held.wanted || held.spilled { &mut self.ready } else { &mut self.unwanted }) += added;
        Ok(())
    }

    /// A session tells of this root.
    pub(super) fn want(&mut self, session: &Session) {
        let (Some(id), Some(root)) = (RootId::of(session), &session.root) else { return };
        let of_pid = self.roots.get_mut(&(root.start_boottime_ns, root.pid));
        let held = of_pid.and_then(|of_pid| of_pid.iter_mut().find(|held| held.id == id));
        if let Some(held) = held.filter(|held| !held.wanted) {
            held.wanted = true;
            if !held.spilled {
                self.unwanted -= held.records.len();
                self.ready += held.records.len();
            }
        }
    }

    /// Once in a while: lets go of what no session came of, and of what has long been written.
    pub(super) fn look(&mut self, now: u64) {
        if now < self.looked_at.saturating_add(LOOK_EVERY_NS) {
            return;
        }
        self.looked_at = now;
        let (unwanted, counts) = (&mut self.unwanted, &mut self.counts);
        self.roots.retain(|_, of_pid| {
            of_pid.retain(|held| {
                let waits = held.wanted || held.spilled;
                if waits {
                    return !held.records.is_empty() || now < held.last_at.saturating_add(ENTRY_WITHIN_NS);
                }
                let within = if held.is_main { MAIN_WITHIN_NS } else { ENTRY_WITHIN_NS };
                let stays = now < held.first_at.saturating_add(within);
                if !stays {
                    *unwanted -= held.records.len();
                    counts.let_go += 1;
                }
                stays
            });
            !of_pid.is_empty()
        });
        self.make_room();
    }

    /// Main processes go first, then the oldest go to disk.
    fn make_room(&mut self) {
        if self.unwanted <= HELD_BYTES {
            return;
        }
        let mut unwanted: Vec<&mut Held> =
            self.roots.values_mut().flatten().filter(|held| !held.wanted && !held.spilled).collect();
        unwanted.sort_by_key(|held| (!held.is_main, held.first_at));
        for held in unwanted {
            if self.unwanted <= HELD_BYTES / 2 {
                break;
            }
            self.unwanted -= held.records.len();
            if held.is_main {
                held.records = Vec::new();
                self.counts.let_go += 1;
            } else {
                held.spilled = true;
                self.ready += held.records.len();
            }
        }
    }

    /// What is to be written now. It stays until [`Holding::was_written`].
    pub(super) fn rows(&self) -> impl Iterator<Item = std::io::Result<ActivityRow>> + '_ {
        let ready = self.roots.values().flatten().filter(|held| held.wanted || held.spilled);
        ready.filter(|held| !held.records.is_empty() || held.not_kept > 0).map(|held| {
            Ok(ActivityRow {
                root: held.id,
                raw_bytes: held.records.len() as u64,
                not_kept: held.not_kept,
                records: zstd::bulk::compress(&held.records, ZSTD_LEVEL)?,
            })
        })
    }

    pub(super) fn was_written(&mut self, cursor: Cursor) {
        if self.ready == 0 {
            return;
        }
        for held in self.roots.values_mut().flatten().filter(|held| held.wanted || held.spilled) {
            if !held.records.is_empty() || held.not_kept > 0 {
                held.written += held.records.len() as u64;
                held.records = Vec::new();
                held.not_kept = 0;
                held.read_until = cursor.read_until;
            }
        }
        self.ready = 0;
    }
}
