//! The Secret with the kubeconfig by which the hosted cluster's API servers reach the correlator.
//!
//! Only the key `webhook-kubeconfig` is copied and mounted, so certificates stand inline. The same file serves
//! kube-apiserver, openshift-apiserver, oauth-apiserver and oauth-openshift; the last three go through a proxy into the
//! hosted cluster unless the host is literally `audit-webhook` (openshift/hypershift `support/config/constants.go`).

use std::{
    io::Read,
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;

use super::{Output, RenderError, dns_name, yaml};

const MAX_PEM: u64 = 1 << 20;

#[derive(Debug, Clone, Args)]
pub struct WebhookArgs {
    /// URL of the correlator's webhook, path included.
    #[arg(long, default_value = "https://audit-webhook/")]
    pub server: String,
    /// CA of the correlator's serving certificate (PEM).
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Client certificate that the API servers present (PEM).
    #[arg(long, value_name = "FILE")]
    pub client_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, value_name = "FILE")]
    pub client_key: Option<PathBuf>,
    /// Name of the Secret [default: seclog-audit-webhook].
    #[arg(long = "secret-name", value_parser = dns_name)]
    pub secret: Option<String>,
    /// Namespace of the HostedCluster [default: clusters].
    #[arg(long = "secret-namespace", value_parser = dns_name)]
    pub secret_namespace: Option<String>,
}

impl WebhookArgs {
    pub(super) fn given(&self) -> bool {
        self.ca.is_some() || self.client_cert.is_some() || self.client_key.is_some()
    }
}

pub(super) fn render(args: &WebhookArgs) -> Result<Vec<Output>, RenderError> {
    let host = host(&args.server)?;
    let need = |path: &Option<PathBuf>, flag: &str| {
        path.clone().ok_or_else(|| {
            RenderError::Refused(format!("{flag} is missing: the webhook uses mutual TLS, with certificates inline"))
        })
    };
    let ca = pem(&need(&args.ca, "--ca")?, &["CERTIFICATE"])?;
    let certificate = pem(&need(&args.client_cert, "--client-cert")?, &["CERTIFICATE"])?;
    let key = pem(&need(&args.client_key, "--client-key")?, &["PRIVATE KEY", "EC PRIVATE KEY", "RSA PRIVATE KEY"])?;
    let mut out = yaml::comment(
        "The kubeconfig by which the hosted cluster's API servers reach the correlator. A private key is inside.\n\
         Apply it in the HostedCluster's namespace. A change of its content rolls the API servers.",
    );
    if host != "audit-webhook" {
        out.push_str(&yaml::comment(&format!(
            "\nWARNING: {host} is not `audit-webhook`. openshift-apiserver, oauth-apiserver and oauth-openshift send\n\
             to every other host through a proxy into the hosted cluster: name the Service in the control plane's\n\
             namespace audit-webhook, and use https://audit-webhook/."
        )));
    }
    out.push_str("apiVersion: v1\nkind: Secret\nmetadata:\n");
    let name = args.secret.as_deref().unwrap_or(super::WEBHOOK_SECRET);
    let namespace = args.secret_namespace.as_deref().unwrap_or(super::NAMESPACE);
    out.push_str(&format!("  name: {}\n  namespace: {}\n", yaml::scalar(name), yaml::scalar(namespace)));
    out.push_str("type: Opaque\nstringData:\n  webhook-kubeconfig: |\n");
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: seclog\n  cluster:\n    server: {}\n    certificate-authority-data: {}\nusers:\n\
         - name: kube-apiserver\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: seclog\n  context:\n    \
         cluster: seclog\n    user: kube-apiserver\ncurrent-context: seclog\n",
        yaml::scalar(&args.server),
        STANDARD.encode(ca),
        STANDARD.encode(certificate),
        STANDARD.encode(key),
    );
    out.push_str(&yaml::block(&kubeconfig, 4));
    Ok(vec![("audit-webhook-secret.yaml".into(), out)])
}

/// The host of an https URL; anything else is refused.
fn host(server: &str) -> Result<&str, RenderError> {
    let refused =
        |why: &str| RenderError::Refused(format!("--server {server:?} {why}; give it as https://audit-webhook/"));
    let rest = server.strip_prefix("https://").ok_or_else(|| refused("is not https"))?;
    if server.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Err(refused("has spaces or control characters"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => host,
        Some(_) if !authority.starts_with('[') => return Err(refused("has a port that is no number")),
        _ => authority,
    };
    if host.is_empty() || host.contains('@') {
        return Err(refused("has no host, or a user before it"));
    }
    Ok(host)
}

fn pem(path: &Path, labels: &[&str]) -> Result<String, RenderError> {
    let shown = path.display().to_string();
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|f| f.take(MAX_PEM).read_to_string(&mut text))
        .map_err(|source| RenderError::Read { path: shown.clone(), source })?;
    let has = |label: &&str| {
        text.contains(&format!("-----BEGIN {label}-----")) && text.contains(&format!("-----END {label}-----"))
    };
    if !labels.iter().any(has) {
        return Err(RenderError::Refused(format!("{shown} has no PEM block {}; give a PEM file", labels.join(" or "))));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_https_urls_with_a_host_are_taken() {
        for (server, ok) in [
            ("https://audit-webhook/", Some("audit-webhook")),
            ("https://audit-webhook.clusters-demo.svc:8443/audit", Some("audit-webhook.clusters-demo.svc")),
            ("http://audit-webhook/", None),
            ("https:///x", None),
            ("https://a b/", None),
            ("https://host:port/", None),
            ("https://user@host/", None),
        ] {
            assert_eq!(host(server).ok(), ok, "{server}");
        }
    }
}
