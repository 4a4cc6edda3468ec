//! Seccomp verdicts: `audit_seccomp` is called for each decision that the kernel logs, whether or not anybody listens.
//!
//! One body, two ways in: fentry where the kernel allows tracing programs, kprobe where it has kprobes. When the ring is
//! full, what is lost is a verdict's own record, never its count: it is counted by what it shares with others.

use aya_ebpf::{
    EbpfContext,
    macros::{fentry, kprobe, map},
    maps::{Array, PerCpuHashMap},
    programs::{FEntryContext, ProbeContext},
};
use seclog_abi::{ABSENT, Counters, OverflowCount, OverflowKey, Task, Verdict, kind, program};

use crate::{
    emit::{self, VERDICTS},
    kernel::{self, Pointer, offset},
    known,
};

/// Which of the two overflow maps is written: the agent reads and empties the other.
#[map]
static OVERFLOW_TURN: Array<u32> = Array::with_max_entries(1, 0);

#[map]
static OVERFLOW_EVEN: PerCpuHashMap<OverflowKey, OverflowCount> = PerCpuHashMap::with_max_entries(4096, 0);

#[map]
static OVERFLOW_ODD: PerCpuHashMap<OverflowKey, OverflowCount> = PerCpuHashMap::with_max_entries(4096, 0);

// match-proto:v5.10:kernel/auditsc.c:void audit_seccomp(unsigned long syscall, long signr, int code)
#[fentry(function = "audit_seccomp")]
fn audit_seccomp_fentry(context: FEntryContext) -> i32 {
    report(&context, context.arg::<u64>(0) as i64, context.arg::<i64>(1), context.arg::<i32>(2) as u32);
    0
}

// match-proto:v5.10:kernel/auditsc.c:void audit_seccomp(unsigned long syscall, long signr, int code)
#[kprobe(function = "audit_seccomp")]
fn audit_seccomp_kprobe(context: ProbeContext) -> u32 {
    let (syscall, signal, code) = (context.arg::<u64>(0), context.arg::<i64>(1), context.arg::<i32>(2));
    if let (Some(syscall), Some(signal), Some(code)) = (syscall, signal, code) {
        report(&context, syscall as i64, signal, code as u32);
    }
    0
}

#[inline(always)]
fn report(context: &impl EbpfContext, syscall: i64, signal: i64, code: u32) {
    let Some(counters) = emit::counters(program::VERDICT) else { return };
    let header = emit::begin(counters, kind::VERDICT);
    let task = kernel::current();
    let compat = compat(task);
    let submitted = emit::submit::<Verdict>(&VERDICTS, counters, |record| {
        // SAFETY: reserved memory of the record's size; every field is written.
        unsafe {
            (*record).header = header;
            describe(task, &mut (*record).task);
            (*record).syscall = syscall;
            (*record).signal = signal;
            (*record).instruction_pointer = kernel::user_instruction_pointer(context);
            (*record).code = code;
            (*record).compat = compat;
        }
    });
    if !submitted {
        // SAFETY: a helper without arguments.
        let cgroup_id = unsafe { aya_ebpf::helpers::bpf_get_current_cgroup_id() };
        let key = OverflowKey { cgroup_id, syscall, code, compat };
        count_overflow(&key, task, header.time_boot_ns, counters);
    }
}

#[inline(always)]
fn describe(task: Pointer, into: &mut Task) {
    kernel::describe_current(task, into);
    known::stamp(into, known::get(into.pid, into.start_boottime_ns).as_deref());
}

#[inline(always)]
fn count_overflow(key: &OverflowKey, task: Pointer, now: u64, counters: &mut Counters) {
    let odd = OVERFLOW_TURN.get(0).is_some_and(|turn| *turn & 1 == 1);
    let map = if odd { &OVERFLOW_ODD } else { &OVERFLOW_EVEN };
    if let Some(count) = map.get_ptr_mut(key) {
        // SAFETY: this CPU's own value, and the program does not interrupt itself on one CPU.
        unsafe {
            // A key that another CPU made is here with zeros.
            if (*count).count == 0 {
                (*count).first_boot_ns = now;
                describe(task, &mut (*count).sample);
            }
            (*count).count += 1;
            (*count).last_boot_ns = now;
        }
        counters.aggregated += 1;
        return;
    }
    let mut first = OverflowCount { count: 1, first_boot_ns: now, last_boot_ns: now, ..OverflowCount::default() };
    describe(task, &mut first.sample);
    match map.insert(key, &first, 0) {
        Ok(()) => counters.aggregated += 1,
        Err(_) => counters.dropped += 1,
    }
}

#[inline(always)]
fn compat(task: Pointer) -> u32 {
    let word = offset!(task_compat_word);
    if word == ABSENT {
        return 2;
    }
    match kernel::read::<u32>(task, word) {
        Some(value) => u32::from(value & offset!(task_compat_mask) != 0),
        None => 2,
    }
}
