//! The parts of CRI-O and conmon around the real crun: what they start, with which arguments, and whom they wait for.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Result, ensure};
use nix::{
    errno::Errno,
    sys::wait::{WaitPidFlag, waitpid},
};
use seclog_tests::lab::runtime_scene::{CONTAINERS, CRUN, SERVICE_CGROUP};

use super::runtime::{Containers, Wanted, directory, exec_all, join, parent};

const CONMON: &str = "/usr/bin/conmon";

/// Plays the part; `None`: these are not the arguments of one.
pub(crate) fn by_arguments(name: &str, arguments: &[&str]) -> Option<Result<()>> {
    match (name, arguments) {
        ("crio", ["--default-runtime", "crun"]) => Some(serve()),
        ("conmon", ["-b", bundle, "-c", id, "-r", CRUN]) => Some(monitor(bundle, id)),
        ("conmon", ["-c", id, "-r", CRUN, "-e", "--exec-process-spec", spec]) => Some(monitor_exec(id, spec)),
        _ => None,
    }
}

/// Starts every container, then, when told, every exec at once.
fn serve() -> Result<()> {
    join(SERVICE_CGROUP)?;
    super::wait_to_be_told()?;
    let containers = Containers::start(|id| {
        let mut command = Command::new(CONMON);
        command.arg("-b").arg(bundle(id)).args(["-c", id, "-r", CRUN]);
        command
    })?;
    super::wait_to_be_told()?;
    exec_all(|Wanted { name, id, way, .. }| {
        let spec = bundle(id).join(name);
        match way.as_str() {
            "exec" => {
                let mut command = crun();
                command.args(["exec", "--process"]).arg(spec).arg(id);
                command
            }
            _ => {
                let mut command = Command::new(CONMON);
                command.args(["-c", id, "-r", CRUN, "-e", "--exec-process-spec"]).arg(spec);
                command
            }
        }
    })?;
    super::wait_to_be_told()?;
    containers.end()
}

/// For the life of a container.
fn monitor(bundle: &str, id: &str) -> Result<()> {
    join(&format!("{}/crio-conmon-{id}.scope", parent(id)?))?;
    let pid_file = Path::new(bundle).join("pid");
    // Its root is the initramfs, which nothing can be pivoted away from.
    let status =
        crun().args(["create", "--no-pivot", "--bundle", bundle, "--pid-file"]).arg(&pid_file).arg(id).status()?;
    ensure!(status.success(), "crun create ended with {status}");
    let status = crun().args(["start", id]).status()?;
    ensure!(status.success(), "crun start ended with {status}");
    // It is there when it runs.
    fs::rename(pid_file, directory(id).join("pid"))?;
    loop {
        nix::unistd::pause();
    }
}

/// Below conmon crun is detached, and conmon takes over what it leaves.
fn monitor_exec(id: &str, spec: &str) -> Result<()> {
    // SAFETY: plain words.
    ensure!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) } == 0, "{}", std::io::Error::last_os_error());
    let pid_file = format!("{spec}.pid");
    let status = crun().args(["exec", "--pid-file", &pid_file, "--process", spec, "--detach", id]).status()?;
    ensure!(status.success(), "crun exec ended with {status}");
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL)) {
            Ok(_) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn crun() -> Command {
    let mut command = Command::new(CRUN);
    command.args(["--root", "/run/crun", "--cgroup-manager", "cgroupfs"]);
    command
}

fn bundle(id: &str) -> PathBuf {
    Path::new(CONTAINERS).join("containers").join(id)
}
