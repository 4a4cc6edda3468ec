//! Which processes matter: those of pods, of the runtime service (which enters containers), and of cgroups that the
//! configuration names. Everything they start matters as well.

use std::{
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use nix::sys::socket::{getsockopt, sockopt};
use seclog_abi::SCOPE_MAX;

use crate::container::{Hierarchy, V1};

/// Cgroups of the hierarchy that tells containers apart, by path below its root; those that hold pods first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scope {
    pub root: PathBuf,
    pub pods: Vec<String>,
    pub others: Vec<String>,
    /// Why everything matters, when it does.
    pub unbounded: Option<String>,
    /// The process that serves the CRI socket.
    pub service_pid: Option<u32>,
}

// === impl Scope ===

impl Scope {
    /// Finds what there is. Without pods' cgroups or the runtime's, everything matters: better too much than a session
    /// missed.
    pub fn find(hierarchy: Option<&Hierarchy>, service_pid: Option<u32>, configured: &[String]) -> Self {
        let Some(hierarchy) = hierarchy else {
            return Self { unbounded: Some("there is no cgroup hierarchy".into()), ..Self::default() };
        };
        let root = hierarchy.root.as_path();
        let is_there = |path: &str| root.join(path.trim_start_matches('/')).is_dir();
        let pods: Vec<String> =
            ["/kubepods.slice", "/kubepods"].into_iter().filter(|path| is_there(path)).map(Into::into).collect();
        let mut scope = Self { root: root.to_owned(), pods, ..Self::default() };
        if scope.pods.is_empty() {
            scope.unbounded = Some("kubelet has made no kubepods cgroup yet".into());
        }
        scope.service_pid = service_pid;
        match service_pid.map(|pid| hierarchy.path_of(pid)) {
            Some(Some(path)) if path == "/" => {
                scope.unbounded = Some("the container runtime runs in the root cgroup".into());
            }
            Some(Some(path)) => scope.others.push(path),
            Some(None) => scope.unbounded = Some("the cgroup of the container runtime is not known".into()),
            None => scope.unbounded = Some("no process was found that serves the CRI".into()),
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
        if let Some(V1 { controller, .. }) = &hierarchy.v1 {
            // bpf_current_task_under_cgroup() knows no others.
            scope.unbounded =
                Some(format!("containers are in the v1 hierarchy of {controller}, and the kernel filters by v2 alone"));
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

/// The process that serves a unix socket.
pub fn service_pid(socket: &Path) -> Option<u32> {
    let stream = UnixStream::connect(socket).ok()?;
    // 0: it is in a pid namespace that we do not see.
    let peer = getsockopt(&stream, sockopt::PeerCredentials).ok()?;
    u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0)
}

#[cfg(test)]
mod tests {
    use super::{Hierarchy, Scope};

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
        let hierarchy = Hierarchy { root: empty.path().into(), v1: None };
        let scope = Scope::find(Some(&hierarchy), None, &[]);
        assert!(scope.unbounded.is_some() && scope.contains("/anything"));
    }
}
