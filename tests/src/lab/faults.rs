//! What goes wrong: networks that are cut, disks that are full or read-only.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::{process::Process, skip};

/// A network namespace. Deleted with what runs in it when dropped.
#[derive(Debug)]
pub struct Namespace(String);

/// A small disk; unmounted when dropped.
#[derive(Debug)]
pub struct SmallDisk(PathBuf);

/// A disk of its own, in a file; unmounted when dropped.
#[derive(Debug)]
pub struct LoopDisk {
    image: PathBuf,
    at: PathBuf,
}

/// A sequence that looks random.
#[derive(Debug)]
pub struct Dice(pub u64);

/// `None`: there is no right to make what the test needs, and it is skipped.
pub fn as_root(test: &str) -> Option<()> {
    if nix::unistd::geteuid().is_root() {
        return Some(());
    }
    skip(test, "not root");
    None
}

/// Memory of a process that is in use now.
pub fn resident_kib(process: &Process) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.pid()))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("VmRSS")?;
    Ok(line.split_whitespace().nth(1).context("VmRSS")?.parse()?)
}

/// The newest segment file of a log.
pub fn last_segment(dir: &Path) -> Result<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|path| path.extension().is_some_and(|end| end == "log"));
    files.sort();
    files.pop().context("no segment")
}

// === impl Namespace ===

impl Namespace {
    pub fn new(name: &str) -> Result<Self> {
        let namespace = Self(format!("seclog-{name}-{}", std::process::id()));
        run("ip", &["netns", "add", &namespace.0])?;
        namespace.connect()?;
        Ok(namespace)
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn cut(&self) -> Result<()> {
        run("ip", &["-n", &self.0, "link", "set", "lo", "down"])
    }

    pub fn connect(&self) -> Result<()> {
        run("ip", &["-n", &self.0, "link", "set", "lo", "up"])
    }

    /// One megabit a second. False: this kernel cannot do that.
    pub fn slow(&self) -> bool {
        // A packet of the loopback device must fit the burst.
        let rate = ["rate", "1mbit", "burst", "100kb", "latency", "400ms"];
        run("tc", &[&["-n", &self.0, "qdisc", "add", "dev", "lo", "root", "tbf"][..], &rate].concat()).is_ok()
    }

    pub fn fast(&self) -> Result<()> {
        run("tc", &["-n", &self.0, "qdisc", "del", "dev", "lo", "root"])
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "delete", &self.0]);
    }
}

// === impl SmallDisk ===

impl SmallDisk {
    pub fn mount(at: &Path, size: &str) -> Result<Self> {
        fs::create_dir_all(at)?;
        let place = at.to_string_lossy();
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size}"), "seclog-test", &place])?;
        Ok(Self(at.to_owned()))
    }

    pub fn remount(&self, options: &str) -> Result<()> {
        run("mount", &["-o", &format!("remount,{options}"), &self.0.to_string_lossy()])
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.0.to_string_lossy()]);
    }
}

// === impl LoopDisk ===

impl LoopDisk {
    /// ext4, as most nodes have it.
    pub fn mount(at: &Path, bytes: u64) -> Result<Self> {
        fs::create_dir_all(at)?;
        let disk = Self { image: at.with_extension("img"), at: at.to_owned() };
        fs::File::create(&disk.image)?.set_len(bytes)?;
        run("mkfs.ext4", &["-q", &disk.image.to_string_lossy()])?;
        disk.attach()?;
        Ok(disk)
    }

    fn attach(&self) -> Result<()> {
        let (image, at) = (self.image.to_string_lossy(), self.at.to_string_lossy());
        run("mount", &["-o", "loop,errors=remount-ro", &image, &at])
    }

    /// What the kernel does when it meets an error of the disk: nothing more is written to it, by nobody.
    pub fn fail(&self) -> Result<()> {
        run("mount", &["-o", "remount,abort", &self.at.to_string_lossy()])
    }

    /// What an administrator does then. Nobody may use it.
    pub fn repair(&self) -> Result<()> {
        run("umount", &[&self.at.to_string_lossy()])?;
        // 1: errors were corrected.
        let status = Command::new("e2fsck").args(["-fy", &self.image.to_string_lossy()]).output()?.status;
        ensure!(status.code().is_some_and(|code| code <= 1), "e2fsck: {status}");
        self.attach()
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let _ = run("umount", &["-l", &self.at.to_string_lossy()]);
    }
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output = Command::new(program).args(args).output().with_context(|| program.to_owned())?;
    ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

// === impl Dice ===

impl Dice {
    pub fn roll(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }
}
