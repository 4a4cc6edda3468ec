//! From facts to findings: pure, without I/O.

mod config;
mod containers;
mod expectation;
mod handlers;
mod kernel;
mod live;
mod profiles;

use crate::{
    facts::{Live, NodeFacts},
    finding::{Code, Finding, Place, Severity},
    merge::Merged,
    version::{CrioVersion, NEWEST, OLDEST},
};

/// What the administrator wants logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expect {
    /// Privileged containers, debug pods among them: `privileged_seccomp_profile`.
    pub privileged: bool,
    /// Every container with RuntimeDefault: `seccomp_profile`.
    pub workload: bool,
}

impl Expect {
    /// What a node of that version can do and nothing else does: debug sessions where CRI-O has the option for them
    /// (ordinary pods often have profiles of their own), else RuntimeDefault.
    pub fn of_version(version: Option<CrioVersion>) -> Self {
        let privileged = version.is_none_or(CrioVersion::has_privileged_profile);
        Self { privileged, workload: !privileged }
    }
}

/// What the single judgements share.
struct View<'a> {
    facts: &'a NodeFacts,
    expect: Expect,
    version: Option<CrioVersion>,
    merged: Merged,
    /// CRI-O's own account, if it gave one that can be read.
    live: Option<Merged>,
}

/// The place of what CRI-O says of itself.
const LIVE: &str = "GET /config";

impl<'a> View<'a> {
    fn of(facts: &'a NodeFacts, expect: Option<Expect>) -> Self {
        let version = facts.version.best();
        let expect = expect.unwrap_or_else(|| Expect::of_version(version));
        let files = facts.config.iter().filter_map(|f| Some((f.path.as_str(), f.content.text()?)));
        let live = match &facts.live {
            Live::Config(text) => Some(Merged::of([(LIVE, text.as_str())], None)).filter(|m| m.broken.is_empty()),
            Live::Unknown(_) => None,
        };
        Self { facts, expect, version, merged: Merged::of(files, version), live }
    }

    /// A string option as it is in effect: CRI-O's own word before its files'.
    fn effective(&self, key: &str) -> Option<(&str, Place)> {
        let in_files = self.merged.runtime_text(key);
        match &self.live {
            Some(live) => live.runtime_text(key).map(|(value, place)| match in_files {
                Some((same, from)) if same == value => (value, from.clone()),
                _ => (value, place.clone()),
            }),
            None => in_files.map(|(value, place)| (value, place.clone())),
        }
    }

    fn default_runtime(&self) -> Option<&str> {
        let live = self.live.as_ref().and_then(|l| l.runtime_text("default_runtime"));
        live.map(|(name, _)| name).or_else(|| self.merged.default_runtime(self.version).map(|(name, _)| name))
    }
}

/// Every finding about the node, the gravest first.
/// Without an expectation that of the node's version holds.
pub fn judge(facts: &NodeFacts, expect: Option<Expect>) -> Vec<Finding> {
    let view = View::of(facts, expect);
    let mut findings = versions(&view);
    config::judge(&view, &mut findings);
    if findings.iter().any(|f| f.code == Code::NoCrioConfig) && view.live.is_none() {
        // Without any configuration the rest would only repeat that.
        kernel::judge(&view, &mut findings);
        return sorted(findings);
    }
    expectation::judge(&view, &mut findings);
    handlers::judge(&view, &mut findings);
    profiles::judge(&view, &mut findings);
    live::judge(&view, &mut findings);
    kernel::judge(&view, &mut findings);
    containers::judge(&view, &mut findings);
    sorted(findings)
}

fn sorted(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by(|a, b| (a.severity, a.code, &a.place, &a.what).cmp(&(b.severity, b.code, &b.place, &b.what)));
    findings.dedup();
    findings
}

fn versions(view: &View<'_>) -> Vec<Finding> {
    let known = view.facts.version;
    let Some(version) = known.best() else {
        let finding = Finding::new(Code::VersionUnknown, Severity::Unknown, "CRI-O's version is not known")
            .so("which options CRI-O reads depends on it; every option of any version was taken as read")
            .fix("mount CRI-O's socket or /run/crio, or give --crio-version");
        return vec![finding];
    };
    let mut findings = Vec::new();
    if let Some(given) = known.given.filter(|g| *g != version) {
        findings.push(
            Finding::new(
                Code::VersionConflict,
                Severity::Note,
                format!("--crio-version says {given}, the node's {} says {version}", known.source().unwrap_or("file")),
            )
            .so(format!("the node was judged as CRI-O {version}"))
            .fix("leave --crio-version out where the node knows"),
        );
    }
    if !(OLDEST..=NEWEST).contains(&version) {
        findings.push(
            Finding::new(
                Code::VersionUntested,
                Severity::Note,
                format!("CRI-O {version} lies outside {OLDEST} to {NEWEST}, which this check was made for"),
            )
            .so("options that came or went since are not known")
            .fix("use a newer seclog, or read CRI-O's release notes for [crio.runtime]"),
        );
    }
    findings
}

/// What CRI-O is taken to run with.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Effective {
    pub privileged_seccomp_profile: Option<String>,
    pub seccomp_profile: Option<String>,
    pub default_runtime: Option<String>,
    /// CRI-O said so itself; otherwise its files do.
    pub live: bool,
}

/// The settings that decide about logging.
pub fn effective(facts: &NodeFacts) -> Effective {
    let view = View::of(facts, None);
    let text = |key| view.effective(key).map(|(value, _)| value.to_owned());
    Effective {
        privileged_seccomp_profile: text("privileged_seccomp_profile"),
        seccomp_profile: text("seccomp_profile"),
        default_runtime: view.default_runtime().map(str::to_owned),
        live: view.live.is_some(),
    }
}
