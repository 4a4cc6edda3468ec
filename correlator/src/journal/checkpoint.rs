//! Signed statements of where the journal's chain stands.
//!
//! A checkpoint covers everything before it: whoever holds one and the public key can prove later that none of it was
//! changed or taken away. So checkpoints go where the journal's own disk cannot reach them: to an outlet.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::SubjectPublicKeyInfoDer;
use rustls_pki_types::pem::PemObject as _;
use seclog_journal::Digest;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What is signed begins with this, so that a signature is good for nothing else.
const CONTEXT: &str = "seclog journal checkpoint 1";
/// What stands before the 32 bytes of the key in an Ed25519 public key's DER (RFC 8410).
const SPKI: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    #[error("{}: {why}; make one with: openssl genpkey -algorithm ed25519 -out FILE", path.display())]
    Key { path: PathBuf, why: String },
    #[error("{}: {why}; make one with: openssl pkey -in KEY -pubout -out FILE", path.display())]
    PublicKey { path: PathBuf, why: String },
}

/// A line of an outlet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub kind: CheckpointKind,
    pub cluster: String,
    /// Nanoseconds since 1970.
    pub time_unix_ns: u64,
    /// Number of the entry at which the chain stood.
    pub entry: u64,
    /// SHA-256, hexadecimal: the entry's chain.
    pub chain: String,
    /// The key's first eight bytes, hexadecimal.
    pub key: String,
    /// Ed25519, hexadecimal, of the other fields.
    pub signature: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CheckpointKind {
    Checkpoint,
}

/// Makes checkpoints.
pub struct Signer {
    key: Ed25519KeyPair,
    cluster: String,
}

/// Checks them.
#[derive(Debug)]
pub struct PublicKey(Vec<u8>);

// === impl Signer ===

impl Signer {
    /// From a file: an Ed25519 key, PKCS#8 in PEM.
    pub fn from_file(path: &Path, cluster: &str) -> Result<Self, CheckpointError> {
        let failed = |why: String| CheckpointError::Key { path: path.to_owned(), why };
        let der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|error| failed(error.to_string()))?;
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der());
        let key = key.map_err(|error| failed(format!("not an Ed25519 key in PKCS#8: {error}")))?;
        Ok(Self { key, cluster: cluster.to_owned() })
    }

    pub fn sign(&self, entry: u64, chain: Digest, time_unix_ns: u64) -> Checkpoint {
        let mut checkpoint = Checkpoint {
            kind: CheckpointKind::Checkpoint,
            cluster: self.cluster.clone(),
            time_unix_ns,
            entry,
            chain: hex(&chain),
            key: key_id(self.key.public_key().as_ref()),
            signature: String::new(),
        };
        checkpoint.signature = hex(self.key.sign(checkpoint.signed().as_bytes()).as_ref());
        checkpoint
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Signer({})", key_id(self.key.public_key().as_ref()))
    }
}

// === impl PublicKey ===

impl PublicKey {
    /// From a file: an Ed25519 public key in PEM, as openssl writes it.
    pub fn from_file(path: &Path) -> Result<Self, CheckpointError> {
        let failed = |why: String| CheckpointError::PublicKey { path: path.to_owned(), why };
        let der = SubjectPublicKeyInfoDer::from_pem_file(path).map_err(|error| failed(error.to_string()))?;
        let key = der.as_ref().strip_prefix(SPKI).filter(|key| key.len() == 32);
        Ok(Self(key.ok_or_else(|| failed("not an Ed25519 public key".to_owned()))?.to_vec()))
    }

    /// Whether the checkpoint was signed with this key.
    pub fn signed(&self, checkpoint: &Checkpoint) -> bool {
        let signature = unhex(&checkpoint.signature).unwrap_or_default();
        UnparsedPublicKey::new(&ED25519, &self.0).verify(checkpoint.signed().as_bytes(), &signature).is_ok()
    }
}

// === impl Checkpoint ===

impl Checkpoint {
    fn signed(&self) -> String {
        let Self { kind: _, cluster, time_unix_ns, entry, chain, key, signature: _ } = self;
        format!("{CONTEXT}\n{}\n{cluster}\n{time_unix_ns}\n{entry}\n{chain}\n{key}\n", cluster.len())
    }

    pub fn chain(&self) -> Option<Digest> {
        unhex(&self.chain)?.try_into().ok()
    }
}

fn key_id(public: &[u8]) -> String {
    hex(public.get(..8).unwrap_or_default())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).and_then(|it| it.try_into().ok())).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect())
}
