//! What is told of processes that are hard to see: short lives, long arguments, hidden names, threads, suppressed verdicts.
//! One agent follows one pod and a runtime, and all of it happens in turn.

use std::{
    fs,
    os::unix::{
        fs::{MetadataExt as _, PermissionsExt as _},
        process::ExitStatusExt as _,
    },
    path::Path,
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use seclog_proto::v1::{NodeRecord, ProcessStart, Verdict, node_record::Detail};
use seclog_tests::lab::{
    agreement::{disagreements, verdicts},
    audit_record::SeccompRecord,
    audit_socket::Observer,
};

use super::session::{Acting, Agent, Captured, Runtime, act, act_inside, act_outside, inside, run_inside};

const WANTED: &str = "SPO_EXEC_REQUEST_UID=4f6b7f0e-1d0b-4d0c-8f53-8a3d8c1f2b11";
const SHORT_LIVES: usize = 20;
const OUTSIDE: u32 = 50;
const THREADED: usize = 20;
const LOOPS: usize = 100;
const REUSED: u32 = 300;
/// execve from a thread, twice getppid of the nameless, -1, three ABIs, and those that reuse pids.
const VERDICTS: usize = 1 + 2 + 1 + 3 + REUSED as usize;

/// Everything that happened, and what was said of it.
struct Story {
    captured: Captured,
    heard: Vec<SeccompRecord>,
    cgroup_id: u64,
    /// The pids of the roots.
    who: Who,
    short_lives: u32,
    arguments: u32,
    script: u32,
    crowded: u32,
    threads: u32,
    thread_exec: u32,
    exec_loop: u32,
    notified: u32,
    traced: u32,
    nameless: u32,
    minus_one: u32,
    abis: u32,
    reuse: u32,
}

/// What a process says of itself.
struct Who {
    pid: u32,
    parent: u32,
    start_ticks: u64,
    mount_namespace: u64,
    pid_namespace: u64,
}

pub(crate) fn processes(cgroup: &Path) -> Vec<(&'static str, Result<()>)> {
    let story = match tell(cgroup) {
        Ok(story) => story,
        Err(error) => return vec![("run", Err(error))],
    };
    vec![
        ("run", story.captured.identities_hold()),
        ("a-root-is-described-whole", a_root_is_described_whole(&story)),
        ("a-wanted-variable-behind-400-others", a_wanted_variable_behind_400_others(&story)),
        ("an-environment-too-long-says-so", an_environment_too_long_says_so(&story)),
        ("a-life-of-one-system-call-is-whole", a_life_of_one_system_call_is_whole(&story)),
        ("a-script-and-its-interpreter", a_script_and_its_interpreter(&story)),
        ("hostile-and-long-arguments", hostile_and_long_arguments(&story)),
        ("only-what-matters-leaves-the-kernel", only_what_matters_leaves_the_kernel(&story)),
        ("a-root-from-outside-is-one", a_root_from_outside_is_one(&story)),
        ("threads-are-no-processes-and-end-once", threads_are_no_processes_and_end_once(&story)),
        ("exec-of-another-thread", exec_of_another_thread(&story)),
        ("an-exec-loop-is-followed", an_exec_loop_is_followed(&story)),
        ("user-notif-hides-the-verdict-not-the-start", hidden_verdict(&story, story.notified)),
        ("trace-hides-the-verdict-not-the-start", hidden_verdict(&story, story.traced)),
        ("deleted-and-memory-files", deleted_and_memory_files(&story)),
        ("syscall-minus-one", syscall_minus_one(&story)),
        ("every-abi-is-named", every_abi_is_named(&story)),
        ("pids-used-again-do-not-mix", pids_used_again_do_not_mix(&story)),
        ("every-verdict-as-audit-has-it", every_verdict_as_audit_has_it(&story)),
    ]
}

fn tell(cgroup: &Path) -> Result<Story> {
    let observer = Observer::start()?;
    // Started before the runtime, it is nobody's that matters.
    let mut outsider = Acting::start(act(&["outside", &OUTSIDE.to_string()]).arg(cgroup))?;
    let runtime = Runtime::start()?;
    act_outside(&["shortest", "/tmp/shortest"])?;
    fs::write("/tmp/a script", "#!/bin/sh -e\nexit 0\n")?;
    fs::set_permissions("/tmp/a script", fs::Permissions::from_mode(0o755))?;
    let agent = Agent::start(&[], &runtime.arguments(&[]))?;
    outsider.tell()?;
    outsider.ends()?;
    let act_of = |arguments: &[&str]| act_inside(cgroup, arguments);
    let reuse = with_few_pids(|| act_of(&["reuse", &REUSED.to_string()]))?;
    let who = who(cgroup)?;
    let story = Story {
        cgroup_id: fs::metadata(cgroup)?.ino(),
        who,
        crowded: crowded(cgroup)?,
        short_lives: act_of(&["spawn", &SHORT_LIVES.to_string(), "--", "/tmp/shortest", "a", "b c"])?,
        arguments: act_of(&["arguments"])?,
        script: run_inside(cgroup, &["/tmp/a script", "one"])?,
        threads: act_of(&["threads", &THREADED.to_string(), "16"])?,
        thread_exec: act_of(&["thread-exec", "--", "/bin/true", "from a thread"])?,
        exec_loop: act_of(&["exec-loop", &LOOPS.to_string()])?,
        notified: act_of(&["notify", "--", "/bin/true", "hidden"])?,
        traced: act_of(&["trace", "--", "/bin/true", "hidden"])?,
        nameless: act_of(&["nameless"])?,
        minus_one: act_of(&["minus-one"])?,
        abis: act_of(&["abis"])?,
        reuse,
        captured: Captured::default(),
        heard: Vec::new(),
    };
    observer.wait_for(VERDICTS);
    agent.wait_for_verdicts(VERDICTS);
    let captured = agent.stop()?;
    let heard = observer.finish()?;
    ensure!(heard.overflows == 0, "the observer itself lost records {} times", heard.overflows);
    let heard = heard.records.iter().map(|text| SeccompRecord::parse(text).with_context(|| text.clone()));
    Ok(Story { captured, heard: heard.collect::<Result<_>>()?, ..story })
}

/// Pids are used again after at most 100 forks; afterwards not any more.
fn with_few_pids(run: impl FnOnce() -> Result<u32>) -> Result<u32> {
    const FEW: u32 = 400;
    const PID_MAX: &str = "/proc/sys/kernel/pid_max";
    fs::write(PID_MAX, FEW.to_string())?;
    let result = run()?;
    fs::write(PID_MAX, "32768")?;
    loop {
        let mut child = std::process::Command::new("/bin/true").spawn()?;
        child.wait()?;
        if child.id() > FEW {
            return Ok(result);
        }
    }
}

/// A root with 400 variables before the wanted one; what it says of itself.
fn who(cgroup: &Path) -> Result<Who> {
    let mut command = inside(cgroup, &["/bin/seclog-act", "who"]);
    command.env_clear().envs((0..400).map(|index| (format!("A{index:03}"), "x".repeat(index % 50))));
    let (name, value) = WANTED.split_once('=').context("a variable")?;
    let output = command.env(name, value).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let of = |name: &str| -> Result<u64> {
        let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
        let value = pairs.filter(|(of, _)| *of == name).map(|(_, value)| value).next();
        Ok(value.with_context(|| format!("no {name} in {text:?}"))?.parse()?)
    };
    Ok(Who {
        pid: of("pid")? as u32,
        parent: of("parent")? as u32,
        start_ticks: of("start_ticks")?,
        mount_namespace: of("mnt")?,
        pid_namespace: of("pid_ns")?,
    })
}

/// A root with more variables than are looked at, the wanted one last.
fn crowded(cgroup: &Path) -> Result<u32> {
    let mut command = inside(cgroup, &["/bin/true", "crowded"]);
    command.env_clear().envs((0..600).map(|index| (format!("A{index:03}"), "x")));
    let (name, value) = WANTED.split_once('=').context("a variable")?;
    let mut child = command.env(name, value).spawn()?;
    ensure!(child.wait()?.into_raw() == 0, "/bin/true failed");
    Ok(child.id())
}

// === What is found of a pid ===

impl Story {
    /// Starts of the processes below the root with this pid, the root's own first.
    fn starts_below(&self, root: u32) -> Vec<(&NodeRecord, &ProcessStart)> {
        let is_root = |record: &NodeRecord, start: &ProcessStart| record.pid == root && start.is_session_root;
        let Some((first, _)) = self.captured.starts().find(|(record, start)| is_root(record, start)) else {
            return Vec::new();
        };
        let key = (root, first.start_boottime_ns);
        let below = self.captured.starts().filter(|(record, _)| root_of(record) == key);
        below.collect()
    }

    fn below(&self, root: u32) -> Vec<&NodeRecord> {
        let starts = self.starts_below(root);
        let Some((first, _)) = starts.first() else { return Vec::new() };
        let key = root_of(first);
        self.captured.records.iter().filter(|record| root_of(record) == key).collect()
    }

    fn verdicts_below(&self, root: u32) -> Vec<(&NodeRecord, &Verdict)> {
        self.below(root)
            .into_iter()
            .filter_map(|record| match &record.detail {
                Some(Detail::Verdict(verdict)) => Some((record, verdict)),
                _ => None,
            })
            .collect()
    }

    fn root(&self, pid: u32) -> Result<(&NodeRecord, &ProcessStart)> {
        self.starts_below(pid).into_iter().next().with_context(|| format!("no start of the root {pid}"))
    }
}

fn root_of(record: &NodeRecord) -> (u32, u64) {
    record.session_root.as_ref().map_or((0, 0), |root| (root.pid, root.start_boottime_ns))
}

// === What must hold ===

fn a_root_is_described_whole(story: &Story) -> Result<()> {
    let who = &story.who;
    let (record, start) = story.root(who.pid)?;
    let container = record.container.clone().unwrap_or_default();
    ensure!(start.argv == ["/bin/seclog-act", "who"] && start.filename == "/bin/seclog-act", "{start:?}");
    ensure!(start.argv_truncated_bytes == 0 && record.comm == "seclog-act", "{record:?}");
    ensure!(record.creator_pid == who.parent && record.creator_pid == std::process::id(), "{}", record.creator_pid);
    ensure!(record.start_boottime_ns / 10_000_000 == who.start_ticks, "start {}", record.start_boottime_ns);
    ensure!(container.cgroup_id == story.cgroup_id && container.id == super::container_id(), "{container:?}");
    ensure!(container.mount_namespace == who.mount_namespace, "{container:?}");
    ensure!(container.pid_namespace == who.pid_namespace, "{container:?}");
    let root = record.session_root.clone().unwrap_or_default();
    ensure!(root.pid == who.pid && root.lineage == "observed", "{root:?}");
    Ok(())
}

fn a_wanted_variable_behind_400_others(story: &Story) -> Result<()> {
    let (_, start) = story.root(story.who.pid)?;
    ensure!(start.environment == [WANTED], "{:?}", start.environment);
    ensure!(start.environment_searched == "whole", "searched {:?}", start.environment_searched);
    Ok(())
}

fn an_environment_too_long_says_so(story: &Story) -> Result<()> {
    let (_, start) = story.root(story.crowded)?;
    ensure!(start.environment.is_empty() && start.environment_searched == "part", "{start:?}");
    Ok(())
}

fn a_life_of_one_system_call_is_whole(story: &Story) -> Result<()> {
    let starts = story.starts_below(story.short_lives);
    let short: Vec<_> = starts.iter().filter(|(_, start)| start.filename == "/tmp/shortest").collect();
    ensure!(short.len() == SHORT_LIVES, "{} of {SHORT_LIVES}", short.len());
    for (record, start) in &short {
        ensure!(start.argv == ["/tmp/shortest", "a", "b c"] && record.comm == "shortest", "{record:?}");
        ensure!(record.creator_pid == story.short_lives && record.start_boottime_ns > 0, "{record:?}");
        let container = record.container.clone().unwrap_or_default();
        ensure!(container.cgroup_id == story.cgroup_id && container.mount_namespace != 0, "{container:?}");
        ensure!(exits_of(story, record) == 1, "{} ends of {record:?}", exits_of(story, record));
    }
    Ok(())
}

fn exits_of(story: &Story, of: &NodeRecord) -> usize {
    let same = |record: &&NodeRecord| (record.pid, record.start_boottime_ns) == (of.pid, of.start_boottime_ns);
    let exits = story.captured.records.iter().filter(|record| matches!(record.detail, Some(Detail::ProcessExit(_))));
    exits.filter(same).count()
}

fn a_script_and_its_interpreter(story: &Story) -> Result<()> {
    let (_, start) = story.root(story.script)?;
    ensure!(start.filename == "/tmp/a script" && start.interpreter == "/bin/sh", "{start:?}");
    ensure!(start.argv == ["/bin/sh", "-e", "/tmp/a script", "one"], "{:?}", start.argv);
    Ok(())
}

/// Control characters and invalid UTF-8, 6000 bytes, almost 2 MiB, none at all.
fn hostile_and_long_arguments(story: &Story) -> Result<()> {
    let all = story.starts_below(story.arguments);
    let starts: Vec<_> = all.iter().filter(|(_, start)| !start.is_session_root).map(|(_, start)| *start).collect();
    let [hostile, long, longest, none] = starts.as_slice() else { anyhow::bail!("{} starts", starts.len()) };
    let expected = seclog_proto::text::from_bytes(b"\x1b[31mred\nnew \"line\"\t\\\xff\xfe\x7f");
    ensure!(hostile.argv == ["/bin/true", &expected], "{:?}", hostile.argv);
    ensure!(long.argv == ["/bin/true", &"y".repeat(6000)] && long.argv_truncated_bytes == 0, "{long:?}");
    let (whole, shown) =
        (10 + 15 * 131_001, longest.argv.iter().map(|argument| argument.len() as u64 + 1).sum::<u64>());
    ensure!(longest.argv_truncated_bytes == whole - 8192, "{} bytes are missing", longest.argv_truncated_bytes);
    ensure!(longest.argv.len() == 2 && shown - 1 == 8192, "{shown} bytes are shown");
    // Since 5.18 the kernel puts one empty argument there (do_execveat_common in fs/exec.c).
    ensure!(none.filename == "/tmp/shortest" && none.argv.concat().is_empty() && none.argv.len() <= 1, "{none:?}");
    Ok(())
}

fn only_what_matters_leaves_the_kernel(story: &Story) -> Result<()> {
    let filtered = story.captured.counter("lineage_filtered")?;
    // Fork, exec and exit of each.
    ensure!(filtered >= 3 * u64::from(OUTSIDE), "{filtered} events filtered");
    let outside = story.captured.records.iter().filter(|record| record.pid != 0 && record.session_root.is_none());
    ensure!(outside.clone().count() == 0, "{:?}", outside.clone().next());
    Ok(())
}

/// As by nsenter from a shell of the host: nothing but the entry itself was followed.
fn a_root_from_outside_is_one(story: &Story) -> Result<()> {
    let found: Vec<_> =
        story.captured.starts().filter(|(_, start)| start.argv.ends_with(&["from outside".into()])).collect();
    let [(record, start)] = found.as_slice() else { anyhow::bail!("{} starts", found.len()) };
    let root = record.session_root.clone().unwrap_or_default();
    ensure!(start.is_session_root && start.environment_searched == "whole", "{start:?}");
    ensure!((root.pid, root.start_boottime_ns) == (record.pid, record.start_boottime_ns), "{root:?}");
    ensure!(root.entry == "unknown" && root.lineage == "kernel", "{root:?}");
    Ok(())
}

fn threads_are_no_processes_and_end_once(story: &Story) -> Result<()> {
    let below = story.below(story.threads);
    let exits: Vec<_> = below.iter().filter(|record| matches!(record.detail, Some(Detail::ProcessExit(_)))).collect();
    // The threaded processes and the root itself.
    ensure!(exits.len() == THREADED + 1, "{} ends of {} processes", exits.len(), THREADED + 1);
    let mut keys: Vec<_> = exits.iter().map(|record| (record.pid, record.start_boottime_ns)).collect();
    keys.sort_unstable();
    keys.dedup();
    ensure!(keys.len() == THREADED + 1, "{} different processes ended", keys.len());
    Ok(())
}

fn exec_of_another_thread(story: &Story) -> Result<()> {
    let starts = story.starts_below(story.thread_exec);
    let (record, start) = starts.last().context("no start")?;
    ensure!(starts.len() == 2 && start.argv == ["/bin/true", "from a thread"], "{starts:?}");
    ensure!(record.pid == story.thread_exec && record.tid == record.pid, "{record:?}");
    let verdicts = story.verdicts_below(story.thread_exec);
    let [(caller, verdict)] = verdicts.as_slice() else { anyhow::bail!("{} verdicts", verdicts.len()) };
    ensure!(caller.pid == record.pid && caller.tid != caller.pid, "{caller:?}");
    ensure!(verdict.outcome == "executed" && verdict.target_id == record.id, "{verdict:?}");
    ensure!(exits_of(story, record) == 1, "{} ends", exits_of(story, record));
    Ok(())
}

fn an_exec_loop_is_followed(story: &Story) -> Result<()> {
    let starts = story.starts_below(story.exec_loop);
    ensure!(starts.len() == LOOPS + 1, "{} starts", starts.len());
    for (index, (record, start)) in starts.iter().enumerate() {
        ensure!(record.pid == story.exec_loop, "{record:?}");
        ensure!(start.argv.last() == Some(&(LOOPS - index).to_string()), "{:?} at {index}", start.argv);
        ensure!(record.generation == starts[0].0.generation + index as u32, "generation {}", record.generation);
    }
    Ok(())
}

/// The answer that outranks LOG keeps the verdict from being made; the start is told, below its root.
fn hidden_verdict(story: &Story, root: u32) -> Result<()> {
    let starts = story.starts_below(root);
    let hidden: Vec<_> = starts.iter().filter(|(_, start)| start.argv == ["/bin/true", "hidden"]).collect();
    let [(record, _)] = hidden.as_slice() else { anyhow::bail!("{} starts", hidden.len()) };
    ensure!(record.pid != root && record.creator_pid == root, "{record:?}");
    ensure!(story.verdicts_below(root).is_empty(), "{:?}", story.verdicts_below(root));
    ensure!(story.heard.iter().all(|heard| heard.pid != record.pid || heard.syscall != 59), "audit has one");
    Ok(())
}

fn deleted_and_memory_files(story: &Story) -> Result<()> {
    let verdicts = story.verdicts_below(story.nameless);
    let exes: Vec<&str> = verdicts.iter().map(|(_, verdict)| verdict.exe.as_str()).collect();
    ensure!(exes.len() == 2, "{exes:?}");
    ensure!(exes[0] == "/tmp/it is \"deleted\" (deleted)", "{exes:?}");
    ensure!(exes[1].starts_with("/memfd:in memory"), "{exes:?}");
    Ok(())
}

fn syscall_minus_one(story: &Story) -> Result<()> {
    let verdicts = story.verdicts_below(story.minus_one);
    let [(_, verdict)] = verdicts.as_slice() else { anyhow::bail!("{} verdicts", verdicts.len()) };
    ensure!(verdict.syscall == -1 && verdict.syscall_name.is_empty() && verdict.sources.len() == 2, "{verdict:?}");
    Ok(())
}

fn every_abi_is_named(story: &Story) -> Result<()> {
    let found: Vec<(i64, &str, &str, bool)> = story
        .verdicts_below(story.abis)
        .iter()
        .map(|(_, verdict)| (verdict.syscall, &*verdict.arch_name, &*verdict.syscall_name, verdict.compat))
        .collect();
    let expected =
        [(110, "x86_64", "getppid", false), (64, "i386", "getppid", true), (0x4000_006e, "x32", "getppid", false)];
    ensure!(found == expected, "{found:?}");
    Ok(())
}

/// One verdict of each process; its halves are of the same process when audit's name and user (which the record shows)
/// are in the order of the start times (which only eBPF has).
fn pids_used_again_do_not_mix(story: &Story) -> Result<()> {
    let mut found: Vec<(u64, u32, u32, String)> = story
        .verdicts_below(story.reuse)
        .iter()
        .filter(|(_, verdict)| verdict.sources.len() == 2)
        .map(|(record, _)| (record.start_boottime_ns, record.pid, record.uid, record.comm.clone()))
        .collect();
    found.sort_unstable();
    ensure!(found.len() == REUSED as usize, "{} of {REUSED} verdicts seen by both", found.len());
    for (index, (_, pid, user, comm)) in found.iter().enumerate() {
        ensure!(*comm == format!("reuse-{index}") && *user == 10_000 + index as u32, "{index}: {comm} {user} {pid}");
    }
    let mut pids: Vec<u32> = found.iter().map(|(_, pid, ..)| *pid).collect();
    pids.sort_unstable();
    pids.dedup();
    ensure!(pids.len() <= 100, "{} pids: none was used again", pids.len());
    Ok(())
}

fn every_verdict_as_audit_has_it(story: &Story) -> Result<()> {
    ensure!(story.heard.len() == VERDICTS, "audit has {} verdicts of {VERDICTS}", story.heard.len());
    let found = disagreements(&story.heard, &story.captured.records);
    ensure!(found.is_empty(), "{} disagreements: {:?}", found.len(), &found[..found.len().min(5)]);
    let both = verdicts(&story.captured.records).filter(|(_, verdict)| verdict.sources.len() == 2).count();
    ensure!(both == VERDICTS, "{both} of {VERDICTS} by both");
    Ok(())
}
