//! A container runtime in small: what CRI-O, conmon and an OCI runtime do to processes, cgroups and namespaces, each under
//! its own name, as copies of this program at those paths.
//!
//! The scene is in files: [`HIERARCHIES`] has the roots of the cgroup hierarchies, a line each; [`CONTAINERS`]`/<id>/cgroup`
//! the path of the container's cgroup in them, and `process-cgroup` that of the one below it in which its processes run; where
//! there is `host-pids`, it is among the host's processes.

use std::{
    ffi::OsString,
    fs,
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sched::{CloneFlags, setns, unshare},
    sys::wait::{WaitStatus, waitpid},
    unistd::{ForkResult, fork},
};
use seclog_tests::lab::{
    runtime_scene::{CONTAINERS, HIERARCHIES, SERVICE_CGROUP},
    seccomp,
};

const CONMON: &str = "/usr/bin/conmon";
const SHIM: &str = "/usr/bin/containerd-shim-runc-v2";
const RUNTIME: &str = "/usr/bin/runc";

/// Plays the part that this program was called by; `None`: it was called by its own name.
pub(crate) fn by_name() -> Option<Result<()>> {
    let arguments: Vec<String> = std::env::args_os().map(OsString::into_string).collect::<Result<_, _>>().ok()?;
    let (name, arguments) = arguments.split_first()?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let name = name.rsplit('/').next()?;
    if let Some(played) = super::crun::by_arguments(name, &arguments) {
        return Some(played);
    }
    match (name, arguments.as_slice()) {
        ("crio", []) => Some(serve()),
        ("conmon", ["-b", _, "-c", id]) => Some(monitor(id)),
        ("conmon", ["-c", id, "-e", "--exec-process-spec", spec]) => Some(monitor_exec(id, spec)),
        ("runc", ["--root", _, "create", "--bundle", _, id]) => Some(stage(&["start", id])),
        ("containerd", []) => Some(serve_by_shims()),
        ("containerd-shim-runc-v2", ["-id", id]) => Some(monitor(id)),
        ("containerd-shim-runc-v2", ["-id", id, spec]) => Some(shim_exec(id, spec)),
        ("runc", ["--root", _, "exec", "--process", spec, "--pid-file", _, id]) => Some(stage(&["exec", id, spec])),
        ("runc", ["--root", _, "exec", "--process", spec, id]) => Some(stage(&["exec", id, spec])),
        ("runc", ["init", "start", id]) => Some(begin(id)),
        ("runc", ["init", "exec", id, spec]) => Some(enter(id, spec)),
        ("crio" | "conmon" | "containerd" | "containerd-shim-runc-v2" | "runc", other) => {
            Some(Err(anyhow::anyhow!("{name} does not know {other:?}")))
        }
        _ => None,
    }
}

// === The service ===

/// Starts every container, then, when told, every exec at once: as many as there are specifications in `execs`.
fn serve() -> Result<()> {
    join(SERVICE_CGROUP)?;
    super::wait_to_be_told()?;
    let containers = Containers::start(|id| {
        let mut command = Command::new(CONMON);
        command.args(["-b", "bundle", "-c", id]);
        command
    })?;
    super::wait_to_be_told()?;
    exec_all(|Wanted { spec, id, way, .. }| match way.as_str() {
        "exec" => {
            let mut command = Command::new(RUNTIME);
            command.args(["--root", "/run/runc", "exec", "--process", spec, id]);
            command
        }
        _ => {
            let mut command = Command::new(CONMON);
            command.args(["-c", id, "-e", "--exec-process-spec", spec]);
            command
        }
    })?;
    super::wait_to_be_told()?;
    containers.end()
}

/// Every exec of the scene at once, by these commands, to the end of them all.
pub(crate) fn exec_all(command: impl Fn(&Wanted) -> Command) -> Result<()> {
    let mut running = Vec::new();
    for wanted in execs()? {
        running.push((command(&wanted).spawn()?, wanted.name));
    }
    for (mut child, name) in running {
        let status = child.wait()?;
        ensure!(status.success(), "exec {name} ended with {status}");
    }
    Ok(())
}

/// As containerd does it: execs one after the other, all of them below shims; somebody connects for each that is no
/// synchronous one.
fn serve_by_shims() -> Result<()> {
    join(SERVICE_CGROUP)?;
    let listener = TcpListener::bind("127.0.0.1:0").context("the port for streams")?;
    super::wait_to_be_told()?;
    let containers = Containers::start(|id| {
        let mut command = Command::new(SHIM);
        command.args(["-id", id]);
        command
    })?;
    super::wait_to_be_told()?;
    for Wanted { name, spec, id, way } in execs()? {
        let connection = match way.as_str() {
            "exec" => Some((TcpStream::connect(listener.local_addr()?)?, listener.accept()?)),
            _ => None,
        };
        let status = Command::new(SHIM).args(["-id", &id, &spec]).status()?;
        ensure!(status.success(), "exec {name} ended with {status}");
        drop(connection);
    }
    super::wait_to_be_told()?;
    containers.end()
}

/// The containers of the scene, and their monitors.
pub(crate) struct Containers {
    ids: Vec<String>,
    monitors: Vec<Child>,
}

impl Containers {
    /// All at once; returns when each has its first process.
    pub(crate) fn start(monitor: impl Fn(&str) -> Command) -> Result<Self> {
        let ids = names(&Path::new(CONTAINERS).join("containers"))?;
        let monitors = ids.iter().map(|id| Ok(monitor(id).spawn()?)).collect::<Result<Vec<Child>>>()?;
        for id in &ids {
            while !directory(id).join("pid").exists() {
                std::thread::yield_now();
            }
        }
        Ok(Self { ids, monitors })
    }

    pub(crate) fn end(self) -> Result<()> {
        for id in &self.ids {
            let pid: i32 = fs::read_to_string(directory(id).join("pid"))?.parse()?;
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
        }
        for mut monitor in self.monitors {
            monitor.kill()?;
            monitor.wait()?;
        }
        Ok(())
    }
}

/// An exec of the scene.
pub(crate) struct Wanted {
    pub(crate) name: String,
    spec: String,
    pub(crate) id: String,
    pub(crate) way: String,
}

fn execs() -> Result<Vec<Wanted>> {
    let directory = Path::new(CONTAINERS).join("execs");
    let wanted = |name: String| {
        let spec = directory.join(&name).display().to_string();
        let text = fs::read_to_string(&spec)?;
        let mut lines = text.lines();
        let (id, way) = (lines.next().context("no id")?.to_owned(), lines.next().context("no way")?.to_owned());
        Ok(Wanted { name, spec, id, way })
    };
    names(&directory)?.into_iter().map(wanted).collect()
}

fn names(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut names: Vec<String> = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    Ok(names)
}

pub(crate) fn directory(id: &str) -> PathBuf {
    Path::new(CONTAINERS).join("containers").join(id)
}

// === The monitor ===

/// In a cgroup of its own, for the life of the container.
fn monitor(id: &str) -> Result<()> {
    join(&format!("{}/crio-conmon-{id}.scope", parent(id)?))?;
    let status = Command::new(RUNTIME).args(["--root", "/run/runc", "create", "--bundle", "bundle", id]).status()?;
    ensure!(status.success(), "the runtime ended with {status}");
    loop {
        nix::unistd::pause();
    }
}

fn monitor_exec(id: &str, spec: &str) -> Result<()> {
    let status = Command::new(RUNTIME).args(["--root", "/run/runc", "exec", "--process", spec, id]).status()?;
    ensure!(status.success(), "the runtime ended with {status}");
    Ok(())
}

/// With the arguments of containerd's: the file for the pid has the exec's id.
fn shim_exec(id: &str, spec: &str) -> Result<()> {
    let pid_file = format!("/run/{id}/{}.pid", "5ec1".repeat(16));
    let arguments = ["--root", "/run/runc", "exec", "--process", spec, "--pid-file", &pid_file, id];
    let status = Command::new(RUNTIME).args(arguments).status()?;
    ensure!(status.success(), "the runtime ended with {status}");
    Ok(())
}

/// The pod's cgroup.
pub(crate) fn parent(id: &str) -> Result<String> {
    let cgroup = fs::read_to_string(directory(id).join("cgroup"))?;
    Ok(cgroup.rsplit_once('/').context("a pod's cgroup")?.0.to_owned())
}

// === The runtime ===

/// It runs itself again, as a copy that no container can overwrite.
fn stage(arguments: &[&str]) -> Result<()> {
    let status = Command::new("/proc/self/exe").arg0("runc").arg("init").args(arguments).status()?;
    ensure!(status.success(), "the second stage ended with {status}");
    Ok(())
}

/// Makes the container: its cgroup, its namespaces, its first process.
fn begin(id: &str) -> Result<()> {
    join(&process_cgroup(id)?)?;
    let own_pids =
        if directory(id).join("host-pids").exists() { CloneFlags::empty() } else { CloneFlags::CLONE_NEWPID };
    unshare(CloneFlags::CLONE_NEWNS | own_pids).context("namespaces")?;
    // SAFETY: one thread; the child executes or ends.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => {
            let beside = directory(id).join("pid.new");
            fs::write(&beside, child.to_string())?;
            Ok(fs::rename(beside, directory(id).join("pid"))?)
        }
        ForkResult::Child => super::execute(&["/bin/busybox".into(), "sleep".into(), "100000".into()]),
    }
}

/// Joins the container, and becomes its program below a filter that logs execve.
fn enter(id: &str, spec: &str) -> Result<()> {
    let pid = fs::read_to_string(directory(id).join("pid"))?;
    let script = fs::read_to_string(spec)?.lines().nth(2).context("no script")?.to_owned();
    let namespaces = ["pid", "mnt"].map(|name| fs::File::open(format!("/proc/{pid}/ns/{name}")));
    join(&process_cgroup(id)?)?;
    for namespace in namespaces {
        setns(namespace?, CloneFlags::empty()).context("setns")?;
    }
    // SAFETY: one thread; the child executes or ends.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => match waitpid(child, None)? {
            WaitStatus::Exited(_, 0) => Ok(()),
            other => bail!("{other:?}"),
        },
        ForkResult::Child => {
            seccomp::log(&[libc::SYS_execve])?;
            super::execute(&["/bin/sh".into(), "-c".into(), script.into()])
        }
    }
}

fn process_cgroup(id: &str) -> Result<String> {
    Ok(fs::read_to_string(directory(id).join("process-cgroup"))?)
}

/// In every hierarchy.
pub(crate) fn join(cgroup: &str) -> Result<()> {
    for root in fs::read_to_string(HIERARCHIES)?.lines() {
        let directory = Path::new(root).join(cgroup.trim_start_matches('/'));
        fs::create_dir_all(&directory)?;
        super::join(&directory)?;
    }
    Ok(())
}
