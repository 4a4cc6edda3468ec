//! The part of the Kubernetes API that gives pods and their logs, on loopback.

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, RawQuery, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use seclog_correlator::audit::Uri;
use seclog_proto::rfc3339;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What a pod's container has printed: time and line.
pub(crate) type Printed = Vec<(String, String)>;

#[derive(Default)]
pub(crate) struct Cluster {
    pub(crate) pods: BTreeMap<String, Printed>,
    /// Answers before the next log is given.
    pub(crate) errors: Vec<StatusCode>,
    /// The next log breaks off after so many bytes.
    pub(crate) cut_after: Option<usize>,
    /// Queries of logs, in order.
    pub(crate) asked: Vec<HashMap<String, String>>,
}

#[derive(Clone, Default)]
pub(crate) struct Server(pub(crate) Arc<Mutex<Cluster>>);

fn status(code: StatusCode, reason: &str) -> Response {
    let body = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": reason, "reason": reason,
        "code": code.as_u16(),
    });
    (code, [("content-type", "application/json")], body.to_string()).into_response()
}

fn pairs(query: Option<String>) -> HashMap<String, String> {
    Uri::parse(&format!("/?{}", query.unwrap_or_default())).query.into_iter().collect()
}

async fn list(State(server): State<Server>, RawQuery(query): RawQuery) -> Response {
    let query = pairs(query);
    assert_eq!(query.get("labelSelector").map(String::as_str), Some("app=kube-apiserver"));
    let pods: Vec<_> = server.0.lock().unwrap().pods.keys().cloned().collect();
    let pod = |name: &String| serde_json::json!({"metadata": {"name": name, "namespace": "hcp"}, "status": {"phase": "Running"}});
    let items: Vec<_> = pods.iter().map(pod).collect();
    let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": items});
    ([("content-type", "application/json")], list.to_string()).into_response()
}

async fn log(State(server): State<Server>, Path(pod): Path<String>, RawQuery(query): RawQuery) -> Response {
    let query = pairs(query);
    let mut cluster = server.0.lock().unwrap();
    let get = |name: &str| query.get(name).map(String::as_str);
    assert_eq!((get("container"), get("follow"), get("timestamps")), (Some("audit-logs"), Some("true"), Some("true")));
    cluster.asked.push(query.clone());
    if let Some(error) = cluster.errors.pop() {
        return status(error, "ContainerCreating");
    }
    if !cluster.pods.contains_key(&pod) {
        return status(StatusCode::NOT_FOUND, "NotFound");
    }
    let since = get("sinceTime").map_or(0, |since| rfc3339::parse(since).unwrap());
    let cut_after = cluster.cut_after.take();
    drop(cluster);
    // Whole log first, then what is printed later, as long as the pod is there.
    let follow = async_lines(server, pod, since, cut_after);
    Response::new(Body::from_stream(follow))
}

fn async_lines(
    server: Server,
    pod: String,
    since: u64,
    cut_after: Option<usize>,
) -> impl tokio_stream::Stream<Item = Result<Vec<u8>, std::io::Error>> {
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let mut given = 0;
        loop {
            let Some(printed) = server.0.lock().unwrap().pods.get(&pod).cloned() else { return };
            for (time, line) in printed.iter().skip(given).filter(|(time, _)| rfc3339::parse(time).unwrap() >= since) {
                let text = format!("{time} {line}\n").into_bytes();
                if let Some(cut) = cut_after.filter(|cut| *cut < text.len()) {
                    let _ = sender.send(Ok(text[..cut].to_vec())).await;
                    let _ = sender.send(Err(std::io::Error::other("connection reset"))).await;
                    return;
                }
                if sender.send(Ok(text)).await.is_err() {
                    return;
                }
            }
            given = printed.len();
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    tokio_stream::wrappers::ReceiverStream::new(receiver)
}

impl Server {
    /// Within a tokio runtime.
    pub(crate) fn serve(&self) -> SocketAddr {
        let app = Router::new()
            .route("/api/v1/namespaces/hcp/pods", get(list))
            .route("/api/v1/namespaces/hcp/pods/{pod}/log", get(log))
            .with_state(self.clone());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(axum_server::from_tcp(listener).unwrap().serve(app.into_make_service()));
        addr
    }

    pub(crate) fn print(&self, pod: &str, time: &str, line: &str) {
        let mut cluster = self.0.lock().unwrap();
        cluster.pods.entry(pod.to_owned()).or_default().push((time.to_owned(), line.to_owned()));
    }
}
