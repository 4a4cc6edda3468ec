//! The store, and the commands that read it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use proptest::prelude::*;
use rusqlite::Connection;
use seclog_correlator::Timestamp;
use seclog_correlator::join::finding::{Code, Finding};
use seclog_correlator::join::session::{Evidence, Kind, Session, State};
use seclog_correlator::store::{Cursor, FILE, Filter, Found, Limits, Pattern, Reader, Store, StoreError, Told};
use seclog_proto::v1::NodeRecord;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use support::scene::{BASE, SECOND, tree};
use uuid::Uuid;

/// Sessions and findings of the recordings, as `replay` writes them.
fn recorded() -> (Vec<Session>, Vec<Finding>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/recordings.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let (findings, sessions): (Vec<&str>, Vec<&str>) =
        text.lines().partition(|line| line.contains(r#""kind":"finding""#));
    let sessions = sessions.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    (sessions, findings.iter().map(|line| serde_json::from_str(line).unwrap()).collect())
}

fn session(number: u32) -> Session {
    let mut session = recorded().0.swap_remove(0);
    session.id = Uuid::from_u128(u128::from(number) << 64 | 7);
    session.root = None;
    session
}

fn open(dir: &Path) -> Store {
    Store::open(dir, "guest", Limits::NONE).unwrap()
}

fn cursor(number: u64) -> Cursor {
    Cursor { replay_from: number, told_until_unix_ns: number, read_until: number }
}

// === Queries against a model ===

#[derive(Debug, Clone)]
struct Said {
    id: u8,
    user: Option<&'static str>,
    impersonated: Option<&'static str>,
    pod: &'static str,
    container: Option<&'static str>,
    begun: u64,
    lasted: Option<u64>,
    kind: Kind,
    evidence: Evidence,
    superseded: bool,
    codes: Vec<Code>,
}

fn said() -> impl Strategy<Value = Said> {
    let user = prop::option::of(prop::sample::select(vec!["alice", "bob", "ali*e"]));
    let impersonated = prop::option::weighted(0.2, prop::sample::select(vec!["bob", "carol"]));
    let pod = prop::sample::select(vec!["web", "web-1", "db[0]"]);
    let container = prop::option::of(prop::sample::select(vec!["app", "sidecar"]));
    let kind = prop::sample::select(vec![Kind::Exec, Kind::Attach, Kind::NodeEntry, Kind::Probe]);
    let evidence = prop::sample::select(vec![Evidence::Exact, Evidence::Unique, Evidence::NodeOnly]);
    let codes = prop::collection::vec(prop::sample::select(vec![Code::NodeProxy, Code::CgroupMove]), 0..3);
    let times = (0_u64..50, prop::option::of(0_u64..20));
    ((0_u8..12, user, impersonated, pod, container), times, kind, evidence, prop::bool::weighted(0.2), codes).prop_map(
        |((id, user, impersonated, pod, container), (begun, lasted), kind, evidence, superseded, codes)| Said {
            id,
            user,
            impersonated,
            pod,
            container,
            begun,
            lasted,
            kind,
            evidence,
            superseded,
            codes,
        },
    )
}

fn as_session(said: &Said, revision: u32, template: &Session) -> Session {
    let mut session = template.clone();
    let note = template.findings[0].clone();
    session.id = Uuid::from_u128(u128::from(said.id) << 120 | 0x1234);
    session.revision = revision;
    session.kind = said.kind;
    session.evidence = said.evidence;
    session.start = Timestamp(said.begun * SECOND);
    session.state = match (said.superseded, said.lasted) {
        (true, _) => State::Superseded,
        (false, None) => State::Open,
        (false, Some(_)) => State::Closed,
    };
    session.ran.clear();
    session.root = None;
    session.other_requests.clear();
    if let Some(request) = &mut session.request {
        request.completed = said.lasted.map(|lasted| Timestamp((said.begun + lasted) * SECOND));
    }
    session.user = said.user.map(|user| {
        let mut of = session.user.clone().unwrap();
        of.username = user.to_owned();
        of.impersonated = said.impersonated.map(str::to_owned);
        of
    });
    session.place.pod = said.pod.to_owned();
    session.place.container = said.container.map(str::to_owned);
    session.findings = said
        .codes
        .iter()
        .enumerate()
        .map(|(number, code)| {
            let mut note = note.clone();
            note.code = *code;
            note.id = Uuid::from_u128(number as u128);
            note
        })
        .collect();
    session
}

fn filter() -> impl Strategy<Value = Filter> {
    let pattern =
        |of: Vec<&'static str>| prop::option::of(prop::sample::select(of).prop_map(|it| Pattern(it.to_owned())));
    let times = (prop::option::of(0_u64..60), prop::option::of(0_u64..60));
    let user = pattern(vec!["alice", "*o*", "ali*e", "carol"]);
    let pods = (pattern(vec!["web", "web*", "db[0]", "*[0]"]), pattern(vec!["app", "*"]));
    let kinds = prop::collection::vec(prop::sample::select(vec![Kind::Exec, Kind::Probe]), 0..2);
    let evidence = prop::collection::vec(prop::sample::select(vec![Evidence::Exact, Evidence::Unique]), 0..2);
    let findings = prop::collection::vec(prop::sample::select(vec![Code::NodeProxy, Code::CgroupMove]), 0..2);
    (times, user, pods, kinds, evidence, findings, any::<bool>()).prop_map(
        |((since, until), user, (pod, container), kinds, evidence, findings, all)| Filter {
            since: since.map(|since| since * SECOND),
            until: until.map(|until| until * SECOND),
            user,
            pod,
            container,
            kinds,
            evidence,
            findings,
            all,
            ..Filter::default()
        },
    )
}

/// What the filter means, by the session itself.
fn takes(filter: &Filter, session: &Session) -> bool {
    let fits = |pattern: &Option<Pattern>, texts: &[&str]| {
        pattern.as_ref().is_none_or(|pattern| texts.iter().any(|text| pattern.fits(text)))
    };
    let user = session.user.clone().unwrap_or_default();
    let completed = session.request.as_ref().and_then(|request| request.completed);
    let ended = match (session.state, completed) {
        (State::Open, _) => u64::MAX,
        (_, Some(completed)) => completed.0,
        (_, None) => session.start.0,
    };
    filter.since.is_none_or(|since| ended >= since)
        && filter.until.is_none_or(|until| session.start.0 < until)
        && fits(&filter.user, &[&user.username, user.impersonated.as_deref().unwrap_or_default()])
        && fits(&filter.pod, &[&session.place.pod])
        && fits(&filter.container, &[session.place.container.as_deref().unwrap_or_default()])
        && (filter.kinds.is_empty() || filter.kinds.contains(&session.kind))
        && (filter.evidence.is_empty() || filter.evidence.contains(&session.evidence))
        && (filter.findings.is_empty() || session.findings.iter().any(|note| filter.findings.contains(&note.code)))
        && (filter.all || session.state != State::Superseded)
        && (filter.all || filter.kinds.contains(&Kind::Probe) || session.kind != Kind::Probe)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_question_is_answered_as_a_list_of_the_sessions_would(
        said in prop::collection::vec(said(), 1..60),
        filters in prop::collection::vec((filter(), 1_usize..20), 8),
        commit_every in 1_usize..20,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let template = recorded().0.into_iter().find(|it| !it.findings.is_empty() && it.user.is_some()).unwrap();
        let mut store = open(dir.path());
        let mut model: BTreeMap<Uuid, Session> = BTreeMap::new();
        let mut order: Vec<Uuid> = Vec::new();
        for (number, said) in said.iter().enumerate() {
            let id = Uuid::from_u128(u128::from(said.id) << 120 | 0x1234);
            let revision = model.get(&id).map_or(0, |known| known.revision) + 1;
            let session = as_session(said, revision, &template);
            store.told(std::slice::from_ref(&session), number as u64).unwrap();
            order.retain(|known| *known != id);
            order.push(id);
            model.insert(id, session);
            if number % commit_every == 0 {
                store.commit(cursor(number as u64), number as u64).unwrap();
            }
        }
        store.commit(cursor(99), 99).unwrap();

        let reader = Reader::open(dir.path()).unwrap();
        for (id, session) in &model {
            let found = reader.session(*id).unwrap();
            prop_assert_eq!(found.as_ref(), Some(session));
            let revisions: Vec<u32> = reader.revisions(*id).unwrap().iter().map(|it| it.revision).collect();
            prop_assert_eq!(revisions, (1..=session.revision).collect::<Vec<_>>());
            prop_assert_eq!(reader.find(&id.to_string()).unwrap(), Found::One(*id));
            prop_assert_eq!(reader.find(&id.to_string()[..2]).unwrap(), Found::One(*id));
        }
        for (filter, limit) in &filters {
            let mut expected: Vec<(u64, Uuid)> =
                model.values().filter(|it| takes(filter, it)).map(|it| (it.start.0, it.id)).collect();
            expected.sort_unstable();
            let older = expected.len().saturating_sub(*limit);
            let expected: Vec<Uuid> = expected.into_iter().skip(older).map(|(_, id)| id).collect();
            prop_assert_eq!(reader.sessions(filter, *limit).unwrap(), (expected, older > 0), "{:?}", filter);
            for (id, session) in &model {
                prop_assert_eq!(reader.takes(filter, *id).unwrap(), takes(filter, session));
            }
        }
        let told = reader.told(0, 1000).unwrap();
        let ids: Vec<Uuid> = told.iter().map(|(_, told)| match told {
            Told::Session(session) => session.id,
            Told::Finding(_) => panic!("no finding was told"),
        }).collect();
        prop_assert_eq!(ids, order);
        let backwards = reader.told_before(u64::MAX, 3).unwrap().unwrap().told;
        let last: Vec<u64> = told.iter().rev().take(3).map(|(number, _)| *number).collect();
        prop_assert_eq!(backwards.iter().map(|(number, _)| *number).collect::<Vec<_>>(), last);
    }
}

// === What is told again ===

#[test]
fn what_was_not_committed_is_not_there_and_what_is_told_twice_is_there_once() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (session(1), session(2));
    let mut store = open(dir.path());
    store.told(std::slice::from_ref(&first), 1).unwrap();
    store.commit(cursor(5), 1).unwrap();
    store.told(std::slice::from_ref(&second), 2).unwrap();
    drop(store);

    let mut store = open(dir.path());
    assert_eq!(store.begin(10).unwrap(), cursor(5));
    let reader = Reader::open(dir.path()).unwrap();
    assert_eq!(reader.session(second.id).unwrap(), None);
    let before = reader.last().unwrap();
    store.told(std::slice::from_ref(&first), 1).unwrap();
    store.commit(cursor(6), 1).unwrap();
    assert_eq!(reader.last().unwrap(), before, "nothing new was told");
    store.told(std::slice::from_ref(&second), 2).unwrap();
    store.commit(cursor(7), 2).unwrap();
    assert_eq!(reader.session(second.id).unwrap(), Some(second));
    assert_eq!(reader.last().unwrap().0, before.0 + 1);
}

#[test]
fn a_smaller_revision_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let old = session(1);
    let new = Session { revision: 2, evidence: Evidence::Ambiguous, ..old.clone() };
    store.told(&[old.clone(), new.clone()], 1).unwrap();
    store.told(&[old], 2).unwrap();
    store.commit(cursor(1), 2).unwrap();
    assert_eq!(store.totals().stale, 1);
    let reader = Reader::open(dir.path()).unwrap();
    assert_eq!(reader.session(new.id).unwrap(), Some(new));
}

#[test]
fn a_journal_that_is_shorter_than_what_was_read_is_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.commit(cursor(50), 1).unwrap();
    drop(store);
    let mut store = open(dir.path());
    let begun = store.begin(20).unwrap();
    assert_eq!((begun.replay_from, begun.read_until, begun.told_until_unix_ns), (0, 0, 50));
}

// === Activity ===

fn records(pid: u32, entry: &'static str, at: u64) -> Vec<(Arc<str>, NodeRecord)> {
    let inputs = tree(pid, &["sh", "-c", "id"], at).entry(entry).inputs();
    let of = |input| match input {
        seclog_correlator::join::Input::Node { node, record } => (node, record),
        other => panic!("{other:?}"),
    };
    inputs.into_iter().map(of).collect()
}

/// A session that tells of that root.
fn of_root(pid: u32, entry: &str, kind: Kind) -> Session {
    let mut session = session(pid);
    let mut root = recorded().0.into_iter().find_map(|it| it.root).unwrap();
    root.node = "node-1".to_owned();
    root.boot_id = "boot".to_owned();
    root.pid = pid;
    root.start_boottime_ns = u64::from(pid) * 1000;
    root.entry = entry.to_owned();
    session.kind = kind;
    session.root = Some(root);
    session
}

fn ids(dir: &Path, session: &Session) -> Vec<String> {
    let activity = Reader::open(dir).unwrap().activity(session).unwrap();
    activity.records.into_iter().map(|record| record.id).collect()
}

#[test]
fn records_of_a_root_are_kept_once_a_session_tells_of_it_before_and_after() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let of = records(100, "exec", BASE);
    let all: Vec<String> = of.iter().map(|(_, record)| record.id.clone()).collect();
    let session = of_root(100, "exec", Kind::Exec);
    store.record(&of[0].0, &of[0].1, 1, BASE).unwrap();
    store.commit(Cursor { read_until: 2, ..cursor(1) }, BASE).unwrap();
    assert!(ids(dir.path(), &session).is_empty());
    store.told(std::slice::from_ref(&session), BASE).unwrap();
    store.commit(Cursor { read_until: 2, ..cursor(1) }, BASE).unwrap();
    assert_eq!(ids(dir.path(), &session), all[..1]);
    for (node, record) in &of[1..3] {
        store.record(node, record, 2, BASE).unwrap();
    }
    store.commit(Cursor { read_until: 3, ..cursor(1) }, BASE).unwrap();
    drop(store);

    // A restart reads it all again, and goes on.
    let mut store = open(dir.path());
    store.begin(10).unwrap();
    for ((node, record), entry) in of.iter().zip([1, 2, 2, 3]) {
        store.record(node, record, entry, BASE).unwrap();
    }
    store.commit(Cursor { read_until: 4, ..cursor(1) }, BASE).unwrap();
    assert_eq!(ids(dir.path(), &session), all);
    let connection = Connection::open(dir.path().join(FILE)).unwrap();
    let rows: Vec<i64> = connection
        .prepare("SELECT raw_bytes FROM activity ORDER BY rowid")
        .unwrap()
        .query_map([], |row| row.get(0))
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let one = rows[0];
    assert!(rows.iter().sum::<i64>() < 5 * one, "none is there twice: {rows:?}");
}

#[test]
fn the_main_process_of_a_container_is_kept_where_the_container_was_made_to_enter_it() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for (node, record) in records(200, "start", BASE).iter().chain(&records(300, "start", BASE)) {
        store.record(node, record, 1, BASE).unwrap();
    }
    let (debug, attach) = (of_root(200, "start", Kind::DebugContainer), of_root(300, "start", Kind::Attach));
    store.told(&[debug.clone(), attach.clone()], BASE).unwrap();
    store.commit(cursor(2), BASE).unwrap();
    assert_eq!(ids(dir.path(), &debug).len(), 4);
    assert!(ids(dir.path(), &attach).is_empty(), "what others ran there is not the session's");
}

#[test]
fn records_that_no_session_came_of_are_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    for (node, record) in records(100, "exec_sync", BASE) {
        store.record(&node, &record, 1, BASE).unwrap();
    }
    store.commit(cursor(2), BASE).unwrap();
    assert_eq!(store.totals().activity.let_go, 0);
    store.commit(cursor(3), BASE + 3_600 * SECOND).unwrap();
    assert_eq!(store.totals().activity.let_go, 1);
    let late = of_root(100, "exec_sync", Kind::NodeEntry);
    store.told(std::slice::from_ref(&late), BASE + 3_600 * SECOND).unwrap();
    store.commit(cursor(4), BASE + 3_600 * SECOND).unwrap();
    assert!(ids(dir.path(), &late).is_empty());
}

#[test]
fn more_of_one_root_than_is_kept_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let session = of_root(100, "exec", Kind::Exec);
    let (node, mut record) = records(100, "exec", BASE).swap_remove(0);
    store.record(&node, &record, 1, BASE).unwrap();
    store.told(std::slice::from_ref(&session), BASE).unwrap();
    record.comm = "x".repeat(1 << 20);
    for number in 0..40 {
        record.id = format!("more-{number}");
        store.record(&node, &record, number, BASE).unwrap();
        store.commit(cursor(number), BASE).unwrap();
    }
    let activity = Reader::open(dir.path()).unwrap().activity(&session).unwrap();
    assert_eq!(activity.records.len() as u64 + activity.not_kept, 41);
    assert!((10..20).contains(&activity.records.len()), "{}", activity.records.len());
}

// === Retention ===

#[test]
fn beyond_its_bytes_the_store_lets_go_of_what_was_told_longest_ago_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits { bytes: 2 << 20, ..Limits::NONE };
    let mut store = Store::open(dir.path(), "guest", limits).unwrap();
    let count = 4_000_u32;
    for number in 0..count {
        let mut session = session(number);
        session.start = Timestamp(BASE + u64::from(number) * SECOND);
        session.reasons = vec!["why ".repeat(200)];
        store.told(&[session], BASE + u64::from(number) * SECOND).unwrap();
        if number % 50 == 0 {
            store.commit(cursor(1), BASE + u64::from(number) * SECOND).unwrap();
        }
    }
    for _ in 0..8 {
        store.commit(cursor(1), BASE + u64::from(count) * SECOND).unwrap();
    }
    assert!(store.totals().bytes <= limits.bytes, "{:?}", store.totals());
    let reader = Reader::open(dir.path()).unwrap();
    let (left, more) = reader.sessions(&Filter::default(), usize::MAX).unwrap();
    assert!(!more);
    let newest: Vec<Uuid> = (0..count).rev().take(left.len()).map(|number| session(number).id).rev().collect();
    assert_eq!(left, newest, "the newest stay");
    let deleted = reader.deleted().unwrap();
    assert_eq!(deleted.len(), 1);
    assert_eq!((deleted[0].why.as_str(), deleted[0].sessions), ("bytes", u64::from(count) - left.len() as u64));
    assert_eq!((deleted[0].oldest, deleted[0].newest), (BASE, BASE + (deleted[0].sessions - 1) * SECOND));
    let file = std::fs::metadata(dir.path().join(FILE)).unwrap().len();
    assert!(file < 4 * limits.bytes, "freed pages are used again: {file}");
    assert_eq!(reader.session(session(0).id).unwrap(), None);
    assert!(reader.revisions(session(0).id).unwrap().is_empty());
}

#[test]
fn what_was_told_too_long_ago_goes_with_its_activity_and_what_was_told_since_stays() {
    const DAY: u64 = 86_400 * SECOND;
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(dir.path(), "guest", Limits { age_ns: 2 * DAY, ..Limits::NONE }).unwrap();
    let (old, kept) = (of_root(100, "exec", Kind::Exec), of_root(200, "exec", Kind::Exec));
    for (node, record) in records(100, "exec", BASE).iter().chain(&records(200, "exec", BASE)) {
        store.record(node, record, 1, BASE).unwrap();
    }
    let finding = recorded().1.swap_remove(0);
    store.told(&[old.clone(), kept.clone()], BASE).unwrap();
    store.found(std::slice::from_ref(&finding), BASE).unwrap();
    store.commit(cursor(2), BASE).unwrap();
    let again = Session { revision: 2, evidence: Evidence::Ambiguous, ..kept.clone() };
    store.told(std::slice::from_ref(&again), BASE + DAY).unwrap();
    store.commit(cursor(3), BASE + DAY).unwrap();
    assert_eq!(ids(dir.path(), &old).len(), 4);
    store.commit(cursor(4), BASE + 2 * DAY + SECOND).unwrap();

    let reader = Reader::open(dir.path()).unwrap();
    assert_eq!(reader.session(old.id).unwrap(), None);
    assert!(ids(dir.path(), &old).is_empty());
    assert_eq!(reader.session(again.id).unwrap(), Some(again.clone()));
    assert_eq!(ids(dir.path(), &again).len(), 4);
    assert_eq!(reader.findings(None, None, &[], 10).unwrap(), (Vec::new(), false));
    let deleted = reader.deleted().unwrap();
    assert_eq!((deleted[0].why.as_str(), deleted[0].sessions, deleted[0].findings), ("age", 1, 1));
}

// === Files that are not as they should be ===

#[test]
fn only_one_writes() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path());
    assert!(matches!(Store::open(dir.path(), "guest", Limits::NONE), Err(StoreError::Locked(_))));
}

#[test]
fn a_store_is_of_one_cluster() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let other = Store::open(dir.path(), "other", Limits::NONE);
    assert!(matches!(other, Err(StoreError::Cluster { .. })), "{other:?}");
}

#[test]
fn what_is_damaged_or_of_another_format_is_put_aside_and_made_anew() {
    let newer = |path: &Path| {
        let connection = Connection::open(path).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
    };
    let garbage = |path: &Path| std::fs::write(path, "this is no database, and never was one. ".repeat(100)).unwrap();
    for (number, spoil) in [&newer as &dyn Fn(&Path), &garbage].into_iter().enumerate() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(FILE);
        let mut store = open(dir.path());
        store.told(&[session(1)], 1).unwrap();
        store.commit(cursor(9), 1).unwrap();
        drop(store);
        spoil(&path);
        match Reader::open(dir.path()) {
            Err(StoreError::Version { version: 99, .. }) if number == 0 => {}
            Err(StoreError::Damaged { .. }) if number == 1 => {}
            other => panic!("{other:?}"),
        }
        let mut store = open(dir.path());
        assert_eq!(store.begin(100).unwrap(), Cursor::default(), "everything is read again");
        assert!(dir.path().join(format!("{FILE}.damaged")).exists());
        let reader = Reader::open(dir.path()).unwrap();
        assert_eq!(reader.session(session(1).id).unwrap(), None);
    }
}

#[test]
fn a_store_that_was_found_damaged_in_use_is_made_anew_by_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.commit(cursor(9), 1).unwrap();
    store.condemn();
    drop(store);
    let mut store = open(dir.path());
    assert_eq!(store.begin(100).unwrap(), Cursor::default());
    drop(store);
    let mut store = open(dir.path());
    store.commit(cursor(3), 1).unwrap();
    drop(store);
    assert_eq!(open(dir.path()).begin(100).unwrap(), cursor(3), "it is not condemned for good");
}

#[test]
fn findings_that_their_session_does_not_name_any_more_are_not_given() {
    let dir = tempfile::tempdir().unwrap();
    let (sessions, findings) = recorded();
    let named: BTreeSet<Uuid> = sessions.iter().flat_map(|it| &it.findings).map(|note| note.id).collect();
    let mut store = open(dir.path());
    store.told(&sessions, 1).unwrap();
    store.found(&findings, 1).unwrap();
    store.commit(cursor(1), 1).unwrap();
    let reader = Reader::open(dir.path()).unwrap();
    let (found, _) = reader.findings(None, None, &[], 1000).unwrap();
    assert_eq!(found.len(), findings.len());
    let (entries, more) = reader.findings(None, None, &[Code::EntryWithoutAudit], 1).unwrap();
    assert_eq!((entries.len(), entries[0].code, more), (1, Code::EntryWithoutAudit, true));

    let without: Vec<Session> =
        sessions.into_iter().map(|it| Session { revision: it.revision + 1, findings: Vec::new(), ..it }).collect();
    store.told(&without, 2).unwrap();
    store.commit(cursor(2), 2).unwrap();
    let (found, _) = reader.findings(None, None, &[], 1000).unwrap();
    assert!(found.iter().all(|finding| finding.session.is_none()) && found.len() < findings.len(), "{named:?}");
}
