//! What is known of a node. Gathered by `node`, judged by `judge`; plain data, so that any node can be written down in a
//! test.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::version::CrioVersion;

/// Everything the judgement looks at.
#[derive(Debug, Clone, Default)]
pub struct NodeFacts {
    pub version: VersionFacts,
    /// crio.conf and the files of crio.conf.d, in the order in which CRI-O reads them.
    pub config: Vec<ConfigFile>,
    /// The walk over crio.conf.d ended early: why.
    pub config_limit: Option<String>,
    /// EnvironmentFile and unit drop-ins of crio.service.
    pub service: Vec<ConfigFile>,
    /// The profiles that the configuration names, by path as named.
    pub profiles: BTreeMap<String, ProfileFile>,
    /// For each handler, where its program was looked for, and whether it is there.
    pub programs: BTreeMap<String, Program>,
    pub process: Option<CrioProcess>,
    pub live: Live,
    pub kernel: Kernel,
    pub audit: Audit,
    pub auditd: Known<bool>,
    /// Files of /etc/audit/rules.d.
    pub audit_rules: Vec<ConfigFile>,
    pub hooks: Hooks,
    pub containers: Known<Vec<Container>>,
}

/// A fact, or the reason it is not known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known<T> {
    Yes(T),
    No(String),
}

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self::No("not looked at".into())
    }
}

impl<T> Known<T> {
    pub fn get(&self) -> Option<&T> {
        match self {
            Self::Yes(value) => Some(value),
            Self::No(_) => None,
        }
    }
}

/// Who says which version CRI-O has; the socket beats files, files beat what the caller says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VersionFacts {
    pub given: Option<CrioVersion>,
    pub file: Option<CrioVersion>,
    pub socket: Option<CrioVersion>,
}

impl VersionFacts {
    pub fn best(&self) -> Option<CrioVersion> {
        self.socket.or(self.file).or(self.given)
    }

    pub fn source(&self) -> Option<&'static str> {
        match self {
            Self { socket: Some(_), .. } => Some("socket"),
            Self { file: Some(_), .. } => Some("version file"),
            Self { given: Some(_), .. } => Some("--crio-version"),
            _ => None,
        }
    }
}

/// One file of CRI-O's or the service's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFile {
    /// On the node, without the root.
    pub path: String,
    pub content: Content,
    pub meta: Meta,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Text(String),
    /// CRI-O cannot read it either: a dangling link, a loop, a directory behind a link, bytes that are no UTF-8.
    Broken(String),
    /// This check cannot read it, which says nothing about CRI-O.
    Unreadable(String),
    /// Larger than this check reads.
    TooLarge(u64),
    Absent,
}

impl Content {
    pub fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// Of a file: who may change it and when that last happened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Meta {
    /// Seconds since 1970.
    pub modified: Option<i64>,
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    /// The SELinux type, e.g. `container_config_t`.
    pub selinux_type: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProfileFile {
    pub content: Content,
    pub meta: Meta,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Set by `runtime_path`, or the name searched in the path.
    pub wanted: String,
    pub found: bool,
}

/// The running crio.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CrioProcess {
    /// Seconds since 1970.
    pub started: Option<i64>,
    pub args: Vec<String>,
}

/// CRI-O's own account of its configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Live {
    /// The body of `GET /config`.
    Config(String),
    Unknown(String),
}

impl Default for Live {
    fn default() -> Self {
        Self::Unknown("not asked".into())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel {
    pub cmdline: Option<String>,
    /// `kernel.seccomp.actions_logged` and `actions_avail`.
    pub actions_logged: Option<String>,
    pub actions_avail: Option<String>,
}

/// The kernel's answer to AUDIT_GET.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AuditStatus {
    /// 0 off, 1 on, 2 on and locked.
    pub enabled: u32,
    /// Of the process that takes records (auditd), 0 if there is none.
    pub pid: u32,
    pub backlog_limit: u32,
    pub lost: u32,
    pub backlog: u32,
}

pub type Audit = Known<AuditStatus>;

/// What the kernel offers to see verdicts with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hooks {
    /// Probed by attaching, as the running agent does: name, works, why not.
    Probed(Vec<(String, bool, String)>),
    /// Read off the kernel's files.
    Files {
        btf: bool,
        /// /proc/kallsyms names audit_seccomp.
        symbol: bool,
    },
    Unknown(String),
}

impl Default for Hooks {
    fn default() -> Self {
        Self::Unknown("not looked at".into())
    }
}

/// A running container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    pub namespace: String,
    pub pod: String,
    pub name: String,
    pub id: String,
    pub privileged: bool,
    pub logs: Logs,
    /// Seconds since 1970.
    pub created: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Logs {
    Yes,
    No,
    Unknown,
}
