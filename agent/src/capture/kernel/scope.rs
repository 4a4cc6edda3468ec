//! Which processes matter: those of pods, of the runtime service (which enters containers), and of cgroups that the
//! configuration names. Everything they start matters as well.

use std::{
    fs,
    os::fd::AsRawFd as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use nix::sys::socket::{getsockopt, sockopt};
use seclog_abi::SCOPE_MAX;

/// Cgroups of the v2 hierarchy, by path below its root; those that hold pods first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub root: PathBuf,
    pub pods: Vec<String>,
    pub others: Vec<String>,
    /// Why everything matters, when it does.
    pub unbounded: Option<String>,
}

// === impl Scope ===

impl Scope {
    /// Finds what there is. Without pods' cgroups or the runtime's, everything matters: better too much than a session
    /// missed.
    pub fn find(root: Option<&Path>, cri_socket: Option<&Path>, configured: &[String]) -> Self {
        let Some(root) = root else {
            return Self { unbounded: Some("there is no cgroup v2 hierarchy".into()), ..Self::default() };
        };
        let is_there = |path: &str| root.join(path.trim_start_matches('/')).is_dir();
        let pods: Vec<String> =
            ["/kubepods.slice", "/kubepods"].into_iter().filter(|path| is_there(path)).map(Into::into).collect();
        let mut scope = Self { root: root.to_owned(), pods, ..Self::default() };
        if scope.pods.is_empty() {
            scope.unbounded = Some("kubelet has made no kubepods cgroup yet".into());
        }
        match cri_socket.map(service_cgroup) {
            Some(Some(path)) if path == "/" => {
                scope.unbounded = Some("the container runtime runs in the root cgroup".into());
            }
            Some(Some(path)) => scope.others.push(path),
            Some(None) => scope.unbounded = Some("the process behind the CRI socket is not known".into()),
            None => scope.unbounded = Some("there is no CRI socket to find the runtime service by".into()),
        }
        for path in configured {
            if is_there(path) {
                scope.others.push(path.clone());
            } else {
                tracing::warn!(cgroup = path, "--scope-cgroup names a cgroup that is not there; it is left out");
            }
        }
        if scope.pods.len() + scope.others.len() > SCOPE_MAX {
            scope.unbounded = Some(format!("more than {SCOPE_MAX} cgroups are to be watched"));
        }
        scope
    }

    /// Whether a process in this cgroup matters.
    pub fn contains(&self, path: &str) -> bool {
        let below = |scope: &String| {
            path == scope || path.strip_prefix(scope.as_str()).is_some_and(|rest| rest.starts_with('/'))
        };
        self.unbounded.is_some() || self.pods.iter().chain(&self.others).any(below)
    }
}

/// The cgroup of the process that serves a unix socket.
fn service_cgroup(socket: &Path) -> Option<String> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
    tracing::debug!(socket = stream.as_raw_fd(), pid = peer.pid(), "the process behind the CRI socket");
    let text = fs::read_to_string(format!("/proc/{}/cgroup", peer.pid())).ok()?;
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::Scope;

    #[test]
    fn a_cgroup_is_in_scope_with_all_below_it_and_no_namesake() {
        let scope = Scope {
            pods: vec!["/kubepods.slice".into()],
            others: vec!["/system.slice/crio.service".into()],
            ..Scope::default()
        };
        for inside in ["/kubepods.slice", "/kubepods.slice/x/crio-1.scope", "/system.slice/crio.service/y"] {
            assert!(scope.contains(inside), "{inside}");
        }
        for outside in ["/", "/kubepods.slice2", "/system.slice", "/system.slice/crio.service2"] {
            assert!(!scope.contains(outside), "{outside}");
        }
    }

    #[test]
    fn without_pods_cgroups_everything_matters_and_says_why() {
        let empty = tempfile::tempdir().unwrap();
        let scope = Scope::find(Some(empty.path()), None, &[]);
        assert!(scope.unbounded.is_some() && scope.contains("/anything"));
    }
}
