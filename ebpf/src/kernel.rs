//! Reading the kernel's own structures at the offsets that the agent found in its BTF.

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task,
    bpf_get_current_uid_gid, bpf_probe_read_kernel,
};
use seclog_abi::{ABSENT, Offsets, Task};

/// Set by the agent before the programs are loaded.
#[unsafe(no_mangle)]
pub(crate) static OFFSETS: Offsets = Offsets::NONE;

/// The value of an offset, which the compiler must not take for the constant it was compiled with.
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: a plain static; volatile because the loader rewrites it.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::OFFSETS.$field) }
    };
}
pub(crate) use offset;

pub(crate) type Pointer = *const u8;

/// `*(T *)(base + offset)`; `None` when the base is null, the kernel has no such field or the read fails.
#[inline(always)]
pub(crate) fn read<T>(base: Pointer, offset: u32) -> Option<T> {
    if base.is_null() || offset == ABSENT {
        return None;
    }
    // SAFETY: bpf_probe_read_kernel checks the address; it returns an error instead of faulting.
    unsafe { bpf_probe_read_kernel(base.wrapping_add(offset as usize).cast::<T>()) }.ok()
}

/// The current task, as a pointer to its `task_struct`.
#[inline(always)]
pub(crate) fn current() -> Pointer {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_current_task() as Pointer }
}

/// Start time of the process that `task` is a thread of, 0 when unknown.
#[inline(always)]
pub(crate) fn start_boottime_ns(task: Pointer) -> u64 {
    let leader: Pointer = read(task, offset!(task_group_leader)).unwrap_or(core::ptr::null());
    read(leader, offset!(task_start_boottime)).unwrap_or(0)
}

/// Fills in what is known of the current process.
#[inline(always)]
pub(crate) fn describe_current(task: Pointer, into: &mut Task) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let uid_gid = bpf_get_current_uid_gid();
    into.pid = (pid_tgid >> 32) as u32;
    into.tid = pid_tgid as u32;
    into.uid = uid_gid as u32;
    into.gid = (uid_gid >> 32) as u32;
    into.start_boottime_ns = start_boottime_ns(task);
    // SAFETY: a helper without arguments.
    into.cgroup_id = unsafe { bpf_get_current_cgroup_id() };
    into.comm = bpf_get_current_comm().unwrap_or([0; seclog_abi::COMM_LEN]);
    into.mount_namespace = mount_namespace(task);
    into.pid_namespace = pid_namespace(task);
}

#[inline(always)]
fn mount_namespace(task: Pointer) -> u32 {
    let nsproxy: Pointer = read(task, offset!(task_nsproxy)).unwrap_or(core::ptr::null());
    let namespace: Pointer = read(nsproxy, offset!(nsproxy_mnt_ns)).unwrap_or(core::ptr::null());
    read(namespace, offset!(mnt_namespace_inum)).unwrap_or(0)
}

/// The namespace in which the process is known, not the one its children will get: task_active_pid_ns in
/// include/linux/pid_namespace.h.
#[inline(always)]
fn pid_namespace(task: Pointer) -> u32 {
    let pid: Pointer = read(task, offset!(task_thread_pid)).unwrap_or(core::ptr::null());
    let Some(level) = read::<u32>(pid, offset!(pid_level)) else { return 0 };
    let (numbers, size, ns) = (offset!(pid_numbers), offset!(upid_size), offset!(upid_ns));
    if numbers == ABSENT || size == ABSENT || ns == ABSENT {
        return 0;
    }
    let position = numbers.wrapping_add(level.wrapping_mul(size)).wrapping_add(ns);
    let namespace: Pointer = read(pid, position).unwrap_or(core::ptr::null());
    read(namespace, offset!(pid_namespace_inum)).unwrap_or(0)
}

/// The user space instruction pointer: the first entry of the user stack.
#[inline(always)]
pub(crate) fn user_instruction_pointer(context: &impl aya_ebpf::EbpfContext) -> u64 {
    const USER_STACK: u64 = 1 << 8; // BPF_F_USER_STACK
    let mut address = 0u64;
    // SAFETY: the buffer is 8 bytes, as said.
    let written = unsafe {
        aya_ebpf::helpers::generated::bpf_get_stack(context.as_ptr(), (&raw mut address).cast(), 8, USER_STACK)
    };
    if written == 8 { address } else { 0 }
}
