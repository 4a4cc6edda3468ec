//! Gathers [`NodeFacts`] from a root directory and, where it is that of the running machine, from the kernel and CRI-O.
//!
//! A root may be any tree of files, from anyone: nothing outside it is read (`openat2` with `RESOLVE_IN_ROOT`), sizes,
//! counts and depths are bounded, and devices and pipes are not opened for reading.

mod audit;
mod config;
mod containers;
mod cri;
mod http;
mod kernel;
mod process;
mod root;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    facts::{Known, Live, NodeFacts, Program, VersionFacts},
    merge::Merged,
    version::CrioVersion,
};

pub use root::{Root, RootError};

/// Where to look.
#[derive(Debug, Clone)]
pub struct Sources {
    pub root: PathBuf,
    /// What the caller says; the node's own word goes before it.
    pub version: Option<CrioVersion>,
    /// CRI-O's socket; without it the usual place below the root is tried.
    pub socket: Option<PathBuf>,
    /// Ask the socket at all.
    pub ask_socket: bool,
}

/// Where CRI-O listens by default.
const SOCKET: &str = "/var/run/crio/crio.sock";
/// For all that is asked of CRI-O.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(20);
/// The PATH in which crio.service looks for a handler's program.
const PROGRAM_DIRS: [&str; 6] = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];

/// Reads everything. Only a root that cannot be opened is an error: what else cannot be read is a fact too.
pub fn gather(sources: &Sources) -> Result<NodeFacts, RootError> {
    let root = Root::open(&sources.root)?;
    let socket = if sources.ask_socket { ask(&root, sources.socket.as_deref()) } else { Answer::silent("not asked") };
    let (config, config_limit) = config::files(&root);
    let mut facts = NodeFacts {
        version: VersionFacts { given: sources.version, file: config::version_file(&root), socket: socket.version },
        config,
        config_limit,
        service: config::service_files(&root),
        process: process::crio(&root),
        live: socket.live,
        kernel: kernel::settings(&root),
        audit: audit::status(&root),
        auditd: process::runs(&root, "auditd"),
        audit_rules: config::audit_rules(&root),
        hooks: kernel::hooks(&root),
        containers: match socket.containers {
            Known::Yes(containers) => Known::Yes(containers),
            Known::No(_) => containers::from_files(&root),
        },
        ..NodeFacts::default()
    };
    let version = facts.version.best();
    let merged = Merged::of(facts.config.iter().filter_map(|f| Some((f.path.as_str(), f.content.text()?))), version);
    let mut named = profile_paths(&merged);
    if let Live::Config(text) = &facts.live {
        named.extend(profile_paths(&Merged::of([("GET /config", text.as_str())], None)));
    }
    for path in named {
        let profile = config::profile(&root, &path);
        facts.profiles.insert(path, profile);
    }
    facts.programs = programs(&root, &merged, version);
    Ok(facts)
}

/// Where the programs are that CRI-O's files configure: OCI runtimes, and monitors.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RuntimePrograms {
    pub runtimes: Vec<String>,
    pub monitors: Vec<String>,
}

/// What CRI-O's files below a root name; a handler without a path is looked for where crio.service does.
pub fn runtime_programs(root: &Path) -> Result<RuntimePrograms, RootError> {
    let root = Root::open(root)?;
    let (config, _) = config::files(&root);
    let merged = Merged::of(config.iter().filter_map(|f| Some((f.path.as_str(), f.content.text()?))), None);
    let mut programs = RuntimePrograms::default();
    for (name, handler) in &merged.handlers {
        match handler.text("runtime_path") {
            Some(path) => programs.runtimes.push(path.to_owned()),
            None => programs
                .runtimes
                .extend(PROGRAM_DIRS.iter().map(|dir| format!("{dir}/{name}")).find(|path| root.exists(path))),
        }
        programs.monitors.extend(handler.text("monitor_path").map(str::to_owned));
    }
    programs.monitors.extend(merged.runtime_text("conmon").map(|(path, _)| path.to_owned()));
    Ok(programs)
}

/// Every profile that the configuration names.
fn profile_paths(merged: &Merged) -> Vec<String> {
    let global = ["seccomp_profile", "privileged_seccomp_profile"].into_iter().filter_map(|k| merged.runtime_text(k));
    let handlers = merged.handlers.values().filter_map(|h| h.text("seccomp_profile"));
    global.map(|(path, _)| path).chain(handlers).map(str::to_owned).collect()
}

fn programs(root: &Root, merged: &Merged, version: Option<CrioVersion>) -> BTreeMap<String, Program> {
    let mut names: Vec<&str> = merged.handlers.keys().map(String::as_str).collect();
    names.extend(version.map(|v| v.compiled_runtime()).filter(|n| !merged.handlers.contains_key(*n)));
    let program = |name: &str| {
        let handler = merged.handlers.get(name);
        // A pod VM's or an inherited program is looked up by other rules; only the ordinary case is judged.
        let inherits = handler
            .and_then(|h| h.fields.get("inherit_default_runtime"))
            .is_some_and(|s| s.value.as_bool() == Some(true));
        let path = handler.and_then(|h| h.text("runtime_path"));
        match path {
            _ if inherits => Program { wanted: name.to_owned(), found: true },
            Some(path) => Program { wanted: path.to_owned(), found: root.exists(path) },
            None => Program {
                wanted: name.to_owned(),
                found: PROGRAM_DIRS.iter().any(|dir| root.exists(&format!("{dir}/{name}"))),
            },
        }
    };
    // A tree without any programs is a tree of configuration files: it says nothing about programs.
    if !PROGRAM_DIRS.iter().any(|dir| root.exists(dir)) {
        return BTreeMap::new();
    }
    names.into_iter().map(|name| (name.to_owned(), program(name))).collect()
}

/// The pid of the running crio.
pub(crate) fn crio_pid(root: &Root) -> Option<u32> {
    process::pid_of(root, "crio")
}

/// CRI-O's live configuration alone.
pub(crate) fn live(root: &Root, given: Option<&Path>) -> Live {
    ask(root, given).live
}

/// What the socket said.
struct Answer {
    version: Option<CrioVersion>,
    live: Live,
    containers: Known<Vec<crate::facts::Container>>,
}

impl Answer {
    fn silent(reason: &str) -> Self {
        Self { version: None, live: Live::Unknown(reason.into()), containers: Known::No(reason.into()) }
    }
}

fn ask(root: &Root, given: Option<&Path>) -> Answer {
    let opened = match given {
        Some(path) => Ok((path.to_owned(), None)),
        // The link in /proc/self/fd reaches a socket below the root whatever the length of its path.
        None => root.handle(SOCKET).map(|fd| (root::path_of(&fd), Some(fd))),
    };
    let (path, _kept_open) = match opened {
        Ok(opened) => opened,
        Err(reason) => return Answer::silent(&format!("{SOCKET}: {reason}")),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Answer::silent(&format!("cannot start a runtime: {error}")),
    };
    runtime.block_on(async {
        let asked = async {
            let live = http::config(&path).await;
            let (version, containers) = cri::ask(&path).await;
            Answer {
                version,
                live: live.map_or_else(|reason| Live::Unknown(reason.to_string()), Live::Config),
                containers,
            }
        };
        tokio::time::timeout(SOCKET_TIMEOUT, asked)
            .await
            .unwrap_or_else(|_| Answer::silent("CRI-O did not answer on its socket in 20 seconds"))
    })
}
