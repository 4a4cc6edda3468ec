//! The audit webhook's endpoint, over real TLS.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use http_body_util::{Full, StreamBody};
use hyper::body::Bytes;
use seclog_correlator::intake::Budget;
use seclog_correlator::intake::webhook::{Limits, Webhook};
use seclog_correlator::join::{Input, Route};
use seclog_correlator::journal::Journal;
use std::io::Write;
use std::net::SocketAddr;
use support::client::{Answer, request, send};
use support::journal::{Inputs, journal, journal_of, trail};
use support::pki::{Authority, Leaf};
use support::scene::Kept;
use tokio::sync::watch;

struct Endpoint {
    authority: Authority,
    kas: Leaf,
    addr: SocketAddr,
    inputs: Inputs,
    budget: Budget,
    _stop: watch::Sender<bool>,
}

fn endpoint(limits: Limits) -> Endpoint {
    endpoint_of(limits, journal())
}

fn endpoint_of(limits: Limits, (journal, inputs): (Journal, Inputs)) -> Endpoint {
    let authority = Authority::new();
    let (stop, stopped) = watch::channel(false);
    let any = "127.0.0.1:0".parse().unwrap();
    let trail = trail(&journal, inputs.dir.path(), &[Route::Webhook]);
    let budget = Budget::new(256 << 20);
    let webhook = Webhook::bind(any, authority.tls(), limits, "guest", trail, &budget, stopped).unwrap();
    let addr = webhook.addr;
    tokio::spawn(webhook.serve());
    Endpoint { kas: authority.client(), authority, addr, inputs, budget, _stop: stop }
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
        while let Some(batch) = endpoint.inputs.try_recv() {
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
    let other = good.replacen("\"auditID\":\"", "\"auditID\":\"x", 1);
    let answer = endpoint.post(format!(r#"[{good},{{"verb":7}},{other}]"#)).await;
    assert_eq!(answer.status, 200);
    let lost = endpoint.inputs.try_recv().unwrap();
    assert!(matches!(&lost[..], [Input::AuditLoss { count: Some(1), .. }]), "{lost:?}");
    let batch = endpoint.inputs.try_recv().unwrap();
    assert_eq!(batch.iter().filter(|input| matches!(input, Input::Audit { .. })).count(), 2);
    let kept = std::fs::read_to_string(endpoint.inputs.dir.path().join("quarantine/quarantine.jsonl")).unwrap();
    assert!(kept.contains("\"bytes_base64\":\"eyJ2ZXJiIjo3fQ==\""), "with its bytes: {kept}");
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
async fn a_journal_that_is_full_of_what_is_not_joined_asks_to_come_again() {
    let small = journal_of(|options| (options.most_bytes, options.segment_bytes) = (40_000, 10_000));
    let mut endpoint = endpoint_of(Limits::default(), small);
    let good = support::read("kas-audit.log").lines().find(|line| line.contains("/exec?")).unwrap().to_owned();
    let again = |number: u32| good.replacen("\"auditID\":\"", &format!("\"auditID\":\"{number}"), 1);
    let mut refused = endpoint.post(again(0)).await;
    for number in 1..100 {
        if refused.status != 200 {
            break;
        }
        refused = endpoint.post(again(number)).await;
    }
    assert_eq!((refused.status, refused.retry_after.as_deref()), (429, Some("1")));
    while endpoint.inputs.try_recv().is_some() {}
    assert_eq!(endpoint.post(again(200)).await.status, 200, "and takes it when the join has read");
}

fn gzip(body: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(body).unwrap();
    encoder.finish().unwrap()
}

fn packed(body: Vec<u8>) -> hyper::Request<Full<Bytes>> {
    let request = hyper::Request::builder().method("POST").uri("/").header("content-encoding", "gzip");
    request.body(Full::new(body.into())).unwrap()
}

impl Endpoint {
    async fn send_packed(&self, body: Vec<u8>) -> Answer {
        send(self.addr, &self.authority, Some(&self.kas), packed(body)).await.unwrap()
    }
}

#[tokio::test]
async fn a_body_may_be_packed_and_may_come_in_chunks_of_unknown_number() {
    let mut endpoint = endpoint(Limits::default());
    let lists = support::read("webhook-eventlists.jsonl");
    let with_exec: Vec<&str> = lists.lines().filter(|body| body.contains("/exec?")).collect();
    assert_eq!(endpoint.send_packed(gzip(with_exec[0].as_bytes())).await.status, 200);
    let pieces: Vec<Result<_, std::io::Error>> = with_exec[1]
        .as_bytes()
        .chunks(1000)
        .map(|piece| Ok(hyper::body::Frame::data(Bytes::copy_from_slice(piece))))
        .collect();
    let body = StreamBody::new(tokio_stream::iter(pieces));
    let chunked = hyper::Request::builder().method("POST").uri("/?timeout=30s").body(body).unwrap();
    assert_eq!(send(endpoint.addr, &endpoint.authority, Some(&endpoint.kas), chunked).await.unwrap().status, 200);
    let mut execs = 0;
    while let Some(batch) = endpoint.inputs.try_recv() {
        execs += batch.iter().filter(|input| matches!(input, Input::Audit { .. })).count();
    }
    let wanted = |body: &str| body.matches("/exec?").count();
    assert_eq!(execs, wanted(with_exec[0]) + wanted(with_exec[1]));
}

#[tokio::test]
async fn what_unpacks_to_more_than_a_body_may_be_is_refused_before_it_is_in_memory() {
    let endpoint = endpoint(Limits { body: 1 << 20, ..Limits::default() });
    let bomb = gzip(&vec![b' '; 200 << 20]);
    assert!(bomb.len() < 1 << 20);
    assert_eq!(endpoint.send_packed(bomb).await.status, 413);
    assert_eq!(endpoint.send_packed(b"no gzip".to_vec()).await.status, 400);
    assert!(endpoint.budget.most_held() <= 4 << 20, "{}", endpoint.budget.most_held());
    assert_eq!(endpoint.budget.held(), 0, "all is given back");
}

#[tokio::test]
async fn an_encoding_that_is_not_known_is_refused_in_words() {
    let endpoint = endpoint(Limits::default());
    let request = hyper::Request::builder().method("POST").uri("/").header("content-encoding", "br");
    let request = request.body(Full::<Bytes>::new("[]".into())).unwrap();
    let answer = send(endpoint.addr, &endpoint.authority, Some(&endpoint.kas), request).await.unwrap();
    assert_eq!(answer.status, 415);
    assert!(answer.body.contains("gzip"), "{}", answer.body);
}

#[tokio::test]
async fn without_memory_the_sender_is_told_to_come_again() {
    let endpoint = endpoint(Limits { patience: std::time::Duration::from_millis(100), ..Limits::default() });
    let everything = endpoint.budget.try_take(endpoint.budget.bytes()).unwrap();
    let answer = endpoint.post("[]").await;
    assert_eq!((answer.status, answer.retry_after.as_deref()), (429, Some("1")));
    drop(everything);
    assert_eq!(endpoint.post("[]").await.status, 200);
}

#[tokio::test]
async fn certificate_and_path_may_name_the_cluster_and_must_name_this_one() {
    let endpoint = endpoint(Limits::default());
    for (named, path, status) in [
        ("guest", "/", 200),
        ("guest", "/clusters/guest?timeout=30s", 200),
        ("guest", "/clusters/guest/kas", 200),
        ("other", "/", 403),
        ("guest", "/clusters/other", 403),
        ("guest", "/clusters/", 403),
    ] {
        let kas = endpoint.authority.kas(named);
        let answer = request(endpoint.addr, &endpoint.authority, Some(&kas), "POST", path, "[]").await.unwrap();
        assert_eq!(answer.status, status, "{named} {path}: {}", answer.body);
    }
}

#[tokio::test]
async fn what_is_sent_again_is_in_the_journal_once() {
    let mut endpoint = endpoint(Limits::default());
    let good = support::read("kas-audit.log").lines().find(|line| line.contains("/exec?")).unwrap().to_owned();
    for _ in 0..3 {
        assert_eq!(endpoint.post(good.clone()).await.status, 200);
    }
    let mut events = 0;
    while let Some(batch) = endpoint.inputs.try_recv() {
        events += batch.len();
    }
    assert_eq!(events, 1);
}

#[tokio::test]
async fn events_of_other_servers_that_share_the_webhook_are_fine() {
    let endpoint = endpoint(Limits::default());
    let event = r#"{"kind":"EventList","apiVersion":"audit.k8s.io/v1","metadata":{},"items":[
        {"auditID":"a","stage":"ResponseComplete","verb":"create","requestURI":"/oauth/authorize","user":{"username":"u"}},
        {"auditID":"b","stage":"ResponseComplete","verb":"get","objectRef":{"resource":"routes","apiGroup":"route.openshift.io"}}]}"#;
    assert_eq!(endpoint.post(event).await.status, 200);
}
