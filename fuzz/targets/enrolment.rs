//! What a stranger sends to enrol: any bytes are a token, a request or a certificate, or are refused. None is accepted here: no
//! token of these is signed with the key that counts.
#![no_main]

use libfuzzer_sys::fuzz_target;
use prost::Message as _;
use seclog_correlator::enrol::{Expected, Keys, TokenCheck, check_request, claims};
use seclog_identity::{Facts, NodeIdentity, certificates};
use seclog_proto::v1::EnrolRequest;
use std::sync::OnceLock;

struct Office {
    check: TokenCheck,
    expected: Expected,
    runtime: tokio::runtime::Runtime,
    _directory: tempfile::TempDir,
}

fn office() -> &'static Office {
    static OFFICE: OnceLock<Office> = OnceLock::new();
    OFFICE.get_or_init(|| {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys.pem");
        std::fs::write(&path, rcgen::KeyPair::generate().unwrap().public_key_pem()).unwrap();
        Office {
            check: TokenCheck::Keys(Keys::open(&path).unwrap()),
            expected: Expected {
                audience: "seclog-enrolment".into(),
                issuer: Some("https://kubernetes.default.svc".into()),
                namespace: "seclog".into(),
                service_account: "seclog-agent".into(),
            },
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            _directory: directory,
        }
    })
}

fn token(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let Ok(_) = claims(&text) else { return };
    let Office { check, expected, runtime, .. } = office();
    assert!(runtime.block_on(check.check(&text, expected)).is_err(), "accepted: {text}");
}

fn request(bytes: &[u8]) {
    let Ok(checked) = check_request(bytes) else { return };
    // What is let through is an uncompressed point.
    assert_eq!(rcgen::PublicKeyData::der_bytes(&checked.public_key).len(), 65);
}

fuzz_target!(|data: &[u8]| {
    let Some((kind, data)) = data.split_first() else { return };
    match kind % 4 {
        0 => token(data),
        1 => request(data),
        2 => {
            let _ = (Facts::of(data), NodeIdentity::of_certificate(data), Facts::of_pem(data), certificates(data));
        }
        _ => {
            if let Ok(EnrolRequest { token: said, request: der, .. }) = EnrolRequest::decode(data) {
                token(said.as_bytes());
                request(&der);
            }
        }
    }
});
