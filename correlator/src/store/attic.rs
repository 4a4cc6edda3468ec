//! The join's attic on disk: SQLite, used by one process, and empty at each start.

use super::StoreError;
use crate::join::attic::{Attic, Slot};
use rusqlite::{Connection, params};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// In the store's directory.
const FILE: &str = "attic.sqlite";
/// Fast; what a session's programs did shrinks to a fifth.
const LEVEL: i32 = 1;
const PAGE_BYTES: i64 = 4096;
/// One session's programs come to less, with every cap at its end.
const MOST_UNPACKED: usize = 256 << 20;

#[derive(Debug)]
pub struct DiskAttic {
    connection: Connection,
    path: PathBuf,
    next: Slot,
}

impl DiskAttic {
    /// Of at most so many bytes.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn open(dir: &Path, bytes: u64) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => return Err(StoreError::Io { path, source }),
            _ => {}
        }
        let connection = make(&path, bytes).map_err(|source| StoreError::Sql { path: path.clone(), source })?;
        Ok(Self { connection, path, next: 1 })
    }

    fn told(&self, error: &dyn std::fmt::Display) -> String {
        format!("{}: {error}", self.path.display())
    }
}

fn make(path: &Path, bytes: u64) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    // Nothing of it is read after a crash, so nothing is synced; what fails is rolled back.
    connection.pragma_update(None, "journal_mode", "MEMORY")?;
    connection.pragma_update(None, "synchronous", "OFF")?;
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.pragma_update(None, "page_size", PAGE_BYTES)?;
    let pages = i64::try_from(bytes).unwrap_or(i64::MAX) / PAGE_BYTES;
    connection.pragma_update(None, "max_page_count", pages.max(1))?;
    connection.pragma_update(None, "cache_size", 256)?;
    connection.execute_batch("CREATE TABLE deeds (slot INTEGER PRIMARY KEY, packed BLOB NOT NULL)")?;
    Ok(connection)
}

impl Attic for DiskAttic {
    fn put(&mut self, deeds: &[Vec<u8>]) -> Result<Vec<Slot>, String> {
        let mut slots = Vec::with_capacity(deeds.len());
        let first = self.next;
        let mut put = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            let mut insert = transaction.prepare_cached("INSERT INTO deeds (slot, packed) VALUES (?, ?)")?;
            for (slot, deeds) in (first..).zip(deeds) {
                let packed = zstd::bulk::compress(deeds, LEVEL)
                    .map_err(|error| rusqlite::Error::ToSqlConversionFailure(Box::new(error)))?;
                insert.execute(params![slot, packed])?;
                slots.push(slot);
            }
            drop(insert);
            transaction.commit()
        };
        let put = put();
        put.map_err(|error| self.told(&error))?;
        self.next = slots.last().map_or(self.next, |last| last + 1);
        Ok(slots)
    }

    fn get(&self, slot: Slot) -> Result<Vec<u8>, String> {
        let read = || -> rusqlite::Result<Vec<u8>> {
            let mut select = self.connection.prepare_cached("SELECT packed FROM deeds WHERE slot = ?")?;
            select.query_row(params![slot], |row| row.get(0))
        };
        let packed = read().map_err(|error| self.told(&error))?;
        zstd::bulk::decompress(&packed, MOST_UNPACKED).map_err(|error| self.told(&error))
    }

    fn remove(&mut self, slot: Slot) {
        let delete = || -> rusqlite::Result<usize> {
            self.connection.prepare_cached("DELETE FROM deeds WHERE slot = ?")?.execute(params![slot])
        };
        // It stays until the next start, and takes room: the worst that comes of it is that putting fails.
        if let Err(error) = delete() {
            tracing::warn!("{}", self.told(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_comes_back_until_it_is_removed_and_a_restart_begins_empty() {
        let dir = tempfile::tempdir().unwrap();
        let mut attic = DiskAttic::open(dir.path(), 1 << 20).unwrap();
        let slots = attic.put(&[b"one".repeat(1000), b"two".to_vec()]).unwrap();
        assert_eq!(attic.get(slots[0]).unwrap(), b"one".repeat(1000));
        assert_eq!(attic.get(slots[1]).unwrap(), b"two");
        attic.remove(slots[0]);
        assert!(attic.get(slots[0]).unwrap_err().contains("attic.sqlite"));
        drop(attic);
        let attic = DiskAttic::open(dir.path(), 1 << 20).unwrap();
        assert!(attic.get(slots[1]).is_err());
    }

    #[test]
    fn a_full_attic_says_so_keeps_what_it_has_and_takes_more_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let mut attic = DiskAttic::open(dir.path(), 64 << 10).unwrap();
        // Nothing that can be made smaller.
        let noise = |seed: u64| {
            let mut state = seed;
            let next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8
            };
            std::iter::repeat_with(next).take(8 << 10).collect::<Vec<u8>>()
        };
        let mut slots = Vec::new();
        let error = loop {
            match attic.put(&[noise(slots.len() as u64)]) {
                Ok(put) => slots.extend(put),
                Err(error) => break error,
            }
        };
        assert!(error.contains("full"), "{error}");
        assert!((2..8).contains(&slots.len()), "{}", slots.len());
        for (seed, slot) in slots.iter().enumerate() {
            assert_eq!(attic.get(*slot).unwrap(), noise(seed as u64));
        }
        attic.remove(slots[0]);
        attic.put(&[noise(99)]).unwrap();
    }
}
