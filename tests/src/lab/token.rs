//! A service account token, as an API server makes it for kubelet to project into an agent's pod.

use anyhow::Result;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::KeyPair;
use seclog_agent::clock;
use serde_json::json;

pub const ISSUER: &str = "https://kubernetes.default.svc";

/// The key pair that an API server signs tokens with.
#[derive(Debug)]
pub struct TokenKey(KeyPair);

impl TokenKey {
    pub fn new() -> Result<Self> {
        Ok(Self(KeyPair::generate()?))
    }

    /// `PUBLIC KEY` in PEM, as --token-keys takes it.
    pub fn public_pem(&self) -> String {
        self.0.public_key_pem()
    }

    /// Of the agent's pod on a node. What a token of Kubernetes 1.30 and later holds.
    pub fn token(&self, node: &str) -> Result<String> {
        let seconds = clock::unix_ns() / 1_000_000_000;
        let claims = json!({
            "aud": ["seclog-enrolment"],
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
        });
        let key = EncodingKey::from_ec_der(&self.0.serialize_der());
        Ok(encode(&Header::new(Algorithm::ES256), &claims, &key)?)
    }
}
