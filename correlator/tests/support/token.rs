//! Service account tokens as an API server makes them, with a key of the test's own.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PublicKeyData as _};
use seclog_correlator::intake::now;
use serde_json::{Value, json};

pub(crate) const ISSUER: &str = "https://kubernetes.default.svc";
pub(crate) const AUDIENCE: &str = "seclog-enrolment";

/// The key pair that an API server signs tokens with.
pub(crate) struct TokenKey {
    signing: EncodingKey,
    /// `PUBLIC KEY` in PEM.
    pub(crate) public_pem: String,
    jwk: Value,
}

impl TokenKey {
    pub(crate) fn new(id: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let (signing, public_pem) = (EncodingKey::from_ec_der(&key.serialize_der()), key.public_key_pem());
        // Uncompressed point: 4, x, y.
        let point = key.der_bytes();
        let coordinate = |bytes: &[u8]| {
            use base64::Engine as _;
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
        };
        let (x, y) = (coordinate(&point[1..33]), coordinate(&point[33..65]));
        let jwk = json!({ "use": "sig", "kty": "EC", "kid": id, "crv": "P-256", "alg": "ES256", "x": x, "y": y });
        Self { signing, public_pem, jwk }
    }

    /// As `/openid/v1/jwks` answers.
    pub(crate) fn jwks(keys: &[&Self]) -> String {
        json!({ "keys": keys.iter().map(|key| &key.jwk).collect::<Vec<_>>() }).to_string()
    }

    /// A token of the agent's pod on `node`, with claims replaced or, by null, taken away.
    pub(crate) fn token(&self, node: &str, changes: Value) -> String {
        let mut claims = claims(node);
        merge(&mut claims, changes);
        let mut header = Header::new(Algorithm::ES256);
        header.kid = self.jwk["kid"].as_str().map(str::to_owned);
        encode(&header, &claims, &self.signing).unwrap()
    }
}

/// What a token of Kubernetes 1.30 and later holds that kubelet projected into a pod.
fn claims(node: &str) -> Value {
    let seconds = now() / 1_000_000_000;
    json!({
        "aud": [AUDIENCE],
        "exp": seconds + 3600,
        "iat": seconds,
        "iss": ISSUER,
        "jti": "7ba5b2a5-7c5a-4f35-a9d5-7d6f8a1c33d1",
        "kubernetes.io": {
            "namespace": "seclog",
            "node": { "name": node, "uid": format!("{node}-uid") },
            "pod": { "name": "seclog-agent-x7k2p", "uid": "pod-uid" },
            "serviceaccount": { "name": "seclog-agent", "uid": "account-uid" },
        },
        "nbf": seconds,
        "sub": "system:serviceaccount:seclog:seclog-agent",
    })
}

fn merge(into: &mut Value, changes: Value) {
    match (into, changes) {
        (Value::Object(into), Value::Object(changes)) => {
            for (key, change) in changes {
                if change.is_null() {
                    into.remove(&key);
                } else {
                    merge(into.entry(key).or_insert(Value::Null), change);
                }
            }
        }
        (into, change) => *into = change,
    }
}
