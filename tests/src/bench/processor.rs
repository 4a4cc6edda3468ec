//! Who runs where, and how long: CPU time of threads to the nanosecond, as the scheduler counts it (schedstat, field 1).

use std::fs;

use anyhow::{Context as _, Result, ensure};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

/// Where generators run.
pub const GENERATOR: usize = 0;
/// Where what is measured runs.
pub const MEASURED: usize = 1;

/// An affinity that was changed; comes back when dropped.
#[derive(Debug)]
#[must_use = "the affinity comes back when this is dropped"]
pub struct Pinned {
    thread: Pid,
    before: CpuSet,
}

// === impl Pinned ===

impl Pinned {
    /// The calling thread; what it starts meanwhile inherits it.
    pub fn this_thread(cpu: usize) -> Result<Self> {
        Self::pin(Pid::from_raw(0), cpu)
    }

    /// Any thread by its id.
    pub fn pin(thread: Pid, cpu: usize) -> Result<Self> {
        let before = sched_getaffinity(thread).context("sched_getaffinity")?;
        ensure!(before.is_set(cpu).unwrap_or(false), "CPU {cpu} may not be used");
        let mut only = CpuSet::new();
        only.set(cpu)?;
        sched_setaffinity(thread, &only).context("sched_setaffinity")?;
        Ok(Self { thread, before })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It may have ended meanwhile.
        let _ = sched_setaffinity(self.thread, &self.before);
    }
}

/// CPU time of the calling thread, nanoseconds.
pub fn thread_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64)
}

/// CPU time of all threads that a process has now, nanoseconds.
pub fn process_ns(pid: u32) -> Result<u64> {
    let directory = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in fs::read_dir(&directory).with_context(|| directory.clone())?.flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let field = text.split_whitespace().next().with_context(|| format!("{directory}: no schedstat"))?;
        sum += field.parse::<u64>()?;
    }
    Ok(sum)
}

/// The kernel's audit thread.
pub fn kauditd() -> Result<u32> {
    by_name("kauditd").into_iter().next().context("there is no kauditd")
}

/// Processes of this comm.
pub fn by_name(comm: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let is = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|text| text.trim_end() == comm);
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is).collect()
}

/// Direct children.
pub fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|word| word.parse().ok()).collect()
}

/// Processes that the machine started since boot.
pub fn forks() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("processes "));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Share of all CPU time that nobody used, between two moments: how busy the machine was otherwise.
#[derive(Clone, Copy, Debug)]
pub struct Idleness {
    idle: u64,
    all: u64,
}

// === impl Idleness ===

impl Idleness {
    pub fn now() -> Self {
        let text = fs::read_to_string("/proc/stat").unwrap_or_default();
        let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
        // user, nice, system, idle, iowait, irq, softirq, steal; what follows is contained in them.
        let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).take(8).collect();
        let idle = ticks.get(3).copied().unwrap_or(0) + ticks.get(4).copied().unwrap_or(0);
        Self { idle, all: ticks.iter().sum() }
    }

    /// Percent busy since then, all CPUs together.
    pub fn busy_since(self) -> f64 {
        let now = Self::now();
        let all = now.all.saturating_sub(self.all).max(1);
        100.0 - 100.0 * now.idle.saturating_sub(self.idle) as f64 / all as f64
    }
}
