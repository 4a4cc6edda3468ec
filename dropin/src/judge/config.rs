//! Can CRI-O read its files, and does it read what is written in them?

use super::View;
use crate::{
    facts::{ConfigFile, Content},
    finding::{Code, Finding, Place, Severity},
    merge::{Stray, StrayReason, show},
    options::Section,
    version::CrioVersion,
};

pub(super) fn judge(view: &View<'_>, findings: &mut Vec<Finding>) {
    if view.facts.config.is_empty() {
        findings.push(
            Finding::new(
                Code::NoCrioConfig,
                Severity::Unknown,
                "there is neither /etc/crio/crio.conf nor a file in /etc/crio/crio.conf.d",
            )
            .so("this is no CRI-O node, or the root is not the node's")
            .fix("give the node's root with --root (in a DaemonSet: where the host's / is mounted)"),
        );
    }
    if let Some(reason) = &view.facts.config_limit {
        findings.push(
            Finding::new(
                Code::ConfigLimit,
                Severity::Unknown,
                format!("crio.conf.d was not read to its end: {reason}"),
            )
            .so("files after that point may change everything")
            .fix("find out what fills /etc/crio/crio.conf.d"),
        );
    }
    for file in &view.facts.config {
        findings.extend(content(file));
        findings.extend(backup(file));
        findings.extend(permissions(file));
    }
    for (place, message) in &view.merged.broken {
        findings.push(
            Finding::new(Code::ConfigSyntax, Severity::Error, format!("this is not TOML: {message}"))
                .at(place.clone())
                .so("CRI-O does not start with it, and refuses a reload")
                .fix("correct the file; `crio -c /dev/null -d /etc/crio/crio.conf.d config` shows whether CRI-O reads it"),
        );
    }
    for wrong in &view.merged.wrong_types {
        findings.push(
            Finding::new(
                Code::ConfigType,
                Severity::Error,
                format!("{} is {}, CRI-O wants {}", wrong.key, wrong.found, wrong.expected),
            )
            .at(wrong.place.clone())
            .so("CRI-O does not start with it, and refuses a reload")
            .fix("correct the value"),
        );
    }
    for stray in &view.merged.strays {
        findings.push(of_stray(stray, view.version));
    }
    findings.extend(weakened(view));
}

fn content(file: &ConfigFile) -> Option<Finding> {
    let place = Place::file(&file.path);
    match &file.content {
        Content::Text(_) => None,
        Content::Broken(reason) => Some(
            Finding::new(Code::ConfigUnreadable, Severity::Error, format!("CRI-O cannot read this: {reason}"))
                .at(place)
                .so("CRI-O reads every entry of the directory and does not start if one cannot be read")
                .fix("remove it, or put a regular file of UTF-8 text in its place"),
        ),
        Content::Unreadable(reason) => Some(
            Finding::new(Code::ConfigUnreadable, Severity::Unknown, format!("this check cannot read it: {reason}"))
                .at(place)
                .so("what it sets is unknown")
                .fix("run the check as root"),
        ),
        Content::TooLarge(size) => Some(
            Finding::new(Code::ConfigLimit, Severity::Unknown, format!("{size} bytes or more are not read"))
                .at(place)
                .so("what it sets is unknown; no configuration is that large")
                .fix("look at the file, and remove it if it is none of CRI-O's"),
        ),
        Content::Absent => None,
    }
}

/// CRI-O walks the whole directory: no suffix is left out.
fn backup(file: &ConfigFile) -> Option<Finding> {
    let name = file.path.strip_prefix("/etc/crio/crio.conf.d/")?;
    const SUFFIXES: [&str; 11] =
        ["~", ".bak", ".old", ".orig", ".rej", ".save", ".swp", ".disabled", ".rpmsave", ".rpmnew", ".tmp"];
    if !SUFFIXES.iter().any(|s| name.ends_with(s)) {
        return None;
    }
    Some(
        Finding::new(Code::ConfigStrayFile, Severity::Warning, "this looks like a backup, but CRI-O reads it")
            .at(Place::file(&file.path))
            .so("what it sets is in effect, and overrides every file that sorts before it")
            .fix("move it out of /etc/crio/crio.conf.d"),
    )
}

fn permissions(file: &ConfigFile) -> Option<Finding> {
    let what = who_else_writes(file.meta.mode, file.meta.uid)?;
    Some(
        Finding::new(Code::ProfilePermissions, Severity::Warning, format!("CRI-O's configuration {what}"))
            .at(Place::file(&file.path))
            .so("whoever may write it decides what runs as root on this node")
            .fix("chown root:root and chmod 0644 it"),
    )
}

/// Who besides root may change a file.
pub(super) fn who_else_writes(mode: Option<u32>, uid: Option<u32>) -> Option<String> {
    match (mode, uid) {
        (_, Some(uid)) if uid != 0 => Some(format!("belongs to user {uid}")),
        (Some(mode), _) if mode & 0o022 != 0 => {
            Some(format!("may be written by others than its owner (mode {mode:04o})"))
        }
        _ => None,
    }
}

fn of_stray(stray: &Stray, version: Option<CrioVersion>) -> Finding {
    let key = &stray.key;
    let seccomp = key.to_ascii_lowercase().contains("seccomp");
    // An option for logging that is not read is the silent failure this check exists for; others are remarked.
    let grave = |severity| if seccomp { severity } else { Severity::Note };
    let crio = version.map_or_else(|| "CRI-O".to_owned(), |v| format!("CRI-O {v}"));
    let written = format!("{key} = {}", show(&stray.value));
    match stray.why {
        StrayReason::TooNew { since } => {
            let since = CrioVersion { minor: since };
            Finding::new(
                Code::OptionTooNew,
                grave(Severity::Error),
                format!("{crio} does not know {key} yet: it came with {since}"),
            )
            .at(stray.place.clone())
            .so(format!("`{written}` is ignored without a message"))
            .fix(format!("use OpenShift {} or later, or take the line out", since.openshift()))
        }
        StrayReason::Removed { until } => {
            let until = CrioVersion { minor: until };
            Finding::new(
                Code::OptionRemoved,
                grave(Severity::Warning),
                format!("{crio} no longer knows {key}: {until} was the last to read it"),
            )
            .at(stray.place.clone())
            .so(format!("`{written}` is ignored without a message"))
            .fix("take the line out")
        }
        StrayReason::Misplaced { home } => {
            let table =
                if stray.table.is_empty() { "outside any table".to_owned() } else { format!("in [{}]", stray.table) };
            Finding::new(
                Code::OptionMisplaced,
                grave(Severity::Error),
                format!("{key} stands {table}, where CRI-O does not read it"),
            )
            .at(stray.place.clone())
            .so(format!("`{written}` is ignored without a message"))
            .fix(format!("put it below [{}]", home.path()))
        }
        StrayReason::Unknown => {
            Finding::new(Code::OptionUnknown, grave(Severity::Warning), format!("no CRI-O version knows {key}"))
                .at(stray.place.clone())
                .so(format!("`{written}` is ignored without a message"))
                .fix("correct the spelling, or take the line out")
        }
    }
}

/// On CRI-O up to 1.29 the recipe's first line does something, and nothing good.
fn weakened(view: &View<'_>) -> Option<Finding> {
    let setting = view.merged.setting(Section::Runtime, "seccomp_use_default_when_empty")?;
    if setting.value.as_bool() != Some(false) {
        return None;
    }
    Some(
        Finding::new(Code::DefaultWeakened, Severity::Error, "seccomp_use_default_when_empty is false")
            .at(setting.place.clone())
            .so("pods that name no seccomp profile run without any filter instead of with the runtime's default; it makes nothing log")
            .fix("take the line out"),
    )
}
