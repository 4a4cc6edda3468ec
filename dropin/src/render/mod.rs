//! `seclog-correlator render`: writes the configuration that makes nodes log and the API server speak.
//!
//! Everything is text made from the arguments, without a clock and without a cluster, so that the same arguments always
//! give the same bytes. What goes onto a node is put through this crate's own check before it is written.

mod hostedcluster;
mod node;
mod nodepool;
mod recipe;
mod webhook;
mod yaml;

use std::{
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Subcommand};

use crate::profile::{self, EXEC, PROCESS};

pub use node::{NodeArgs, NodeFiles};
pub use recipe::machine_config_operator_default;

/// Where the parts lie on a node. 60: after the Machine Config Operator's files, before what people add by hand.
pub const DROPIN: &str = "/etc/crio/crio.conf.d/60-seclog-audit.conf";
pub const PRIVILEGED_PROFILE: &str = "/etc/crio/seccomp/seclog-privileged.json";
pub const WORKLOAD_PROFILE: &str = "/etc/crio/seccomp/seclog-workload.json";
/// Below kubelet's directory of Localhost profiles: `localhostProfile: seclog/workload.json`.
pub const LOCALHOST_PROFILE: &str = "/var/lib/kubelet/seccomp/seclog/workload.json";

/// Where hypershift keeps HostedClusters unless told otherwise.
const NAMESPACE: &str = "clusters";
const WEBHOOK_SECRET: &str = "seclog-audit-webhook";

/// Writes the configuration for nodes, hosted cluster and audit webhook.
#[derive(Debug, Clone, Args)]
pub struct RenderArgs {
    #[command(subcommand)]
    pub what: What,
}

#[derive(Debug, Clone, Subcommand)]
pub enum What {
    /// MachineConfig in a ConfigMap, and the patch that makes a NodePool use it.
    Nodepool(nodepool::NodepoolArgs),
    /// Audit profile, rules and webhook of the HostedCluster.
    Hostedcluster(hostedcluster::HostedclusterArgs),
    /// The Secret with the kubeconfig by which API servers reach the correlator.
    WebhookKubeconfig(webhook::WebhookArgs),
    /// A seccomp profile alone, as JSON.
    SeccompProfile(ProfileArgs),
    /// All of it into a directory.
    All(Box<AllArgs>),
}

#[derive(Debug, Clone, Args)]
pub struct ProfileArgs {
    #[command(flatten)]
    pub node: NodeArgs,
    /// Which of the two.
    #[arg(long = "for", value_enum, default_value_t = Kind::Workload)]
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The runtime's default plus LOG.
    Workload,
    /// ALLOW plus LOG.
    Privileged,
}

#[derive(Debug, Clone, Args)]
pub struct AllArgs {
    #[command(flatten)]
    pub nodepool: nodepool::NodepoolArgs,
    #[command(flatten)]
    pub hostedcluster: hostedcluster::HostedclusterArgs,
    #[command(flatten)]
    pub webhook: webhook::WebhookArgs,
    /// Where to write; made if it is missing.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Why nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum RenderError {
    #[error("{0}")]
    Refused(String),
    #[error("cannot read {path}: {source}; check the path")]
    Read { path: String, source: std::io::Error },
    #[error("cannot write {path}: {source}; check that the directory exists and may be written")]
    Write { path: String, source: std::io::Error },
    #[error("{path} is not YAML of a NodePool: {reason}; give the output of `oc get nodepool NAME -o yaml`")]
    Nodepool { path: String, reason: String },
    #[error("the built-in profile data cannot be read: {0}; this is a fault of seclog")]
    Data(#[from] serde_json::Error),
    #[error("what was rendered does not pass seclog's own check: {0}; this is a fault of seclog")]
    OwnCheck(String),
}

/// A file of the output: name and content.
pub type Output = (String, String);

/// The command. Exit status: 0 written, 2 not.
pub fn render(args: &RenderArgs) -> ExitCode {
    match produce(args) {
        Ok(files) => match write(args, &files) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(&error),
        },
        Err(error) => failed(&error),
    }
}

fn failed(error: &RenderError) -> ExitCode {
    eprintln!("seclog render: {error}");
    ExitCode::from(2)
}

/// Everything that `render` would write, in order.
pub fn produce(args: &RenderArgs) -> Result<Vec<Output>, RenderError> {
    match &args.what {
        What::Nodepool(nodepool) => nodepool::render(nodepool, false),
        What::Hostedcluster(hosted) => hostedcluster::render(hosted),
        What::WebhookKubeconfig(webhook) => webhook::render(webhook),
        What::SeccompProfile(profile) => profile_alone(profile),
        What::All(all) => everything(all),
    }
}

fn everything(all: &AllArgs) -> Result<Vec<Output>, RenderError> {
    let AllArgs { nodepool, hostedcluster, webhook, out: _ } = all;
    let mut files = nodepool::render(nodepool, true)?;
    let (mut hosted, mut webhook) = (hostedcluster.clone(), webhook.clone());
    // One namespace and one Secret for everything, unless said otherwise.
    hosted.hosted_cluster_namespace.get_or_insert_with(|| nodepool.namespace.clone());
    webhook.secret_namespace.get_or_insert_with(|| nodepool.namespace.clone());
    webhook.secret.get_or_insert_with(|| hosted.webhook_secret.clone());
    files.extend(hostedcluster::render(&hosted)?);
    if webhook.given() {
        files.extend(webhook::render(&webhook)?);
    } else if !hosted.no_webhook {
        eprintln!(
            "seclog render: no certificates given, so no webhook kubeconfig was written; see `render webhook-kubeconfig --help`"
        );
    }
    Ok(files)
}

fn write(args: &RenderArgs, files: &[Output]) -> Result<(), RenderError> {
    let What::All(all) = &args.what else {
        let text: String = files.iter().map(|(_, text)| text.as_str()).collect();
        return std::io::stdout()
            .lock()
            .write_all(text.as_bytes())
            .map_err(|source| RenderError::Write { path: "standard output".into(), source });
    };
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| RenderError::Write { path, source }
    };
    std::fs::create_dir_all(&all.out).map_err(failed(&all.out))?;
    for (name, text) in files {
        let path = all.out.join(name);
        // A private key may be inside.
        let mode = if name.contains("secret") { 0o600 } else { 0o644 };
        write_file(&path, text, mode).map_err(failed(&path))?;
        eprintln!("seclog render: wrote {}", path.display());
    }
    Ok(())
}

fn write_file(path: &Path, text: &str, mode: u32) -> std::io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())
}

fn profile_alone(args: &ProfileArgs) -> Result<Vec<Output>, RenderError> {
    let version = args.node.version()?;
    let (name, built) = match args.kind {
        Kind::Workload => ("seclog-workload.json", profile::workload(version, &args.node.syscalls(PROCESS)?)?),
        Kind::Privileged => ("seclog-privileged.json", profile::privileged(&args.node.syscalls(EXEC)?)?),
    };
    if !built.denied.is_empty() {
        eprintln!(
            "seclog render: the runtime's default denies {}: they stay denied, without a record",
            built.denied.join(", ")
        );
    }
    Ok(vec![(name.into(), built.json)])
}

/// Names of Kubernetes objects: they end up in commands and YAML.
pub(crate) fn dns_name(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
    let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if text.len() <= 253 && text.chars().all(fits) && ends(text.chars().next()) && ends(text.chars().next_back()) {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no name of a Kubernetes object: lower case letters, digits, - and ."))
    }
}
