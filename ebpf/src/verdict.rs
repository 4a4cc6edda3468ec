//! Seccomp verdicts: `audit_seccomp` is called for each decision that the kernel logs, whether or not anybody listens.
//!
//! One body, two ways in: fentry where the kernel allows tracing programs, kprobe where it has kprobes.

use aya_ebpf::{
    EbpfContext,
    macros::{fentry, kprobe},
    programs::{FEntryContext, ProbeContext},
};
use seclog_abi::{ABSENT, Verdict, kind, program};

use crate::{
    emit::{self, VERDICTS},
    kernel::{self, Pointer, offset},
};

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
    let instruction_pointer = kernel::user_instruction_pointer(context);
    let compat = compat(task);
    emit::submit::<Verdict>(&VERDICTS, counters, |record| {
        // SAFETY: reserved memory of the record's size; every field is written.
        unsafe {
            (*record).header = header;
            kernel::describe_current(task, &mut (*record).task);
            (*record).syscall = syscall;
            (*record).signal = signal;
            (*record).instruction_pointer = instruction_pointer;
            (*record).code = code;
            (*record).compat = compat;
        }
    });
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
