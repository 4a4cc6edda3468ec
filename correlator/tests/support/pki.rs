//! A certificate authority of the test's own, and files as an administrator would have them.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use seclog_correlator::enrol::AuthorityFiles;
use seclog_correlator::listen::{Tls, TlsFiles};
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;
use time::OffsetDateTime;

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

    /// An API server whose certificate names its cluster.
    pub(crate) fn kas(&self, cluster: &str) -> Leaf {
        self.leaf(vec![SanType::URI(format!("seclog-audit://{cluster}").try_into().unwrap())])
    }

    pub(crate) fn agent(&self, cluster: &str, node: &str) -> Leaf {
        self.leaf(vec![SanType::URI(format!("seclog://{cluster}/{node}").try_into().unwrap())])
    }

    /// The certificate of an agent that ends at that time, seconds since 1970.
    pub(crate) fn agent_until(&self, cluster: &str, node: &str, not_after: i64) -> Leaf {
        let uri = SanType::URI(format!("seclog://{cluster}/{node}").try_into().unwrap());
        self.leaf_until(vec![uri], OffsetDateTime::from_unix_timestamp(not_after).unwrap())
    }

    fn leaf(&self, names: Vec<SanType>) -> Leaf {
        self.leaf_until(names, OffsetDateTime::now_utc() + time::Duration::days(1))
    }

    fn leaf_until(&self, names: Vec<SanType>, not_after: OffsetDateTime) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_after = not_after;
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

    /// Certificate and key of the authority itself, as the enrolment takes them.
    pub(crate) fn signer_files(&self) -> AuthorityFiles {
        let key = self.issuer.key().serialize_pem();
        AuthorityFiles { certificate: self.file("enrol-ca.crt", &self.pem), key: self.file("enrol-ca.key", &key) }
    }

    pub(crate) fn tls(&self) -> Arc<Tls> {
        Tls::open(self.server_files()).unwrap()
    }

    /// Puts another certificate and key of the server in the place of those that [`Authority::server_files`] wrote.
    pub(crate) fn renew_server(&self) {
        let server = self.client();
        self.file("server.key", &server.key);
        self.file("server.crt", &server.cert);
    }

    pub(crate) fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}
