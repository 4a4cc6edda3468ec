//! `audit.k8s.io/v1` Event, as far as seclog reads it. Unknown keys are skipped, `null` is as good as absent: events come
//! through forwarders that add and blank fields.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// k8s.io/apiserver/pkg/apis/audit/v1/types.go.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Event {
    #[serde(deserialize_with = "nullable")]
    pub level: String,
    /// Chosen by the client where it sends the header `Audit-ID`: never an identity on its own.
    #[serde(rename = "auditID", deserialize_with = "nullable")]
    pub audit_id: String,
    #[serde(deserialize_with = "nullable")]
    pub stage: String,
    #[serde(rename = "requestURI", deserialize_with = "nullable")]
    pub request_uri: String,
    #[serde(deserialize_with = "nullable")]
    pub verb: String,
    #[serde(deserialize_with = "nullable")]
    pub user: UserInfo,
    pub impersonated_user: Option<UserInfo>,
    #[serde(rename = "sourceIPs", deserialize_with = "nullable")]
    pub source_ips: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub user_agent: String,
    pub object_ref: Option<ObjectRef>,
    pub response_status: Option<ResponseStatus>,
    /// Bodies are parsed only for the few events whose body matters.
    pub request_object: Option<Box<RawValue>>,
    pub response_object: Option<Box<RawValue>>,
    #[serde(deserialize_with = "nullable")]
    pub request_received_timestamp: String,
    #[serde(deserialize_with = "nullable")]
    pub stage_timestamp: String,
    #[serde(deserialize_with = "nullable")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct UserInfo {
    #[serde(deserialize_with = "nullable")]
    pub username: String,
    #[serde(deserialize_with = "nullable")]
    pub uid: String,
    #[serde(deserialize_with = "nullable")]
    pub groups: Vec<String>,
    /// What the authenticator knows besides, by key.
    #[serde(deserialize_with = "nullable")]
    pub extra: BTreeMap<String, Option<Vec<String>>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ObjectRef {
    #[serde(deserialize_with = "nullable")]
    pub resource: String,
    #[serde(deserialize_with = "nullable")]
    pub namespace: String,
    #[serde(deserialize_with = "nullable")]
    pub name: String,
    #[serde(deserialize_with = "nullable")]
    pub uid: String,
    #[serde(deserialize_with = "nullable")]
    pub api_group: String,
    #[serde(deserialize_with = "nullable")]
    pub subresource: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct ResponseStatus {
    pub code: Option<i64>,
}

impl Event {
    /// `resource` or `resource/subresource`, empty for requests that name no resource.
    pub fn resource(&self) -> String {
        match &self.object_ref {
            Some(object) if object.subresource.is_empty() => object.resource.clone(),
            Some(object) => format!("{}/{}", object.resource, object.subresource),
            None => String::new(),
        }
    }

    /// The addresses of the client: what it or its proxies said in headers, and the one that the API server saw, which is the
    /// last ("all but the last IP can be arbitrarily set by the client": audit/v1 types.go).
    pub fn addresses(&self) -> (&[String], Option<&str>) {
        match self.source_ips.split_last() {
            Some((observed, claimed)) => (claimed, Some(observed)),
            None => (&[], None),
        }
    }

    pub fn code(&self) -> Option<i64> {
        self.response_status.as_ref().and_then(|status| status.code)
    }
}

pub(super) fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::Event;

    #[test]
    fn nulls_and_unknown_keys_read_as_absent() {
        let event: Event = serde_json::from_str(
            r#"{"kind":"Event","auditID":null,"user":null,"sourceIPs":null,"annotations":null,"objectRef":null,
                "responseStatus":{"code":null},"openshift":{"sequence":4},"requestObject":null,"verb":"get"}"#,
        )
        .unwrap();
        assert_eq!(event.audit_id, "");
        assert_eq!(event.code(), None);
        assert_eq!(event.resource(), "");
        assert_eq!(event.verb, "get");
    }
}
