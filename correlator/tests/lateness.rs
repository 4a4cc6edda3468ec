//! Audit events that come late: what is told meanwhile says so, and the name is there in the end.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::audit::NodeLease;
use seclog_correlator::join::finding::{Code, Finding};
use seclog_correlator::join::session::{Evidence, Kind, Session, State};
use seclog_correlator::join::{Config, Input, Join, Route, Source};
use std::collections::BTreeMap;
use support::scene::{BASE, Kept, MS, SECOND, ask, tree};
use uuid::Uuid;

/// A cluster, second by second.
struct Cluster {
    join: Join,
    kept: Kept,
    /// All revisions in the order in which they were told, and the second.
    told: Vec<(u64, Session)>,
    findings: Vec<Finding>,
    /// What comes at a second.
    to_come: BTreeMap<u64, Vec<Input>>,
    second: u64,
}

impl Cluster {
    fn new() -> Self {
        let mut join = Join::new(Config::new("guest"));
        join.apply(Input::Now(BASE));
        // Nodes renew their leases: the stream is never idle.
        join.apply(Input::Lease(NodeLease { node: "node-1".to_owned(), time: BASE }));
        Self { join, kept: Kept::default(), told: vec![], findings: vec![], to_come: BTreeMap::new(), second: 0 }
    }

    /// An exec at that second, of which the node tells at once and the webhook at `heard`.
    fn exec(&mut self, user: &'static str, second: u64, heard: u64) {
        let at = BASE + second * SECOND;
        let asked = ask(user, &["sh", "-c", user], at - 200 * MS).stages();
        self.to_come.entry(heard).or_default().extend(asked);
        self.to_come
            .entry(second)
            .or_default()
            .extend(tree(100 * (second as u32 + 1), &["sh", "-c", user], at).inputs());
    }

    /// Up to that second; each second something comes by the webhook where `is_heard`, whose watermark is 250 s behind.
    fn until(&mut self, second: u64, is_heard: bool) {
        while self.second < second {
            self.second += 1;
            let now = BASE + self.second * SECOND;
            for input in self.to_come.remove(&self.second).unwrap_or_default() {
                assert!(self.join.apply(input).is_empty());
            }
            self.join.apply(Input::Watermark { source: Source::Node("node-1".into()), until: now });
            if is_heard {
                self.join.apply(Input::Watermark { source: Source::Audit, until: now - 250 * SECOND });
            }
            let told = self.join.apply(Input::Now(now));
            self.kept.take(told.clone());
            self.told.extend(told.into_iter().map(|session| (self.second, session)));
            self.findings.extend(self.join.take_findings());
        }
    }

    fn of(&self, id: Uuid) -> Vec<&(u64, Session)> {
        self.told.iter().filter(|(_, session)| session.id == id).collect()
    }

    fn users(&self) -> Vec<(Evidence, String)> {
        let user = |session: &Session| session.user.as_ref().map(|user| user.username.clone()).unwrap_or_default();
        self.kept.sessions().iter().map(|session| (session.evidence, user(session))).collect()
    }
}

fn says(session: &Session, what: &str) -> bool {
    session.coverage.iter().any(|note| note.starts_with(what))
}

#[test]
fn through_250_seconds_of_retries_entries_say_that_the_route_is_silent_and_get_their_names() {
    let mut cluster = Cluster::new();
    cluster.exec("alice", 100, 350);
    cluster.exec("bob", 320, 500);
    cluster.until(60, true);
    cluster.until(310, false);
    let (at, entry) = cluster.told.first().cloned().unwrap();
    assert_eq!((at, entry.evidence, entry.kind), (180, Evidence::NodeOnly, Kind::NodeEntry), "once it is silent");
    assert!(says(&entry, "audit route silent: "), "{:?}", entry.coverage);
    let found: Vec<(Code, bool)> =
        cluster.findings.iter().map(|finding| (finding.code, finding.text.contains("audit route silent"))).collect();
    assert_eq!(found, [(Code::AuditSilent, false), (Code::EntryWithoutAudit, true)], "the alarm says so itself");

    cluster.until(700, true);
    assert_eq!(cluster.users(), [(Evidence::Unique, "alice".to_owned()), (Evidence::Unique, "bob".to_owned())]);
    let (at, last) = cluster.of(entry.id).last().copied().unwrap();
    let alice = cluster.kept.sessions().remove(0);
    assert_eq!((last.state, last.superseded_by), (State::Superseded, Some(alice.id)));
    assert!((350..360).contains(at), "{at}");
    // bob's event was one of those that were tried again: nobody took him for somebody without a name.
    let others =
        cluster.told.iter().filter(|(_, session)| session.evidence == Evidence::NodeOnly && session.id != entry.id);
    assert_eq!(others.count(), 0);
}

#[test]
fn a_session_that_is_told_before_the_watermark_says_so_and_no_longer_when_that_is_past() {
    let mut cluster = Cluster::new();
    cluster.to_come.insert(100, tree(100, &["sh"], BASE + 100 * SECOND).inputs());
    cluster.until(500, true);
    let told: Vec<(u64, u32, bool)> = cluster
        .told
        .iter()
        .map(|(at, session)| (*at, session.revision, says(session, "audit not complete: ")))
        .collect();
    assert_eq!(told, [(145, 1, true), (351, 2, false)]);
    assert!(cluster.told[1].1.coverage.is_empty() && cluster.told[1].1.evidence == Evidence::NodeOnly);
    assert_eq!(cluster.findings.len(), 1, "{:?}", cluster.findings);
    let text = |number: usize| cluster.told[number].1.findings[0].text.contains("audit not complete");
    assert_eq!((text(0), text(1)), (true, false));
}

#[test]
fn an_entry_waits_for_its_request_while_events_come_late_and_no_longer_than_they_are_tried() {
    let mut cluster = Cluster::new();
    // carol's event shows that events are tried again; dave's takes as long as any may; mallory asked nobody.
    cluster.exec("carol", 100, 200);
    cluster.exec("dave", 210, 455);
    cluster.to_come.entry(220).or_default().extend(tree(90_000, &["id"], BASE + 220 * SECOND).inputs());
    cluster.until(600, true);
    let first: BTreeMap<Uuid, (u64, Evidence)> =
        cluster.told.iter().rev().map(|(at, session)| (session.id, (*at, session.evidence))).collect();
    let mut entries: Vec<u64> =
        first.values().filter(|(_, evidence)| *evidence == Evidence::NodeOnly).map(|(at, _)| *at).collect();
    entries.sort_unstable();
    // carol entered while everything was on time. mallory is told when the last try is over.
    assert_eq!(entries, [145, 470]);
    assert_eq!(cluster.users().iter().filter(|(evidence, _)| *evidence == Evidence::Unique).count(), 2);
}

#[test]
fn a_route_that_the_intake_calls_silent_is_waited_for_no_longer_and_is_again_when_it_is_heard() {
    let mut cluster = Cluster::new();
    cluster.exec("alice", 10, 12);
    cluster.until(60, true);
    let silent = |since| Input::AuditRoute { route: Route::Webhook, silent_since: since };
    cluster.to_come.insert(106, vec![silent(Some(BASE + 60 * SECOND))]);
    cluster.to_come.entry(107).or_default().extend(tree(500, &["id"], BASE + 107 * SECOND).inputs());
    cluster.until(155, false);
    let (at, entry) = cluster.told.last().cloned().unwrap();
    assert_eq!((at, entry.evidence), (152, Evidence::NodeOnly), "not later than where all is on time");
    assert!(entry.coverage[0].contains(" by webhook since "), "{:?}", entry.coverage);

    cluster.to_come.insert(156, vec![silent(None)]);
    cluster.to_come.entry(157).or_default().extend(tree(700, &["date"], BASE + 157 * SECOND).inputs());
    cluster.until(250, true);
    let of_date = |(_, session): &&(u64, Session)| session.root.as_ref().is_some_and(|root| root.pid == 700);
    assert_eq!(cluster.told.iter().find(of_date), None, "what is tried again may still come");
}

#[test]
fn what_a_log_brings_later_within_the_horizon_names_the_session_and_later_still_stands_beside_it() {
    let backfilled_after = |seconds: u64| {
        let mut cluster = Cluster::new();
        cluster.exec("alice", 100, 100 + seconds);
        cluster.until(60, true);
        cluster.until(100 + seconds - 1, false);
        cluster.until(100 + seconds + 30, true);
        cluster
    };
    let cluster = backfilled_after(900);
    assert_eq!(cluster.users(), [(Evidence::Unique, "alice".to_owned())]);
    let late = backfilled_after(1_500);
    let sessions = late.kept.sessions();
    let evidence: Vec<Evidence> = sessions.iter().map(|session| session.evidence).collect();
    assert_eq!(evidence, [Evidence::AuditOnly, Evidence::NodeOnly], "{sessions:#?}");
}
