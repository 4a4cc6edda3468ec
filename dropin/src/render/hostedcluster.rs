//! The HostedCluster's part: what the API server audits, and where it sends it.
//!
//! `spec.configuration.apiServer.audit` has a profile and rules by group and nothing else; the webhook is another field,
//! `spec.auditWebhook`, and names a Secret (openshift/hypershift `api/hypershift/v1beta1/hostedcluster_types.go`).

use clap::{Args, ValueEnum};

use super::{Output, RenderError, dns_name, yaml};

#[derive(Debug, Clone, Args)]
pub struct HostedclusterArgs {
    /// Name of the HostedCluster.
    #[arg(long, default_value = "name", value_parser = dns_name)]
    pub hosted_cluster: String,
    /// Namespace of the HostedCluster [default: clusters].
    #[arg(long, value_parser = dns_name)]
    pub hosted_cluster_namespace: Option<String>,
    /// Profile for everybody. Sessions need no more than Default: the command is in the request's URI.
    #[arg(long, value_enum, default_value_t = AuditProfile::Default)]
    pub audit_profile: AuditProfile,
    /// GROUP=PROFILE (repeatable); the first that matches a user goes before the profile for everybody. Bodies
    /// of pods that `oc debug` creates come with WriteRequestBodies.
    #[arg(long = "audit-rule", value_name = "GROUP=PROFILE", value_parser = rule)]
    pub audit_rules: Vec<(String, AuditProfile)>,
    /// Secret that `render webhook-kubeconfig` writes.
    #[arg(long, default_value = "seclog-audit-webhook", value_parser = dns_name)]
    pub webhook_secret: String,
    /// Leave the audit webhook out: events come by another route.
    #[arg(long)]
    pub no_webhook: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "PascalCase")]
pub enum AuditProfile {
    Default,
    WriteRequestBodies,
    AllRequestBodies,
    None,
}

impl AuditProfile {
    fn name(self) -> &'static str {
        match self {
            Self::Default => "Default",
            Self::WriteRequestBodies => "WriteRequestBodies",
            Self::AllRequestBodies => "AllRequestBodies",
            Self::None => "None",
        }
    }
}

fn rule(text: &str) -> Result<(String, AuditProfile), String> {
    let (group, profile) = text.rsplit_once('=').ok_or("write it as GROUP=PROFILE")?;
    if group.is_empty() || group.chars().any(char::is_control) {
        return Err("the group is empty or has control characters".into());
    }
    Ok((group.to_owned(), AuditProfile::from_str(profile, false)?))
}

/// Humans who log in by OAuth: bodies for them are worth it, bodies of every controller are not.
const HUMANS: &str = "system:authenticated:oauth";

pub(super) fn render(args: &HostedclusterArgs) -> Result<Vec<Output>, RenderError> {
    if args.audit_profile == AuditProfile::None {
        return Err(RenderError::Refused(
            "audit profile None leaves no audit record at all: sessions would have no users; use Default".into(),
        ));
    }
    let rules = match args.audit_rules.as_slice() {
        [] => vec![(HUMANS.to_owned(), AuditProfile::WriteRequestBodies)],
        rules => rules.to_vec(),
    };
    let mut seen: Vec<&str> = Vec::new();
    for (group, _) in &rules {
        if seen.contains(&group.as_str()) {
            return Err(RenderError::Refused(format!(
                "two audit rules for group {group:?}; the list is keyed by group"
            )));
        }
        seen.push(group);
    }
    let mut out = yaml::comment(&format!(
        "A merge patch for the HostedCluster. The API server rolls out anew:\n\n\
         \x20 oc -n {} patch hostedcluster {} --type=merge --patch-file FILE\n\n\
         customRules replaces the list that is there.",
        args.hosted_cluster_namespace.as_deref().unwrap_or(super::NAMESPACE),
        args.hosted_cluster
    ));
    out.push_str("spec:\n  configuration:\n    apiServer:\n      audit:\n");
    out.push_str(
        "        # exec, attach and port-forward are complete at Metadata, which every profile but None has.\n",
    );
    out.push_str(&format!("        profile: {}\n        customRules:\n", yaml::scalar(args.audit_profile.name())));
    for (group, profile) in &rules {
        out.push_str(&format!(
            "        - group: {}\n          profile: {}\n",
            yaml::scalar(group),
            yaml::scalar(profile.name())
        ));
    }
    if args.audit_profile == AuditProfile::AllRequestBodies {
        out.push_str("        # AllRequestBodies logs the bodies of every list and watch too: 10 MB x 2 files a replica are soon full.\n");
    }
    if !args.no_webhook {
        out.push_str("  # Not below configuration.apiServer.audit: there is no webhook there. The Secret has the key webhook-kubeconfig.\n");
        out.push_str(&format!("  auditWebhook:\n    name: {}\n", yaml::scalar(&args.webhook_secret)));
    }
    Ok(vec![("hostedcluster-patch.yaml".into(), out)])
}
