//! A real systemd as the machine's first process, asked by `systemd-run` from a session that reached the host, as in a debug pod:
//! what systemd starts on the host is nobody's, what it sends into a container entered it by itself, and only a scope stays below
//! who asked for it.
//!
//! This program becomes systemd, and a process of its own does the rest: so this group is the last.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use seclog_proto::v1::{NodeRecord, ProcessStart, SessionRoot};
use seclog_tests::lab::{process::PATIENCE, runtime_scene::CONTAINERS};

use super::{
    containers::{Container, Scene, container, container_id, key, nothing_is_lost, set_up, specify_exec},
    session::{Acting, Agent, CAP_AUDIT_READ},
};

/// The argument of the process that stays when this program becomes systemd.
pub(crate) const STAYS: &str = "below-systemd";
/// systemd listens for root here, with no message bus in between.
const PRIVATE_SOCKET: &str = "/run/systemd/private";
/// A target that wants nothing, and those that every transient service is ordered after.
const TARGETS: [&str; 4] = ["seclog", "sysinit", "basic", "shutdown"];
/// What is asked for: it says who it is, by the mark that it gets.
const ASKED: &str = "/run/scene/asked";

/// What a mark stands for.
const SESSION: usize = 0;
const ON_HOST: usize = 1;
const INTO_CONTAINER: usize = 2;
const SCOPE: usize = 3;
const BY_RUNTIME: usize = 4;
const MARKS: [usize; 4] = [ON_HOST, INTO_CONTAINER, SCOPE, BY_RUNTIME];

pub(crate) fn systemd(_: &Path) -> Vec<(&'static str, Result<()>)> {
    // It returns only where it fails.
    vec![("run", become_systemd())]
}

fn become_systemd() -> Result<()> {
    let units = Path::new("/etc/systemd/system");
    fs::create_dir_all(units)?;
    for target in TARGETS {
        fs::write(units.join(target).with_extension("target"), format!("[Unit]\nDescription={target}\n"))?;
    }
    Command::new("/init").arg(STAYS).spawn().context("the process that stays")?;
    let mut systemd = Command::new("/bin/systemd");
    systemd.args(["--unit=seclog.target", "--log-target=console", "--log-level=warning", "--show-status=no"]);
    Err(systemd.exec()).context("systemd")
}

pub(crate) fn below_systemd() -> Vec<(&'static str, Result<()>)> {
    let scene = match play() {
        Ok(scene) => scene,
        Err(error) => return vec![("run", Err(error))],
    };
    vec![
        ("run", nothing_is_lost(&scene)),
        ("what-systemd-starts-on-the-host-is-nobodys", on_the_host_is_nobodys(&scene)),
        ("what-systemd-sends-into-a-container-is-a-namespace-entry", into_a_container(&scene)),
        ("a-scope-stays-below-who-asked-for-it", a_scope_stays(&scene)),
        ("the-runtime-below-systemd-is-no-exec", the_runtime_below_systemd(&scene)),
    ]
}

fn play() -> Result<Scene> {
    wait_until("systemd's socket", || Path::new(PRIVATE_SOCKET).exists())?;
    let hierarchies = ["/sys/fs/cgroup"];
    set_up(&["crio", "conmon", "runc"], &hierarchies)?;
    let containers = (0..2).map(container).collect::<Result<Vec<_>>>()?;
    ask(&containers)?;
    let mut service = Acting::start(&mut Command::new("/usr/bin/crio"))?;
    let agent = Agent::start(&[CAP_AUDIT_READ], &["--no-cri"])?;
    service.tell()?;
    service.is_ready()?;
    service.tell()?;
    service.is_ready()?;
    wait_until("everything that was asked for", || MARKS.iter().all(|mark| ran(*mark).is_some()))?;
    // systemd, and nobody else, started what it was asked for: its word, beside that of the process itself.
    let parent = ran(ON_HOST).context("gone")?;
    ensure!(parent == "1" && fs::read_to_string("/proc/1/comm")? == "systemd\n", "started by {parent}");
    let told = |line: &&String| line.contains("\"kind\":\"process_start\"") && line.contains("\"/bin/true\"");
    // All of them but the host's, in whose place one more would be the last to come.
    agent.process().stdout().wait_until(PATIENCE, |lines| lines.iter().filter(told).count() >= MARKS.len());
    service.tell()?;
    service.ends()?;
    Ok(Scene { captured: agent.stop()?, containers, from_outside: "kernel" })
}

fn ran(mark: usize) -> Option<String> {
    let said = fs::read_to_string(format!("{CONTAINERS}/ran-mark-{mark}")).ok()?;
    // Whole when its line has ended.
    Some(said.strip_suffix('\n')?.to_owned())
}

/// One session, in the first container, which is among the host's processes, asks for all of it from the host's mounts.
fn ask(containers: &[Container]) -> Result<()> {
    const HOST: &str = "/bin/busybox nsenter -t 1 -m /bin/systemd-run";
    fs::write(ASKED, format!("/bin/true \"$1\"\necho \"$PPID\" >\"{CONTAINERS}/ran-$1\"\n"))?;
    let (debug, victim) = (&containers[0].id, &containers[1].id);
    fs::write(Path::new(CONTAINERS).join("containers").join(debug).join("host-pids"), "")?;
    let by_runtime = Path::new(CONTAINERS).join("by-runtime");
    fs::write(&by_runtime, format!("{victim}\nexec\n/bin/sh {ASKED} mark-{BY_RUNTIME}; :\n"))?;
    let script = format!(
        ": mark-{SESSION}; set -e; /bin/true mark-{SESSION}; \
         {HOST} --unit=on-host /bin/sh {ASKED} mark-{ON_HOST}; \
         {HOST} --unit=into-container /bin/busybox nsenter -t $(/bin/cat {CONTAINERS}/containers/{victim}/pid) -m -p \
         /bin/sh {ASKED} mark-{INTO_CONTAINER}; \
         {HOST} --scope --unit=scope /bin/sh {ASKED} mark-{SCOPE}; \
         {HOST} --unit=by-runtime /usr/bin/runc --root /run/runc exec --process {} {victim}; :",
        by_runtime.display()
    );
    specify_exec(SESSION, "exec", debug, &script)
}

fn wait_until(what: &str, holds: impl Fn() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        ensure!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

// === What is found of a mark ===

/// What was asked for, without those who ask: their arguments have the mark too.
fn asked(scene: &Scene, mark: usize) -> impl Iterator<Item = (&NodeRecord, &ProcessStart)> {
    let argument = format!("mark-{mark}");
    let is_it = move |start: &ProcessStart| {
        matches!(start.filename.as_str(), "/bin/sh" | "/bin/true")
            && start.argv.last().is_some_and(|last| *last == argument)
    };
    scene.captured.starts().filter(move |(_, start)| is_it(start))
}

/// The root of them all.
fn root_of(scene: &Scene, mark: usize, programs: usize) -> Result<(&SessionRoot, &str)> {
    let found: Vec<_> = asked(scene, mark).collect();
    ensure!(found.len() == programs, "{} programs with mark {mark}: {found:?}", found.len());
    let root = |record: &'_ NodeRecord| record.session_root.clone().map(|root| key(&root));
    let (first, _) = found[0];
    ensure!(found.iter().all(|(record, _)| root(record) == root(first)), "mark {mark}: {found:?}");
    Ok((first.session_root.as_ref().with_context(|| format!("mark {mark} has no root"))?, container_id(first)))
}

fn session(scene: &Scene) -> Result<&SessionRoot> {
    let (root, container) = root_of(scene, SESSION, 1)?;
    ensure!(root.entry == "exec" && container == scene.containers[0].id, "{root:?} in {container}");
    Ok(root)
}

// === What must hold ===

/// The one who asks is the session's, on the host; what comes of it is in no record.
fn on_the_host_is_nobodys(scene: &Scene) -> Result<()> {
    let session = session(scene)?;
    let mark = format!("mark-{ON_HOST}");
    let mut clients = 0;
    for (record, start) in scene.captured.starts().filter(|(_, start)| start.argv.contains(&mark)) {
        let root = record.session_root.as_ref().map(key);
        ensure!(root == Some(key(session)), "{start:?} below {root:?}");
        ensure!(!matches!(start.filename.as_str(), "/bin/sh" | "/bin/true"), "systemd's own: {record:?}");
        if start.filename == "/bin/systemd-run" {
            ensure!(start.entered_container_id == "host", "{start:?}");
            clients += 1;
        }
    }
    ensure!(clients == 1, "{clients} clients");
    let of_unit =
        |record: &&NodeRecord| record.container.as_ref().is_some_and(|of| of.cgroup_path.contains("on-host.service"));
    let found = scene.captured.records.iter().find(of_unit);
    ensure!(found.is_none(), "{found:?}");
    Ok(())
}

fn into_a_container(scene: &Scene) -> Result<()> {
    let (root, container) = root_of(scene, INTO_CONTAINER, 2)?;
    ensure!(key(root) != key(session(scene)?), "{root:?} is the session's");
    ensure!(root.entry == "namespace_entry" && container == scene.containers[1].id, "{root:?} in {container}");
    Ok(())
}

/// systemd only moves it: systemd-run itself becomes what is asked for.
fn a_scope_stays(scene: &Scene) -> Result<()> {
    let (root, container) = root_of(scene, SCOPE, 2)?;
    ensure!(key(root) == key(session(scene)?) && container == scene.containers[0].id, "{root:?} in {container}");
    Ok(())
}

fn the_runtime_below_systemd(scene: &Scene) -> Result<()> {
    let (root, container) = root_of(scene, BY_RUNTIME, 2)?;
    ensure!(key(root) != key(session(scene)?), "{root:?} is the session's");
    ensure!(root.entry == "other" && container == scene.containers[1].id, "{root:?} in {container}");
    Ok(())
}
