//! What CRI-O runs with, against what its files say.

use super::{LIVE, View};
use crate::{
    facts::{Content, Live},
    finding::{Code, Finding, Place, Severity},
    merge::{Merged, show},
};

pub(super) fn judge(view: &View<'_>, findings: &mut Vec<Finding>) {
    match (&view.facts.live, &view.live) {
        (_, Some(live)) => compare(view, live, findings),
        (Live::Unknown(reason), None) => {
            findings.push(
                Finding::new(Code::SocketUnknown, Severity::Unknown, format!("CRI-O's live configuration is unknown: {reason}"))
                    .so("flags, environment and reloads that did not happen are not seen; files were judged as if CRI-O had just started")
                    .fix("mount CRI-O's socket (it is control over the node: an opt-in), or run the check on the node"),
            );
            changed(view, findings);
        }
        (Live::Config(_), None) => findings.push(
            Finding::new(Code::SocketUnknown, Severity::Unknown, "CRI-O's answer to GET /config is not TOML")
                .at(Place::file(LIVE))
                .so("its live configuration is unknown")
                .fix("check what listens on the socket"),
        ),
    }
}

/// Options that a reload takes over and that matter here.
const COMPARED: [&str; 3] = ["privileged_seccomp_profile", "seccomp_profile", "default_runtime"];

fn compare(view: &View<'_>, live: &Merged, findings: &mut Vec<Finding>) {
    for key in COMPARED {
        let files = match key {
            "default_runtime" => view.merged.default_runtime(view.version).map(|(name, place)| (name, place.cloned())),
            _ => view.merged.runtime_text(key).map(|(value, place)| (value, Some(place.clone()))),
        };
        let runs = live.runtime_text(key).map(|(value, _)| value);
        let says = files.as_ref().map(|(value, _)| *value);
        if runs == says {
            continue;
        }
        let quote = |value: Option<&str>| value.map_or("nothing".to_owned(), |v| format!("{v:?}"));
        let finding = Finding::new(
            Code::LiveDiffers,
            Severity::Error,
            format!("CRI-O runs with {key} = {}, its files say {}", quote(runs), quote(says)),
        )
        .so("the files changed after the last reload, or a flag or variable of the service overrides them until the next one")
        .fix("`systemctl reload crio`, then check again; take flags out of the service");
        findings.push(match files.and_then(|(_, place)| place) {
            Some(place) => finding.at(place),
            None => finding.at(Place::file(LIVE)),
        });
    }
    for (name, handler) in &view.merged.handlers {
        let Some(now) = live.handlers.get(name) else {
            findings.push(
                Finding::new(Code::LiveHandlerDropped, Severity::Warning, format!("CRI-O has no handler {name:?}, which the files declare"))
                    .at(handler.place.clone())
                    .so("its program, an annotation or its profile did not pass CRI-O's tests, or the file is not loaded yet")
                    .fix("look for `Runtime handler … is being ignored` in CRI-O's journal"),
            );
            continue;
        };
        for key in ["runtime_root", "allowed_annotations", "default_annotations", "seccomp_profile"] {
            let Some(setting) = handler.fields.get(key).filter(|s| !s.value.is_zero()) else { continue };
            let same = now.fields.get(key).is_some_and(|s| s.value.same(&setting.value));
            if !same {
                let runs = now.fields.get(key).map_or("nothing".to_owned(), |s| show(&s.value));
                findings.push(
                    Finding::new(
                        Code::LiveDiffers,
                        Severity::Warning,
                        format!(
                            "CRI-O runs handler {name:?} with {key} = {runs}, its files say {}",
                            show(&setting.value)
                        ),
                    )
                    .at(setting.place.clone())
                    .so("the files changed after the last reload")
                    .fix("`systemctl reload crio`, then check again"),
                );
            }
        }
    }
}

/// Without CRI-O's word only times can tell, and they do not know of reloads.
fn changed(view: &View<'_>, findings: &mut Vec<Finding>) {
    let Some(started) = view.facts.process.as_ref().and_then(|p| p.started) else { return };
    let later = |modified: Option<i64>| modified.is_some_and(|m| m > started);
    for file in view.facts.config.iter().filter(|f| later(f.meta.modified) && f.content != Content::Absent) {
        findings.push(
            Finding::new(Code::ChangedSinceStart, Severity::Warning, "this file changed after CRI-O started")
                .at(Place::file(&file.path))
                .so("unless CRI-O was reloaded since, it does not know what the file says now")
                .fix("`systemctl reload crio`; with the socket mounted the check knows"),
        );
    }
    // The privileged profile is read anew for each container; this one is kept.
    let Some((path, _)) = view.merged.runtime_text("seccomp_profile") else { return };
    if view.facts.profiles.get(path).is_some_and(|p| later(p.meta.modified)) {
        findings.push(
            Finding::new(Code::ChangedSinceStart, Severity::Warning, "the profile changed after CRI-O started")
                .at(Place::file(path))
                .so("unless CRI-O was reloaded since, containers get the former one")
                .fix("`systemctl reload crio`; with the socket mounted the check knows"),
        );
    }
}
