//! The OCI runtime specification of a container (`config.json`), as CRI-O and containerd write it: what the kubelet and the
//! runtime put into its annotations, and what the runtime really starts the container with.

use std::collections::HashMap;

use serde::Deserialize;

use crate::{
    facts::Logs,
    profile::{EXEC, Profile},
};

/// A larger file is not read.
pub const MAX_BYTES: u64 = 4 << 20;

/// The parts that are looked at.
#[derive(Debug, Default, Deserialize)]
pub struct Spec {
    #[serde(default)]
    annotations: HashMap<String, String>,
    #[serde(default)]
    process: Option<Process>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Debug, Deserialize)]
struct Process {
    #[serde(default)]
    capabilities: Option<Capabilities>,
    #[serde(default)]
    env: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Capabilities {
    #[serde(default)]
    bounding: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Linux {
    #[serde(default)]
    seccomp: Option<serde_json::Value>,
    #[serde(default)]
    masked_paths: Vec<String>,
}

/// Whose container it is. Empty where the specification does not say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    pub namespace: String,
    pub pod: String,
    pub pod_uid: String,
    pub container: String,
    pub image: String,
    /// The pod's own process, which holds its namespaces.
    pub is_sandbox: bool,
}

/// Annotations of CRI-O and the kubelet (cri-o/cri-o `internal/annotations`), and those of containerd's CRI plugin
/// (containerd/containerd `pkg/cri/annotations`).
const CRIO_LABELS: &str = "io.kubernetes.cri-o.Labels";
const CRIO_TYPE: &str = "io.kubernetes.cri-o.ContainerType";
const CRIO_PROFILE: &str = "io.kubernetes.cri-o.SeccompProfilePath";
const CONTAINERD_TYPE: &str = "io.kubernetes.cri.container-type";

// === impl Spec ===

impl Spec {
    pub fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Empty where there is none.
    pub fn annotation(&self, key: &str) -> &str {
        self.annotations.get(key).map_or("", String::as_str)
    }

    pub fn names(&self) -> Names {
        // A container's own annotations may lack some; its labels have them.
        let labels: HashMap<String, String> = serde_json::from_str(self.annotation(CRIO_LABELS)).unwrap_or_default();
        let first = |keys: &[&str]| {
            let own = keys.iter().map(|key| self.annotation(key)).find(|value| !value.is_empty());
            let label = || keys.iter().find_map(|key| labels.get(*key));
            own.map(str::to_owned).or_else(|| label().cloned()).unwrap_or_default()
        };
        let is_sandbox = [CRIO_TYPE, CONTAINERD_TYPE].iter().any(|key| self.annotation(key) == "sandbox");
        Names {
            namespace: first(&["io.kubernetes.pod.namespace", "io.kubernetes.cri.sandbox-namespace"]),
            pod: first(&["io.kubernetes.pod.name", "io.kubernetes.cri.sandbox-name"]),
            pod_uid: first(&["io.kubernetes.pod.uid", "io.kubernetes.cri.sandbox-uid"]),
            container: first(&["io.kubernetes.container.name", "io.kubernetes.cri.container-name"]),
            image: first(&["io.kubernetes.cri-o.ImageName", "io.kubernetes.cri.image-name"]),
            is_sandbox,
        }
    }

    /// The specification does not say "privileged"; all capabilities and nothing masked is what runtimes make of it.
    pub fn is_privileged(&self) -> bool {
        let bounding = self.process.as_ref().and_then(|p| p.capabilities.as_ref()).map(|c| c.bounding.as_slice());
        bounding.unwrap_or_default().iter().any(|c| c == "CAP_SYS_ADMIN")
            && self.linux.as_ref().is_some_and(|l| l.masked_paths.is_empty())
    }

    /// Does an exec in the container make a record?
    pub fn logs(&self) -> Logs {
        let Some(linux) = &self.linux else { return Logs::Unknown };
        match &linux.seccomp {
            None | Some(serde_json::Value::Null) => Logs::No,
            Some(value) => match Profile::parse(&value.to_string()) {
                Ok(profile) if EXEC.iter().any(|name| profile.logs(name)) => Logs::Yes,
                Ok(_) => Logs::No,
                Err(_) => Logs::Unknown,
            },
        }
    }

    /// The name of the filter in force: `Unconfined`, `RuntimeDefault`, a path on the node, or empty where there is one
    /// whose name is not told.
    pub fn seccomp_profile(&self) -> &str {
        match self.linux.as_ref().map(|linux| &linux.seccomp) {
            None => "",
            // Whatever was asked for, there is no filter.
            Some(None | Some(serde_json::Value::Null)) => "Unconfined",
            Some(Some(_)) => self.annotation(CRIO_PROFILE),
        }
    }

    /// Variables of these names in the environment of the container's own process, `NAME=value`.
    pub fn variables<'a>(&'a self, names: &'a [String]) -> impl Iterator<Item = &'a str> {
        let all = self.process.iter().flat_map(|process| &process.env).map(String::as_str);
        all.filter(|variable| {
            variable.split_once('=').is_some_and(|(name, _)| names.iter().any(|wanted| wanted == name))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containerds_and_crios_specifications_name_the_same() {
        let crio = r#"{"annotations":{"io.kubernetes.cri-o.ContainerType":"container","io.kubernetes.pod.name":"p",
            "io.kubernetes.container.name":"c","io.kubernetes.cri-o.ImageName":"i",
            "io.kubernetes.cri-o.Labels":"{\"io.kubernetes.pod.namespace\":\"n\",\"io.kubernetes.pod.uid\":\"u\"}"}}"#;
        let containerd = r#"{"annotations":{"io.kubernetes.cri.container-type":"container",
            "io.kubernetes.cri.sandbox-name":"p","io.kubernetes.cri.container-name":"c",
            "io.kubernetes.cri.sandbox-namespace":"n","io.kubernetes.cri.sandbox-uid":"u",
            "io.kubernetes.cri.image-name":"i"}}"#;
        let names = Names {
            namespace: "n".into(),
            pod: "p".into(),
            pod_uid: "u".into(),
            container: "c".into(),
            image: "i".into(),
            is_sandbox: false,
        };
        for text in [crio, containerd] {
            assert_eq!(Spec::parse(text.as_bytes()).unwrap().names(), names);
        }
        let sandbox = r#"{"annotations":{"io.kubernetes.cri.container-type":"sandbox"}}"#;
        assert!(Spec::parse(sandbox.as_bytes()).unwrap().names().is_sandbox);
    }

    #[test]
    fn the_filter_in_force_counts_and_not_the_one_that_was_asked_for() {
        let of = |seccomp: &str| {
            let annotation = r#"{"io.kubernetes.cri-o.SeccompProfilePath":"RuntimeDefault"}"#;
            let text = format!(r#"{{"annotations":{annotation},"linux":{{"seccomp":{seccomp}}}}}"#);
            let spec = Spec::parse(text.as_bytes()).unwrap();
            (spec.seccomp_profile().to_owned(), spec.logs())
        };
        let log = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["execve"],"action":"SCMP_ACT_LOG"}]}"#;
        assert_eq!(of(log), ("RuntimeDefault".into(), Logs::Yes));
        assert_eq!(of("null"), ("Unconfined".into(), Logs::No));
        assert_eq!(Spec::default().logs(), Logs::Unknown);
    }

    #[test]
    fn only_the_named_variables_of_the_environment_are_told() {
        let text = r#"{"process":{"env":["PATH=/bin","A=1","AB=2","A","PASSWORD=x","A=3"]}}"#;
        let spec = Spec::parse(text.as_bytes()).unwrap();
        assert_eq!(spec.variables(&["A".to_owned()]).collect::<Vec<_>>(), ["A=1", "A=3"]);
    }
}
