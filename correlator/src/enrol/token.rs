//! What a bound service account token must say.
//!
//! Kubernetes puts the name of the pod's node into tokens that are bound to a pod since 1.30 (feature
//! ServiceAccountTokenPodNodeInfo: alpha in 1.29, on by default from 1.30, always from 1.32), as the claim `kubernetes.io` →
//! `node` → `name`, and TokenReview tells it as `authentication.kubernetes.io/node-name`. On older clusters the pod is
//! looked up.

use super::keys::Keys;
use super::review::Review;
use crate::intake::now;
use serde::Deserialize;
use std::collections::BTreeMap;
use tonic::Status;

/// Bytes of a token. Those of Kubernetes have about 1.2 kB.
const LARGEST: usize = 16 << 10;
/// Clocks may differ by so much, seconds.
pub(super) const LEEWAY: u64 = 30;

/// What the tokens of agents have in common.
#[derive(Debug, Clone)]
pub struct Expected {
    pub audience: String,
    /// `iss`; `None`: whatever the API server accepts (TokenReview only).
    pub issuer: Option<String>,
    pub namespace: String,
    pub service_account: String,
}

/// What a token that was accepted is bound to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bound {
    pub node: String,
    /// Empty where Kubernetes did not say.
    pub node_uid: String,
    pub pod: String,
    pub pod_uid: String,
}

/// How tokens are checked.
#[derive(Debug)]
pub enum TokenCheck {
    /// By the API server that made them: it knows what was deleted since.
    Review(Review),
    /// By its public keys: a token counts until it ends, whatever became of its pod.
    Keys(Keys),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token is not accepted: {0}")]
    Refused(String),
    #[error("the token is not that of an agent: {0}")]
    NotAnAgent(String),
    #[error("the token could not be checked: {0}")]
    Unchecked(String),
}

#[derive(Debug, Clone, Deserialize)]
pub struct Claims {
    pub iss: String,
    pub sub: String,
    pub aud: Audiences,
    pub exp: u64,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Kubernetes,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Audiences {
    One(String),
    Several(Vec<String>),
}

#[derive(Debug, Clone, Deserialize)]
pub struct Kubernetes {
    pub namespace: String,
    pub serviceaccount: Object,
    pub pod: Option<Object>,
    pub node: Option<Object>,
}

#[derive(Debug, Clone, Deserialize)]
pub struct Object {
    pub name: String,
    #[serde(default)]
    pub uid: String,
}

// === impl TokenCheck ===

impl TokenCheck {
    pub async fn check(&self, token: &str, expected: &Expected) -> Result<Bound, TokenError> {
        let claims = claims(token)?;
        // Before anybody is asked: most of what is wrong shows here, and costs the API server nothing.
        expected.check(&claims)?;
        let bound = match self {
            Self::Review(review) => review.check(token, expected).await?,
            Self::Keys(keys) => keys.check(token, expected)?,
        };
        if !seclog_identity::is_name(&bound.node) {
            return Err(TokenError::NotAnAgent(format!("{:?} is no name of a node", bound.node)));
        }
        match claims.kubernetes.node {
            Some(node) if node.name != bound.node => Err(TokenError::NotAnAgent(format!(
                "it names node {:?}, and the API server says {:?}",
                shown(&node.name),
                bound.node
            ))),
            _ => Ok(bound),
        }
    }
}

/// What a token says of itself. Nothing of it is proven.
pub fn claims(token: &str) -> Result<Claims, TokenError> {
    let refused = |why: String| TokenError::Refused(why);
    if token.len() > LARGEST {
        return Err(refused(format!("it has {} bytes, more than {LARGEST}", token.len())));
    }
    if token.is_empty() {
        return Err(refused("there is none".to_owned()));
    }
    let claims = jsonwebtoken::dangerous::insecure_decode_claims::<Claims>(token);
    claims.map_err(|error| refused(format!("it is no bound service account token: {}", shown(&error.to_string()))))
}

// === impl Expected ===

impl Expected {
    pub fn user(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.service_account)
    }

    pub(super) fn check(&self, claims: &Claims) -> Result<(), TokenError> {
        let Claims { iss, sub, aud, exp, kubernetes } = claims;
        let seconds = now() / 1_000_000_000;
        if exp.saturating_add(LEEWAY) < seconds {
            return Err(TokenError::Refused(format!("it ended {} s ago", seconds - exp)));
        }
        if !aud.has(&self.audience) {
            return Err(TokenError::Refused(format!(
                "it was made for the audience {}, not for {:?}",
                shown(&aud.to_string()),
                self.audience
            )));
        }
        if let Some(issuer) = &self.issuer
            && issuer != iss
        {
            return Err(TokenError::Refused(format!("it is of issuer {:?}, not of {issuer:?}", shown(iss))));
        }
        let consistent =
            kubernetes.namespace == self.namespace && kubernetes.serviceaccount.name == self.service_account;
        if *sub != self.user() || !consistent {
            return Err(TokenError::NotAnAgent(format!("it is of {:?}, not of {:?}", shown(sub), self.user())));
        }
        Ok(())
    }
}

// === impl Audiences ===

impl Audiences {
    fn has(&self, wanted: &str) -> bool {
        match self {
            Self::One(audience) => audience == wanted,
            Self::Several(audiences) => audiences.iter().any(|audience| audience == wanted),
        }
    }
}

impl std::fmt::Display for Audiences {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(audience) => write!(formatter, "{audience:?}"),
            Self::Several(audiences) => write!(formatter, "{audiences:?}"),
        }
    }
}

// === impl TokenError ===

impl From<TokenError> for Status {
    fn from(error: TokenError) -> Self {
        let text = error.to_string();
        match error {
            TokenError::Refused(_) => Self::unauthenticated(text),
            TokenError::NotAnAgent(_) => Self::permission_denied(text),
            TokenError::Unchecked(_) => Self::unavailable(text),
        }
    }
}

/// The extra values of a user, by TokenReview, that say what the token is bound to.
pub(super) fn bound_by_extra(extra: &BTreeMap<String, Vec<String>>) -> Bound {
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) => value.clone(),
        _ => String::new(),
    };
    Bound {
        node: one("authentication.kubernetes.io/node-name"),
        node_uid: one("authentication.kubernetes.io/node-uid"),
        pod: one("authentication.kubernetes.io/pod-name"),
        pod_uid: one("authentication.kubernetes.io/pod-uid"),
    }
}

/// A peer's text in a message: cut, and without control characters.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(200).map(|character| if character.is_control() { '\u{fffd}' } else { character }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_a_token_or_an_error(text in ".{0,200}", parts in "[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,40}") {
            prop_assert!(claims(&text).is_err());
            prop_assert!(claims(&parts).is_err());
        }
    }

    #[test]
    fn a_huge_token_is_not_looked_at() {
        assert!(claims(&"a.".repeat(LARGEST)).unwrap_err().to_string().contains("bytes"));
    }
}
