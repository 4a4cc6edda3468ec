//! The agent on real kernels, in QEMU: which is said by `SECLOG_KERNELS` (names of tests/setup/kernels.sh).

use anyhow::{Result, ensure};
use seclog_tests::lab::{exclusive, initramfs, places, skip, vm};

/// One of the observer alone, seven for each of two hooks, five of quiet mode (tests/src/bin/seclog-vm-init).
const CHECKS: usize = 20;

fn every_verdict_is_reported_as_audit_has_it(kernel: &str) -> Result<()> {
    let name = format!("kernel_{}", kernel.replace('.', "_"));
    let wanted = std::env::var("SECLOG_KERNELS").unwrap_or_else(|_| "6.1".into());
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
    let programs = [places::program("seclog-agent")?, places::program("seclog-load")?];
    initramfs::write(&initramfs, &places::program("seclog-vm-init")?, &programs)?;

    let console = vm::boot(&image, &initramfs)?;
    let checks = vm::checks(&console);
    checks.iter().for_each(|check| println!("{kernel}: {check:?}"));
    let failed = checks.iter().any(|check| check.failure.is_some());
    ensure!(!failed && checks.len() == CHECKS, "{checks:#?}\n--- console ---\n{}", console.join("\n"));
    Ok(())
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
