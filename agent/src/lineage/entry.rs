//! How a session root came into its container, by the programs it descends from.
//!
//! Only programs of the host's mount namespace count, and of those only the configured runtime below the process that
//! serves the CRI: a process that merely calls itself runc decides nothing.

use super::{
    processes::{Image, Origin, Process, ProcessKey},
    runtime::{Role, Runtime},
};

/// How, and the rule that decided, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// exec | exec_sync | start | namespace_entry | other | unknown
    pub how: &'static str,
    pub rule: &'static str,
}

/// Every entry that there is: what the agent kept on disk is found again here.
pub(super) const ENTRIES: [Entry; 23] = [
    EXEC,
    EXEC_BESIDE,
    EXEC_BY_SHIM,
    EXEC_WITH_CONSOLE,
    EXEC_SYNC_BY_SHIM,
    OTHER_CLIENT,
    EXEC_SYNC,
    START,
    NO_SERVICE,
    NO_RUNTIME,
    OWN_RUNTIME,
    CREATORS_LOST,
    CREATORS_IN_DOUBT,
    OLD_EXEC_SYNC,
    OLD_EXEC,
    OLD_START,
    OLD,
    OLD_ORPHAN,
    OLD_OUTSIDE,
    FORK_LOST,
    NAMESPACE_ENTRY,
    ROOT_LOST,
    MEMORY_FULL,
];

const fn entry(how: &'static str, rule: &'static str) -> Entry {
    Entry { how, rule }
}

const EXEC: Entry = entry("exec", "runtime exec below the runtime service");
const EXEC_BESIDE: Entry = entry(
    "exec",
    "runtime exec below a program of the runtime service; which process serves the CRI is not known to the agent",
);
pub(super) const EXEC_BY_SHIM: Entry = entry(
    "exec",
    "runtime exec without a console below containerd-shim, which serves Exec and ExecSync alike: either of them",
);
pub(super) const EXEC_WITH_CONSOLE: Entry =
    entry("exec", "runtime exec with a console below containerd-shim: only Exec asks for one");
pub(super) const EXEC_SYNC_BY_SHIM: Entry = entry(
    "exec_sync",
    "runtime exec without a console below containerd-shim, and nobody had connected for a stream to the process that serves \
     the CRI: ExecSync",
);
const OTHER_CLIENT: Entry = entry(
    "other",
    "runtime exec below containerd-shim whose id is none that the CRI gives: asked for by another client of containerd",
);
const EXEC_SYNC: Entry = entry("exec_sync", "runtime exec below conmon -e, below the runtime service");
const START: Entry = entry("start", "runtime create or run below the runtime service");
const NO_SERVICE: Entry = entry("other", "the host's container runtime, but no runtime service started it");
const NO_RUNTIME: Entry = entry("other", "no container runtime among the creators");
const OWN_RUNTIME: Entry =
    entry("other", "a creator calls itself a container runtime and is not the host's configured one");
const CREATORS_LOST: Entry =
    entry("unknown", "the creators of the runtime that entered were not seen: records of them were lost");
const CREATORS_IN_DOUBT: Entry = entry(
    "unknown",
    "events were lost while it came to be, perhaps of its creators: what was seen of them does not tell how it entered",
);
const OLD_EXEC_SYNC: Entry = entry("exec_sync", "child of conmon -e in /proc");
const OLD_EXEC: Entry = entry("exec", "child of a runtime exec in /proc");
const OLD_START: Entry = entry("start", "the container's first process, below the container's monitor in /proc");
const OLD: Entry = entry("unknown", "was there before the agent, and /proc does not tell how it came");
pub(super) const OLD_ORPHAN: Entry =
    entry("unknown", "child of the container's init in /proc: started by it, or an orphan of some session");
pub(super) const OLD_OUTSIDE: Entry = entry(
    "unknown",
    "in a container that shares the host's processes, and child of a process outside in /proc: entered there, or an \
     orphan of some session",
);
pub(super) const FORK_LOST: Entry =
    entry("unknown", "its fork was not seen: it came from outside of what is followed, or the record was lost");
pub(super) const NAMESPACE_ENTRY: Entry =
    entry("namespace_entry", "runs in a container's mount namespace but in no container's cgroup");
pub(super) const ROOT_LOST: Entry = entry("unknown", "the root's own records were lost; the kernel remembers it");
pub(super) const MEMORY_FULL: Entry =
    entry("unknown", "records of its lineage were lost, and the kernel's own memory was full");

/// Which part a creator plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    RuntimeExec {
        console: bool,
        id: ExecId,
    },
    RuntimeStart,
    /// conmon for a container's main process.
    Conmon,
    /// `conmon … -e`: for one ExecSync.
    ConmonExec,
    Shim,
    /// Serves the CRI; or would, for all that is known.
    Service {
        known: bool,
    },
    /// Has a runtime's name, and is none.
    SoCalled,
}

/// Who gave an exec its id, as far as the id tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ExecId {
    /// 64 hexadecimal digits, as the CRI's are.
    Cri,
    Other,
    /// Not told.
    Missing,
}

/// One of a process's creators, as it was when it made the next.
#[derive(Clone, Copy, Debug)]
pub(super) struct Creator<'a> {
    pub(super) process: &'a Process,
    pub(super) image: &'a Image,
}

/// Decides by the creators, nearest first.
pub(super) fn classify<'a>(
    runtime: &Runtime,
    host_mounts: &[u64],
    creators: impl Iterator<Item = Creator<'a>>,
) -> Entry {
    let (mut entered, mut monitor, mut so_called) = (None, None, false);
    let mut last: Option<&Process> = None;
    for creator in creators {
        last = Some(creator.process);
        let Some(part) = part(runtime, host_mounts, creator.process.key, creator.image) else { continue };
        match (entered, part) {
            (None, Part::RuntimeExec { .. } | Part::RuntimeStart) => entered = Some(part),
            (None, Part::SoCalled) => so_called = true,
            (None, _) => {}
            (Some(Part::RuntimeExec { console, id }), Part::Shim) => {
                return match (id, console) {
                    (ExecId::Other, _) => OTHER_CLIENT,
                    (_, true) => EXEC_WITH_CONSOLE,
                    (_, false) => EXEC_BY_SHIM,
                };
            }
            // A monitor outlives the service that started it.
            (Some(Part::RuntimeStart), Part::Conmon | Part::Shim) => return START,
            (Some(_), Part::ConmonExec) => monitor = Some(part),
            (Some(Part::RuntimeStart), Part::Service { .. }) => return START,
            (Some(_), Part::Service { known }) => {
                return match monitor {
                    Some(_) => EXEC_SYNC,
                    None if known => EXEC,
                    None => EXEC_BESIDE,
                };
            }
            (Some(_), _) => {}
        }
    }
    match entered {
        // Where the chain breaks off for want of records, nothing is said about what lies beyond.
        Some(_) if last.is_some_and(|last| last.origin == Origin::Unknown) => CREATORS_LOST,
        Some(_) => NO_SERVICE,
        None if so_called => OWN_RUNTIME,
        None => NO_RUNTIME,
    }
}

/// What is left of a decision where events of its creators may be missing: a part that was seen was played, and one that was
/// not seen may have been played all the same.
pub(super) fn in_doubt<'a>(entry: Entry, runtime: &Runtime, mut creators: impl Iterator<Item = Creator<'a>>) -> Entry {
    // What the service forks becomes a monitor, a shim or the runtime by an exec, which was not seen.
    let is_unseen = |Creator { process, image }: Creator<'_>| {
        let inherited = !image.has_own_exec() && process.origin == Origin::Observed;
        inherited && runtime.role(&image.program) == Some(Role::Service)
    };
    match entry {
        NO_RUNTIME | NO_SERVICE | OWN_RUNTIME => CREATORS_IN_DOUBT,
        EXEC | EXEC_BESIDE if creators.any(is_unseen) => CREATORS_IN_DOUBT,
        other => other,
    }
}

/// When the service had the runtime enter, for an exec below a shim with an id that the CRI gave.
pub(super) fn asked_boot_ns<'a>(
    runtime: &Runtime,
    host_mounts: &[u64],
    mut creators: impl Iterator<Item = Creator<'a>>,
) -> Option<u64> {
    creators.find_map(|Creator { process, image }| {
        let part = part(runtime, host_mounts, process.key, image)?;
        let is_it = matches!(part, Part::RuntimeExec { id: ExecId::Cri, .. }) && process.key.start_boottime_ns != 0;
        is_it.then_some(process.started_boot_ns)
    })
}

/// The same for a process that was there before we looked, by its parents in /proc: the runtime's own stages are long
/// gone, so its monitor decides. `is_first`: no process of the container is older.
pub(super) fn classify_rebuilt<'a>(
    runtime: &Runtime,
    host_mounts: &[u64],
    is_first: bool,
    outside: impl Iterator<Item = Creator<'a>>,
) -> Entry {
    let mut parts = outside.filter_map(|creator| part(runtime, host_mounts, creator.process.key, creator.image)).fuse();
    match parts.next() {
        Some(Part::ConmonExec) => OLD_EXEC_SYNC,
        Some(Part::RuntimeExec { .. }) if parts.any(|part| matches!(part, Part::Service { .. })) => OLD_EXEC,
        Some(Part::Conmon | Part::Shim) if is_first => OLD_START,
        _ => OLD,
    }
}

fn part(runtime: &Runtime, host_mounts: &[u64], key: ProcessKey, image: &Image) -> Option<Part> {
    let arguments = &image.argv.arguments;
    // 0: the kernel's layout is not known.
    let on_host = image.mount_namespace == 0 || host_mounts.contains(&image.mount_namespace);
    let role = runtime.role(&image.program).filter(|_| on_host);
    match role {
        Some(Role::Runtime) => match subcommand(arguments)? {
            "exec" => Some(Part::RuntimeExec { console: has_console(arguments), id: exec_id(arguments) }),
            "create" | "run" | "start" | "restore" => Some(Part::RuntimeStart),
            _ => None,
        },
        Some(Role::Conmon) => {
            let exec = arguments.iter().skip(1).any(|argument| argument == "-e" || argument == "--exec");
            Some(if exec { Part::ConmonExec } else { Part::Conmon })
        }
        Some(Role::Shim) => Some(Part::Shim),
        Some(Role::Service) => match runtime.serves(key, image) {
            Some(true) => Some(Part::Service { known: true }),
            Some(false) => None,
            None => Some(Part::Service { known: false }),
        },
        None => {
            let called = |text: &str| matches!(text.rsplit('/').next(), Some("runc" | "crun"));
            let so_called = called(&image.program) || arguments.first().is_some_and(|argument| called(argument));
            // The runtime's own last stage, already inside, still has its name.
            (so_called && subcommand(arguments) == Some("exec")).then_some(Part::SoCalled)
        }
    }
}

/// The runtime's subcommand: the first argument that is no global option or an option's value.
fn subcommand(arguments: &[String]) -> Option<&str> {
    const WITH_VALUE: [&str; 6] = ["--root", "--log", "--log-format", "--criu", "--rootless", "--cgroup-manager"];
    let mut arguments = arguments.iter().skip(1);
    while let Some(argument) = arguments.next() {
        if !argument.starts_with('-') {
            return Some(argument);
        }
        if WITH_VALUE.contains(&argument.as_str()) {
            arguments.next();
        }
    }
    None
}

/// containerd hands a socket for the console to the exec that has one.
fn has_console(arguments: &[String]) -> bool {
    arguments.iter().any(|argument| argument == "--console-socket" || argument.starts_with("--console-socket="))
}

/// containerd names the file for the pid of an exec by the exec's id (newExecPidFile in its runc shim), and for the CRI an id
/// is 32 random bytes (GenerateID in its CRI plugin).
fn exec_id(arguments: &[String]) -> ExecId {
    let separate = arguments.iter().skip_while(|argument| *argument != "--pid-file").nth(1);
    let joined = || arguments.iter().find_map(|argument| argument.strip_prefix("--pid-file="));
    let Some(path) = separate.map(String::as_str).or_else(joined) else { return ExecId::Missing };
    let name = path.rsplit('/').next().unwrap_or_default();
    let id = name.strip_suffix(".pid").unwrap_or(name);
    let is_cri = id.len() == 64 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    if is_cri { ExecId::Cri } else { ExecId::Other }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::Argv;
    use std::collections::HashSet;

    const HOST: u64 = 4_026_531_832;

    fn image(filename: &str, argv: &[&str]) -> Image {
        Image {
            program: filename.into(),
            argv: Argv { arguments: argv.iter().map(ToString::to_string).collect(), truncated_bytes: 0 },
            mount_namespace: HOST,
            ..Default::default()
        }
    }

    fn classified(runtime: &Runtime, images: &[Image]) -> Entry {
        let processes: Vec<Process> = (1..)
            .zip(images)
            .map(|(pid, image)| {
                Process::new(ProcessKey { pid, start_boottime_ns: 1 }, Origin::Observed, 1, image.clone())
            })
            .collect();
        let creators = processes.iter().map(|process| Creator { process, image: process.image() });
        classify(runtime, &[HOST], creators)
    }

    fn how(chain: &[(&str, &[&str])]) -> &'static str {
        let images: Vec<Image> = chain.iter().map(|(filename, argv)| image(filename, argv)).collect();
        classified(&Runtime::default(), &images).how
    }

    const INIT: (&str, &[&str]) = ("/usr/bin/runc", &["runc", "init"]);
    const EXEC_OF_RUNC: (&str, &[&str]) =
        ("/usr/bin/runc", &["runc", "--root", "/run/runc", "exec", "--process", "/tmp/exec-process-1", "c"]);
    const CRIO: (&str, &[&str]) = ("/usr/bin/crio", &["/usr/bin/crio"]);
    const CONMON_EXEC: (&str, &[&str]) = ("/usr/bin/conmon", &["/usr/bin/conmon", "-c", "x", "-e", "--sync"]);
    const SHIM: (&str, &[&str]) =
        ("/usr/bin/containerd-shim-runc-v2", &["/usr/bin/containerd-shim-runc-v2", "-id", "x"]);

    #[test]
    fn the_runtime_services_tell_exec_from_exec_sync_and_start() {
        assert_eq!(how(&[INIT, EXEC_OF_RUNC, CRIO]), "exec");
        assert_eq!(how(&[INIT, EXEC_OF_RUNC, CONMON_EXEC, CRIO]), "exec_sync");
        let create: (&str, &[&str]) = ("/usr/bin/crun", &["/usr/bin/crun", "--root=/run/crun", "create", "c"]);
        assert_eq!(how(&[create, ("/usr/libexec/crio/conmon", &["conmon", "-b", "x"]), CRIO]), "start");
        assert_eq!(how(&[INIT, ("/usr/sbin/runc", &["runc", "--log", "exec", "create", "c"]), SHIM]), "start");
    }

    #[test]
    fn under_containerd_a_console_proves_an_exec_and_the_rest_may_be_either() {
        let with = image("/usr/bin/runc", &["runc", "exec", "--process", "p", "--console-socket", "/tmp/s", "c"]);
        let shim = image(SHIM.0, SHIM.1);
        assert_eq!(classified(&Runtime::default(), &[with, shim.clone()]), EXEC_WITH_CONSOLE);
        assert_eq!(classified(&Runtime::default(), &[image(EXEC_OF_RUNC.0, EXEC_OF_RUNC.1), shim]), EXEC_BY_SHIM);
    }

    #[test]
    fn an_exec_below_a_shim_by_an_id_that_the_cri_does_not_give_was_asked_for_by_another_client() {
        let cri = format!("/run/containerd/x/{}.pid", "0a".repeat(32));
        let entry = |pid_file: &str| {
            let runc = image("/usr/bin/runc", &["runc", "exec", "--detach", "--pid-file", pid_file, "c"]);
            classified(&Runtime::default(), &[runc, image(SHIM.0, SHIM.1)])
        };
        assert_eq!(entry(&cri), EXEC_BY_SHIM);
        for other in ["/run/containerd/x/by-hand.pid", "/x/0A.pid", &cri.replace('a', "g"), ""] {
            assert_eq!(entry(other), OTHER_CLIENT, "{other}");
        }
    }

    #[test]
    fn a_runtime_without_a_service_and_a_service_without_a_runtime_are_other() {
        assert_eq!(how(&[EXEC_OF_RUNC, ("/bin/bash", &["bash"])]), "other");
        assert_eq!(how(&[EXEC_OF_RUNC, CONMON_EXEC, ("/bin/bash", &["bash"])]), "other");
        assert_eq!(how(&[CRIO]), "other");
        assert_eq!(how(&[("/usr/bin/runc", &["runc"])]), "other");
    }

    #[test]
    fn what_merely_calls_itself_a_runtime_or_its_service_decides_nothing() {
        let chain = |first: Image, second: Image| classified(&Runtime::default(), &[first, second]);
        let runc = image(EXEC_OF_RUNC.0, EXEC_OF_RUNC.1);
        let crio = image(CRIO.0, CRIO.1);
        // Another file of that name; the right path in another mount namespace; the same of the service.
        assert_eq!(chain(image("/tmp/runc", EXEC_OF_RUNC.1), crio.clone()), OWN_RUNTIME);
        assert_eq!(chain(Image { mount_namespace: 7, ..runc.clone() }, crio.clone()), OWN_RUNTIME);
        assert_eq!(chain(runc.clone(), image("/tmp/crio", CRIO.1)), NO_SERVICE);
        assert_eq!(chain(runc.clone(), Image { mount_namespace: 7, ..crio.clone() }), NO_SERVICE);
        // Where the process behind the socket is known, the right file run by somebody else is not it.
        let runtime = Runtime::default().served_by(1234, Some((50, "/system.slice/crio.service".into())));
        assert_eq!(classified(&runtime, &[runc.clone(), crio.clone()]), NO_SERVICE);
        assert_eq!(classified(&runtime, &[runc.clone(), Image { cgroup_id: 50, ..crio.clone() }]), EXEC);
        assert_eq!(classified(&Runtime::default(), &[runc, crio]), EXEC_BESIDE);
    }

    #[test]
    fn where_the_creators_were_lost_nothing_is_asserted_of_them() {
        let runc = image(EXEC_OF_RUNC.0, EXEC_OF_RUNC.1);
        let key = ProcessKey { pid: 5, start_boottime_ns: 1 };
        let process = Process::new(key, Origin::Unknown, 1, runc);
        let creators = std::iter::once(Creator { process: &process, image: process.image() });
        assert_eq!(classify(&Runtime::default(), &[HOST], creators), CREATORS_LOST);
    }

    #[test]
    fn every_rule_is_another_text() {
        let rules: HashSet<&str> = ENTRIES.iter().map(|entry| entry.rule).collect();
        assert_eq!(rules.len(), ENTRIES.len());
    }
}
