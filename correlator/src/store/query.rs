//! Asking: from any process, while another one writes. Every answer is as of one transaction.

use super::held::RootId;
use super::retention::Deleted;
use super::row::{NEVER, signed, unsigned};
use super::{Activity, FILE, StoreError, schema};
use crate::join::finding::{Code, Finding};
use crate::join::session::{Evidence, Kind, Session};
use crate::timestamp::Timestamp;
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension as _, Row, params, params_from_iter};
use serde::Serialize;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Sessions that a prefix of an id is said to fit.
const SAID: i64 = 8;

/// What is asked for. All of it must hold; of a list one of it. Nothing given: everything.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Went on at this time or later, nanoseconds since 1970.
    pub since: Option<u64>,
    /// Began before this time.
    pub until: Option<u64>,
    /// Who asked, or as whom.
    pub user: Option<Pattern>,
    pub namespace: Option<Pattern>,
    pub pod: Option<Pattern>,
    pub container: Option<Pattern>,
    pub node: Option<Pattern>,
    pub kinds: Vec<Kind>,
    pub evidence: Vec<Evidence>,
    /// Named by the session.
    pub findings: Vec<Code>,
    /// Also what is no session any more (superseded), and probes.
    pub all: bool,
}

/// A text, or one with `*` for any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(pub String);

/// What a prefix of an id fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    None,
    One(Uuid),
    /// Some of them.
    Many(Vec<Uuid>),
}

/// One revision in short.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Revision {
    pub revision: u32,
    /// By the correlator's clock.
    pub told: Timestamp,
    pub state: String,
    pub kind: String,
    pub evidence: String,
    pub outcome: String,
    /// Empty: nobody.
    pub user: String,
    /// Programs that had started.
    pub programs: u64,
    pub findings: u64,
}

/// What was told after something else.
#[derive(Debug, Clone)]
pub enum Told {
    Session(Box<Session>),
    Finding(Box<Finding>),
}

/// Some of what was told, last first, each with its number.
#[derive(Debug)]
pub struct Page {
    /// The lowest number that was looked at.
    pub lowest: u64,
    pub told: Vec<(u64, Told)>,
}

#[derive(Debug)]
pub struct Reader {
    connection: Connection,
    path: PathBuf,
}

impl Pattern {
    /// As SQLite's GLOB: nothing but `*` has a meaning.
    fn glob(&self) -> Option<String> {
        let any = |letter: char| match letter {
            '?' => "[?]".to_owned(),
            '[' => "[[]".to_owned(),
            other => other.to_string(),
        };
        self.0.contains('*').then(|| self.0.chars().map(any).collect())
    }

    /// What [`Reader`] takes it to mean.
    pub fn fits(&self, text: &str) -> bool {
        let mut parts = self.0.split('*');
        let first = parts.next().unwrap_or_default();
        let Some(mut rest) = text.strip_prefix(first) else { return false };
        let mut parts: Vec<&str> = parts.collect();
        let Some(last) = parts.pop() else { return rest.is_empty() };
        for part in parts {
            let Some(at) = rest.find(part) else { return false };
            rest = rest.get(at + part.len()..).unwrap_or_default();
        }
        rest.ends_with(last)
    }
}

/// Conditions and their values.
#[derive(Debug, Default)]
struct Conditions {
    sql: String,
    values: Vec<Value>,
}

impl Conditions {
    fn add(&mut self, sql: &str, values: impl IntoIterator<Item = Value>) {
        let _ = write!(self.sql, " AND ({sql})");
        self.values.extend(values);
    }

    fn pattern(&mut self, columns: &[&str], pattern: Option<&Pattern>) {
        let Some(pattern) = pattern else { return };
        let (operator, value) = match pattern.glob() {
            Some(glob) => ("GLOB", glob),
            None => ("=", pattern.0.clone()),
        };
        let of: Vec<String> = columns.iter().map(|column| format!("{column} {operator} ?")).collect();
        self.add(&of.join(" OR "), columns.iter().map(|_| Value::Text(value.clone())));
    }

    fn one_of(&mut self, column: &str, texts: impl IntoIterator<Item = String>) {
        let texts: Vec<Value> = texts.into_iter().map(Value::Text).collect();
        if !texts.is_empty() {
            let marks = vec!["?"; texts.len()].join(", ");
            self.add(&format!("{column} IN ({marks})"), texts);
        }
    }

    fn of(filter: &Filter) -> Self {
        let Filter { since, until, user, namespace, pod, container, node, kinds, evidence, findings, all } = filter;
        let mut conditions = Self::default();
        if let Some(since) = since {
            conditions.add("ended >= ?", [Value::Integer(signed(*since))]);
        }
        if let Some(until) = until {
            conditions.add("begun < ?", [Value::Integer(signed(*until))]);
        }
        conditions.pattern(&["username", "impersonated"], user.as_ref());
        conditions.pattern(&["namespace"], namespace.as_ref());
        conditions.pattern(&["pod"], pod.as_ref());
        conditions.pattern(&["container"], container.as_ref());
        conditions.pattern(&["node"], node.as_ref());
        conditions.one_of("kind", kinds.iter().map(ToString::to_string));
        conditions.one_of("evidence", evidence.iter().map(ToString::to_string));
        if !findings.is_empty() {
            let marks = vec!["?"; findings.len()].join(", ");
            let named = format!("id IN (SELECT session FROM names WHERE code IN ({marks}))");
            conditions.add(&named, findings.iter().map(|code| Value::Text(code.as_str().to_owned())));
        }
        if !all {
            conditions.add("state != 'superseded'", []);
            if !kinds.contains(&Kind::Probe) {
                conditions.add("kind != 'probe'", []);
            }
        }
        conditions
    }
}

impl Reader {
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        Ok(Self { connection: schema::open_to_read(&path)?, path })
    }

    /// The newest that fit, in the order of their beginning, and whether there are older ones.
    pub fn sessions(&self, filter: &Filter, limit: usize) -> Result<(Vec<Uuid>, bool), StoreError> {
        let Conditions { sql, mut values } = Conditions::of(filter);
        // By end where that is asked for: what began before then and still goes on is rare.
        let begun = if filter.since.is_some() { "+begun" } else { "begun" };
        let query = format!("SELECT id FROM session WHERE 1 {sql} ORDER BY {begun} DESC, id DESC LIMIT ?");
        values.push(Value::Integer(signed(limit as u64).saturating_add(1)));
        let found = self.connection.prepare(&query).and_then(|mut query| {
            let rows = query.query_map(params_from_iter(values), |row| id(row, 0))?;
            rows.collect::<Result<Vec<Uuid>, _>>()
        });
        let mut found = found.map_err(|source| self.failed(source))?;
        let more = found.len() > limit;
        found.truncate(limit);
        found.reverse();
        Ok((found, more))
    }

    pub fn session(&self, id: Uuid) -> Result<Option<Session>, StoreError> {
        let json = "SELECT json FROM document WHERE session = ?1";
        let json: Option<String> = self.one(json, id)?;
        json.map(|json| self.read(&json)).transpose()
    }

    /// `prefix`: hexadecimal digits, dashes as one likes.
    pub fn find(&self, prefix: &str) -> Result<Found, StoreError> {
        let digits: String = prefix.chars().filter(|digit| *digit != '-').collect();
        let bound = |fill: &str| u128::from_str_radix(&format!("{digits}{}", fill.repeat(32 - digits.len())), 16);
        let is_prefix = (1..=32).contains(&digits.len()) && digits.chars().all(|digit| digit.is_ascii_hexdigit());
        let (Ok(from), Ok(until)) = (if is_prefix { (bound("0"), bound("f")) } else { return Ok(Found::None) }) else {
            return Ok(Found::None);
        };
        let among = "SELECT id FROM session WHERE id BETWEEN ?1 AND ?2 ORDER BY id LIMIT ?3";
        let found = self.connection.prepare_cached(among).and_then(|mut among| {
            let bounds = params![from.to_be_bytes(), until.to_be_bytes(), SAID];
            among.query_map(bounds, |row| id(row, 0))?.collect::<Result<Vec<Uuid>, _>>()
        });
        Ok(match found.map_err(|source| self.failed(source))?.as_slice() {
            [] => Found::None,
            [one] => Found::One(*one),
            many => Found::Many(many.to_vec()),
        })
    }

    /// In the order in which they were told.
    pub fn revisions(&self, session: Uuid) -> Result<Vec<Revision>, StoreError> {
        let of = "SELECT revision, told_at, state, kind, evidence, outcome, username, programs, findings \
            FROM revision WHERE session = ?1 ORDER BY revision";
        self.all(of, session, |row| {
            Ok(Revision {
                revision: row.get(0)?,
                told: Timestamp(unsigned(row.get(1)?)),
                state: row.get(2)?,
                kind: row.get(3)?,
                evidence: row.get(4)?,
                outcome: row.get(5)?,
                user: row.get(6)?,
                programs: unsigned(row.get(7)?),
                findings: unsigned(row.get(8)?),
            })
        })
    }

    /// Records of the session's processes.
    pub fn activity(&self, session: &Session) -> Result<Activity, StoreError> {
        let mut activity = Activity::default();
        let Some(root) = RootId::of(session) else { return Ok(activity) };
        let of = "SELECT records, not_kept FROM activity WHERE root = ?1 ORDER BY rowid";
        let rows: Vec<(Vec<u8>, i64)> = self.all(of, root.0, |row| Ok((row.get(0)?, row.get(1)?)))?;
        for (records, not_kept) in rows {
            let added = activity.add(&records, unsigned(not_kept));
            added.map_err(|error| self.damaged(format!("activity of session {}: {error}", session.id)))?;
        }
        activity.sort();
        Ok(activity)
    }

    /// The newest, in the order of their time, and whether there are older ones. Not those that their session, in its last
    /// revision, does not name any more.
    pub fn findings(
        &self,
        since: Option<u64>,
        until: Option<u64>,
        codes: &[Code],
        limit: usize,
    ) -> Result<(Vec<Finding>, bool), StoreError> {
        let mut conditions = Conditions::default();
        conditions.add("time >= ?", [Value::Integer(signed(since.unwrap_or_default()))]);
        conditions.add("time < ?", [Value::Integer(until.map_or(NEVER, signed))]);
        conditions.one_of("code", codes.iter().map(|code| code.as_str().to_owned()));
        conditions
            .add("session IS NULL OR id IN (SELECT finding FROM names WHERE names.session = finding.session)", []);
        let Conditions { sql, mut values } = conditions;
        values.push(Value::Integer(signed(limit as u64).saturating_add(1)));
        let query = format!("SELECT json FROM finding WHERE 1 {sql} ORDER BY time DESC, id DESC LIMIT ?");
        let found = self.connection.prepare(&query).and_then(|mut query| {
            let rows = query.query_map(params_from_iter(values), |row| row.get(0))?;
            rows.collect::<Result<Vec<String>, _>>()
        });
        let mut found = found.map_err(|source| self.failed(source))?;
        let more = found.len() > limit;
        found.truncate(limit);
        found.reverse();
        Ok((found.iter().map(|json| self.read(json)).collect::<Result<_, _>>()?, more))
    }

    /// What was told after `after`, in that order, at most `limit` of it, each with its number. Of a session that was told
    /// again meanwhile the last revision alone.
    pub fn told(&self, after: u64, limit: usize) -> Result<Vec<(u64, Told)>, StoreError> {
        let query = "SELECT told, 1, json FROM session JOIN document ON session = id WHERE told > ?1 \
            UNION ALL SELECT told, 0, json FROM finding WHERE told > ?1 ORDER BY told LIMIT ?2";
        let rows = self.connection.prepare_cached(query).and_then(|mut query| {
            let of = params![signed(after), signed(limit as u64)];
            let rows = query.query_map(of, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect::<Result<Vec<(i64, bool, String)>, _>>()
        });
        let rows = rows.map_err(|source| self.failed(source))?.into_iter();
        let told = |(number, is_session, json): (i64, bool, String)| {
            let told =
                if is_session { Told::Session(self.read(&json)?) } else { Told::Finding(Box::new(self.read(&json)?)) };
            Ok((unsigned(number), told))
        };
        rows.map(told).collect()
    }

    /// The other way: what was told before `before`, last first. `None`: nothing was.
    pub fn told_before(&self, before: u64, limit: usize) -> Result<Option<Page>, StoreError> {
        let numbers = "SELECT min(told) FROM (SELECT told FROM (SELECT told FROM session UNION ALL \
            SELECT told FROM finding) WHERE told < ?1 ORDER BY told DESC LIMIT ?2)";
        let of = params![signed(before), signed(limit as u64)];
        let lowest = self
            .connection
            .prepare_cached(numbers)
            .and_then(|mut numbers| numbers.query_row(of, |row| row.get::<_, Option<i64>>(0)));
        let Some(lowest) = lowest.map_err(|source| self.failed(source))?.map(unsigned) else { return Ok(None) };
        let mut told = self.told(lowest.saturating_sub(1), limit)?;
        told.retain(|(number, _)| *number < before);
        told.reverse();
        Ok(Some(Page { lowest, told }))
    }

    /// Whether the filter takes it.
    pub fn takes(&self, filter: &Filter, session: Uuid) -> Result<bool, StoreError> {
        let mut conditions = Conditions::of(filter);
        conditions.add("id = ?", [Value::Blob(session.as_bytes().to_vec())]);
        let query = format!("SELECT 1 FROM session WHERE 1 {}", conditions.sql);
        let found = self.connection.prepare(&query);
        found
            .and_then(|mut query| query.exists(params_from_iter(conditions.values)))
            .map_err(|source| self.failed(source))
    }

    /// The number of what was told last, and the random id of this making of the store.
    pub fn last(&self) -> Result<(u64, [u8; 16]), StoreError> {
        let last = self.connection.query_row("SELECT told, store FROM about", [], |row| Ok((row.get(0)?, row.get(1)?)));
        let (told, store): (i64, [u8; 16]) = last.map_err(|source| self.failed(source))?;
        Ok((unsigned(told), store))
    }

    /// Up to when the store has what the join said, nanoseconds since 1970.
    pub fn told_until(&self) -> Result<u64, StoreError> {
        let until = self.connection.query_row("SELECT told_until FROM about", [], |row| row.get(0));
        until.map(unsigned).map_err(|source| self.failed(source))
    }

    pub fn deleted(&self) -> Result<Vec<Deleted>, StoreError> {
        let query = "SELECT why, sessions, findings, oldest, newest, last_at FROM deleted ORDER BY why";
        let found = self.connection.prepare(query).and_then(|mut query| {
            let rows = query.query_map([], |row| {
                Ok(Deleted {
                    why: row.get(0)?,
                    sessions: unsigned(row.get(1)?),
                    findings: unsigned(row.get(2)?),
                    oldest: unsigned(row.get(3)?),
                    newest: unsigned(row.get(4)?),
                    last_at: unsigned(row.get(5)?),
                })
            })?;
            rows.collect::<Result<Vec<_>, _>>()
        });
        found.map_err(|source| self.failed(source))
    }

    fn one(&self, query: &str, of: Uuid) -> Result<Option<String>, StoreError> {
        let found = self.connection.prepare_cached(query);
        let found =
            found.and_then(|mut query| query.query_row([of.as_bytes().as_slice()], |row| row.get(0)).optional());
        found.map_err(|source| self.failed(source))
    }

    fn all<T>(
        &self,
        query: &str,
        of: Uuid,
        each: impl Fn(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Vec<T>, StoreError> {
        let found = self.connection.prepare_cached(query).and_then(|mut query| {
            query.query_map([of.as_bytes().as_slice()], |row| each(row))?.collect::<Result<Vec<T>, _>>()
        });
        found.map_err(|source| self.failed(source))
    }

    fn read<T: serde::de::DeserializeOwned>(&self, json: &str) -> Result<T, StoreError> {
        serde_json::from_str(json).map_err(|error| self.damaged(error.to_string()))
    }

    fn damaged(&self, why: String) -> StoreError {
        StoreError::Damaged { path: self.path.clone(), why }
    }

    fn failed(&self, source: rusqlite::Error) -> StoreError {
        schema::error(&self.path, source)
    }
}

fn id(row: &Row<'_>, column: usize) -> rusqlite::Result<Uuid> {
    row.get::<_, [u8; 16]>(column).map(Uuid::from_bytes)
}

#[cfg(test)]
mod tests {
    use super::Pattern;

    #[test]
    fn only_a_star_means_something() {
        for (pattern, text, fits) in [
            ("web", "web", true),
            ("web", "web-1", false),
            ("web*", "web-1", true),
            ("*-1", "web-1", true),
            ("w*b*1", "web-1", true),
            ("w*b*2", "web-1", false),
            ("we?", "web", false),
            ("we[b]", "web", false),
            ("we[b]*", "we[b]!", true),
            ("*", "", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(Pattern(pattern.to_owned()).fits(text), fits, "{pattern} {text}");
        }
    }
}
