//! Following the logs of API server pods, against a server that speaks the documented protocol of the Kubernetes API: lists of
//! pods, logs with follow, timestamps and sinceTime, and its errors.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use axum::http::StatusCode;
use seclog_correlator::intake::pods::{self, PodLogs};
use seclog_correlator::intake::stdin;
use seclog_correlator::intake::trail::Trail;
use seclog_correlator::intake::{Kind, audit_loss};
use seclog_correlator::join::{Input, Route};
use seclog_correlator::journal::Journal;
use std::time::Duration;
use support::journal::{Inputs, journal, trail};
use support::pod_logs::Server;
use tokio::sync::watch;

struct Followed {
    server: Server,
    journal: Journal,
    inputs: Inputs,
    client: kube::Client,
    seen: Vec<String>,
}

fn exec(user: &str) -> String {
    let event = serde_json::json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": user, "stage": "ResponseComplete",
        "verb": "get", "user": {"username": user}, "requestURI": "/api/v1/namespaces/n/pods/p/exec?command=id",
        "responseStatus": {"code": 101},
        "objectRef": {"resource": "pods", "subresource": "exec", "namespace": "n", "name": "p"},
        "requestReceivedTimestamp": "2026-01-01T00:00:00Z", "stageTimestamp": "2026-01-01T00:00:01Z",
    });
    event.to_string()
}

impl Followed {
    async fn new() -> Self {
        let server = Server::default();
        let addr = server.serve();
        let config = kube::Config::new(format!("http://{addr}").parse().unwrap());
        let (journal, inputs) = journal();
        Self { server, journal, inputs, client: config.try_into().unwrap(), seen: Vec::new() }
    }

    fn print(&self, pod: &str, second: u32, line: &str) {
        let time = format!("2026-01-01T00:00:{second:02}.5Z");
        let mut cluster = self.server.0.lock().unwrap();
        cluster.pods.entry(pod.to_owned()).or_default().push((time, line.to_owned()));
    }

    fn trail(&self) -> Trail {
        trail(&self.journal, self.inputs.dir.path(), &[Route::PodLog])
    }

    fn follow(&self) -> (watch::Sender<bool>, tokio::task::JoinHandle<()>) {
        let (stop, stopped) = watch::channel(false);
        (stop, tokio::spawn(pods::follow(self.client.clone(), PodLogs::of("hcp"), self.trail(), stopped)))
    }

    /// Waits until these users were seen, each once, in any order.
    async fn expect(&mut self, users: &[&str]) {
        let wanted: Vec<String> = users.iter().map(|user| (*user).to_owned()).collect();
        while self.seen.len() < wanted.len() {
            let batch = tokio::time::timeout(Duration::from_secs(30), self.inputs.recv()).await;
            let batch = batch.unwrap_or_else(|_| panic!("only {:?} came", self.seen)).unwrap();
            self.seen.extend(batch.into_iter().filter_map(|input| match input {
                Input::Audit { event, route } => {
                    assert!(matches!(route, Route::PodLog | Route::Stdin));
                    Some(event.user.username)
                }
                _ => None,
            }));
        }
        self.seen.sort();
        assert_eq!(self.seen, wanted);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_of_all_pods_are_followed_and_what_is_printed_again_is_taken_once() {
    let mut followed = Followed::new().await;
    followed.print("kas-0", 1, &exec("a"));
    followed.print("kas-1", 1, &exec("b"));
    let (stop, following) = followed.follow();
    followed.expect(&["a", "b"]).await;
    // The container restarts: it prints the whole file again, and goes on.
    followed.print("kas-0", 9, &exec("a"));
    followed.print("kas-0", 10, &exec("c"));
    followed.expect(&["a", "b", "c"]).await;
    stop.send(true).unwrap();
    following.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_and_broken_connections_are_outlived_without_loss_or_repetition() {
    let mut followed = Followed::new().await;
    followed.print("kas-0", 1, &exec("a"));
    {
        let mut cluster = followed.server.0.lock().unwrap();
        cluster.errors = vec![StatusCode::INTERNAL_SERVER_ERROR, StatusCode::BAD_REQUEST];
        cluster.cut_after = Some(100);
    }
    let (stop, following) = followed.follow();
    followed.expect(&["a"]).await;
    assert!(followed.server.0.lock().unwrap().asked.len() >= 4, "two errors, a cut, and the whole");
    // The pod goes: its log ends, and nothing else does.
    followed.server.0.lock().unwrap().pods.clear();
    stop.send(true).unwrap();
    following.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_a_log_is_asked_for_from_its_last_line_on() {
    let mut followed = Followed::new().await;
    followed.print("kas-0", 10, &exec("a"));
    let (stop, following) = followed.follow();
    followed.expect(&["a"]).await;
    // The place is on the disk when this is.
    tokio::time::sleep(Duration::from_millis(50)).await;
    stop.send(true).unwrap();
    following.await.unwrap();
    followed.journal.append(audit_loss("test", "to have all", None)).await.unwrap();
    followed.print("kas-0", 11, &exec("b"));
    let (stop, following) = followed.follow();
    followed.expect(&["a", "b"]).await;
    let asked = followed.server.0.lock().unwrap().asked.last().unwrap().get("sinceTime").cloned();
    assert_eq!(asked.as_deref(), Some("2026-01-01T00:00:09Z"), "whole seconds, never later than the last line");
    stop.send(true).unwrap();
    following.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn standard_input_is_read_to_its_end_and_a_last_line_without_an_end_counts() {
    let mut followed = Followed::new().await;
    let trail = trail(&followed.journal, followed.inputs.dir.path(), &[Route::Stdin]);
    let text = format!("{}\n2026-01-01T00:00:01.5Z {}\n{}", exec("a"), exec("b"), exec("c"));
    stdin::follow(text.as_bytes(), Kind::Audit(trail)).await.unwrap();
    followed.expect(&["a", "b", "c"]).await;
}
