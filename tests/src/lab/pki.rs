//! Certificates for one test: a CA, and below it the correlator's, the API server's and the agent's.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};

/// PEM files, as the programs' options take them.
#[derive(Debug)]
pub struct Pki {
    pub ca: PathBuf,
    pub server: Identity,
    /// What the API server shows to the webhook.
    pub webhook_client: Identity,
    issuer: CertifiedIssuer<'static, KeyPair>,
    directory: PathBuf,
}

#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

impl Pki {
    pub fn create(directory: &Path) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "seclog test CA");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let ca = directory.join("ca.pem");
        std::fs::write(&ca, issuer.pem())?;

        let server = [
            SanType::DnsName("localhost".try_into()?),
            SanType::DnsName("audit-webhook".try_into()?),
            SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        ];
        let issue = |name: &str, usage, names: &[SanType]| issue(&issuer, directory, name, usage, names);
        Ok(Self {
            ca,
            server: issue("server", ExtendedKeyUsagePurpose::ServerAuth, &server)?,
            webhook_client: issue("kube-apiserver", ExtendedKeyUsagePurpose::ClientAuth, &[])?,
            issuer,
            directory: directory.to_owned(),
        })
    }

    /// The authority's certificate and key, as files: --enrol-ca-cert and --enrol-ca-key.
    pub fn authority(&self) -> Result<Identity> {
        let key = self.directory.join("ca-key.pem");
        std::fs::write(&key, self.issuer.key().serialize_pem())?;
        Ok(Identity { certificate: self.ca.clone(), key })
    }

    /// A key and certificate for the agent of one node.
    pub fn agent(&self, cluster: &str, node: &str) -> Result<Identity> {
        let uri = SanType::URI(format!("seclog://{cluster}/{node}").try_into()?);
        issue(
            &self.issuer,
            &self.directory,
            &format!("agent-{cluster}-{node}"),
            ExtendedKeyUsagePurpose::ClientAuth,
            &[uri],
        )
    }
}

fn issue(
    issuer: &CertifiedIssuer<'static, KeyPair>,
    directory: &Path,
    name: &str,
    usage: ExtendedKeyUsagePurpose,
    names: &[SanType],
) -> Result<Identity> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = names.to_vec();
    params.extended_key_usages = vec![usage];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let certificate = params.signed_by(&key, issuer).with_context(|| format!("certificate of {name}"))?;
    let identity =
        Identity { certificate: directory.join(format!("{name}.pem")), key: directory.join(format!("{name}-key.pem")) };
    std::fs::write(&identity.certificate, certificate.pem())?;
    std::fs::write(&identity.key, key.serialize_pem())?;
    Ok(identity)
}
