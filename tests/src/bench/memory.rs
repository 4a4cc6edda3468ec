//! Resident memory of a process, and what a memory cgroup charges for it.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};

/// Bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    pub resident: u64,
    pub anonymous: u64,
    /// Program text and the rings, which are mapped twice.
    pub file: u64,
    /// The most that was ever resident, as the kernel says.
    pub peak: u64,
}

pub fn of(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).context(path)?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok())
            .map_or(0, |kilobytes| kilobytes * 1024)
    };
    Ok(Memory {
        resident: field("VmRSS"),
        anonymous: field("RssAnon"),
        file: field("RssFile") + field("RssShmem"),
        peak: field("VmHWM"),
    })
}

/// The peak begins anew (proc_pid_clear_refs(5)).
pub fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5").context("clear_refs")
}

/// The most of each, over some time.
#[derive(Debug)]
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Peaks>,
}

#[derive(Clone, Copy, Debug, Default)]
pub struct Peaks {
    pub anonymous: u64,
    pub file: u64,
    /// Charged to the cgroup without the page cache of files that were written.
    pub charged: u64,
}

// === impl Watch ===

impl Watch {
    /// Looks every few milliseconds.
    pub fn start(pid: u32, cgroup: Option<PathBuf>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let look = move || {
            let mut peaks = Peaks::default();
            while !stopped.load(Ordering::Relaxed) {
                if let Ok(memory) = of(pid) {
                    peaks.anonymous = peaks.anonymous.max(memory.anonymous);
                    peaks.file = peaks.file.max(memory.file);
                }
                if let Some(charged) = cgroup.as_deref().and_then(charged) {
                    peaks.charged = peaks.charged.max(charged);
                }
                std::thread::sleep(Duration::from_millis(10));
            }
            peaks
        };
        Ok(Self { stop, thread: std::thread::Builder::new().name("memory-watch".into()).spawn(look)? })
    }

    pub fn stop(self) -> Result<Peaks> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the memory watch panicked"))
    }
}

/// A memory cgroup of its own, empty at first; removed when dropped.
#[derive(Debug)]
pub struct Cgroup(PathBuf);

// === impl Cgroup ===

impl Cgroup {
    /// In the v1 hierarchy, or in v2 where the controller is there.
    pub fn new(name: &str) -> Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let root = if v1.join("memory.usage_in_bytes").exists() {
            v1
        } else if fs::read_to_string("/sys/fs/cgroup/cgroup.subtree_control").is_ok_and(|text| text.contains("memory"))
        {
            Path::new("/sys/fs/cgroup")
        } else {
            bail!("there is no memory controller at /sys/fs/cgroup");
        };
        let path = root.join(name);
        if !path.is_dir() {
            fs::create_dir(&path).with_context(|| path.display().to_string())?;
        }
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for _ in 0..50 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} is left behind", self.0.display());
    }
}

/// Bytes charged now, but for the page cache.
pub fn charged(cgroup: &Path) -> Option<u64> {
    let read = |name: &str| fs::read_to_string(cgroup.join(name)).ok();
    let usage: u64 = read("memory.usage_in_bytes").or_else(|| read("memory.current"))?.trim().parse().ok()?;
    let stat = read("memory.stat")?;
    let field = |name: &str| {
        stat.lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
            .and_then(|value| value.parse::<u64>().ok())
    };
    // v1 says cache, v2 says file.
    let cache = field("cache").or_else(|| field("file")).unwrap_or(0);
    Some(usage.saturating_sub(cache))
}

/// For people: whole MiB and a tenth.
pub fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1_048_576.0)
}
