//! A seccomp filter that logs some system calls and allows all.

use std::io;

use anyhow::{Context as _, Result, bail};

/// What the kernel calls this machine's calling convention (include/uapi/linux/audit.h).
#[cfg(target_arch = "x86_64")]
pub const AUDIT_ARCH: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
pub const AUDIT_ARCH: u32 = 0xc000_00b7;

/// Offsets in struct seccomp_data (include/uapi/linux/seccomp.h).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

/// The filter's program: load the architecture, leave if it is another one; load the number, compare with each.
fn program(syscalls: &[i64]) -> Result<Vec<libc::sock_filter>> {
    let load = |offset| instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, offset);
    let jump = |value, yes, no| instruction(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, yes, no, value);
    let answer = |action| instruction(libc::BPF_RET | libc::BPF_K, 0, 0, action);

    // Jumps are relative and eight bits wide; the distance to the last instruction grows with each call.
    let Ok(count) = u8::try_from(syscalls.len()) else { bail!("more than 255 system calls to log") };
    let mut program = vec![load(ARCHITECTURE), jump(AUDIT_ARCH, 1, 0), answer(libc::SECCOMP_RET_ALLOW), load(NUMBER)];
    for (index, number) in syscalls.iter().enumerate() {
        let to_log = count - index as u8;
        program.push(jump(u32::try_from(*number).context("a system call's number")?, to_log, 0));
    }
    program.push(answer(libc::SECCOMP_RET_ALLOW));
    program.push(answer(libc::SECCOMP_RET_LOG));
    Ok(program)
}

fn instruction(code: u32, yes: u8, no: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code: code as u16, jt: yes, jf: no, k }
}

/// Puts the filter on this thread and all it starts from now on. Sets no_new_privs, which also lets a user without
/// capabilities do so.
pub fn log(syscalls: &[i64]) -> Result<()> {
    nix::sys::prctl::set_no_new_privs().context("no_new_privs")?;
    let mut program = program(syscalls)?;
    let header = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: `header` points at `program`, which lives until after the call; the kernel copies it. The filter allows
    // every system call, so none that Rust relies on changes its meaning.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const header) };
    if result != 0 {
        return Err(io::Error::last_os_error()).context("seccomp(SECCOMP_SET_MODE_FILTER)");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::program;

    /// What the kernel's interpreter would answer (kernel/seccomp.c), for the instructions used here.
    fn run(program: &[libc::sock_filter], number: u32, architecture: u32) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let instruction = program[at];
            match u32::from(instruction.code) & 7 {
                libc::BPF_LD => accumulator = if instruction.k == 0 { number } else { architecture },
                libc::BPF_RET => return instruction.k,
                _ if accumulator == instruction.k => at += usize::from(instruction.jt),
                _ => at += usize::from(instruction.jf),
            }
            at += 1;
        }
    }

    #[test]
    fn only_the_named_calls_of_this_architecture_are_logged() {
        let program = program(&[libc::SYS_getppid, libc::SYS_execve, libc::SYS_execveat]).unwrap();
        for number in 0..500 {
            let named = [libc::SYS_getppid, libc::SYS_execve, libc::SYS_execveat].contains(&i64::from(number));
            let expected = if named { libc::SECCOMP_RET_LOG } else { libc::SECCOMP_RET_ALLOW };
            assert_eq!(run(&program, number, super::AUDIT_ARCH), expected, "system call {number}");
            assert_eq!(run(&program, number, 0x4000_0003), libc::SECCOMP_RET_ALLOW, "system call {number} of i386");
        }
    }
}
