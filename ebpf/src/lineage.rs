//! The life of processes that matter: fork, exit, and where they are moved. Threads are not processes and are left out.

use aya_ebpf::{macros::raw_tracepoint, programs::RawTracePointContext};
use seclog_abi::{Exit, Fork, Known, kind, program};

use crate::{
    emit::{self, LINEAGE},
    kernel::{self, Pointer, offset},
    known,
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
    let task = kernel::current();
    let parent_pid = (aya_ebpf::helpers::bpf_get_current_pid_tgid() >> 32) as u32;
    let creator = known::get(parent_pid, kernel::start_boottime_ns(task));
    if creator.is_none() && !known::in_scope() {
        counters.filtered += 1;
        return 0;
    }
    let child_start_boottime_ns = kernel::read(child, offset!(task_start_boottime)).unwrap_or(0);
    let inherited = match &creator {
        Some(creator) => Known { start_boottime_ns: child_start_boottime_ns, ..**creator },
        None => Known { start_boottime_ns: child_start_boottime_ns, ..Known::default() },
    };
    known::insert(pid, &inherited, counters);

    let header = emit::begin(counters, kind::FORK);
    let submitted = emit::submit::<Fork>(&LINEAGE, counters, |record| {
        // SAFETY: reserved memory of the record's size; every field is written.
        unsafe {
            (*record).header = header;
            kernel::describe_current(task, &mut (*record).task);
            known::stamp(&mut (*record).task, creator.as_deref());
            (*record).child_start_boottime_ns = child_start_boottime_ns;
            (*record).child_pid = pid;
            (*record).reserved = 0;
        }
    });
    if !submitted {
        counters.dropped += 1;
    }
    0
}

// match-proto:v5.10:include/trace/events/sched.h:sched_process_exit(struct task_struct *p)
#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn sched_process_exit(context: RawTracePointContext) -> i32 {
    let task: Pointer = context.arg(0);
    // do_exit counts signal->live down before this tracepoint: 0 means that no other thread is left. Threads that end at
    // the same time can all find 0.
    let signal = kernel::pointer(task, offset!(task_signal));
    if kernel::read::<i32>(signal, offset!(signal_live)).unwrap_or(0) != 0 {
        return 0;
    }
    let Some(counters) = emit::counters(program::EXIT) else { return 0 };
    let pid = (aya_ebpf::helpers::bpf_get_current_pid_tgid() >> 32) as u32;
    // A copy: the map's own entry is another process's as soon as it is removed.
    let known = known::get(pid, kernel::start_boottime_ns(task)).map(|known| *known);
    match known {
        // Of threads that end at the same time, the one that removes it tells.
        Some(_) if !known::remove(pid) => return 0,
        None if !known::in_scope() => {
            counters.filtered += 1;
            return 0;
        }
        _ => {}
    }
    let header = emit::begin(counters, kind::EXIT);
    let exit_code = kernel::read(task, offset!(task_exit_code)).unwrap_or(-1);
    let submitted = emit::submit::<Exit>(&LINEAGE, counters, |record| {
        // SAFETY: reserved memory of the record's size; every field is written.
        unsafe {
            (*record).header = header;
            kernel::describe_current(task, &mut (*record).task);
            known::stamp(&mut (*record).task, known.as_ref());
            (*record).exit_code = exit_code;
            (*record).reserved = 0;
        }
    });
    if !submitted {
        counters.dropped += 1;
    }
    0
}
