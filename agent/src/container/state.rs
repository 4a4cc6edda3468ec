//! The runtime's own state on disk, read only: what an agent without the CRI socket can see.
//!
//! CRI-O and containerd write a container's specification before they make its cgroup, and remove it with the container.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use seclog_dropin::spec::{MAX_BYTES, Spec};

use super::known::Known;

/// Containers looked up at start.
const MOST: usize = 4096;

/// Where a runtime keeps the specifications of its containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    directory: PathBuf,
    /// Below the container's own directory.
    file: &'static str,
}

/// containers/storage's `runroot`, and containerd's `state`, by default.
const USUAL: [(&str, &str); 2] = [
    ("/run/containers/storage/overlay-containers", "userdata/config.json"),
    ("/run/containerd/io.containerd.runtime.v2.task/k8s.io", "config.json"),
];

// === impl State ===

impl State {
    /// Those that are there. `configured` replaces the usual places; a directory whose name ends in `-containers` is laid
    /// out as containers/storage does (`<id>/userdata/config.json`), any other as containerd does (`<id>/config.json`).
    pub fn find(configured: &[PathBuf]) -> Vec<Self> {
        let usual = USUAL.iter().map(|(directory, file)| Self { directory: directory.into(), file });
        let configured_states = configured.iter().map(|directory| {
            let crio = directory.to_string_lossy().ends_with("-containers");
            Self { directory: directory.clone(), file: if crio { USUAL[0].1 } else { USUAL[1].1 } }
        });
        let states: Vec<Self> = if configured.is_empty() { usual.collect() } else { configured_states.collect() };
        states.into_iter().filter(|state| fs::read_dir(&state.directory).is_ok()).collect()
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// One container; `None`: it is not there (any more).
    pub fn read(&self, id: &str, wanted: &[String]) -> io::Result<Option<Known>> {
        // The id comes from a cgroup's name: nothing but an id reaches the file system.
        if id.len() != 64 || !id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Ok(None);
        }
        let file = match fs::File::open(self.directory.join(id).join(self.file)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(io::Error::other(format!("larger than {MAX_BYTES} bytes")));
        }
        // Written in place by some versions: half a file is none yet.
        let spec = Spec::parse(&bytes).map_err(|error| io::Error::other(format!("no OCI specification: {error}")))?;
        Ok(Known::of_spec(&spec, wanted))
    }

    /// Of the containers that are there now.
    pub fn ids(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).take(MOST).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "beb1ef43f6c3fc5f918a0c47afee9630c10966b3b567adeef3a9abe2eb180dd2";

    fn write(directory: &Path, below: &str, bytes: &[u8]) {
        let path = directory.join(ID).join(below);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn both_layouts_are_read_and_nothing_but_an_id_reaches_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let (crio, containerd) = (directory.path().join("overlay-containers"), directory.path().join("k8s.io"));
        write(&crio, "userdata/config.json", br#"{"annotations":{"io.kubernetes.pod.name":"a"}}"#);
        write(&containerd, "config.json", br#"{"annotations":{"io.kubernetes.cri.sandbox-name":"b"}}"#);
        let states = State::find(&[crio.clone(), containerd, directory.path().join("missing")]);
        let names: Vec<String> = states.iter().map(|state| state.read(ID, &[]).unwrap().unwrap().pod_name).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(states[0].ids(), [ID]);
        let escape = format!("../overlay-containers/{ID}");
        assert_eq!(states[0].read(&escape, &[]).unwrap(), None);
        assert_eq!(states[0].read(&"0".repeat(64), &[]).unwrap(), None);
    }

    #[test]
    fn half_a_file_and_a_foreign_one_are_errors_and_no_panic() {
        let directory = tempfile::tempdir().unwrap();
        let state = State { directory: directory.path().into(), file: "config.json" };
        for bytes in [&b"{\"annotations\":{"[..], b"", b"\xff", b"{\"process\":7}"] {
            write(directory.path(), "config.json", bytes);
            assert!(state.read(ID, &[]).is_err(), "{bytes:?}");
        }
    }
}
