//! What audit records tell about pods: uid, node, and the commands that the kubelet runs in them by itself.

use super::event::nullable;
use super::{Event, ObjectRef};
use seclog_proto::text;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Knowledge about one pod from one event. Facts only add up: the order of their arrival does not matter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodFact {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    /// The node that reported the pod's status as its own (user `system:node:<name>`): only the node that the API
    /// server's node authorizer lets. Or the one that it was bound to.
    pub node: Option<String>,
    /// The record shows the pod's containers: `commands` are all that there are.
    pub has_spec: bool,
    pub commands: Vec<ProbeCommand>,
}

/// An exec probe's or lifecycle hook's command.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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
    if reference.subresource == "binding" {
        return binding(event, reference).into_iter().collect();
    }
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

/// Which node is to run a pod. The API server refuses a binding to another pod than the uid says, and a second one
/// (k8s.io/kubernetes/pkg/registry/core/pod/storage: assignPod).
fn binding(event: &Event, reference: &ObjectRef) -> Option<PodFact> {
    if event.verb != "create" || !matches!(event.code(), Some(200 | 201)) {
        return None;
    }
    let body: Binding = serde_json::from_str(event.request_object.as_deref()?.get()).ok()?;
    let uid = [body.metadata.uid, reference.uid.clone()].into_iter().find(|uid| !uid.is_empty())?;
    let is_node = body.target.kind.is_empty() || body.target.kind == "Node";
    let (namespace, pod) = (reference.namespace.clone(), reference.name.clone());
    let node = Some(body.target.name).filter(|name| is_node && !name.is_empty())?;
    Some(PodFact { namespace, pod, uid, node: Some(node), has_spec: false, commands: Vec::new() })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Binding {
    #[serde(deserialize_with = "nullable")]
    metadata: Metadata,
    #[serde(deserialize_with = "nullable")]
    target: Target,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Target {
    #[serde(deserialize_with = "nullable")]
    kind: String,
    #[serde(deserialize_with = "nullable")]
    name: String,
}

fn fact(pod: Object, node: Option<String>) -> PodFact {
    let Object { metadata, spec, .. } = pod;
    let has_spec = !spec.containers.is_empty();
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
    PodFact { namespace: metadata.namespace, pod: metadata.name, uid: metadata.uid, node, has_spec, commands }
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

    #[test]
    fn a_binding_says_which_node_is_to_run_the_pod() {
        let told = |code: u32| {
            let (_, reading) = read(&format!(
                r#"{{"auditID":"a","verb":"create","responseStatus":{{"code":{code}}},
                    "objectRef":{{"resource":"pods","subresource":"binding","namespace":"n","name":"p"}},
                    "requestObject":{{"kind":"Binding","metadata":{{"uid":"u"}},"target":{{"kind":"Node","name":"node-1"}}}}}}"#
            ))
            .unwrap();
            reading.pods.first().map(|fact| (fact.uid.clone(), fact.node.clone()))
        };
        assert_eq!(told(201), Some(("u".to_owned(), Some("node-1".to_owned()))));
        assert_eq!(told(409), None);
    }
}
