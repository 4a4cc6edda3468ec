//! A cgroup that counts the CPU time of all that ever ran in it, ended processes included.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    memory,
    processor::{self, MEASURED, Pinned},
};
use crate::lab::places;

/// How long a CPU time must stand still before the work counts as done.
const STILL: Duration = Duration::from_millis(1500);
const PATIENCE: Duration = Duration::from_secs(120);

/// A program in cgroups of its own, on the CPU for what is measured; killed when dropped.
#[derive(Debug)]
pub struct Grouped {
    child: std::process::Child,
    cpu: PathBuf,
    memory: Option<memory::Cgroup>,
    /// Why there is no memory cgroup.
    pub no_memory_cgroup: Option<String>,
    kauditd: u32,
    _pinned: Pinned,
    begin: Option<Spent>,
}

/// CPU time, nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spent {
    pub program_ns: u64,
    pub kauditd_ns: u64,
}

// === impl Grouped ===

impl Grouped {
    pub fn start(program: &Path, arguments: &[&str], stdout: File, stderr: File) -> Result<Self> {
        let name = format!("seclog-bench-{}", std::process::id());
        let v1 = Path::new("/sys/fs/cgroup/cpuacct");
        let root = if v1.is_dir() { v1 } else { Path::new("/sys/fs/cgroup") };
        let cpu = root.join(&name);
        if !cpu.is_dir() {
            fs::create_dir(&cpu).with_context(|| cpu.display().to_string())?;
        }
        let (memory, no_memory_cgroup) = match memory::Cgroup::new(&name) {
            Ok(cgroup) => (Some(cgroup), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let kauditd = processor::kauditd()?;
        let pinned = Pinned::pin(Pid::from_raw(i32::try_from(kauditd)?), MEASURED)?;
        // setpriv: whatever happens to this process, no audit daemon stays behind.
        let mut command = match places::tool("setpriv") {
            Some(setpriv) => {
                let mut command = Command::new(setpriv);
                command.args(["--pdeathsig", "KILL"]);
                command
            }
            None => Command::new("/usr/bin/env"),
        };
        command.args(["/bin/sh", "-c", r#"echo $$ >"$0" && { [ "$1" = - ] || echo $$ >"$1"; } && shift && exec "$@""#]);
        command.arg(cpu.join("cgroup.procs"));
        let same = memory.as_ref().is_none_or(|cgroup| cgroup.path() == cpu);
        match &memory {
            Some(cgroup) if !same => command.arg(cgroup.path().join("cgroup.procs")),
            _ => command.arg("-"),
        };
        command.arg(program).args(arguments).env("NO_COLOR", "1");
        command.stdin(Stdio::null()).stdout(stdout).stderr(stderr);
        let child = {
            let _here = Pinned::this_thread(MEASURED)?;
            command.spawn().with_context(|| program.display().to_string())?
        };
        Ok(Self { child, cpu, memory, no_memory_cgroup, kauditd, _pinned: pinned, begin: None })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn memory_cgroup(&self) -> Option<PathBuf> {
        self.memory.as_ref().map(|cgroup| cgroup.path().to_owned())
    }

    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// What is spent from now on counts.
    pub fn begin(&mut self) -> Result<()> {
        self.begin = Some(self.now()?);
        Ok(())
    }

    fn now(&self) -> Result<Spent> {
        let read = |name: &str| fs::read_to_string(self.cpu.join(name));
        let program_ns = match read("cpuacct.usage") {
            Ok(text) => text.trim().parse()?,
            Err(_) => {
                let text = read("cpu.stat").context("no CPU time of a cgroup")?;
                let line = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
                line.context("no usage_usec")?.trim().parse::<u64>()? * 1000
            }
        };
        Ok(Spent { program_ns, kauditd_ns: processor::process_ns(self.kauditd)? })
    }

    pub fn spent(&self) -> Result<Spent> {
        let (now, begin) = (self.now()?, self.begin.unwrap_or_default());
        Ok(Spent {
            program_ns: now.program_ns - begin.program_ns,
            kauditd_ns: now.kauditd_ns.saturating_sub(begin.kauditd_ns),
        })
    }

    /// Waits until it has nothing more to do.
    pub fn wait_until_still(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut before = self.now()?;
        loop {
            std::thread::sleep(STILL);
            let now = self.now()?;
            // An idle program wakes up now and then: one part in a hundred is still.
            if now.program_ns - before.program_ns < STILL.as_nanos() as u64 / 100 {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "still at work after {PATIENCE:?}");
            before = now;
        }
    }

    /// SIGTERM, and its end.
    pub fn terminate(&mut self) -> Result<()> {
        kill(Pid::from_raw(i32::try_from(self.pid())?), Signal::SIGTERM)?;
        let deadline = Instant::now() + PATIENCE;
        while self.is_running()? {
            if Instant::now() > deadline {
                bail!("it does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // Its own children (an audit daemon's plugin) are given the time to write what they have.
        while !self.others().is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Processes that are in its cgroup.
    pub fn others(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.cpu.join("cgroup.procs")).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

impl Drop for Grouped {
    fn drop(&mut self) {
        for pid in self.others().into_iter().filter_map(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        for _ in 0..50 {
            if fs::remove_dir(&self.cpu).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} is left behind", self.cpu.display());
    }
}

/// Waits for a line in a log file.
pub fn wait_for_log(program: &mut Grouped, log: &Path, text: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let so_far = fs::read_to_string(log).unwrap_or_default();
        if so_far.contains(text) {
            return Ok(());
        }
        if !program.is_running()? || Instant::now() > deadline {
            bail!("no {text:?} in its log:\n{so_far}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
