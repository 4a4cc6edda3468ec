//! Lines of the JSON enricher of the Security Profiles Operator, `spo/v1_alpha`: what a cluster tells of its nodes that runs
//! that alone.
//!
//! A line is one process and interval (60 s by default): the system calls that seccomp logged of it, and what /proc told of
//! it when the enricher got there. Source of the format: kubernetes-sigs/security-profiles-operator,
//! internal/pkg/daemon/enricher/jsonenricher.go (`dispatchSeccompLine`), v1.0.0.
//!
//! What a line cannot be relied on for: `requestUID` is what the process's environment or command line said; where one
//! argument ends and the next begins is lost; times are whole seconds up to v1.0.0; what ended before the enricher looked has
//! neither; which process started which is not told; lines have no numbers, so that nothing shows whether one is missing.

use seclog_proto::{rfc3339, text};
use serde::Deserialize;
use std::collections::BTreeSet;

/// What `version` says in lines that are read here.
pub const VERSION: &str = "spo/v1_alpha";
/// System calls of one line that are kept; kernels have fewer than 500.
const MOST_SYSCALLS: usize = 512;
/// Bytes of a command line that are kept.
const LONGEST_COMMAND: usize = 64 << 10;

#[derive(Debug, thiserror::Error)]
pub enum SpoError {
    #[error("not a line of SPO's JSON enricher: {0}")]
    NotJson(#[from] serde_json::Error),
    #[error("version {0:?}; {VERSION} is read here")]
    Version(String),
    #[error("timestamp is not an RFC 3339 time: {0:?}")]
    Time(String),
    #[error("no {0} in it")]
    Missing(&'static str),
}

/// One process in one interval. Empty text: not known. Text that a process could choose is carried as
/// [`seclog_proto::text`] does.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SpoLine {
    /// Of the first record of the interval, nanoseconds since 1970. The real time is up to a second later.
    pub time: u64,
    /// `auditID`: made by the enricher at random, and no audit id of the API server.
    pub id: String,
    pub node: String,
    pub namespace: String,
    pub pod: String,
    pub container: String,
    /// The host's.
    pub pid: u32,
    pub uid: u32,
    /// Of the caller: what the process ran before.
    pub executable: String,
    /// Arguments with a space behind each, as the enricher writes them; here without white space at the end.
    pub command_line: String,
    pub request_uid: Option<String>,
    pub syscalls: BTreeSet<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Written {
    version: Option<String>,
    #[serde(rename = "auditID")]
    audit_id: Option<String>,
    timestamp: Option<String>,
    node: Option<Node>,
    resource: Option<Resource>,
    pid: Option<u32>,
    uid: Option<u32>,
    executable: Option<String>,
    #[serde(rename = "cmdLine")]
    cmd_line: Option<String>,
    #[serde(rename = "requestUID")]
    request_uid: Option<String>,
    syscalls: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Node {
    name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Resource {
    namespace: Option<String>,
    pod: Option<String>,
    container: Option<String>,
}

/// Whether a line of the enricher's output is one of its records: what it logs about itself comes on the same way.
pub fn is_record(line: &[u8]) -> bool {
    line.trim_ascii_start().first() == Some(&b'{')
}

pub fn read(line: &[u8]) -> Result<SpoLine, SpoError> {
    let written: Written = serde_json::from_slice(line)?;
    let version = written.version.unwrap_or_default();
    if version != VERSION {
        return Err(SpoError::Version(version.chars().take(64).collect()));
    }
    let timestamp = written.timestamp.unwrap_or_default();
    let time = rfc3339::parse(&timestamp).ok_or_else(|| SpoError::Time(timestamp.chars().take(64).collect()))?;
    let id = written.audit_id.filter(|id| !id.is_empty()).ok_or(SpoError::Missing("auditID"))?;
    let node = written.node.and_then(|node| node.name).filter(|name| !name.is_empty());
    let Resource { namespace, pod, container } = written.resource.unwrap_or_default();
    let command: String = written.cmd_line.unwrap_or_default();
    Ok(SpoLine {
        time,
        id: id.chars().take(64).collect(),
        node: node.ok_or(SpoError::Missing("node.name"))?,
        namespace: namespace.unwrap_or_default(),
        pod: pod.unwrap_or_default(),
        container: container.unwrap_or_default(),
        pid: written.pid.filter(|pid| *pid > 0).ok_or(SpoError::Missing("pid"))?,
        uid: written.uid.unwrap_or_default(),
        executable: text::from_bytes(cut(&written.executable.unwrap_or_default()).as_bytes()),
        command_line: text::from_bytes(cut(command.trim_end()).as_bytes()),
        request_uid: written.request_uid.filter(|uid| !uid.is_empty()).map(|uid| uid.chars().take(128).collect()),
        syscalls: written.syscalls.unwrap_or_default().into_iter().take(MOST_SYSCALLS).collect(),
    })
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(LONGEST_COMMAND);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

impl SpoLine {
    /// The process that the container runtime made: what it ran before is the runtime, or (runc) nothing with a name.
    pub fn is_of_runtime(&self) -> bool {
        matches!(self.executable.rsplit('/').next(), Some("crun" | "runc" | ""))
    }

    pub fn pod_key(&self) -> (String, String) {
        (self.namespace.clone(), self.pod.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::{SpoError, is_record, read};
    use proptest::prelude::*;

    const LINE: &str = r#"{"auditID":"cc5e8b03-45a7-434a-ad25-23d40ba42435","cmdLine":"env SPO_EXEC_REQUEST_UID=de193172-188c-4596-a2a0-b64f75a1b8e4 sh -c echo hello ","executable":"/usr/bin/crun","gid":0,"node":{"name":"worker-1"},"pid":16054,"requestUID":"de193172-188c-4596-a2a0-b64f75a1b8e4","resource":{"container":"nginx","namespace":"shop","pod":"my-pod"},"syscalls":["execve","getpid"],"timestamp":"2026-03-10T14:45:38.000Z","uid":0,"version":"spo/v1_alpha"}"#;

    #[test]
    fn a_line_as_the_operator_writes_it_is_read_whole() {
        let line = read(LINE.as_bytes()).unwrap();
        assert_eq!((line.node.as_str(), line.pid, line.uid), ("worker-1", 16054, 0));
        assert_eq!((line.namespace.as_str(), line.pod.as_str(), line.container.as_str()), ("shop", "my-pod", "nginx"));
        assert_eq!(line.command_line, "env SPO_EXEC_REQUEST_UID=de193172-188c-4596-a2a0-b64f75a1b8e4 sh -c echo hello");
        assert_eq!(line.request_uid.as_deref(), Some("de193172-188c-4596-a2a0-b64f75a1b8e4"));
        assert_eq!(line.syscalls.iter().collect::<Vec<_>>(), ["execve", "getpid"]);
        assert_eq!(line.time, 1_773_153_938_000_000_000);
        assert!(line.is_of_runtime());
    }

    #[test]
    fn what_the_enricher_could_not_find_out_is_absent_and_costs_no_line() {
        let line = r#"{"auditID":"a","cmdLine":"","executable":"/bin/dash","node":{"name":"n"},"pid":7,"resource":null,
            "syscalls":null,"timestamp":"2026-03-10T14:45:38.123Z","version":"spo/v1_alpha"}"#;
        let line = read(line.as_bytes()).unwrap();
        assert_eq!((line.pod.as_str(), line.request_uid.as_deref(), line.syscalls.len()), ("", None, 0));
        assert!(!line.is_of_runtime());
    }

    #[test]
    fn other_lines_are_refused_in_words() {
        let refusal = |line: &str| read(line.as_bytes()).unwrap_err();
        assert!(matches!(refusal("I0310 14:45:38 1 main.go] starting"), SpoError::NotJson(_)));
        assert!(matches!(refusal(r#"{"version":"spo/v2"}"#), SpoError::Version(version) if version == "spo/v2"));
        assert!(matches!(refusal(r#"{"version":"spo/v1_alpha","timestamp":"now"}"#), SpoError::Time(_)));
        assert!(!is_record(b"I0310 14:45:38 starting") && is_record(LINE.as_bytes()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = read(&bytes);
        }
    }
}
