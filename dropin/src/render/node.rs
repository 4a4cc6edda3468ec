//! What goes onto a node: the drop-in and the profiles it names.

use clap::Args;

use super::{
    DROPIN, LOCALHOST_PROFILE, PRIVILEGED_PROFILE, RenderError, WORKLOAD_PROFILE, dns_name,
    machine_config_operator_default,
};
use crate::{
    facts::{ConfigFile, Content, Meta, NodeFacts, ProfileFile, VersionFacts},
    finding::{Finding, Severity},
    judge::{self, Expect},
    profile::{self, EXEC, PROCESS},
    version::{CrioVersion, NEWEST, OLDEST},
};

/// What nodes should log; shared by everything that goes onto them.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// OpenShift release of the nodes, e.g. 4.20.
    #[arg(long, value_name = "V", value_parser = openshift_version, conflicts_with = "crio_version", required_unless_present = "crio_version")]
    pub ocp_version: Option<CrioVersion>,
    /// CRI-O release of the nodes, e.g. 1.33.
    #[arg(long, value_name = "V", value_parser = crate::check::crio_version)]
    pub crio_version: Option<CrioVersion>,
    /// The runtime of ordinary pods, where it is not the release's default. The drop-in holds for either.
    #[arg(long, value_name = "NAME")]
    pub runtime: Option<String>,
    /// Do not log privileged containers.
    #[arg(long)]
    pub no_privileged: bool,
    /// Log every container with RuntimeDefault too.
    #[arg(long)]
    pub workload: bool,
    /// Syscalls to log: exec, process, or names. Siblings (clone3 and vfork of clone, execveat of execve) come along.
    /// [default: exec for privileged containers, process for others]
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub syscalls: Vec<String>,
    /// Exactly these syscalls, without siblings.
    #[arg(long, requires = "syscalls")]
    pub exact_syscalls: bool,
    /// Namespaces whose pods get the profile by name (repeatable): ships it as Localhost profile as well.
    #[arg(long = "audit-namespace", value_name = "NS", value_parser = dns_name)]
    pub audit_namespaces: Vec<String>,
}

fn openshift_version(text: &str) -> Result<CrioVersion, String> {
    CrioVersion::of_openshift(text)
        .ok_or_else(|| format!("{text:?} is no OpenShift release from 4.14 on; write it as 4.20"))
}

/// The files that go onto a node, with their paths there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFiles {
    pub files: Vec<(&'static str, String)>,
    /// What the reader should know, one sentence each.
    pub remarks: Vec<String>,
}

impl NodeArgs {
    pub fn version(&self) -> Result<CrioVersion, RenderError> {
        let version = self.ocp_version.or(self.crio_version);
        let version = version.ok_or_else(|| RenderError::Refused("give --ocp-version or --crio-version".into()))?;
        if !(OLDEST..=NEWEST).contains(&version) {
            return Err(RenderError::Refused(format!(
                "CRI-O {version} lies outside {OLDEST} to {NEWEST}, which seclog knows; use the nearest with --crio-version and check a node"
            )));
        }
        Ok(version)
    }

    pub(super) fn syscalls(&self, default: &[&str]) -> Result<Vec<String>, RenderError> {
        let mut names: Vec<String> = Vec::new();
        for name in &self.syscalls {
            match name.as_str() {
                "exec" => names.extend(EXEC.iter().map(|s| (*s).to_owned())),
                "process" => names.extend(PROCESS.iter().map(|s| (*s).to_owned())),
                name if !name.is_empty()
                    && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') =>
                {
                    names.push(name.to_owned());
                }
                other => {
                    return Err(RenderError::Refused(format!(
                        "{other:?} is no syscall's name; see --syscalls in --help"
                    )));
                }
            }
        }
        if names.is_empty() {
            names = default.iter().map(|s| (*s).to_owned()).collect();
        }
        Ok(if self.exact_syscalls { names } else { profile::with_siblings(&names) })
    }

    /// The drop-in and the profiles, judged by the check on a node with nothing else but OpenShift's own files.
    pub fn node_files(&self) -> Result<NodeFiles, RenderError> {
        let version = self.version()?;
        let mut remarks = Vec::new();
        let privileged = !self.no_privileged && version.has_privileged_profile();
        if !self.no_privileged && !privileged {
            remarks.push(format!(
                "CRI-O {version} (OpenShift {}) has no privileged_seccomp_profile: debug sessions make no verdicts. It came with CRI-O 1.33 (OpenShift 4.20).",
                version.openshift()
            ));
        }
        // Where the one thing cannot be had, the other is what is left to log.
        let workload = self.workload || (!privileged && !self.no_privileged);
        if let Some(runtime) = &self.runtime {
            check_runtime(version, runtime)?;
        }
        let mut dropin = String::from(DROPIN_HEAD);
        let mut files = Vec::new();
        if privileged {
            dropin.push_str(DROPIN_PRIVILEGED);
            dropin.push_str(&format!("privileged_seccomp_profile = \"{PRIVILEGED_PROFILE}\"\n"));
            files.push((PRIVILEGED_PROFILE, profile::privileged(&self.syscalls(EXEC)?)?.json));
        }
        if workload {
            dropin.push_str(DROPIN_WORKLOAD);
            dropin.push_str(&format!("seccomp_profile = \"{WORKLOAD_PROFILE}\"\n"));
        }
        if workload || !self.audit_namespaces.is_empty() {
            let built = profile::workload(version, &self.syscalls(PROCESS)?)?;
            if !built.denied.is_empty() {
                remarks.push(format!(
                    "The runtime's default denies {}: they stay denied, without a record.",
                    built.denied.join(", ")
                ));
            }
            if workload {
                files.push((WORKLOAD_PROFILE, built.json.clone()));
            }
            if !self.audit_namespaces.is_empty() {
                files.push((LOCALHOST_PROFILE, built.json));
            }
        }
        if privileged || workload {
            files.insert(0, (DROPIN, dropin));
        } else if files.is_empty() {
            return Err(RenderError::Refused(
                "nothing to log: give --workload or --audit-namespace, or leave --no-privileged out".into(),
            ));
        }
        let rendered = NodeFiles { files, remarks };
        let expect = Expect { privileged, workload };
        if let Some(finding) = problems(version, self.runtime.as_deref(), &rendered.files, expect).first() {
            return Err(RenderError::OwnCheck(format!("{}: {}", finding.code, finding.what)));
        }
        Ok(rendered)
    }
}

const DROPIN_HEAD: &str = "\
# Makes CRI-O's containers log to the kernel's seccomp facility. Written by seclog.
# No handler table ([crio.runtime.runtimes.NAME]) belongs here: it would replace OpenShift's whole table of that name.
[crio.runtime]
";
const DROPIN_PRIVILEGED: &str = "
# Privileged containers, those of `oc debug node` among them. The file must exist whenever CRI-O runs: without it
# no privileged pod starts. New containers only; CRI-O reads it for each.
";
const DROPIN_WORKLOAD: &str = "
# What RuntimeDefault means on this node: the runtime's own default profile, logging in addition. CRI-O reads it when it
# starts and on reload.
";

fn check_runtime(version: CrioVersion, runtime: &str) -> Result<(), RenderError> {
    if !matches!(runtime, "runc" | "crun") {
        return Err(RenderError::Refused(format!("{runtime:?} is no runtime of ordinary pods: give runc or crun")));
    }
    if runtime == "runc" && version.minor >= 36 {
        eprintln!("seclog render: RHEL 10 nodes of OpenShift 5 have no runc; RHEL 9 nodes have");
    }
    Ok(())
}

/// Errors and warnings that the files would cause on a node of that version.
pub(crate) fn problems(
    version: CrioVersion,
    runtime: Option<&str>,
    files: &[(&'static str, String)],
    expect: Expect,
) -> Vec<Finding> {
    let findings = judge::judge(&node(version, runtime, files), Some(expect));
    findings.into_iter().filter(|f| matches!(f.severity, Severity::Error | Severity::Warning)).collect()
}

/// A node with OpenShift's own configuration and these files.
fn node(version: CrioVersion, runtime: Option<&str>, files: &[(&'static str, String)]) -> NodeFacts {
    let meta = Meta { mode: Some(0o644), uid: Some(0), ..Meta::default() };
    let config =
        |path: &str, text: String| ConfigFile { path: path.into(), content: Content::Text(text), meta: meta.clone() };
    let mut facts = NodeFacts {
        version: VersionFacts { given: Some(version), ..VersionFacts::default() },
        config: vec![config("/etc/crio/crio.conf.d/00-default", machine_config_operator_default(version))],
        ..NodeFacts::default()
    };
    if let Some(runtime) = runtime {
        let text = format!("[crio.runtime]\ndefault_runtime = \"{runtime}\"\n");
        facts.config.push(config("/etc/crio/crio.conf.d/01-ctrcfg-defaultRuntime", text));
    }
    for (path, text) in files {
        if path.starts_with("/etc/crio/crio.conf.d/") {
            facts.config.push(config(path, text.clone()));
        } else {
            let profile = ProfileFile { content: Content::Text(text.clone()), meta: meta.clone() };
            facts.profiles.insert((*path).to_owned(), profile);
        }
    }
    facts
}
