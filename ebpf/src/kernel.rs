//! Reading the kernel's own structures at the offsets that the agent found in its BTF.

use aya_ebpf::helpers::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_task,
    bpf_get_current_uid_gid, bpf_probe_read_kernel,
};
use seclog_abi::{ABSENT, Settings, Task};

/// Set by the agent before the programs are loaded.
#[unsafe(no_mangle)]
pub(crate) static SETTINGS: Settings = Settings::NONE;

/// The value of a setting, which the compiler must not take for the constant it was compiled with.
macro_rules! setting {
    ($($field:tt)+) => {
        // SAFETY: a plain static; volatile because the loader rewrites it.
        unsafe { core::ptr::read_volatile(&raw const $crate::kernel::SETTINGS.$($field)+) }
    };
}
pub(crate) use setting;

/// The value of an offset.
macro_rules! offset {
    ($field:ident) => {
        $crate::kernel::setting!(offsets.$field)
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

/// A pointer in a structure; null when it cannot be read.
#[inline(always)]
pub(crate) fn pointer(base: Pointer, offset: u32) -> Pointer {
    read(base, offset).unwrap_or(core::ptr::null())
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
    read(pointer(task, offset!(task_group_leader)), offset!(task_start_boottime)).unwrap_or(0)
}

/// Fills in what is known of the current process, but for its root.
#[inline(always)]
pub(crate) fn describe_current(task: Pointer, into: &mut Task) {
    let pid_tgid = bpf_get_current_pid_tgid();
    let uid_gid = bpf_get_current_uid_gid();
    into.pid = (pid_tgid >> 32) as u32;
    into.tid = pid_tgid as u32;
    into.uid = uid_gid as u32;
    into.gid = (uid_gid >> 32) as u32;
    into.start_boottime_ns = start_boottime_ns(task);
    into.cgroup_id = current_cgroup_id(task);
    into.comm = bpf_get_current_comm().unwrap_or([0; seclog_abi::COMM_LEN]);
    into.mount_namespace = mount_namespace(task);
    into.pid_namespace = pid_namespace(task);
}

#[inline(always)]
pub(crate) fn mount_namespace(task: Pointer) -> u32 {
    let namespace = pointer(pointer(task, offset!(task_nsproxy)), offset!(nsproxy_mnt_ns));
    read(namespace, offset!(mnt_namespace_inum)).unwrap_or(0)
}

/// The namespace in which the process is known, not the one its children will get: task_active_pid_ns in
/// include/linux/pid_namespace.h.
#[inline(always)]
fn pid_namespace(task: Pointer) -> u32 {
    let pid = pointer(task, offset!(task_thread_pid));
    let Some(level) = read::<u32>(pid, offset!(pid_level)) else { return 0 };
    let (numbers, size, ns) = (offset!(pid_numbers), offset!(upid_size), offset!(upid_ns));
    if numbers == ABSENT || size == ABSENT || ns == ABSENT {
        return 0;
    }
    let position = numbers.wrapping_add(level.wrapping_mul(size)).wrapping_add(ns);
    read(pointer(pid, position), offset!(pid_namespace_inum)).unwrap_or(0)
}

/// Id of the current process's cgroup in the hierarchy that tells containers apart.
#[inline(always)]
fn current_cgroup_id(task: Pointer) -> u64 {
    let subsystem = offset!(css_set_subsystem);
    if subsystem == ABSENT {
        // SAFETY: a helper without arguments.
        return unsafe { bpf_get_current_cgroup_id() };
    }
    let of_subsystem = pointer(pointer(task, offset!(task_cgroups)), subsystem);
    let cgroup = pointer(of_subsystem, offset!(css_cgroup));
    read(pointer(cgroup, offset!(cgroup_kn)), offset!(kernfs_node_id)).unwrap_or(0)
}

/// Id of a cgroup of the hierarchy that tells containers apart; 0 for one of another.
#[inline(always)]
pub(crate) fn cgroup_id(cgroup: Pointer) -> u64 {
    // The v2 hierarchy is the one with id 0 (cgroup_init in kernel/cgroup/cgroup.c).
    let hierarchy = read::<u32>(pointer(cgroup, offset!(cgroup_root)), offset!(cgroup_root_hierarchy_id));
    if hierarchy != Some(setting!(cgroup_hierarchy)) {
        return 0;
    }
    read(pointer(cgroup, offset!(cgroup_kn)), offset!(kernfs_node_id)).unwrap_or(0)
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
