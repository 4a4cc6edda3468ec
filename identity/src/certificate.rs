//! What is read from certificates and keys in PEM form.

use ring::digest::{SHA256, digest};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fmt::Write as _;
use x509_parser::prelude::{FromDer, X509Certificate};

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("no {what} in PEM form: {why}")]
    Pem { what: &'static str, why: String },
    #[error("the certificate cannot be read: {0}")]
    Der(String),
}

/// What a certificate says that others go by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Seconds since 1970.
    pub not_before: i64,
    /// Seconds since 1970; the certificate is valid up to and including it.
    pub not_after: i64,
    /// Hexadecimal, lower case, without leading zeros.
    pub serial: String,
    /// SHA-256 of the subject's public key (DER, SubjectPublicKeyInfo): the same key has the same in every certificate.
    pub key_sha256: String,
}

impl Facts {
    pub fn of(der: &[u8]) -> Result<Self, CertificateError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| CertificateError::Der(error.to_string()))?;
        let validity = certificate.validity();
        Ok(Self {
            not_before: validity.not_before.timestamp(),
            not_after: validity.not_after.timestamp(),
            serial: certificate.tbs_certificate.serial.to_str_radix(16),
            key_sha256: hexadecimal(digest(&SHA256, certificate.public_key().raw).as_ref()),
        })
    }

    /// Of the first certificate, which is the holder's own.
    pub fn of_pem(pem: &[u8]) -> Result<Self, CertificateError> {
        let chain = certificates(pem)?;
        chain.first().map_or_else(|| Err(empty()), |certificate| Self::of(certificate))
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Every certificate of a PEM text; at least one.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| CertificateError::Pem { what: "certificate", why: error.to_string() })?;
    if found.is_empty() { Err(empty()) } else { Ok(found) }
}

fn empty() -> CertificateError {
    CertificateError::Pem { what: "certificate", why: "there is none".to_owned() }
}

pub fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, CertificateError> {
    PrivateKeyDer::from_pem_slice(pem)
        .map_err(|error| CertificateError::Pem { what: "private key", why: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, SerialNumber};

    fn signed(key: &KeyPair, serial: u64) -> String {
        let mut params = CertificateParams::default();
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2027, 1, 1);
        params.self_signed(key).unwrap().pem()
    }

    #[test]
    fn validity_serial_and_key_are_read() {
        let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let facts = Facts::of_pem(signed(&key, 0xabc).as_bytes()).unwrap();
        assert_eq!((facts.not_before, facts.not_after), (1_767_225_600, 1_798_761_600));
        assert_eq!(facts.serial, "abc");
        assert_eq!(facts.key_sha256.len(), 64);
        assert_eq!(facts.key_sha256, Facts::of_pem(signed(&key, 1).as_bytes()).unwrap().key_sha256);
        assert_ne!(facts.key_sha256, Facts::of_pem(signed(&other, 1).as_bytes()).unwrap().key_sha256);
    }

    #[test]
    fn what_is_missing_is_named() {
        let key = KeyPair::generate().unwrap();
        assert!(certificates(b"").unwrap_err().to_string().contains("no certificate"));
        assert!(certificates(key.serialize_pem().as_bytes()).is_err());
        assert!(private_key(signed(&key, 1).as_bytes()).unwrap_err().to_string().contains("no private key"));
        assert!(private_key(key.serialize_pem().as_bytes()).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), flip in 0usize..400, to: u8) {
            let _ = (Facts::of(&bytes), Facts::of_pem(&bytes), private_key(&bytes));
            let mut der = certificates(signed(&KeyPair::generate().unwrap(), 1).as_bytes()).unwrap()[0].to_vec();
            let at = flip % der.len();
            der[at] = to;
            let _ = (Facts::of(&der), crate::NodeIdentity::of_certificate(&der));
        }
    }
}
