//! What the check found, as a table for people and as JSON for everything else.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

use serde::Serialize;

use crate::{
    facts::{AuditStatus, Known, Logs, NodeFacts},
    finding::{Code, Finding, Place, Severity},
    judge::{self, Effective, Expect},
    version::CrioVersion,
};

/// Documented in docs/check.md; fields are added, never changed.
pub const SCHEMA: &str = "seclog.check/v1";

/// The result of one check. Its texts have no control characters.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    pub schema: &'static str,
    pub root: String,
    pub verdict: Verdict,
    pub crio: Crio,
    pub effective: Effective,
    pub findings: Vec<Finding>,
    pub containers: Vec<Coverage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditStatus>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ok,
    Problems,
    Unchecked,
}

impl Verdict {
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Problems => 1,
            Self::Unchecked => 2,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Problems => "problems",
            Self::Unchecked => "unchecked",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Crio {
    pub version: Option<CrioVersion>,
    pub openshift: Option<String>,
    /// Who told the version: socket, version file or --crio-version.
    pub source: Option<&'static str>,
}

/// Running containers of one namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Coverage {
    pub namespace: String,
    pub logs: u32,
    pub does_not_log: u32,
    pub unknown: u32,
}

/// A finding that came or went between two checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub appeared: bool,
    pub finding: Finding,
}

impl Report {
    /// Judges the facts.
    pub fn of(root: &str, facts: &NodeFacts, expect: Option<Expect>) -> Self {
        let findings: Vec<Finding> = judge::judge(facts, expect).into_iter().map(printable_finding).collect();
        let version = facts.version.best();
        let effective = judge::effective(facts);
        let clean = |text: Option<String>| text.map(|t| printable(&t));
        Self {
            schema: SCHEMA,
            root: printable(root),
            verdict: verdict(&findings),
            crio: Crio { version, openshift: version.map(CrioVersion::openshift), source: facts.version.source() },
            effective: Effective {
                privileged_seccomp_profile: clean(effective.privileged_seccomp_profile),
                seccomp_profile: clean(effective.seccomp_profile),
                default_runtime: clean(effective.default_runtime),
                live: effective.live,
            },
            findings,
            containers: coverage(facts),
            audit: facts.audit.get().copied(),
        }
    }

    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|f| f.severity == severity).count()
    }

    /// One line of JSON and a newline.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string(self).map(|line| line + "\n")
    }

    /// What is different from the check before. A finding is the same by code and place, whatever its numbers.
    pub fn changes_since(&self, before: &Self) -> Vec<Change> {
        fn keys(report: &Report) -> BTreeSet<(Code, Option<&Place>)> {
            report.findings.iter().map(|f| (f.code, f.place.as_ref())).collect()
        }
        let (old, new) = (keys(before), keys(self));
        let only = |report: &Self, other: &BTreeSet<(Code, Option<&Place>)>, appeared| {
            let findings = report.findings.iter().filter(|f| !other.contains(&(f.code, f.place.as_ref())));
            findings.map(|f| Change { appeared, finding: f.clone() }).collect::<Vec<_>>()
        };
        let mut changes = only(self, &old, true);
        changes.extend(only(before, &new, false));
        changes
    }

    /// For people: the verdict first, then what matters, then what else there is to know.
    pub fn table(&self) -> String {
        let mut out = String::new();
        self.head(&mut out);
        let (grave, rest): (Vec<&Finding>, Vec<&Finding>) =
            self.findings.iter().partition(|f| matches!(f.severity, Severity::Error | Severity::Warning));
        for finding in &grave {
            let place = finding.place.as_ref().map_or(String::new(), |p| format!("  {p}"));
            line(&mut out, &format!("{:<8} {}{place}", finding.severity.to_string().to_uppercase(), finding.code));
            for (label, text) in [("", &finding.what), ("so: ", &finding.consequence), ("fix: ", &finding.action)] {
                wrapped(&mut out, label, text);
            }
            out.push('\n');
        }
        for finding in &rest {
            let place = finding.place.as_ref().map_or(String::new(), |p| format!(" ({p})"));
            line(&mut out, &format!("{:<8} {}: {}{place}", finding.severity.to_string(), finding.code, finding.what));
        }
        self.overview(&mut out);
        out
    }

    fn head(&self, out: &mut String) {
        let version = match (&self.crio.version, &self.crio.openshift) {
            (Some(version), Some(openshift)) => format!("CRI-O {version} (OpenShift {openshift})"),
            _ => "CRI-O of unknown version".into(),
        };
        let verdict = match self.verdict {
            Verdict::Ok => "OK".to_owned(),
            Verdict::Problems => {
                format!("PROBLEMS: {} errors, {} warnings", self.count(Severity::Error), self.count(Severity::Warning))
            }
            Verdict::Unchecked => "COULD NOT CHECK".to_owned(),
        };
        line(out, &format!("{verdict}  {version}, {} unknown\n", self.count(Severity::Unknown)));
    }

    fn overview(&self, out: &mut String) {
        let Effective { privileged_seccomp_profile, seccomp_profile, default_runtime, live } = &self.effective;
        let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "-".into());
        out.push('\n');
        line(out, &format!("{}:", if *live { "CRI-O runs with" } else { "CRI-O's files say" }));
        for (key, value) in [
            ("privileged_seccomp_profile", privileged_seccomp_profile),
            ("seccomp_profile", seccomp_profile),
            ("default_runtime", default_runtime),
        ] {
            line(out, &format!("  {key:<27} {}", show(value)));
        }
        if !self.containers.is_empty() {
            line(out, "\nrunning containers                  logs  does not  unknown");
            for Coverage { namespace, logs, does_not_log, unknown } in &self.containers {
                line(out, &format!("  {namespace:<32} {logs:>5} {does_not_log:>9} {unknown:>8}"));
            }
        }
    }
}

fn verdict(findings: &[Finding]) -> Verdict {
    if findings.iter().any(|f| f.code == Code::NoCrioConfig) {
        // No CRI-O here: whatever else was found is not about its logging.
        Verdict::Unchecked
    } else if findings.iter().any(|f| matches!(f.severity, Severity::Error | Severity::Warning)) {
        Verdict::Problems
    } else if findings.iter().any(|f| f.code.prevents_check()) {
        Verdict::Unchecked
    } else {
        Verdict::Ok
    }
}

fn coverage(facts: &NodeFacts) -> Vec<Coverage> {
    let Known::Yes(containers) = &facts.containers else { return Vec::new() };
    let mut by_namespace: BTreeMap<&str, Coverage> = BTreeMap::new();
    for container in containers {
        let entry = by_namespace.entry(&container.namespace).or_insert_with(|| Coverage {
            namespace: printable(&container.namespace),
            logs: 0,
            does_not_log: 0,
            unknown: 0,
        });
        match container.logs {
            Logs::Yes => entry.logs += 1,
            Logs::No => entry.does_not_log += 1,
            Logs::Unknown => entry.unknown += 1,
        }
    }
    by_namespace.into_values().collect()
}

/// Longest text that is quoted from a node's files.
const MAX_TEXT: usize = 600;

/// Without anything that moves a terminal's cursor or turns text round, and not endless.
pub(crate) fn printable(text: &str) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let mut out = String::with_capacity(text.len().min(MAX_TEXT));
    for c in text.chars() {
        if out.len() >= MAX_TEXT {
            out.push('…');
            break;
        }
        if hidden(c) {
            let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
        } else {
            out.push(c);
        }
    }
    out
}

fn printable_finding(finding: Finding) -> Finding {
    let Finding { code, severity, what, place, consequence, action } = finding;
    Finding {
        code,
        severity,
        what: printable(&what),
        place: place.map(|Place { file, line }| Place { file: printable(&file), line }),
        consequence: printable(&consequence),
        action: printable(&action),
    }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text.trim_end_matches(' '));
    out.push('\n');
}

/// Words in lines of at most 110 characters, indented below the finding's head.
fn wrapped(out: &mut String, label: &str, text: &str) {
    const INDENT: &str = "         ";
    const WIDTH: usize = 110;
    let mut row = format!("{INDENT}{label}");
    let start = row.chars().count();
    for word in text.split(' ') {
        let length = row.chars().count();
        if length > start && length + 1 + word.chars().count() > WIDTH {
            line(out, &row);
            row = format!("{INDENT}{}", " ".repeat(label.len()));
        } else if length > start {
            row.push(' ');
        }
        row.push_str(word);
    }
    line(out, &row);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(code: Code, file: &str) -> Finding {
        Finding::new(code, Severity::Error, "x").at(Place::line(file, 1))
    }

    #[test]
    fn control_characters_of_a_node_do_not_reach_the_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}c\n\u{9b}"), "a\\u{1b}[2Jb\\u{202e}c\\u{a}\\u{9b}");
        assert!(printable(&"x".repeat(100_000)).len() < 700);
    }

    #[test]
    fn changes_name_what_came_and_what_went() {
        let report = |findings: Vec<Finding>| {
            let mut report = Report::of("/", &NodeFacts::default(), None);
            report.findings = findings;
            report
        };
        let before = report(vec![finding(Code::DropinMissing, "a"), finding(Code::ConfigSyntax, "b")]);
        let after = report(vec![finding(Code::ConfigSyntax, "b"), finding(Code::ConfigSyntax, "c")]);
        let changes: Vec<_> = after
            .changes_since(&before)
            .into_iter()
            .map(|c| (c.appeared, c.finding.code, c.finding.place.unwrap().file))
            .collect();
        assert_eq!(changes, [(true, Code::ConfigSyntax, "c".to_owned()), (false, Code::DropinMissing, "a".to_owned())]);
    }
}
