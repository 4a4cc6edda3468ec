//! The processes that were there before the first event, from /proc.

use std::{collections::HashMap, fs, os::unix::fs::MetadataExt as _, path::Path, sync::Arc};

use seclog_proto::text;

use super::{
    comm::Comm,
    event::{Argv, KernelRoot, Task},
    kept::Kept,
    processes::{Image, Processes},
};

/// Longest command line that is read.
const MOST_ARGV: usize = 8192;
/// USER_HZ: /proc tells start times in hundredths of a second on every architecture that Linux has kept.
const TICK_NS: u64 = 10_000_000;

struct Found {
    task: Task,
    parent: u32,
    container: Option<Arc<str>>,
    matters: bool,
    is_init: bool,
    image: Image,
}

/// One process, by pid, where the kernel still has it with this start: for those whose fork was not followed. Its place is
/// the event's.
pub(super) fn read_one(proc: &Path, task: &Task) -> Option<(u32, Image)> {
    const TICK_NS: u64 = 10_000_000;
    let found = read_process(&proc.join(task.pid.to_string()), task.pid, &mut |_| (0, None, false))?;
    let same = found.task.start_boottime_ns / TICK_NS == task.start_boottime_ns / TICK_NS;
    let Found { parent, image, .. } = found;
    let Task { comm, cgroup_id, mount_namespace, pid_namespace, .. } = *task;
    same.then_some((parent, Image { comm, cgroup_id, mount_namespace, pid_namespace, ..image }))
}

/// What a /proc/<pid>/cgroup says: its id, the container it belongs to, and whether its processes matter.
pub(super) type Place = (u64, Option<Arc<str>>, bool);

/// Reads the processes of `proc` that matter, and those they descend from, into the table. Processes that go away
/// meanwhile are left out.
/// `kept` is what the run before knew of them.
pub fn read_proc(proc: &Path, kept: &Kept, processes: &mut Processes, place_of: &mut dyn FnMut(&str) -> Place) {
    let Ok(entries) = fs::read_dir(proc) else { return };
    let found: HashMap<u32, Found> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|pid| Some((pid, read_process(&proc.join(pid.to_string()), pid, place_of)?)))
        .collect();
    // Parents first, so that each finds its creator; a parent is the best guess at one that /proc has.
    let mut order: Vec<u32> = found.keys().copied().collect();
    order.sort_by_key(|pid| (found[pid].task.start_boottime_ns, *pid));
    for pid in order {
        let Found { task, parent, image, container, is_init, .. } = &found[&pid];
        let known = kept.of_process(pid, task.start_boottime_ns);
        processes.insert_rebuilt(task, *parent, container.clone(), *is_init, image.clone(), known);
    }
    processes.keep_related(&|process| found.get(&process.key.pid).is_some_and(|found| found.matters));
}

fn read_process(directory: &Path, pid: u32, place_of: &mut dyn FnMut(&str) -> Place) -> Option<Found> {
    let stat = fs::read(directory.join("stat")).ok()?;
    let (comm, parent, start_ticks) = parse_stat(&stat)?;
    let start_boottime_ns = start_ticks.saturating_mul(TICK_NS);
    let namespace = |name: &str| {
        let link = fs::read_link(directory.join("ns").join(name)).ok()?;
        let link = link.to_str()?;
        link.strip_suffix(']')?.rsplit('[').next()?.parse::<u64>().ok()
    };
    let owner = fs::metadata(directory).ok();
    let cgroup = fs::read_to_string(directory.join("cgroup")).unwrap_or_default();
    let (cgroup_id, container, matters) = place_of(&cgroup);
    let status = fs::read(directory.join("status")).unwrap_or_default();
    let mut line = fs::read(directory.join("cmdline")).unwrap_or_default();
    let truncated_bytes = line.len().saturating_sub(MOST_ARGV) as u64;
    line.truncate(MOST_ARGV);
    let arguments = match line.strip_suffix(&[0]).unwrap_or(&line) {
        [] => Arc::from([]),
        whole => whole.split(|byte| *byte == 0).map(text::from_bytes).collect(),
    };
    let filename = fs::read_link(directory.join("exe"))
        .map(|path| text::from_bytes(std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())))
        .unwrap_or_default();
    let filename: Arc<str> = filename.into();
    // A copy that a runtime has made of itself has no path; what it was called by is what there is.
    let program = match arguments.first() {
        Some(first) if filename.starts_with("/memfd:") && first.starts_with('/') => Arc::from(first.as_str()),
        _ => Arc::clone(&filename),
    };
    let task = Task {
        pid,
        tid: pid,
        start_boottime_ns,
        cgroup_id,
        mount_namespace: namespace("mnt").unwrap_or(0),
        pid_namespace: namespace("pid").unwrap_or(0),
        uid: owner.as_ref().map_or(0, |owner| owner.uid()),
        gid: owner.as_ref().map_or(0, |owner| owner.gid()),
        comm,
        root: KernelRoot::None,
    };
    let image = Image {
        generation: 0,
        since_boot_ns: start_boottime_ns,
        comm: task.comm,
        filename,
        program,
        argv: Argv { arguments, truncated_bytes },
        cgroup_id: task.cgroup_id,
        mount_namespace: task.mount_namespace,
        pid_namespace: task.pid_namespace,
        exec_origin: None,
        read_boot_ns: crate::clock::boot_ns(),
    };
    Some(Found { task, parent, container, matters, is_init: is_init(&status), image })
}

/// When a process started by its `stat`, nanoseconds on the boot clock in whole ticks.
pub(super) fn start_of(stat: &[u8]) -> Option<u64> {
    parse_stat(stat).map(|(_, _, ticks)| ticks.saturating_mul(TICK_NS))
}

/// comm, parent and start time: fields 2, 4 and 22 of proc_pid_stat(5). comm may hold anything, so count from its last
/// parenthesis.
fn parse_stat(stat: &[u8]) -> Option<(Comm, u32, u64)> {
    let open = stat.iter().position(|byte| *byte == b'(')?;
    let close = stat.iter().rposition(|byte| *byte == b')')?;
    let comm = Comm::new(stat.get(open + 1..close)?);
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some((comm, parent, start))
}

/// Whether the innermost number of NSpid is 1.
fn is_init(status: &[u8]) -> bool {
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(b"NSpid:"));
    line.is_some_and(|line| line.rsplit(u8::is_ascii_whitespace).next() == Some(b"1"))
}

#[cfg(test)]
mod tests {
    use super::parse_stat;

    #[test]
    fn a_comm_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = b"42 (a) 1 (b) S 7 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 12345 1000 10";
        assert_eq!(parse_stat(stat), Some(("a) 1 (b".into(), 7, 12345)));
        assert_eq!(parse_stat(b"42 (a"), None);
    }

    #[test]
    fn the_running_test_is_found_in_proc() {
        let mut processes = super::Processes::new([0]);
        super::read_proc(std::path::Path::new("/proc"), &super::Kept::default(), &mut processes, &mut |_| {
            (0, None, true)
        });
        let own = processes.at(std::process::id(), u64::MAX, u64::MAX).expect("this process");
        assert!(!own.image().argv.arguments.is_empty());
    }
}
