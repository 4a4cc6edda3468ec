//! What an ordinary system would have done before: file systems, loopback, a container's cgroup.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use nix::{
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
};
use seclog_tests::lab::image::run;

pub(crate) fn mount_everything() -> Result<()> {
    let file_systems = [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/run"),
        ("tmpfs", "/tmp"),
        ("tracefs", "/sys/kernel/tracing"),
        ("debugfs", "/sys/kernel/debug"),
        ("bpf", "/sys/fs/bpf"),
        ("cgroup2", "/sys/fs/cgroup"),
    ];
    for (kind, place) in file_systems {
        fs::create_dir_all(place).with_context(|| place.to_owned())?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mount {place}"))?;
    }
    run(Command::new("/bin/busybox").args(["ifconfig", "lo", "up"]))?;
    Ok(())
}

/// A cgroup where containerd would put a container of a pod without requests.
pub(crate) fn container_cgroup() -> Result<PathBuf> {
    let path = PathBuf::from("/sys/fs/cgroup").join(format!(
        "kubepods/besteffort/pod{}/cri-containerd-{}.scope",
        super::POD_UID,
        super::container_id()
    ));
    fs::create_dir_all(&path)?;
    Ok(path)
}

/// Reboots: QEMU ends on that with -no-reboot, with and without ACPI.
pub(crate) fn turn_off() {
    let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
    println!("cannot turn off: {errno}");
}
