//! The names that `allowed_annotations` may hold: one unknown name makes CRI-O refuse the whole handler.
//!
//! cri-o/cri-o `pkg/annotations/annotations.go` (AllAllowedAnnotations) on release-1.27 to release-1.34, and
//! `pkg/annotations/v2/annotations.go` from release-1.35 on, which adds the `*.crio.io` names and keeps the old ones.

use crate::version::CrioVersion;

/// Makes the OCI seccomp-bpf-hook trace a container; it has nothing to do with SCMP_ACT_LOG.
pub const TRACE_SYSCALL: &str = "io.containers.trace-syscall";

/// Name and the first minor version that accepts it.
const ALLOWED: &[(&str, u32)] = &[
    ("io.kubernetes.cri-o.userns-mode", 27),
    ("io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw", 27),
    ("io.kubernetes.cri-o.UnifiedCgroup", 27),
    ("io.kubernetes.cri-o.ShmSize", 27),
    ("io.kubernetes.cri-o.Devices", 27),
    ("cpu-load-balancing.crio.io", 27),
    ("cpu-quota.crio.io", 27),
    ("irq-load-balancing.crio.io", 27),
    (TRACE_SYSCALL, 27),
    ("io.kubernetes.cri.rdt-class", 27),
    ("io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel", 27),
    ("cpu-c-states.crio.io", 27),
    ("cpu-freq-governor.crio.io", 27),
    ("io.kubernetes.cri-o.seccompNotifierAction", 27),
    ("io.kubernetes.cri-o.umask", 27),
    ("io.kubernetes.cri-o.LinkLogs", 27),
    ("bundle", 27),
    ("org.systemd.property.", 27),
    ("org.criu.config", 27),
    ("module.wasm.image/variant", 27),
    ("io.kubernetes.cri.container-type", 27),
    ("run.oci.", 27),
    ("io.kubernetes.cri-o.PodLinuxOverhead", 28),
    ("io.kubernetes.cri-o.PodLinuxResources", 28),
    ("cpu-shared.crio.io", 28),
    ("seccomp-profile.kubernetes.cri-o.io", 30),
    ("io.kubernetes.cri-o.DisableFIPS", 30),
    ("cgroup2-mount-hierarchy-rw.crio.io", 35),
    ("devices.crio.io", 35),
    ("disable-fips.crio.io", 35),
    ("link-logs.crio.io", 35),
    ("platform-runtime-path.crio.io", 35),
    ("pod-linux-overhead.crio.io", 35),
    ("pod-linux-resources.crio.io", 35),
    ("seccomp-notifier-action.crio.io", 35),
    ("seccomp-profile.crio.io", 35),
    ("shm-size.crio.io", 35),
    ("spoofed.crio.io", 35),
    ("try-skip-volume-selinux-label.crio.io", 35),
    ("umask.crio.io", 35),
    ("unified-cgroup.crio.io", 35),
    ("userns-mode.crio.io", 35),
    ("org.opencontainers.image.stopSignal", 35),
    ("io.kubernetes.cri-o.Spoofed", 35),
    ("io.kubernetes.cri-o.PlatformRuntimePath", 35),
];

/// The first version that accepts the name, `None` if none does.
pub fn accepted_since(name: &str) -> Option<u32> {
    ALLOWED.iter().find(|(n, _)| *n == name).map(|(_, since)| *since)
}

pub fn accepted(name: &str, version: CrioVersion) -> bool {
    accepted_since(name).is_some_and(|since| since <= version.minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_names_are_refused_before_1_35() {
        for (name, minor, ok) in [
            ("devices.crio.io", 34, false),
            ("devices.crio.io", 35, true),
            ("io.kubernetes.cri-o.Devices", 27, true),
            ("io.kubernetes.cri-o.Devices", 37, true),
            ("seccomp-profile.kubernetes.cri-o.io", 29, false),
            (TRACE_SYSCALL, 27, true),
            ("io.containers.trace-syscalls", 37, false),
        ] {
            assert_eq!(accepted(name, CrioVersion { minor }), ok, "{name} in 1.{minor}");
        }
    }
}
