//! What admission webhooks did to a request, by the annotations that the API server adds to its audit event
//! (k8s.io/apiserver/pkg/admission/plugin/webhook/{mutating,validating}/dispatcher.go).

use super::Event;
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Webhooks of one request that are kept, operations of a patch, and bytes of a name or path.
const MOST: usize = 16;
const LONGEST: usize = 256;

/// One webhook that was asked about the request.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WebhookNote {
    /// `execmetadata.spo.io`, for instance.
    pub webhook: String,
    /// Name of the configuration that it stands in; empty where it failed.
    pub configuration: String,
    /// It changed the object.
    pub mutated: bool,
    /// What its patch did, from audit level Request on: operation and path. Values are left out: they may hold secrets.
    pub patch: Vec<String>,
    /// It could not be asked, and the request was let through.
    pub failed_open: Option<FailedOpen>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FailedOpen {
    Mutating,
    Validating,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    configuration: String,
    webhook: String,
    mutated: bool,
    patch: Value,
}

/// In the order of their rounds.
pub(super) fn notes(event: &Event) -> Vec<WebhookNote> {
    // By round and index, which mutation and patch have in common.
    let mut called: BTreeMap<(u64, u64), WebhookNote> = BTreeMap::new();
    let mut failed = Vec::new();
    for (key, value) in &event.annotations {
        let Some((kind, turn)) = key.split_once(".webhook.admission.k8s.io/") else { continue };
        let failed_open = match kind {
            "failed-open.mutation" | "failed-open.mutating" => Some(FailedOpen::Mutating),
            "failed-open.validation" | "failed-open.validating" => Some(FailedOpen::Validating),
            _ => None,
        };
        if failed_open.is_some() {
            failed.push(WebhookNote { webhook: cut(value), failed_open, ..WebhookNote::default() });
            continue;
        }
        let (Some(turn), Ok(said)) = (turn_of(turn), serde_json::from_str::<Said>(value)) else { continue };
        let note = called.entry(turn).or_default();
        (note.webhook, note.configuration) = (cut(&said.webhook), cut(&said.configuration));
        match kind {
            "mutation" => note.mutated = said.mutated,
            "patch" => (note.mutated, note.patch) = (true, operations(&said.patch)),
            _ => {}
        }
    }
    called.into_values().filter(|note| !note.webhook.is_empty()).chain(failed).take(MOST).collect()
}

/// `round_0_index_3`.
fn turn_of(text: &str) -> Option<(u64, u64)> {
    let (round, index) = text.strip_prefix("round_")?.split_once("_index_")?;
    Some((round.parse().ok()?, index.parse().ok()?))
}

fn operations(patch: &Value) -> Vec<String> {
    let text = |operation: &Value, key: &str| operation.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let each = patch.as_array().into_iter().flatten();
    each.take(MOST).map(|operation| cut(&format!("{} {}", text(operation, "op"), text(operation, "path")))).collect()
}

fn cut(text: &str) -> String {
    text.chars().take(LONGEST).collect()
}

#[cfg(test)]
mod tests {
    use super::{FailedOpen, WebhookNote, notes};

    fn of(annotations: &str) -> Vec<WebhookNote> {
        notes(&serde_json::from_str(&format!(r#"{{"annotations":{annotations}}}"#)).unwrap())
    }

    #[test]
    fn a_patch_is_told_by_operation_and_path_and_never_by_its_values() {
        let found = of(
            r#"{"mutation.webhook.admission.k8s.io/round_0_index_1":"{\"configuration\":\"c\",\"webhook\":\"w\",\"mutated\":true}",
                "patch.webhook.admission.k8s.io/round_0_index_1":"{\"configuration\":\"c\",\"webhook\":\"w\",\"patch\":[{\"op\":\"add\",\"path\":\"/command\",\"value\":[\"s3cret\"]}],\"patchType\":\"JSONPatch\"}",
                "mutation.webhook.admission.k8s.io/round_0_index_0":"{\"configuration\":\"c\",\"webhook\":\"first\",\"mutated\":false}"}"#,
        );
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].webhook.as_str(), found[0].mutated), ("first", false));
        assert_eq!((found[1].mutated, found[1].patch.as_slice()), (true, ["add /command".to_owned()].as_slice()));
    }

    #[test]
    fn webhooks_that_were_passed_over_are_told_apart_by_what_they_would_have_done() {
        let found = of(r#"{"failed-open.mutation.webhook.admission.k8s.io/round_0_index_0":"execmetadata.spo.io",
                "failed-open.validating.webhook.admission.k8s.io/round_0_index_2":"policy.example.com"}"#);
        assert_eq!(found[0].failed_open, Some(FailedOpen::Mutating));
        assert_eq!(
            (found[1].webhook.as_str(), found[1].failed_open),
            ("policy.example.com", Some(FailedOpen::Validating))
        );
    }

    #[test]
    fn annotations_of_another_form_are_none() {
        assert_eq!(
            of(
                r#"{"mutation.webhook.admission.k8s.io/round_x":"{}","patch.webhook.admission.k8s.io/round_0_index_0":"7","a":"b"}"#
            ),
            []
        );
    }
}
