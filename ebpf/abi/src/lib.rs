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

/// What a record is: [`Header::kind`].
pub mod kind {
    pub const FORK: u32 = 1;
    pub const EXEC: u32 = 2;
    pub const EXIT: u32 = 3;
    pub const VERDICT: u32 = 4;
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
    /// Of the v2 hierarchy.
    pub cgroup_id: u64,
    /// Inode numbers; 0: the kernel's layout is not known.
    pub mount_namespace: u32,
    pub pid_namespace: u32,
    pub uid: u32,
    pub gid: u32,
    pub comm: [u8; COMM_LEN],
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

/// A program that started. Followed by `filename_len` bytes, `interpreter_len` bytes and `argv_len` bytes: paths without
/// their NUL, argv as the kernel laid it out, each argument followed by a NUL.
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
    pub const COUNT: u32 = 4;
}

/// Per program and CPU. `seen = submitted + ring_full` at any moment when the program does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counters {
    pub seen: u64,
    pub submitted: u64,
    pub ring_full: u64,
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
    pub nsproxy_mnt_ns: u32,
    pub mnt_namespace_inum: u32,
    pub pid_level: u32,
    pub pid_numbers: u32,
    pub upid_size: u32,
    pub upid_ns: u32,
    pub pid_namespace_inum: u32,
    pub bprm_filename: u32,
    pub bprm_interp: u32,
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
        nsproxy_mnt_ns: ABSENT,
        mnt_namespace_inum: ABSENT,
        pid_level: ABSENT,
        pid_numbers: ABSENT,
        upid_size: ABSENT,
        upid_ns: ABSENT,
        pid_namespace_inum: ABSENT,
        bprm_filename: ABSENT,
        bprm_interp: ABSENT,
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
    Task = 56,
    Fork = 24 + 56 + 16,
    Exec = 24 + 56 + 24,
    Exit = 24 + 56 + 8,
    Verdict = 24 + 56 + 32,
    Counters = 24,
    Offsets = 23 * 4,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_has_the_documented_bytes() {
        let mut bytes = [0u8; size_of::<Verdict>()];
        bytes[0] = 4; // kind
        bytes[4] = 1; // cpu
        bytes[8] = 9; // sequence
        bytes[24] = 42; // pid
        bytes[64] = b's'; // comm
        bytes[80] = 59; // syscall
        bytes[104..108].copy_from_slice(&0x7ffc_0000u32.to_ne_bytes()); // code
        let verdict = Verdict::from_bytes(&bytes).unwrap();
        assert_eq!(verdict.header, Header { kind: kind::VERDICT, cpu: 1, sequence: 9, time_boot_ns: 0 });
        assert_eq!((verdict.task.pid, verdict.task.comm[0]), (42, b's'));
        assert_eq!((verdict.syscall, verdict.code), (59, 0x7ffc_0000));
        assert_eq!(verdict.as_bytes(), bytes);
    }

    #[test]
    fn too_few_bytes_are_no_record() {
        assert_eq!(Header::from_bytes(&[0; 23]), None);
    }
}
