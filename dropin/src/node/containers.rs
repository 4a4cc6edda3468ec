//! Running containers by the specifications that CRI-O leaves in its runtime directory: what an agent without the socket
//! can read.

use std::collections::HashMap;

use serde::Deserialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::root::Root;
use crate::{
    facts::{Container, Known, Logs},
    profile::{EXEC, Profile},
};

/// `runroot` of containers/storage with the overlay driver.
const DIR: &str = "/run/containers/storage/overlay-containers";
const MAX_SPEC: u64 = 4 << 20;
const MAX_CONTAINERS: usize = 4096;

/// The part of an OCI runtime specification that is looked at.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Spec {
    #[serde(default)]
    annotations: HashMap<String, String>,
    #[serde(default)]
    process: Option<Process>,
    #[serde(default)]
    pub(super) linux: Option<Linux>,
}

#[derive(Debug, Deserialize)]
struct Process {
    #[serde(default)]
    capabilities: Option<Capabilities>,
}

#[derive(Debug, Deserialize)]
struct Capabilities {
    #[serde(default)]
    bounding: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Linux {
    #[serde(default)]
    seccomp: Option<serde_json::Value>,
    #[serde(default)]
    masked_paths: Vec<String>,
}

/// Does an exec in the container make a record?
pub(super) fn logs(linux: Option<&Linux>) -> Logs {
    let Some(linux) = linux else { return Logs::Unknown };
    match &linux.seccomp {
        None | Some(serde_json::Value::Null) => Logs::No,
        Some(value) => match Profile::parse(&value.to_string()) {
            Ok(profile) if EXEC.iter().any(|name| profile.logs(name)) => Logs::Yes,
            Ok(_) => Logs::No,
            Err(_) => Logs::Unknown,
        },
    }
}

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
    let spec: Spec = match root.text(&format!("{data}/config.json"), MAX_SPEC) {
        Some(text) => serde_json::from_str(&text).unwrap_or_default(),
        None => Spec::default(),
    };
    let annotation = |key: &str| spec.annotations.get(key).cloned().unwrap_or_default();
    if annotation("io.kubernetes.cri-o.ContainerType") == "sandbox" {
        return None;
    }
    let created = OffsetDateTime::parse(&annotation("io.kubernetes.cri-o.Created"), &Rfc3339).ok();
    Some(Container {
        namespace: namespace(&spec),
        pod: annotation("io.kubernetes.pod.name"),
        name: annotation("io.kubernetes.container.name"),
        id,
        privileged: privileged(&spec),
        logs: logs(spec.linux.as_ref()),
        created: created.map(OffsetDateTime::unix_timestamp),
    })
}

/// A container's own annotations may lack the namespace; its labels and its log path have it.
fn namespace(spec: &Spec) -> String {
    const KEY: &str = "io.kubernetes.pod.namespace";
    if let Some(namespace) = spec.annotations.get(KEY) {
        return namespace.clone();
    }
    let labels = spec.annotations.get("io.kubernetes.cri-o.Labels").map_or("", String::as_str);
    let labels: HashMap<String, String> = serde_json::from_str(labels).unwrap_or_default();
    labels.get(KEY).cloned().unwrap_or_default()
}

/// The specification does not say "privileged"; all capabilities and nothing masked is what CRI-O makes of it.
fn privileged(spec: &Spec) -> bool {
    let bounding = spec.process.as_ref().and_then(|p| p.capabilities.as_ref()).map(|c| c.bounding.as_slice());
    bounding.unwrap_or_default().iter().any(|c| c == "CAP_SYS_ADMIN")
        && spec.linux.as_ref().is_some_and(|l| l.masked_paths.is_empty())
}
