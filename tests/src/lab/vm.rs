//! A kernel in QEMU, by software emulation: it needs no rights and no hardware, and is slow; times mean nothing there, but
//! instructions can be counted.

use std::{
    fs,
    io::Write as _,
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

/// How often a kernel is booted that panics through no fault of ours (`Console::EmulatorFailed`).
const BOOTS: u32 = 3;

/// In a panic's lines: a breakpoint that the kernel itself had put there. It patches its own code (static keys, attached
/// programs) by way of such breakpoints, and makes every processor see the last step before it forgets them; of QEMU's
/// processors, when each has its own thread, one may run what was there before for a moment longer, and the kernel does not know
/// the breakpoint any more. Seen on the newest kernels at one second and, when a cgroup's controllers came on, at thirty.
const STALE_BREAKPOINT: &str = "int3: 0000 [#";

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
    let mut threads = Threads::OnePerProcessor;
    for boot in 1..=BOOTS {
        match boot_once(kernel, initramfs, checks, machine, threads)? {
            Console::Whole(console) => return Ok(console),
            Console::EmulatorFailed(tail) => {
                // Not by eprintln!, which the test's harness keeps to itself when the test then passes.
                writeln!(
                    std::io::stderr(),
                    "{}: the emulator failed the kernel (boot {boot} of {BOOTS}; the next is slower and safe):\n{tail}",
                    kernel.display()
                )?;
                threads = Threads::One;
            }
        }
    }
    bail!("{}: the kernel panicked {BOOTS} times by the emulator's fault", kernel.display())
}

/// How many threads of the host emulate the processors.
#[derive(Clone, Copy)]
enum Threads {
    OnePerProcessor,
    /// Slower by half; the processors see each other's changes of code at once.
    One,
}

/// How a boot ended that did not fail.
enum Console {
    Whole(Vec<String>),
    /// The kernel panicked before the first check, so that nothing of ours can be the reason, or at a `STALE_BREAKPOINT`.
    EmulatorFailed(String),
}

fn boot_once(kernel: &Path, initramfs: &Path, checks: &str, set_up: Machine, threads: Threads) -> Result<Console> {
    let mut qemu = Command::new(places::tool("qemu-system-x86_64").context("no qemu-system-x86_64")?);
    let audit = if set_up.audit_enabled { "audit=1" } else { "" };
    match (set_up.clock, threads) {
        (Clock::Host, Threads::OnePerProcessor) => qemu.args(["-accel", "tcg,thread=multi", "-smp", "2"]),
        (Clock::Host, Threads::One) => qemu.args(["-accel", "tcg,thread=single", "-smp", "2"]),
        (Clock::Instructions, _) => {
            qemu.args(["-accel", "tcg,thread=single", "-smp", "1", "-icount", "shift=0,sleep=off"])
        }
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
            if is_the_emulators(&console) {
                return Ok(Console::EmulatorFailed(tail()));
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

/// Whether the panic on this console is the emulator's fault.
fn is_the_emulators(console: &[String]) -> bool {
    let first = console.iter().find(|line| line.contains("Oops") || line.contains("[#1]"));
    first.is_some_and(|line| line.contains(STALE_BREAKPOINT)) || !console.iter().any(|line| line.contains(CHECK))
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
    use super::{Check, checks, is_the_emulators};

    #[test]
    fn checks_are_read_from_the_console_with_their_failures() {
        let console = ["\u{1b}[0mCHECK fentry/count ok\r", "noise", "CHECK kprobe/count FAIL 4999 of 5000\r"];
        let expected = [
            Check { name: "fentry/count".into(), failure: None },
            Check { name: "kprobe/count".into(), failure: Some("4999 of 5000".into()) },
        ];
        assert_eq!(checks(&console.map(String::from)), expected);
    }
    #[test]
    fn only_a_panic_before_any_check_or_at_a_stale_breakpoint_is_the_emulators() {
        let console = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>();
        assert!(is_the_emulators(&console(&["[ 1.0] BUG: unable to handle page fault", "[ 1.1] Kernel panic"])));
        assert!(is_the_emulators(&console(&["CHECK a/b ok", "[ 33.6] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI"])));
        assert!(is_the_emulators(&console(&["CHECK a/b ok", "[ 33.6] int3: 0000 [#1] SMP PTI"])));
        assert!(!is_the_emulators(&console(&["CHECK a/b ok", "[ 33.6] Kernel panic - not syncing: hung task"])));
        assert!(!is_the_emulators(&console(&[
            "CHECK a/b ok",
            "[ 33.6] Oops: general protection fault: 0000 [#1] SMP",
            "[ 33.7] Oops: int3: 0000 [#2] SMP",
        ])));
    }
}
