//! From the text of one event to inputs of the join, with everything that was skipped counted by kind.

use super::{AuditError, read};
use crate::join::{Input, Route};
use std::collections::BTreeMap;

/// Kinds of events that are counted apart; the rest is counted together, so that made-up names take no memory.
const MAX_KINDS: usize = 256;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FeedCounters {
    pub events: u64,
    pub access: u64,
    pub pods: u64,
    /// Not about remote access, by `verb resource/subresource`.
    pub irrelevant: BTreeMap<String, u64>,
    pub irrelevant_other: u64,
    pub malformed: u64,
}

impl FeedCounters {
    pub fn irrelevant_total(&self) -> u64 {
        self.irrelevant.values().sum::<u64>() + self.irrelevant_other
    }

    /// Reads one event; `malformed` is counted, the words for it are the error.
    pub fn read(&mut self, json: &str, route: Route) -> Result<Vec<Input>, AuditError> {
        self.events += 1;
        let (event, reading) = read(json).inspect_err(|_| self.malformed += 1)?;
        if reading.is_irrelevant() {
            let kind = format!("{} {}", event.verb, event.resource());
            if self.irrelevant.len() < MAX_KINDS || self.irrelevant.contains_key(&kind) {
                *self.irrelevant.entry(kind).or_default() += 1;
            } else {
                self.irrelevant_other += 1;
            }
        }
        self.access += u64::from(reading.access.is_some());
        self.pods += reading.pods.len() as u64;
        let pods = reading.pods.into_iter().map(Input::Pod);
        let access = reading.access.map(|event| Input::Audit { route, event });
        let change = reading.change.map(|change| Input::Monitoring(*change));
        Ok(pods.chain(access).chain(change).collect())
    }
}
