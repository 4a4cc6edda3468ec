//! The official recipe as it stands, and what is wrong with it for a version.
//!
//! Steps: openshift/hypershift `docs/content/recipes/common/spo-audit-logging-seccomp.md`. What it puts onto a node is
//! judged by the check; what it says about the rest cannot be seen on a node and is listed here.

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{RenderError, node::problems, nodepool::NodepoolArgs, yaml};
use crate::{finding::Finding, judge::Expect, version::CrioVersion};

/// The recipe's drop-in and where it puts it.
pub(super) const RECIPE_DROPIN: &str = "\
[crio.runtime]
seccomp_use_default_when_empty = false

[crio.runtime.runtimes.runc]
allowed_annotations = [
    \"io.containers.trace-syscall\",
]
";
pub(super) const RECIPE_PATH: &str = "/etc/crio/crio.conf.d/99-seccomp-logging.conf";

/// What no node can see.
const ELSEWHERE: [&str; 8] = [
    "Step 1: exec and rsh are complete at profile Default (the command is in the request's URI). AllRequestBodies logs the bodies of every list as well and fills the API server's two files of 10 MB; `render hostedcluster` asks for bodies by group.",
    "Step 2: `oc logs KAS-POD -c kube-apiserver | grep audit` shows nothing: the audit log is a file, and the container that prints it is audit-logs.",
    "Step 2: the audit webhook is not below spec.configuration.apiServer.audit, it is spec.auditWebhook with a Secret: `render webhook-kubeconfig`.",
    "Step 2: a ClusterLogForwarder's audit input does not have it: it is the output of the container audit-logs in the control plane's namespace.",
    "Step 3: once indentation is lost the YAML still parses, to a MachineConfig without name and content, and nobody says so: apply files, not text copied from a page.",
    "Step 3: the patch that adds /spec/config replaces the NodePool's whole list, the one that adds /spec/config/- fails where there is none: `render nodepool --nodepool FILE` chooses.",
    "Step 4: without SeccompProfile, ProfileBinding and enableJsonEnricher no container logs; the operator's enricher needs privileged_seccomp_profile (OpenShift 4.20) for debug pods.",
    "OpenShift's own steps: `echo \"CRIO_CONFIG_OPTIONS --privileged-seccomp-profile=…\"` lacks a `=` and is ignored, overwrites /etc/sysconfig/crio, and such a flag is lost at the next reload; `oc adm node-logs --role=master` finds nothing, for the hosted cluster has no masters.",
];

pub(super) fn render(args: &NodepoolArgs) -> Result<String, RenderError> {
    let version = args.node.version()?;
    let findings = faults(version, args.node.runtime.as_deref());
    let mut out = yaml::comment(&format!(
        "The recipe's steps as they stand, for CRI-O {version} (OpenShift {}). Do not apply them: use `render nodepool`.\n\n\
         On a node of this version the check says:",
        version.openshift()
    ));
    for finding in &findings {
        let place = finding
            .place
            .as_ref()
            .and_then(|p| p.line)
            .map_or(String::new(), |l| format!(" (line {l} of the drop-in)"));
        out.push_str(&yaml::comment(&format!(
            "- {} {}{place}: {}; so: {}",
            finding.severity, finding.code, finding.what, finding.consequence
        )));
    }
    out.push_str(&yaml::comment("\nWhat no node can see:"));
    for text in ELSEWHERE {
        out.push_str(&yaml::comment(&format!("- {text}")));
    }
    let namespace = &args.namespace;
    let audit = json!({"spec": {"configuration": {"apiServer": {"audit": {"profile": "AllRequestBodies"}}}}});
    let patch = json!([{"op": "add", "path": "/spec/config", "value": [{"name": "mcp-seccomp-logging"}]}]);
    out.push_str(&yaml::comment(&format!(
        "\nStep 1:\n  oc patch hostedcluster NAME -n {namespace} --type=merge -p '{audit}'\n\
         Step 3:\n  oc create -f this file\n  oc patch -n {namespace} nodepool NODEPOOL --type=json -p='{patch}'"
    )));
    out.push_str(&format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: mcp-seccomp-logging\n  namespace: {}\ndata:\n  config: |\n",
        yaml::scalar(namespace)
    ));
    out.push_str(&yaml::block(&machine_config(), 4));
    Ok(out)
}

/// What the recipe does to a node of that version.
fn faults(version: CrioVersion, runtime: Option<&str>) -> Vec<Finding> {
    let expect = Expect { privileged: true, workload: false };
    problems(version, runtime, &[(RECIPE_PATH, RECIPE_DROPIN.to_owned())], expect)
}

fn machine_config() -> String {
    format!(
        "apiVersion: machineconfiguration.openshift.io/v1\nkind: MachineConfig\nmetadata:\n  name: 60-seccomp-logging\nspec:\n  config:\n    \
         ignition:\n      version: 3.2.0\n    storage:\n      files:\n      - contents:\n          source: data:text/plain;charset=utf-8;base64,{}\n        \
         mode: 420\n        path: {RECIPE_PATH}\n",
        STANDARD.encode(RECIPE_DROPIN)
    )
}

/// The part of OpenShift's own `00-default` that a drop-in meets (openshift/machine-config-operator
/// `templates/worker/01-worker-container-runtime/_base/files/crio.yaml`, branches release-4.14 to release-5.1).
pub fn machine_config_operator_default(version: CrioVersion) -> String {
    let mut text = String::from("[crio]\ninternal_wipe = true\n");
    if version.minor >= 31 {
        text.push_str("internal_repair = true\n");
    }
    text.push_str(
        "\n[crio.runtime]\nselinux = true\nconmon = \"\"\nconmon_cgroup = \"pod\"\nlog_level = \"info\"\ncgroup_manager = \"systemd\"\n\
         default_sysctls = [\n    \"net.ipv4.ping_group_range=0 2147483647\",\n]\n",
    );
    if version.minor >= 31 {
        text.push_str("default_runtime = \"crun\"\n");
    }
    text.push_str("manage_ns_lifecycle = true\ndrop_infra_ctr = true\n");
    let handler = |name: &str, root: bool, rest: &str| {
        let root = if root { format!("runtime_root = \"/run/{name}\"\n") } else { String::new() };
        format!(
            "\n[crio.runtime.runtimes.{name}]\n{root}allowed_annotations = [\n    \"io.containers.trace-syscall\",\n    \
             \"io.kubernetes.cri-o.Devices\",\n    \"io.kubernetes.cri-o.LinkLogs\",\n]\n{rest}"
        )
    };
    if version.minor >= 29 {
        text.push_str(&handler("runc", version.minor >= 31, ""));
        let memory = "container_min_memory = \"512KiB\"\ndefault_annotations = {\"run.oci.systemd.subgroup\" = \"\"}\n";
        text.push_str(&handler("crun", true, if version.minor >= 31 { memory } else { "" }));
    }
    text.push_str(
        "\n[crio.runtime.workloads.openshift-builder]\nactivation_annotation = \"io.openshift.builder\"\nallowed_annotations = [\n  \
         \"io.kubernetes.cri-o.userns-mode\",\n  \"io.kubernetes.cri-o.Devices\"\n]\n\
         [crio.runtime.workloads.openshift-builder.resources]\n\n[crio.image]\npause_command = \"/usr/bin/pod\"\n",
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes that the recipe causes on a node of that version, with its lines.
    fn codes(minor: u32) -> Vec<String> {
        let show =
            |f: Finding| format!("{}:{}", f.code, f.place.and_then(|p| p.line).map_or("-".into(), |l| l.to_string()));
        faults(CrioVersion { minor }, None).into_iter().map(show).collect()
    }

    #[test]
    fn the_recipe_is_judged_for_each_version() {
        for (minor, expected) in [
            (27, vec!["default-weakened:2", "dropin-missing:-", "privileged-unsupported:-"]),
            (28, vec!["default-weakened:2", "dropin-missing:-", "privileged-unsupported:-"]),
            (29, vec!["default-weakened:2", "dropin-missing:-", "handler-replaced:4", "privileged-unsupported:-"]),
            (30, vec!["dropin-missing:-", "handler-replaced:4", "option-removed:2", "privileged-unsupported:-"]),
            (
                31,
                vec![
                    "dropin-missing:-",
                    "handler-replaced:4",
                    "option-removed:2",
                    "privileged-unsupported:-",
                    "handler-not-default:4",
                ],
            ),
            (
                32,
                vec![
                    "dropin-missing:-",
                    "handler-replaced:4",
                    "option-removed:2",
                    "privileged-unsupported:-",
                    "handler-not-default:4",
                ],
            ),
            (33, vec!["dropin-missing:-", "handler-replaced:4", "option-removed:2", "handler-not-default:4"]),
            (34, vec!["dropin-missing:-", "handler-replaced:4", "option-removed:2", "handler-not-default:4"]),
            (35, vec!["dropin-missing:-", "handler-replaced:4", "option-removed:2", "handler-not-default:4"]),
            (36, vec!["dropin-missing:-", "handler-replaced:4", "option-removed:2", "handler-not-default:4"]),
            (37, vec!["dropin-missing:-", "handler-replaced:4", "option-removed:2", "handler-not-default:4"]),
        ] {
            assert_eq!(codes(minor), expected, "1.{minor}");
        }
    }

    #[test]
    fn openshifts_own_file_has_no_problem() {
        for minor in 27..=37 {
            let version = CrioVersion { minor };
            let expect = Expect { privileged: false, workload: false };
            let found: Vec<_> = problems(version, None, &[], expect).into_iter().map(|f| f.code.name()).collect();
            assert_eq!(found, ["dropin-missing"], "1.{minor}");
        }
    }
}
