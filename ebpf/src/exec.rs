//! Programs that start: paths, argv whole up to its limit, and for session roots the wanted environment variables.

use aya_ebpf::{
    helpers::{
        bpf_probe_read_kernel_str_bytes,
        generated::{bpf_probe_read_user, bpf_probe_read_user_str},
    },
    macros::{map, raw_tracepoint},
    maps::{PerCpuArray, ProgramArray},
    programs::RawTracePointContext,
};
use seclog_abi::{
    ARGV_MAX, Counters, ENVIRONMENT_TURNS, Exec, Known, PATH_MAX, VARIABLE_MAX, WANTED_MAX, Wanted, environment, kind,
    program, root_state,
};

use crate::{
    emit::{self, LINEAGE},
    kernel::{self, Pointer, offset},
    known,
};

/// Room for one variable in the search. The helper copies up to the NUL only, so length costs nothing where it is not used.
const VARIABLE_ROOM: usize = 4096;

/// Most bytes that the wanted variables of one program take.
const ENVIRONMENT_MAX: usize = VARIABLE_MAX * WANTED_MAX;

/// Room for one exec record, whose texts follow each other without gaps, so each may begin at any offset up to the sum of
/// the limits before it.
#[repr(C)]
struct Scratch {
    exec: Exec,
    text: [u8; PATH_MAX * 2 + ARGV_MAX + ENVIRONMENT_MAX],
    variable: [u8; VARIABLE_ROOM],
    /// User addresses of the wanted variables; 0: not found.
    found: [u64; WANTED_MAX],
    found_count: u64,
    /// Bytes of paths and argv together.
    texts: usize,
    /// Of the search: where it is, where it ends, and whether it is in the middle of a variable.
    next: u64,
    end: u64,
    in_variable: u64,
    hidden: u64,
    is_root: u64,
}

/// What runs behind [`sched_process_exec`]: 0 is [`exec_environment`].
#[map]
static TAILS: ProgramArray = ProgramArray::with_max_entries(1, 0);

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

// match-proto:v5.10:include/trace/events/sched.h:sched_process_exec(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn sched_process_exec(context: RawTracePointContext) -> i32 {
    let Some(counters) = emit::counters(program::EXEC) else { return 0 };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's entry, and the program does not interrupt itself on one CPU.
    let scratch = unsafe { &mut *scratch };
    let task = kernel::current();
    if !place(task, scratch, counters) {
        counters.filtered += 1;
        return 0;
    }
    scratch.exec.header = emit::begin(counters, kind::EXEC);
    kernel::describe_current(task, &mut scratch.exec.task);
    scratch.exec.old_tid = context.arg::<i32>(1) as u32;

    let bprm: Pointer = context.arg(2);
    let filename_len = path(kernel::pointer(bprm, offset!(bprm_filename)), scratch, 0);
    let interpreter_len = path(kernel::pointer(bprm, offset!(bprm_interp)), scratch, filename_len);
    let mm = kernel::pointer(task, offset!(task_mm));
    let (argv_len, argv_total) = argv(mm, scratch, filename_len + interpreter_len);
    scratch.exec.filename_len = filename_len as u32;
    scratch.exec.interpreter_len = interpreter_len as u32;
    scratch.exec.argv_len = argv_len as u32;
    scratch.exec.argv_total = argv_total;
    scratch.exec.environment_len = 0;
    scratch.exec.environment_state = environment::SKIPPED;
    scratch.texts = filename_len + interpreter_len + argv_len;
    if scratch.is_root != 0 {
        scratch.exec.environment_state = environment::PART;
        // Does not come back when it works.
        // SAFETY: the context is this program's own.
        unsafe { TAILS.tail_call(&context, 0) };
    }
    submit(scratch, counters);
    0
}

/// Goes on where [`sched_process_exec`] has found a session root. A program of its own because the verifier walks the
/// search anew for each state that it can begin in, and at the end of that program there are many.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn exec_environment(_context: RawTracePointContext) -> i32 {
    let Some(counters) = emit::counters(program::EXEC) else { return 0 };
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return 0 };
    // SAFETY: this CPU's entry, and nothing runs between the two programs.
    let scratch = unsafe { &mut *scratch };
    search(kernel::pointer(kernel::current(), offset!(task_mm)), scratch);
    scratch.exec.environment_len = copy_found(scratch, scratch.texts) as u32;
    submit(scratch, counters);
    0
}

#[inline(always)]
fn submit(scratch: &Scratch, counters: &mut Counters) {
    let texts = scratch.texts;
    let environment = scratch.exec.environment_len as usize;
    if texts > PATH_MAX * 2 + ARGV_MAX || environment > ENVIRONMENT_MAX {
        // The verifier wants the bound; the sums above keep it.
        counters.dropped += 1;
        return;
    }
    // SAFETY: the texts lie one behind the other behind the fixed part, and are no longer than their room.
    unsafe {
        let length = size_of::<Exec>() + texts + environment;
        emit::submit_bytes(&LINEAGE, counters, core::ptr::from_ref(scratch).cast(), length);
    }
}

/// Whether the process matters; its root goes into the record, and whether this exec makes it one into the scratch.
#[inline(always)]
fn place(task: Pointer, scratch: &mut Scratch, counters: &mut Counters) -> bool {
    scratch.is_root = 0;
    scratch.found = [0; WANTED_MAX];
    scratch.found_count = 0;
    let pid = (aya_ebpf::helpers::bpf_get_current_pid_tgid() >> 32) as u32;
    let start_boottime_ns = kernel::start_boottime_ns(task);
    let mut is_known = known::get(pid, start_boottime_ns);
    if is_known.is_none() {
        if !known::in_scope() && !known::in_known_namespace(task) {
            return false;
        }
        known::insert(pid, &Known { start_boottime_ns, ..Known::default() }, counters);
        is_known = known::get(pid, start_boottime_ns);
    }
    if let Some(known) = &mut is_known
        && known.root_state == root_state::NONE
        && known::in_container(task)
    {
        known::make_root(known, pid, start_boottime_ns);
        known::remember_namespace(task);
        scratch.is_root = 1;
    }
    known::stamp(&mut scratch.exec.task, is_known.as_deref());
    true
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
fn argv(mm: Pointer, scratch: &mut Scratch, at: usize) -> (usize, u64) {
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

/// Copies the variables that were found to `scratch.text[at..]`; the bytes they take.
#[inline(always)]
fn copy_found(scratch: &mut Scratch, at: usize) -> usize {
    let mut length = 0usize;
    for index in 0..WANTED_MAX {
        let address = scratch.found[index];
        if index as u64 >= scratch.found_count
            || at > PATH_MAX * 2 + ARGV_MAX
            || length > ENVIRONMENT_MAX - VARIABLE_MAX
        {
            continue;
        }
        // SAFETY: at + length + VARIABLE_MAX is within text by the conditions above; the helper checks the user address.
        let read = unsafe {
            bpf_probe_read_user_str(
                scratch.text.as_mut_ptr().add(at + length).cast(),
                VARIABLE_MAX as u32,
                address as *const core::ffi::c_void,
            )
        };
        if read > 0 {
            length += VARIABLE_MAX;
        }
    }
    length
}

const _: () = assert!(WANTED_MAX == 4, "search() compares with four names");

/// Finds variables of the wanted names, and says how far it looked.
///
/// A turn branches as little as it can: every way through it is a state that the verifier must tell from the others.
#[inline(always)]
fn search(mm: Pointer, scratch: &mut Scratch) {
    // Kept in memory, not in registers, and so unknown to the verifier in every turn alike.
    scratch.next = kernel::read::<u64>(mm, offset!(mm_env_start)).unwrap_or(0);
    scratch.end = kernel::read::<u64>(mm, offset!(mm_env_end)).unwrap_or(0);
    scratch.in_variable = 0;
    let search: *mut Scratch = scratch;
    for _ in 0..ENVIRONMENT_TURNS {
        // SAFETY: this CPU's entry; volatile, so that the compiler does not keep it in registers either.
        let (next, end, in_variable) = unsafe {
            (
                core::ptr::read_volatile(&raw const (*search).next),
                core::ptr::read_volatile(&raw const (*search).end),
                core::ptr::read_volatile(&raw const (*search).in_variable),
            )
        };
        if next >= end {
            scratch.exec.environment_state = environment::WHOLE;
            return;
        }
        // SAFETY: the room is as long as said; the helper checks the user address.
        let read = unsafe {
            bpf_probe_read_user_str(
                scratch.variable.as_mut_ptr().cast(),
                VARIABLE_ROOM as u32,
                next as *const core::ffi::c_void,
            )
        };
        if read <= 0 {
            break;
        }
        let words: *const u64 = scratch.variable.as_ptr().cast();
        // SAFETY: 32 bytes of a longer array that is aligned as the words are.
        let (first, second, third, fourth) =
            unsafe { (words.read(), words.add(1).read(), words.add(2).read(), words.add(3).read()) };
        // The product is 0 when one of them is, and in a few cases more: the agent looks again.
        let differs = [wanted(0), wanted(1), wanted(2), wanted(3)].map(|name| {
            (first & name.masks[0] ^ name.words[0])
                | (second & name.masks[1] ^ name.words[1])
                | (third & name.masks[2] ^ name.words[2])
                | (fourth & name.masks[3] ^ name.words[3])
        });
        let product = differs[0].wrapping_mul(differs[1]).wrapping_mul(differs[2]).wrapping_mul(differs[3]);
        // Always written, and kept only when it is a hit: BPF can turn a condition into a number by a branch only, and a
        // branch that comes back into the loop is one that the verifier follows in every turn.
        let slot = scratch.found_count as usize % WANTED_MAX;
        scratch.found[slot] = next;
        scratch.found_count += 1 - is_not_zero(product | in_variable, &mut scratch.hidden);
        // A variable longer than the room is read in pieces, and only the first piece can begin with a name.
        let cut = read as u64 / VARIABLE_ROOM as u64;
        // SAFETY: as above.
        unsafe {
            core::ptr::write_volatile(&raw mut (*search).next, next + read as u64 - cut);
            core::ptr::write_volatile(&raw mut (*search).in_variable, cut);
        }
    }
    scratch.exec.environment_state = environment::PART;
}

/// 0 for 0, else 1, without a branch. The way through memory hides from the compiler what this is.
#[inline(always)]
fn is_not_zero(value: u64, hidden: &mut u64) -> u64 {
    let hidden: *mut u64 = hidden;
    // SAFETY: a pointer made from a reference.
    unsafe {
        core::ptr::write_volatile(hidden, value);
        (core::ptr::read_volatile(hidden) | core::ptr::read_volatile(hidden).wrapping_neg()) >> 63
    }
}

#[inline(always)]
fn wanted(index: usize) -> Wanted {
    // SAFETY: a plain static and an index below its length; volatile because the loader rewrites it.
    unsafe { core::ptr::read_volatile((&raw const kernel::SETTINGS.wanted).cast::<Wanted>().add(index)) }
}
