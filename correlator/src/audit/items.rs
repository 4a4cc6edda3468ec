//! Where the events are in a body or line: an `EventList`, one `Event`, or an array of events.

use super::AuditError;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// One event's text and the byte at which it begins in the whole.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    pub json: &'a str,
    pub index: usize,
    pub offset: usize,
}

/// The text of a body that holds events. Bytes that are not UTF-8 (the API server writes none) become U+FFFD, so that one
/// of them costs no neighbour; offsets then count the replaced text.
#[derive(Debug)]
pub struct Items<'a> {
    text: Cow<'a, str>,
    ranges: Vec<(usize, usize)>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    kind: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    items: Option<Vec<&'a RawValue>>,
    #[serde(borrow, default, rename = "auditID")]
    audit_id: Option<&'a RawValue>,
}

/// Finds the events of a body without reading them: one that does not parse costs only itself.
pub fn items(body: &[u8]) -> Result<Items<'_>, AuditError> {
    let text = String::from_utf8_lossy(body);
    let ranges = ranges(&text)?;
    Ok(Items { text, ranges })
}

fn ranges(text: &str) -> Result<Vec<(usize, usize)>, AuditError> {
    let base = text.as_ptr() as usize;
    // Raw values borrow from `text`, so their distance from its start is their offset.
    let place = |raw: &RawValue| (raw.get().as_ptr() as usize - base, raw.get().len());
    let trimmed = text.trim_start();
    if trimmed.starts_with('[') {
        let events: Vec<&RawValue> = serde_json::from_str(text).map_err(AuditError::NotJson)?;
        return Ok(events.into_iter().map(place).collect());
    }
    if !trimmed.starts_with('{') {
        // For the error's own words: what is wrong, and where.
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(AuditError::NotJson)?;
        return Err(AuditError::NotEvents(String::new()));
    }
    let envelope: Envelope<'_> = serde_json::from_str(text).map_err(AuditError::NotJson)?;
    match (envelope.kind.as_deref(), envelope.items) {
        (Some("EventList") | None, Some(events)) => Ok(events.into_iter().map(place).collect()),
        (Some("EventList"), None) => Ok(Vec::new()),
        // Items of an EventList, and lines of some forwarders, carry no kind.
        (Some("Event"), _) => Ok(vec![(text.len() - trimmed.len(), trimmed.trim_end().len())]),
        (None, None) if envelope.audit_id.is_some() => Ok(vec![(text.len() - trimmed.len(), trimmed.trim_end().len())]),
        (kind, _) => Err(AuditError::NotEvents(kind.unwrap_or_default().chars().take(64).collect())),
    }
}

impl Items<'_> {
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Item<'_>> {
        self.ranges.iter().enumerate().map(|(index, &(offset, length))| Item {
            json: self.text.get(offset..offset + length).unwrap_or_default(),
            index,
            offset,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::items;
    use proptest::prelude::*;

    fn found(body: &str) -> Vec<String> {
        items(body.as_bytes()).unwrap().iter().map(|item| item.json.to_owned()).collect()
    }

    #[test]
    fn a_list_an_event_and_an_array_hold_events() {
        assert_eq!(found(r#"{"kind":"EventList","items":[{"auditID":"a"}, {"auditID":"b"}]}"#).len(), 2);
        assert_eq!(found(r#" {"kind":"Event","auditID":"a"} "#), [r#"{"kind":"Event","auditID":"a"}"#]);
        assert_eq!(found(r#"[{"auditID":"a"},3]"#), [r#"{"auditID":"a"}"#, "3"]);
        assert_eq!(found(r#"{"kind":"EventList","items":null}"#).len(), 0);
    }

    #[test]
    fn an_item_knows_where_it_begins() {
        let body = r#"{"kind":"EventList","items":[{"auditID":"a"}, 7]}"#;
        let items = items(body.as_bytes()).unwrap();
        let second = items.iter().nth(1).unwrap();
        assert_eq!((second.index, &body[second.offset..second.offset + 1]), (1, "7"));
    }

    #[test]
    fn what_is_no_event_is_refused_in_words() {
        let refusal = |body: &str| items(body.as_bytes()).unwrap_err().to_string();
        assert!(refusal("hello").starts_with("not JSON"), "{}", refusal("hello"));
        assert!(refusal("7").contains("neither an Event"));
        assert!(refusal(r#"{"kind":"Pod"}"#).contains("\"Pod\""));
        assert!(refusal(r#"{"kind":"EventList","items":[{]}"#).starts_with("not JSON"));
    }

    #[test]
    fn a_byte_that_is_not_utf8_costs_no_neighbour() {
        let body = b"[{\"auditID\":\"\xff\"},{\"auditID\":\"b\"}]";
        assert_eq!(items(body).unwrap().len(), 2);
    }

    proptest! {
        #[test]
        fn any_bytes_give_items_or_an_error(body: Vec<u8>) {
            if let Ok(items) = items(&body) {
                for item in items.iter() {
                    let _ = super::super::read(item.json);
                }
            }
        }
    }
}
