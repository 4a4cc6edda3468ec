//! With what a user showed who he is: the keys of `user.extra` that an auditor asks for.
//!
//! k8s.io/apiserver/pkg/authentication/user and k8s.io/kubernetes/pkg/serviceaccount/util.go; scopes:
//! github.com/openshift/api, user.openshift.io.

use super::UserInfo;

/// Values of one key that are kept, and characters of each.
const MOST: usize = 32;
const LONGEST: usize = 512;

/// Empty: the event does not say it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Credential {
    /// What an OAuth token may be used for, "user:full" for instance.
    pub scopes: Vec<String>,
    /// "JTI=<id of a service account token>" or "X509SHA256=<fingerprint>".
    pub id: Vec<String>,
    /// The pod that a service account token is bound to, and the node that the API server had it on.
    pub pod_name: String,
    pub pod_uid: String,
    pub node_name: String,
    pub node_uid: String,
}

impl Credential {
    pub(super) fn of(user: &UserInfo) -> Self {
        let values = |key: &str| -> Vec<String> {
            let said = user.extra.get(key).and_then(Option::as_ref).into_iter().flatten();
            said.take(MOST).map(|value| value.chars().take(LONGEST).collect()).collect()
        };
        let of = |key: &str| values(&format!("authentication.kubernetes.io/{key}"));
        let one = |key: &str| of(key).into_iter().next().unwrap_or_default();
        Self {
            scopes: values("scopes.authorization.openshift.io"),
            id: of("credential-id"),
            pod_name: one("pod-name"),
            pod_uid: one("pod-uid"),
            node_name: one("node-name"),
            node_uid: one("node-uid"),
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
