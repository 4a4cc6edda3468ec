//! The life of processes: fork, exec, exit. Threads are not processes and are left out here.

use aya_ebpf::{
    helpers::{bpf_probe_read_kernel_str_bytes, generated::bpf_probe_read_user},
    macros::{map, raw_tracepoint},
    maps::PerCpuArray,
    programs::RawTracePointContext,
};
use seclog_abi::{ARGV_MAX, Exec, Exit, Fork, PATH_MAX, kind, program};

use crate::{
    emit::{self, LINEAGE},
    kernel::{self, Pointer, offset},
};

// match-proto:v5.10:include/trace/events/sched.h:sched_process_fork(struct task_struct *parent, struct task_struct *child)
#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn sched_process_fork(context: RawTracePointContext) -> i32 {
    let child: Pointer = context.arg(1);
    let (pid, tgid) = (kernel::read::<u32>(child, offset!(task_pid)), kernel::read::<u32>(child, offset!(task_tgid)));
    let (Some(pid), Some(tgid)) = (pid, tgid) else { return 0 };
    if pid != tgid {
        return 0;
    }
    let Some(counters) = emit::counters(program::FORK) else { return 0 };
    let header = emit::begin(counters, kind::FORK);
    let task = kernel::current();
    let child_start_boottime_ns = kernel::read(child, offset!(task_start_boottime)).unwrap_or(0);
    emit::submit::<Fork>(&LINEAGE, counters, |record| {
        // SAFETY: reserved memory of the record's size; every field is written.
        unsafe {
            (*record).header = header;
            kernel::describe_current(task, &mut (*record).task);
            (*record).child_start_boottime_ns = child_start_boottime_ns;
            (*record).child_pid = pid;
            (*record).reserved = 0;
        }
    });
    0
}

// match-proto:v5.10:include/trace/events/sched.h:sched_process_exit(struct task_struct *p)
#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn sched_process_exit(context: RawTracePointContext) -> i32 {
    let task: Pointer = context.arg(0);
    // do_exit counts signal->live down before this tracepoint: 0 means that no other thread is left.
    let signal: Pointer = kernel::read(task, offset!(task_signal)).unwrap_or(core::ptr::null());
    if kernel::read::<i32>(signal, offset!(signal_live)).unwrap_or(0) != 0 {
        return 0;
    }
    let Some(counters) = emit::counters(program::EXIT) else { return 0 };
    let header = emit::begin(counters, kind::EXIT);
    let exit_code = kernel::read(task, offset!(task_exit_code)).unwrap_or(-1);
    emit::submit::<Exit>(&LINEAGE, counters, |record| {
        // SAFETY: reserved memory of the record's size; every field is written.
        unsafe {
            (*record).header = header;
            kernel::describe_current(task, &mut (*record).task);
            (*record).exit_code = exit_code;
            (*record).reserved = 0;
        }
    });
    0
}

/// Room for one exec record, whose three texts follow each other without gaps. The slack lets the verifier see that
/// each text fits at the largest offset it could begin at.
#[repr(C)]
struct Scratch {
    exec: Exec,
    text: [u8; PATH_MAX * 2 + ARGV_MAX],
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

// match-proto:v5.10:include/trace/events/sched.h:sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn sched_process_exec(context: RawTracePointContext) -> i32 {
    let Some(counters) = emit::counters(program::EXEC) else { return 0 };
    let header = emit::begin(counters, kind::EXEC);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's entry, and the program does not interrupt itself on one CPU.
    let scratch = unsafe { &mut *scratch };
    let task = kernel::current();
    let old_tid = context.arg::<i32>(1) as u32;
    let bprm: Pointer = context.arg(2);

    scratch.exec.header = header;
    kernel::describe_current(task, &mut scratch.exec.task);
    scratch.exec.old_tid = old_tid;

    let filename = kernel::read(bprm, offset!(bprm_filename)).unwrap_or(core::ptr::null());
    let filename_len = path(filename, scratch, 0);
    let interpreter = kernel::read(bprm, offset!(bprm_interp)).unwrap_or(core::ptr::null());
    let interpreter_len = path(interpreter, scratch, filename_len);
    let (argv_len, argv_total) = argv(task, scratch, filename_len + interpreter_len);
    scratch.exec.filename_len = filename_len as u32;
    scratch.exec.interpreter_len = interpreter_len as u32;
    scratch.exec.argv_len = argv_len as u32;
    scratch.exec.argv_total = argv_total;

    let length = size_of::<Exec>() + filename_len + interpreter_len + argv_len;
    // SAFETY: the texts lie one behind the other behind the fixed part.
    unsafe { emit::submit_bytes(&LINEAGE, counters, core::ptr::from_ref(scratch).cast(), length) };
    0
}

/// Reads a path to `scratch.text[at..]`; its length without the NUL, 0 when it cannot be read.
#[inline(always)]
fn path(from: Pointer, scratch: &mut Scratch, at: usize) -> usize {
    if from.is_null() || at > PATH_MAX {
        return 0;
    }
    // SAFETY: at + PATH_MAX is within text by the line above; the helper checks `from`.
    unsafe {
        let into = core::slice::from_raw_parts_mut(scratch.text.as_mut_ptr().add(at), PATH_MAX);
        match bpf_probe_read_kernel_str_bytes(from, into) {
            Ok(text) if text.len() < PATH_MAX => text.len(),
            _ => 0,
        }
    }
}

/// Reads argv as it lies in the new program's memory, in one piece from arg_start to arg_end. execve has just written
/// it, so its pages are there.
#[inline(always)]
fn argv(task: Pointer, scratch: &mut Scratch, at: usize) -> (usize, u64) {
    let mm: Pointer = kernel::read(task, offset!(task_mm)).unwrap_or(core::ptr::null());
    let start = kernel::read::<u64>(mm, offset!(mm_arg_start)).unwrap_or(0);
    let end = kernel::read::<u64>(mm, offset!(mm_arg_end)).unwrap_or(0);
    if start == 0 || end <= start || at > PATH_MAX * 2 {
        return (0, 0);
    }
    let total = end - start;
    let length = if total > ARGV_MAX as u64 { ARGV_MAX } else { total as usize };
    // SAFETY: at + length is within text; the helper checks the user address and returns an error instead of faulting.
    let result = unsafe {
        bpf_probe_read_user(scratch.text.as_mut_ptr().add(at).cast(), length as u32, start as *const core::ffi::c_void)
    };
    if result == 0 { (length, total) } else { (0, total) }
}
