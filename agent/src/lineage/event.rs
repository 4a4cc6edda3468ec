//! What happened to a process, decoded.

use std::{fmt, sync::Arc};

use super::comm::Comm;

/// One fork, exec or exit.
#[derive(Clone, Debug)]
pub struct Event {
    pub origin: RecordOrigin,
    pub time_boot_ns: u64,
    /// Who did it: the forking, the new (exec) or the ending process.
    pub task: Task,
    pub kind: EventKind,
}

/// Where a record comes from, e.g. `e0.17`: unique for one start of the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordOrigin {
    /// The program's letter.
    pub stream: char,
    pub cpu: u32,
    pub sequence: u64,
}

// === impl RecordOrigin ===

impl fmt::Display for RecordOrigin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}{}.{}", self.stream, self.cpu, self.sequence)
    }
}

#[derive(Clone, Debug)]
pub enum EventKind {
    Fork {
        child_pid: u32,
        child_start_boottime_ns: u64,
    },
    Exec {
        old_tid: u32,
        filename: Arc<str>,
        interpreter: Arc<str>,
        argv: Argv,
        environment: Environment,
    },
    Exit {
        exit_code: i32,
    },
    CgroupMade {
        cgroup_id: u64,
        path: Arc<str>,
    },
    /// `pid` was moved, by the event's task.
    CgroupMoved {
        pid: u32,
        start_boottime_ns: u64,
        cgroup_id: u64,
        path: Arc<str>,
    },
}

/// A process at a moment. Zero stands for unknown where the kernel's layout is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Task {
    pub pid: u32,
    pub tid: u32,
    pub start_boottime_ns: u64,
    pub cgroup_id: u64,
    pub mount_namespace: u64,
    pub pid_namespace: u64,
    pub uid: u32,
    pub gid: u32,
    pub comm: Comm,
    pub root: KernelRoot,
}

/// What the kernel's own map says about the process's session root.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelRoot {
    /// The kernel has no root for it.
    #[default]
    None,
    Known {
        pid: u32,
        start_boottime_ns: u64,
    },
    /// There may be one that did not fit into the map, or that is older than the agent.
    Unknown,
}

/// Wanted environment variables of a session root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Environment {
    /// `NAME=value`.
    pub variables: Vec<String>,
    /// `None`: not searched. `Some(false)`: not to the end.
    pub whole: Option<bool>,
}

/// Arguments, shared: an image's argv is needed long after its exec.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Argv {
    pub arguments: Arc<[String]>,
    /// Bytes that did not fit into the record.
    pub truncated_bytes: u64,
}
