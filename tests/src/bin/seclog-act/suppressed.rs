//! Verdicts that an answer of higher rank keeps from being made: USER_NOTIF and TRACE outrank LOG, and the kernel logs the
//! highest answer only (seccomp_run_filters in kernel/seccomp.c).

use std::ffi::OsString;

use anyhow::{Context as _, Result, ensure};
use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, raise},
        wait::{WaitStatus, waitpid},
    },
    unistd::{ForkResult, fork},
};
use seclog_tests::lab::{
    filters::{for_calls, install},
    seccomp,
};

const EXECVE: u32 = libc::SYS_execve as u32;

pub(crate) fn notify(program: &[OsString]) -> Result<()> {
    seccomp::log(&[libc::SYS_execve])?;
    let filter = for_calls(seccomp::AUDIT_ARCH, &[EXECVE], libc::SECCOMP_RET_USER_NOTIF);
    let listener = install(filter, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)?;
    // SAFETY: one thread; the child executes or ends.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => super::execute(program),
        ForkResult::Parent { child } => {
            // SAFETY: plain integers, zero is a value; the kernel wants it zeroed.
            let mut asked: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the argument is of the type that the request takes.
            Errno::result(unsafe { libc::ioctl(listener, NOTIF_RECV, &raw mut asked) }).context("NOTIF_RECV")?;
            let mut answer = libc::seccomp_notif_resp {
                id: asked.id,
                val: 0,
                error: 0,
                flags: libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
            };
            // SAFETY: as above.
            Errno::result(unsafe { libc::ioctl(listener, NOTIF_SEND, &raw mut answer) }).context("NOTIF_SEND")?;
            ends_well(child)
        }
    }
}

/// SECCOMP_IOCTL_NOTIF_RECV and _SEND (include/uapi/linux/seccomp.h): '!', read and write, sizes 80 and 24.
const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
const NOTIF_SEND: libc::c_ulong = 0xc018_2101;

pub(crate) fn trace(program: &[OsString]) -> Result<()> {
    // SAFETY: one thread; the child executes or ends.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Child => {
            // SAFETY: takes nothing but its request.
            Errno::result(unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) }).context("PTRACE_TRACEME")?;
            raise(Signal::SIGSTOP)?;
            seccomp::log(&[libc::SYS_execve])?;
            install(for_calls(seccomp::AUDIT_ARCH, &[EXECVE], libc::SECCOMP_RET_TRACE), 0)?;
            super::execute(program)
        }
        ForkResult::Parent { child } => {
            waitpid(child, None)?;
            let go_on = |signal: i32| {
                // SAFETY: a stopped tracee of ours; plain numbers.
                Errno::result(unsafe { libc::ptrace(libc::PTRACE_CONT, child.as_raw(), 0, signal) })
            };
            // SAFETY: as above.
            Errno::result(unsafe {
                libc::ptrace(libc::PTRACE_SETOPTIONS, child.as_raw(), 0, libc::PTRACE_O_TRACESECCOMP)
            })
            .context("PTRACE_SETOPTIONS")?;
            go_on(0)?;
            let mut stops = 0;
            loop {
                match waitpid(child, None)? {
                    WaitStatus::PtraceEvent(_, _, libc::PTRACE_EVENT_SECCOMP) => {
                        stops += 1;
                        go_on(0)?;
                    }
                    // The SIGTRAP that follows an execve, and nothing else.
                    WaitStatus::Stopped(..) => drop(go_on(0)?),
                    WaitStatus::Exited(_, code) => {
                        ensure!(code == 0 && stops == 1, "exit code {code}, {stops} stops");
                        return Ok(());
                    }
                    other => anyhow::bail!("{other:?}"),
                }
            }
        }
    }
}

fn ends_well(child: nix::unistd::Pid) -> Result<()> {
    let status = waitpid(child, None)?;
    ensure!(matches!(status, WaitStatus::Exited(_, 0)), "{status:?}");
    Ok(())
}
