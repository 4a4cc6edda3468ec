//! Enrolment over real TLS: tokens checked by keys and by an API server, what is signed and what is refused, and what a
//! certificate that was issued may then say.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod support;

use rcgen::{CertificateParams, KeyPair, SanType};
use seclog_correlator::enrol::{
    Authority as Signer, AuthorityError, Enrolment, Expected, Issued, Keys, Ledger, Review, Settings, TokenCheck,
};
use seclog_correlator::intake::Budget;
use seclog_correlator::join::finding::Code as FindingCode;
use seclog_correlator::join::{Config, Join};
use seclog_correlator::listen::{Door, Limits, Tls};
use seclog_correlator::telemetry::Telemetry;
use seclog_identity::{Facts, NodeIdentity};
use seclog_proto::v1::EnrolRequest;
use seclog_proto::v1::enrolment_client::EnrolmentClient;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use support::client::channel;
use support::journal::{Inputs, journal};
use support::kube_api::{Answer, KubeApi, accepted, pod};
use support::pki::Authority;
use support::token::{AUDIENCE, ISSUER, TokenKey};
use tempfile::TempDir;
use tokio::sync::watch;
use tonic::{Code, Status};

struct Office {
    addr: SocketAddr,
    authority: Authority,
    tls: Arc<Tls>,
    telemetry: Telemetry,
    directory: TempDir,
    inputs: Inputs,
    _stop: watch::Sender<bool>,
}

fn expected(issuer: bool) -> Expected {
    Expected {
        audience: AUDIENCE.to_owned(),
        issuer: issuer.then(|| ISSUER.to_owned()),
        namespace: "seclog".to_owned(),
        service_account: "seclog-agent".to_owned(),
    }
}

async fn office(check: TokenCheck) -> Office {
    let authority = Authority::new();
    let tls = authority.tls();
    let (stop, stopped) = watch::channel(false);
    let telemetry = Telemetry::default();
    let directory = tempfile::tempdir().unwrap();
    let (journal, inputs) = journal();
    let settings = Settings {
        cluster: "guest".to_owned(),
        expected: expected(matches!(check, TokenCheck::Keys(_))),
        check,
        authority: Signer::open(authority.signer_files(), Duration::from_secs(3600), Arc::clone(&tls)).unwrap(),
        ledger: Ledger::open(&directory.path().join("issued.jsonl"), 0).unwrap(),
        journal,
    };
    let door = Door::anonymous("enrolment", Arc::clone(&tls), Limits::default(), &Budget::new(64 << 20));
    let any = "127.0.0.1:0".parse().unwrap();
    let enrolment = Enrolment::bind(any, door, settings, &telemetry, stopped).await.unwrap();
    let addr = enrolment.addr;
    tokio::spawn(enrolment.serve());
    Office { addr, authority, tls, telemetry, directory, inputs, _stop: stop }
}

/// An office that knows these keys, and their file.
async fn office_with_keys(content: &str) -> (Office, PathBuf, TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    std::fs::write(&path, content).unwrap();
    (office(TokenCheck::Keys(Keys::open(&path).unwrap())).await, path, directory)
}

async fn office_with_api() -> (Office, KubeApi) {
    let api = KubeApi::start().await;
    let review = Review::open(&api.kubeconfig(None), Duration::from_millis(500)).await.unwrap();
    (office(TokenCheck::Review(review)).await, api)
}

fn request(key: &KeyPair) -> Vec<u8> {
    CertificateParams::default().serialize_request(key).unwrap().der().to_vec()
}

impl Office {
    async fn enrol(&self, token: &str, request: Vec<u8>) -> Result<String, Status> {
        self.enrol_of("guest", token, request).await
    }

    async fn enrol_of(&self, cluster: &str, token: &str, request: Vec<u8>) -> Result<String, Status> {
        let channel = channel(self.addr, &self.authority, None).await.unwrap();
        let request = EnrolRequest {
            token: token.to_owned(),
            request,
            cluster: cluster.to_owned(),
            agent_version: "0.1.0".to_owned(),
        };
        Ok(EnrolmentClient::new(channel).enrol(request).await?.into_inner().certificate_chain)
    }

    /// The refusal of a token, with a good request.
    async fn refusal(&self, token: &str) -> (Code, String) {
        let status = self.enrol(token, request(&KeyPair::generate().unwrap())).await.unwrap_err();
        (status.code(), status.message().to_owned())
    }

    fn issued(&self) -> Vec<Issued> {
        let text = std::fs::read_to_string(self.directory.path().join("issued.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn metric(&self, name: &str) -> String {
        let text = self.telemetry.render().unwrap();
        let prefix = format!("seclog_correlator_{name} ");
        text.lines().find_map(|line| line.strip_prefix(&prefix)).unwrap_or_else(|| panic!("{name}: {text}")).to_owned()
    }
}

fn identity(chain: &str) -> NodeIdentity {
    let chain = seclog_identity::certificates(chain.as_bytes()).unwrap();
    NodeIdentity::of_certificate(&chain[0]).unwrap()
}

#[tokio::test]
async fn the_certificate_names_the_node_of_the_token_whatever_the_request_says() {
    let key = TokenKey::new("one");
    let (office, ..) = office_with_keys(&TokenKey::jwks(&[&key])).await;
    let own = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["node-2".to_owned()]).unwrap();
    params.subject_alt_names.push(SanType::URI("seclog://guest/node-2".try_into().unwrap()));
    params.is_ca = rcgen::IsCa::NoCa;
    let lying = params.serialize_request(&own).unwrap().der().to_vec();
    let chain = office.enrol(&key.token("node-1", json!({})), lying).await.unwrap();
    assert_eq!(identity(&chain), NodeIdentity { cluster: "guest".into(), node: "node-1".into() });

    let certificates = seclog_identity::certificates(chain.as_bytes()).unwrap();
    assert_eq!(office.tls.check_client(&certificates), Ok(()), "it is let in");
    let facts = Facts::of(&certificates[0]).unwrap();
    let lifetime = facts.not_after - i64::try_from(seclog_correlator::intake::now() / 1_000_000_000).unwrap();
    assert!((3590..=3600).contains(&lifetime), "{lifetime}");
    let [issued] = &office.issued()[..] else { panic!("one line") };
    assert_eq!((issued.node.as_str(), issued.node_uid.as_str()), ("node-1", "node-1-uid"));
    assert_eq!((&issued.serial, &issued.key_sha256), (&facts.serial, &facts.key_sha256));
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificates[0]).unwrap();
    assert!(!parsed.is_ca());
    assert!(parsed.extended_key_usage().unwrap().unwrap().value.client_auth);
    assert!(!parsed.extended_key_usage().unwrap().unwrap().value.server_auth);
}

#[tokio::test]
async fn tokens_that_are_not_an_agents_are_refused_with_the_reason() {
    let (key, stranger) = (TokenKey::new("one"), TokenKey::new("one"));
    let (office, ..) = office_with_keys(&TokenKey::jwks(&[&key])).await;
    let now = seclog_correlator::intake::now() / 1_000_000_000;
    let pod_of_another = json!({ "kubernetes.io": { "serviceaccount": { "name": "default" } } });
    for (changes, code, words) in [
        (json!({ "aud": ["https://kubernetes.default.svc"] }), Code::Unauthenticated, "audience"),
        (json!({ "aud": "other" }), Code::Unauthenticated, "audience"),
        (json!({ "iss": "https://other.example" }), Code::Unauthenticated, "issuer"),
        (json!({ "exp": now - 3600 }), Code::Unauthenticated, "ended"),
        (json!({ "exp": null }), Code::Unauthenticated, "exp"),
        (json!({ "exp": "never" }), Code::Unauthenticated, "bound service account token"),
        (json!({ "nbf": now + 3600 }), Code::Unauthenticated, "ImmatureSignature"),
        (json!({ "sub": "system:serviceaccount:shop:seclog-agent" }), Code::PermissionDenied, "shop"),
        (json!({ "sub": "system:serviceaccount:seclog:default" }), Code::PermissionDenied, "default"),
        (pod_of_another, Code::PermissionDenied, "not of"),
        (json!({ "kubernetes.io": { "namespace": "shop" } }), Code::PermissionDenied, "not of"),
        (json!({ "kubernetes.io": { "node": null } }), Code::PermissionDenied, "names no node"),
        (json!({ "kubernetes.io": { "node": { "name": "a/b" } } }), Code::PermissionDenied, "no name of a node"),
        (json!({ "kubernetes.io": null }), Code::Unauthenticated, "bound service account token"),
    ] {
        let (found, message) = office.refusal(&key.token("node-1", changes.clone())).await;
        assert_eq!(found, code, "{changes}: {message}");
        assert!(message.contains(words), "{changes}: {message}");
    }
    let (code, message) = office.refusal(&stranger.token("node-1", json!({}))).await;
    assert_eq!(code, Code::Unauthenticated, "{message}");
    let good = key.token("node-1", json!({}));
    let unsigned = format!("{}.", good.rsplit_once('.').unwrap().0);
    for token in [unsigned.as_str(), "", "hello", "a.b.c", &"x".repeat(20_000)] {
        assert_eq!(office.refusal(token).await.0, Code::Unauthenticated, "{token:.40}");
    }
    assert_eq!(office.issued(), []);
    let status = office.enrol_of("other", &good, request(&KeyPair::generate().unwrap())).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(status.message().contains("serves cluster \"guest\""), "{status}");
}

/// `alg: none`, and HMAC with the public key as its secret: what a verifier that trusts the header would accept.
#[tokio::test]
async fn a_token_does_not_choose_how_it_is_checked() {
    let key = TokenKey::new("one");
    let (office, ..) = office_with_keys(&key.public_pem).await;
    let good = key.token("node-1", json!({}));
    let claims: Value = jsonwebtoken::dangerous::insecure_decode_claims(&good).unwrap();
    let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
    let secret = jsonwebtoken::EncodingKey::from_secret(key.public_pem.as_bytes());
    let confused = jsonwebtoken::encode(&header, &claims, &secret).unwrap();
    assert_eq!(office.refusal(&confused).await.0, Code::Unauthenticated);
    use base64::Engine as _;
    let none = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(r#"{"alg":"none","typ":"JWT"}"#);
    let none = format!("{none}.{}.", good.split('.').nth(1).unwrap());
    assert_eq!(office.refusal(&none).await.0, Code::Unauthenticated);
    office.enrol(&good, request(&KeyPair::generate().unwrap())).await.unwrap();
}

#[tokio::test]
async fn keys_are_followed_and_two_count_while_they_are_exchanged() {
    let (old, new) = (TokenKey::new("old"), TokenKey::new("new"));
    let (office, path, _directory) = office_with_keys(&old.public_pem).await;
    let csr = || request(&KeyPair::generate().unwrap());
    office.enrol(&old.token("node-1", json!({})), csr()).await.unwrap();
    assert_eq!(office.refusal(&new.token("node-2", json!({}))).await.0, Code::Unauthenticated);
    std::fs::write(&path, TokenKey::jwks(&[&old, &new])).unwrap();
    office.enrol(&old.token("node-3", json!({})), csr()).await.unwrap();
    office.enrol(&new.token("node-4", json!({})), csr()).await.unwrap();
    std::fs::write(&path, "garbage").unwrap();
    office.enrol(&new.token("node-5", json!({})), csr()).await.unwrap();
    std::fs::write(&path, &new.public_pem).unwrap();
    assert_eq!(office.refusal(&old.token("node-6", json!({}))).await.0, Code::Unauthenticated);
    office.enrol(&new.token("node-7", json!({})), csr()).await.unwrap();
}

#[tokio::test]
async fn what_is_no_request_for_a_p256_key_is_not_signed() {
    let key = TokenKey::new("one");
    let (office, ..) = office_with_keys(&TokenKey::jwks(&[&key])).await;
    let good = request(&KeyPair::generate().unwrap());
    let p384 = request(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap());
    let mut forged = good.clone();
    *forged.last_mut().unwrap() ^= 1;
    let longer = [good.as_slice(), b"x"].concat();
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("garbage", b"hello".to_vec()),
        ("another curve", p384),
        ("a signature of another key", forged),
        ("more than a request", longer),
        ("too much", vec![0x30; 9000]),
    ] {
        let status = office.enrol(&key.token("node-1", json!({})), bytes).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{what}: {status}");
    }
    assert_eq!(office.issued(), []);
    assert_eq!(office.metric("enrolments_refused_total"), "6");
}

#[tokio::test]
async fn a_second_key_of_a_node_is_told_and_a_renewal_is_not() {
    let key = TokenKey::new("one");
    let (mut office, ..) = office_with_keys(&TokenKey::jwks(&[&key])).await;
    let (own, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let token = key.token("node-1", json!({}));
    for _ in 0..2 {
        office.enrol(&token, request(&own)).await.unwrap();
    }
    assert_eq!(office.metric("enrolments_second_key_total"), "0");
    office.enrol(&token, request(&other)).await.unwrap();
    let counts =
        ["first", "renewed", "second_key", "replaced"].map(|what| office.metric(&format!("enrolments_{what}_total")));
    assert_eq!(counts, ["1", "1", "1", "0"]);
    let anew = key.token("node-1", json!({ "kubernetes.io": { "node": { "uid": "another" } } }));
    office.enrol(&anew, request(&KeyPair::generate().unwrap())).await.unwrap();
    assert_eq!(office.metric("enrolments_replaced_total"), "1");

    // The one is a finding, the others are not.
    let mut join = Join::new(Config::new("guest"));
    while let Some(inputs) = office.inputs.try_recv() {
        inputs.into_iter().for_each(|input| drop(join.apply(input)));
    }
    let [finding] = &join.take_findings()[..] else { panic!("one finding") };
    assert_eq!(finding.code, FindingCode::NodeKeySecond);
    let serial = &office.issued()[2].serial;
    assert!(finding.records.contains(&format!("certificate/{serial}")), "{finding:?}");
}

#[tokio::test]
async fn a_node_gets_so_many_certificates_an_hour() {
    let key = TokenKey::new("one");
    let (office, ..) = office_with_keys(&TokenKey::jwks(&[&key])).await;
    let own = KeyPair::generate().unwrap();
    for _ in 0..12 {
        office.enrol(&key.token("node-1", json!({})), request(&own)).await.unwrap();
    }
    let status = office.enrol(&key.token("node-1", json!({})), request(&own)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("within an hour"), "{status}");
    office.enrol(&key.token("node-2", json!({})), request(&own)).await.unwrap();
    assert_eq!(office.metric("enrolments_limited_total"), "1");
}

#[tokio::test]
async fn the_authority_is_exchanged_in_its_order_and_what_would_not_be_let_in_does_not_sign() {
    let key = TokenKey::new("one");
    let (office, ..) = office_with_keys(&TokenKey::jwks(&[&key])).await;
    let next = Authority::new();
    let next_files = next.signer_files();
    let signed_by = async |node: &str| {
        let chain = office.enrol(&key.token(node, json!({})), request(&KeyPair::generate().unwrap())).await.unwrap();
        let chain = seclog_identity::certificates(chain.as_bytes()).unwrap();
        (Facts::of(&chain[1]).unwrap().serial, office.tls.check_client(&chain))
    };
    let old = signed_by("node-1").await;
    let swap = |file: &str, from: &PathBuf| {
        office.authority.file(file, &std::fs::read_to_string(from).unwrap());
    };
    swap("enrol-ca.crt", &next_files.certificate);
    assert_eq!(signed_by("node-2").await, old, "half a change is none");
    swap("enrol-ca.key", &next_files.key);
    assert_eq!(signed_by("node-3").await, old, "the listeners do not know it yet");
    office.authority.file("ca.crt", &format!("{}{}", office.authority.pem, next.pem));
    assert!(office.tls.look());
    let new = signed_by("node-4").await;
    assert_ne!(new.0, old.0);
    assert_eq!(new.1, Ok(()));
}

#[tokio::test]
async fn what_is_no_authority_is_refused_at_the_start() {
    let authority = Authority::new();
    let open = |files| Signer::open(files, Duration::from_secs(60), authority.tls());
    let mut files = authority.signer_files();
    let leaf = authority.agent("guest", "node-1");
    authority.file("leaf.crt", &leaf.cert);
    files.certificate = authority.file("leaf.crt", &leaf.cert);
    assert!(matches!(open(files.clone()), Err(AuthorityError::Unfit { .. })), "the key is another's");
    files.key = authority.file("leaf.key", &leaf.key);
    let error = open(files).unwrap_err();
    assert!(error.to_string().contains("none of an authority"), "{error}");
    let error = open(Authority::new().signer_files()).unwrap_err();
    assert!(error.to_string().contains("--client-ca"), "{error}");
}

#[tokio::test]
async fn an_api_server_that_accepts_the_token_is_believed() {
    let (office, api) = office_with_api().await;
    let token = TokenKey::new("one").token("node-1", json!({}));
    api.reviews(Answer::Review(accepted(Some("node-1"))));
    let chain = office.enrol(&token, request(&KeyPair::generate().unwrap())).await.unwrap();
    assert_eq!(identity(&chain).node, "node-1");
    assert_eq!(api.asked(), [json!({ "token": token, "audiences": [AUDIENCE] })]);
}

#[tokio::test]
async fn an_api_server_that_does_not_accept_it_is_believed_too() {
    let (office, api) = office_with_api().await;
    let token = TokenKey::new("one").token("node-1", json!({}));
    let with = |changes: &[(&str, Value)]| {
        let mut status = accepted(Some("node-1"));
        for (pointer, value) in changes {
            *status.pointer_mut(pointer).unwrap() = value.clone();
        }
        Answer::Review(status)
    };
    let denied = json!({ "authenticated": false, "error": "[invalid bearer token, service account token has been invalidated]" });
    for (answer, code, words) in [
        (Answer::Review(denied), Code::Unauthenticated, "has been invalidated"),
        (Answer::Review(json!({})), Code::Unauthenticated, "does not know it"),
        (with(&[("/authenticated", json!(false))]), Code::Unauthenticated, "does not know it"),
        (with(&[("/audiences", json!(["https://kubernetes.default.svc"]))]), Code::Unauthenticated, "does not confirm"),
        (with(&[("/audiences", json!([]))]), Code::Unauthenticated, "does not confirm"),
        (with(&[("/user/username", json!("system:serviceaccount:shop:x"))]), Code::PermissionDenied, "shop"),
        (with(&[("/user/username", json!("system:node:node-1"))]), Code::PermissionDenied, "system:node"),
        (Answer::Review(accepted(Some("node-2"))), Code::PermissionDenied, "node-2"),
        (Answer::Failure(401, "Unauthorized"), Code::Unavailable, "renew the credentials"),
        (Answer::Failure(403, "cannot create resource \"tokenreviews\""), Code::Unavailable, "system:auth-delegator"),
        (Answer::Failure(500, "etcdserver: request timed out"), Code::Unavailable, "500"),
        (Answer::Failure(429, "too many requests"), Code::Unavailable, "429"),
        (Answer::Garbage, Code::Unavailable, "cannot be asked"),
        (Answer::Silence, Code::Unavailable, "did not answer within 500ms"),
    ] {
        api.reviews(answer);
        let (found, message) = office.refusal(&token).await;
        assert_eq!(found, code, "{message}");
        assert!(message.contains(words), "{words}: {message}");
    }
    assert_eq!(office.issued(), []);
    let asked = api.asked().len();
    let foreign = TokenKey::new("one").token("node-1", json!({ "aud": ["other"] }));
    assert_eq!(office.refusal(&foreign).await.0, Code::Unauthenticated);
    assert_eq!(api.asked().len(), asked, "what shows in the token itself costs the API server nothing");
}

#[tokio::test]
async fn before_kubernetes_1_30_the_pod_tells_the_node() {
    let (office, api) = office_with_api().await;
    let token = TokenKey::new("one").token("node-1", json!({ "kubernetes.io": { "node": null } }));
    api.reviews(Answer::Review(accepted(None)));
    api.pods(Answer::Review(pod("pod-uid", Some("node-1"))));
    let chain = office.enrol(&token, request(&KeyPair::generate().unwrap())).await.unwrap();
    assert_eq!(identity(&chain).node, "node-1");
    for (answer, code) in [
        (Answer::Review(pod("another", Some("node-1"))), Code::Unauthenticated),
        (Answer::Review(pod("pod-uid", None)), Code::PermissionDenied),
        (Answer::Failure(404, "pods \"seclog-agent-x7k2p\" not found"), Code::Unauthenticated),
        (Answer::Failure(403, "cannot get resource \"pods\""), Code::Unavailable),
    ] {
        api.pods(answer);
        let (found, message) = office.refusal(&token).await;
        assert_eq!(found, code, "{message}");
    }
}

#[tokio::test]
async fn the_kubeconfig_is_followed_and_one_that_gives_tokens_away_is_refused() {
    let api = KubeApi::start().await;
    let path = api.kubeconfig(Some("an old token"));
    let office = office(TokenCheck::Review(Review::open(&path, Duration::from_secs(5)).await.unwrap())).await;
    api.reviews(Answer::Review(accepted(Some("node-1"))));
    let token = TokenKey::new("one").token("node-1", json!({}));
    assert_eq!(office.refusal(&token).await.0, Code::Unavailable);
    api.kubeconfig(None);
    office.enrol(&token, request(&KeyPair::generate().unwrap())).await.unwrap();

    let good = std::fs::read_to_string(&path).unwrap();
    for (from, to, words) in [
        ("https://", "http://", "not https"),
        (r#""certificate-authority":"#, r#""insecure-skip-tls-verify":true,"x":"#, "insecure-skip-tls-verify"),
        (
            r#""token":"#,
            r#""exec":{"command":"/bin/true","apiVersion":"client.authentication.k8s.io/v1"},"x":"#,
            "exec",
        ),
    ] {
        let bad = path.with_file_name("bad");
        std::fs::write(&bad, good.replace(from, to)).unwrap();
        let error = Review::open(&bad, Duration::from_secs(1)).await.unwrap_err().to_string();
        assert!(error.contains(words), "{words}: {error}");
    }
}
