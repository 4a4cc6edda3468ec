//! Cgroups of the v2 hierarchy that are made, and processes that are moved between them: so that a container's path is
//! known before anything runs in it, however short it lives, and a move is seen.

use aya_ebpf::{
    helpers::bpf_probe_read_kernel_str_bytes,
    macros::{map, raw_tracepoint},
    maps::PerCpuArray,
    programs::RawTracePointContext,
};
use seclog_abi::{CGROUP_PATH_MAX, Cgroup, kind, program};

use crate::{
    emit::{self, LINEAGE},
    kernel::{self, Pointer, offset},
    known,
};

#[repr(C)]
struct Scratch {
    cgroup: Cgroup,
    path: [u8; CGROUP_PATH_MAX],
}

/// One for each of the two programs: they may interrupt each other.
#[map]
static CGROUP_SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(2, 0);

// match-proto:v5.10:include/trace/events/cgroup.h:cgroup_mkdir(struct cgroup *cgrp, const char *path)
#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
fn cgroup_mkdir(context: RawTracePointContext) -> i32 {
    report(program::CGROUP_MKDIR, kind::CGROUP_MKDIR, 0, context.arg(0), context.arg(1), core::ptr::null());
    0
}

// match-proto:v5.10:include/trace/events/cgroup.h:cgroup_attach_task(struct cgroup *dst_cgrp, const char *path, struct task_struct *task, bool threadgroup)
#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
fn cgroup_attach_task(context: RawTracePointContext) -> i32 {
    report(program::CGROUP_ATTACH, kind::CGROUP_ATTACH, 1, context.arg(0), context.arg(1), context.arg(2));
    0
}

#[inline(always)]
fn report(program: u32, kind: u32, scratch: u32, cgroup: Pointer, path: Pointer, subject: Pointer) {
    let Some(counters) = emit::counters(program) else { return };
    let cgroup_id = kernel::cgroup_id(cgroup);
    if cgroup_id == 0 {
        counters.filtered += 1;
        return;
    }
    let Some(scratch) = CGROUP_SCRATCH.get_ptr_mut(scratch) else { return };
    let header = emit::begin(counters, kind);
    // SAFETY: this CPU's entry, and the program does not interrupt itself on one CPU.
    let scratch = unsafe { &mut *scratch };
    let task = kernel::current();
    scratch.cgroup.header = header;
    kernel::describe_current(task, &mut scratch.cgroup.task);
    let maker = known::get(scratch.cgroup.task.pid, scratch.cgroup.task.start_boottime_ns);
    known::stamp(&mut scratch.cgroup.task, maker.as_deref());
    scratch.cgroup.cgroup_id = cgroup_id;
    scratch.cgroup.subject_pid = kernel::read(subject, offset!(task_tgid)).unwrap_or(0);
    scratch.cgroup.subject_start_boottime_ns = if subject.is_null() { 0 } else { kernel::start_boottime_ns(subject) };
    // SAFETY: the helper checks `path`.
    let length = match unsafe { bpf_probe_read_kernel_str_bytes(path, &mut scratch.path) } {
        Ok(text) if text.len() < CGROUP_PATH_MAX => text.len(),
        _ => 0,
    };
    scratch.cgroup.path_len = length as u32;
    // SAFETY: the path lies behind the fixed part.
    unsafe {
        emit::submit_bytes(&LINEAGE, counters, core::ptr::from_ref(scratch).cast(), size_of::<Cgroup>() + length);
    }
}
