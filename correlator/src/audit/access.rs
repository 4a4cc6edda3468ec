//! Remote access in audit records: which requests let somebody into a container or onto a node, and what they asked.

use super::pod::{self, Container, Metadata, Object};
use super::webhooks::{self, WebhookNote};
use super::{AuditError, Credential, Digest, Event, SPO_UID, Uri, proxy};
use seclog_proto::rfc3339;
use std::cmp::Ordering;

/// One stage of one request for remote access.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessEvent {
    pub identity: Identity,
    pub stage: Stage,
    /// Nanoseconds since 1970.
    pub stage_time: u64,
    pub verb: String,
    pub code: Option<i64>,
    pub user: User,
    pub access: Access,
    /// The address that the API server itself saw, and those that came in headers.
    pub source_ip: Option<String>,
    pub claimed_source_ips: Vec<String>,
    pub user_agent: String,
    /// The identifier that SPO's admission webhook injected, as the API server recorded it.
    pub spo_uid: Option<String>,
    pub webhooks: Vec<WebhookNote>,
    /// Of the event in its canonical form.
    pub digest: Digest,
    /// It came so late that it cannot be told from a repetition.
    pub late: bool,
}

/// What the stages of one request share, and no other request. The audit id alone does not do: clients choose it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Identity {
    /// requestReceivedTimestamp, nanoseconds since 1970. First, so that identities sort by time.
    pub received: u64,
    pub audit_id: String,
    pub username: String,
    pub impersonated: Option<String>,
    pub uri: String,
}

impl Ord for Identity {
    fn cmp(&self, other: &Self) -> Ordering {
        // Most that are found are the very one that was looked for.
        if std::ptr::eq(self, other) {
            return Ordering::Equal;
        }
        let Self { received, audit_id, username, impersonated, uri } = self;
        let others = (&other.received, &other.audit_id, &other.username, &other.impersonated, &other.uri);
        (received, audit_id, username, impersonated, uri).cmp(&others)
    }
}

impl PartialOrd for Identity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct User {
    pub username: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub credential: Credential,
    /// Whom the user acted as.
    pub impersonated: Option<String>,
    pub impersonated_groups: Vec<String>,
    /// What the user said this one's credential were.
    pub impersonated_credential: Credential,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AccessKind {
    Exec,
    Attach,
    PortForward,
    /// PATCH or PUT of a pod's ephemeral containers.
    Ephemeral,
    /// A pod made to debug a node.
    NodeDebug,
    ProxyExec,
    ProxyRun,
    ProxyAttach,
    ProxyPortForward,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access {
    pub kind: AccessKind,
    pub namespace: String,
    pub pod: String,
    pub pod_uid: Option<String>,
    pub container: Option<String>,
    pub node: Option<String>,
    /// As the node will report it: [`seclog_proto::text`].
    pub argv: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    /// Containers that the request brings into being, where its body is in the record.
    pub new_containers: Vec<NewContainer>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NewContainer {
    pub name: String,
    pub argv: Vec<String>,
    pub tty: bool,
    pub stdin: bool,
    /// SPO's identifier in the environment of the container as the API server stored it.
    pub stored_uid: Option<String>,
}

/// `None` for events that are not remote access.
pub(super) fn access_event(event: &Event) -> Result<Option<AccessEvent>, AuditError> {
    let Some(access) = access(event) else { return Ok(None) };
    let stage = match event.stage.as_str() {
        "RequestReceived" => Stage::RequestReceived,
        "ResponseStarted" => Stage::ResponseStarted,
        "Panic" => Stage::Panic,
        _ => Stage::ResponseComplete,
    };
    let impersonated = event.impersonated_user.as_ref().filter(|user| !user.username.is_empty());
    let received = time("requestReceivedTimestamp", &event.request_received_timestamp)?;
    let spo_uid = event
        .annotations
        .iter()
        .find(|(key, value)| !value.is_empty() && key.rsplit('/').next() == Some(SPO_UID))
        .map(|(_, value)| value.clone());
    let (claimed_source_ips, source_ip) = event.addresses();
    Ok(Some(AccessEvent {
        identity: Identity {
            received,
            audit_id: event.audit_id.clone(),
            username: event.user.username.clone(),
            impersonated: impersonated.map(|user| user.username.clone()),
            uri: event.request_uri.clone(),
        },
        stage,
        stage_time: time("stageTimestamp", &event.stage_timestamp)?,
        verb: event.verb.clone(),
        code: event.code(),
        user: User {
            username: event.user.username.clone(),
            uid: event.user.uid.clone(),
            groups: event.user.groups.clone(),
            credential: Credential::of(&event.user),
            impersonated: impersonated.map(|user| user.username.clone()),
            impersonated_groups: impersonated.map(|user| user.groups.clone()).unwrap_or_default(),
            impersonated_credential: impersonated.map(Credential::of).unwrap_or_default(),
        },
        access,
        source_ip: source_ip.map(str::to_owned),
        claimed_source_ips: claimed_source_ips.to_vec(),
        user_agent: event.user_agent.clone(),
        spo_uid,
        webhooks: webhooks::notes(event),
        digest: Digest::default(),
        late: false,
    }))
}

fn access(event: &Event) -> Option<Access> {
    let reference = event.object_ref.as_ref()?;
    if !reference.api_group.is_empty() {
        return None;
    }
    let kind = match (reference.resource.as_str(), reference.subresource.as_str(), event.verb.as_str()) {
        ("pods", "exec", _) => AccessKind::Exec,
        ("pods", "attach", _) => AccessKind::Attach,
        ("pods", "portforward", _) => AccessKind::PortForward,
        ("pods", "ephemeralcontainers", "patch" | "update") => AccessKind::Ephemeral,
        ("pods", "", "create") => AccessKind::NodeDebug,
        ("nodes", "proxy", _) => return proxy::access(&Uri::parse(&event.request_uri)),
        _ => return None,
    };
    let uri = Uri::parse(&event.request_uri);
    let mut access = Access {
        kind,
        namespace: reference.namespace.clone(),
        pod: reference.name.clone(),
        pod_uid: None,
        container: None,
        node: None,
        argv: Vec::new(),
        tty: uri.flag("tty"),
        stdin: uri.flag("stdin"),
        new_containers: Vec::new(),
    };
    match kind {
        AccessKind::Ephemeral | AccessKind::NodeDebug if uri.first("dryRun").is_some() => None,
        AccessKind::Ephemeral => {
            ephemeral(event, &mut access);
            Some(access)
        }
        AccessKind::NodeDebug => node_debug(event, &mut access).then_some(access),
        _ => {
            access.container = uri.first("container").filter(|name| !name.is_empty()).map(str::to_owned);
            if kind == AccessKind::Exec {
                access.argv = uri.values("command").map(str::to_owned).collect();
            }
            Some(access)
        }
    }
}

fn ephemeral(event: &Event, access: &mut Access) {
    let asked = pod::object(event.request_object.as_deref()).unwrap_or_default();
    let stored = pod::object(event.response_object.as_deref()).unwrap_or_default();
    // kubectl sends a strategic merge patch that holds only the new container; an update holds the old ones as well,
    // which cannot be told apart without the pod as it was.
    access.new_containers = asked
        .spec
        .ephemeral_containers
        .iter()
        .filter(|container| !container.name.is_empty())
        .map(|container| new_container(container, &stored.spec.ephemeral_containers))
        .collect();
    access.new_containers.sort();
    access.pod_uid = Some(stored.metadata.uid).filter(|uid| !uid.is_empty());
}

fn new_container(asked: &Container, stored: &[Container]) -> NewContainer {
    let stored_uid = stored
        .iter()
        .find(|container| container.name == asked.name)
        .and_then(|container| container.env.iter().rfind(|variable| variable.name == SPO_UID))
        .map(|variable| variable.value.clone());
    let command: Vec<String> = asked.command.iter().chain(&asked.args).cloned().collect();
    NewContainer { name: asked.name.clone(), argv: pod::argv(&command), tty: asked.tty, stdin: asked.stdin, stored_uid }
}

/// Fills `access` and says true where the created pod is one for debugging a node. Without bodies (audit level
/// Metadata) only the name that `kubectl debug node/...` gives can tell.
fn node_debug(event: &Event, access: &mut Access) -> bool {
    let asked = pod::object(event.request_object.as_deref()).unwrap_or_default();
    let stored =
        pod::object(event.response_object.as_deref()).filter(|object| object.kind == "Pod").unwrap_or_default();
    if access.pod.is_empty() {
        access.pod = [&stored.metadata.name, &asked.metadata.name]
            .into_iter()
            .find(|name| !name.is_empty())
            .cloned()
            .unwrap_or_default();
    }
    let body = if stored.spec.containers.is_empty() { &asked } else { &stored };
    if !looks_like_node_debugging(body, &access.pod) {
        return false;
    }
    access.new_containers =
        body.spec.containers.iter().map(|container| new_container(container, &stored.spec.containers)).collect();
    access.new_containers.sort();
    access.pod_uid = Some(stored.metadata.uid.clone()).filter(|uid| !uid.is_empty());
    access.node = Some(body.spec.node_name.clone()).filter(|node| !node.is_empty());
    true
}

/// `kubectl debug node/n` (labelled from 1.34 on, before that known by its name and shape) and `oc debug node/n`.
fn looks_like_node_debugging(body: &Object, name: &str) -> bool {
    let Metadata { labels, annotations, .. } = &body.metadata;
    let labelled = labels.get("app.kubernetes.io/managed-by").is_some_and(|value| value == "kubectl-debug")
        || labels.contains_key("debug.openshift.io/managed-by");
    let of_a_node = annotations.get("debug.openshift.io/source-resource").is_some_and(|value| value.contains("nodes/"));
    let whole_host = body.spec.host_pid
        && !body.spec.node_name.is_empty()
        && body.spec.volumes.iter().any(|volume| volume.host_path.as_ref().is_some_and(|path| path.path == "/"));
    of_a_node || (whole_host && (labelled || has_debug_name(name))) || name.starts_with("node-debugger-")
}

fn has_debug_name(name: &str) -> bool {
    name.starts_with("node-debugger-") || name.contains("-debug")
}

/// `oc rsh` without a command of its own: `/bin/sh -c 'TERM="xterm" /bin/sh'` (oc/pkg/cli/rsh/rsh.go), perhaps with more
/// behind it.
pub fn is_rsh(argv: &[String]) -> bool {
    let [shell, flag, script] = argv else { return false };
    let after_term = script.strip_prefix("TERM=\"").and_then(|rest| rest.split_once("\" "));
    shell == "/bin/sh" && flag == "-c" && after_term.is_some_and(|(_, command)| command.starts_with("/bin/sh"))
}

fn time(field: &'static str, text: &str) -> Result<u64, AuditError> {
    rfc3339::parse(text).ok_or_else(|| AuditError::Time { field, text: text.chars().take(64).collect() })
}

#[cfg(test)]
mod tests {
    use super::{AccessKind, is_rsh};
    use crate::audit::{AuditError, Credential, read};

    const TIMES: &str =
        r#""requestReceivedTimestamp":"2026-11-23T22:30:04.1Z","stageTimestamp":"2026-11-23T22:30:04.2Z""#;

    #[test]
    fn an_exec_carries_what_was_asked_and_who_asked() {
        let (_, reading) = read(&format!(
            r#"{{"auditID":"a","stage":"ResponseStarted","verb":"get","requestURI":"/api/v1/namespaces/n/pods/p/exec?command=sh&tty=true",
                "user":{{"username":"root","groups":["g"]}},"impersonatedUser":{{"username":"carol"}},
                "objectRef":{{"resource":"pods","subresource":"exec","namespace":"n","name":"p"}},
                "annotations":{{"execmetadata.spo.io/SPO_EXEC_REQUEST_UID":"u"}},{TIMES}}}"#
        ))
        .unwrap();
        let access = reading.access.unwrap();
        assert_eq!(
            (access.access.kind, access.access.argv.as_slice()),
            (AccessKind::Exec, ["sh".to_owned()].as_slice())
        );
        assert_eq!(access.access.container, None);
        assert_eq!((access.user.username.as_str(), access.user.impersonated.as_deref()), ("root", Some("carol")));
        assert_eq!(access.spo_uid.as_deref(), Some("u"));
    }

    #[test]
    fn who_asked_with_which_credential_and_from_where_is_read_whole() {
        let (_, reading) = read(&format!(
            r#"{{"auditID":"a","stage":"ResponseStarted","verb":"create","requestURI":"/api/v1/namespaces/n/pods/p/exec?command=sh",
                "user":{{"username":"system:serviceaccount:ci:runner","uid":"u-1","groups":["g"],"extra":{{
                    "scopes.authorization.openshift.io":["user:info","role:view:ci"],
                    "authentication.kubernetes.io/credential-id":["JTI=7"],"authentication.kubernetes.io/node-name":["node-3"],
                    "authentication.kubernetes.io/node-uid":["n-3"],"authentication.kubernetes.io/pod-name":["runner-x"],
                    "authentication.kubernetes.io/pod-uid":["p-9"],"example.com/other":null}}}},
                "impersonatedUser":{{"username":"carol","extra":{{"scopes.authorization.openshift.io":["user:full"]}}}},
                "sourceIPs":["198.51.100.1","203.0.113.24","10.128.0.2"],
                "objectRef":{{"resource":"pods","subresource":"exec","namespace":"n","name":"p"}},{TIMES}}}"#
        ))
        .unwrap();
        let access = reading.access.unwrap();
        let credential = Credential {
            scopes: vec!["user:info".into(), "role:view:ci".into()],
            id: vec!["JTI=7".into()],
            pod_name: "runner-x".into(),
            pod_uid: "p-9".into(),
            node_name: "node-3".into(),
            node_uid: "n-3".into(),
        };
        assert_eq!((access.user.uid.as_str(), &access.user.credential), ("u-1", &credential));
        assert_eq!(access.user.impersonated_credential.scopes, ["user:full"]);
        assert_eq!(access.source_ip.as_deref(), Some("10.128.0.2"), "what the API server saw");
        assert_eq!(access.claimed_source_ips, ["198.51.100.1", "203.0.113.24"], "what headers said");
    }

    #[test]
    fn an_ordinary_pod_and_a_read_of_ephemeral_containers_are_no_access() {
        for (verb, subresource) in [("create", ""), ("get", "ephemeralcontainers"), ("get", "log")] {
            let (_, reading) = read(&format!(
                r#"{{"verb":"{verb}","objectRef":{{"resource":"pods","subresource":"{subresource}","name":"p"}},{TIMES}}}"#
            ))
            .unwrap();
            assert_eq!(reading.access, None, "{verb} {subresource}");
        }
    }

    #[test]
    fn access_without_a_time_is_refused_with_the_field_named() {
        let error = read(r#"{"verb":"get","objectRef":{"resource":"pods","subresource":"exec"}}"#).unwrap_err();
        assert!(matches!(error, AuditError::Time { field: "requestReceivedTimestamp", .. }), "{error}");
    }

    #[test]
    fn oc_rsh_is_known_by_its_argv() {
        let argv = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        assert!(is_rsh(&argv(&["/bin/sh", "-c", "TERM=\"xterm\" /bin/sh"])));
        assert!(!is_rsh(&argv(&["/bin/sh", "-c", "TERM=\"xterm\" /usr/bin/id"])));
        assert!(!is_rsh(&argv(&["/bin/sh", "-c", "id"])));
    }
}
