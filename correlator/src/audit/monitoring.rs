//! Changes to what the monitoring itself rests on, as the API server saw them.

use super::{Event, Kept};
use seclog_proto::rfc3339;

/// The namespace of seclog's own objects (deploy/guest).
pub(crate) const OWN_NAMESPACE: &str = "seclog";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MonitoringChange {
    /// Nanoseconds since 1970.
    pub time: u64,
    pub user: String,
    pub verb: String,
    /// `resource namespace/name`.
    pub object: String,
    pub audit_id: String,
}

pub(super) fn change(event: &Event) -> Option<MonitoringChange> {
    let done = event.stage == "ResponseComplete" && event.code().is_some_and(|code| code < 400);
    if event.head().kept() != Some(Kept::Monitoring) || !done {
        return None;
    }
    let object = event.object_ref.as_ref()?;
    Some(MonitoringChange {
        time: rfc3339::parse(&event.stage_timestamp)?,
        user: event.user.username.clone(),
        verb: event.verb.clone(),
        object: format!("{} {}/{}", object.resource, object.namespace, object.name),
        audit_id: event.audit_id.clone(),
    })
}

#[cfg(test)]
mod tests {
    use crate::audit::read;

    fn object_of(verb: &str, resource: &str, namespace: &str, subresource: &str, code: u32) -> Option<String> {
        let json = format!(
            r#"{{"stage":"ResponseComplete","verb":"{verb}","user":{{"username":"mallory"}},"responseStatus":{{"code":{code}}},
                "objectRef":{{"resource":"{resource}","namespace":"{namespace}","name":"x","subresource":"{subresource}"}},
                "stageTimestamp":"2026-11-23T22:30:04.2Z"}}"#
        );
        read(&json).unwrap().1.change.map(|change| change.object)
    }

    #[test]
    fn a_change_of_webhooks_profiles_or_our_own_objects_is_one() {
        let webhooks = object_of("delete", "mutatingwebhookconfigurations", "", "", 200);
        assert_eq!(webhooks.as_deref(), Some("mutatingwebhookconfigurations /x"));
        assert!(object_of("patch", "daemonsets", "seclog", "", 200).is_some());
        assert!(object_of("update", "seccompprofiles", "shop", "", 200).is_some());
    }

    #[test]
    fn reading_them_failing_to_change_them_and_their_status_are_none() {
        assert!(object_of("get", "mutatingwebhookconfigurations", "", "", 200).is_none());
        assert!(object_of("delete", "mutatingwebhookconfigurations", "", "", 403).is_none());
        assert!(object_of("patch", "daemonsets", "seclog", "status", 200).is_none());
        assert!(object_of("patch", "daemonsets", "shop", "", 200).is_none());
        assert!(object_of("update", "leases", "seclog", "", 200).is_none());
    }
}
