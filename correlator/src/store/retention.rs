//! The store's bounds: what was told longest ago goes first, and it is noted what went.

use super::row::signed;
use rusqlite::{Connection, OptionalExtension as _, Transaction, params};
use serde::Serialize;

const SECOND_NS: u64 = 1_000_000_000;
/// Sessions and findings that are deleted at once, at least.
const AT_ONCE: usize = 256;
/// Activity of which no session came in this time goes.
const ACTIVITY_WITHOUT_SESSION_NS: u64 = 3_600 * SECOND_NS;
/// Free pages are given back to the file system beyond this part of the file.
const FREE_PART: i64 = 8;
/// Pages that are given back at once.
const PAGES_AT_ONCE: i64 = 1_024;

/// How much a store may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub bytes: u64,
    /// What was told longer ago goes, nanoseconds.
    pub age_ns: u64,
}

/// What is not in the store any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// `age` or `bytes`.
    pub why: String,
    pub sessions: u64,
    pub findings: u64,
    /// Starts of the sessions, nanoseconds since 1970.
    pub oldest: u64,
    pub newest: u64,
    /// When it was deleted last, by the join's time.
    pub last_at: u64,
}

impl Limits {
    pub const NONE: Self = Self { bytes: u64::MAX, age_ns: u64::MAX };
}

impl Default for Limits {
    fn default() -> Self {
        Self { bytes: 4 << 30, age_ns: 90 * 86_400 * SECOND_NS }
    }
}

/// Deletes what is too old or too much, some of it at a time. How many sessions and findings those were.
pub(super) fn keep_bounds(
    connection: &mut Connection,
    limits: Limits,
    now: u64,
    written: usize,
) -> rusqlite::Result<u64> {
    let many = signed(AT_ONCE.max(written * 2) as u64);
    let long_ago = signed(now.saturating_sub(limits.age_ns));
    let mut deleted = 0;
    // Numbers rise with time, but for a clock that was set back: then what is behind waits.
    let oldest = "SELECT told_at FROM session WHERE told >= 0 ORDER BY told LIMIT 1";
    let oldest: Option<i64> = connection.prepare_cached(oldest)?.query_row([], |row| row.get(0)).optional()?;
    let finding = "SELECT told_at FROM finding WHERE told >= 0 ORDER BY told LIMIT 1";
    let finding: Option<i64> = connection.prepare_cached(finding)?.query_row([], |row| row.get(0)).optional()?;
    if oldest.into_iter().chain(finding).any(|told_at| told_at < long_ago) {
        deleted += delete(connection, "age", many, long_ago, now)?;
    }
    if used_bytes(connection)? > limits.bytes {
        deleted += delete(connection, "bytes", many, i64::MAX, now)?;
    }
    let without = "DELETE FROM activity WHERE rowid IN (SELECT rowid FROM activity WHERE written_at < ?1 \
        AND NOT EXISTS (SELECT 1 FROM session WHERE session.root = activity.root) LIMIT ?2)";
    let unclaimed = signed(now.saturating_sub(ACTIVITY_WITHOUT_SESSION_NS));
    if now % (60 * SECOND_NS) < 2 * SECOND_NS {
        connection.prepare_cached(without)?.execute(params![unclaimed, many])?;
    }
    give_back(connection)?;
    Ok(deleted)
}

fn delete(connection: &mut Connection, why: &str, many: i64, before: i64, now: u64) -> rusqlite::Result<u64> {
    let transaction = connection.transaction()?;
    // Up to this number.
    let last = "SELECT max(told) FROM (SELECT told FROM (SELECT told, told_at FROM session UNION ALL \
        SELECT told, told_at FROM finding) WHERE told_at < ?1 ORDER BY told LIMIT ?2)";
    let last: Option<i64> = transaction.prepare_cached(last)?.query_row(params![before, many], |row| row.get(0))?;
    let Some(last) = last else { return Ok(0) };
    let deleted = delete_until(&transaction, why, last, now)?;
    transaction.commit()?;
    Ok(deleted)
}

fn delete_until(from: &Transaction<'_>, why: &str, last: i64, now: u64) -> rusqlite::Result<u64> {
    let begun = "SELECT min(begun), max(begun) FROM session WHERE told <= ?1";
    let (oldest, newest): (Option<i64>, Option<i64>) =
        from.prepare_cached(begun)?.query_row([last], |row| Ok((row.get(0)?, row.get(1)?)))?;
    for statement in [
        "DELETE FROM document WHERE session IN (SELECT id FROM session WHERE told <= ?1)",
        "DELETE FROM names WHERE session IN (SELECT id FROM session WHERE told <= ?1)",
        "DELETE FROM activity WHERE root IN (SELECT root FROM session WHERE told <= ?1 AND root IS NOT NULL) \
            AND root NOT IN (SELECT root FROM session WHERE told > ?1 AND root IS NOT NULL)",
        "DELETE FROM revision WHERE told <= ?1",
    ] {
        from.prepare_cached(statement)?.execute([last])?;
    }
    let sessions = from.prepare_cached("DELETE FROM session WHERE told <= ?1")?.execute([last])? as u64;
    let findings = from.prepare_cached("DELETE FROM finding WHERE told <= ?1")?.execute([last])? as u64;
    let note = "INSERT INTO deleted VALUES (?1, ?2, ?3, ?4, ?5, ?6) ON CONFLICT (why) DO UPDATE SET \
        sessions = sessions + excluded.sessions, findings = findings + excluded.findings, \
        oldest = min(oldest, excluded.oldest), newest = max(newest, excluded.newest), last_at = excluded.last_at";
    let (oldest, newest) = (oldest.unwrap_or(i64::MAX), newest.unwrap_or_default());
    from.prepare_cached(note)?.execute(params![
        why,
        signed(sessions),
        signed(findings),
        oldest,
        newest,
        signed(now)
    ])?;
    tracing::info!(why, sessions, findings, "retention deleted from the store what was told longest ago");
    Ok(sessions + findings)
}

/// The file without pages that are free to be used again.
pub(super) fn used_bytes(connection: &Connection) -> rusqlite::Result<u64> {
    let (pages, free, size) = pages(connection)?;
    Ok(pages.saturating_sub(free).saturating_mul(size).try_into().unwrap_or_default())
}

fn pages(connection: &Connection) -> rusqlite::Result<(i64, i64, i64)> {
    let number = |name: &str| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
    Ok((number("page_count")?, number("freelist_count")?, number("page_size")?))
}

fn give_back(connection: &Connection) -> rusqlite::Result<()> {
    let (pages, free, _) = pages(connection)?;
    if free > PAGES_AT_ONCE && free > pages / FREE_PART {
        let mut some = connection.prepare(&format!("PRAGMA incremental_vacuum({PAGES_AT_ONCE})"))?;
        let mut rows = some.query([])?;
        while rows.next()?.is_some() {}
    }
    Ok(())
}
