//! A kernel in QEMU, by software emulation: it needs no rights and no hardware, and is slow; times mean nothing there, but
//! instructions can be counted.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};

use super::{places, process::Process};

/// A kernel that says nothing for so long hangs. Even a busy machine lets one boot in a tenth of that.
const SILENCE: Duration = Duration::from_secs(300);

/// What /init says when it has done everything; the machine may be turned off.
pub const DONE: &str = "init: done";

/// Begins the word of the kernel's command line that tells /init what to check.
pub const CHECKS: &str = "seclog.checks=";

/// Begins a line `COST <name> <instructions>` of /init.
pub const COST: &str = "COST ";
/// Begins a check on the console.
pub const CHECK: &str = "CHECK ";

/// One line `CHECK <name> ok` or `CHECK <name> FAIL <detail>` of /init.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    pub name: String,
    /// What was wrong.
    pub failure: Option<String>,
}

/// The kernel that the set-up script unpacked for `name`, or why there is none.
pub fn kernel(name: &str) -> Result<PathBuf, String> {
    let directory = places::target().map_err(|error| error.to_string())?.join("kernels").join(name);
    let image = directory.join("vmlinuz");
    if image.is_file() {
        return Ok(image);
    }
    Err(match fs::read_to_string(directory.join("unavailable")) {
        Ok(reason) => reason.trim().to_owned(),
        Err(_) => format!("not fetched: run tests/setup/kernels.sh {name}"),
    })
}

/// Why there can be no virtual machines here; `None` when there can.
pub fn unavailable() -> Option<String> {
    let missing: Vec<_> =
        ["qemu-system-x86_64", "busybox"].into_iter().filter(|name| places::tool(name).is_none()).collect();
    (!missing.is_empty()).then(|| format!("not installed: {}", missing.join(", ")))
}

/// How often a kernel is booted that panics before anything of ours ran. Two emulated processors can trip over each other
/// while the kernel patches its own code (int3 in a static key, seen on the newest kernels at one second).
const BOOTS: u32 = 3;

/// What the machine's clock follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// The host's; two processors.
    Host,
    /// A nanosecond is one instruction of its one processor, so that its clocks count instructions.
    Instructions,
}

/// How a machine is set up.
#[derive(Clone, Copy, Debug)]
pub struct Machine {
    pub clock: Clock,
    /// `audit=1`, as auditd sets it: system calls have contexts, and a seccomp record brings one of the call itself.
    pub audit_enabled: bool,
}

// === impl Machine ===

impl Machine {
    pub const ORDINARY: Self = Self { clock: Clock::Host, audit_enabled: true };
}

/// Boots, waits for /init to have run these groups of checks, and returns all that was on the console.
pub fn boot(kernel: &Path, initramfs: &Path, checks: &str, machine: Machine) -> Result<Vec<String>> {
    for again in 1..BOOTS {
        match boot_once(kernel, initramfs, checks, machine)? {
            Console::Whole(console) => return Ok(console),
            Console::NothingRan(tail) => {
                println!("the emulated kernel panicked before /init said anything ({again} of {BOOTS}):\n{tail}");
            }
        }
    }
    match boot_once(kernel, initramfs, checks, machine)? {
        Console::Whole(console) => Ok(console),
        Console::NothingRan(tail) => bail!("the kernel panicked {BOOTS} times before /init said anything:\n{tail}"),
    }
}

/// How a boot ended that did not fail.
enum Console {
    Whole(Vec<String>),
    /// The kernel panicked before the first check, so nothing of ours can be the reason.
    NothingRan(String),
}

fn boot_once(kernel: &Path, initramfs: &Path, checks: &str, set_up: Machine) -> Result<Console> {
    let mut qemu = Command::new(places::tool("qemu-system-x86_64").context("no qemu-system-x86_64")?);
    let audit = if set_up.audit_enabled { "audit=1" } else { "" };
    match set_up.clock {
        Clock::Host => qemu.args(["-accel", "tcg,thread=multi", "-smp", "2"]),
        Clock::Instructions => qemu.args(["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0,sleep=off"]),
    };
    qemu.args(["-cpu", "max", "-m", "1024"])
        .args(["-nographic", "-no-reboot", "-nic", "none"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .arg("-append")
        .arg(format!("console=ttyS0 quiet panic=-1 {audit} audit_backlog_limit=8192 {CHECKS}{checks}"));
    let machine = Process::start("qemu", &mut qemu)?;
    loop {
        let lines = machine.stdout().count();
        // The console's end is QEMU's end: /init reboots, and so does a panic (panic=-1); -no-reboot ends QEMU then.
        let moved =
            machine.stdout().wait_until(SILENCE, |all| all.len() > lines || all.iter().any(|line| is_over(line)));
        let console = machine.stdout().all();
        if console.iter().any(|line| line.contains(DONE)) {
            return Ok(Console::Whole(console));
        }
        let tail = || console[console.len().saturating_sub(60)..].join("\n");
        if console.iter().any(|line| is_over(line)) {
            if !console.iter().any(|line| line.contains("CHECK ")) {
                return Ok(Console::NothingRan(tail()));
            }
            bail!("the kernel panicked:\n{}", tail());
        }
        if !moved && !machine.is_running() {
            bail!("QEMU ended early:\n{}\n{}", tail(), machine.log());
        }
        if !moved {
            bail!("nothing on the console for {SILENCE:?}:\n{}", tail());
        }
    }
}

fn is_over(line: &str) -> bool {
    line.contains("Kernel panic") || line.contains(DONE)
}

/// The costs among the lines of a console, instructions of one call.
pub fn costs(console: &[String]) -> Vec<(String, f64)> {
    let cost = |line: &String| {
        let (name, value) = line.split_once(COST)?.1.trim_end().split_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    console.iter().filter_map(cost).collect()
}

/// The checks among the lines of a console.
pub fn checks(console: &[String]) -> Vec<Check> {
    let check = |line: &String| {
        // The console's first bytes may stand before it on the line.
        let (_, rest) = line.split_once(CHECK)?;
        let (name, verdict) = rest.trim_end().split_once(' ')?;
        let failure = (verdict != "ok").then(|| verdict.trim_start_matches("FAIL").trim().to_owned());
        Some(Check { name: name.to_owned(), failure })
    };
    console.iter().filter_map(check).collect()
}

#[cfg(test)]
mod tests {
    use super::{Check, checks};

    #[test]
    fn checks_are_read_from_the_console_with_their_failures() {
        let console = ["\u{1b}[0mCHECK fentry/count ok\r", "noise", "CHECK kprobe/count FAIL 4999 of 5000\r"];
        let expected = [
            Check { name: "fentry/count".into(), failure: None },
            Check { name: "kprobe/count".into(), failure: Some("4999 of 5000".into()) },
        ];
        assert_eq!(checks(&console.map(String::from)), expected);
    }
}
