//! A certificate authority of the test's own, and files as an administrator would have them.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use seclog_correlator::intake::TlsFiles;
use std::path::PathBuf;
use tempfile::TempDir;

pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
    dir: TempDir,
}

#[derive(Clone)]
pub(crate) struct Leaf {
    pub(crate) cert: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem, dir: tempfile::tempdir().unwrap() }
    }

    /// A client that may not be an agent: an API server.
    pub(crate) fn client(&self) -> Leaf {
        self.leaf(Vec::new())
    }

    pub(crate) fn agent(&self, cluster: &str, node: &str) -> Leaf {
        self.leaf(vec![SanType::URI(format!("seclog://{cluster}/{node}").try_into().unwrap())])
    }

    fn leaf(&self, names: Vec<SanType>) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.extend(names);
        Leaf { cert: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    /// The server's identity, and this authority as the one whose clients it serves.
    pub(crate) fn server_files(&self) -> TlsFiles {
        let server = self.client();
        TlsFiles {
            cert: self.file("server.crt", &server.cert),
            key: self.file("server.key", &server.key),
            client_ca: self.file("ca.crt", &self.pem),
        }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}
