//! The audit webhook's endpoint, over real TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use seclog_correlator::intake::webhook::{Limits, Webhook};
use seclog_correlator::intake::{Inputs, Queue, queue};
use seclog_correlator::join::Input;
use std::net::SocketAddr;
use std::time::Duration;
use support::client::{Answer, request};
use support::pki::{Authority, Leaf};
use support::scene::{BASE, Kept};
use tokio::sync::watch;

struct Endpoint {
    authority: Authority,
    kas: Leaf,
    addr: SocketAddr,
    inputs: Inputs,
    queue: Queue,
    _stop: watch::Sender<bool>,
}

fn endpoint(limits: Limits) -> Endpoint {
    let authority = Authority::new();
    let (queue, inputs) = queue();
    let (stop, stopped) = watch::channel(false);
    let any = "127.0.0.1:0".parse().unwrap();
    let webhook = Webhook::bind(any, &authority.server_files(), limits, queue.clone(), stopped).unwrap();
    let addr = webhook.addr;
    tokio::spawn(webhook.serve());
    Endpoint { kas: authority.client(), authority, addr, inputs, queue, _stop: stop }
}

impl Endpoint {
    async fn send(&self, method: &str, path: &str, body: impl Into<Vec<u8>>) -> Answer {
        request(self.addr, &self.authority, Some(&self.kas), method, path, body.into()).await.unwrap()
    }

    async fn post(&self, body: impl Into<Vec<u8>>) -> Answer {
        self.send("POST", "/", body).await
    }
}

#[tokio::test]
async fn recorded_bodies_reach_the_join_by_any_path_and_query() {
    let mut endpoint = endpoint(Limits::default());
    let mut join = seclog_correlator::join::Join::new(seclog_correlator::join::Config::new("guest"));
    for body in support::read("webhook-eventlists.jsonl").lines() {
        let answer = endpoint.send("POST", "/some/path?timeout=30s", body).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, ""));
        while let Ok(batch) = endpoint.inputs.try_recv() {
            batch.into_iter().for_each(|input| drop(join.apply(input)));
        }
    }
    let mut kept = Kept::default();
    kept.take(join.finish());
    // All that the recording's table lists but for what only the node saw.
    assert_eq!(kept.sessions().len(), 28);
    assert_eq!(kept.sessions()[0].attesters, ["audit/webhook"]);
}

#[tokio::test]
async fn a_client_without_a_certificate_or_with_a_strangers_is_refused() {
    let endpoint = endpoint(Limits::default());
    let none = request(endpoint.addr, &endpoint.authority, None, "POST", "/", "[]").await;
    assert!(none.is_err());
    let stranger = Authority::new().client();
    let stranger = request(endpoint.addr, &endpoint.authority, Some(&stranger), "POST", "/", "[]").await;
    assert!(stranger.is_err());
}

#[tokio::test]
async fn an_agent_cannot_speak_for_the_api_server() {
    let endpoint = endpoint(Limits::default());
    let agent = endpoint.authority.agent("guest", "node-1");
    let answer = request(endpoint.addr, &endpoint.authority, Some(&agent), "POST", "/", "[]").await.unwrap();
    assert_eq!(answer.status, 403);
    assert!(answer.body.contains("agent"), "{}", answer.body);
}

#[tokio::test]
async fn an_event_that_cannot_be_read_costs_no_neighbour() {
    let mut endpoint = endpoint(Limits::default());
    let good = support::read("kas-audit.log").lines().find(|line| line.contains("/exec?")).unwrap().to_owned();
    let answer = endpoint.post(format!(r#"[{good},{{"verb":7}},{good}]"#)).await;
    assert_eq!(answer.status, 200);
    let batch = endpoint.inputs.try_recv().unwrap();
    assert_eq!(batch.iter().filter(|input| matches!(input, Input::Audit { .. })).count(), 2);
    let lost = batch.iter().any(|input| matches!(input, Input::AuditLoss { count: Some(1), .. }));
    assert!(lost, "it is declared a loss");
}

#[tokio::test]
async fn what_is_no_audit_event_is_refused_in_words() {
    let endpoint = endpoint(Limits { body: 1000, ..Limits::default() });
    for (method, body, status, words) in [
        ("POST", b"hello".to_vec(), 400, "not JSON"),
        ("POST", b"{\"kind\":\"Pod\"}".to_vec(), 400, "neither an Event"),
        ("GET", Vec::new(), 405, "POST"),
        ("POST", vec![b' '; 1001], 413, "1000 bytes"),
        ("POST", Vec::new(), 400, "not JSON"),
    ] {
        let answer = endpoint.send(method, "/", body).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        assert!(answer.body.contains(words), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_full_queue_asks_to_come_again() {
    let mut endpoint = endpoint(Limits { patience: Duration::from_millis(100), ..Limits::default() });
    while let Ok(Some(room)) = endpoint.queue.room(Duration::from_millis(1)).await {
        room.send(vec![Input::Now(BASE)]);
    }
    let good = support::read("kas-audit.log").lines().find(|line| line.contains("/exec?")).unwrap().to_owned();
    let answer = endpoint.post(good.clone()).await;
    assert_eq!((answer.status, answer.retry_after.as_deref()), (429, Some("1")));
    endpoint.inputs.try_recv().unwrap();
    assert_eq!(endpoint.post(good).await.status, 200, "and takes it when there is room");
}
