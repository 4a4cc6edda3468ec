//! What nodes' checks of their configuration said: whether verdicts can be expected of a node at all.
//!
//! A check is a fact with a time, so that the order in which checks arrive does not matter: a session is told by the last
//! one before its end.

use seclog_proto::v1::CheckStatus;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Checks kept of each node; only those that say something new are.
const PER_NODE: usize = 16;
const MAX_NODES: usize = 20_000;
/// Of an agent's text.
const MAX_CODE: usize = 64;
const MAX_CODES: usize = 8;
const MAX_NAMESPACES: usize = 100;

#[derive(Debug, Default)]
pub(super) struct Checks {
    nodes: BTreeMap<Arc<str>, BTreeMap<u64, Check>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    /// Codes of errors and warnings.
    grave: Vec<String>,
    grave_not_listed: usize,
    /// Containers that log, do not, and may, by namespace.
    namespaces: BTreeMap<String, (u32, u32, u32)>,
}

impl Checks {
    /// True where this says something new.
    pub(super) fn add(&mut self, node: &Arc<str>, status: CheckStatus) -> bool {
        if self.nodes.len() >= MAX_NODES && !self.nodes.contains_key(node) {
            return false;
        }
        let at = status.checked_unix_ns;
        let check = Check::of(status);
        let known = self.nodes.entry(Arc::clone(node)).or_default();
        if known.range(..=at).next_back().is_some_and(|(_, last)| *last == check) {
            return false;
        }
        known.insert(at, check);
        if known.len() > PER_NODE {
            known.pop_first();
        }
        true
    }

    /// What to know about verdicts of that node and namespace, up to `until`; nothing where nothing is amiss.
    pub(super) fn notes(&self, node: Option<&str>, namespace: Option<&str>, until: u64) -> Vec<String> {
        let known = node.and_then(|node| Some((node, self.nodes.get(node)?)));
        // A session may end before its node was checked for the first time: that first check is what there is.
        let check = known.and_then(|(node, known)| {
            let last = known.range(..=until).next_back().or_else(|| known.first_key_value())?;
            Some((node, last.1))
        });
        let Some((node, check)) = check else { return Vec::new() };
        let mut notes = Vec::new();
        if !check.grave.is_empty() {
            let more = match check.grave_not_listed {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            notes.push(format!("the check of node {node} found {}{more}", check.grave.join(", ")));
        }
        if let Some((namespace, (logs, does_not, unknown))) = namespace.and_then(|n| check.namespaces.get_key_value(n))
            && *does_not > 0
        {
            let all = u64::from(*logs) + u64::from(*does_not) + u64::from(*unknown);
            notes.push(format!(
                "{does_not} of {all} containers of namespace {namespace} on node {node} do not log verdicts"
            ));
        }
        notes
    }
}

impl Check {
    fn of(status: CheckStatus) -> Self {
        let CheckStatus { checked_unix_ns: _, verdict: _, findings, namespaces } = status;
        let is_code = |code: &str| {
            !code.is_empty()
                && code.len() <= MAX_CODE
                && code.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        let mut grave: Vec<String> = findings
            .into_iter()
            .filter(|finding| matches!(finding.severity.as_str(), "error" | "warning"))
            .map(|finding| finding.code)
            .filter(|code| is_code(code))
            .collect();
        grave.sort();
        grave.dedup();
        let grave_not_listed = grave.len().saturating_sub(MAX_CODES);
        grave.truncate(MAX_CODES);
        let is_name = |name: &str| name.len() <= 253 && !name.chars().any(char::is_control);
        let namespaces = namespaces
            .into_iter()
            .filter(|counts| is_name(&counts.namespace))
            .take(MAX_NAMESPACES)
            .map(|counts| (counts.namespace, (counts.logs, counts.does_not_log, counts.unknown)))
            .collect();
        Self { grave, grave_not_listed, namespaces }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seclog_proto::v1::{CheckFinding, NamespaceLogging};

    fn status(at: u64, codes: &[(&str, &str)], does_not_log: u32) -> CheckStatus {
        let finding = |(severity, code): &(&str, &str)| CheckFinding {
            code: (*code).to_owned(),
            severity: (*severity).to_owned(),
            ..CheckFinding::default()
        };
        CheckStatus {
            checked_unix_ns: at,
            verdict: "problems".to_owned(),
            findings: codes.iter().map(finding).collect(),
            namespaces: vec![NamespaceLogging { namespace: "shop".to_owned(), logs: 1, does_not_log, unknown: 0 }],
        }
    }

    #[test]
    fn a_session_is_told_by_the_last_check_before_its_end_in_whatever_order_checks_came() {
        let node: Arc<str> = "node-1".into();
        let early = status(100, &[("error", "dropin-missing"), ("note", "workload-not-logged")], 2);
        let late = status(200, &[], 0);
        for order in [[early.clone(), late.clone()], [late, early]] {
            let mut checks = Checks::default();
            for status in order {
                assert!(checks.add(&node, status));
            }
            let notes = |until| checks.notes(Some("node-1"), Some("shop"), until);
            let told = [
                "the check of node node-1 found dropin-missing",
                "2 of 3 containers of namespace shop on node node-1 do not log verdicts",
            ];
            assert_eq!(notes(150), told);
            assert_eq!(notes(50), told, "the first check is what there is");
            assert_eq!(notes(250), [] as [&str; 0]);
            assert!(
                checks.notes(Some("other"), Some("shop"), 150).is_empty() && checks.notes(None, None, 1).is_empty()
            );
        }
    }

    #[test]
    fn a_check_that_says_the_same_is_no_news_and_memory_is_bounded() {
        let node: Arc<str> = "n".into();
        let mut checks = Checks::default();
        assert!(checks.add(&node, status(1, &[("error", "a")], 0)));
        assert!(!checks.add(&node, status(2, &[("error", "a")], 0)));
        for at in 3..1000 {
            checks.add(&node, status(at, &[("error", if at % 2 == 0 { "a" } else { "b" })], 0));
        }
        assert_eq!(checks.nodes["n"].len(), PER_NODE);
    }

    #[test]
    fn codes_and_names_of_a_hostile_agent_do_not_reach_a_session() {
        let node: Arc<str> = "n".into();
        let mut checks = Checks::default();
        let mut hostile = status(1, &[("error", "a\u{1b}[2J"), ("warning", "fine-1")], 5);
        hostile.namespaces[0].namespace = "x\ny".to_owned();
        checks.add(&node, hostile);
        assert_eq!(checks.notes(Some("n"), Some("x\ny"), 9), ["the check of node n found fine-1"]);
    }
}
