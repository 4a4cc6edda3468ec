//! The manifests of deploy/: that they parse, and say what seclog cannot do without.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

/// Every document of one file.
fn documents(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    serde_saphyr::from_multiple(&text).with_context(|| path.display().to_string())
}

fn one(path: &str, kind: &str, name: &str) -> Result<Value> {
    let mut found = documents(&deploy().join(path))?;
    found.retain(|document| document["kind"] == kind && document["metadata"]["name"] == name);
    ensure!(found.len() == 1, "{} of {kind} {name} in {path}", found.len());
    Ok(found.remove(0))
}

fn manifests(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            manifests(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
    Ok(())
}

#[test]
fn every_document_has_a_kind_a_version_and_a_name() -> Result<()> {
    let mut paths = Vec::new();
    manifests(&deploy(), &mut paths)?;
    assert!(paths.len() >= 3, "{paths:?}");
    for path in paths {
        for document in documents(&path)? {
            for part in [&document["kind"], &document["apiVersion"], &document["metadata"]["name"]] {
                assert!(part.as_str().is_some_and(|text| !text.is_empty()), "{}: {document:#}", path.display());
            }
        }
    }
    Ok(())
}

#[test]
fn the_agent_is_admitted_and_sees_the_host() -> Result<()> {
    let namespace = one("guest/daemonset.yaml", "Namespace", "seclog")?;
    assert_eq!(namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"], "privileged");
    let template = &one("guest/daemonset.yaml", "DaemonSet", "seclog-agent")?["spec"]["template"];
    assert_eq!(template["metadata"]["annotations"]["openshift.io/required-scc"], "privileged");
    let pod = &template["spec"];
    // Audit multicast reaches only the initial network namespace; pids are those of the initial pid namespace.
    assert_eq!((&pod["hostNetwork"], &pod["hostPID"]), (&json!(true), &json!(true)));
    assert_eq!(pod["dnsPolicy"], "ClusterFirstWithHostNet");
    assert_eq!(pod["tolerations"], json!([{ "operator": "Exists" }]));
    let binding = one("guest/daemonset.yaml", "RoleBinding", "seclog-agent-privileged-scc")?;
    assert_eq!(binding["subjects"][0]["name"], pod["serviceAccountName"]);
    assert_eq!(binding["roleRef"]["name"], "system:openshift:scc:privileged");
    Ok(())
}

#[test]
fn the_agent_checks_the_hosts_files_and_may_only_create_events() -> Result<()> {
    let daemonset = one("guest/daemonset.yaml", "DaemonSet", "seclog-agent")?;
    let pod = &daemonset["spec"]["template"]["spec"];
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    assert!(list(&pod["containers"][0]["args"]).contains(&json!("--check-root=/host")));
    let mounts = list(&pod["containers"][0]["volumeMounts"]);
    let mount = mounts.iter().find(|mount| mount["mountPath"] == "/host").context("the host is not mounted")?;
    assert_eq!(mount["readOnly"], true);
    let volumes = list(&pod["volumes"]);
    assert!(volumes.iter().any(|volume| volume["name"] == mount["name"] && volume["hostPath"]["path"] == "/"));
    let role = one("guest/daemonset.yaml", "Role", "seclog-agent-events")?;
    assert_eq!(role["rules"], json!([{ "apiGroups": [""], "resources": ["events"], "verbs": ["create"] }]));
    let binding = one("guest/daemonset.yaml", "RoleBinding", "seclog-agent-events")?;
    assert_eq!(binding["subjects"][0]["name"], pod["serviceAccountName"]);
    Ok(())
}

#[test]
fn the_agent_has_the_capabilities_it_needs_and_no_others() -> Result<()> {
    let daemonset = one("guest/daemonset.yaml", "DaemonSet", "seclog-agent")?;
    let container = &daemonset["spec"]["template"]["spec"]["containers"][0];
    let security = &container["securityContext"];
    assert_eq!(security["privileged"], false);
    assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
    assert_eq!(
        security["capabilities"]["add"],
        json!(["BPF", "PERFMON", "AUDIT_READ", "SYS_PTRACE", "DAC_READ_SEARCH", "NET_ADMIN"])
    );
    assert!(container["resources"]["limits"]["memory"].is_string());
    Ok(())
}

#[test]
fn the_agent_changes_nothing_on_the_host() -> Result<()> {
    let daemonset = one("guest/daemonset.yaml", "DaemonSet", "seclog-agent")?;
    let pod = &daemonset["spec"]["template"]["spec"];
    let mounts = pod["containers"][0]["volumeMounts"].as_array().unwrap();
    let volumes = pod["volumes"].as_array().unwrap();
    // Its own state is all that it writes.
    let writable = mounts.iter().filter(|mount| mount["readOnly"] != true).map(|mount| &mount["mountPath"]);
    let own = ["/var/lib/seclog/spool", "/var/lib/seclog/identity", "/run/seclog"];
    assert_eq!(writable.collect::<Vec<_>>(), own.map(|path| json!(path)).iter().collect::<Vec<_>>());
    for path in ["/sys/kernel/btf", "/sys/fs/cgroup", "/sys/kernel/tracing", "/run/containers/storage"] {
        let volume = volumes.iter().find(|volume| volume["hostPath"]["path"] == path).unwrap();
        assert!(mounts.iter().any(|mount| mount["name"] == volume["name"] && mount["mountPath"] == path), "{path}");
    }
    assert!(volumes.iter().all(|volume| volume.get("secret").is_none()), "one key for all nodes");
    Ok(())
}

#[test]
fn the_correlator_runs_under_pod_security_restricted() -> Result<()> {
    let deployment = one("management/correlator.yaml", "Deployment", "seclog-correlator")?;
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["securityContext"], json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } }));
    for container in pod["containers"].as_array().unwrap() {
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["capabilities"], json!({ "drop": ["ALL"] }));
    }
    assert!(pod["volumes"].as_array().unwrap().iter().all(|volume| volume.get("hostPath").is_none()));
    Ok(())
}

#[test]
fn api_servers_and_agents_find_the_correlator() -> Result<()> {
    let deployment = one("management/correlator.yaml", "Deployment", "seclog-correlator")?;
    let template = &deployment["spec"]["template"];
    // Any other name is sent through the proxy into the hosted cluster by three of the four API servers.
    let webhook = one("management/correlator.yaml", "Service", "audit-webhook")?;
    let agents = one("management/correlator.yaml", "Service", "seclog-agents")?;
    let enrolment = one("management/correlator.yaml", "Service", "seclog-enrolment")?;
    for (service, port) in [(&webhook, "audit-webhook"), (&agents, "agents"), (&enrolment, "enrolment")] {
        let selected = service["spec"]["selector"].as_object().unwrap();
        assert!(selected.iter().all(|(key, value)| template["metadata"]["labels"][key] == *value), "{selected:?}");
        assert_eq!(
            (&service["spec"]["ports"][0]["port"], &service["spec"]["ports"][0]["targetPort"]),
            (&json!(443), &json!(port))
        );
        let ports = template["spec"]["containers"][0]["ports"].as_array().unwrap();
        assert!(ports.iter().any(|offered| offered["name"] == port));
    }
    for name in ["seclog-agents", "seclog-enrolment"] {
        let route = one("management/correlator.yaml", "Route", name)?;
        assert_eq!(route["spec"]["tls"]["termination"], "passthrough");
        assert_eq!(route["spec"]["to"]["name"], name);
        assert!(route["metadata"].get("labels").is_none(), "with HyperShift's label the default router ignores it");
    }

    let secret = one("hosted-cluster/audit-webhook.yaml", "Secret", "seclog-audit-webhook")?;
    let kubeconfig: Value =
        serde_saphyr::from_str(secret["stringData"]["webhook-kubeconfig"].as_str().unwrap()).unwrap();
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["server"], "https://audit-webhook/");
    Ok(())
}

fn argument(container: &Value, name: &str) -> Result<String> {
    let args = container["args"].as_array().context("no args")?;
    let found = args.iter().filter_map(Value::as_str).find_map(|arg| arg.strip_prefix(name)?.strip_prefix('='));
    found.map(str::to_owned).with_context(|| format!("no {name}"))
}

/// The directory of a file is where a volume is mounted.
fn volume<'a>(pod: &'a Value, container: &Value, file: &str) -> Result<&'a Value> {
    let directory = Path::new(file).parent().context("no directory")?.to_string_lossy().into_owned();
    let mounts = container["volumeMounts"].as_array().context("no mounts")?;
    let mount = mounts
        .iter()
        .find(|mount| mount["mountPath"] == directory)
        .with_context(|| format!("nothing at {directory}"))?;
    let volumes = pod["volumes"].as_array().context("no volumes")?;
    volumes
        .iter()
        .find(|volume| volume["name"] == mount["name"])
        .with_context(|| format!("no volume {}", mount["name"]))
}

#[test]
fn an_agents_token_is_for_the_audience_and_of_the_account_that_the_correlator_asks_for() -> Result<()> {
    let daemonset = one("guest/daemonset.yaml", "DaemonSet", "seclog-agent")?;
    let agent_pod = &daemonset["spec"]["template"]["spec"];
    let agent = &agent_pod["containers"][0];
    let deployment = one("management/correlator.yaml", "Deployment", "seclog-correlator")?;
    let pod = &deployment["spec"]["template"]["spec"];
    let correlator = &pod["containers"][0];

    let token = &volume(agent_pod, agent, &argument(agent, "--enrol-token")?)?["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], argument(correlator, "--token-audience")?.as_str());
    assert_eq!(argument(agent, "--enrol-token")?.rsplit('/').next(), token["path"].as_str());
    let account = format!(
        "{}/{}",
        daemonset["metadata"]["namespace"].as_str().unwrap(),
        agent_pod["serviceAccountName"].as_str().unwrap()
    );
    assert_eq!(argument(correlator, "--token-service-account")?, account);
    assert_eq!(
        volume(agent_pod, agent, &format!("{}/key", argument(agent, "--identity-dir")?))?["hostPath"]["type"],
        "DirectoryOrCreate"
    );
    assert!(volume(agent_pod, agent, &argument(agent, "--tls-ca")?)?["configMap"].is_object());
    for file in ["--enrol-ca-cert", "--enrol-ca-key", "--token-review-kubeconfig", "--tls-key"] {
        assert!(volume(pod, correlator, &argument(correlator, file)?)?["secret"].is_object(), "{file}");
    }
    assert!(volume(pod, correlator, &argument(correlator, "--enrol-ledger")?)?["persistentVolumeClaim"].is_object());
    Ok(())
}

#[test]
fn the_correlator_may_ask_about_tokens_in_the_hosted_cluster_and_read_its_own_namespaces_pods() -> Result<()> {
    let binding = one("guest/token-review.yaml", "ClusterRoleBinding", "seclog-correlator-token-review")?;
    assert_eq!(binding["roleRef"]["name"], "system:auth-delegator");
    let role = one("guest/token-review.yaml", "Role", "seclog-correlator-pods")?;
    assert_eq!(role["rules"], json!([{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }]));
    let secret = one("guest/token-review.yaml", "Secret", "seclog-correlator-token")?;
    assert_eq!(secret["metadata"]["annotations"]["kubernetes.io/service-account.name"], binding["subjects"][0]["name"]);
    Ok(())
}

#[test]
fn the_correlator_may_read_the_logs_of_its_own_namespaces_pods_and_nothing_else_on_the_management_cluster() -> Result<()>
{
    let file = "management/correlator.yaml";
    let role = one(file, "Role", "seclog-correlator-pod-logs")?;
    assert_eq!(
        role["rules"],
        json!([
            { "apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"] },
            { "apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"] },
        ])
    );
    let binding = one(file, "RoleBinding", "seclog-correlator-pod-logs")?;
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    let template = &one(file, "Deployment", "seclog-correlator")?["spec"]["template"];
    let pod = &template["spec"];
    assert_eq!(binding["subjects"], json!([{ "kind": "ServiceAccount", "name": pod["serviceAccountName"] }]));
    let kinds: Vec<Value> =
        documents(&deploy().join(file))?.into_iter().map(|document| document["kind"].clone()).collect();
    assert!(!kinds.iter().any(|kind| kind.as_str().is_some_and(|kind| kind.starts_with("ClusterRole"))), "{kinds:?}");
    // The token is there, the API server can be reached, and the namespace that is read is the pod's own.
    assert_eq!(pod["automountServiceAccountToken"], true);
    assert_eq!(template["metadata"]["labels"]["hypershift.openshift.io/need-management-kas-access"], "true");
    let container = &pod["containers"][0];
    assert_eq!(argument(container, "--audit-pods")?, "$(NAMESPACE)");
    let named = container["env"].as_array().unwrap().iter().find(|variable| variable["name"] == "NAMESPACE").unwrap();
    assert_eq!(named["valueFrom"]["fieldRef"]["fieldPath"], "metadata.namespace");
    Ok(())
}
