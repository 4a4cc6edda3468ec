//! Who a peer is, from its certificate: the URI `seclog://<cluster>/<node>` among the subject's alternative names.

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

const SCHEME: &str = "seclog://";

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeIdentity {
    pub cluster: String,
    pub node: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    #[error("the client certificate cannot be read: {0}")]
    Certificate(String),
    #[error(
        "the client certificate names no node: it needs one URI seclog://<cluster>/<node> among its subjectAltNames"
    )]
    None,
    #[error("the client certificate names several nodes; it may name one")]
    Several,
    #[error("{0:?} in the client certificate is not seclog://<cluster>/<node>")]
    Malformed(String),
}

impl NodeIdentity {
    /// As it stands in a certificate. `None` where a name is none.
    pub fn uri(&self) -> Option<String> {
        let Self { cluster, node } = self;
        (is_name(cluster) && is_name(node)).then(|| format!("{SCHEME}{cluster}/{node}"))
    }

    pub fn of_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| IdentityError::Certificate(error.to_string()))?
            .map(|extension| extension.value.general_names.as_slice())
            .unwrap_or_default();
        let mut ours = names.iter().filter_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with(SCHEME) => Some(*uri),
            _ => None,
        });
        match (ours.next(), ours.next()) {
            (Some(uri), None) => Self::of_uri(uri),
            (Some(_), Some(_)) => Err(IdentityError::Several),
            (None, _) => Err(IdentityError::None),
        }
    }

    fn of_uri(uri: &str) -> Result<Self, IdentityError> {
        let parts: Option<(&str, &str)> = uri.strip_prefix(SCHEME).and_then(|rest| rest.split_once('/'));
        match parts {
            Some((cluster, node)) if is_name(cluster) && is_name(node) => {
                Ok(Self { cluster: cluster.to_owned(), node: node.to_owned() })
            }
            _ => Err(IdentityError::Malformed(uri.chars().take(200).collect())),
        }
    }
}

/// What a cluster or node may be called: DNS names and the like, nothing that needs escaping anywhere.
pub fn is_name(text: &str) -> bool {
    (1..=253).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::{IdentityError, NodeIdentity};

    #[test]
    fn a_uri_names_cluster_and_node() {
        let identity = NodeIdentity::of_uri("seclog://guest-1/node-1.example").unwrap();
        assert_eq!((identity.cluster.as_str(), identity.node.as_str()), ("guest-1", "node-1.example"));
        for bad in ["seclog://guest", "seclog:///node", "seclog://guest/", "seclog://guest/a/b", "seclog://g/a\nb"] {
            assert!(matches!(NodeIdentity::of_uri(bad), Err(IdentityError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let identity = NodeIdentity { cluster: "guest-1".into(), node: "node-1.example".into() };
        assert_eq!(NodeIdentity::of_uri(&identity.uri().unwrap()), Ok(identity));
        let slash = NodeIdentity { cluster: "guest-1".into(), node: "a/b".into() };
        assert_eq!(slash.uri(), None);
    }

    #[test]
    fn bytes_that_are_no_certificate_are_an_error() {
        assert!(matches!(NodeIdentity::of_certificate(b"hello"), Err(IdentityError::Certificate(_))));
    }
}
