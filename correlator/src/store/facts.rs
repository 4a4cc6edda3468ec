//! What the join knows of pods and of main processes, which may be older than what a restart reads from the journal: kept
//! beside the sessions, with the journal's entry that told it, and told to the join before it reads on.
//!
//! A restart is told those facts that came before its first entry, and none that was over by then: so it knows what the
//! join knew at that entry, and tells the same.

use super::row::signed;
use super::{StoreError, schema};
use crate::audit::PodFact;
use crate::join::Input;
use prost::Message as _;
use rusqlite::{Connection, Transaction, params};
use seclog_proto::v1::NodeRecord;
use seclog_proto::v1::node_record::Detail;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// Beyond, those that were told longest ago go.
const MOST: u64 = 400_000;
/// Of one fact: an argv may be long.
const MOST_BYTES: usize = 64 << 10;
const ROW_BYTES: usize = 128;
/// Facts of one kind never are one of another.
const IDS: Uuid = Uuid::from_u128(0x7d0f_8c0e_2f63_4f0a_9a5e_6d1b_8b6a_51c4);

#[derive(Debug, Default)]
pub(super) struct Facts {
    waiting: Vec<(u64, Change)>,
    /// Those that are in the store or wait: nearly all that come have come before.
    known: HashSet<Uuid>,
    /// Each node's present boot.
    boots: HashMap<Arc<str>, String>,
    /// Those that waited are in the store, but for what a failed transaction undid.
    pub(super) bytes: usize,
}

#[derive(Debug)]
enum Change {
    Known {
        id: Uuid,
        node: String,
        boot: String,
        container: String,
        kind: &'static str,
        fact: Vec<u8>,
    },
    /// A main process has ended.
    Ended {
        node: String,
        container: String,
    },
    /// The node has booted: nothing of before runs.
    Booted {
        node: String,
        boot: String,
    },
}

impl Facts {
    /// `pod` as the join keeps it: masked.
    pub(super) fn pod(&mut self, pod: &PodFact, entry: u64) -> Result<(), StoreError> {
        let fact = serde_json::to_vec(pod)?;
        let id = Uuid::new_v5(&IDS, &[b"pod ", fact.as_slice()].concat());
        self.add(id, String::new(), String::new(), String::new(), "pod", fact, entry);
        Ok(())
    }

    pub(super) fn record(&mut self, node: &Arc<str>, record: &NodeRecord, entry: u64) {
        let Some(container) = &record.container else { return };
        let (boot, of_container) = (&record.boot_id, &container.id);
        match &record.detail {
            Some(Detail::Amendment(_)) if !of_container.is_empty() && !container.pod_name.is_empty() => {
                self.add_record(&format!("name {node} {of_container}"), node, of_container, record, entry);
            }
            Some(Detail::ProcessStart(start)) if start.is_session_root && is_of_main(record) => {
                self.booted(node, boot, entry);
                let fact = format!("main {node} {boot} {} {}", record.pid, record.start_boottime_ns);
                self.add_record(&fact, node, of_container, record, entry);
            }
            Some(Detail::ProcessExit(_)) if is_of_main(record) => {
                let ended = Change::Ended { node: node.to_string(), container: of_container.clone() };
                self.wait(entry, ended, of_container.len());
            }
            _ => {}
        }
    }

    /// A record is the fact of this name, which is another's on no other node.
    fn add_record(&mut self, fact: &str, node: &Arc<str>, container: &str, record: &NodeRecord, entry: u64) {
        let id = Uuid::new_v5(&IDS, fact.as_bytes());
        let (boot, container) = (record.boot_id.clone(), container.to_owned());
        self.add(id, node.to_string(), boot, container, "record", record.encode_to_vec(), entry);
    }

    #[expect(clippy::too_many_arguments, reason = "the columns of one row")]
    fn add(
        &mut self,
        id: Uuid,
        node: String,
        boot: String,
        container: String,
        kind: &'static str,
        fact: Vec<u8>,
        entry: u64,
    ) {
        if fact.len() > MOST_BYTES || self.known.contains(&id) {
            return;
        }
        if self.known.len() as u64 >= MOST {
            // Those that come again are known again.
            self.known.clear();
        }
        self.known.insert(id);
        let bytes = fact.len();
        self.wait(entry, Change::Known { id, node, boot, container, kind, fact }, bytes);
    }

    fn booted(&mut self, node: &Arc<str>, boot: &str, entry: u64) {
        if self.boots.get(node).is_none_or(|known| known != boot) {
            self.boots.insert(Arc::clone(node), boot.to_owned());
            self.wait(entry, Change::Booted { node: node.to_string(), boot: boot.to_owned() }, boot.len());
        }
    }

    fn wait(&mut self, entry: u64, change: Change, bytes: usize) {
        self.bytes += bytes + ROW_BYTES;
        self.waiting.push((entry, change));
    }

    /// What waits. `replay_from`: the entry with which a restart begins.
    pub(super) fn write(&self, to: &Transaction<'_>, replay_from: u64) -> rusqlite::Result<()> {
        for (entry, change) in &self.waiting {
            let entry = signed(*entry);
            match change {
                Change::Known { id, node, boot, container, kind, fact } => {
                    let known = "INSERT OR IGNORE INTO fact VALUES (?1, ?2, NULL, ?3, ?4, ?5, ?6, ?7)";
                    let of = params![id.as_bytes().as_slice(), entry, node, boot, container, kind, fact];
                    to.prepare_cached(known)?.execute(of)?;
                }
                Change::Ended { node, container } => {
                    let ended =
                        "UPDATE fact SET over = ?3 WHERE node = ?1 AND container = ?2 AND entry < ?3 AND over IS NULL";
                    to.prepare_cached(ended)?.execute(params![node, container, entry])?;
                }
                Change::Booted { node, boot } => {
                    let before = "UPDATE fact SET over = ?3 WHERE node = ?1 AND boot != ?2 AND boot != '' AND entry < ?3 AND over IS NULL";
                    to.prepare_cached(before)?.execute(params![node, boot, entry])?;
                }
            }
        }
        if self.waiting.is_empty() {
            return Ok(());
        }
        to.prepare_cached("DELETE FROM fact WHERE over < ?1")?.execute([signed(replay_from)])?;
        let too_many = "DELETE FROM fact WHERE id IN (SELECT id FROM fact ORDER BY entry LIMIT max(0, (SELECT count(*) FROM fact) - ?1))";
        to.prepare_cached(too_many)?.execute([signed(MOST)])?;
        Ok(())
    }

    pub(super) fn was_written(&mut self) {
        self.waiting.clear();
        self.bytes = 0;
    }
}

/// Whoever attaches to its container reaches this process.
fn is_of_main(record: &NodeRecord) -> bool {
    let process = (record.start_boottime_ns, record.pid);
    record
        .session_root
        .as_ref()
        .is_some_and(|root| root.entry == "start" && (root.start_boottime_ns, root.pid) == process)
}

/// Facts of another journal: its entries have other numbers.
pub(super) fn forget(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    connection.execute("DELETE FROM fact", []).map(drop).map_err(|source| schema::error(path, source))
}

/// What was known before the journal's entry `number`, in the order in which it was told.
pub(super) fn before(connection: &Connection, path: &Path, number: u64) -> Result<Vec<Input>, StoreError> {
    let sql = |source| schema::error(path, source);
    let known = "SELECT kind, node, fact FROM fact WHERE entry < ?1 AND (over IS NULL OR over >= ?1) ORDER BY entry";
    let mut known = connection.prepare(known).map_err(sql)?;
    let mut rows = known.query([signed(number)]).map_err(sql)?;
    let mut inputs = Vec::new();
    while let Some(row) = rows.next().map_err(sql)? {
        let read = (|| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, Vec<u8>>(2)?)))();
        let (kind, node, fact) = read.map_err(sql)?;
        // What another version wrote and this one cannot read is not known, as it was before facts were kept.
        let input = match kind.as_str() {
            "pod" => serde_json::from_slice(&fact).ok().map(Input::Pod),
            "record" => NodeRecord::decode(fact.as_slice())
                .ok()
                .map(|record| Input::Node { node: node.as_str().into(), record }),
            _ => None,
        };
        inputs.extend(input);
    }
    Ok(inputs)
}
