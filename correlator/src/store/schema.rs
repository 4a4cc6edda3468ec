//! Opening: to write, to read, and what is not ours.

use super::StoreError;
use rusqlite::{Connection, ErrorCode, OpenFlags};
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The store's file in its directory; SQLite has two more beside it.
pub const FILE: &str = "sessions.db";
pub(super) const FORMAT: i64 = 1;
/// "SECL": tells SQLite's file from others.
const APPLICATION: i64 = 0x5345_434c;
const TABLES: &str = include_str!("schema.sql");
const FACTS: &str = include_str!("facts.sql");
/// Readers wait for one another only where a log of SQLite's is taken up after a kill.
const PATIENCE: Duration = Duration::from_secs(10);

/// The one writer's connection. Makes what is not there.
pub(super) fn open(path: &Path, cluster: &str) -> Result<Connection, StoreError> {
    let failed = |source| error(path, source);
    let connection = Connection::open(path).map_err(failed)?;
    connection.busy_timeout(PATIENCE).map_err(failed)?;
    let is_new: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(failed)?;
    if is_new == 0 {
        // Freed pages can be given back; must stand before the first table.
        connection.pragma_update(None, "auto_vacuum", "INCREMENTAL").map_err(failed)?;
    }
    // Readers in other processes see the last transaction while the next is written.
    connection.pragma_update(None, "journal_mode", "WAL").map_err(failed)?;
    // A transaction that was committed survives a loss of power: what is read again after it may be gone from the journal.
    connection.pragma_update(None, "synchronous", "FULL").map_err(failed)?;
    connection.pragma_update(None, "journal_size_limit", 64 << 20).map_err(failed)?;
    connection.set_prepared_statement_cache_capacity(64);
    if is_new == 0 {
        make(&connection, cluster).map_err(failed)?;
    }
    check(&connection, path)?;
    connection.execute_batch(FACTS).map_err(failed)?;
    let found: String = connection.query_row("SELECT cluster FROM about", [], |row| row.get(0)).map_err(failed)?;
    if found != cluster {
        return Err(StoreError::Cluster { path: path.to_owned(), found, asked: cluster.to_owned() });
    }
    Ok(connection)
}

/// All or nothing.
fn make(connection: &Connection, cluster: &str) -> rusqlite::Result<()> {
    let made = connection.unchecked_transaction()?;
    made.execute_batch(TABLES)?;
    made.execute("INSERT INTO about VALUES (randomblob(16), ?1, 0, 0, 0, 0, 0)", [cluster])?;
    made.pragma_update(None, "application_id", APPLICATION)?;
    made.pragma_update(None, "user_version", FORMAT)?;
    made.commit()
}

pub(super) fn open_to_read(path: &Path) -> Result<Connection, StoreError> {
    match File::open(path) {
        Ok(_) => {}
        Err(missing) if missing.kind() == io::ErrorKind::NotFound => return Err(StoreError::Nothing(path.to_owned())),
        Err(refused) if refused.kind() == io::ErrorKind::PermissionDenied => {
            return Err(StoreError::Permission(path.to_owned()));
        }
        Err(source) => return Err(StoreError::Io { path: path.to_owned(), source }),
    }
    let connection =
        Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|source| error(path, source))?;
    connection.busy_timeout(PATIENCE).map_err(|source| error(path, source))?;
    check(&connection, path)?;
    Ok(connection)
}

fn check(connection: &Connection, path: &Path) -> Result<(), StoreError> {
    let number = |name: &str| {
        connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map_err(|source| error(path, source))
    };
    let version = number("user_version")?;
    if number("application_id")? != APPLICATION {
        // A reader may come before the tables are made.
        let made = if version == 0 { StoreError::Nothing } else { StoreError::Foreign };
        return Err(made(path.to_owned()));
    }
    if version != FORMAT {
        return Err(StoreError::Version { path: path.to_owned(), version });
    }
    Ok(())
}

/// For the writer alone: sessions name people and what they typed.
pub(super) fn make_directory(dir: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|source| StoreError::Io { path: dir.to_owned(), source })
}

pub(super) fn error(path: &Path, source: rusqlite::Error) -> StoreError {
    let path: PathBuf = path.to_owned();
    match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
            StoreError::Damaged { path, why: source.to_string() }
        }
        Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StoreError::Permission(path),
        _ => StoreError::Sql { path, source },
    }
}
