//! The real crun, which hosts with both cgroup hierarchies refuse, below processes that play CRI-O and conmon: containers,
//! execs and synchronous execs, below the kernel programs and a filter that crun loads.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use seclog_proto::v1::{NodeRecord, ProcessStart};
use seclog_tests::lab::{
    agreement::verdicts,
    runtime_scene::{CONTAINERS, CRUN},
};
use serde_json::json;

use super::{
    containers::{
        Container, Scene, container, container_id, containers_start_and_have_names, key, nothing_is_lost, set_up,
        wait_for_starts,
    },
    session::{Acting, Agent, CAP_AUDIT_READ},
};

const COUNT: usize = 3;
const EXECS: usize = 12;
/// After which nothing comes any more.
const SILENCE: Duration = Duration::from_secs(15);
/// Programs of one script, the shell included. An attempt of each is logged.
const PROGRAMS: usize = 7;
/// A busybox with its names, which all containers have as their root.
const ROOT: &str = "/run/scene/rootfs";

pub(crate) fn crun(_: &Path) -> Vec<(&'static str, Result<()>)> {
    let scene = match play() {
        Ok(scene) => scene,
        Err(error) => return vec![("run", Err(error))],
    };
    vec![
        ("run", nothing_is_lost(&scene)),
        ("every-exec-has-a-root-that-entered-as-it-did", every_exec_has_its_root(&scene)),
        ("every-process-is-below-its-root", every_process_is_below_its_root(&scene)),
        ("every-verdict-is-below-its-root", every_verdict_is_below_its_root(&scene)),
        ("containers-start-and-have-names", containers_start_and_have_names(&scene)),
        ("nothing-that-started-is-a-monitors", nothing_that_started_is_a_monitors(&scene)),
    ]
}

fn play() -> Result<Scene> {
    set_up(&["crio", "conmon"], &["/sys/fs/cgroup"])?;
    fs::copy("/bin/crun", CRUN).context("crun")?;
    fill_root()?;
    let containers = (0..COUNT).map(container).collect::<Result<Vec<_>>>()?;
    for container in &containers {
        specify(container)?;
    }
    for number in 0..EXECS {
        // Every third by the way of probes.
        let way = if number % 3 == 0 { "exec_sync" } else { "exec" };
        exec(number, way, &containers[number % COUNT])?;
    }
    let mut service = Acting::start(Command::new("/usr/bin/crio").args(["--default-runtime", "crun"]))?;
    let agent = Agent::start(&[CAP_AUDIT_READ], &["--no-cri"])?;
    service.tell()?;
    service.is_ready()?;
    service.tell()?;
    service.is_ready()?;
    // Where the kernel skips programs, some never come.
    if wait_for_starts(&agent, EXECS * PROGRAMS, SILENCE) {
        agent.wait_for_verdicts(EXECS * PROGRAMS);
    }
    service.tell()?;
    service.ends()?;
    Ok(Scene { captured: agent.stop()?, containers, from_outside: "" })
}

fn fill_root() -> Result<()> {
    let root = Path::new(ROOT);
    for name in ["bin", "dev", "proc"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy("/bin/busybox", root.join("bin/busybox"))?;
    for name in ["sh", "true"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name))?;
    }
    Ok(())
}

fn user_process(arguments: &[&str]) -> serde_json::Value {
    json!({ "user": { "uid": 0, "gid": 0 }, "args": arguments, "env": ["PATH=/bin"], "cwd": "/" })
}

/// Its bundle, beside what the scene says of it.
fn specify(container: &Container) -> Result<()> {
    let bundle = Path::new(CONTAINERS).join("containers").join(&container.id);
    let cgroup = fs::read_to_string(bundle.join("process-cgroup"))?;
    let namespaces: Vec<_> = ["pid", "mount", "ipc", "uts"].into_iter().map(|kind| json!({ "type": kind })).collect();
    let specification = json!({
        "ociVersion": "1.0.2",
        "process": user_process(&["/bin/busybox", "sleep", "100000"]),
        "root": { "path": ROOT },
        "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": namespaces,
            "seccomp": {
                "defaultAction": "SCMP_ACT_ALLOW",
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{ "names": ["execve"], "action": "SCMP_ACT_LOG" }],
            },
        },
    });
    Ok(fs::write(bundle.join("config.json"), specification.to_string())?)
}

/// A child, one without environment that execs again, a daemon that outlives its creators.
fn exec(number: usize, way: &str, container: &Container) -> Result<()> {
    let execs = Path::new(CONTAINERS).join("execs");
    fs::create_dir_all(&execs)?;
    let (name, id) = (format!("{number:03}"), &container.id);
    let script = format!(
        ": mark-{number}; /bin/true mark-{number}; /bin/busybox env -i /bin/true mark-{number}; \
         (/bin/busybox setsid /bin/sh -c '(/bin/true mark-{number} &)'); :"
    );
    let process = user_process(&["/bin/sh", "-c", &script]);
    fs::write(Path::new(CONTAINERS).join("containers").join(id).join(&name), process.to_string())?;
    Ok(fs::write(execs.join(name), format!("{id}\n{way}\n"))?)
}

// === What must hold ===

/// Those that were observed: where forks were lost, parts of an exec have roots of their own, which say so.
fn roots(scene: &Scene) -> HashMap<usize, (u32, u64)> {
    let roots = scene.marked().filter(|(_, _, start, root)| start.is_session_root && root.lineage == "observed");
    roots.map(|(mark, _, _, root)| (mark, key(root))).collect()
}

/// Where the kernel skipped programs, roots say that they do not know, or tell the truth.
fn every_exec_has_its_root(scene: &Scene) -> Result<()> {
    let mut found = HashSet::new();
    for (mark, record, start, root) in scene.marked().filter(|(_, _, start, _)| start.is_session_root) {
        if scene.has_skipped() && root.lineage != "observed" {
            println!("exec {mark} does not know: {start:?} {root:?}");
            continue;
        }
        let (entry, rule) = if mark % 3 == 0 {
            ("exec_sync", "runtime exec below conmon -e, below the runtime service")
        } else {
            ("exec", "runtime exec below the runtime service")
        };
        let lost: Vec<_> = scene.captured.losses("hook").collect();
        let is_right = root.entry == entry && root.rule == rule && root.lineage == "observed";
        ensure!(is_right, "exec {mark} at {}: {root:?}; lost: {lost:?}", record.time_unix_ns);
        ensure!(container_id(record) == scene.containers[mark % COUNT].id, "exec {mark} in {}", container_id(record));
        ensure!(start.filename == "/bin/sh" && record.pid == root.pid, "exec {mark}: {start:?}");
        ensure!(found.insert(key(root)), "exec {mark} shares its root");
    }
    println!("{} of {EXECS} roots were observed, {} events lost", found.len(), scene.captured.lost("hook"));
    ensure!(found.len() == EXECS || scene.has_skipped(), "{} roots", found.len());
    Ok(())
}

fn every_process_is_below_its_root(scene: &Scene) -> Result<()> {
    let roots = roots(scene);
    let mut programs: HashMap<usize, usize> = HashMap::new();
    for (mark, record, start, root) in scene.marked() {
        if scene.has_skipped() && root.lineage != "observed" {
            continue;
        }
        ensure!(roots.get(&mark) == Some(&key(root)), "exec {mark}: {start:?} is below {root:?}");
        ensure!(container_id(record) == scene.containers[mark % COUNT].id, "exec {mark}: {record:?}");
        *programs.entry(mark).or_default() += 1;
    }
    let is_whole = programs.len() == EXECS && programs.values().all(|count| *count == PROGRAMS);
    let marked = |start: &ProcessStart| start.argv.iter().any(|argument| argument.contains("mark-"));
    let rootless: Vec<_> =
        scene.captured.starts().filter(|(record, start)| record.session_root.is_none() && marked(start)).collect();
    ensure!(
        scene.has_skipped() || is_whole && rootless.is_empty(),
        "programs of each exec: {programs:?}; without a root: {rootless:?}"
    );
    Ok(())
}

/// The first of each is crun's own, when it executes what was asked for.
fn every_verdict_is_below_its_root(scene: &Scene) -> Result<()> {
    let mut of_root: HashMap<(u32, u64), usize> = HashMap::new();
    for (record, verdict) in verdicts(&scene.captured.records) {
        ensure!(verdict.sources == ["ebpf"], "{verdict:?}");
        if let Some(root) = &record.session_root {
            *of_root.entry(key(root)).or_default() += 1;
        }
    }
    for (mark, root) in roots(scene).into_iter().filter(|_| !scene.has_skipped()) {
        let count = of_root.get(&root).copied().unwrap_or_default();
        ensure!(count == PROGRAMS, "{count} verdicts of exec {mark}");
    }
    Ok(())
}

/// crun's last attempt to execute a main process is told with the cgroup in which crun began, which is the monitor's; no program is.
fn nothing_that_started_is_a_monitors(scene: &Scene) -> Result<()> {
    let of_monitor = |record: &NodeRecord| {
        let in_its_cgroup = record.container.as_ref().is_some_and(|of| of.cgroup_path.contains("conmon"));
        in_its_cgroup || matches!(record.comm.as_str(), "crio" | "conmon")
    };
    let found = scene.captured.starts().find(|(record, _)| of_monitor(record));
    ensure!(found.is_none(), "{found:?}");
    for (record, verdict) in verdicts(&scene.captured.records).filter(|(record, _)| of_monitor(record)) {
        let entry = record.session_root.as_ref().map_or("none", |root| root.entry.as_str());
        ensure!(scene.has_skipped() || entry == "start" && record.generation == 0, "{entry}: {verdict:?}");
    }
    Ok(())
}
