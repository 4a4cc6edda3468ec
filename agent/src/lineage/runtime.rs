//! Which programs of the host are the container runtime: by path in the host's mount namespace, never by name.
//!
//! A runtime that counts is one of the configured files on the host, below the process that serves the CRI. Whatever calls
//! itself runc elsewhere decides nothing.

use std::{
    fs,
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    },
    path::Path,
};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, openat2};

use super::processes::{Image, ProcessKey};

/// Which part a program plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// An OCI runtime: runc, crun.
    Runtime,
    /// CRI-O's monitor of one container or one synchronous exec.
    Conmon,
    /// A monitor that serves every request for one pod or container: containerd's shim, conmon-rs.
    Shim,
    /// Serves the CRI.
    Service,
}

/// Where distributions put them.
const USUAL: [(&str, Role); 21] = [
    ("/usr/bin/crun", Role::Runtime),
    ("/usr/sbin/crun", Role::Runtime),
    ("/usr/local/bin/crun", Role::Runtime),
    ("/usr/libexec/crio/crun", Role::Runtime),
    ("/usr/bin/runc", Role::Runtime),
    ("/usr/sbin/runc", Role::Runtime),
    ("/usr/local/bin/runc", Role::Runtime),
    ("/usr/local/sbin/runc", Role::Runtime),
    ("/usr/libexec/crio/runc", Role::Runtime),
    ("/usr/bin/conmon", Role::Conmon),
    ("/usr/local/bin/conmon", Role::Conmon),
    ("/usr/libexec/crio/conmon", Role::Conmon),
    ("/usr/libexec/podman/conmon", Role::Conmon),
    ("/usr/bin/conmonrs", Role::Shim),
    ("/usr/libexec/crio/conmonrs", Role::Shim),
    ("/usr/bin/containerd-shim-runc-v2", Role::Shim),
    ("/usr/local/bin/containerd-shim-runc-v2", Role::Shim),
    ("/usr/bin/crio", Role::Service),
    ("/usr/local/bin/crio", Role::Service),
    ("/usr/bin/containerd", Role::Service),
    ("/usr/local/bin/containerd", Role::Service),
];

/// What is known of the node's container runtime.
#[derive(Debug)]
pub struct Runtime {
    programs: Vec<(String, Role)>,
    /// The root directory of the host's mount namespace, to look paths up; `None`: by text alone.
    root: Option<OwnedFd>,
    /// The process behind the CRI socket.
    service_pid: Option<u32>,
    /// Its cgroup: a service that was restarted is in the same one, made anew.
    service_cgroup: Option<(u64, String)>,
}

// === impl Runtime ===

impl Default for Runtime {
    fn default() -> Self {
        let programs = USUAL.iter().map(|(path, role)| ((*path).to_owned(), *role)).collect();
        Self { programs, root: None, service_pid: None, service_cgroup: None }
    }
}

impl Runtime {
    /// `runtimes`, `monitors` and `services` replace the usual places of their kind where they are not empty.
    pub fn new(runtimes: &[String], monitors: &[String], services: &[String], root: &Path) -> Self {
        let mut programs = Self::default().programs;
        for (paths, role) in [(runtimes, Role::Runtime), (monitors, Role::Conmon), (services, Role::Service)] {
            if !paths.is_empty() {
                programs.retain(|(_, usual)| *usual != role);
                programs.extend(paths.iter().map(|path| (path.clone(), role)));
            }
        }
        let root = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(root);
        Self { programs, root: root.ok().map(OwnedFd::from), service_pid: None, service_cgroup: None }
    }

    /// Adds what the configuration of the runtime service names.
    pub fn add(&mut self, path: &str, role: Role) {
        if !self.programs.iter().any(|(known, _)| known == path) {
            self.programs.push((path.to_owned(), role));
        }
    }

    /// The process that serves the CRI, and its cgroup (id and path).
    #[must_use]
    pub fn served_by(mut self, pid: u32, cgroup: Option<(u64, String)>) -> Self {
        self.service_pid = Some(pid);
        // The root cgroup is everybody's.
        self.service_cgroup = cgroup.filter(|(_, path)| path.len() > 1);
        self
    }

    /// A service that was restarted gets its cgroup anew.
    pub fn cgroup_made(&mut self, cgroup_id: u64, path: &str) {
        if let Some((id, known)) = &mut self.service_cgroup
            && known == path
        {
            *id = cgroup_id;
        }
    }

    /// Which part an executable plays, by the path that was given to execve in the host's mount namespace.
    pub fn role(&self, path: &str) -> Option<Role> {
        let by_text = self.programs.iter().find(|(known, _)| known == path).map(|(_, role)| *role);
        if by_text.is_some() || !path.starts_with('/') {
            return by_text;
        }
        // Another path, perhaps to the same file.
        let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let may_be = |known: &str| name(path).contains(&name(known)) || name(known).contains(&name(path));
        let candidates: Vec<&(String, Role)> = self.programs.iter().filter(|(known, _)| may_be(known)).collect();
        if candidates.is_empty() {
            return None;
        }
        let file = self.file(path)?;
        candidates.into_iter().find(|(known, _)| self.file(known) == Some(file)).map(|(_, role)| *role)
    }

    /// Device and inode below the host's root.
    fn file(&self, path: &str) -> Option<(u64, u64)> {
        let root = self.root.as_ref()?;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let file = openat2(root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve).ok()?;
        let stat = fstat(file).ok()?;
        Some((stat.st_dev, stat.st_ino))
    }

    /// Whether a process that runs a service's program is the one that serves the CRI. `None`: nothing is known of it.
    pub(super) fn serves(&self, key: ProcessKey, image: &Image) -> Option<bool> {
        if self.service_pid.is_none() && self.service_cgroup.is_none() {
            return None;
        }
        let here = self.service_cgroup.as_ref().is_some_and(|(id, _)| *id == image.cgroup_id);
        Some(self.service_pid == Some(key.pid) || here)
    }

    /// The process that served the CRI when the agent began.
    pub(super) fn service_pid(&self) -> Option<u32> {
        self.service_pid
    }

    /// A running service, found by its executable: for nodes whose CRI socket is not to be touched.
    pub fn find_service(&self, proc: &Path) -> Option<u32> {
        let services: Vec<(u64, u64)> = self
            .programs
            .iter()
            .filter(|(_, role)| *role == Role::Service)
            .filter_map(|(path, _)| self.file(path))
            .collect();
        let mut found: Vec<u32> = fs::read_dir(proc)
            .ok()?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
            .filter(|pid| {
                let exe = fs::metadata(proc.join(pid.to_string()).join("exe"));
                exe.is_ok_and(|exe| services.contains(&(exe.dev(), exe.ino())))
            })
            .collect();
        // The service itself is older than what it starts.
        found.sort_unstable();
        found.into_iter().next()
    }
}

/// A file that an executable is run from again: by itself, or by a copy that it has made of itself (runc and crun do, so
/// that no container can overwrite them).
pub(super) fn runs_itself_again(filename: &str) -> bool {
    ["/proc/self/exe", "/proc/self/fd/", "/dev/fd/", "/memfd:"].iter().any(|prefix| filename.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_a_file_on_the_host_by_whatever_path_and_no_other_of_its_name() {
        let host = tempfile::tempdir().unwrap();
        let bin = host.path().join("usr/bin");
        fs::create_dir_all(&bin).unwrap();
        fs::write(bin.join("crun"), "x").unwrap();
        fs::write(bin.join("crio"), "x").unwrap();
        // Absolute, as on a host: below the host's root, not below ours.
        std::os::unix::fs::symlink("/usr/bin/crun", bin.join("crun-default")).unwrap();
        fs::create_dir_all(host.path().join("tmp")).unwrap();
        fs::write(host.path().join("tmp/crun"), "x").unwrap();
        let runtime = Runtime::new(&[], &[], &[], host.path());
        assert_eq!(runtime.role("/usr/bin/crun"), Some(Role::Runtime));
        assert_eq!(runtime.role("/usr/bin/crun-default"), Some(Role::Runtime));
        assert_eq!(runtime.role("/usr/bin/../bin/crio"), Some(Role::Service));
        for other in ["/tmp/crun", "crun", "./crun", "/usr/bin/nothing", "", "/tmp/missing/crun"] {
            assert_eq!(runtime.role(other), None, "{other}");
        }
    }

    #[test]
    fn what_is_configured_replaces_the_usual_places_of_its_kind() {
        let runtime = Runtime::new(&["/opt/bin/crun".into()], &[], &[], Path::new("/"));
        assert_eq!(runtime.role("/opt/bin/crun"), Some(Role::Runtime));
        assert_eq!(runtime.role("/usr/bin/runc"), None);
        assert_eq!(runtime.role("/usr/bin/conmon"), Some(Role::Conmon));
    }

    #[test]
    fn a_restarted_service_is_known_by_its_cgroup_and_an_impostor_elsewhere_is_not() {
        let mut runtime = Runtime::default().served_by(7, Some((100, "/system.slice/crio.service".into())));
        let key = |pid| ProcessKey { pid, start_boottime_ns: 1 };
        let at = |cgroup_id| Image { cgroup_id, ..Image::default() };
        assert_eq!(runtime.serves(key(7), &at(5)), Some(true));
        assert_eq!(runtime.serves(key(8), &at(101)), Some(false));
        runtime.cgroup_made(101, "/system.slice/crio.service");
        assert_eq!(runtime.serves(key(8), &at(101)), Some(true));
        assert_eq!(runtime.serves(key(8), &at(100)), Some(false));
        assert_eq!(Runtime::default().serves(key(8), &at(1)), None);
    }
}
