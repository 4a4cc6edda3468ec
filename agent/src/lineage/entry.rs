//! How a session root came into its container, by the programs it descends from.
//!
//! Only ancestors outside every container count, so a process inside that calls itself runc decides nothing.

use super::processes::Image;

/// How, and the rule that decided, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// exec | exec_sync | start | namespace_entry | other | unknown
    pub how: &'static str,
    pub rule: &'static str,
}

/// Which part a program on the host plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    RuntimeExec,
    RuntimeStart,
    /// conmon for a container's main process.
    Conmon,
    /// `conmon … -e`: for one ExecSync.
    ConmonExec,
    Shim,
    /// Serves the CRI.
    Service,
}

/// Decides by the images of the creators outside the container, nearest first.
pub(super) fn classify<'a>(outside: impl Iterator<Item = &'a Image>) -> Entry {
    let mut runtime = None;
    for part in outside.filter_map(part) {
        match (runtime, part) {
            (None, Part::RuntimeExec | Part::RuntimeStart) => runtime = Some(part),
            (Some(Part::RuntimeExec), Part::ConmonExec) => {
                return Entry { how: "exec_sync", rule: "runtime exec below conmon -e" };
            }
            (Some(Part::RuntimeExec), Part::Service) => {
                return Entry { how: "exec", rule: "runtime exec below the runtime service" };
            }
            (Some(Part::RuntimeExec), Part::Shim) => {
                return Entry {
                    how: "exec",
                    rule: "runtime exec below containerd-shim, which serves Exec and ExecSync alike",
                };
            }
            (Some(Part::RuntimeStart), Part::Conmon | Part::Shim | Part::Service) => {
                return Entry { how: "start", rule: "runtime create or run below the runtime service" };
            }
            // runc create ends before its child execs the container's program: the child's creators still name it.
            _ => {}
        }
    }
    match runtime {
        Some(_) => Entry { how: "other", rule: "a container runtime that no known runtime service started" },
        None => Entry { how: "other", rule: "no container runtime among the creators" },
    }
}

/// The same for a process that was there before we looked, by its parents in /proc: the runtime's own stages are long
/// gone, so its monitor decides.
pub(super) fn classify_rebuilt<'a>(is_init: bool, outside: impl Iterator<Item = &'a Image>) -> Entry {
    match outside.filter_map(part).next() {
        Some(Part::ConmonExec) => Entry { how: "exec_sync", rule: "child of conmon -e in /proc" },
        Some(Part::RuntimeExec) => Entry { how: "exec", rule: "child of a runtime exec in /proc" },
        Some(Part::Conmon | Part::Shim) if is_init => {
            Entry { how: "start", rule: "first process of its pid namespace, below the container's monitor in /proc" }
        }
        _ => Entry { how: "unknown", rule: "was there before the agent, and /proc does not tell how it came" },
    }
}

fn part(image: &Image) -> Option<Part> {
    let program = image.filename.rsplit('/').next().unwrap_or_default();
    let arguments = &image.argv.arguments;
    match program {
        "runc" | "crun" => match subcommand(arguments)? {
            "exec" => Some(Part::RuntimeExec),
            "create" | "run" | "start" | "restore" => Some(Part::RuntimeStart),
            _ => None,
        },
        "conmon" if arguments.iter().skip(1).any(|argument| argument == "-e" || argument == "--exec") => {
            Some(Part::ConmonExec)
        }
        "conmon" => Some(Part::Conmon),
        "crio" | "containerd" => Some(Part::Service),
        _ if program.starts_with("containerd-shim") => Some(Part::Shim),
        _ => None,
    }
}

/// The runtime's subcommand: the first argument that is no global option or an option's value.
fn subcommand(arguments: &[String]) -> Option<&str> {
    const WITH_VALUE: [&str; 5] = ["--root", "--log", "--log-format", "--criu", "--rootless"];
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::Argv;

    fn image(filename: &str, argv: &[&str]) -> Image {
        Image {
            filename: filename.into(),
            argv: Argv { arguments: argv.iter().map(ToString::to_string).collect(), truncated_bytes: 0 },
            ..Default::default()
        }
    }

    fn how(chain: &[(&str, &[&str])]) -> &'static str {
        let images: Vec<Image> = chain.iter().map(|(filename, argv)| image(filename, argv)).collect();
        classify(images.iter()).how
    }

    const INIT: (&str, &[&str]) = ("/proc/self/exe", &["runc", "init"]);

    #[test]
    fn the_runtime_services_tell_exec_from_exec_sync_and_start() {
        let exec: (&str, &[&str]) =
            ("/usr/bin/runc", &["runc", "--root", "/run/runc", "exec", "--process", "/tmp/exec-process-1", "c"]);
        let crio: (&str, &[&str]) = ("/usr/bin/crio", &["/usr/bin/crio"]);
        assert_eq!(how(&[INIT, exec, crio]), "exec");
        assert_eq!(
            how(&[INIT, exec, ("/usr/bin/conmon", &["/usr/bin/conmon", "-c", "x", "-e", "--sync"]), crio]),
            "exec_sync"
        );
        let create: (&str, &[&str]) = ("/usr/bin/crun", &["/usr/bin/crun", "--root=/run/crun", "create", "c"]);
        assert_eq!(how(&[create, ("/usr/libexec/crio/conmon", &["conmon", "-b", "x"]), crio]), "start");
        let shim: (&str, &[&str]) =
            ("/usr/bin/containerd-shim-runc-v2", &["/usr/bin/containerd-shim-runc-v2", "-id", "x"]);
        assert_eq!(how(&[INIT, ("/usr/sbin/runc", &["runc", "--log", "exec", "create", "c"]), shim]), "start");
    }

    #[test]
    fn a_runtime_without_a_service_and_a_service_without_a_runtime_are_other() {
        assert_eq!(how(&[("/usr/bin/runc", &["runc", "exec", "c", "id"]), ("/bin/bash", &["bash"])]), "other");
        assert_eq!(how(&[("/usr/bin/crio", &["crio"])]), "other");
        assert_eq!(how(&[("/usr/bin/runc", &["runc"])]), "other");
    }
}
