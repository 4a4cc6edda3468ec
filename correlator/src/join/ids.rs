//! Session ids: the same record gives the same id in every replay and on every correlator.

use super::root::RootKey;
use crate::audit::Identity;
use uuid::Uuid;

/// Namespace of seclog's session ids, itself a random UUID.
const SESSIONS: Uuid = Uuid::from_u128(0x6f1d_3c52_9a0e_4b7d_8c41_27d9_e5b0_a3f6);

pub(super) fn of_request(cluster: &str, identity: &Identity) -> Uuid {
    let Identity { received, audit_id, username, impersonated, uri } = identity;
    let received = received.to_string();
    let parts = ["audit", cluster, &received, audit_id, username, impersonated.as_deref().unwrap_or(""), uri];
    of(&parts)
}

pub(super) fn of_root(cluster: &str, key: &RootKey) -> Uuid {
    let RootKey { node, boot_id, start_boottime_ns, pid } = key;
    of(&["root", cluster, node, boot_id, &start_boottime_ns.to_string(), &pid.to_string()])
}

pub(super) fn of_finding(cluster: &str, code: &str, subject: &str) -> Uuid {
    of(&["finding", cluster, code, subject])
}

/// Lengths before parts, so that no two lists of parts give the same bytes.
fn of(parts: &[&str]) -> Uuid {
    let mut name = Vec::new();
    for part in parts {
        name.extend_from_slice(&(part.len() as u64).to_be_bytes());
        name.extend_from_slice(part.as_bytes());
    }
    Uuid::new_v5(&SESSIONS, &name)
}
