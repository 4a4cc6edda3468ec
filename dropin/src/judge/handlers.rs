//! Handler tables: which runtime ordinary pods use, and what drop-ins did to its table.

use super::View;
use crate::{
    annotations::{self, TRACE_SYSCALL},
    finding::{Code, Finding, Place, Severity},
    merge::{Entry, Replaced},
    options::Section,
    version::CrioVersion,
};

/// Handlers that run ordinary pods; others (kata, high-performance) are chosen by a RuntimeClass and are meant to differ.
const ORDINARY: [&str; 2] = ["runc", "crun"];

pub(super) fn judge(view: &View<'_>, findings: &mut Vec<Finding>) {
    for replaced in &view.merged.replaced {
        findings.extend(of_replaced(view, replaced));
    }
    let default = view.default_runtime().unwrap_or("").to_owned();
    undefined(view, &default, findings);
    for (name, handler) in &view.merged.handlers {
        let is_default = *name == default;
        not_default(view, name, handler, &default, findings);
        if let Some(version) = view.version {
            annotations(version, name, handler, is_default, findings);
            runtime_root(view, version, name, handler, findings);
        }
        trace_syscall(handler, findings);
        own_profile(view, name, handler, findings);
    }
    programs(view, &default, findings);
}

fn of_replaced(view: &View<'_>, replaced: &Replaced) -> Option<Finding> {
    let lost = replaced.lost();
    if lost.is_empty() {
        return None;
    }
    let Replaced { section, name, before, after } = replaced;
    if *section == Section::Workload {
        return Some(
            Finding::new(
                Code::WorkloadReplaced,
                Severity::Warning,
                format!("this table replaces the workload {name:?} of {}", before.place),
            )
            .at(after.place.clone())
            .so(format!("lost: {}", lost.join("; ")))
            .fix("repeat the whole table, or leave it out"),
        );
    }
    let mut consequences = vec![format!("lost: {}", lost.join("; "))];
    let lost_key = |key: &str| lost.iter().any(|l| l.starts_with(key));
    if lost_key("runtime_root") {
        let root = view.version.map_or("the compiled default", |v| v.compiled_runtime_root());
        consequences.push(format!("the handler's containers are looked for in {root}"));
    }
    if lost.iter().any(|l| l.contains("run.oci.systemd.subgroup")) {
        consequences.push("crun puts containers into a sub-cgroup `container` again, so cgroup paths change".into());
    }
    if lost_key("allowed_annotations") {
        consequences.push("pods that need those annotations lose what they ask for".into());
    }
    if lost_key("container_min_memory") {
        consequences.push("pods with small memory limits are refused".into());
    }
    Some(
        Finding::new(
            Code::HandlerReplaced,
            Severity::Error,
            format!("this table replaces the handler {name:?} of {} instead of adding to it", before.place),
        )
        .at(after.place.clone())
        .so(consequences.join("; "))
        .fix(
            "take the table out: seccomp options stand in [crio.runtime]; to change a handler, repeat its whole table",
        ),
    )
}

fn undefined(view: &View<'_>, default: &str, findings: &mut Vec<Finding>) {
    // The compiled configuration has a table for the compiled default, and only for that.
    let compiled = view.version.map(|v| v.compiled_runtime());
    let Some((_, place)) = view.merged.runtime_text("default_runtime") else { return };
    if view.merged.handlers.contains_key(default) || compiled.is_none_or(|c| c == default) {
        return;
    }
    findings.push(
        Finding::new(
            Code::HandlerUndefined,
            Severity::Error,
            format!("default_runtime is {default:?}, but there is no [crio.runtime.runtimes.{default}]"),
        )
        .at(place.clone())
        .so("CRI-O does not start")
        .fix("add the table, or name a handler that has one"),
    );
}

/// A file that configures runc while pods run on crun, or the other way round.
fn not_default(view: &View<'_>, name: &str, handler: &Entry, default: &str, findings: &mut Vec<Finding>) {
    if name == default || !ORDINARY.contains(&name) || !ORDINARY.contains(&default) {
        return;
    }
    let same_file = |entry: &Entry| entry.place.file == handler.place.file;
    // The Machine Config Operator declares both; so does whoever sets both in one file.
    let both = view.merged.handlers.get(default).is_some_and(same_file)
        || view.merged.replaced.iter().any(|r| r.name == default && (same_file(&r.before) || same_file(&r.after)));
    if both || handler.place.file.ends_with("/00-default") {
        return;
    }
    findings.push(
        Finding::new(
            Code::HandlerNotDefault,
            Severity::Warning,
            format!("the handler {name:?} is configured here, but pods run on {default:?} by default"),
        )
        .at(handler.place.clone())
        .so("the table has no effect on ordinary pods")
        .fix("take the table out: seccomp options stand in [crio.runtime] and hold for every handler"),
    );
}

fn annotations(version: CrioVersion, name: &str, handler: &Entry, is_default: bool, findings: &mut Vec<Finding>) {
    let Some(setting) = handler.fields.get("allowed_annotations") else { return };
    for annotation in setting.value.strings() {
        if annotations::accepted(annotation, version) {
            continue;
        }
        let since = annotations::accepted_since(annotation);
        let known = since.map_or_else(
            || "no CRI-O version accepts it".to_owned(),
            |minor| format!("CRI-O accepts it from {} on", CrioVersion { minor }),
        );
        findings.push(
            Finding::new(
                Code::HandlerAnnotationInvalid,
                if is_default { Severity::Error } else { Severity::Warning },
                format!("allowed_annotations of {name:?} has {annotation:?}: {known}"),
            )
            .at(setting.place.clone())
            .so(if is_default { "CRI-O does not start" } else { "CRI-O drops the handler; pods that ask for it fail" })
            .fix("take the name out, or use the one this version accepts"),
        );
    }
}

fn runtime_root(view: &View<'_>, version: CrioVersion, name: &str, handler: &Entry, findings: &mut Vec<Finding>) {
    let inherits = handler.fields.get("inherit_default_runtime").is_some_and(|s| s.value.as_bool() == Some(true));
    let root = version.compiled_runtime_root();
    if inherits || !ORDINARY.contains(&name) || handler.text("runtime_root").is_some() || root.ends_with(name) {
        return;
    }
    // Already said of a table that lost it.
    if view.merged.replaced.iter().any(|r| r.name == name && r.before.text("runtime_root").is_some()) {
        return;
    }
    // 4.16's own 00-default is like that, with runc as default.
    let severity = if handler.place.file.ends_with("/00-default") { Severity::Note } else { Severity::Warning };
    findings.push(
        Finding::new(Code::HandlerRoot, severity, format!("the handler {name:?} has no runtime_root"))
            .at(handler.place.clone())
            .so(format!("it keeps its state in {root}, among that of another runtime"))
            .fix(format!("set runtime_root = \"/run/{name}\"")),
    );
}

fn trace_syscall(handler: &Entry, findings: &mut Vec<Finding>) {
    let Some(setting) = handler.fields.get("allowed_annotations") else { return };
    if setting.place.file.ends_with("/00-default") || !setting.value.strings().contains(&TRACE_SYSCALL) {
        return;
    }
    findings.push(
        Finding::new(Code::TraceSyscallAnnotation, Severity::Note, format!("{TRACE_SYSCALL} is allowed here"))
            .at(setting.place.clone())
            .so("it lets pods ask for a profile recording hook that RHCOS does not have; it makes nothing log")
            .fix("take it out, unless you record profiles"),
    );
}

fn own_profile(view: &View<'_>, name: &str, handler: &Entry, findings: &mut Vec<Finding>) {
    let Some(setting) = handler.fields.get("seccomp_profile").filter(|s| !s.value.is_zero()) else { return };
    let Some((global, _)) = view.effective("seccomp_profile") else { return };
    if setting.value.as_str() == Some(global) {
        return;
    }
    findings.push(
        Finding::new(
            Code::HandlerProfileWins,
            Severity::Warning,
            format!("the handler {name:?} has its own seccomp_profile, which wins over {global:?}"),
        )
        .at(setting.place.clone())
        .so("pods of this handler do not use the global profile")
        .fix("take one of the two out"),
    );
}

fn programs(view: &View<'_>, default: &str, findings: &mut Vec<Finding>) {
    for (name, program) in view.facts.programs.iter().filter(|(_, p)| !p.found) {
        let is_default = name == default;
        let handler = view.merged.handlers.get(name);
        let place = handler.map(|h| h.fields.get("runtime_path").map_or(&h.place, |s| &s.place));
        // 00-default declares runc on nodes that do not have it any more.
        let quiet = place.is_none_or(|p| p.file.ends_with("/00-default"));
        let severity = match (is_default, quiet) {
            (true, _) => Severity::Error,
            (false, true) => Severity::Note,
            (false, false) => Severity::Warning,
        };
        let finding = Finding::new(
            Code::HandlerBinaryMissing,
            severity,
            format!("the program of handler {name:?} is not on the node: {}", program.wanted),
        )
        .so(if is_default {
            "CRI-O does not start"
        } else {
            "CRI-O drops the handler: its table has no effect (RHEL 10 has no runc)"
        })
        .fix("take the table out, or install the program");
        findings.push(match place {
            Some(place) => finding.at(Place::clone(place)),
            None => finding,
        });
    }
}
