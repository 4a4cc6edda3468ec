//! Seccomp filters for the rarer cases: other ABIs, ranges of numbers, answers other than LOG.

use std::io;

use anyhow::{Context as _, Result};

use super::seccomp::AUDIT_ARCH;

/// AUDIT_ARCH_I386 (include/uapi/linux/audit.h): what `int 0x80` counts as, from 64-bit code too.
pub const AUDIT_ARCH_I386: u32 = 0x4000_0003;

/// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// A filter that answers `action` for these calls and allows all others.
pub fn for_calls(architecture: u32, numbers: &[u32], action: u32) -> Vec<libc::sock_filter> {
    let mut program = only_of(architecture);
    for number in numbers {
        program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, *number));
        program.push(answer(action));
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program
}

/// A filter that answers `action` for numbers from `first` on, taken without sign (so -1 is the highest), and allows all
/// others.
pub fn from_number(first: u32, action: u32) -> Vec<libc::sock_filter> {
    let mut program = only_of(AUDIT_ARCH);
    program.push(step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, first));
    program.extend([answer(action), answer(libc::SECCOMP_RET_ALLOW)]);
    program
}

/// Puts a filter on this thread and what it starts from now on; what seccomp(2) returned (with
/// SECCOMP_FILTER_FLAG_NEW_LISTENER a descriptor).
pub fn install(mut program: Vec<libc::sock_filter>, flags: libc::c_ulong) -> Result<i32> {
    nix::sys::prctl::set_no_new_privs().context("no_new_privs")?;
    let header =
        libc::sock_fprog { len: u16::try_from(program.len()).context("length")?, filter: program.as_mut_ptr() };
    // SAFETY: `header` points at `program`, which lives until after the call; the kernel copies it.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const header) };
    if result < 0 {
        return Err(io::Error::last_os_error()).context("seccomp(SECCOMP_SET_MODE_FILTER)");
    }
    Ok(i32::try_from(result)?)
}

/// Leaves the number in the accumulator, for calls of this architecture; allows those of others.
fn only_of(architecture: u32) -> Vec<libc::sock_filter> {
    vec![
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, ARCHITECTURE),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, 0, architecture),
        answer(libc::SECCOMP_RET_ALLOW),
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, NUMBER),
    ]
}

fn answer(action: u32) -> libc::sock_filter {
    step(libc::BPF_RET | libc::BPF_K, 0, 0, action)
}

fn step(code: u32, yes: u8, no: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: yes, jf: no, k }
}
