//! Cleans up behind a container runtime that did not: shims, container processes, mounts, cgroups.
//! Everything is recognised by the temporary directory or the pod's UID, which belong to one test only.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, umount2},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Best effort: what cannot be removed is left, as at any other end of a program.
pub fn remove(directory: &Path, pod_uids: &[&str]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let processes = processes(directory, pod_uids);
        if processes.is_empty() || Instant::now() > deadline {
            break;
        }
        for pid in processes {
            let _ = kill(pid, Signal::SIGKILL);
        }
        // They are not this program's children: their end is no event that it gets.
        std::thread::sleep(Duration::from_millis(20));
    }
    for mount in mounts(|mount, _| mount.starts_with(directory)).into_iter().rev() {
        let _ = umount2(&mount, MntFlags::MNT_DETACH);
    }
    for root in mounts(|_, kind| kind.starts_with("cgroup")) {
        for uid in pod_uids {
            remove_cgroups(&root.join(format!("kubepods/besteffort/pod{uid}")));
        }
        // Shared with others: goes only when empty.
        let _ = fs::remove_dir(root.join("kubepods/besteffort"));
        let _ = fs::remove_dir(root.join("kubepods"));
    }
}

/// Shims, which name the directory's socket in their command line, and what runs in the pods' cgroups.
fn processes(directory: &Path, pod_uids: &[&str]) -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let directory = directory.to_string_lossy();
    entries
        .flatten()
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command);
            let is_shim = command.split('\0').next()?.contains("containerd-shim") && command.contains(&*directory);
            let cgroup = fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
            let is_inside = pod_uids.iter().any(|uid| cgroup.contains(&format!("/pod{uid}")));
            (is_shim || is_inside).then(|| Pid::from_raw(pid))
        })
        .collect()
}

/// Mount points, in the order they were mounted.
fn mounts(wanted: impl Fn(&Path, &str) -> bool) -> Vec<PathBuf> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    table
        .lines()
        .filter_map(|line| {
            let (place, rest) = line.split_once(" - ")?;
            let mount = PathBuf::from(place.split(' ').nth(4)?);
            wanted(&mount, rest.split(' ').next()?).then_some(mount)
        })
        .collect()
}

/// A cgroup's files go with it; directories must go from the leaves up.
fn remove_cgroups(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_cgroups(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}
