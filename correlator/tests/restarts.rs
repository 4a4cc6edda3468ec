//! The program through kills: what every route brings at once is in the journal once.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use flate2::Compression;
use flate2::write::GzEncoder;
use seclog_correlator::audit::{Digest, Feed};
use seclog_correlator::intake::now;
use seclog_correlator::join::Route;
use seclog_correlator::journal::Entry;
use seclog_journal::{Item, Reader};
use seclog_proto::rfc3339;
use seclog_proto::v1::JournalEntry;
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::client::request;
use support::pki::{Authority, Leaf};
use support::pod_logs::Server;
use support::program::{Running, last_lines};
use tempfile::TempDir;

/// The program is killed so often, and then left to end.
const KILLS: usize = 3;

struct Scene {
    dir: TempDir,
    authority: Authority,
    kas: Leaf,
    pods: Server,
    args: Vec<String>,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("logs/kas-0")).unwrap();
        let (authority, pods) = (Authority::new(), Server::default());
        let kubeconfig = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("http://{}", pods.serve())}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}], "users": [{"name": "u", "user": {}}],
        });
        let kubeconfig = authority.file("kubeconfig", &kubeconfig.to_string());
        let files = authority.server_files();
        let args = vec![
            "--audit-webhook-listen=127.0.0.1:0".to_owned(),
            format!("--tls-cert={}", files.cert.display()),
            format!("--tls-key={}", files.key.display()),
            format!("--client-ca={}", files.client_ca.display()),
            format!("--audit-log={}", dir.path().join("logs").display()),
            "--audit-stdin".to_owned(),
            "--audit-pods=hcp".to_owned(),
            format!("--audit-pods-kubeconfig={}", kubeconfig.display()),
            format!("--output={}", dir.path().join("out.jsonl").display()),
        ];
        Self { kas: authority.client(), authority, dir, pods, args }
    }

    fn start(&self) -> Running {
        let args: Vec<&str> = self.args.iter().map(String::as_str).collect();
        Running::start_fed(&self.dir.path().join("journal"), &args, Stdio::piped())
    }

    /// Posts what is left as an API server does: each body until it is answered 200, in several connections at once. Ends where
    /// nobody listens any more.
    async fn post(&self, running: &Running, bodies: &mut Vec<String>, answered: &AtomicUsize) {
        let addr = running.address("listening for audit webhook");
        let mut left = Vec::new();
        for some in bodies.chunks(3) {
            let each = some
                .iter()
                .map(|body| request(addr, &self.authority, Some(&self.kas), "POST", "/?timeout=30s", body.clone()));
            for (body, answer) in some.iter().zip(futures_util::future::join_all(each).await) {
                match answer {
                    Ok(answer) if answer.status == 200 => drop(answered.fetch_add(1, Ordering::Relaxed)),
                    _ => left.push(body.clone()),
                }
            }
        }
        *bodies = left;
    }

    fn log(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("logs/kas-0").join(name)
    }
}

/// Two requests at the same time under an audit id that their clients chose.
fn two_under_one_id() -> Vec<String> {
    let at = now() - 2_000_000_000;
    let event = |user: &str, stage: &str, after: u64| {
        serde_json::json!({
            "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": "chosen-by-the-client",
            "stage": stage, "verb": "get", "user": {"username": user}, "sourceIPs": ["10.0.0.1"], "userAgent": "k",
            "requestURI": "/api/v1/namespaces/shop/pods/other/exec?command=id", "responseStatus": {"code": 101},
            "objectRef": {"resource": "pods", "subresource": "exec", "namespace": "shop", "name": "other"},
            "requestReceivedTimestamp": rfc3339::format(at), "stageTimestamp": rfc3339::format(at + after),
        })
        .to_string()
    };
    let stages = [("ResponseStarted", 1_000_000), ("ResponseComplete", 900_000_000)];
    stages.iter().flat_map(|(stage, after)| ["mallory", "alice"].map(|user| event(user, stage, *after))).collect()
}

/// The `part`th of `KILLS + 1` parts.
fn part<T>(of: &[T], part: usize) -> &[T] {
    let cut = |number: usize| of.len() * number / (KILLS + 1);
    &of[cut(part)..cut(part + 1)]
}

/// How often each event that matters is in the journal.
fn copies(journal: &Path) -> BTreeMap<Digest, u32> {
    let (mut copies, mut feed, mut reader) = (BTreeMap::new(), Feed::default(), Reader::new(journal, 1));
    while let Some(item) = reader.next(u64::MAX).unwrap() {
        let Item::Entry(entry) = item else { panic!("{item:?}") };
        let decoded = <JournalEntry as prost::Message>::decode(entry.payload).unwrap();
        let Some(Entry::AuditEvents(events)) = decoded.entry else { continue };
        for event in &events.events {
            let event = feed.event(event).unwrap().expect("only what matters is kept");
            *copies.entry(event.fingerprint.whole).or_default() += 1;
        }
    }
    copies
}

#[tokio::test(flavor = "multi_thread")]
async fn what_four_routes_bring_at_once_is_in_the_journal_once_however_often_the_program_is_killed() {
    let scene = Scene::new();
    let mut lines: Vec<String> = support::read("kas-audit.log").lines().map(str::to_owned).collect();
    let two = two_under_one_id();
    lines.extend(two.iter().cloned());
    let mut bodies: Vec<String> = support::read("webhook-eventlists.jsonl").lines().map(str::to_owned).collect();
    bodies.extend(two.iter().map(|event| format!(r#"{{"kind":"EventList","items":[{event}]}}"#)));
    let mut to_post: Vec<String> = Vec::new();

    for round in 0..=KILLS {
        let mut running = scene.start();
        if round > 0 {
            let resumed = running.line("audit log: going on");
            let offset = resumed.rsplit_once("offset=").unwrap().1.trim();
            assert_ne!(offset.parse::<u64>().unwrap(), 0, "{resumed}");
        }
        // Everything of this part by all routes at once.
        to_post.extend(part(&bodies, round).iter().cloned());
        for line in part(&lines, round) {
            scene.pods.print("kas-0", &rfc3339::format(now()), line);
        }
        let mut input = running.child.stdin.take().unwrap();
        // What is piped begins anew with each start.
        let piped = lines[..lines.len() * (round + 1) / (KILLS + 1)].join("\n") + "\n";
        let feeding = std::thread::spawn(move || input.write_all(piped.as_bytes()).is_ok());
        let (path, text) = (scene.log("audit.log"), part(&lines, round).join("\n") + "\n");
        let written = Arc::new(AtomicBool::new(false));
        let (is_written, backup) = (Arc::clone(&written), scene.log("audit-2026-11-23T22-31-00.000.log"));
        let writing = std::thread::spawn(move || {
            let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            // In pieces that end within lines; and once with a rotation between two of them.
            for (number, piece) in text.as_bytes().chunks(1000).enumerate() {
                file.write_all(piece).unwrap();
                if number == 20 && round == 1 {
                    std::fs::rename(&path, &backup).unwrap();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            is_written.store(true, Ordering::Release);
        });
        let answered = AtomicUsize::new(0);
        let half = to_post.len() / 2;
        if round < KILLS {
            let posting = scene.post(&running, &mut to_post, &answered);
            let half_is_there = async {
                while answered.load(Ordering::Relaxed) < half {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            };
            tokio::select! {
                () = posting => {}
                () = half_is_there => {}
            }
            // What was answered in the last moment comes twice: an API server that lost the answer does the same.
            running.kill();
            writing.join().unwrap();
            let _ = feeding.join().unwrap();
            if round == 1 {
                compress(&scene.log("audit-2026-11-23T22-31-00.000.log"));
            }
            continue;
        }
        scene.post(&running, &mut to_post, &answered).await;
        assert_eq!(to_post.len(), 0);
        writing.join().unwrap();
        assert!(written.load(Ordering::Acquire) && feeding.join().unwrap());
        running.line("standard input has ended");
        assert_eq!(running.stop(), 0);
    }

    let wanted = Feed::default().lines((lines.join("\n") + "\n").as_bytes());
    let mut wanted: Vec<Digest> = wanted.events.iter().map(|event| event.fingerprint.whole).collect();
    wanted.sort();
    let copies = copies(&scene.dir.path().join("journal"));
    assert!(copies.values().all(|count| *count == 1), "{:?}", copies.values().max());
    assert_eq!(copies.into_keys().collect::<Vec<_>>(), wanted);

    let sessions = last_lines(&scene.dir.path().join("out.jsonl"));
    let under_one_id =
        sessions.iter().filter(|session| session.request.as_ref().unwrap().audit_id == "chosen-by-the-client");
    let users: Vec<&str> = under_one_id.map(|session| session.user.as_ref().unwrap().username.as_str()).collect();
    assert_eq!((sessions.len(), users.len()), (30, 2), "{users:?}");
    for session in &sessions {
        let by = |route: Route| session.attesters.contains(&format!("audit/{route}"));
        assert!([Route::File, Route::Webhook, Route::Stdin].into_iter().all(by), "{:?}", session.attesters);
    }
}

fn compress(log: &Path) {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(&std::fs::read(log).unwrap()).unwrap();
    std::fs::write(log.with_extension("log.gz"), packed.finish().unwrap()).unwrap();
    std::fs::remove_file(log).unwrap();
}
