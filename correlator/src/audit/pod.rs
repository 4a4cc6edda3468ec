//! What audit records tell about pods: uid, node, and the commands that the kubelet runs in them by itself.

use super::Event;
use super::event::nullable;
use seclog_proto::text;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Knowledge about one pod from one event. Facts only add up: the order of their arrival does not matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodFact {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// The node that reported the pod's status as its own (user `system:node:<name>`): only the node that the API
    /// server's node authorizer lets.
    pub node: Option<String>,
    pub commands: Vec<ProbeCommand>,
}

/// An exec probe's or lifecycle hook's command.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeCommand {
    pub container: String,
    pub argv: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Object {
    #[serde(deserialize_with = "nullable")]
    pub(super) kind: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) metadata: Metadata,
    #[serde(deserialize_with = "nullable")]
    pub(super) spec: Spec,
    #[serde(deserialize_with = "nullable")]
    items: Vec<Object>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Metadata {
    #[serde(deserialize_with = "nullable")]
    pub(super) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) uid: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) labels: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Spec {
    #[serde(deserialize_with = "nullable")]
    pub(super) containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    init_containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub(super) ephemeral_containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub(super) node_name: String,
    #[serde(rename = "hostPID", deserialize_with = "nullable")]
    pub(super) host_pid: bool,
    #[serde(deserialize_with = "nullable")]
    pub(super) volumes: Vec<Volume>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Container {
    #[serde(deserialize_with = "nullable")]
    pub(super) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) command: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) args: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub(super) env: Vec<EnvVar>,
    #[serde(deserialize_with = "nullable")]
    pub(super) tty: bool,
    #[serde(deserialize_with = "nullable")]
    pub(super) stdin: bool,
    liveness_probe: Option<Handler>,
    readiness_probe: Option<Handler>,
    startup_probe: Option<Handler>,
    lifecycle: Option<Lifecycle>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EnvVar {
    #[serde(deserialize_with = "nullable")]
    pub(super) name: String,
    #[serde(deserialize_with = "nullable")]
    pub(super) value: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct Volume {
    pub(super) host_path: Option<HostPath>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HostPath {
    #[serde(deserialize_with = "nullable")]
    pub(super) path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Handler {
    exec: Option<Exec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Exec {
    #[serde(deserialize_with = "nullable")]
    command: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Lifecycle {
    post_start: Option<Handler>,
    pre_stop: Option<Handler>,
}

/// Bodies that are no object of the expected shape tell nothing; the event itself is still good.
pub(super) fn object(raw: Option<&RawValue>) -> Option<Object> {
    serde_json::from_str(raw?.get()).ok()
}

pub(super) fn facts(event: &Event) -> Vec<PodFact> {
    let Some(reference) = event.object_ref.as_ref().filter(|reference| reference.resource == "pods") else {
        return Vec::new();
    };
    // Only what the API server answered is how things are: a request's body may still be refused or changed.
    let Some(body) = object(event.response_object.as_deref()) else { return Vec::new() };
    let node = match reference.subresource.as_str() {
        "status" if event.code() == Some(200) => event.user.username.strip_prefix("system:node:").map(str::to_owned),
        _ => None,
    };
    let objects = match body.kind.as_str() {
        "Pod" => vec![body],
        "PodList" => body.items,
        _ => Vec::new(),
    };
    objects.into_iter().filter(|pod| !pod.metadata.uid.is_empty()).map(|pod| fact(pod, node.clone())).collect()
}

fn fact(pod: Object, node: Option<String>) -> PodFact {
    let Object { metadata, spec, .. } = pod;
    let mut commands: Vec<ProbeCommand> = spec
        .containers
        .into_iter()
        .chain(spec.init_containers)
        .flat_map(|container| {
            let Container { name, liveness_probe, readiness_probe, startup_probe, lifecycle, .. } = container;
            let Lifecycle { post_start, pre_stop } = lifecycle.unwrap_or_default();
            [liveness_probe, readiness_probe, startup_probe, post_start, pre_stop]
                .into_iter()
                .filter_map(|handler| handler?.exec)
                .map(move |exec| ProbeCommand { container: name.clone(), argv: argv(&exec.command) })
        })
        .collect();
    commands.sort();
    commands.dedup();
    PodFact { namespace: metadata.namespace, pod: metadata.name, uid: metadata.uid, node, commands }
}

/// Text of JSON in the form in which the node reports argv.
pub(super) fn argv(command: &[String]) -> Vec<String> {
    command.iter().map(|argument| text::from_bytes(argument.as_bytes())).collect()
}

#[cfg(test)]
mod tests {
    use crate::audit::{ProbeCommand, read};

    #[test]
    fn exec_probes_and_hooks_of_a_pod_are_known_from_the_answer() {
        let (_, reading) = read(
            r#"{"auditID":"a","verb":"get","objectRef":{"resource":"pods","namespace":"n","name":"p"},
                "responseObject":{"kind":"Pod","metadata":{"name":"p","namespace":"n","uid":"u"},"spec":{"containers":[
                {"name":"app","livenessProbe":{"exec":{"command":["probe"]}},"readinessProbe":{"httpGet":{"port":1}},
                 "lifecycle":{"preStop":{"exec":{"command":["stop","now"]}}}}]}}}"#,
        )
        .unwrap();
        let command = |argv: &[&str]| ProbeCommand {
            container: "app".into(),
            argv: argv.iter().map(|argument| (*argument).to_owned()).collect(),
        };
        assert_eq!(reading.pods[0].commands, [command(&["probe"]), command(&["stop", "now"])]);
        assert_eq!(reading.pods[0].node, None);
    }

    #[test]
    fn the_node_that_reports_a_pods_status_runs_it() {
        let (_, reading) = read(
            r#"{"auditID":"a","verb":"patch","user":{"username":"system:node:node-1"},"responseStatus":{"code":200},
                "objectRef":{"resource":"pods","subresource":"status","namespace":"n","name":"p"},
                "responseObject":{"kind":"Pod","metadata":{"name":"p","namespace":"n","uid":"u"}}}"#,
        )
        .unwrap();
        assert_eq!(reading.pods[0].node.as_deref(), Some("node-1"));
    }
}
