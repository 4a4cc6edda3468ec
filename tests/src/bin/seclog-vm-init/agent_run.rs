//! One run of the agent with one hook, beside the observer.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use seclog_proto::v1::{Loss, NodeRecord, node_record::Detail};
use seclog_tests::lab::{
    agreement::{disagreements, verdicts},
    audit_record::SeccompRecord,
    audit_socket::Observer,
    process::{PATIENCE, Process},
};

use super::{CALLS, EXECS};

/// How many disagreements are worth reading.
const SHOWN: usize = 5;

struct Seen {
    audit: Vec<SeccompRecord>,
    records: Vec<NodeRecord>,
    /// Times that the kernel did not run one of the agent's programs because it was already running on that processor.
    recursion_misses: u64,
}

pub(crate) fn agent_agrees_with_audit(hook: &str, cgroup: &Path) -> Vec<(&'static str, Result<()>)> {
    let seen = match observe(hook, cgroup) {
        Ok(seen) => seen,
        Err(error) => return vec![("run", Err(error))],
    };
    vec![
        ("run", Ok(())),
        ("every-verdict-once", every_verdict_once(&seen)),
        ("fields-equal-audit", fields_equal_audit(&seen)),
        ("both-sources", both_sources(&seen)),
        ("container", in_its_container(&seen)),
        ("executed", executed_programs_are_named(&seen)),
        ("no-silent-loss", no_silent_loss(&seen)),
    ]
}

fn observe(hook: &str, cgroup: &Path) -> Result<Seen> {
    let observer = Observer::start()?;
    let mut command = Command::new(super::agent_program());
    command.args(["run", "--sink", "stdout", "--node", "vm", "--cluster", "test", "--verdict-hook", hook]);
    let agent = Process::start("seclog-agent", &mut command)?;
    agent.wait_for_log("capturing")?;
    super::make_verdicts(cgroup)?;
    let audit = super::heard(observer)?;
    wait_for_verdicts(&agent, audit.len());
    let recursion_misses = recursion_misses(agent.pid())?;

    let status = agent.terminate()?;
    ensure!(status.success(), "the agent ended with {status}; its log: {}", agent.log());
    agent.stdout().wait_for_end();
    let parse = |line: &String| serde_json::from_str(line).with_context(|| format!("not a node record: {line}"));
    let records = agent.stdout().all().iter().map(parse).collect::<Result<_>>()?;
    println!("\nagent's log ({hook}):\n{}", agent.log());
    Ok(Seen { audit, records, recursion_misses })
}

/// Until as many verdicts are there as audit records, or no line comes any more. Lines are counted first, which is
/// cheap; only when there are enough are they looked into.
pub(crate) fn wait_for_verdicts(agent: &Process, wanted: usize) {
    let mut lines = wanted;
    while agent.stdout().wait_until(PATIENCE, |all| all.len() >= lines) {
        let all = agent.stdout().all();
        let verdicts = all.iter().filter(|line| line.contains("\"kind\":\"verdict\"")).count();
        if verdicts >= wanted {
            return;
        }
        lines = all.len() + (wanted - verdicts);
    }
}

/// From the kernel's account of each program that the agent holds; 5.10 does not keep it.
fn recursion_misses(pid: u32) -> Result<u64> {
    // It may hold one program more than once.
    let mut misses = HashMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/fdinfo"))? {
        let text = std::fs::read_to_string(entry?.path()).unwrap_or_default();
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name))?.trim().parse::<u64>().ok();
        if let (Some(program), Some(count)) = (value("prog_id:"), value("recursion_misses:")) {
            misses.insert(program, count);
        }
    }
    Ok(misses.into_values().sum())
}

fn every_verdict_once(Seen { audit, records, .. }: &Seen) -> Result<()> {
    ensure!(audit.len() == CALLS + EXECS, "{} audit records", audit.len());
    let count = verdicts(records).count();
    ensure!(count == audit.len(), "{count} verdicts of {}", audit.len());
    let ids: HashSet<_> = records.iter().map(|record| &record.id).collect();
    ensure!(ids.len() == records.len(), "{} records have {} ids", records.len(), ids.len());
    Ok(())
}

fn fields_equal_audit(Seen { audit, records, .. }: &Seen) -> Result<()> {
    let found = disagreements(audit, records);
    if !found.is_empty() {
        bail!("{} disagreements: {}", found.len(), found[..found.len().min(SHOWN)].join("; "));
    }
    Ok(())
}

/// All but those that the kernel kept from eBPF: a program that is preempted while it runs is not run again on that
/// processor until it ends (kernel/bpf/trampoline.c, __bpf_prog_enter_recur; kernel/trace/bpf_trace.c, __bpf_trace_run).
fn both_sources(Seen { records, recursion_misses, .. }: &Seen) -> Result<()> {
    let audit_alone = verdicts(records).filter(|(_, verdict)| verdict.sources == ["audit"]).count() as u64;
    let expected = 1..=*recursion_misses;
    every_verdict(records, &format!("seen by both (the kernel missed {recursion_misses})"), |_, verdict| {
        ["ebpf", "audit"].iter().all(|source| verdict.sources.iter().any(|seen| seen == source))
            || expected.contains(&audit_alone)
    })
}

fn in_its_container(Seen { records, .. }: &Seen) -> Result<()> {
    let id = super::container_id();
    every_verdict(records, "in the container", |record, _| {
        record.container.as_ref().is_some_and(|container| {
            container.id == id && container.pod_uid == super::POD_UID && container.cgroup_path.contains(&id)
        })
    })
}

/// An execve verdict is an attempt; the exec that followed completes it.
fn executed_programs_are_named(Seen { records, recursion_misses, .. }: &Seen) -> Result<()> {
    let mut starts = HashSet::new();
    for record in records {
        if let Some(Detail::ProcessStart(start)) = &record.detail
            && start.argv == ["/bin/true", "an argument", "and another"]
        {
            ensure!(start.filename == "/bin/true", "filename {:?}", start.filename);
            starts.insert(record.id.as_str());
        }
    }
    let missed = EXECS.saturating_sub(starts.len()) as u64;
    ensure!(
        missed <= *recursion_misses,
        "{} process starts of {EXECS}, the kernel missed {recursion_misses}",
        starts.len()
    );
    let targets: HashSet<_> = verdicts(records)
        .filter(|(_, verdict)| verdict.syscall_name == "execve" && verdict.outcome == "executed")
        .map(|(_, verdict)| verdict.target_id.as_str())
        .collect();
    ensure!(
        targets == starts,
        "execve verdicts name {} of {EXECS} process starts",
        targets.intersection(&starts).count()
    );
    Ok(())
}

/// Nothing is lost here but what the kernel does not give, and that is told.
fn no_silent_loss(Seen { records, recursion_misses, .. }: &Seen) -> Result<()> {
    let (hook, others): (Vec<&Loss>, Vec<&Loss>) = records
        .iter()
        .filter_map(|record| match &record.detail {
            Some(Detail::Loss(loss)) => Some(loss),
            _ => None,
        })
        // Of the time before the agent, which is always told.
        .filter(|loss| loss.source != "agent")
        .partition(|loss| loss.source == "hook");
    ensure!(others.is_empty(), "{others:?}");
    let told: u64 = hook.iter().map(|loss| loss.count).sum();
    ensure!(
        told == *recursion_misses,
        "the kernel missed to run programs {recursion_misses} times, losses tell {told}"
    );
    Ok(())
}

fn every_verdict(
    records: &[NodeRecord],
    what: &str,
    holds: impl Fn(&NodeRecord, &seclog_proto::v1::Verdict) -> bool,
) -> Result<()> {
    let wrong: Vec<_> = verdicts(records).filter(|(record, verdict)| !holds(record, verdict)).collect();
    if let Some((record, _)) = wrong.first() {
        bail!("{} verdicts are not {what}, e.g. {}", wrong.len(), serde_json::to_string(record)?);
    }
    ensure!(verdicts(records).next().is_some(), "no verdicts");
    Ok(())
}
