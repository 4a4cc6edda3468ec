//! Tokens checked by the public keys of the API server that made them, from a file that is followed: a JWKS, as
//! `/openid/v1/jwks` of the API server gives it, or PEM blocks `PUBLIC KEY`, as `--service-account-key-file` takes them.

use super::token::{Bound, Claims, Expected, LEEWAY, TokenError};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject;
use seclog_identity::{FileError, Files};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use x509_parser::oid_registry::{OID_EC_P256, OID_NIST_EC_P384};
use x509_parser::prelude::FromDer;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

/// Keys of a file. API servers have one or two.
const MOST: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} holds no public keys of an API server: {why}", path.display())]
    Content { path: PathBuf, why: String },
}

/// The keys in force. Read again when a token comes, so that a key that was added is known at once.
#[derive(Debug)]
pub struct Keys {
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    files: Files<1>,
    keys: Arc<Vec<Key>>,
    told: String,
}

struct Key {
    /// `kid`, where the file gives one.
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Key").field("id", &self.id).field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}

// === impl Keys ===

impl Keys {
    pub fn open(path: &Path) -> Result<Self, KeysError> {
        let mut files = Files::new([path.to_owned()]);
        let [content] = files.changed()?.unwrap_or_default();
        let keys = Arc::new(read(&content).map_err(|why| KeysError::Content { path: path.to_owned(), why })?);
        Ok(Self { path: path.to_owned(), state: Mutex::new(State { files, keys, told: String::new() }) })
    }

    /// The newest that can be used; what cannot is told once.
    fn newest(&self) -> Arc<Vec<Key>> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let read = match state.files.changed() {
            Ok(None) => return Arc::clone(&state.keys),
            Ok(Some([content])) => read(&content),
            Err(error) => Err(error.to_string()),
        };
        match read {
            Ok(keys) => {
                tracing::info!(file = %self.path.display(), keys = keys.len(), "token keys changed");
                state.keys = Arc::new(keys);
                state.told.clear();
            }
            Err(why) if why != state.told => {
                tracing::error!(file = %self.path.display(), "token keys changed and cannot be used; those of before stay in force: {why}");
                state.told = why;
            }
            Err(_) => {}
        }
        Arc::clone(&state.keys)
    }

    pub(super) fn check(&self, token: &str, expected: &Expected) -> Result<Bound, TokenError> {
        let refused = |why: &str| TokenError::Refused(why.to_owned());
        let header = decode_header(token).map_err(|error| refused(&error.to_string()))?;
        let keys = self.newest();
        let fits = |key: &&Key| {
            key.algorithm == header.alg && (key.id.is_none() || header.kid.is_none() || key.id == header.kid)
        };
        let mut last =
            refused(&format!("none of the {} known keys is that of its header ({:?})", keys.len(), header.alg));
        for key in keys.iter().filter(fits) {
            let mut validation = Validation::new(key.algorithm);
            validation.leeway = LEEWAY;
            validation.validate_nbf = true;
            validation.set_audience(&[&expected.audience]);
            if let Some(issuer) = &expected.issuer {
                validation.set_issuer(&[issuer]);
            }
            validation.sub = Some(expected.user());
            validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
            match decode::<Claims>(token, &key.key, &validation) {
                Ok(token) => return bound(token.claims, expected),
                Err(error) => last = refused(&error.to_string()),
            }
        }
        Err(last)
    }
}

fn bound(claims: Claims, expected: &Expected) -> Result<Bound, TokenError> {
    expected.check(&claims)?;
    let Claims { kubernetes, .. } = claims;
    let Some(node) = kubernetes.node else {
        return Err(TokenError::NotAnAgent(
            "it names no node; Kubernetes does so from 1.30 on, for older ones give --token-review-kubeconfig"
                .to_owned(),
        ));
    };
    let pod = kubernetes.pod.map(|pod| (pod.name, pod.uid)).unwrap_or_default();
    Ok(Bound { node: node.name, node_uid: node.uid, pod: pod.0, pod_uid: pod.1 })
}

fn read(content: &[u8]) -> Result<Vec<Key>, String> {
    let keys = match serde_json::from_slice::<JwkSet>(content) {
        Ok(set) => of_jwks(&set),
        Err(_) if content.starts_with(b"{") => return Err("it is no JSON Web Key Set".to_owned()),
        Err(_) => of_pem(content)?,
    };
    match keys.len() {
        0 => Err("there is none of RSA, P-256 or P-384".to_owned()),
        found if found > MOST => Err(format!("it holds {found} keys, more than {MOST}")),
        _ => Ok(keys),
    }
}

/// Keys of kinds that API servers do not sign with are left out.
fn of_jwks(set: &JwkSet) -> Vec<Key> {
    let key = |jwk: &jsonwebtoken::jwk::Jwk| {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => Algorithm::ES256,
                EllipticCurve::P384 => Algorithm::ES384,
                _ => return None,
            },
            _ => return None,
        };
        let key = DecodingKey::from_jwk(jwk).ok()?;
        Some(Key { id: jwk.common.key_id.clone(), algorithm, key })
    };
    set.keys.iter().filter_map(key).collect()
}

fn of_pem(content: &[u8]) -> Result<Vec<Key>, String> {
    let mut keys = Vec::new();
    for block in SubjectPublicKeyInfoDer::pem_slice_iter(content) {
        let block = block.map_err(|error| format!("it is neither a JWKS nor PEM: {error}"))?;
        let (_, info) = SubjectPublicKeyInfo::from_der(&block).map_err(|error| error.to_string())?;
        let curve = || info.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
        let found = match info.parsed() {
            Ok(PublicKey::RSA(_)) => Some((Algorithm::RS256, DecodingKey::from_rsa_der(&info.subject_public_key.data))),
            Ok(PublicKey::EC(point)) => match curve() {
                Some(curve) if curve == OID_EC_P256 => Some((Algorithm::ES256, DecodingKey::from_ec_der(point.data()))),
                Some(curve) if curve == OID_NIST_EC_P384 => {
                    Some((Algorithm::ES384, DecodingKey::from_ec_der(point.data())))
                }
                _ => None,
            },
            _ => None,
        };
        keys.extend(found.map(|(algorithm, key)| Key { id: None, algorithm, key }));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::read;
    use proptest::prelude::*;

    #[test]
    fn what_holds_no_key_says_so() {
        for content in ["", "hello", "{}", r#"{"keys":[]}"#, r#"{"keys":[{"kty":"oct","k":"AAAA"}]}"#] {
            assert!(read(content.as_bytes()).is_err(), "{content}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let pem = [b"-----BEGIN PUBLIC KEY-----\n".as_slice(), &bytes, b"\n-----END PUBLIC KEY-----\n"].concat();
            let _ = read(&pem);
        }
    }
}
