//! The agent on real kernels, in QEMU: which is said by `SECLOG_KERNELS` (names of tests/setup/kernels.sh).

use std::path::PathBuf;

use std::io::Write as _;

use anyhow::{Result, ensure};
use seclog_tests::lab::{exclusive, initramfs, places, skip, verifier, vm};

/// Groups of checks (tests/src/bin/seclog-vm-init), and how many each has. `SECLOG_CHECKS` names others, for work on them.
const EVERY_KERNEL: [(&str, usize); 5] = [("audit", 1), ("fentry", 7), ("kprobe", 7), ("overflow", 2), ("streams", 1)];
/// Linux 7 skips a program for one task while another's run of it on that processor is interrupted, and counts it (docs/capture.md).
/// Below emulation that happens often: there these ask whether what is told is true, elsewhere that it is whole, too.
const WITH_CRUN: [(&str, usize); 1] = [("crun", 6)];
const ONE_KERNEL: [(&str, usize); 7] = [
    ("containers", 9),
    ("cgroup-v1", 9),
    ("losses", 2),
    ("memory", 2),
    ("processes", 19),
    ("trouble", 9),
    ("quiet", 5),
];
/// On one kernel, where systemd is installed.
const SYSTEMD: (&str, usize) = ("systemd", 5);
/// Below emulation a kernel's ticks stand still for as long as the host likes, and audit's clock with them: then the two sources of
/// a verdict are too far apart to be taken for one. So a kernel whose checks fail is booted again, and every failure is printed.
const MOST_BOOTS: u32 = 4;
/// The kernel that runs them all.
const THOROUGH: &str = "6.1";

fn every_verdict_is_reported_as_audit_has_it(kernel: &str) -> Result<()> {
    let name = format!("kernel_{}", kernel.replace('.', "_"));
    let wanted = std::env::var("SECLOG_KERNELS").unwrap_or_else(|_| "5.10 6.1 6.12 sid".into());
    if !wanted.split_whitespace().any(|word| word == kernel) {
        skip(&name, format!("not asked for (SECLOG_KERNELS={wanted})"));
        return Ok(());
    }
    let image = match vm::unavailable().map_or_else(|| vm::kernel(kernel), Err) {
        Ok(image) => image,
        Err(reason) => {
            skip(&name, reason);
            return Ok(());
        }
    };
    let _turn = exclusive::turn("virtual-machine")?;
    let directory = tempfile::tempdir()?;
    let initramfs = directory.path().join("initramfs");
    let mut programs =
        ["seclog-agent", "seclog-load", "seclog-act"].into_iter().map(places::program).collect::<Result<Vec<_>>>()?;
    match places::tool("crun") {
        Some(crun) => programs.push(crun),
        None => skip(&format!("{name}_crun"), "crun is not installed"),
    }
    let systemd = (kernel == THOROUGH).then(systemd_programs).flatten();
    if kernel == THOROUGH && systemd.is_none() {
        skip(&format!("{name}_systemd"), "systemd is not installed");
    }
    let has_systemd = systemd.is_some();
    programs.extend(systemd.into_iter().flatten());
    initramfs::write(&initramfs, &places::program("seclog-vm-init")?, &programs)?;

    let has_crun = places::tool("crun").is_some();
    let groups: Vec<(&str, usize)> = EVERY_KERNEL
        .into_iter()
        .chain(WITH_CRUN.into_iter().filter(|_| has_crun))
        .chain(ONE_KERNEL.into_iter().filter(|_| kernel == THOROUGH))
        .chain(has_systemd.then_some(SYSTEMD))
        .collect();
    let names: Vec<&str> = groups.iter().map(|(name, _)| *name).collect();
    let asked = std::env::var("SECLOG_CHECKS").ok();
    let wanted_groups = asked.clone().unwrap_or_else(|| names.join(","));
    let mut boots = 1;
    let (console, checks) = loop {
        let console = vm::boot(&image, &initramfs, &wanted_groups, vm::Machine::ORDINARY)?;
        let checks = vm::checks(&console);
        checks.iter().for_each(|check| println!("{kernel}: {check:?}"));
        let failed: Vec<_> = checks.iter().filter(|check| check.failure.is_some()).collect();
        if failed.is_empty() || boots == MOST_BOOTS {
            break (console, checks);
        }
        // Not by eprintln!, which is not shown where the test then passes.
        writeln!(std::io::stderr(), "{name}: boot {boots} of {MOST_BOOTS} failed: {failed:#?}")?;
        boots += 1;
    };
    let verified = verifier::verified(&console);
    println!("{kernel}: instructions verified: {verified:?}");
    let failed = checks.iter().any(|check| check.failure.is_some());
    let count: usize = groups.iter().map(|(_, count)| count).sum();
    let complete = asked.is_some() || checks.len() == count;
    ensure!(!failed && complete, "{checks:#?}\n--- console ---\n{}", console.join("\n"));
    let dear = verifier::above_ceiling(kernel, &verified);
    ensure!(dear.is_empty(), "{}", dear.join("; "));
    // Kernels before 5.16 do not tell.
    ensure!(asked.is_some() || !verified.is_empty() || kernel == "5.10", "no figures of the verifier");
    Ok(())
}

fn systemd_programs() -> Option<[PathBuf; 2]> {
    let systemd = ["/lib/systemd/systemd", "/usr/lib/systemd/systemd"].map(PathBuf::from);
    Some([systemd.into_iter().find(|path| path.is_file())?, places::tool("systemd-run")?])
}

#[test]
fn kernel_5_10() -> Result<()> {
    every_verdict_is_reported_as_audit_has_it("5.10")
}

#[test]
fn kernel_6_1() -> Result<()> {
    every_verdict_is_reported_as_audit_has_it("6.1")
}

#[test]
fn kernel_6_12() -> Result<()> {
    every_verdict_is_reported_as_audit_has_it("6.12")
}

#[test]
fn kernel_sid() -> Result<()> {
    every_verdict_is_reported_as_audit_has_it("sid")
}
