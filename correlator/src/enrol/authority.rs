//! The authority that signs nodes' certificates, from files that are followed.

use crate::intake::now;
use crate::listen::Tls;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::CertificateSigningRequestDer;
use seclog_identity::{CertificateError, Facts, FileError, Files, NodeIdentity, certificates, private_key};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use time::OffsetDateTime;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::oid_registry::{OID_EC_P256, OID_KEY_TYPE_EC_PUBLIC_KEY};
use x509_parser::prelude::{FromDer, X509Certificate};

/// Bytes of a request. One for a P-256 key has about 300.
const LARGEST_REQUEST: usize = 8 << 10;
/// Certificates begin at most so much before they are made, for nodes whose clock is behind: seconds. A tenth of their life
/// where that is less.
const BACKDATED: i64 = 300;

/// PEM files: the authority's certificate and key.
#[derive(Debug, Clone)]
pub struct AuthorityFiles {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{}: {source}", path.display())]
    Content { path: PathBuf, source: CertificateError },
    #[error("{} and {} make no authority: {why}", certificate.display(), key.display())]
    Unfit { certificate: PathBuf, key: PathBuf, why: String },
    #[error(
        "certificates of this authority would not be let in ({why}): add {} to the file of --client-ca first", certificate.display()
    )]
    Untrusted { certificate: PathBuf, why: String },
    #[error("the request cannot be signed: {0}")]
    Request(String),
    #[error("signing failed: {0}")]
    Signing(String),
}

#[derive(Debug)]
pub struct Authority {
    paths: AuthorityFiles,
    /// How long a certificate is valid, seconds.
    lifetime: i64,
    /// Who lets in what is signed here.
    trust: Arc<Tls>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    files: Files<2>,
    signer: Arc<Signer>,
    told: String,
}

struct Signer {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    facts: Facts,
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Signer").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// A certificate that was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// PEM, the node's own first, then the authority's.
    pub chain: String,
    pub facts: Facts,
}

// === impl Authority ===

impl Authority {
    /// `trust`: who lets in what is signed here. What it would not let in is not signed with.
    pub fn open(paths: AuthorityFiles, lifetime: std::time::Duration, trust: Arc<Tls>) -> Result<Self, AuthorityError> {
        let mut files = Files::new([paths.certificate.clone(), paths.key.clone()]);
        let contents = files.changed()?.unwrap_or([const { Vec::new() }; 2]);
        let signer = Arc::new(paths.signer(&contents, &trust)?);
        let lifetime = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
        Ok(Self { paths, lifetime, trust, state: Mutex::new(State { files, signer, told: String::new() }) })
    }

    /// The newest that can be used; what cannot is told once, and tried again.
    fn newest(&self) -> Arc<Signer> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let read = match state.files.changed() {
            Ok(None) => return Arc::clone(&state.signer),
            Ok(Some(contents)) => self.paths.signer(&contents, &self.trust),
            Err(error) => Err(error.into()),
        };
        match read {
            Ok(signer) => {
                let Facts { serial, not_after, .. } = &signer.facts;
                tracing::info!(serial, not_after, "the enrolment authority changed");
                state.signer = Arc::new(signer);
                state.told.clear();
            }
            Err(error) => {
                let why = error.to_string();
                if why != state.told {
                    tracing::error!(
                        "the enrolment authority changed and cannot be used; that of before signs on: {why}"
                    );
                    state.told = why;
                }
                state.files.forget();
            }
        }
        Arc::clone(&state.signer)
    }

    /// When the authority's own certificate ends, seconds since 1970.
    pub fn not_after(&self) -> i64 {
        self.newest().facts.not_after
    }

    /// The authority's certificate, PEM.
    pub fn pem(&self) -> String {
        self.newest().pem.clone()
    }

    /// Why whoever gets this certificate would not be let in with it. `None`: he would.
    pub fn denies(&self, identity: &NodeIdentity, facts: &Facts) -> Option<String> {
        self.trust.denies(identity, facts)
    }

    /// Certifies the key of `request` for `identity`. Nothing else of the request is used.
    pub fn sign(&self, request: &[u8], identity: &NodeIdentity) -> Result<Signed, AuthorityError> {
        self.newest().sign(request, identity, self.lifetime)
    }
}

// === impl Signer ===

impl Signer {
    fn sign(&self, request: &[u8], identity: &NodeIdentity, lifetime: i64) -> Result<Signed, AuthorityError> {
        let request = check_request(request)?;
        let signing = |error: &dyn std::fmt::Display| AuthorityError::Signing(error.to_string());
        let uri = identity.uri().ok_or_else(|| AuthorityError::Request(format!("{identity:?} is no name")))?;
        let mut serial = [0; 16];
        SystemRandom::new().fill(&mut serial).map_err(|_| signing(&"no random numbers"))?;
        // Positive, and of the same length always.
        serial[0] = serial[0] & 0x7f | 0x40;
        let now = i64::try_from(now() / 1_000_000_000).unwrap_or(i64::MAX);
        let not_after = now.saturating_add(lifetime).min(self.facts.not_after);
        if not_after <= now {
            return Err(signing(&"the authority's own certificate has ended"));
        }
        let moment = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|error| signing(&error));
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial.to_vec()));
        params.not_before = moment((now - BACKDATED.min(lifetime / 10)).max(self.facts.not_before))?;
        params.not_after = moment(not_after)?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "seclog-agent");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().map_err(|error: rcgen::Error| signing(&error))?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&request.public_key, &self.issuer).map_err(|error| signing(&error))?;
        let facts = Facts::of(certificate.der()).map_err(|error| signing(&error))?;
        Ok(Signed { chain: format!("{}{}", certificate.pem(), self.pem), facts })
    }

    /// Would a certificate that it signs be let in? It signs one for a key that is thrown away.
    fn check_trust(&self, trust: &Tls) -> Result<(), String> {
        let trial = || {
            let key = KeyPair::generate().map_err(|error| error.to_string())?;
            let request = CertificateParams::default().serialize_request(&key).map_err(|error| error.to_string())?;
            let identity = NodeIdentity { cluster: "trial".to_owned(), node: "trial".to_owned() };
            let signed = self.sign(request.der(), &identity, 60).map_err(|error| error.to_string())?;
            certificates(signed.chain.as_bytes()).map_err(|error| error.to_string())
        };
        trust.check_client(&trial()?)
    }
}

// === impl AuthorityFiles ===

impl AuthorityFiles {
    fn signer(&self, [certificate, key]: &[Vec<u8>; 2], trust: &Tls) -> Result<Signer, AuthorityError> {
        let unfit = |why: &dyn std::fmt::Display| AuthorityError::Unfit {
            certificate: self.certificate.clone(),
            key: self.key.clone(),
            why: why.to_string(),
        };
        let content = |path: &PathBuf, source| AuthorityError::Content { path: path.clone(), source };
        let chain = certificates(certificate).map_err(|source| content(&self.certificate, source))?;
        let Some(der) = chain.first() else { return Err(unfit(&"there is no certificate")) };
        let facts = Facts::of(der).map_err(|source| content(&self.certificate, source))?;
        let key = private_key(key).map_err(|source| content(&self.key, source))?;
        let key = KeyPair::try_from(&key).map_err(|error| unfit(&error))?;
        let (_, parsed) = X509Certificate::from_der(der).map_err(|error| unfit(&error))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(unfit(&"the key is not that of the certificate"));
        }
        let signs = parsed.key_usage().ok().flatten().is_none_or(|usage| usage.value.key_cert_sign());
        if !parsed.is_ca() || !signs {
            return Err(unfit(&"the certificate is none of an authority (basicConstraints CA, keyUsage keyCertSign)"));
        }
        let issuer = Issuer::from_ca_cert_der(der, key).map_err(|error| unfit(&error))?;
        let signer = Signer { issuer, pem: pem(der), facts };
        let untrusted = |why| AuthorityError::Untrusted { certificate: self.certificate.clone(), why };
        signer.check_trust(trust).map_err(untrusted)?;
        Ok(signer)
    }
}

fn pem(der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

/// A request for a P-256 key, signed with that key.
pub fn check_request(der: &[u8]) -> Result<CertificateSigningRequestParams, AuthorityError> {
    let wrong = |why: &dyn std::fmt::Display| AuthorityError::Request(why.to_string());
    if der.len() > LARGEST_REQUEST {
        return Err(wrong(&format!("it has {} bytes, more than {LARGEST_REQUEST}", der.len())));
    }
    let (rest, parsed) = X509CertificationRequest::from_der(der).map_err(|error| wrong(&error))?;
    let key = &parsed.certification_request_info.subject_pki;
    let curve = key.algorithm.parameters.as_ref().and_then(|parameters| parameters.as_oid().ok());
    let is_p256 = key.algorithm.algorithm == OID_KEY_TYPE_EC_PUBLIC_KEY && curve == Some(OID_EC_P256);
    if !rest.is_empty() || !is_p256 || key.subject_public_key.data.len() != 65 {
        return Err(wrong(&"it must be a PKCS#10 request for an ECDSA P-256 key"));
    }
    let checked = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(der));
    let checked = checked.map_err(|error| wrong(&error))?;
    if checked.public_key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
        return Err(wrong(&"it must be signed by ecdsa-with-SHA256"));
    }
    Ok(checked)
}
