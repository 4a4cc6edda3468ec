//! Builds a node's root below a temporary directory, and says what the check finds in it.
#![allow(dead_code, reason = "each test file uses a part of it")]
#![allow(unreachable_pub, reason = "shared by several test binaries")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use seclog_dropin::{
    facts::NodeFacts,
    judge::Expect,
    node::{self, Sources},
    render::machine_config_operator_default,
    report::Report,
    version::CrioVersion,
};

pub const LOGGING: &str = r#"{"defaultAction":"SCMP_ACT_ALLOW","archMap":[{"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86","SCMP_ARCH_X32"]}],"syscalls":[{"names":["execve","execveat"],"action":"SCMP_ACT_LOG"}]}"#;
pub const PROFILE: &str = "/etc/crio/seccomp/privileged-audit.json";
pub const DROPIN: &str = "/etc/crio/crio.conf.d/60-seccomp-audit.conf";
/// When the crio of [`Node::crio_started_long_ago`] and of [`Node::crio_started_now`] began.
const BOOT: i64 = 1_000_000;

pub struct Node {
    dir: tempfile::TempDir,
    version: Option<CrioVersion>,
    expect: Option<Expect>,
}

impl Node {
    /// A node of OpenShift with its own configuration, both runtimes, a healthy kernel, no socket and no containers.
    pub fn openshift(minor: u32) -> Self {
        let node = Self::empty();
        let version = CrioVersion { minor };
        node.file("/run/crio/version", format!("\"1.{minor}.1\"\n"))
            .file("/etc/crio/crio.conf.d/00-default", machine_config_operator_default(version))
            .file("/usr/bin/crun", "")
            .file("/usr/bin/runc", "")
            .file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz rw\n")
            .file("/proc/1/comm", "systemd\n")
            .file(
                "/proc/sys/kernel/seccomp/actions_avail",
                "kill_process kill_thread trap errno user_notif trace log allow\n",
            )
            .file(
                "/proc/sys/kernel/seccomp/actions_logged",
                "kill_process kill_thread trap errno user_notif trace log\n",
            )
            .file("/proc/kallsyms", "ffffffff81000000 T audit_seccomp\n")
            .file("/proc/700/comm", "auditd\n")
            .file("/sys/kernel/btf/vmlinux", "x")
            .dir("/run/containers/storage/overlay-containers")
    }

    /// Nothing at all.
    pub fn empty() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), version: None, expect: None }
    }

    pub fn file(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        // Whatever the umask of whoever runs the tests.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        self
    }

    pub fn dir(self, path: &str) -> Self {
        fs::create_dir_all(self.at(path)).unwrap();
        self
    }

    pub fn link(self, path: &str, target: &str) -> Self {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    pub fn without(self, path: &str) -> Self {
        let path = self.at(path);
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
        self
    }

    pub fn mode(self, path: &str, mode: u32) -> Self {
        fs::set_permissions(self.at(path), fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    pub fn version(mut self, minor: u32) -> Self {
        self.version = Some(CrioVersion { minor });
        self
    }

    pub fn expect(mut self, privileged: bool, workload: bool) -> Self {
        self.expect = Some(Expect { privileged, workload });
        self
    }

    /// The right drop-in and its profile.
    pub fn with_dropin(self) -> Self {
        self.privileged_profile(LOGGING)
    }

    pub fn privileged_profile(self, json: &str) -> Self {
        self.file(DROPIN, format!("[crio.runtime]\nprivileged_seccomp_profile = \"{PROFILE}\"\n")).file(PROFILE, json)
    }

    /// A crio that started at the given second of 1970.
    pub fn crio_started(self, at: i64) -> Self {
        let ticks = (at - BOOT) * 100;
        let stat = format!("800 (crio) S 1 800 800 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 9 0 {ticks} 1 1\n");
        self.file("/proc/800/comm", "crio\n")
            .file("/proc/800/stat", stat)
            .file("/proc/800/cmdline", "/usr/bin/crio\0")
            .file("/proc/stat", format!("cpu 1 2 3\nbtime {BOOT}\n"))
    }

    /// A running container whose specification is `spec`.
    pub fn container(self, id: &str, pid: u32, spec: &str) -> Self {
        let dir = format!("/run/containers/storage/overlay-containers/{id}/userdata");
        self.file(&format!("{dir}/config.json"), spec)
            .file(&format!("{dir}/pidfile"), pid.to_string())
            .file(&format!("/proc/{pid}/comm"), "sleep\n")
    }

    pub fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path.trim_start_matches('/'))
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn sources(&self) -> Sources {
        Sources { root: self.root().to_owned(), version: self.version, socket: None, ask_socket: true }
    }

    /// The facts, with the files of whoever runs the tests taken for root's.
    pub fn facts(&self) -> NodeFacts {
        let mut facts = node::gather(&self.sources()).unwrap();
        let own = nix::unistd::geteuid().as_raw();
        let metas = facts.config.iter_mut().map(|f| &mut f.meta);
        for meta in metas.chain(facts.profiles.values_mut().map(|p| &mut p.meta)) {
            if meta.uid == Some(own) {
                meta.uid = Some(0);
            }
        }
        facts
    }

    pub fn report(&self) -> Report {
        Report::of("/", &self.facts(), self.expect)
    }

    /// Every finding as `severity code place`, the gravest first, without the two that every tree of files has: no
    /// socket, and an audit status that belongs to another machine.
    pub fn findings(&self) -> Vec<String> {
        let always = ["socket-unknown", "audit-unknown"];
        let report = self.report();
        let shown = report.findings.iter().filter(|f| !always.contains(&f.code.name()));
        shown
            .map(|f| {
                let place = f.place.as_ref().map_or(String::new(), |p| format!(" {p}"));
                let place = place.replace("/etc/crio/crio.conf.d/", "").replace("/etc/crio/seccomp/", "");
                format!("{} {}{place}", f.severity, f.code)
            })
            .collect()
    }
}
