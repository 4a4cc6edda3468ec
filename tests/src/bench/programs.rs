//! What the kernel programs themselves cost, as the kernel counts it (bpf_stats: two readings of the clock included).

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context as _, Result, ensure};

use super::{
    figure::Figure,
    processor::{GENERATOR, Pinned},
};

const PROCESSES: u64 = 2_000;

#[derive(Clone, Copy, Debug, Default)]
struct Run {
    time_ns: u64,
    count: u64,
}

/// Nanoseconds of one run, of each program of this agent that ran, by the program's name.
pub fn costs(agent: u32) -> Result<BTreeMap<String, f64>> {
    // Off again when this is closed.
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime).context("BPF_ENABLE_STATS")?;
    let before = runs(agent)?;
    let _pinned = Pinned::this_thread(GENERATOR)?;
    for _ in 0..PROCESSES {
        ensure!(Command::new("/bin/true").status()?.success(), "/bin/true failed");
    }
    let mut costs = BTreeMap::new();
    for (name, after) in runs(agent)? {
        let before = before.get(&name).copied().unwrap_or_default();
        let count = after.count - before.count;
        if count > 0 {
            costs.insert(name, (after.time_ns - before.time_ns) as f64 / count as f64);
        }
    }
    Ok(costs)
}

/// The descriptors of a process tell of its programs: their times, and by their links which tracepoint they are on.
/// (Names of programs are cut at 15 bytes, and two of ours are then the same.)
fn runs(pid: u32) -> Result<BTreeMap<String, Run>> {
    let directory = format!("/proc/{pid}/fdinfo");
    let (mut times, mut names) = (BTreeMap::new(), BTreeMap::new());
    for entry in fs::read_dir(&directory).context(directory)?.flatten() {
        let Ok(text) = fs::read_to_string(entry.path()) else { continue };
        let field =
            |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
        let number = |name: &str| field(name)?.parse::<u64>().ok();
        let Some(id) = number("prog_id") else { continue };
        if let (Some(time_ns), Some(count)) = (number("run_time_ns"), number("run_cnt")) {
            times.insert(id, Run { time_ns, count });
        }
        if let Some(tracepoint) = field("tp_name") {
            names.insert(id, tracepoint.to_owned());
        }
    }
    ensure!(!times.is_empty(), "the agent has no program loaded");
    Ok(names.into_iter().filter_map(|(id, name)| Some((name, *times.get(&id)?))).collect())
}

pub fn figures(costs: &BTreeMap<String, f64>) -> Vec<Figure> {
    let figure = |(name, ns): (&String, &f64)| {
        let how = format!("ns a run by bpf_stats, {PROCESSES} x fork, exec and exit of /bin/true");
        Figure::stated(&format!("kernel program {name}"), format!("{ns:.0}"), how)
    };
    costs.iter().map(figure).collect()
}
