//! What several routes bring becomes one trail.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::audit::Feed;
use seclog_correlator::intake::trail::{Origin, Taken, Trail, TrailOptions};
use seclog_correlator::intake::{audit_loss, now};
use seclog_correlator::join::finding::Code;
use seclog_correlator::join::session::{Session, State};
use seclog_correlator::join::{Config, Join, Route};
use seclog_correlator::journal::{Entry, Journal};
use seclog_correlator::telemetry::Telemetry;
use seclog_proto::rfc3339;
use std::collections::BTreeMap;
use support::journal::{Inputs, journal, trail};

fn origin(route: Route) -> Origin {
    Origin { route, source: format!("{route}/test") }
}

async fn take(trail: &Trail, route: Route, text: &str) -> Taken {
    trail.take(origin(route), Feed::default().lines(text.as_bytes()), None).await.unwrap()
}

fn counts(new: u64, seen: u64, repeated: u64) -> (u64, u64, u64) {
    (new, seen, repeated)
}

fn of(taken: Taken) -> (u64, u64, u64) {
    (taken.new, taken.seen, taken.repeated)
}

fn exec(audit_id: &str, user: &str, received: u64, stage: &str) -> String {
    let at = |after: u64| rfc3339::format(received + after);
    let event = serde_json::json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata",
        "auditID": audit_id, "stage": stage, "verb": "get", "user": {"username": user},
        "requestURI": "/api/v1/namespaces/n/pods/p/exec?command=id", "responseStatus": {"code": 101},
        "objectRef": {"resource": "pods", "subresource": "exec", "namespace": "n", "name": "p"},
        "requestReceivedTimestamp": at(0), "stageTimestamp": at(1_000_000),
    });
    format!("{event}\n")
}

/// Everything that is in the journal; what nobody waited for is on the disk by then.
async fn journaled(journal: &Journal) -> Vec<Entry> {
    journal.append(audit_loss("test", "to have all", None)).await.unwrap();
    let mut entries = Vec::new();
    journal.since(0, |_, entry| entries.push(entry)).unwrap();
    entries
}

/// How often each event's text is in the journal.
async fn copies(journal: &Journal) -> BTreeMap<Vec<u8>, u32> {
    let mut copies = BTreeMap::new();
    for entry in journaled(journal).await {
        if let Entry::AuditEvents(events) = entry {
            events.events.iter().for_each(|event| *copies.entry(event.to_vec()).or_default() += 1);
        }
    }
    copies
}

fn join_all(inputs: &mut Inputs) -> (Vec<Session>, Join) {
    let mut join = Join::new(Config::new("guest"));
    while let Some(batch) = inputs.try_recv() {
        batch.into_iter().for_each(|input| drop(join.apply(input)));
    }
    let mut sessions = join.finish();
    sessions.sort_by_key(|session| session.start);
    (sessions, join)
}

const THREE: [Route; 3] = [Route::File, Route::Webhook, Route::Stdin];

#[tokio::test(flavor = "multi_thread")]
async fn the_same_events_by_three_routes_at_once_are_in_the_journal_once_with_their_routes() {
    let (journal, mut inputs) = journal();
    let trail = trail(&journal, inputs.dir.path(), &THREE);
    let (log, lists) = (support::read("kas-audit.log"), support::read("webhook-eventlists.jsonl"));
    let all = tokio::join!(
        take(&trail, Route::File, &log),
        take(&trail, Route::Webhook, &lists),
        take(&trail, Route::Stdin, &log),
    );
    let all = [all.0, all.1, all.2];
    let sum = |count: fn(&Taken) -> u64| all.iter().map(count).sum::<u64>();
    let new = sum(|taken| taken.new);
    assert!(new > 62, "{all:?}");
    assert_eq!((sum(|taken| taken.seen), sum(|taken| taken.repeated)), (2 * new, 0));
    let copies = copies(&journal).await;
    assert_eq!(copies.len() as u64, new);
    assert!(copies.values().all(|count| *count == 1));
    let (sessions, _) = join_all(&mut inputs);
    assert_eq!(sessions.len(), 28);
    for session in &sessions {
        assert_eq!(session.attesters, ["audit/file", "audit/stdin", "audit/webhook"], "{session:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_the_journal_says_what_is_known() {
    let (journal, inputs) = journal();
    let log = support::read("kas-audit.log");
    let first = take(&trail(&journal, inputs.dir.path(), &THREE), Route::File, &log).await;
    let again = trail(&journal, inputs.dir.path(), &THREE);
    assert_eq!(of(take(&again, Route::File, &log).await), counts(0, 0, first.new));
    assert_eq!(of(take(&again, Route::Stdin, &log).await), counts(0, first.new, 0));
    let once_more = trail(&journal, inputs.dir.path(), &THREE);
    assert_eq!(of(take(&once_more, Route::Stdin, &log).await), counts(0, 0, first.new));
    assert!(copies(&journal).await.values().all(|count| *count == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_parallel_execs_under_one_audit_id_stay_two_and_are_a_finding() {
    let (journal, mut inputs) = journal();
    let trail = trail(&journal, inputs.dir.path(), &[Route::Webhook]);
    let at = now() - 5_000_000_000;
    let text: String = [
        exec("chosen", "alice", at, "ResponseStarted"),
        exec("chosen", "alice", at + 1_000_000, "ResponseStarted"),
        exec("chosen", "alice", at, "ResponseComplete"),
        exec("chosen", "alice", at + 1_000_000, "ResponseComplete"),
    ]
    .concat();
    assert_eq!(of(take(&trail, Route::Webhook, &text).await), counts(4, 0, 0));
    let (sessions, mut join) = join_all(&mut inputs);
    assert_eq!(sessions.len(), 2);
    let findings = join.take_findings();
    assert!(findings.iter().any(|finding| finding.code == Code::AuditIdReused), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_contents_of_one_moment_are_both_kept_and_a_finding() {
    let (journal, inputs) = journal();
    let trail = trail(&journal, inputs.dir.path(), &[Route::Webhook, Route::File]);
    let written = |node: &str| {
        let event = serde_json::json!({
            "auditID": "a", "stage": "ResponseComplete", "verb": "create", "user": {"username": "system:kube-scheduler"},
            "requestURI": "/api/v1/namespaces/n/pods/p/binding", "responseStatus": {"code": 201},
            "objectRef": {"resource": "pods", "subresource": "binding", "namespace": "n", "name": "p"},
            "requestObject": {"kind": "Binding", "target": {"kind": "Node", "name": node}},
            "requestReceivedTimestamp": rfc3339::format(now()), "stageTimestamp": rfc3339::format(now()),
        });
        event.to_string()
    };
    let one = written("node-1");
    let other = one.replace("node-1", "node-2");
    assert_eq!(of(take(&trail, Route::File, &one).await), counts(1, 0, 0));
    assert_eq!(of(take(&trail, Route::Webhook, &other).await), counts(1, 0, 0));
    assert_eq!(copies(&journal).await.len(), 2);
    let is_disagreement =
        |entry: &Entry| matches!(entry, Entry::AuditFinding(finding) if finding.code == "audit-disagreement");
    assert_eq!(journaled(&journal).await.iter().filter(|entry| is_disagreement(entry)).count(), 1);
    // Bodies that the API server left out for one backend are no disagreement.
    let mut cut: serde_json::Value = serde_json::from_str(&one).unwrap();
    cut.as_object_mut().unwrap().remove("requestObject");
    cut["annotations"] = serde_json::json!({"audit.k8s.io/truncated": "true"});
    assert_eq!(of(take(&trail, Route::Webhook, &cut.to_string()).await), counts(0, 1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_by_one_route_alone_is_a_finding_after_the_horizon_and_others_are_none() {
    let (journal, inputs) = journal();
    let trail = trail(&journal, inputs.dir.path(), &[Route::Webhook, Route::File]);
    let at = now();
    let (both, alone) =
        (exec("both", "alice", at, "ResponseStarted"), exec("alone", "mallory", at + 1, "ResponseStarted"));
    take(&trail, Route::File, &both).await;
    take(&trail, Route::Webhook, &format!("{both}{alone}")).await;
    assert_eq!(trail.judge(at, &BTreeMap::new()).await, [], "not before the horizon");
    let found = trail.judge(now() + 1, &BTreeMap::from([(Route::File, at)])).await;
    let [Entry::AuditFinding(finding)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(
        (finding.code.as_str(), finding.records.as_slice()),
        ("one-route-only", ["alone".to_owned()].as_slice())
    );
    assert!(finding.text.contains("1 of them remote access"), "{}", finding.text);
    assert!(finding.text.contains("file (silent since"), "{}", finding.text);
    assert_eq!(trail.judge(now() + 1, &BTreeMap::new()).await, [], "once");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_route_configured_nothing_is_missing() {
    let (journal, inputs) = journal();
    let trail = trail(&journal, inputs.dir.path(), &[Route::Webhook]);
    take(&trail, Route::Webhook, &exec("a", "alice", now(), "ResponseStarted")).await;
    assert_eq!(trail.judge(now() + 1, &BTreeMap::new()).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_older_than_the_horizon_are_late_and_open_nothing_as_live() {
    let (journal, mut inputs) = journal();
    let trail = trail(&journal, inputs.dir.path(), &[Route::Webhook]);
    let hour = 3_600_000_000_000;
    let (old, new) = (now() - hour, now() - 1_000_000_000);
    let text = [exec("old", "alice", old, "ResponseStarted"), exec("new", "bob", new, "ResponseStarted")].concat();
    let taken = take(&trail, Route::Webhook, &text).await;
    assert_eq!((taken.new, taken.late), (2, 1));
    let (sessions, _) = join_all(&mut inputs);
    let state = |user: &str| {
        sessions.iter().find(|session| session.user.as_ref().unwrap().username == user).map(|session| session.state)
    };
    assert_eq!((state("alice"), state("bob")), (Some(State::Closed), Some(State::Open)));
    assert!(sessions[0].reasons.iter().any(|reason| reason.contains("came late")), "{:?}", sessions[0].reasons);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_journal_could_not_take_is_new_when_it_comes_again() {
    let (journal, inputs) = support::journal::journal_of(|options| {
        options.most_bytes = 64 << 10;
        options.segment_bytes = 16 << 10;
    });
    let trail = trail(&journal, inputs.dir.path(), &[Route::Webhook]);
    let mut refused = None;
    for number in 0..1000 {
        let text: String =
            (0..20).map(|item| exec(&format!("{number}-{item}"), "alice", now(), "ResponseStarted")).collect();
        let batch = Feed::default().lines(text.as_bytes());
        if let Err(error) = trail.take(origin(Route::Webhook), batch, None).await {
            refused = Some((text, error));
            break;
        }
    }
    let (text, error) = refused.expect("nobody reads the journal, so it fills up");
    assert!(error.to_string().contains("--journal-bytes"), "{error}");
    let batch = Feed::default().lines(text.as_bytes());
    assert!(trail.take(origin(Route::Webhook), batch, None).await.is_err(), "it is no repetition: refused again");
}

#[tokio::test(flavor = "multi_thread")]
async fn routes_that_fall_silent_are_told_and_the_watermark_moves() {
    let (journal, inputs) = journal();
    let telemetry = Telemetry::default();
    let options = TrailOptions {
        silent_ns: 1_500_000_000,
        ..TrailOptions::new(vec![Route::File, Route::Webhook], inputs.dir.path().join("quarantine"))
    };
    let trail = Trail::open(journal.clone(), options, &telemetry).unwrap();
    let health = trail.health(Route::File);
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let watching = tokio::spawn(trail.clone().watch(stopped));
    let at = now();
    take(&trail, Route::File, &exec("a", "alice", at, "ResponseStarted")).await;
    health.is_read_until(at);
    let (mut told, mut until) = (false, 0);
    while !told || until == 0 {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        for entry in journaled(&journal).await {
            match entry {
                Entry::AuditRoute(route) => told |= route.route == "webhook" && route.silent_since_unix_ns > 0,
                Entry::AuditWatermark(watermark) => until = watermark.until_unix_ns,
                _ => {}
            }
        }
    }
    assert_eq!(until, at - 2_000_000_000);
    stop.send(true).unwrap();
    watching.await.unwrap();
    let text = telemetry.render().unwrap();
    for line in [
        "seclog_correlator_audit_events_total{route=\"file\"} 1",
        "seclog_correlator_audit_route_silent{route=\"webhook\"} 1",
        "seclog_correlator_audit_sources{route=\"file\"} 1",
    ] {
        assert!(text.contains(line), "no {line} in\n{text}");
    }
    assert!(inputs.dir.path().exists());
}
