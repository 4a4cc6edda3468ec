//! Who else gets SECCOMP records from the kernel: quiet mode would take them away.

use std::{collections::HashSet, fmt, fs, io, path::Path};

/// Protocol number of NETLINK_AUDIT (include/uapi/linux/netlink.h).
const NETLINK_AUDIT: &str = "9";
/// AUDIT_NLGRP_READLOG as a bit of a socket's groups.
const READLOG: u32 = 1;

/// Of the host's first process: the multicast group exists in the initial network namespace only.
const NETLINK_TABLE: &str = "/proc/1/net/netlink";

/// A socket of another process in the audit multicast group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// As the kernel shows it; usually the pid of the process that bound it.
    pub port: u32,
    inode: u64,
    /// Name and pid of a process that has it open, where that could be seen.
    pub holder: Option<String>,
}

// === impl Listener ===

impl fmt::Display for Listener {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.holder {
            Some(holder) => formatter.write_str(holder),
            None => write!(formatter, "netlink port {}", self.port),
        }
    }
}

/// All but this process's own.
pub fn others() -> io::Result<Vec<Listener>> {
    let own = sockets_of(Path::new("/proc/self")).collect::<HashSet<_>>();
    let mut found = listeners(&fs::read_to_string(NETLINK_TABLE)?);
    found.retain(|listener| !own.contains(&listener.inode));
    if !found.is_empty() {
        name_holders(&mut found);
    }
    Ok(found)
}

/// Lines `sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode` (net/netlink/af_netlink.c, netlink_native_seq_show).
fn listeners(table: &str) -> Vec<Listener> {
    let listener = |line: &str| {
        let mut words = line.split_whitespace().skip(1);
        let (protocol, port, groups) = (words.next()?, words.next()?, words.next()?);
        let in_group = u32::from_str_radix(groups, 16).ok()? & READLOG != 0;
        let inode = words.last()?.parse().ok()?;
        (protocol == NETLINK_AUDIT && in_group).then_some(Listener { port: port.parse().ok()?, inode, holder: None })
    };
    table.lines().filter_map(listener).collect()
}

fn name_holders(listeners: &mut [Listener]) {
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        for inode in sockets_of(&entry.path()) {
            for listener in listeners.iter_mut().filter(|listener| listener.inode == inode) {
                let name = fs::read(entry.path().join("comm")).unwrap_or_default();
                let name = String::from_utf8_lossy(name.trim_ascii_end()).escape_default().to_string();
                listener.holder = Some(format!("{name} (pid {pid})"));
            }
        }
    }
}

/// Inode numbers of the sockets that a process (its directory in /proc) has open.
fn sockets_of(process: &Path) -> impl Iterator<Item = u64> {
    let descriptors = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    descriptors.filter_map(|descriptor| {
        let target = fs::read_link(descriptor.path()).ok()?;
        target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use super::{Listener, listeners};

    #[test]
    fn members_of_the_audit_group_are_found_in_the_kernels_table() {
        let table = "\
sk               Eth Pid        Groups   Rmem     Wmem     Dump  Locks    Drops    Inode
000000002f068059 9   5705       00000001 0        0        0     2        0        78780
000000003b7cef1d 9   0          00000000 0        0        0     2        0        6
000000001fc3cc0e 0   -1129127   00000011 0        0        0     2        0        25
000000002f068051 9   4294966000 00000003 0        0        0     2        0        78781
a torn line";
        let expected = |port, inode| Listener { port, inode, holder: None };
        assert_eq!(listeners(table), [expected(5705, 78780), expected(4_294_966_000, 78781)]);
    }
}
