//! The kernel's own memory of processes that matter, and of the session root each belongs to.
//!
//! A process matters when it is in a cgroup of the scope, or descends from one that does. The memory is inherited at fork
//! and gone at exit, so membership survives the loss of any number of records.

use aya_ebpf::{
    macros::map,
    maps::{Array, CgroupArray, HashMap, LruHashMap},
};
use seclog_abi::{Counters, Known, SCOPE_MAX, Task, root_state};

use crate::kernel::{self, Pointer, setting};

/// By pid. A process that does not fit has an unknown root, and so have its descendants.
#[map]
static PROCESSES: HashMap<u32, Known> = HashMap::with_max_entries(32_768, 0);

/// Cgroups whose processes matter; those that hold pods come first.
#[map]
static SCOPE: CgroupArray = CgroupArray::with_max_entries(SCOPE_MAX as u32, 0);

/// Mount namespaces of containers, by inode number: who runs a program in one matters, from whatever cgroup.
#[map]
static NAMESPACES: LruHashMap<u32, u8> = LruHashMap::with_max_entries(8_192, 0);

/// Not zero: PROCESSES was full at some time, so a process that is not in it may have a root all the same.
#[map]
static WAS_FULL: Array<u32> = Array::with_max_entries(1, 0);

/// Not zero: the agent has told of the processes that were there before, so a process without a root has none.
#[map]
static READY: Array<u32> = Array::with_max_entries(1, 0);

/// /proc tells start times in ticks; entries that the agent made are no more exact.
const TICK_NS: u64 = 10_000_000;

/// What is known of a process; `None` also when the entry is an earlier process's of this pid.
#[inline(always)]
pub(crate) fn get(pid: u32, start_boottime_ns: u64) -> Option<&'static mut Known> {
    // SAFETY: the value stays readable while the program runs; concurrent writers are this process's own threads.
    let known = unsafe { &mut *PROCESSES.get_ptr_mut(pid)? };
    let same = known.start_boottime_ns == start_boottime_ns
        || known.start_boottime_ns / TICK_NS == start_boottime_ns / TICK_NS;
    same.then_some(known)
}

/// Remembers a process.
#[inline(always)]
pub(crate) fn insert(pid: u32, known: &Known, counters: &mut Counters) {
    if PROCESSES.insert(pid, known, 0).is_err() {
        counters.process_map_full += 1;
        if let Some(was_full) = WAS_FULL.get_ptr_mut(0) {
            // SAFETY: a plain word that only ever becomes 1.
            unsafe { *was_full = 1 };
        }
    }
}

/// False when it was forgotten already.
#[inline(always)]
pub(crate) fn remove(pid: u32) -> bool {
    PROCESSES.remove(pid).is_ok()
}

#[inline(always)]
fn was_full() -> bool {
    WAS_FULL.get(0).is_some_and(|was_full| *was_full != 0)
}

/// Whether the current process is in a cgroup of the scope.
#[inline(always)]
pub(crate) fn in_scope() -> bool {
    let count = setting!(scope_count);
    count == 0 || under_any(count)
}

/// Whether the current process is in a container's mount namespace.
#[inline(always)]
pub(crate) fn in_known_namespace(task: Pointer) -> bool {
    let namespace = kernel::mount_namespace(task);
    // SAFETY: the value is looked at for being there only.
    namespace != 0 && unsafe { NAMESPACES.get(namespace) }.is_some()
}

/// The current process is in a container: its mount namespace is the container's.
#[inline(always)]
pub(crate) fn remember_namespace(task: Pointer) {
    let namespace = kernel::mount_namespace(task);
    // SAFETY: as above.
    if setting!(pod_scope_count) > 0 && unsafe { NAMESPACES.get(namespace) }.is_none() {
        let _ = NAMESPACES.insert(namespace, 1, 0);
    }
}

/// Whether the current process runs in a container, as far as the kernel can tell.
#[inline(always)]
pub(crate) fn in_container(task: Pointer) -> bool {
    let namespace = kernel::mount_namespace(task);
    let pods = setting!(pod_scope_count);
    let hosts = setting!(host_mount_namespaces);
    namespace != 0 && namespace != hosts[0] && namespace != hosts[1] && (pods == 0 || under_any(pods))
}

#[inline(always)]
fn under_any(count: u32) -> bool {
    for index in 0..SCOPE_MAX as u32 {
        if index >= count {
            return false;
        }
        if matches!(SCOPE.current_task_under_cgroup(index), Ok(true)) {
            return true;
        }
    }
    false
}

/// Stamps a record with the root that is known of its process.
#[inline(always)]
pub(crate) fn stamp(task: &mut Task, known: Option<&Known>) {
    match known {
        Some(known) => {
            task.root_start_boottime_ns = known.root_start_boottime_ns;
            task.root_pid = known.root_pid;
            task.root_state = known.root_state;
        }
        None => {
            task.root_start_boottime_ns = 0;
            task.root_pid = 0;
            task.root_state = if was_full() { root_state::UNKNOWN } else { root_state::NONE };
        }
    }
}

/// The root of a process that execs in a container and is below none.
#[inline(always)]
pub(crate) fn make_root(known: &mut Known, pid: u32, start_boottime_ns: u64) {
    if was_full() || !READY.get(0).is_some_and(|ready| *ready != 0) {
        known.root_state = root_state::UNKNOWN;
        return;
    }
    known.root_pid = pid;
    known.root_start_boottime_ns = start_boottime_ns;
    known.root_state = root_state::KNOWN;
}
