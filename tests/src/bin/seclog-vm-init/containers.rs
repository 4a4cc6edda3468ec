//! Two hundred entries at once into ten containers, as CRI-O makes them: by `runc exec` and by `conmon -e`, with the systemd
//! and the cgroupfs driver, with crun's nested cgroup and deeper ones, below the full set of kernel programs. What the runtime
//! does is played by seclog-act under the real names.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use seclog_proto::v1::{NodeRecord, ProcessStart, SessionRoot};
use seclog_tests::lab::{
    agreement::verdicts,
    process::PATIENCE,
    runtime_scene::{CONTAINERS, HIERARCHIES},
};

use super::session::{Acting, Agent, CAP_AUDIT_READ, Captured};

const COUNT: usize = 10;
const EXECS: usize = 200;
/// Programs of one script, the shell included.
const PROGRAMS: usize = 9;
/// Logged attempts of one: the runtime's last, and one for each program of the script.
const ATTEMPTS: usize = PROGRAMS;
/// CRI-O's state on disk, where the agent looks by default.
pub(super) const STATE: &str = "/run/containers/storage/overlay-containers";
/// The mark of an entry by a runtime that no service started, and of one by nsenter.
const BY_HAND: usize = 900;
const NSENTER: usize = 901;

/// What was seen, and how the node's cgroups are set up.
pub(super) struct Scene {
    pub(super) captured: Captured,
    pub(super) containers: Vec<Container>,
    /// What is known of a process that comes from outside of the followed cgroups.
    pub(super) from_outside: &'static str,
}

pub(super) struct Container {
    pub(super) id: String,
    pub(super) pod: String,
}

/// The v2 hierarchy alone.
pub(crate) fn containers(_: &Path) -> Vec<(&'static str, Result<()>)> {
    checks(play(&["/sys/fs/cgroup"], "kernel"))
}

/// No v2 hierarchy is mounted, and two of v1 are: every process is followed.
pub(crate) fn cgroup_v1(_: &Path) -> Vec<(&'static str, Result<()>)> {
    let scene = with_v1(|| play(&["/sys/fs/cgroup/pids", "/sys/fs/cgroup/systemd"], "observed"));
    checks(scene)
}

fn with_v1(play: impl FnOnce() -> Result<Scene>) -> Result<Scene> {
    const ROOT: &str = "/sys/fs/cgroup";
    let mount = |kind: &str, place: &str, options: Option<&str>| {
        fs::create_dir_all(place)?;
        mount(Some(kind), place, Some(kind), MsFlags::empty(), options)
            .with_context(|| format!("mount {kind} at {place}"))
    };
    umount2(ROOT, MntFlags::MNT_DETACH)?;
    let scene = mount("tmpfs", ROOT, None)
        .and_then(|()| mount("cgroup", "/sys/fs/cgroup/pids", Some("pids")))
        .and_then(|()| mount("cgroup", "/sys/fs/cgroup/systemd", Some("none,name=systemd")))
        .and_then(|()| play());
    umount2(ROOT, MntFlags::MNT_DETACH)?;
    mount("cgroup2", ROOT, None)?;
    scene
}

fn checks(scene: Result<Scene>) -> Vec<(&'static str, Result<()>)> {
    let scene = match scene {
        Ok(scene) => scene,
        Err(error) => return vec![("run", Err(error))],
    };
    vec![
        ("run", nothing_is_lost(&scene)),
        ("every-exec-has-a-root-of-its-own-in-its-container", every_exec_has_its_root(&scene)),
        ("exec-is-told-from-exec-sync", exec_is_told_from_exec_sync(&scene)),
        ("every-process-is-below-its-root", every_process_is_below_its_root(&scene)),
        ("every-verdict-is-below-its-root", every_verdict_is_below_its_root(&scene)),
        ("containers-start-and-have-names", containers_start_and_have_names(&scene)),
        ("monitors-are-in-no-container", monitors_are_in_no_container(&scene)),
        ("a-runtime-without-a-service-is-no-exec", by_hand_is_no_exec(&scene)),
        ("nsenter-from-the-host-is-a-namespace-entry", nsenter_is_a_namespace_entry(&scene)),
    ]
}

/// Below containerd's shim: what tells ExecSync from Exec is a connection to the service.
pub(crate) fn streams(_: &Path) -> Vec<(&'static str, Result<()>)> {
    vec![("exec-sync-below-a-shim-is-told-where-nobody-connected", exec_sync_below_a_shim())]
}

fn exec_sync_below_a_shim() -> Result<()> {
    // By the order of names, which is that of numbers.
    const WAYS: [&str; 3] = ["exec_sync", "exec_sync", "exec"];
    let hierarchies = ["/sys/fs/cgroup"];
    set_up(&["containerd", "containerd-shim-runc-v2", "runc"], &hierarchies)?;
    let containers = vec![container(0)?];
    for (number, way) in WAYS.into_iter().enumerate() {
        exec(number, way, &containers[0], hierarchies[0])?;
    }
    let mut service = Acting::start(&mut Command::new("/usr/bin/containerd"))?;
    let agent = Agent::start(&[CAP_AUDIT_READ], &["--no-cri"])?;
    // Until then a connection that was gone before could be an exec's.
    std::thread::sleep(Duration::from_secs(11));
    service.tell()?;
    service.is_ready()?;
    service.tell()?;
    service.is_ready()?;
    wait_for_starts(&agent, WAYS.len() * PROGRAMS, PATIENCE);
    service.tell()?;
    service.ends()?;
    let scene = Scene { captured: agent.stop()?, containers, from_outside: "" };
    // For the host that looks at what the verifier had to do.
    scene.captured.log.iter().filter(|line| line.contains("hook=\"streams/")).for_each(|line| println!("{line}"));
    let mut found = 0;
    for (mark, _, _, root) in scene.marked().filter(|(_, _, start, _)| start.is_session_root) {
        let (entry, words) = match WAYS.get(mark).context("a mark of no exec")? {
            &"exec_sync" => ("exec_sync", "nobody had connected"),
            _ => ("exec", "either of them"),
        };
        ensure!(root.entry == entry && root.rule.contains(words), "exec {mark}: {root:?}; {:#?}", scene.captured.log);
        found += 1;
    }
    ensure!(found == WAYS.len(), "{found} roots");
    Ok(())
}

fn play(hierarchies: &[&str], from_outside: &'static str) -> Result<Scene> {
    set_up(&["crio", "conmon", "runc"], hierarchies)?;
    let containers = (0..COUNT).map(container).collect::<Result<Vec<_>>>()?;
    for number in 0..EXECS {
        // Every fourth by the way of probes.
        let way = if number % 4 == 0 { "exec_sync" } else { "exec" };
        exec(number, way, &containers[number % COUNT], hierarchies[0])?;
    }
    let mut service = Acting::start(&mut Command::new("/usr/bin/crio"))?;
    // Without audit: what is said here is said by the kernel programs alone.
    let agent = Agent::start(&[CAP_AUDIT_READ], &["--no-cri"])?;
    service.tell()?;
    service.is_ready()?;
    service.tell()?;
    service.is_ready()?;
    by_hand(&containers[0], hierarchies[0])?;
    nsenter(&containers[1])?;
    // The daemons' last words.
    wait_for_starts(&agent, (EXECS + 1) * PROGRAMS + 2, PATIENCE);
    agent.wait_for_verdicts((EXECS + 1) * ATTEMPTS);
    service.tell()?;
    service.ends()?;
    Ok(Scene { captured: agent.stop()?, containers, from_outside })
}

/// An empty scene, and the runtime's programs at their places.
pub(super) fn set_up(programs: &[&str], hierarchies: &[&str]) -> Result<()> {
    for of_before in [CONTAINERS, STATE] {
        if Path::new(of_before).exists() {
            fs::remove_dir_all(of_before)?;
        }
    }
    for name in programs {
        fs::create_dir_all("/usr/bin")?;
        fs::copy("/bin/seclog-act", Path::new("/usr/bin").join(name)).with_context(|| (*name).to_owned())?;
    }
    fs::create_dir_all(CONTAINERS)?;
    fs::write(HIERARCHIES, hierarchies.join("\n"))?;
    for root in hierarchies {
        for path in ["kubepods.slice", "kubepods", "system.slice"] {
            fs::create_dir_all(Path::new(root).join(path))?;
        }
    }
    Ok(())
}

/// Names of half of them are as the systemd driver has them; every third has crun's nested cgroup.
pub(super) fn container(number: usize) -> Result<Container> {
    let id = format!("{:064x}", 0x5ec1_0600 + number);
    let uid = format!("0f9d2c1b-7a64-4b39-9c1e-2d5a8e6f3b{number:02}");
    let pod = format!("web-{number}");
    let cgroup = if number.is_multiple_of(2) {
        let slice = format!("kubepods-besteffort-pod{}.slice", uid.replace('-', "_"));
        format!("/kubepods.slice/kubepods-besteffort.slice/{slice}/crio-{id}.scope")
    } else {
        format!("/kubepods/besteffort/pod{uid}/crio-{id}")
    };
    let below = if number.is_multiple_of(3) { "/container" } else { "" };
    let directory = Path::new(CONTAINERS).join("containers").join(&id);
    fs::create_dir_all(&directory)?;
    fs::write(directory.join("cgroup"), &cgroup)?;
    fs::write(directory.join("process-cgroup"), format!("{cgroup}{below}"))?;
    let userdata = Path::new(STATE).join(&id).join("userdata");
    fs::create_dir_all(&userdata)?;
    let specification = serde_json::json!({
        "annotations": {
            "io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": "shop", "io.kubernetes.pod.uid": uid,
            "io.kubernetes.container.name": "app", "io.kubernetes.cri-o.ImageName": "localhost/bb:latest",
        },
        "process": {}, "linux": {},
    });
    fs::write(userdata.join("config.json"), specification.to_string())?;
    Ok(Container { id, pod })
}

/// A child, one without environment that execs again, a daemon that outlives its creators, and one in a deeper cgroup that
/// the container makes for itself.
fn exec(number: usize, way: &str, container: &Container, hierarchy: &str) -> Result<()> {
    let id = &container.id;
    let below = fs::read_to_string(Path::new(CONTAINERS).join("containers").join(id).join("process-cgroup"))?;
    let deeper = format!("{hierarchy}{below}/deep-mark-{number}");
    let script = format!(
        ": mark-{number}; /bin/true mark-{number}; /bin/busybox env -i /bin/true mark-{number}; \
         (/bin/busybox setsid /bin/sh -c '(/bin/true mark-{number} &)'); \
         /bin/busybox mkdir {deeper}; echo $$ >{deeper}/cgroup.procs; /bin/true mark-{number}; :"
    );
    specify_exec(number, way, id, &script)
}

/// What the service is to run in a container when it is told.
pub(super) fn specify_exec(number: usize, way: &str, id: &str, script: &str) -> Result<()> {
    let execs = Path::new(CONTAINERS).join("execs");
    fs::create_dir_all(&execs)?;
    Ok(fs::write(execs.join(format!("{number:03}")), format!("{id}\n{way}\n{script}\n"))?)
}

/// The host's runtime, by a path that counts, started by nobody that serves the CRI.
fn by_hand(container: &Container, hierarchy: &str) -> Result<()> {
    exec(BY_HAND, "exec", container, hierarchy)?;
    let spec = PathBuf::from(CONTAINERS).join("execs").join(BY_HAND.to_string());
    let mut command = Command::new("/usr/bin/runc");
    command.args(["--root", "/run/runc", "exec", "--process"]).arg(spec).arg(&container.id);
    ensure!(command.stdin(Stdio::null()).status()?.success(), "the runtime failed");
    Ok(())
}

/// From this process's cgroup, which is no container's.
fn nsenter(container: &Container) -> Result<()> {
    let pid = fs::read_to_string(Path::new(CONTAINERS).join("containers").join(&container.id).join("pid"))?;
    let script = format!(": mark-{NSENTER}; /bin/true mark-{NSENTER}; :");
    let mut command = Command::new("/bin/busybox");
    command.args(["nsenter", "-t", &pid, "-m", "-p", "/bin/sh", "-c", &script]);
    ensure!(command.stdin(Stdio::null()).status()?.success(), "nsenter failed");
    Ok(())
}

/// Whether as many come; not, when none has come for so long. Lines are counted first, which is cheap.
pub(super) fn wait_for_starts(agent: &Agent, wanted: usize, patience: Duration) -> bool {
    let mut lines = wanted;
    while agent.process().stdout().wait_until(patience, |all| all.len() >= lines) {
        let all = agent.process().stdout().all();
        let is_start = |line: &&String| line.contains("\"kind\":\"process_start\"") && line.contains("mark-");
        let starts = all.iter().filter(is_start).count();
        if starts >= wanted {
            return true;
        }
        lines = all.len() + (wanted - starts).min(8);
    }
    false
}

// === What is found of a mark ===

fn mark_of(start: &ProcessStart) -> Option<usize> {
    let rest = start.argv.iter().find_map(|argument| argument.split_once("mark-"))?.1;
    rest.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

impl Scene {
    pub(super) fn marked(&self) -> impl Iterator<Item = (usize, &NodeRecord, &ProcessStart, &SessionRoot)> {
        let marked = |(record, start): (_, _)| {
            let (record, start): (&NodeRecord, &ProcessStart) = (record, start);
            Some((mark_of(start)?, record, start, record.session_root.as_ref()?))
        };
        self.captured.starts().filter_map(marked)
    }

    /// Whether the kernel skipped programs: then not everything is there, and what is must not claim too much.
    pub(super) fn has_skipped(&self) -> bool {
        self.captured.lost("hook") > 0
    }

    fn container_of(&self, mark: usize) -> &str {
        &self.containers[if mark == BY_HAND { 0 } else { mark % COUNT }].id
    }

    /// By mark.
    fn roots(&self) -> HashMap<usize, (u32, u64)> {
        let roots = self.marked().filter(|(mark, _, start, _)| start.is_session_root && *mark != NSENTER);
        roots.map(|(mark, _, _, root)| (mark, key(root))).collect()
    }
}

pub(super) fn key(root: &SessionRoot) -> (u32, u64) {
    (root.pid, root.start_boottime_ns)
}

pub(super) fn container_id(record: &NodeRecord) -> &str {
    record.container.as_ref().map_or("", |container| &container.id)
}

// === What must hold ===

pub(super) fn nothing_is_lost(scene: &Scene) -> Result<()> {
    scene.captured.identities_hold()?;
    for counter in ["lineage_dropped", "verdict_dropped", "verdict_aggregated", "unpinned"] {
        if counter == "unpinned" && scene.has_skipped() {
            continue;
        }
        ensure!(scene.captured.counter(counter)? == 0, "{counter}: {:?}", scene.captured.counters);
    }
    Ok(())
}

fn every_exec_has_its_root(scene: &Scene) -> Result<()> {
    let mut found: HashSet<(u32, u64)> = HashSet::new();
    let roots = scene.marked().filter(|(mark, _, start, _)| start.is_session_root && *mark != NSENTER);
    for (mark, record, start, root) in roots {
        ensure!(root.lineage == "observed" && record.pid == root.pid, "exec {mark}: {root:?}");
        ensure!(container_id(record) == scene.container_of(mark), "exec {mark} in {}", container_id(record));
        ensure!(start.filename == "/bin/sh" && start.entered_container_id.is_empty(), "exec {mark}: {start:?}");
        ensure!(found.insert(key(root)), "exec {mark} shares its root");
    }
    ensure!(found.len() == EXECS + 1, "{} roots", found.len());
    Ok(())
}

fn exec_is_told_from_exec_sync(scene: &Scene) -> Result<()> {
    for (mark, .., root) in scene.marked().filter(|(mark, ..)| *mark < EXECS) {
        let (entry, rule) = if mark % 4 == 0 {
            ("exec_sync", "runtime exec below conmon -e, below the runtime service")
        } else {
            ("exec", "runtime exec below the runtime service")
        };
        ensure!(root.entry == entry && root.rule == rule, "exec {mark}: {root:?}");
    }
    Ok(())
}

fn every_process_is_below_its_root(scene: &Scene) -> Result<()> {
    let roots = scene.roots();
    let mut programs: HashMap<usize, usize> = HashMap::new();
    for (mark, record, start, root) in scene.marked().filter(|(mark, ..)| *mark != NSENTER) {
        ensure!(roots.get(&mark) == Some(&key(root)), "exec {mark}: {start:?} is below {root:?}");
        ensure!(container_id(record) == scene.container_of(mark), "exec {mark}: {record:?}");
        *programs.entry(mark).or_default() += 1;
    }
    let wrong: Vec<_> = programs.iter().filter(|(_, count)| **count != PROGRAMS).collect();
    ensure!(programs.len() == EXECS + 1 && wrong.is_empty(), "{} execs; programs of {wrong:?}", programs.len());
    Ok(())
}

fn every_verdict_is_below_its_root(scene: &Scene) -> Result<()> {
    let roots: HashSet<(u32, u64)> = scene.roots().into_values().collect();
    let by_id: HashMap<&str, &NodeRecord> =
        scene.captured.records.iter().map(|record| (record.id.as_str(), record)).collect();
    let mut count = 0;
    for (_, verdict) in verdicts(&scene.captured.records) {
        count += 1;
        ensure!(verdict.sources == ["ebpf"], "{verdict:?}");
    }
    ensure!(count == (EXECS + 1) * ATTEMPTS, "{count} verdicts");
    let mut with_verdicts = HashSet::new();
    for (record, verdict) in verdicts(&scene.captured.records) {
        // An emulated processor can take longer for an exec than the agent waits for it: the outcome is then not known, and of
        // the runtime's last attempt neither is the root.
        let Some(root) = record.session_root.as_ref() else {
            ensure!(verdict.outcome == "unknown", "without a root: {verdict:?}");
            continue;
        };
        ensure!(roots.contains(&key(root)), "{verdict:?} is below {root:?}");
        with_verdicts.insert(key(root));
        if verdict.outcome == "executed" {
            let target = by_id.get(verdict.target_id.as_str()).context("no target")?;
            ensure!(target.session_root.as_ref().map(key) == Some(key(root)), "{verdict:?} is below {root:?}");
        }
    }
    ensure!(with_verdicts == roots, "{} of {} roots have verdicts", with_verdicts.len(), roots.len());
    Ok(())
}

pub(super) fn containers_start_and_have_names(scene: &Scene) -> Result<()> {
    for Container { id, .. } in &scene.containers {
        let of_container = scene.captured.starts().filter(|(record, _)| container_id(record) == id);
        let mut main =
            of_container.filter(|(_, start)| start.argv.first().is_some_and(|first| first.contains("busybox")));
        let main = main.find(|(_, start)| start.argv.get(1).is_some_and(|name| name == "sleep"));
        let root = main.and_then(|(record, _)| record.session_root.clone()).unwrap_or_default();
        if scene.has_skipped() && root.lineage != "observed" {
            continue;
        }
        let (_, start) = main.context("no main process")?;
        ensure!(start.is_session_root && root.entry == "start" && root.lineage == "observed", "{root:?}");
    }
    for record in scene.captured.records.iter().filter(|record| !container_id(record).is_empty()) {
        let named = record.container.clone().unwrap_or_default();
        let pod = scene.containers.iter().find(|container| container.id == named.id).map(|container| &container.pod);
        ensure!(pod == Some(&named.pod_name) && named.names == "state", "{named:?}");
    }
    Ok(())
}

/// Nothing of the runtime is anybody's session, wherever it runs.
fn monitors_are_in_no_container(scene: &Scene) -> Result<()> {
    let of_runtime = |record: &&NodeRecord| matches!(record.comm.as_str(), "crio" | "conmon");
    let found: Vec<&NodeRecord> = scene.captured.records.iter().filter(of_runtime).collect();
    ensure!(found.is_empty(), "{:?}", found.first());
    let conmon = |record: &NodeRecord| record.container.as_ref().is_some_and(|of| of.cgroup_path.contains("conmon"));
    let found = scene.captured.records.iter().find(|record| conmon(record));
    ensure!(found.is_none(), "a record of a monitor's cgroup: {found:?}");
    Ok(())
}

fn by_hand_is_no_exec(scene: &Scene) -> Result<()> {
    let roots: Vec<_> = scene.marked().filter(|(mark, ..)| *mark == BY_HAND).collect();
    ensure!(roots.iter().all(|(.., root)| root.entry == "other"), "{roots:?}");
    ensure!(roots.len() == PROGRAMS, "{} programs", roots.len());
    Ok(())
}

fn nsenter_is_a_namespace_entry(scene: &Scene) -> Result<()> {
    let found: Vec<_> = scene.marked().filter(|(mark, ..)| *mark == NSENTER).collect();
    ensure!(found.len() == 2, "{} programs", found.len());
    for (_, record, start, root) in &found {
        ensure!(start.is_session_root == (record.pid == root.pid), "{record:?}");
        ensure!(root.entry == "namespace_entry" && root.lineage == scene.from_outside, "{root:?}");
        ensure!(container_id(record) == scene.containers[1].id, "{root:?}");
    }
    Ok(())
}
