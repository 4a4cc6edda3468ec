//! The node's key and certificate, in a directory of the agent's own.
//!
//! The key is made here and never leaves: only its public half, in a request signed with it, goes out. It is kept for as long
//! as the directory is, over renewals and restarts; a certificate in it that names another node means that the directory was
//! copied, and a new key is made.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use rcgen::{CertificateParams, KeyPair};
use seclog_identity::{Facts, NodeIdentity, certificates, private_key};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum StoreError {
    #[error("{}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} may be read by others (mode {mode:o}): take it for known to them, delete it, and restart the agent for a new key", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("{} holds no key: {why}; delete it, and restart the agent for a new one", path.display())]
    Key { path: PathBuf, why: String },
    #[error("a key could not be made: {0}")]
    Make(String),
}

#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    identity: NodeIdentity,
    key: KeyPair,
}

impl Store {
    /// Takes the key that is there, or makes one.
    pub(super) fn open(directory: &Path, identity: NodeIdentity) -> Result<Self, StoreError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| StoreError::File { path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed(directory))?;
        let path = directory.join("node.key");
        let certificate = directory.join("node.crt");
        if is_of_another(&certificate, &identity) {
            tracing::warn!(
                directory = %directory.display(),
                "the certificate there names another node: it was copied, and its key with it. This node makes a key of its own"
            );
            for path in [&certificate, &path] {
                fs::remove_file(path).or_else(ignore_missing).map_err(failed(path))?;
            }
        }
        let key = match fs::read(&path) {
            Ok(pem) => {
                let mode = fs::metadata(&path).map_err(failed(&path))?.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(StoreError::Open { path, mode });
                }
                let wrong = |why: String| StoreError::Key { path: path.clone(), why };
                let der = private_key(&pem).map_err(|error| wrong(error.to_string()))?;
                KeyPair::try_from(&der).map_err(|error| wrong(error.to_string()))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = KeyPair::generate().map_err(|error| StoreError::Make(error.to_string()))?;
                write(&path, key.serialize_pem().as_bytes()).map_err(failed(&path))?;
                tracing::info!(path = %path.display(), "this node made a key of its own");
                key
            }
            Err(source) => return Err(StoreError::File { path, source }),
        };
        Ok(Self { directory: directory.to_owned(), identity, key })
    }

    pub(super) fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// PKCS#10, DER. It names nothing: who asks is proven by the token that goes with it.
    pub(super) fn request(&self) -> Result<Vec<u8>, StoreError> {
        let request = CertificateParams::default().serialize_request(&self.key);
        request.map(|request| request.der().to_vec()).map_err(|error| StoreError::Make(error.to_string()))
    }

    /// What the certificate chain says, if it is for this node and its key. An error says why it is not.
    pub(super) fn check(&self, chain: &[u8]) -> Result<Facts, String> {
        let certificates = certificates(chain).map_err(|error| error.to_string())?;
        let Some(own) = certificates.first() else { return Err("there is no certificate".into()) };
        let named = NodeIdentity::of_certificate(own).map_err(|error| error.to_string())?;
        if named != self.identity {
            return Err(format!(
                "it is for {}/{}, and this agent is configured as {}/{} (--cluster, --node)",
                named.cluster, named.node, self.identity.cluster, self.identity.node
            ));
        }
        let key = private_key(self.key_pem().as_bytes()).map_err(|error| error.to_string())?;
        let provider = rustls::crypto::ring::default_provider();
        let key = provider.key_provider.load_private_key(key).map_err(|error| error.to_string())?;
        let pair = rustls::sign::CertifiedKey::new(certificates.clone(), key);
        pair.keys_match().map_err(|error| format!("it is not for this node's key: {error}"))?;
        Facts::of(own).map_err(|error| error.to_string())
    }

    /// The certificate of before, if it can still be used.
    pub(super) fn certificate(&self) -> Option<(Vec<u8>, Facts)> {
        let chain = fs::read(self.directory.join("node.crt")).ok()?;
        match self.check(&chain) {
            Ok(facts) => Some((chain, facts)),
            Err(why) => {
                tracing::warn!(directory = %self.directory.display(), "the certificate there is not used: {why}");
                None
            }
        }
    }

    pub(super) fn save(&self, chain: &[u8]) -> Result<(), StoreError> {
        let path = self.directory.join("node.crt");
        write(&path, chain).map_err(|source| StoreError::File { path, source })
    }
}

fn is_of_another(certificate: &Path, identity: &NodeIdentity) -> bool {
    let named = fs::read(certificate).ok().and_then(|pem| {
        let chain = certificates(&pem).ok()?;
        NodeIdentity::of_certificate(chain.first()?).ok()
    });
    named.is_some_and(|named| named != *identity)
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// Whole or not at all, for the owner only.
fn write(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::remove_file(&temporary).or_else(ignore_missing)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    let directory = path.parent().unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{BasicConstraints, CertificateSigningRequestParams, CertifiedIssuer, IsCa, SanType};

    fn identity(node: &str) -> NodeIdentity {
        NodeIdentity { cluster: "guest".into(), node: node.into() }
    }

    fn signed(request: &[u8], node: &str) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let request = CertificateSigningRequestParams::from_der(&request.into()).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity(node).uri().unwrap().try_into().unwrap())];
        params.signed_by(&request.public_key, &issuer).unwrap().pem().into_bytes()
    }

    #[test]
    fn the_key_is_made_once_for_the_owner_only_and_kept() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("identity");
        let first = Store::open(&directory, identity("node-1")).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&directory), mode(&directory.join("node.key"))), (0o700, 0o600));
        assert!(first.certificate().is_none());
        first.save(&signed(&first.request().unwrap(), "node-1")).unwrap();
        let again = Store::open(&directory, identity("node-1")).unwrap();
        assert_eq!(again.key_pem(), first.key_pem());
        assert!(again.certificate().is_some());
    }

    #[test]
    fn a_directory_copied_from_another_node_gives_no_identity() {
        let root = tempfile::tempdir().unwrap();
        let first = Store::open(root.path(), identity("node-1")).unwrap();
        first.save(&signed(&first.request().unwrap(), "node-1")).unwrap();
        let copied = Store::open(root.path(), identity("node-2")).unwrap();
        assert_ne!(copied.key_pem(), first.key_pem());
        assert!(copied.certificate().is_none());
    }

    #[test]
    fn a_certificate_for_another_node_or_key_is_not_taken() {
        let root = tempfile::tempdir().unwrap();
        let store = Store::open(root.path(), identity("node-1")).unwrap();
        let why = store.check(&signed(&store.request().unwrap(), "node-2")).unwrap_err();
        assert!(why.contains("guest/node-2") && why.contains("--node"), "{why}");
        let other = Store::open(&root.path().join("other"), identity("node-1")).unwrap();
        let why = store.check(&signed(&other.request().unwrap(), "node-1")).unwrap_err();
        assert!(why.contains("not for this node's key"), "{why}");
        assert!(store.check(b"").is_err());
    }

    #[test]
    fn a_key_that_others_may_read_or_that_is_none_is_refused_with_what_to_do() {
        let root = tempfile::tempdir().unwrap();
        Store::open(root.path(), identity("node-1")).unwrap();
        let path = root.path().join("node.key");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Store::open(root.path(), identity("node-1")).unwrap_err();
        assert!(matches!(error, StoreError::Open { mode: 0o640, .. }), "{error}");
        fs::remove_file(&path).unwrap();
        write(&path, b"garbage").unwrap();
        let error = Store::open(root.path(), identity("node-1")).unwrap_err();
        assert!(error.to_string().contains("delete it"), "{error}");
    }
}
