//! The agent alone: in a storm of verdicts through audit, and while nothing happens.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

use super::{
    figure::Figure,
    generator::{self, Cost, Filter},
    group::{Grouped, Spent, wait_for_log},
    memory::{self, Memory, Peaks, Watch, mib},
    processor::{self, Idleness},
};
use crate::lab::places;

/// How long after a storm memory is looked at again.
const AFTER: Duration = Duration::from_secs(10);
/// Idle time, in parts: the machine may have other things to do in some of them.
const IDLE_PARTS: u32 = 6;
const IDLE_PART: Duration = Duration::from_secs(5);

/// An agent that writes JSON lines to a file.
#[derive(Debug)]
pub struct Agent {
    pub group: Grouped,
    output: PathBuf,
    log: PathBuf,
    _directory: tempfile::TempDir,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Storm {
    pub verdicts: u64,
    /// Lines that tell of them.
    pub delivered: u64,
    pub spent: Spent,
    pub cost: Cost,
}

// === impl Agent ===

impl Agent {
    /// Returns when it captures and has settled.
    pub fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (output, log) = (directory.path().join("records.json"), directory.path().join("agent.log"));
        let state = directory.path().join("agent.state").display().to_string();
        let arguments = ["run", "--sink", "stdout", "--node", "bench", "--state-file", &state];
        let program = places::program("seclog-agent")?;
        let mut group = Grouped::start(&program, &arguments, File::create(&output)?, File::create(&log)?)?;
        wait_for_log(&mut group, &log, "capturing")?;
        group.wait_until_still()?;
        Ok(Self { group, output, log, _directory: directory })
    }

    /// So many verdicts, until they are written.
    pub fn storm(&mut self, verdicts: u64) -> Result<Storm> {
        self.group.begin()?;
        let cost = generator::calls(Filter::Logging, verdicts)?;
        self.group.wait_until_still()?;
        Ok(Storm { verdicts, cost, ..Default::default() })
    }

    /// Stops it; what it spent since the storm began, and what it delivered.
    pub fn finish(mut self, storm: Storm) -> Result<Storm> {
        self.group.terminate()?;
        let spent = self.group.spent()?;
        let delivered = delivered(&self.output, r#""syscall_name":"getppid""#)?;
        if delivered != storm.verdicts {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            log.lines().filter(|line| line.contains("lost")).for_each(|line| eprintln!("{line}"));
        }
        Ok(Storm { delivered, spent, ..storm })
    }
}

/// Lines with this text and this process's number.
pub fn delivered(path: &Path, text: &str) -> Result<u64> {
    let own = format!(r#""pid":{},"#, std::process::id());
    let file = BufReader::new(File::open(path).with_context(|| path.display().to_string())?);
    let mut count = 0;
    for line in file.split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        count += u64::from(line.contains(text) && line.contains(&own));
    }
    Ok(count)
}

/// Memory before, at the peak of, and after a storm; and whether all of it arrived, at the host's own audit settings.
pub fn figures(verdicts: u64) -> Result<Vec<Figure>> {
    let mut agent = Agent::start()?;
    let pid = agent.group.pid();
    let start = memory::of(pid)?;
    memory::forget_peak(pid)?;
    let watch = Watch::start(pid, agent.group.memory_cgroup())?;
    let storm = agent.storm(verdicts)?;
    std::thread::sleep(AFTER);
    let peaks = watch.stop()?;
    let after = memory::of(pid)?;
    let charged_after = agent.group.memory_cgroup().as_deref().and_then(memory::charged);
    let no_cgroup = agent.group.no_memory_cgroup.clone();
    let storm = agent.finish(storm)?;

    let Storm { delivered, cost, .. } = storm;
    let how = format!(
        "verdicts of one thread at full speed ({:.0} a second), counted in the output",
        verdicts as f64 / cost.elapsed.as_secs_f64()
    );
    let target = format!("{verdicts} of {verdicts}");
    let lost_none = delivered == verdicts;
    let mut figures = vec![Figure::judged("none lost through audit", &target, format!("{delivered}"), lost_none, how)];
    figures.extend(memory_figures(&start, &peaks, &after, charged_after, no_cgroup));
    Ok(figures)
}

fn memory_figures(
    start: &Memory,
    peaks: &Peaks,
    after: &Memory,
    charged_after: Option<u64>,
    no_cgroup: Option<String>,
) -> Vec<Figure> {
    const MIB: u64 = 1 << 20;
    let mut figures = vec![
        Figure::judged(
            "memory in the storm",
            "at most 64 MiB",
            mib(after.peak),
            after.peak <= 64 * MIB,
            format!(
                "MiB resident at most (VmHWM); anonymous {}, files and rings {}; before the storm {}, while it started {}",
                mib(peaks.anonymous),
                mib(peaks.file),
                mib(start.resident),
                mib(start.peak)
            ),
        ),
        Figure::judged(
            "memory 10 s after",
            "under 40 MiB",
            mib(after.resident),
            after.resident < 40 * MIB,
            format!("MiB resident; anonymous {}, files and rings {}", mib(after.anonymous), mib(after.file)),
        ),
    ];
    figures.push(match charged_after {
        Some(now) => Figure::stated(
            "  charged to its memory cgroup",
            mib(peaks.charged),
            format!("MiB at most, without page cache of the output; {} after", mib(now)),
        ),
        None => Figure::not_measured(
            "  charged to its memory cgroup",
            "",
            no_cgroup.unwrap_or_else(|| "the cgroup does not tell".into()),
        ),
    });
    figures
}

/// While nothing happens; where other programs are at work, the quietest part counts.
pub fn idle() -> Result<(Vec<Figure>, std::collections::BTreeMap<String, f64>)> {
    let agent = Agent::start()?;
    let pid = agent.group.pid();
    let mut parts = Vec::new();
    for _ in 0..IDLE_PARTS {
        let (before, forks, machine) = (processor::process_ns(pid)?, processor::forks(), Idleness::now());
        std::thread::sleep(IDLE_PART);
        let percent = processor::process_ns(pid)?.saturating_sub(before) as f64 / IDLE_PART.as_nanos() as f64 * 100.0;
        parts.push((processor::forks() - forks, percent, machine.busy_since()));
    }
    let memory = memory::of(pid)?;
    let costs = super::programs::costs(pid);
    let storm = Storm::default();
    agent.finish(storm)?;

    let all = parts.iter().map(|part| part.1).sum::<f64>() / f64::from(IDLE_PARTS);
    let quietest = parts.iter().copied().min_by(|one, other| one.0.cmp(&other.0)).unwrap_or_default();
    let (forks, percent, busy) = quietest;
    let figures = vec![
        Figure::judged(
            "idle: CPU",
            "under 0.1 %",
            format!("{percent:.3} %"),
            percent < 0.1,
            format!(
                "of one CPU, in the quietest {IDLE_PART:?} ({forks} processes started on the host, {busy:.0} % busy) of \
                 {:?}; {all:.3} % in all",
                IDLE_PART * IDLE_PARTS
            ),
        ),
        Figure::judged(
            "idle: memory",
            "under 25 MiB",
            mib(memory.resident),
            memory.resident < 25 << 20,
            format!("MiB resident; anonymous {}, files and rings {}", mib(memory.anonymous), mib(memory.file)),
        ),
    ];
    Ok((figures, costs?))
}
