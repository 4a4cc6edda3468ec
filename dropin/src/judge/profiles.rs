//! The profile files that the configuration names: are they there, and do they do what they should?

use super::{View, config::who_else_writes};
use crate::{
    facts::{Content, ProfileFile},
    finding::{Code, Finding, Place, Severity},
    profile::{EXEC, Profile, RuntimeDefault, missing_siblings},
};

/// What a profile is named by decides what is right for it.
#[derive(Clone, Copy, PartialEq)]
enum Role<'a> {
    Privileged,
    Runtime,
    /// Of the handler with that name.
    Handler(&'a str),
}

impl Role<'_> {
    fn option(self) -> String {
        match self {
            Role::Privileged => "privileged_seccomp_profile".into(),
            Role::Runtime => "seccomp_profile".into(),
            Role::Handler(name) => format!("seccomp_profile of handler {name:?}"),
        }
    }
}

pub(super) fn judge(view: &View<'_>, findings: &mut Vec<Finding>) {
    let mut named: Vec<(Role<'_>, String, Place)> = Vec::new();
    for (key, role) in [("privileged_seccomp_profile", Role::Privileged), ("seccomp_profile", Role::Runtime)] {
        if let Some((path, place)) = view.effective(key) {
            named.push((role, path.to_owned(), place));
        }
        // A file may name another than the one CRI-O runs with: it will count after the next reload.
        if let Some((path, place)) = view.merged.runtime_text(key)
            && !named.iter().any(|(r, p, _)| *r == role && p == path)
        {
            named.push((role, path.to_owned(), place.clone()));
        }
    }
    for (name, handler) in &view.merged.handlers {
        if let Some((path, setting)) = handler.text("seccomp_profile").zip(handler.fields.get("seccomp_profile")) {
            named.push((Role::Handler(name), path.to_owned(), setting.place.clone()));
        }
    }
    for (role, path, place) in named {
        one(view, role, &path, &place, findings);
    }
}

fn one(view: &View<'_>, role: Role<'_>, path: &str, place: &Place, findings: &mut Vec<Finding>) {
    findings.extend(location(role, path, place));
    let Some(file) = view.facts.profiles.get(path) else { return };
    let here = Place::file(path);
    match &file.content {
        Content::Text(text) => match Profile::parse(text) {
            Ok(profile) => content(view, role, &profile, &here, findings),
            Err(error) => findings.push(
                Finding::new(
                    Code::ProfileSyntax,
                    Severity::Error,
                    format!("this is no seccomp profile: {}", error.message),
                )
                .at(error.line.map_or(here.clone(), |line| Place::line(path, line)))
                .so(unusable(view, role))
                .fix("write it anew with `seclog-correlator render seccomp-profile`"),
            ),
        },
        Content::Absent => findings.push(missing(view, role, path, place)),
        Content::Broken(reason) => findings.push(
            Finding::new(
                Code::ProfileUnreadable,
                Severity::Error,
                format!("CRI-O cannot read the profile: it {}", reading(reason)),
            )
            .at(here.clone())
            .so(unusable(view, role))
            .fix("put a regular file there"),
        ),
        Content::Unreadable(reason) => findings.push(
            Finding::new(
                Code::ProfileUnreadable,
                Severity::Unknown,
                format!("this check cannot read the profile: {reason}"),
            )
            .at(here.clone())
            .so("whether it logs is unknown")
            .fix("run the check as root"),
        ),
        Content::TooLarge(size) => findings.push(
            Finding::new(
                Code::ProfileUnreadable,
                Severity::Unknown,
                format!("a profile of {size} bytes or more is not read"),
            )
            .at(here.clone())
            .so("whether it logs is unknown")
            .fix("look at the file: a profile has a few dozen kilobytes"),
        ),
    }
    attributes(file, &here, findings);
}

/// "byte 3 is not UTF-8" and "is a directory" as the end of a sentence.
fn reading(reason: &str) -> String {
    if reason.starts_with("is ") { reason.to_owned() } else { format!("has a fault ({reason})") }
}

fn missing(view: &View<'_>, role: Role<'_>, path: &str, place: &Place) -> Finding {
    let what = format!("{} names {path:?}, which does not exist", role.option());
    let (code, consequence) = match role {
        Role::Privileged => (
            Code::PrivilegedProfileMissing,
            "every privileged container fails to start, CNI, CSI and the machine config daemon among them: the node does not recover by itself".to_owned(),
        ),
        Role::Runtime => (
            Code::RuntimeProfileMissing,
            "CRI-O falls back to its internal default without failing: nothing logs".to_owned(),
        ),
        Role::Handler(_) => (Code::RuntimeProfileMissing, unusable(view, role)),
    };
    Finding::new(code, Severity::Error, what)
        .at(place.clone())
        .so(consequence)
        .fix("ship the profile in the same MachineConfig as the drop-in, as `seclog-correlator render nodepool` does")
}

/// What happens with a profile that CRI-O cannot use.
fn unusable(view: &View<'_>, role: Role<'_>) -> String {
    match role {
        Role::Privileged => {
            "every privileged container fails to start, CNI, CSI and the machine config daemon among them".into()
        }
        Role::Runtime => "CRI-O does not start with it, and refuses a reload".into(),
        Role::Handler(name) if view.default_runtime() == Some(name) => "CRI-O does not start".into(),
        Role::Handler(_) => "CRI-O drops the handler; pods that ask for it fail".into(),
    }
}

fn location(role: Role<'_>, path: &str, place: &Place) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !path.starts_with('/') {
        findings.push(
            Finding::new(
                Code::ProfilePathRelative,
                Severity::Error,
                format!("{} is {path:?}, which is not absolute", role.option()),
            )
            .at(place.clone())
            .so("CRI-O looks for it below its working directory")
            .fix("give the whole path, from /"),
        );
    }
    const VOLATILE: [(&str, &str); 6] = [
        (
            "/var/lib/kubelet/seccomp/operator/",
            "the Security Profiles Operator writes it when its pods run, which is after privileged pods must have started on a fresh node",
        ),
        (
            "/var/lib/kubelet/",
            "it is written by something that runs as a pod, or by hand, and is absent on a fresh node",
        ),
        ("/run/", "it is gone after a reboot"),
        ("/var/run/", "it is gone after a reboot"),
        ("/tmp/", "it may be cleared at any time, and anyone may have put it there"),
        ("/var/tmp/", "it may be cleared at any time, and anyone may have put it there"),
    ];
    if let Some((_, why)) = VOLATILE.iter().find(|(dir, _)| path.starts_with(dir)) {
        let grave = role == Role::Privileged;
        findings.push(
            Finding::new(
                Code::ProfilePathVolatile,
                if grave { Severity::Error } else { Severity::Warning },
                format!("{} is {path:?}", role.option()),
            )
            .at(place.clone())
            .so(if grave { format!("{why}; while it is absent no privileged pod starts") } else { (*why).to_owned() })
            .fix("keep the profile below /etc/crio, in the same MachineConfig as the drop-in"),
        );
    }
    findings
}

fn content(view: &View<'_>, role: Role<'_>, profile: &Profile, here: &Place, findings: &mut Vec<Finding>) {
    let mut push = |finding: Finding| findings.push(finding.at(here.clone()));
    if !profile.logs_something() {
        push(
            Finding::new(
                Code::ProfileLogsNothing,
                Severity::Error,
                "no rule of the profile has the action SCMP_ACT_LOG",
            )
            .so("containers with it make no records")
            .fix("write it anew with `seclog-correlator render seccomp-profile`"),
        );
    } else if !EXEC.iter().any(|name| profile.logs(name)) {
        push(
            Finding::new(
                Code::ProfileMissesExec,
                Severity::Error,
                format!("the profile logs {}, but not execve", list(&profile.logged())),
            )
            .so("no started program makes a record")
            .fix("add execve and execveat to the rule that logs"),
        );
    }
    let missing = missing_siblings(|name| profile.logs(name));
    if !missing.is_empty() && profile.logs_something() && profile.default_action != crate::profile::Action::Log {
        push(
            Finding::new(
                Code::ProfilePartial,
                Severity::Warning,
                format!("the profile logs a syscall but not its siblings {}", missing.join(", ")),
            )
            .so("what goes by those names makes no record: libc chooses between them as the kernel allows")
            .fix(format!("add {} to the rule that logs", missing.join(", "))),
        );
    }
    if profile.default_action == crate::profile::Action::Log {
        push(
            Finding::new(Code::ProfileLogsAll, Severity::Warning, "defaultAction is SCMP_ACT_LOG")
                .so("every syscall the profile does not name makes a record: thousands a second for each container, slowing it by the audit backlog")
                .fix("set defaultAction to SCMP_ACT_ALLOW and name what should be logged"),
        );
    }
    let contradictory = profile.contradictory();
    if !contradictory.is_empty() {
        push(
            Finding::new(
                Code::ProfileConflict,
                Severity::Warning,
                format!("{} have SCMP_ACT_LOG and another action, both without condition", list(&contradictory)),
            )
            .so("which one holds depends on the runtime")
            .fix("name each syscall in one rule"),
        );
    }
    if !profile.has_architectures {
        push(
            Finding::new(Code::ProfileNativeArch, Severity::Note, "the profile names no architectures (archMap)")
                .so("it holds for the native architecture only; libseccomp ends 32-bit programs under it")
                .fix("add archMap, as `seclog-correlator render seccomp-profile` does"),
        );
    }
    if role == Role::Privileged {
        denies(profile, here, findings);
    } else {
        weakens(view, profile, here, findings);
    }
}

fn denies(profile: &Profile, here: &Place, findings: &mut Vec<Finding>) {
    let denied = profile.denied();
    let what = if !profile.default_action.passes() {
        format!("the privileged profile answers {} to whatever it does not name", profile.default_action.name())
    } else if !denied.is_empty() {
        format!("the privileged profile denies {}", list(&denied))
    } else {
        return;
    };
    findings.push(
        Finding::new(Code::PrivilegedProfileDenies, Severity::Error, what)
            .at(here.clone())
            .so("it holds for every privileged pod: CNI, CSI and the machine config daemon break")
            .fix("use SCMP_ACT_ALLOW with SCMP_ACT_LOG for what should be logged, and nothing else"),
    );
}

fn weakens(view: &View<'_>, profile: &Profile, here: &Place, findings: &mut Vec<Finding>) {
    if profile.default_action.passes() {
        findings.push(
            Finding::new(
                Code::RuntimeProfileWeakens,
                Severity::Error,
                format!("the profile for ordinary pods has defaultAction {}", profile.default_action.name()),
            )
            .at(here.clone())
            .so("every pod with RuntimeDefault loses the runtime's protection: mount, unshare, bpf and the like are allowed")
            .fix("use the runtime's default profile with LOG on the chosen syscalls: `seclog-correlator render seccomp-profile`"),
        );
        return;
    }
    let version = view.version.unwrap_or(crate::version::NEWEST);
    let default = RuntimeDefault::of(version).ok().and_then(|d| Profile::parse(&d.profile()).ok());
    let Some(default) = default else { return };
    let usual = default.always_passed();
    // Names that the default lets pass under conditions only, or denies.
    let judged: std::collections::BTreeSet<&str> =
        default.rules.iter().flat_map(|r| r.names.iter().map(String::as_str)).filter(|n| !usual.contains(n)).collect();
    let more: std::collections::BTreeSet<&str> = profile.always_passed().intersection(&judged).copied().collect();
    if !more.is_empty() {
        findings.push(
            Finding::new(
                Code::RuntimeProfileWeakens,
                Severity::Warning,
                format!("the profile always allows {}, which CRI-O {version} allows under conditions or not at all", list(&more)),
            )
            .at(here.clone())
            .so("pods with RuntimeDefault may do more than before")
            .fix("use the runtime's default profile with LOG on the chosen syscalls: `seclog-correlator render seccomp-profile`"),
        );
    }
}

fn list(names: &std::collections::BTreeSet<&str>) -> String {
    let shown: Vec<&str> = names.iter().take(6).copied().collect();
    let more = names.len().saturating_sub(shown.len());
    if more == 0 { shown.join(", ") } else { format!("{} and {more} more", shown.join(", ")) }
}

fn attributes(file: &ProfileFile, here: &Place, findings: &mut Vec<Finding>) {
    if let Some(what) = who_else_writes(file.meta.mode, file.meta.uid) {
        findings.push(
            Finding::new(Code::ProfilePermissions, Severity::Warning, format!("the profile {what}"))
                .at(here.clone())
                .so("whoever may write it can switch logging off, or keep every privileged pod from starting")
                .fix("chown root:root and chmod 0644 it"),
        );
    }
    // Types that mean: moved here from elsewhere, never labelled, or open to containers.
    const FOREIGN: [&str; 8] = [
        "unlabeled_t",
        "default_t",
        "tmp_t",
        "user_tmp_t",
        "user_home_t",
        "admin_home_t",
        "container_file_t",
        "container_ro_file_t",
    ];
    if let Some(label) = file.meta.selinux_type.as_deref().filter(|t| FOREIGN.contains(t)) {
        let open = label == "container_file_t";
        findings.push(
            Finding::new(Code::ProfileLabel, Severity::Warning, format!("the profile's SELinux type is {label}"))
                .at(here.clone())
                .so(if open {
                    "containers may write it"
                } else {
                    "it was moved here from elsewhere, and CRI-O may be kept from reading it"
                })
                .fix("restorecon it"),
        );
    }
}
