//! Running containers by the specifications that CRI-O leaves in its runtime directory: what an agent without the socket
//! can read.

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::root::Root;
use crate::{
    facts::{Container, Known},
    spec::{MAX_BYTES, Spec},
};

/// `runroot` of containers/storage with the overlay driver.
const DIR: &str = "/run/containers/storage/overlay-containers";
const MAX_CONTAINERS: usize = 4096;

pub(super) fn from_files(root: &Root) -> Known<Vec<Container>> {
    let entries = match root.list(DIR) {
        Ok(entries) => entries,
        Err(error) => return Known::No(format!("{DIR}: {}", super::root::reason(error))),
    };
    let ids = entries.into_iter().filter(|e| e.is_dir).take(MAX_CONTAINERS);
    Known::Yes(ids.filter_map(|entry| container(root, entry.name)).collect())
}

/// `None` for a container that does not run, and for a pod's sandbox.
fn container(root: &Root, id: String) -> Option<Container> {
    let data = format!("{DIR}/{id}/userdata");
    let pid: u32 = root.text(&format!("{data}/pidfile"), 32)?.trim().parse().ok()?;
    if !root.exists(&format!("/proc/{pid}")) {
        return None;
    }
    let spec: Spec = match root.text(&format!("{data}/config.json"), MAX_BYTES) {
        Some(text) => serde_json::from_str(&text).unwrap_or_default(),
        None => Spec::default(),
    };
    let names = spec.names();
    if names.is_sandbox {
        return None;
    }
    let created = OffsetDateTime::parse(spec.annotation("io.kubernetes.cri-o.Created"), &Rfc3339).ok();
    Some(Container {
        namespace: names.namespace,
        pod: names.pod,
        name: names.container,
        id,
        privileged: spec.is_privileged(),
        logs: spec.logs(),
        created: created.map(OffsetDateTime::unix_timestamp),
    })
}
