//! The records that the kernel programs write and the agent reads.
//!
//! Plain `repr(C)` structs of integers without padding: no `Option`, no Rust enum, whose layouts are no wire format.
//! Every layout is asserted below, since both sides are compiled by different compilers.

#![no_std]

/// Bytes of `task_struct.comm`, NUL-padded (TASK_COMM_LEN, include/linux/sched.h).
pub const COMM_LEN: usize = 16;
/// Bytes of `linux_binprm.filename` and `.interp` that an exec record carries, NUL included. Longer ones are cut.
pub const PATH_MAX: usize = 512;
/// Bytes of argv that an exec record carries. [`Exec::argv_total`] tells how long it really was.
pub const ARGV_MAX: usize = 8192;
/// Bytes of one wanted environment variable, `NAME=value` and NUL. Longer ones are cut.
pub const VARIABLE_MAX: usize = 256;
/// Environment variables of one program that are looked at.
pub const ENVIRONMENT_TURNS: u32 = 512;
/// Wanted environment names.
pub const WANTED_MAX: usize = 4;
/// Bytes of a cgroup's path, NUL included. Longer ones are cut.
pub const CGROUP_PATH_MAX: usize = 1024;
/// TCP ports on which connections are counted.
pub const STREAM_PORTS_MAX: usize = 8;
/// Times of connections that are kept on each CPU. A power of two.
pub const CONNECTIONS_KEPT: usize = 64;
/// Cgroups whose processes matter.
pub const SCOPE_MAX: usize = 8;

/// What a record is: [`Header::kind`].
pub mod kind {
    pub const FORK: u32 = 1;
    pub const EXEC: u32 = 2;
    pub const EXIT: u32 = 3;
    pub const VERDICT: u32 = 4;
    pub const CGROUP_MKDIR: u32 = 5;
    pub const CGROUP_ATTACH: u32 = 6;
}

/// What the kernel's own map says about a process's session root: [`Task::root_state`].
pub mod root_state {
    /// Not in the map, or not below a root.
    pub const NONE: u32 = 0;
    /// Below the root that [`Task::root_pid`](super::Task::root_pid) and its start time name.
    pub const KNOWN: u32 = 1;
    /// The map was full at some time: there may be a root that it does not know.
    pub const UNKNOWN: u32 = 2;
}

/// Starts every record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    pub kind: u32,
    pub cpu: u32,
    /// [`Counters::seen`] of the program on this CPU, this event included: a gap is a record that was not delivered.
    pub sequence: u64,
    /// CLOCK_BOOTTIME where the kernel has bpf_ktime_get_boot_ns (5.7), nanoseconds.
    pub time_boot_ns: u64,
}

/// The current process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Task {
    /// Thread group id in the initial pid namespace.
    pub pid: u32,
    pub tid: u32,
    /// `start_boottime` of the thread group's leader. 0: the kernel's layout is not known.
    pub start_boottime_ns: u64,
    /// Of the v2 hierarchy, or of the v1 hierarchy that [`Settings::cgroup_hierarchy`] names.
    pub cgroup_id: u64,
    /// Inode numbers; 0: the kernel's layout is not known.
    pub mount_namespace: u32,
    pub pid_namespace: u32,
    pub uid: u32,
    pub gid: u32,
    pub comm: [u8; COMM_LEN],
    /// The session root that the kernel's map has for this process.
    pub root_start_boottime_ns: u64,
    pub root_pid: u32,
    pub root_state: u32,
}

/// What the kernel keeps of a process that matters, by its pid: inherited at fork, gone at exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Known {
    /// Tells a pid that is used again. The agent's own entries are exact to 10 ms only.
    pub start_boottime_ns: u64,
    pub root_start_boottime_ns: u64,
    pub root_pid: u32,
    pub root_state: u32,
}

/// A new process (not a thread); `task` is who made it, whatever its parent will be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Fork {
    pub header: Header,
    pub task: Task,
    pub child_start_boottime_ns: u64,
    pub child_pid: u32,
    pub reserved: u32,
}

/// A program that started. Followed by `filename_len` bytes, `interpreter_len` bytes, `argv_len` bytes and
/// `environment_len` bytes: paths without their NUL; argv as the kernel laid it out, each argument followed by a NUL; the
/// wanted environment variables (and in rare cases others), each in [`VARIABLE_MAX`] bytes and ended by a NUL; what lies behind it
/// means nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Exec {
    pub header: Header,
    pub task: Task,
    /// The thread that called execve; differs from the pid when it was not the leader.
    pub old_tid: u32,
    pub filename_len: u32,
    pub interpreter_len: u32,
    pub argv_len: u32,
    /// Length of the whole argv in memory.
    pub argv_total: u64,
    pub environment_len: u32,
    /// [`environment`] values.
    pub environment_state: u32,
}

/// How far the environment was searched: [`Exec::environment_state`].
pub mod environment {
    /// Not searched: no session root.
    pub const SKIPPED: u32 = 0;
    /// To its end.
    pub const WHOLE: u32 = 1;
    /// Not to its end: too many variables, or memory that could not be read.
    pub const PART: u32 = 2;
}

/// A cgroup was made (`task` made it), or a process was moved into one (`subject`). Followed by `path_len` bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cgroup {
    pub header: Header,
    pub task: Task,
    pub cgroup_id: u64,
    pub subject_start_boottime_ns: u64,
    /// 0 for a cgroup that was made.
    pub subject_pid: u32,
    pub path_len: u32,
}

/// The last thread of a process is gone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Exit {
    pub header: Header,
    pub task: Task,
    /// `task_struct.exit_code`; -1: the kernel's layout is not known.
    pub exit_code: i32,
    pub reserved: u32,
}

/// `audit_seccomp(syscall, signr, code)` was called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Verdict {
    pub header: Header,
    pub task: Task,
    pub syscall: i64,
    pub signal: i64,
    /// User space instruction pointer; 0: could not be read.
    pub instruction_pointer: u64,
    pub code: u32,
    /// 1: a call in the 32-bit ABI; 0: in the native one (x32 included); 2: the kernel's layout is not known.
    pub compat: u32,
}

/// The programs that count, as indices of the counters' array.
pub mod program {
    pub const FORK: u32 = 0;
    pub const EXEC: u32 = 1;
    pub const EXIT: u32 = 2;
    pub const VERDICT: u32 = 3;
    pub const CGROUP_MKDIR: u32 = 4;
    pub const CGROUP_ATTACH: u32 = 5;
    pub const COUNT: u32 = 6;
}

/// Per program and CPU. Whenever the program does not run, `seen = submitted + aggregated + dropped`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    pub seen: u64,
    pub submitted: u64,
    /// Verdicts that the ring could not take, counted by [`OverflowKey`].
    pub aggregated: u64,
    /// Neither the ring nor the overflow map could take it (lineage has no overflow map).
    pub dropped: u64,
    /// Events of processes that do not matter, not in `seen`.
    pub filtered: u64,
    /// Processes that the map of processes could not take.
    pub process_map_full: u64,
}

/// Verdicts that the ring could not take are counted by what they share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct OverflowKey {
    pub cgroup_id: u64,
    pub syscall: i64,
    pub code: u32,
    pub compat: u32,
}

/// One CPU's count for an [`OverflowKey`], and one of the processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct OverflowCount {
    pub count: u64,
    pub first_boot_ns: u64,
    pub last_boot_ns: u64,
    pub sample: Task,
}

/// Where connections are counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct StreamPorts {
    /// Inode number; 0: nowhere.
    pub net_namespace: u32,
    pub reserved: u32,
    /// In the host's byte order; 0: none.
    pub ports: [u32; STREAM_PORTS_MAX],
}

/// One CPU's connections to [`StreamPorts`], by the end that was connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Connections {
    pub count: u64,
    /// When a socket of that network namespace last began to listen; 0: not yet.
    pub listened_boot_ns: u64,
    /// Connection number `n`, counted from 0, is at `n % CONNECTIONS_KEPT`.
    pub times_boot_ns: [u64; CONNECTIONS_KEPT],
}

/// What the agent tells the programs before they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Settings {
    pub offsets: Offsets,
    /// Inode numbers of mount namespaces that are no container's: the host's, and the runtime service's where it has one
    /// of its own (OpenShift's kubens). 0: unknown.
    pub host_mount_namespaces: [u32; 2],
    /// Entries of the scope map in use. 0: every process matters.
    pub scope_count: u32,
    /// Of those, the first so many hold containers.
    pub pod_scope_count: u32,
    /// Number of the hierarchy that tells containers apart; 0: the v2 hierarchy.
    pub cgroup_hierarchy: u32,
    pub wanted: [Wanted; WANTED_MAX],
}

/// The start of a wanted environment variable, name and `=`, as words in memory order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Wanted {
    pub words: [u64; 4],
    pub masks: [u64; 4],
}

impl Wanted {
    /// Matches no variable: no name begins with bytes that are all ones.
    pub const NONE: Self = Self { words: [u64::MAX; 4], masks: [u64::MAX; 4] };

    /// `None` for an empty name or one longer than 31 bytes.
    pub fn new(name: &str) -> Option<Self> {
        let mut bytes = [0u8; 32];
        let mut mask = [0u8; 32];
        if name.is_empty() || name.len() >= bytes.len() {
            return None;
        }
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        bytes[name.len()] = b'=';
        mask[..=name.len()].fill(0xff);
        let mut wanted = Self::NONE;
        for (index, (word, mask)) in bytes.chunks_exact(8).zip(mask.chunks_exact(8)).enumerate() {
            wanted.words[index] =
                u64::from_ne_bytes([word[0], word[1], word[2], word[3], word[4], word[5], word[6], word[7]]);
            wanted.masks[index] =
                u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[4], mask[5], mask[6], mask[7]]);
        }
        Some(wanted)
    }
}

impl Settings {
    pub const NONE: Self = Self {
        offsets: Offsets::NONE,
        host_mount_namespaces: [0; 2],
        scope_count: 0,
        pod_scope_count: 0,
        cgroup_hierarchy: 0,
        wanted: [Wanted::NONE; WANTED_MAX],
    };
}

/// Where the running kernel keeps what the programs read, in bytes, from its BTF at start. [`ABSENT`] where it has no
/// such field; the value then stays unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Offsets {
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_group_leader: u32,
    pub task_start_boottime: u32,
    pub task_signal: u32,
    pub task_exit_code: u32,
    pub task_mm: u32,
    pub task_nsproxy: u32,
    pub task_thread_pid: u32,
    /// `thread_info` word and mask that tell a call in the 32-bit ABI.
    pub task_compat_word: u32,
    pub task_compat_mask: u32,
    pub signal_live: u32,
    pub mm_arg_start: u32,
    pub mm_arg_end: u32,
    pub mm_env_start: u32,
    pub mm_env_end: u32,
    pub nsproxy_mnt_ns: u32,
    pub mnt_namespace_inum: u32,
    pub pid_level: u32,
    pub pid_numbers: u32,
    pub upid_size: u32,
    pub upid_ns: u32,
    pub pid_namespace_inum: u32,
    pub bprm_filename: u32,
    pub bprm_interp: u32,
    pub cgroup_kn: u32,
    pub kernfs_node_id: u32,
    pub cgroup_root: u32,
    pub cgroup_root_hierarchy_id: u32,
    pub task_cgroups: u32,
    /// `css_set.subsys[…]` of the controller whose v1 hierarchy tells containers apart; [`ABSENT`]: the v2 hierarchy does.
    pub css_set_subsystem: u32,
    pub css_cgroup: u32,
    /// `sock.__sk_common.skc_num`: the local port.
    pub sock_port: u32,
    pub sock_net: u32,
    pub net_inum: u32,
}

/// The kernel has no such field.
pub const ABSENT: u32 = u32::MAX;

impl Offsets {
    pub const NONE: Self = Self {
        task_pid: ABSENT,
        task_tgid: ABSENT,
        task_group_leader: ABSENT,
        task_start_boottime: ABSENT,
        task_signal: ABSENT,
        task_exit_code: ABSENT,
        task_mm: ABSENT,
        task_nsproxy: ABSENT,
        task_thread_pid: ABSENT,
        task_compat_word: ABSENT,
        task_compat_mask: 0,
        signal_live: ABSENT,
        mm_arg_start: ABSENT,
        mm_arg_end: ABSENT,
        mm_env_start: ABSENT,
        mm_env_end: ABSENT,
        nsproxy_mnt_ns: ABSENT,
        mnt_namespace_inum: ABSENT,
        pid_level: ABSENT,
        pid_numbers: ABSENT,
        upid_size: ABSENT,
        upid_ns: ABSENT,
        pid_namespace_inum: ABSENT,
        bprm_filename: ABSENT,
        bprm_interp: ABSENT,
        cgroup_kn: ABSENT,
        kernfs_node_id: ABSENT,
        cgroup_root: ABSENT,
        cgroup_root_hierarchy_id: ABSENT,
        task_cgroups: ABSENT,
        css_set_subsystem: ABSENT,
        css_cgroup: ABSENT,
        sock_port: ABSENT,
        sock_net: ABSENT,
        net_inum: ABSENT,
    };
}

/// Plain data: any bytes of its size are a value.
///
/// # Safety
/// `repr(C)`, integers and arrays of integers only, no padding.
pub unsafe trait Plain: Copy {
    /// The value at the start of `bytes`, which need not be aligned; `None` when they are too few.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < size_of::<Self>() {
            return None;
        }
        // SAFETY: long enough by the line above; any bytes are a value by the trait's promise.
        Some(unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }

    fn as_bytes(&self) -> &[u8] {
        // SAFETY: no padding by the trait's promise, so every byte is initialised.
        unsafe { core::slice::from_raw_parts(core::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

macro_rules! plain {
    ($($type:ty = $size:expr),* $(,)?) => {$(
        const _: () = assert!(size_of::<$type>() == $size && align_of::<$type>() <= 8);
        // SAFETY: repr(C) of integers; the size asserted is the sum of the fields' sizes, so there is no padding.
        unsafe impl Plain for $type {}
    )*};
}

plain! {
    Header = 24,
    Task = 72,
    Known = 24,
    Fork = 24 + 72 + 16,
    Exec = 24 + 72 + 32,
    Exit = 24 + 72 + 8,
    Verdict = 24 + 72 + 32,
    Cgroup = 24 + 72 + 24,
    Counters = 48,
    OverflowKey = 24,
    OverflowCount = 24 + 72,
    StreamPorts = 8 + 4 * STREAM_PORTS_MAX,
    Connections = 16 + 8 * CONNECTIONS_KEPT,
    Offsets = 35 * 4,
    Wanted = 64,
    Settings = 35 * 4 + 20 + 64 * WANTED_MAX,
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn a_verdict_has_the_documented_bytes() {
        let mut bytes = [0u8; size_of::<Verdict>()];
        bytes[0] = 4; // kind
        bytes[4] = 1; // cpu
        bytes[8] = 9; // sequence
        bytes[24] = 42; // pid
        bytes[64] = b's'; // comm
        bytes[88] = 7; // root_pid
        bytes[96] = 59; // syscall
        bytes[120..124].copy_from_slice(&0x7ffc_0000u32.to_ne_bytes()); // code
        let verdict = Verdict::from_bytes(&bytes).unwrap();
        assert_eq!(verdict.header, Header { kind: kind::VERDICT, cpu: 1, sequence: 9, time_boot_ns: 0 });
        assert_eq!((verdict.task.pid, verdict.task.comm[0], verdict.task.root_pid), (42, b's', 7));
        assert_eq!((verdict.syscall, verdict.code), (59, 0x7ffc_0000));
        assert_eq!(verdict.as_bytes(), bytes);
    }

    #[test]
    fn a_wanted_name_matches_its_variable_and_no_longer_name() {
        let wanted = Wanted::new("SPO_EXEC_REQUEST_UID").unwrap();
        let matches = |variable: &str| {
            let mut bytes = [0u8; 32];
            bytes[..variable.len()].copy_from_slice(variable.as_bytes());
            bytes.chunks_exact(8).enumerate().all(|(index, word)| {
                u64::from_ne_bytes(word.try_into().unwrap()) & wanted.masks[index] == wanted.words[index]
            })
        };
        assert!(matches("SPO_EXEC_REQUEST_UID=0123"));
        assert!(!matches("SPO_EXEC_REQUEST_UIDS=1"));
        assert!(!matches("SPO_EXEC_REQUEST_UI=1"));
        assert_eq!(Wanted::new("A_NAME_OF_MORE_THAN_THIRTY_ONE_BYTES"), None);
    }

    #[test]
    fn too_few_bytes_are_no_record() {
        assert_eq!(Header::from_bytes(&[0; 23]), None);
    }
}
