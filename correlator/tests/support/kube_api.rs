//! An API server over real TLS that answers token reviews and gets of pods as the documented protocol says, and goes wrong as
//! it is told to.

use super::pki::Authority;
use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum_server::tls_rustls::RustlsConfig;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What the API server expects of the correlator.
const OUR_TOKEN: &str = "the-correlators-own-token";

/// How a question is answered.
#[derive(Clone)]
pub(crate) enum Answer {
    /// `status` of the review.
    Review(Value),
    /// A `Status` object with this code.
    Failure(u16, &'static str),
    /// What is no JSON at all.
    Garbage,
    /// Never.
    Silence,
}

#[derive(Clone)]
pub(crate) struct KubeApi {
    pub(crate) addr: SocketAddr,
    authority: Arc<Authority>,
    state: Arc<Mutex<Script>>,
}

struct Script {
    review: Answer,
    pod: Answer,
    /// Specs of the reviews that were asked for.
    asked: Vec<Value>,
}

impl KubeApi {
    pub(crate) async fn start() -> Self {
        let authority = Arc::new(Authority::new());
        let state = Script { review: Answer::Garbage, pod: Answer::Garbage, asked: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        let config = RustlsConfig::from_config(authority.tls().anonymous());
        let server = axum_server::from_tcp_rustls(listener, config).unwrap();
        tokio::spawn(server.serve(router.into_make_service()));
        Self { addr, authority, state }
    }

    /// With the correlator's own credentials, or others.
    pub(crate) fn kubeconfig(&self, token: Option<&str>) -> PathBuf {
        let ca = self.authority.file("kube-ca.crt", &self.authority.pem);
        let content = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "hosted",
            "contexts": [{ "name": "hosted", "context": { "cluster": "hosted", "user": "correlator" } }],
            "clusters": [{
                "name": "hosted",
                "cluster": { "server": format!("https://localhost:{}", self.addr.port()), "certificate-authority": ca },
            }],
            "users": [{ "name": "correlator", "user": { "token": token.unwrap_or(OUR_TOKEN) } }],
        });
        self.authority.file("kubeconfig", &content.to_string())
    }

    pub(crate) fn reviews(&self, answer: Answer) {
        self.state.lock().unwrap().review = answer;
    }

    pub(crate) fn pods(&self, answer: Answer) {
        self.state.lock().unwrap().pod = answer;
    }

    pub(crate) fn asked(&self) -> Vec<Value> {
        self.state.lock().unwrap().asked.clone()
    }
}

/// The status of a review that accepts the agent's token on `node`.
pub(crate) fn accepted(node: Option<&str>) -> Value {
    let mut extra = json!({
        "authentication.kubernetes.io/credential-id": ["JTI=7ba5b2a5-7c5a-4f35-a9d5-7d6f8a1c33d1"],
        "authentication.kubernetes.io/pod-name": ["seclog-agent-x7k2p"],
        "authentication.kubernetes.io/pod-uid": ["pod-uid"],
    });
    if let Some(node) = node {
        extra["authentication.kubernetes.io/node-name"] = json!([node]);
        extra["authentication.kubernetes.io/node-uid"] = json!([format!("{node}-uid")]);
    }
    json!({
        "authenticated": true,
        "user": {
            "username": "system:serviceaccount:seclog:seclog-agent",
            "uid": "account-uid",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:seclog", "system:authenticated"],
            "extra": extra,
        },
        "audiences": [super::token::AUDIENCE],
    })
}

async fn answer(State(state): State<Arc<Mutex<Script>>>, request: Request) -> Response {
    let json = |status: StatusCode, body: Value| {
        (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
    };
    let failure = |code: u16, message: &str, reason: &str| {
        let status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        });
        json(StatusCode::from_u16(code).unwrap(), status)
    };
    let bearer = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if bearer != Some(&format!("Bearer {OUR_TOKEN}")) {
        return failure(401, "Unauthorized", "Unauthorized");
    }
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let scripted = match (method.as_str(), path.as_str()) {
        ("POST", "/apis/authentication.k8s.io/v1/tokenreviews") => {
            let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.unwrap();
            let review: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(
                (&review["kind"], &review["apiVersion"]),
                (&json!("TokenReview"), &json!("authentication.k8s.io/v1"))
            );
            let mut state = state.lock().unwrap();
            state.asked.push(review["spec"].clone());
            state.review.clone()
        }
        ("GET", "/api/v1/namespaces/seclog/pods/seclog-agent-x7k2p") => state.lock().unwrap().pod.clone(),
        _ => return failure(404, "the server could not find the requested resource", "NotFound"),
    };
    match scripted {
        Answer::Review(value) if method == "POST" => {
            let review = json!({
                "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {}, "spec": {}, "status": value,
            });
            json(StatusCode::CREATED, review)
        }
        Answer::Review(pod) => json(StatusCode::OK, pod),
        Answer::Failure(code, message) => failure(code, message, ""),
        Answer::Garbage => (StatusCode::OK, "<html>a proxy's page</html>").into_response(),
        Answer::Silence => {
            tokio::time::sleep(Duration::from_secs(3600)).await;
            StatusCode::OK.into_response()
        }
    }
}

/// The agent's pod.
pub(crate) fn pod(uid: &str, node: Option<&str>) -> Value {
    let mut pod = json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": { "name": "seclog-agent-x7k2p", "namespace": "seclog", "uid": uid },
        "spec": { "containers": [] },
    });
    if let Some(node) = node {
        pod["spec"]["nodeName"] = json!(node);
    }
    pod
}
