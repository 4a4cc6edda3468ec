//! What a kube-apiserver reports of an exec request, stage by stage, in the form its audit webhook backend sends.
//! Forms are those of real recordings (tests/fixtures): field order, encoding of the URI, time stamps.

use anyhow::Result;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use time::{OffsetDateTime, macros::format_description};

/// Go's url.QueryEscape leaves these and turns a space into a plus.
const QUERY: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~').remove(b' ');

/// One exec request on its way through the API server.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    pub user: String,
    pub audit_id: String,
    namespace: String,
    pod: String,
    container: String,
    command: Vec<String>,
    tty: bool,
    annotations: serde_json::Map<String, Value>,
    received: OffsetDateTime,
    stages: Vec<(&'static str, OffsetDateTime)>,
}

impl ExecRequest {
    /// A request that arrives now.
    pub fn arrives(user: &str, namespace: &str, pod: &str, container: &str, command: &[&str]) -> Result<Self> {
        let reason = format!("RBAC: allowed by ClusterRoleBinding \"exec\" of ClusterRole \"exec\" to User \"{user}\"");
        let annotations = json!({ "authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": reason });
        Ok(Self {
            user: user.to_owned(),
            audit_id: std::fs::read_to_string("/proc/sys/kernel/random/uuid")?.trim().to_owned(),
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.to_owned(),
            command: command.iter().map(ToString::to_string).collect(),
            tty: false,
            annotations: annotations.as_object().cloned().unwrap_or_default(),
            received: OffsetDateTime::now_utc(),
            stages: Vec::new(),
        })
    }

    #[must_use]
    pub fn with_annotation(mut self, name: &str, value: &str) -> Self {
        self.annotations.insert(name.to_owned(), value.into());
        self
    }

    #[must_use]
    pub fn with_tty(mut self) -> Self {
        self.tty = true;
        self
    }

    /// The connection to the kubelet is made and the client's upgraded, now.
    pub fn response_started(&mut self) {
        self.stages.push(("ResponseStarted", OffsetDateTime::now_utc()));
    }

    /// The connection closed, now.
    pub fn response_complete(&mut self) {
        self.stages.push(("ResponseComplete", OffsetDateTime::now_utc()));
    }

    /// Parameters in the order of their names, as client-go writes them.
    pub fn uri(&self) -> String {
        let Self { namespace, pod, container, command, tty, .. } = self;
        let escape = |text: &str| utf8_percent_encode(text, QUERY).to_string().replace(' ', "+");
        let mut query: Vec<String> = command.iter().map(|word| format!("command={}", escape(word))).collect();
        query.push(format!("container={}", escape(container)));
        // A terminal has one output; kubectl then does not ask for a second one.
        query.extend(if *tty {
            ["stdin=true", "stdout=true", "tty=true"].map(String::from).to_vec()
        } else {
            ["stderr=true", "stdout=true"].map(String::from).to_vec()
        });
        format!("/api/v1/namespaces/{namespace}/pods/{pod}/exec?{}", query.join("&"))
    }

    /// The events of all stages so far.
    pub fn events(&self) -> Vec<Value> {
        self.stages.iter().map(|(stage, time)| self.event(stage, *time)).collect()
    }

    fn event(&self, stage: &str, time: OffsetDateTime) -> Value {
        let Self { user, audit_id, namespace, pod, annotations, received, .. } = self;
        json!({
            "level": "Metadata",
            "auditID": audit_id,
            "stage": stage,
            "requestURI": self.uri(),
            // kubectl's default transport since 1.31 is a WebSocket, which begins as a GET.
            "verb": "get",
            "user": { "username": user, "uid": format!("uid-of-{user}"), "groups": ["sre", "system:authenticated"] },
            "sourceIPs": ["127.0.0.1"],
            "userAgent": "kubectl/v1.32.4 (linux/amd64) kubernetes/4cb5f07",
            "objectRef": {
                "resource": "pods", "namespace": namespace, "name": pod, "apiVersion": "v1", "subresource": "exec",
            },
            "responseStatus": { "metadata": {}, "code": 101 },
            "requestReceivedTimestamp": micro_time(*received),
            "stageTimestamp": micro_time(time),
            "annotations": annotations,
        })
    }
}

/// The body of one webhook POST.
pub fn event_list(events: impl IntoIterator<Item = Value>) -> String {
    let items: Vec<Value> = events.into_iter().collect();
    let list = json!({ "kind": "EventList", "apiVersion": "audit.k8s.io/v1", "metadata": {}, "items": items });
    // Go's encoder escapes these three inside strings, and they occur nowhere else in JSON.
    list.to_string().replace('&', "\\u0026").replace('<', "\\u003c").replace('>', "\\u003e")
}

/// metav1.MicroTime: RFC 3339 with six digits.
fn micro_time(time: OffsetDateTime) -> String {
    let form = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
    time.format(form).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::{ExecRequest, event_list};

    #[test]
    fn the_uri_is_encoded_as_in_the_recordings() {
        let request = ExecRequest::arrives(
            "alice@example.com",
            "shop",
            "web-7c9d8f6b5-x2x7k",
            "app",
            &["sh", "-c", "/bin/id; /bin/cat /etc/hostname; exit 3"],
        )
        .unwrap();
        assert_eq!(
            request.uri(),
            "/api/v1/namespaces/shop/pods/web-7c9d8f6b5-x2x7k/exec?command=sh&command=-c&\
             command=%2Fbin%2Fid%3B+%2Fbin%2Fcat+%2Fetc%2Fhostname%3B+exit+3&container=app&stderr=true&stdout=true"
        );
    }

    #[test]
    fn a_list_has_an_event_for_each_stage_and_no_bare_ampersand() {
        let mut request = ExecRequest::arrives("bob", "shop", "web", "app", &["id"]).unwrap();
        request.response_started();
        request.response_complete();
        let body = event_list(request.events());
        assert!(!body.contains('&'));
        let list: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(list["items"][0]["stage"], "ResponseStarted");
        assert_eq!(list["items"][1]["stage"], "ResponseComplete");
        assert_eq!(list["items"][0]["auditID"], list["items"][1]["auditID"]);
        assert_eq!(list["items"][1]["requestURI"], request.uri().as_str());
        assert_eq!(list["items"][0]["stageTimestamp"].as_str().unwrap().len(), "2026-11-23T22:30:04.201812Z".len());
    }
}
