//! What render writes: parsed back as typed objects, unpacked into a root, and checked.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says no more by handling them")]

mod common;

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Parser;
use common::Node;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use seclog_dropin::render::{self, RenderArgs, RenderError};
use serde::Deserialize;

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    args: RenderArgs,
}

fn produce(args: &[&str]) -> Result<BTreeMap<String, String>, RenderError> {
    let cli = Cli::try_parse_from(["render"].iter().chain(args)).unwrap();
    render::produce(&cli.args).map(|files| files.into_iter().collect())
}

/// What the Machine Config Operator takes (machineconfiguration.openshift.io/v1 and Ignition 3.2), and nothing else.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MachineConfig {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: MachineConfigSpec,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MachineConfigSpec {
    config: Ignition,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Ignition {
    ignition: IgnitionVersion,
    storage: Storage,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IgnitionVersion {
    version: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Storage {
    files: Vec<IgnitionFile>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct IgnitionFile {
    path: String,
    mode: u32,
    #[serde(default)]
    overwrite: bool,
    contents: Contents,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    source: String,
}

fn machine_config(config_map: &str) -> MachineConfig {
    let config_map: ConfigMap = serde_saphyr::from_str(config_map).unwrap();
    let data = config_map.data.unwrap();
    assert_eq!(data.keys().collect::<Vec<_>>(), ["config"]);
    let config: MachineConfig = serde_saphyr::from_str(&data["config"]).unwrap();
    assert_eq!(
        (config.api_version.as_str(), config.kind.as_str()),
        ("machineconfiguration.openshift.io/v1", "MachineConfig")
    );
    assert_eq!(config.spec.config.ignition.version, "3.2.0");
    config
}

/// Puts the MachineConfig's files onto a node, as the Machine Config Daemon would.
fn apply(mut node: Node, config: &MachineConfig) -> Node {
    for file in &config.spec.config.storage.files {
        let encoded = file.contents.source.strip_prefix("data:text/plain;charset=utf-8;base64,").unwrap();
        assert_eq!(file.mode, 0o644);
        node = node.file(&file.path, STANDARD.decode(encoded).unwrap());
    }
    node
}

#[test]
fn what_is_rendered_for_each_version_passes_the_check() {
    for minor in 27..=37 {
        let version = format!("1.{minor}");
        for extra in [&[][..], &["--workload"], &["--syscalls", "process"], &["--audit-namespace", "shop"]] {
            let args: Vec<&str> = ["nodepool", "--crio-version", &version].iter().chain(extra).copied().collect();
            let files = produce(&args).unwrap();
            assert_eq!(files, produce(&args).unwrap(), "the same arguments give the same bytes");
            let config = machine_config(&files["nodepool-configmap.yaml"]);
            assert!(!config.metadata.name.is_empty() && !config.metadata.labels.is_empty());
            assert!(config.spec.config.storage.files.iter().all(|f| f.overwrite));
            let node = apply(Node::openshift(minor), &config);
            let report = node.report();
            assert_eq!(report.verdict.exit_code(), 0, "{args:?}: {}", report.table());
            assert_eq!(report.effective.privileged_seccomp_profile.is_some(), minor >= 33, "{args:?}");
            let workload = extra.contains(&"--workload") || minor < 33;
            assert_eq!(report.effective.seccomp_profile.is_some(), workload, "{args:?}");
        }
    }
}

#[test]
fn every_openshift_release_can_be_named() {
    for ocp in ["4.14", "4.15", "4.16", "4.17", "4.18", "4.19", "4.20", "4.21", "4.22", "5.0", "5.1"] {
        assert!(produce(&["nodepool", "--ocp-version", ocp]).is_ok(), "{ocp}");
    }
}

#[test]
fn the_recipe_as_it_stands_is_valid_yaml_and_does_not_pass() {
    for minor in 27..=37 {
        let files = produce(&["nodepool", "--like-recipe", "--crio-version", &format!("1.{minor}")]).unwrap();
        let text = &files["recipe.yaml"];
        let node = apply(Node::openshift(minor), &machine_config(text));
        let report = node.report();
        assert_eq!(report.verdict.exit_code(), 1);
        for finding in report.findings.iter().filter(|f| f.severity <= seclog_dropin::finding::Severity::Warning) {
            assert!(text.contains(finding.code.name()), "1.{minor}: {} is listed", finding.code);
        }
    }
}

#[test]
fn the_syscalls_can_be_chosen() {
    let profile = |args: &[&str]| {
        let all: Vec<&str> =
            ["seccomp-profile", "--ocp-version", "4.20", "--for", "privileged"].iter().chain(args).copied().collect();
        let text = produce(&all).unwrap().into_values().next().unwrap();
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        value["syscalls"][0]["names"].to_string()
    };
    assert_eq!(profile(&[]), r#"["execve","execveat"]"#);
    assert_eq!(profile(&["--syscalls", "execve,clone"]), r#"["execve","clone","execveat","clone3","fork","vfork"]"#);
    assert_eq!(profile(&["--syscalls", "execve,clone", "--exact-syscalls"]), r#"["execve","clone"]"#);
    assert_eq!(profile(&["--syscalls", "exec,setns"]), r#"["execve","execveat","setns"]"#);
    let refused = ["nodepool", "--ocp-version", "4.20", "--syscalls", "EXECVE;"];
    assert!(produce(&refused).unwrap_err().to_string().contains("is no syscall's name"));
    // A profile that would not log exec does not leave the house.
    let silent = ["nodepool", "--ocp-version", "4.20", "--syscalls", "getpid"];
    assert!(produce(&silent).unwrap_err().to_string().contains("profile-misses-exec"));
}

#[test]
fn the_webhook_kubeconfig_has_its_certificates_inline() {
    let dir = tempfile::tempdir().unwrap();
    let pem = |label: &str| format!("-----BEGIN {label}-----\nAAAA\n-----END {label}-----\n");
    let write = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let ca = write("ca.pem", pem("CERTIFICATE"));
    let cert = write("cert.pem", pem("CERTIFICATE"));
    let key = write("key.pem", pem("PRIVATE KEY"));
    let args = ["webhook-kubeconfig", "--ca", &ca, "--client-cert", &cert, "--client-key", &key];
    let files = produce(&args).unwrap();
    let secret: Secret = serde_saphyr::from_str(&files["audit-webhook-secret.yaml"]).unwrap();
    let kubeconfig = &secret.string_data.unwrap()["webhook-kubeconfig"];
    let kubeconfig: serde_json::Value = serde_saphyr::from_str(kubeconfig).unwrap();
    assert_eq!(kubeconfig["clusters"][0]["cluster"]["server"], "https://audit-webhook/");
    let user = &kubeconfig["users"][0]["user"];
    assert_eq!(STANDARD.decode(user["client-key-data"].as_str().unwrap()).unwrap(), pem("PRIVATE KEY").into_bytes());
    let elsewhere = [&args[..], &["--server", "https://correlator.example:8443/audit"]].concat();
    assert!(produce(&elsewhere).unwrap()["audit-webhook-secret.yaml"].contains("WARNING"));
    let swapped = ["webhook-kubeconfig", "--ca", &key, "--client-cert", &cert, "--client-key", &key];
    assert!(produce(&swapped).unwrap_err().to_string().contains("has no PEM block CERTIFICATE"));
    assert!(produce(&["webhook-kubeconfig"]).unwrap_err().to_string().contains("--ca is missing"));
}

/// `spec` of a HostedCluster as far as the patch touches it (hypershift.openshift.io/v1beta1).
#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HostedClusterPatch {
    spec: HostedClusterSpec,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct HostedClusterSpec {
    configuration: Configuration,
    #[serde(default)]
    audit_webhook: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Configuration {
    api_server: ApiServer,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct ApiServer {
    audit: Audit,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Audit {
    profile: String,
    custom_rules: Vec<BTreeMap<String, String>>,
}

#[test]
fn the_hosted_clusters_patch_names_profile_rules_and_webhook() {
    let parsed = |args: &[&str]| -> HostedClusterPatch {
        serde_saphyr::from_str(&produce(args).unwrap()["hostedcluster-patch.yaml"]).unwrap()
    };
    let plain = parsed(&["hostedcluster"]);
    assert_eq!(plain.spec.configuration.api_server.audit.profile, "Default");
    assert_eq!(plain.spec.audit_webhook.unwrap()["name"], "seclog-audit-webhook");
    let rules = parsed(&[
        "hostedcluster",
        "--audit-rule",
        "system:admins=AllRequestBodies",
        "--audit-rule",
        "a: b=None",
        "--no-webhook",
    ]);
    let audit = rules.spec.configuration.api_server.audit;
    assert_eq!(audit.custom_rules[0]["group"], "system:admins");
    assert_eq!(audit.custom_rules[1]["group"], "a: b");
    assert_eq!(rules.spec.audit_webhook, None);
    let none = produce(&["hostedcluster", "--audit-profile", "None"]);
    assert!(none.unwrap_err().to_string().contains("no audit record at all"));
    let twice = produce(&["hostedcluster", "--audit-rule", "a=None", "--audit-rule", "a=Default"]);
    assert!(twice.unwrap_err().to_string().contains("two audit rules"));
}

#[test]
fn all_of_it_shares_one_namespace_and_the_patch_is_json() {
    let dir = tempfile::tempdir().unwrap();
    let pool = dir.path().join("pool.yaml");
    std::fs::write(&pool, "kind: NodePool\nmetadata: {name: w, resourceVersion: \"5\"}\nspec: {config: [{name: a}]}\n")
        .unwrap();
    let pool = pool.display().to_string();
    let files =
        produce(&["all", "--out", "/unused", "--ocp-version", "4.20", "-n", "prod", "--nodepool", &pool]).unwrap();
    let patch: serde_json::Value = serde_json::from_str(&files["nodepool-patch.json"]).unwrap();
    assert_eq!(patch[1]["path"], "/spec/config/-");
    assert!(files["hostedcluster-patch.yaml"].contains("-n prod patch hostedcluster"));
    let config_map: ConfigMap = serde_saphyr::from_str(&files["nodepool-configmap.yaml"]).unwrap();
    assert_eq!(config_map.metadata.namespace.as_deref(), Some("prod"));
}
