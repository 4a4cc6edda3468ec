//! One form for the same event, by whatever route it came: what transports add is left out, what they changed is put back,
//! and a digest says whether two are the same.

use super::{AuditError, Event};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::fmt;

/// The keys of an audit.k8s.io/v1 Event (k8s.io/apiserver/pkg/apis/audit/v1/types.go), but for kind and apiVersion, which
/// the items of a list do not carry.
const KEYS: [&str; 17] = [
    "level",
    "auditID",
    "stage",
    "requestURI",
    "verb",
    "user",
    "impersonatedUser",
    "authenticationMetadata",
    "sourceIPs",
    "userAgent",
    "objectRef",
    "responseStatus",
    "requestObject",
    "responseObject",
    "requestReceivedTimestamp",
    "stageTimestamp",
    "annotations",
];
/// Where log collectors keep the level that they write over (ViaQ).
const LEVEL_KEPT: &str = "k8s_audit_level";
/// With this the API server says that it left the bodies out for one of its backends (audit/v1, truncate backend).
const TRUNCATED: &str = "audit.k8s.io/truncated";

/// The first half of a SHA-256.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 16]);

/// What tells an event from others, and the same one again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint {
    /// Of the whole event.
    pub whole: Digest,
    /// Without its bodies, and without the annotation which says that they were left out.
    pub bare: Digest,
    /// Of what the stages of one request share, and the stage: audit id, user, URI, time. Two events with the same one
    /// speak of the same moment.
    pub moment: Digest,
    /// Of audit id and stage, which a client can make the same for many requests.
    pub claimed: Digest,
    /// The API server says that it left the bodies out.
    pub truncated: bool,
}

impl Fingerprint {
    pub(super) fn of(event: &Event, json: &str) -> Result<Self, AuditError> {
        let value: Value = serde_json::from_str(json).map_err(AuditError::Item)?;
        let mut canonical = canonical(value);
        let whole = Digest::of(&[canonical.to_string().as_bytes()]);
        let mut truncated = false;
        if let Value::Object(members) = &mut canonical {
            members.remove("requestObject");
            members.remove("responseObject");
            if let Some(Value::Object(annotations)) = members.get_mut("annotations") {
                truncated = annotations.remove(TRUNCATED).is_some();
                if annotations.is_empty() {
                    members.remove("annotations");
                }
            }
        }
        let impersonated = event.impersonated_user.as_ref().map(|user| user.username.as_str()).unwrap_or_default();
        let text = str::as_bytes;
        Ok(Self {
            whole,
            bare: Digest::of(&[canonical.to_string().as_bytes()]),
            moment: Digest::of(&[
                text(&event.audit_id),
                text(&event.stage),
                text(&event.request_received_timestamp),
                text(&event.user.username),
                text(impersonated),
                text(&event.request_uri),
            ]),
            claimed: Digest::of(&[text(&event.audit_id), text(&event.stage)]),
            truncated,
        })
    }
}

/// Only what the API server wrote, with its keys in one order.
fn canonical(event: Value) -> Value {
    let Value::Object(mut members) = event else { return event };
    if let Some(level @ Value::String(_)) = members.remove(LEVEL_KEPT) {
        members.insert("level".to_owned(), level);
    }
    // `null` reads as absent: collectors blank what they drop.
    members.retain(|key, value| KEYS.contains(&key.as_str()) && !value.is_null());
    Value::Object(members)
}

impl Digest {
    /// Lengths go before the parts, so that no two lists of parts give the same.
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let whole = hash.finalize();
        let mut half = [0; 16];
        half.copy_from_slice(&whole[..16]);
        Self(half)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Fingerprint;

    fn fingerprint(json: &str) -> Fingerprint {
        Fingerprint::of(&serde_json::from_str(json).unwrap(), json).unwrap()
    }

    #[test]
    fn what_collectors_add_and_blank_makes_no_other_event() {
        let written = fingerprint(
            r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Request","auditID":"a","verb":"get","user":{"username":"u"}}"#,
        );
        let collected = fingerprint(
            r#"{"@timestamp":"x","hostname":"h","openshift":{"sequence":1},"verb":"get", "user":{"username":"u"},"auditID":"a",
                "level":"default","k8s_audit_level":"Request","objectRef":null}"#,
        );
        assert_eq!(written, collected);
        assert_ne!(written.whole, fingerprint(r#"{"level":"Request","auditID":"a","verb":"list"}"#).whole);
    }

    #[test]
    fn an_event_whose_bodies_were_left_out_is_known_as_the_same() {
        let whole = fingerprint(r#"{"auditID":"a","requestObject":{"x":1},"annotations":{"k":"v"}}"#);
        let cut = fingerprint(r#"{"auditID":"a","annotations":{"k":"v","audit.k8s.io/truncated":"true"}}"#);
        assert_ne!(whole.whole, cut.whole);
        assert_eq!((whole.bare, whole.moment, cut.truncated), (cut.bare, cut.moment, true));
    }

    #[test]
    fn requests_under_one_audit_id_are_told_apart_by_time_user_and_uri() {
        let one = fingerprint(r#"{"auditID":"a","stage":"s","requestURI":"/x","requestReceivedTimestamp":"1"}"#);
        let other = fingerprint(r#"{"auditID":"a","stage":"s","requestURI":"/x","requestReceivedTimestamp":"2"}"#);
        assert_eq!(one.claimed, other.claimed);
        assert_ne!(one.moment, other.moment);
    }
}
