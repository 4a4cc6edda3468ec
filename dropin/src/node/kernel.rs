//! Settings of the kernel that decide whether a verdict is logged and can be seen.

use super::root::Root;
use crate::facts::{Hooks, Kernel};

/// /proc/kallsyms of a large kernel is about 15 MB.
const KALLSYMS_LIMIT: u64 = 64 << 20;

pub(crate) fn settings(root: &Root) -> Kernel {
    Kernel {
        cmdline: root.text("/proc/cmdline", 1 << 16),
        actions_logged: root.text("/proc/sys/kernel/seccomp/actions_logged", 4096),
        actions_avail: root.text("/proc/sys/kernel/seccomp/actions_avail", 4096),
    }
}

/// What the files say; the running agent knows better because it has tried.
pub(crate) fn hooks(root: &Root) -> Hooks {
    match root.contains("/proc/kallsyms", b" audit_seccomp", KALLSYMS_LIMIT) {
        Some(symbol) => Hooks::Files { btf: root.exists("/sys/kernel/btf/vmlinux"), symbol },
        None => Hooks::Unknown("/proc/kallsyms cannot be read below this root".into()),
    }
}
