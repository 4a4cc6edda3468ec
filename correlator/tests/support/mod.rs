//! What several test files need.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod attic;
pub(crate) mod client;
pub(crate) mod journal;
pub(crate) mod kube_api;
pub(crate) mod pki;
pub(crate) mod pod_logs;
pub(crate) mod program;
pub(crate) mod scene;
pub(crate) mod spo;
pub(crate) mod token;
pub(crate) mod trace;

use std::path::PathBuf;

pub(crate) fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/real-cluster").join(name)
}

pub(crate) fn read(name: &str) -> String {
    let path = fixture(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
