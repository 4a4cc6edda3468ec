//! `nodes/<node>/proxy/<path of the kubelet>`: the kubelet's own exec, run, attach and port-forward.

use super::{Access, AccessKind, Uri};

/// The access behind `/api/v1/nodes/<node>/proxy/...`, `None` for the kubelet's other paths (logs, metrics, pods).
/// Paths as in k8s.io/kubernetes/pkg/kubelet/server/server.go (InstallDebuggingHandlers).
pub(super) fn access(uri: &Uri) -> Option<Access> {
    let at = uri.path.iter().position(|part| part == "proxy")?;
    let node = uri.path.get(at.checked_sub(1)?)?;
    let call = uri.path.get(at + 1)?.as_str();
    let place: Vec<&str> = uri.path.get(at + 2..)?.iter().map(String::as_str).collect();
    let (namespace, pod, pod_uid, container) = match (call, place.as_slice()) {
        ("portForward", [namespace, pod]) => (*namespace, *pod, None, None),
        ("portForward", [namespace, pod, uid]) => (*namespace, *pod, Some(*uid), None),
        ("run" | "exec" | "attach", [namespace, pod, container]) => (*namespace, *pod, None, Some(*container)),
        ("run" | "exec" | "attach", [namespace, pod, uid, container]) => {
            (*namespace, *pod, Some(*uid), Some(*container))
        }
        _ => return None,
    };
    let (kind, argv) = match call {
        // getRun splits its one `cmd` at spaces and runs it by ExecSync; exec takes `command` as the API server does.
        "run" => (AccessKind::ProxyRun, uri.first("cmd").unwrap_or_default().split(' ').map(str::to_owned).collect()),
        "exec" => (AccessKind::ProxyExec, uri.values("command").map(str::to_owned).collect()),
        "attach" => (AccessKind::ProxyAttach, Vec::new()),
        _ => (AccessKind::ProxyPortForward, Vec::new()),
    };
    Some(Access {
        kind,
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        pod_uid: pod_uid.map(str::to_owned),
        container: container.map(str::to_owned),
        node: Some(node_name(node).to_owned()),
        argv,
        // The kubelet's own parameters (k8s.io/api/core/v1: ExecStdinParam, ExecTTYParam).
        stdin: uri.first("input").is_some_and(|value| value == "1") || uri.flag("stdin"),
        tty: uri.first("tty").is_some_and(|value| value == "1") || uri.flag("tty"),
        new_containers: Vec::new(),
    })
}

/// The name in `[scheme:]name[:port]`.
fn node_name(text: &str) -> &str {
    let parts: Vec<&str> = text.split(':').collect();
    match parts.as_slice() {
        ["http" | "https", name, ..] => name,
        [name, ..] => name,
        [] => text,
    }
}

#[cfg(test)]
mod tests {
    use super::access;
    use crate::audit::{AccessKind, Uri};

    #[test]
    fn run_splits_its_cmd_at_spaces_and_exec_repeats_command() {
        let run = access(&Uri::parse("/api/v1/nodes/node-1/proxy/run/shop/web/app?cmd=/bin/ls%20-l")).unwrap();
        assert_eq!((run.kind, run.argv.as_slice()), (AccessKind::ProxyRun, ["/bin/ls".into(), "-l".into()].as_slice()));
        assert_eq!((run.node.as_deref(), run.container.as_deref()), (Some("node-1"), Some("app")));
        let exec = access(&Uri::parse(
            "/api/v1/nodes/https:node-1:10250/proxy/exec/shop/web/u-1/app?command=a&command=b&tty=1",
        ))
        .unwrap();
        assert_eq!((exec.kind, exec.argv.len(), exec.tty), (AccessKind::ProxyExec, 2, true));
        assert_eq!((exec.node.as_deref(), exec.pod_uid.as_deref()), (Some("node-1"), Some("u-1")));
    }

    #[test]
    fn other_paths_of_the_kubelet_are_no_access() {
        for path in ["metrics", "containerLogs/shop/web/app", "run/shop", ""] {
            assert_eq!(access(&Uri::parse(&format!("/api/v1/nodes/node-1/proxy/{path}"))), None, "{path}");
        }
    }
}
