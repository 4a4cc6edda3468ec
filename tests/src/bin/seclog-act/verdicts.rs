//! Verdicts of kinds that a plain load does not make.

use anyhow::{Context as _, Result};
use clap::Subcommand;
use nix::{
    sys::wait::waitpid,
    unistd::{ForkResult, Uid, fork, setresuid},
};
use seclog_tests::lab::{
    filters::{AUDIT_ARCH_I386, for_calls, from_number, install},
    seccomp,
};

#[derive(Debug, Subcommand)]
pub(crate) enum Act {
    /// Call this many system calls that do not exist, each with a number of its own from `first` on
    Numbers { first: u32, count: u32 },
    /// Call system call -1
    MinusOne,
    /// Call getppid once in each ABI of this machine: 64-bit, 32-bit (int 0x80), x32
    Abis,
    /// Processes one after the other, each with a name and a user of its own and one verdict
    Reuse { count: u32 },
    /// Processes one after the other that do nothing, then such that call getppid once; with `--alive` the latter stay
    /// until told
    Forks {
        idle: u32,
        calls: u32,
        #[arg(long)]
        alive: bool,
    },
    /// Call getppid in turns; before each it waits to be told
    Turns { turns: u32, calls: u32 },
}

// === impl Act ===

impl Act {
    pub(crate) fn run(self) -> Result<()> {
        match self {
            Self::Numbers { first, count } => {
                install(from_number(1000, libc::SECCOMP_RET_LOG), 0)?;
                for number in first..first + count {
                    call(i64::from(number));
                }
            }
            Self::MinusOne => {
                install(from_number(u32::MAX, libc::SECCOMP_RET_LOG), 0)?;
                call(-1);
            }
            Self::Abis => abis()?,
            Self::Reuse { count } => {
                seccomp::log(&[libc::SYS_getppid])?;
                (0..count).try_for_each(reuse)?;
            }
            Self::Forks { idle, calls, alive } => forks(idle, calls, alive)?,
            Self::Turns { turns, calls } => {
                seccomp::log(&[libc::SYS_getppid])?;
                for _ in 0..turns {
                    super::wait_to_be_told()?;
                    (0..calls).for_each(|_| call(libc::SYS_getppid));
                }
            }
        }
        Ok(())
    }
}

/// Whatever it returns is of no interest.
fn call(number: i64) {
    // SAFETY: getppid, or a number that the kernel does not know.
    unsafe { libc::syscall(number) };
}

#[cfg(target_arch = "x86_64")]
fn abis() -> Result<()> {
    const GETPPID_I386: u32 = 64;
    const GETPPID_X32: u32 = libc::SYS_getppid as u32 | 0x4000_0000;
    install(for_calls(seccomp::AUDIT_ARCH, &[libc::SYS_getppid as u32, GETPPID_X32], libc::SECCOMP_RET_LOG), 0)?;
    install(for_calls(AUDIT_ARCH_I386, &[GETPPID_I386], libc::SECCOMP_RET_LOG), 0)?;
    call(libc::SYS_getppid);
    // SAFETY: getppid of the 32-bit ABI takes nothing; the kernel keeps all registers but rax (and r8 to r11).
    unsafe {
        std::arch::asm!(
            "int 0x80",
            inlateout("eax") GETPPID_I386 => _,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    call(i64::from(GETPPID_X32));
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn abis() -> Result<()> {
    anyhow::bail!("only x86-64 has these")
}

fn reuse(index: u32) -> Result<()> {
    // SAFETY: one thread; the child calls what is safe after fork and ends.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => {
            waitpid(child, None)?;
        }
        ForkResult::Child => {
            let name = format!("reuse-{index}\0");
            // SAFETY: a NUL-terminated name; prctl(2) copies it.
            unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
            let user = Uid::from_raw(10_000 + index);
            let failed = setresuid(user, user, user).is_err();
            call(libc::SYS_getppid);
            // SAFETY: ends this process without running anything of the parent's.
            unsafe { libc::_exit(i32::from(failed)) };
        }
    }
    Ok(())
}

fn forks(idle: u32, calls: u32, alive: bool) -> Result<()> {
    seccomp::log(&[libc::SYS_getppid])?;
    super::wait_to_be_told()?;
    let mut living = Vec::new();
    for index in 0..idle + calls {
        // SAFETY: one thread; the child calls what is safe after fork and ends.
        match unsafe { fork() }.context("fork")? {
            ForkResult::Parent { child } if alive => living.push(child),
            ForkResult::Parent { child } => {
                waitpid(child, None)?;
            }
            ForkResult::Child => {
                if index >= idle {
                    call(libc::SYS_getppid);
                }
                if alive {
                    nix::unistd::pause();
                }
                // SAFETY: ends this process without running anything of the parent's.
                unsafe { libc::_exit(0) };
            }
        }
    }
    if alive {
        super::wait_to_be_told()?;
        for child in living {
            nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL)?;
            waitpid(child, None)?;
        }
    }
    Ok(())
}
