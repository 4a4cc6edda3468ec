//! Cgroup ids to paths, paths to containers.
//!
//! A cgroup id is the inode number of its directory in the hierarchy that tells containers apart ([`Hierarchy`]). Paths are
//! found by the id itself (open_by_handle_at on the cgroup file system), or by walking the tree where that is not allowed.

use foldhash::HashMap;
use nix::errno::Errno;
use std::{
    collections::VecDeque,
    fs,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::fs::{DirEntryExt as _, MetadataExt as _},
    },
    path::Path,
    sync::Arc,
};

use super::hierarchy::Hierarchy;

/// Cgroups remembered at once.
const MOST: usize = 16_384;
/// How long an id that was not found is not looked for again: nanoseconds.
const MISS_NS: u64 = 1_000_000_000;
/// Directories walked in one search.
const MOST_WALKED: usize = 100_000;

/// A cgroup, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Below the root of the hierarchy, with a leading slash; empty when not found.
    pub path: Arc<str>,
    pub container: Option<Arc<str>>,
    /// Empty outside pods.
    pub pod_uid: Arc<str>,
}

/// What the kernel says of a cgroup id.
enum Handle {
    Found(String),
    Gone,
    /// It does not say: no CAP_DAC_READ_SEARCH, or no hierarchy.
    NotAllowed,
}

/// Finds and remembers cgroups.
#[derive(Debug)]
pub struct Cgroups {
    hierarchy: Option<Hierarchy>,
    root_directory: Option<OwnedFd>,
    by_id: HashMap<u64, (Arc<Cgroup>, u64)>,
    unknown: Arc<Cgroup>,
    order: VecDeque<u64>,
}

// === impl Cgroups ===

impl Cgroups {
    pub fn new(hierarchy: Option<Hierarchy>) -> Self {
        let root_directory =
            hierarchy.as_ref().and_then(|hierarchy| fs::File::open(&hierarchy.root).ok()).map(OwnedFd::from);
        Self { hierarchy, root_directory, by_id: HashMap::default(), unknown: Arc::default(), order: VecDeque::new() }
    }

    /// Knows the cgroups it is given and no others: for recordings.
    pub fn recorded<'a>(cgroups: impl IntoIterator<Item = (u64, &'a str)>) -> Self {
        let mut known = Self {
            hierarchy: None,
            root_directory: None,
            by_id: HashMap::default(),
            unknown: Arc::default(),
            order: VecDeque::new(),
        };
        for (id, path) in cgroups {
            known.insert(id, path, 0);
        }
        known
    }

    /// Where the hierarchy is; without one, nothing can be attributed to containers.
    pub fn root(&self) -> Option<&Path> {
        self.hierarchy.as_ref().map(|hierarchy| hierarchy.root.as_path())
    }

    /// What a cgroup id stands for.
    pub fn get(&mut self, id: u64, now_ns: u64) -> Arc<Cgroup> {
        if id == 0 {
            return Arc::clone(&self.unknown);
        }
        if let Some((known, found_ns)) = self.by_id.get(&id)
            && (!known.path.is_empty() || found_ns + MISS_NS > now_ns)
        {
            return Arc::clone(known);
        }
        let path = match self.by_handle(id) {
            Handle::Found(path) => Some(path),
            // The kernel knows: looking for it in the whole tree would only take time.
            Handle::Gone => None,
            Handle::NotAllowed => self.by_walk(id),
        };
        let path = path.unwrap_or_default();
        self.insert(id, &path, now_ns)
    }

    /// What a path of /proc/<pid>/cgroup stands for, and its id.
    pub fn by_path(&mut self, path: &str, now_ns: u64) -> (u64, Option<Arc<str>>) {
        let Some(root) = self.root() else { return (0, None) };
        let id = fs::metadata(root.join(path.trim_start_matches('/'))).map_or(0, |metadata| metadata.ino());
        if id == 0 {
            return (0, container_of_path(path).map(Into::into));
        }
        (id, self.insert(id, path, now_ns).container.clone())
    }

    /// Takes a path from elsewhere: the kernel told of the cgroup as it was made.
    pub fn learn(&mut self, id: u64, path: &str, now_ns: u64) {
        if id != 0 && !path.is_empty() {
            self.insert(id, path, now_ns);
        }
    }

    fn insert(&mut self, id: u64, path: &str, now_ns: u64) -> Arc<Cgroup> {
        let cgroup = Arc::new(Cgroup {
            path: path.into(),
            container: container_of_path(path).map(Into::into),
            pod_uid: pod_uid_of_path(path).unwrap_or_default().into(),
        });
        if self.by_id.insert(id, (Arc::clone(&cgroup), now_ns)).is_none() {
            self.order.push_back(id);
            if self.order.len() > MOST
                && let Some(oldest) = self.order.pop_front()
            {
                self.by_id.remove(&oldest);
            }
        }
        cgroup
    }

    /// A kernfs file handle is the 64-bit id alone (FILEID_KERNFS, include/linux/exportfs.h). Needs
    /// CAP_DAC_READ_SEARCH.
    fn by_handle(&self, id: u64) -> Handle {
        const FILEID_KERNFS: i32 = 0xfe;
        #[repr(C)]
        struct FileHandle {
            bytes: u32,
            kind: i32,
            id: u64,
        }
        let (Some(root), Some(root_directory)) = (self.root(), &self.root_directory) else { return Handle::NotAllowed };
        let mut handle = FileHandle { bytes: 8, kind: FILEID_KERNFS, id };
        // SAFETY: a file_handle is its size, its type and that many bytes; the descriptor is open.
        let descriptor = unsafe {
            libc::open_by_handle_at(
                root_directory.as_raw_fd(),
                (&raw mut handle).cast(),
                libc::O_PATH | libc::O_CLOEXEC,
            )
        };
        if descriptor < 0 {
            return match Errno::last() {
                Errno::ESTALE | Errno::ENOENT => Handle::Gone,
                _ => Handle::NotAllowed,
            };
        }
        // SAFETY: just opened, and nobody else's.
        let directory = unsafe { OwnedFd::from_raw_fd(descriptor) };
        let link = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd())).unwrap_or_default();
        match link.strip_prefix(root).ok().and_then(Path::to_str) {
            // A removed cgroup can still be open somewhere; its name is then marked.
            Some(path) => Handle::Found(format!("/{}", path.trim_end_matches(" (deleted)"))),
            None => Handle::Gone,
        }
    }

    fn by_walk(&self, id: u64) -> Option<String> {
        let root = self.root()?;
        let mut left = VecDeque::from([root.to_owned()]);
        let mut walked = 0;
        while let Some(directory) = left.pop_front() {
            for entry in fs::read_dir(&directory).ok()?.flatten() {
                if !entry.file_type().is_ok_and(|of_type| of_type.is_dir()) {
                    continue;
                }
                if entry.ino() == id {
                    return Some(format!("/{}", entry.path().strip_prefix(root).ok()?.to_str()?));
                }
                walked += 1;
                if walked > MOST_WALKED {
                    return None;
                }
                left.push_back(entry.path());
            }
        }
        None
    }
}

/// The container a cgroup path lies in: the last component that names one. Deeper cgroups (crun's `container`, those that
/// a container's own systemd makes) belong to it; conmon's does not.
pub fn container_of_path(path: &str) -> Option<&str> {
    path.split('/').rev().find_map(container_of_component)
}

fn container_of_component(component: &str) -> Option<&str> {
    let name = component.strip_suffix(".scope").unwrap_or(component);
    let id =
        ["crio-", "cri-containerd-", "docker-"].iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    (id.len() == 64 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))).then_some(id)
}

/// The pod's UID in a kubepods path: `pod<uid>` (cgroupfs) or `kubepods-<class>-pod<uid with _>.slice` (systemd).
pub fn pod_uid_of_path(path: &str) -> Option<String> {
    path.split('/').rev().find_map(|component| {
        let uid = match component.strip_suffix(".slice") {
            Some(slice) => slice.rsplit_once("-pod").map(|(_, uid)| uid)?.replace('_', "-"),
            None => component.strip_prefix("pod")?.to_owned(),
        };
        (!uid.is_empty() && uid.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')).then_some(uid)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "beb1ef43f6c3fc5f918a0c47afee9630c10966b3b567adeef3a9abe2eb180dd2";

    #[test]
    fn every_runtime_and_driver_names_its_container() {
        for (path, uid) in [
            (
                format!("/kubepods/besteffort/pod95404c95-ae1f-4c16-a2f0-a2642aef5193/crio-{ID}"),
                "95404c95-ae1f-4c16-a2f0-a2642aef5193",
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod95404c95_ae1f_4c16_a2f0_a2642aef5193.slice/crio-{ID}.scope"
                ),
                "95404c95-ae1f-4c16-a2f0-a2642aef5193",
            ),
            (
                format!(
                    "/kubepods.slice/kubepods-pod95404c95_ae1f_4c16_a2f0_a2642aef5193.slice/crio-{ID}.scope/container"
                ),
                "95404c95-ae1f-4c16-a2f0-a2642aef5193",
            ),
            (format!("/kubepods.slice/kubepods-podu1.slice/cri-containerd-{ID}.scope/system.slice/sshd.service"), "u1"),
            (format!("/kubepods/podu1/{ID}"), "u1"),
        ] {
            assert_eq!(container_of_path(&path), Some(ID), "{path}");
            assert_eq!(pod_uid_of_path(&path).as_deref(), Some(uid), "{path}");
        }
    }

    #[test]
    fn monitors_services_and_almost_ids_are_no_containers() {
        for path in [
            format!("/kubepods.slice/kubepods-podu1.slice/crio-conmon-{ID}.scope"),
            "/system.slice/crio.service".into(),
            format!("/kubepods/podu1/crio-{}", &ID[1..]),
            format!("/x/{}", ID.to_uppercase()),
            "/".into(),
            String::new(),
        ] {
            assert_eq!(container_of_path(&path), None, "{path}");
        }
        assert_eq!(pod_uid_of_path("/system.slice/crio.service"), None);
    }

    #[test]
    fn the_hosts_own_tree_gives_paths_by_id() {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let mut cgroups = Cgroups::new(Hierarchy::find(Path::new("/sys/fs/cgroup"), &own));
        let Some(root) = cgroups.root().map(Path::to_owned) else { return };
        let Some(directory) = fs::read_dir(&root).unwrap().flatten().find(|entry| entry.path().is_dir()) else {
            return;
        };
        let path = format!("/{}", directory.file_name().to_str().unwrap());
        assert_eq!(&*cgroups.get(directory.ino(), 0).path, path);
        assert_eq!(cgroups.by_walk(directory.ino()), Some(path));
        assert_eq!(&*cgroups.get(u64::MAX - 1, 0).path, "");
    }
}
