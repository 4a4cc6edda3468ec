//! What the checks share: an agent that is slowed or bounded as told, what it captured, and acts in a container.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use seclog_proto::v1::{Loss, NodeRecord, ProcessStart, VerdictCount, node_record::Detail};
use seclog_tests::lab::{agreement::verdicts, image::run, process::Process};

const ACT: &str = "/bin/seclog-act";
const RUNTIME_SOCKET: &str = "/run/runtime.sock";

/// Numbers of include/uapi/linux/capability.h.
pub(crate) const CAP_NET_ADMIN: u32 = 12;
pub(crate) const CAP_AUDIT_READ: u32 = 37;

/// A running agent.
pub(crate) struct Agent(Process);

/// What an agent said from start to end.
#[derive(Default)]
pub(crate) struct Captured {
    pub(crate) records: Vec<NodeRecord>,
    pub(crate) counters: BTreeMap<String, u64>,
    pub(crate) log: Vec<String>,
}

/// A process that waits to be told.
pub(crate) struct Acting {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

/// In place of a container runtime: a process with a cgroup of its own behind the CRI socket. This process joins that
/// cgroup as long, so that what it starts in containers is started by the runtime.
pub(crate) struct Runtime {
    _served: Acting,
}

// === impl Agent ===

impl Agent {
    /// Without the capabilities of these numbers.
    pub(crate) fn start(without: &[u32], arguments: &[&str]) -> Result<Self> {
        let mut command = if without.is_empty() {
            Command::new(super::agent_program())
        } else {
            let mut command = Command::new(ACT);
            let numbers: Vec<String> = without.iter().map(u32::to_string).collect();
            command.args(["without", &numbers.join(","), "--"]).arg(super::agent_program());
            command
        };
        command.args(["run", "--sink", "stdout", "--node", "vm", "--cluster", "test"]).args(arguments);
        Self::started(&mut command)
    }

    /// By this command; returns when it captures.
    pub(crate) fn started(command: &mut Command) -> Result<Self> {
        let agent = Process::start("seclog-agent", command.env("NO_COLOR", "1"))?;
        agent.wait_for_log("capturing")?;
        Ok(Self(agent))
    }

    pub(crate) fn process(&self) -> &Process {
        &self.0
    }

    /// Takes no part until [`Agent::go_on`].
    pub(crate) fn pause(&self) {
        self.0.signal(Signal::SIGSTOP);
    }

    pub(crate) fn go_on(&self) {
        self.0.signal(Signal::SIGCONT);
    }

    /// Waits until its records hold as many verdicts.
    pub(crate) fn wait_for_verdicts(&self, count: usize) {
        super::agent_run::wait_for_verdicts(&self.0, count);
    }

    /// Ends it in order.
    pub(crate) fn stop(self) -> Result<Captured> {
        let status = self.0.terminate()?;
        ensure!(status.success(), "the agent ended with {status}; its log: {}", self.0.log());
        self.0.stdout().wait_for_end();
        self.0.stderr().wait_for_end();
        let parse = |line: &String| serde_json::from_str(line).with_context(|| format!("not a node record: {line}"));
        let records = self.0.stdout().all().iter().map(parse).collect::<Result<_>>()?;
        let log = self.0.stderr().all();
        let counters = log.iter().find_map(|line| counters_of(line)).context("the agent told no counters")?;
        Ok(Captured { records, counters, log })
    }
}

/// `… captured counters=[("fused", 3), ("only_audit", 0)]`
fn counters_of(line: &str) -> Option<BTreeMap<String, u64>> {
    let (_, list) = line.split_once("captured counters=[")?;
    let pairs = list.split('(').skip(1);
    pairs
        .map(|pair| {
            let (name, rest) = pair.split_once(", ")?;
            let (value, _) = rest.split_once(')')?;
            Some((name.trim_matches('"').to_owned(), value.parse().ok()?))
        })
        .collect()
}

// === impl Captured ===

impl Captured {
    /// 0 for what a source that does not work here would count.
    pub(crate) fn counter(&self, name: &str) -> Result<u64> {
        let absent = ["verdict_", "lineage_", "verdicts_counted", "overflow_"];
        if !self.counters.contains_key("verdict_seen") && absent.iter().any(|prefix| name.starts_with(prefix)) {
            return Ok(0);
        }
        self.counters.get(name).copied().with_context(|| format!("no counter {name}"))
    }

    pub(crate) fn starts(&self) -> impl Iterator<Item = (&NodeRecord, &ProcessStart)> {
        self.records.iter().filter_map(|record| match &record.detail {
            Some(Detail::ProcessStart(start)) => Some((record, start)),
            _ => None,
        })
    }

    pub(crate) fn counts(&self) -> impl Iterator<Item = (&NodeRecord, &VerdictCount)> {
        self.records.iter().filter_map(|record| match &record.detail {
            Some(Detail::VerdictCount(count)) => Some((record, count)),
            _ => None,
        })
    }

    /// Losses of a source but for the one that every start begins with.
    pub(crate) fn losses<'a>(&'a self, source: &'a str) -> impl Iterator<Item = &'a Loss> {
        self.records.iter().filter_map(move |record| match &record.detail {
            Some(Detail::Loss(loss)) if loss.source == source => Some(loss),
            _ => None,
        })
    }

    pub(crate) fn lost(&self, source: &str) -> u64 {
        self.losses(source).map(|loss| loss.count).sum()
    }

    pub(crate) fn verdict_count(&self) -> u64 {
        verdicts(&self.records).count() as u64
    }

    /// What must hold between the counters of any run, and between them and the records: nothing is lost silently.
    pub(crate) fn identities_hold(&self) -> Result<()> {
        let of = |name: &str| self.counter(name);
        let counted: u64 = self.counts().map(|(_, count)| count.count).sum();
        let misses = of("verdict_recursion_misses")? + of("lineage_recursion_misses")?;
        let identities = [
            (
                "verdict program: seen = submitted + aggregated + dropped",
                of("verdict_seen")?,
                of("verdict_submitted")? + of("verdict_aggregated")? + of("verdict_dropped")?,
            ),
            (
                "lineage programs: seen = submitted + dropped",
                of("lineage_seen")?,
                of("lineage_submitted")? + of("lineage_dropped")?,
            ),
            ("verdict ring: submitted = read", of("verdict_submitted")?, of("kernel_verdicts")?),
            ("lineage ring: submitted = read", of("lineage_submitted")?, of("lineage_events")?),
            ("counts in records = aggregated", counted, of("verdict_aggregated")?),
            ("counts handed over = aggregated", of("verdicts_counted")?, of("verdict_aggregated")?),
            ("fused + only_kernel = kernel_verdicts", of("fused")? + of("only_kernel")?, of("kernel_verdicts")?),
            ("fused + only_audit = audit_verdicts", of("fused")? + of("only_audit")?, of("audit_verdicts")?),
            (
                "verdict records = fused + only_kernel + only_audit",
                self.verdict_count(),
                of("fused")? + of("only_kernel")? + of("only_audit")?,
            ),
            ("loss records of the verdict ring = dropped", self.lost("verdict_ring"), of("verdict_dropped")?),
            ("loss records of the lineage ring = dropped", self.lost("lineage_ring"), of("lineage_dropped")?),
            ("loss records of the hooks = recursion misses", self.lost("hook"), misses),
            (
                "unreadable and malformed",
                of("overflow_unreadable")? + of("malformed_ring")? + of("malformed_audit")?,
                0,
            ),
        ];
        let wrong: Vec<String> = identities
            .iter()
            .filter(|(_, left, right)| left != right)
            .map(|(what, left, right)| format!("{what}: {left} and {right}"))
            .collect();
        ensure!(wrong.is_empty(), "{}; all counters: {:?}", wrong.join("; "), self.counters);
        Ok(())
    }
}

// === impl Acting ===

impl Acting {
    /// Returns when it is ready.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("an act")?;
        let input = child.stdin.take().context("no pipe")?;
        let output = BufReader::new(child.stdout.take().context("no pipe")?);
        let mut acting = Self { child, input, output };
        acting.is_ready()?;
        Ok(acting)
    }

    pub(crate) fn tell(&mut self) -> Result<()> {
        writeln!(self.input)?;
        Ok(())
    }

    /// Waits until it is ready to be told again.
    pub(crate) fn is_ready(&mut self) -> Result<()> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.trim() == "ready", "it said {line:?}");
        Ok(())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn ends(mut self) -> Result<()> {
        let status = self.child.wait()?;
        ensure!(status.success(), "an act ended with {status}");
        Ok(())
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// === impl Runtime ===

impl Runtime {
    pub(crate) fn start() -> Result<Self> {
        let cgroup = PathBuf::from("/sys/fs/cgroup/runtime");
        fs::create_dir_all(&cgroup)?;
        let _ = fs::remove_file(RUNTIME_SOCKET);
        let served = Acting::start(act(&["serve"]).arg(&cgroup).arg(RUNTIME_SOCKET))?;
        fs::write(cgroup.join("cgroup.procs"), "1")?;
        Ok(Self { _served: served })
    }

    /// What makes an agent follow pods and this runtime only.
    pub(crate) fn arguments<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        ["--cri-socket", RUNTIME_SOCKET].into_iter().chain(more.iter().copied()).collect()
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        let _ = fs::write("/sys/fs/cgroup/cgroup.procs", "1");
    }
}

/// An act outside every container.
pub(crate) fn act(arguments: &[&str]) -> Command {
    let mut command = Command::new(ACT);
    command.args(arguments);
    command
}

/// A program in the container, its first: a session root.
pub(crate) fn inside(cgroup: &Path, program: &[&str]) -> Command {
    let mut command = Command::new(ACT);
    command.arg("enter").arg(cgroup).arg("--").args(program);
    command
}

/// An act in the container, to its end; what it said, and its pid.
pub(crate) fn act_inside(cgroup: &Path, arguments: &[&str]) -> Result<u32> {
    let program: Vec<&str> = [ACT].into_iter().chain(arguments.iter().copied()).collect();
    run_inside(cgroup, &program)
}

/// A program in the container, to its end; its pid.
pub(crate) fn run_inside(cgroup: &Path, program: &[&str]) -> Result<u32> {
    let child = inside(cgroup, program).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = child.id();
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{program:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(pid)
}

/// Runs an act outside to its end.
pub(crate) fn act_outside(arguments: &[&str]) -> Result<()> {
    run(&mut act(arguments)).map(drop)
}
