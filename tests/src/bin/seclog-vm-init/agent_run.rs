//! One run of the agent with one hook, beside the observer.

use std::{collections::HashSet, path::Path, process::Command};

use anyhow::{Context as _, Result, bail, ensure};
use seclog_proto::v1::{NodeRecord, node_record::Detail};
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
        ("no-loss", no_loss(&seen)),
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

    let status = agent.terminate()?;
    ensure!(status.success(), "the agent ended with {status}; its log: {}", agent.log());
    agent.stdout().wait_for_end();
    let parse = |line: &String| serde_json::from_str(line).with_context(|| format!("not a node record: {line}"));
    let records = agent.stdout().all().iter().map(parse).collect::<Result<_>>()?;
    println!("\nagent's log ({hook}):\n{}", agent.log());
    Ok(Seen { audit, records })
}

/// Until as many verdicts are there as audit records, or no line comes any more. Lines are counted first, which is
/// cheap; only when there are enough are they looked into.
fn wait_for_verdicts(agent: &Process, wanted: usize) {
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

fn every_verdict_once(Seen { audit, records }: &Seen) -> Result<()> {
    ensure!(audit.len() == CALLS + EXECS, "{} audit records", audit.len());
    let count = verdicts(records).count();
    ensure!(count == audit.len(), "{count} verdicts of {}", audit.len());
    let ids: HashSet<_> = records.iter().map(|record| &record.id).collect();
    ensure!(ids.len() == records.len(), "{} records have {} ids", records.len(), ids.len());
    Ok(())
}

fn fields_equal_audit(Seen { audit, records }: &Seen) -> Result<()> {
    let found = disagreements(audit, records);
    if !found.is_empty() {
        bail!("{} disagreements: {}", found.len(), found[..found.len().min(SHOWN)].join("; "));
    }
    Ok(())
}

fn both_sources(Seen { records, .. }: &Seen) -> Result<()> {
    every_verdict(records, "seen by both", |_, verdict| {
        ["ebpf", "audit"].iter().all(|source| verdict.sources.iter().any(|seen| seen == source))
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
fn executed_programs_are_named(Seen { records, .. }: &Seen) -> Result<()> {
    let mut starts = HashSet::new();
    for record in records {
        if let Some(Detail::ProcessStart(start)) = &record.detail
            && start.argv == ["/bin/true", "an argument", "and another"]
        {
            ensure!(start.filename == "/bin/true", "filename {:?}", start.filename);
            starts.insert(record.id.as_str());
        }
    }
    ensure!(starts.len() == EXECS, "{} process starts of {EXECS}", starts.len());
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

fn no_loss(Seen { records, .. }: &Seen) -> Result<()> {
    let losses: Vec<_> = records
        .iter()
        .filter_map(|record| match &record.detail {
            Some(Detail::Loss(loss)) => Some(format!("{} {} {}", loss.source, loss.reason, loss.count)),
            _ => None,
        })
        .collect();
    ensure!(losses.is_empty(), "{}", losses.join("; "));
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
