//! What a logged call costs its caller where the verdict hook attaches: in QEMU, in instructions.
//!
//! The host here may refuse the hook, and emulated time means nothing. But a machine whose clocks count its one processor's
//! instructions gives the same figures on any host, however busy: those of the caller's thread, kernel and hook included.

use anyhow::{Context as _, Result, ensure};

use super::figure::Figure;
use crate::lab::{initramfs, places, vm};

/// The kernel that runs every check as well.
const KERNEL: &str = "6.1";

pub fn figures() -> Result<Vec<Figure>> {
    let image = vm::unavailable().map_or_else(|| vm::kernel(KERNEL), Err).map_err(anyhow::Error::msg)?;
    let directory = tempfile::tempdir()?;
    let initramfs = directory.path().join("initramfs");
    initramfs::write(&initramfs, &places::program("seclog-vm-init")?, &[places::program("seclog-agent")?])?;
    let mut figures = Vec::new();
    for (audit_enabled, as_what) in [(false, "enabled 0"), (true, "enabled 1, as auditd sets it")] {
        let machine = vm::Machine { clock: vm::Clock::Instructions, audit_enabled };
        let console = vm::boot(&image, &initramfs, "cost", machine)?;
        let failed: Vec<String> = vm::checks(&console).into_iter().filter_map(|check| check.failure).collect();
        ensure!(failed.is_empty(), "{}", failed.join("; "));
        figures.extend(of_machine(&vm::costs(&console), as_what)?);
    }
    Ok(figures)
}

fn of_machine(costs: &[(String, f64)], as_what: &str) -> Result<[Figure; 2]> {
    let cost = |name: &str| {
        let found = costs.iter().find(|(of, _)| of == name).map(|(_, instructions)| *instructions);
        found.with_context(|| format!("no figure {name} among {costs:?}"))
    };
    let (plain, silent, default, quiet) = (cost("plain")?, cost("silent")?, cost("default")?, cost("quiet")?);
    let how = format!(
        "of the caller, getppid, Linux {KERNEL} in QEMU, audit {as_what}; without a filter {plain:.0}, let pass {silent:.0}"
    );
    Ok([
        Figure::stated("a logged call, default audit path: instructions", format!("{default:.0}"), how),
        Figure::judged(
            "a logged call, quiet mode with the hook: instructions",
            &format!("at most {:.0} (1/8)", default / 8.0),
            format!("{quiet:.0}"),
            quiet * 8.0 <= default,
            format!(
                "audit {as_what}; 1/{:.1} of the default path, the hook and its ring record in it",
                default / quiet
            ),
        ),
    ])
}
