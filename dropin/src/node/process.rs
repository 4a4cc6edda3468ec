//! Processes of the node, by /proc below the root.

use super::root::Root;
use crate::facts::{CrioProcess, Known};

/// More processes than a node has.
const MAX_PROCESSES: usize = 65_536;
/// USER_HZ: what /proc shows times in, on every architecture of interest.
const TICKS_PER_SECOND: i64 = 100;

/// The crio daemon.
pub(crate) fn crio(root: &Root) -> Option<CrioProcess> {
    let pid = pid_of(root, "crio")?;
    let args = root.text(&format!("/proc/{pid}/cmdline"), 1 << 16).unwrap_or_default();
    Some(CrioProcess {
        started: started(root, pid),
        args: args.split('\0').filter(|a| !a.is_empty()).map(str::to_owned).collect(),
    })
}

pub(crate) fn runs(root: &Root, name: &str) -> Known<bool> {
    match root.list("/proc") {
        Ok(entries) if entries.iter().any(|e| e.name.parse::<u32>().is_ok()) => {
            Known::Yes(pid_of(root, name).is_some())
        }
        _ => Known::No("/proc shows no processes below this root".into()),
    }
}

pub(crate) fn pid_of(root: &Root, name: &str) -> Option<u32> {
    let entries = root.list("/proc").ok()?;
    let pids = entries.iter().filter_map(|e| e.name.parse::<u32>().ok()).take(MAX_PROCESSES);
    pids.into_iter().find(|pid| root.text(&format!("/proc/{pid}/comm"), 64).is_some_and(|c| c.trim_end() == name))
}

/// Seconds since 1970: boot time plus field 22 of /proc/PID/stat.
fn started(root: &Root, pid: u32) -> Option<i64> {
    let stat = root.text(&format!("/proc/{pid}/stat"), 4096)?;
    // The second field, the name in brackets, may hold anything.
    let ticks: i64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let system = root.text("/proc/stat", 1 << 20)?;
    let boot: i64 = system.lines().find_map(|l| l.strip_prefix("btime "))?.trim().parse().ok()?;
    boot.checked_add(ticks / TICKS_PER_SECOND)
}
