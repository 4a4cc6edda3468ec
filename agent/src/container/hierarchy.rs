//! The cgroup hierarchy that tells containers apart: the v2 one, or where containers are not in it, one of a v1 controller.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// v1 controllers in whose hierarchies container runtimes make a cgroup for every container, in the order of preference.
const CONTROLLERS: [&str; 4] = ["pids", "memory", "devices", "cpu"];
/// Below these kubelet puts pods.
const PODS: [&str; 2] = ["kubepods.slice", "kubepods"];

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    pub root: PathBuf,
    /// `None`: the v2 hierarchy.
    pub v1: Option<V1>,
}

/// A hierarchy of a v1 controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct V1 {
    pub controller: &'static str,
    /// As /proc/<pid>/cgroup has it; never 0, which is the v2 hierarchy's.
    pub number: u32,
}

// === impl Hierarchy ===

impl Hierarchy {
    /// Finds it below /sys/fs/cgroup: the v2 hierarchy there (/unified on hybrid hosts) unless pods are in a v1 hierarchy and not
    /// in that one. `own` is some process's /proc/<pid>/cgroup, for the numbers of hierarchies.
    pub fn find(sys_fs_cgroup: &Path, own: &str) -> Option<Self> {
        let v2 = [sys_fs_cgroup.to_owned(), sys_fs_cgroup.join("unified")]
            .into_iter()
            .find(|root| root.join("cgroup.controllers").exists())
            .map(|root| Self { root, v1: None });
        let v1 = CONTROLLERS.into_iter().find_map(|controller| {
            let root = sys_fs_cgroup.join(controller);
            let number = numbers(own).find(|(_, of, _)| of.split(',').any(|name| name == controller))?.0;
            let mounted = number != 0 && root.join("cgroup.procs").exists();
            // A link (cpu → cpu,cpuacct) would not be what the kernel calls the path.
            let root = fs::canonicalize(root).ok().filter(|_| mounted)?;
            Some(Self { root, v1: Some(V1 { controller, number }) })
        });
        match (v2, v1) {
            (Some(v2), Some(v1)) if !v2.has_pods() && v1.has_pods() => Some(v1),
            (v2, v1) => v2.or(v1),
        }
    }

    fn has_pods(&self) -> bool {
        PODS.iter().any(|name| self.root.join(name).is_dir())
    }

    /// The path that a /proc/<pid>/cgroup has for this hierarchy.
    pub fn path_in<'a>(&self, text: &'a str) -> Option<&'a str> {
        let number = self.v1.as_ref().map_or(0, |v1| v1.number);
        numbers(text).find(|(of, ..)| *of == number).map(|(.., path)| path)
    }

    /// The path of a process's cgroup.
    pub fn path_of(&self, pid: u32) -> Option<String> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        self.path_in(&text).map(str::to_owned)
    }
}

/// `4:pids:/a/b` a line: number, controllers and path of each hierarchy.
fn numbers(text: &str) -> impl Iterator<Item = (u32, &str, &str)> {
    text.lines().filter_map(|line| {
        let (number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(':')?;
        Some((number.parse().ok()?, controllers, path))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "5:pids:/a\n4:cpu,cpuacct:/b\n1:name=systemd:/c:d\n0::/e\n";

    fn host(directories: &[&str], v2: &str) -> tempfile::TempDir {
        let host = tempfile::tempdir().unwrap();
        for directory in directories {
            fs::create_dir_all(host.path().join(directory)).unwrap();
            fs::write(host.path().join(directory).join("cgroup.procs"), "").unwrap();
        }
        if v2 != "none" {
            fs::create_dir_all(host.path().join(v2)).unwrap();
            fs::write(host.path().join(v2).join("cgroup.controllers"), "").unwrap();
        }
        host
    }

    fn found(host: &tempfile::TempDir) -> Option<(String, Option<u32>)> {
        let found = Hierarchy::find(host.path(), HYBRID)?;
        let below = found.root.strip_prefix(fs::canonicalize(host.path()).unwrap()).unwrap().display().to_string();
        Some((below, found.v1.map(|v1| v1.number)))
    }

    #[test]
    fn the_v2_hierarchy_is_taken_unless_pods_are_in_a_v1_one_alone() {
        assert_eq!(found(&host(&[], "")), Some((String::new(), None)));
        assert_eq!(found(&host(&["pids", "unified"], "unified")), Some(("unified".into(), None)));
        assert_eq!(found(&host(&["pids/kubepods", "pids"], "unified")), Some(("pids".into(), Some(5))));
        let both = host(&["pids/kubepods", "pids", "unified/kubepods.slice"], "unified");
        assert_eq!(found(&both), Some(("unified".into(), None)));
        assert_eq!(found(&host(&["memory", "cpu"], "none")), Some(("cpu".into(), Some(4))), "memory has no number");
        assert_eq!(found(&host(&[], "none")), None);
    }

    #[test]
    fn paths_are_those_of_the_hierarchy_colons_included() {
        let v1 = |number| Hierarchy { root: "/x".into(), v1: Some(V1 { controller: "pids", number }) };
        assert_eq!(v1(5).path_in(HYBRID), Some("/a"));
        assert_eq!(v1(1).path_in(HYBRID), Some("/c:d"));
        assert_eq!(v1(9).path_in(HYBRID), None);
        assert_eq!(Hierarchy { root: "/x".into(), v1: None }.path_in(HYBRID), Some("/e"));
        assert_eq!(v1(5).path_in("x\n5\n:::\n"), None);
    }
}
