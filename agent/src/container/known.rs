//! What is known of a container, and how it gets into records.

use seclog_dropin::{
    facts::Logs,
    spec::{Names as SpecNames, Spec},
};
use seclog_proto::{
    cri::{CriContainerStatus, PodSandbox},
    v1::{Container, ContainerFacts, NodeRecord, node_record::Detail},
};
use serde::Deserialize;
use std::collections::HashMap;

/// A sandbox's own process goes by the name that kubelet's docker shim gave it, and CRI-O still does.
const SANDBOX: &str = "POD";
/// Bytes of the container's own identifiers that are carried; more are not ours.
const MOST_VALUE: usize = 256;
const MOST_VALUES: usize = 8;

/// What is known of a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Known {
    pub pod_uid: String,
    pub pod_name: String,
    pub pod_namespace: String,
    pub name: String,
    pub image: String,
    pub facts: ContainerFacts,
    /// `cri` or `state`.
    pub how: &'static str,
}

/// The JSON of ContainerStatus' `info["info"]`: CRI-O's (cri-o/cri-o `server/container_status.go`) and containerd's
/// (containerd/containerd `pkg/cri/server/container_status.go`).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    privileged: Option<bool>,
    #[serde(default)]
    runtime_spec: Option<Spec>,
    #[serde(default)]
    config: Option<InfoConfig>,
}

#[derive(Debug, Default, Deserialize)]
struct InfoConfig {
    #[serde(default)]
    linux: Option<InfoLinux>,
}

#[derive(Debug, Default, Deserialize)]
struct InfoLinux {
    #[serde(default)]
    security_context: Option<InfoSecurity>,
}

#[derive(Debug, Default, Deserialize)]
struct InfoSecurity {
    #[serde(default)]
    privileged: bool,
}

// === impl Known ===

impl Known {
    /// From the specification that the runtime left on disk. `None`: it names no pod, so it is no pod's.
    pub fn of_spec(spec: &Spec, wanted: &[String]) -> Option<Self> {
        let SpecNames { namespace, pod, pod_uid, container, image, is_sandbox } = spec.names();
        if pod.is_empty() {
            return None;
        }
        Some(Self {
            pod_uid,
            pod_name: pod,
            pod_namespace: namespace,
            name: if is_sandbox { SANDBOX.into() } else { container },
            image,
            facts: facts(spec, None, wanted),
            how: "state",
        })
    }

    /// From a status, with the runtime's own JSON where it gave any.
    pub fn of_status(status: CriContainerStatus, info: Option<&str>, wanted: &[String]) -> Self {
        let CriContainerStatus { metadata, image, labels, .. } = status;
        // What cannot be read says nothing; the names are still good.
        let info: Info = info.and_then(|info| serde_json::from_str(info).ok()).unwrap_or_default();
        let by_config = || Some(info.config.as_ref()?.linux.as_ref()?.security_context.as_ref()?.privileged);
        let privileged = info.privileged.or_else(by_config);
        Self {
            name: metadata.map(|metadata| metadata.name).unwrap_or_default(),
            image: image.map(|image| image.image).unwrap_or_default(),
            facts: match &info.runtime_spec {
                Some(spec) => facts(spec, privileged, wanted),
                None => ContainerFacts { privileged: yes_or_no(privileged), ..ContainerFacts::default() },
            },
            ..Self::of_labels(&labels)
        }
    }

    pub fn of_sandbox(sandbox: PodSandbox) -> Self {
        let metadata = sandbox.metadata.unwrap_or_default();
        Self {
            pod_uid: metadata.uid,
            pod_name: metadata.name,
            pod_namespace: metadata.namespace,
            name: SANDBOX.into(),
            how: "cri",
            ..Self::default()
        }
    }

    fn of_labels(labels: &HashMap<String, String>) -> Self {
        let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
        Self {
            pod_uid: label("io.kubernetes.pod.uid"),
            pod_name: label("io.kubernetes.pod.name"),
            pod_namespace: label("io.kubernetes.pod.namespace"),
            how: "cri",
            ..Self::default()
        }
    }

    /// Puts the names into a record of the container, and into one of a session root what else is known.
    pub fn fill(&self, record: &mut NodeRecord) {
        if let Some(container) = &mut record.container {
            self.name(container);
        }
        if let Some(Detail::ProcessStart(start)) = &mut record.detail
            && start.is_session_root
            && self.facts != ContainerFacts::default()
        {
            start.container_facts = Some(Box::new(self.facts.clone()));
        }
    }

    pub fn name(&self, container: &mut Container) {
        let Self { pod_uid, pod_name, pod_namespace, name, image, facts: _, how } = self;
        container.names.replace_range(.., how);
        container.pod_name.clone_from(pod_name);
        container.pod_namespace.clone_from(pod_namespace);
        container.name.clone_from(name);
        container.image.clone_from(image);
        if !pod_uid.is_empty() {
            container.pod_uid.clone_from(pod_uid);
        }
    }
}

fn facts(spec: &Spec, privileged: Option<bool>, wanted: &[String]) -> ContainerFacts {
    let short = |variable: &str| variable.chars().take(MOST_VALUE).collect();
    ContainerFacts {
        privileged: yes_or_no(Some(privileged.unwrap_or_else(|| spec.is_privileged()))),
        seccomp_profile: spec.seccomp_profile().chars().take(MOST_VALUE).collect(),
        logs_exec: match spec.logs() {
            Logs::Yes => "yes",
            Logs::No => "no",
            Logs::Unknown => "",
        }
        .into(),
        own_environment: spec.variables(wanted).take(MOST_VALUES).map(short).collect(),
        own_environment_known: true,
    }
}

fn yes_or_no(value: Option<bool>) -> String {
    match value {
        Some(true) => "yes",
        Some(false) => "no",
        None => "",
    }
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_of_either_runtime_tells_privileges_filter_and_the_containers_own_identifiers() {
        let wanted = ["SPO_EXEC_REQUEST_UID".to_owned()];
        let spec = r#"{"process":{"env":["SECRET=x","SPO_EXEC_REQUEST_UID=7"]},"linux":{"seccomp":null}}"#;
        for (info, privileged) in [
            (format!(r#"{{"privileged":true,"runtimeSpec":{spec}}}"#), "yes"),
            (format!(r#"{{"config":{{"linux":{{"security_context":{{}}}}}},"runtimeSpec":{spec}}}"#), "no"),
            (
                format!(
                    r#"{{"config":{{"linux":{{"security_context":{{"privileged":true}}}}}},"runtimeSpec":{spec}}}"#
                ),
                "yes",
            ),
        ] {
            let known = Known::of_status(CriContainerStatus::default(), Some(&info), &wanted);
            assert_eq!(known.facts.privileged, privileged, "{info}");
            assert_eq!((known.facts.seccomp_profile.as_str(), known.facts.logs_exec.as_str()), ("Unconfined", "no"));
            assert_eq!(known.facts.own_environment, ["SPO_EXEC_REQUEST_UID=7"]);
        }
        let unread = Known::of_status(CriContainerStatus::default(), Some("{"), &wanted);
        assert!(!unread.facts.own_environment_known && unread.facts.privileged.is_empty());
    }

    #[test]
    fn a_specification_without_a_pod_is_nobodys() {
        assert_eq!(Known::of_spec(&Spec::default(), &[]), None);
    }
}
