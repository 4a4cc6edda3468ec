//! Takes the audit socket away from another process, by making it call close(2).

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{errno::Errno, sys::wait::waitpid, unistd::Pid};

/// The descriptor of the process's socket that has joined the audit multicast group.
fn audit_descriptor(pid: i32) -> Result<u64> {
    // sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode; 9 is NETLINK_AUDIT.
    let table = fs::read_to_string(format!("/proc/{pid}/net/netlink"))?;
    let inodes: Vec<String> = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .filter(|fields| fields.get(1) == Some(&"9") && fields.get(3) == Some(&"00000001"))
        .filter_map(|fields| Some(format!("socket:[{}]", fields.get(9)?)))
        .collect();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))?.flatten() {
        let target = fs::read_link(entry.path()).unwrap_or_default();
        if inodes.iter().any(|inode| target == Path::new(inode)) {
            return entry.file_name().to_str().context("a number")?.parse().context("a number");
        }
    }
    bail!("process {pid} listens to no audit records")
}

#[cfg(target_arch = "x86_64")]
pub(crate) fn close_audit(pid: i32) -> Result<()> {
    let descriptor = audit_descriptor(pid)?;
    let child = Pid::from_raw(pid);
    let request = |request: libc::c_uint, data: *mut libc::user_regs_struct| {
        // SAFETY: a stopped tracee of ours, and data that the request reads or fills.
        Errno::result(unsafe { libc::ptrace(request, pid, 0, data) }).with_context(|| format!("ptrace {request}"))
    };
    request(libc::PTRACE_ATTACH, std::ptr::null_mut())?;
    waitpid(child, None)?;
    // SAFETY: plain integers.
    let mut before: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, &raw mut before)?;
    // It waits in a system call: two bytes back is the instruction that made it.
    let mut close = libc::user_regs_struct {
        rip: before.rip - 2,
        rax: libc::SYS_close as u64,
        orig_rax: u64::MAX,
        rdi: descriptor,
        ..before
    };
    request(libc::PTRACE_SETREGS, &raw mut close)?;
    request(libc::PTRACE_SINGLESTEP, std::ptr::null_mut())?;
    waitpid(child, None)?;
    request(libc::PTRACE_GETREGS, &raw mut close)?;
    // The interrupted call begins anew: it waits for events that have not come.
    let mut again = libc::user_regs_struct { rip: before.rip - 2, rax: before.orig_rax, orig_rax: u64::MAX, ..before };
    request(libc::PTRACE_SETREGS, &raw mut again)?;
    request(libc::PTRACE_DETACH, std::ptr::null_mut())?;
    ensure!(close.rax == 0, "close({descriptor}) in process {pid} returned {}", close.rax as i64);
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn close_audit(pid: i32) -> Result<()> {
    bail!("only for x86-64 (process {pid}, descriptor {})", audit_descriptor(pid)?)
}
