//! Files that belong together (certificate, key, authorities) and are replaced while the program runs.
//!
//! Followed by reading them again, every few seconds: that sees a file written in place, a file renamed over another and
//! the swap of kubelet's `..data` link alike, on every file system, and misses no change that lasts. They are read until two
//! readings in a row agree, so that a certificate of before a swap is not paired with a key of after it.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Bytes of a file. Bundles of authorities are a few hundred kilobytes at most.
const LARGEST: u64 = 4 << 20;
const READINGS: usize = 5;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has more than {LARGEST} bytes", path.display())]
    Large { path: PathBuf },
    #[error("{} and the files with it change faster than they can be read", path.display())]
    Unsteady { path: PathBuf },
}

/// A set of files, and what they held when they were last looked at.
pub struct Files<const N: usize> {
    paths: [PathBuf; N],
    seen: Option<[Vec<u8>; N]>,
}

impl<const N: usize> std::fmt::Debug for Files<N> {
    /// Without what they hold: keys are among it.
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Files").field("paths", &self.paths).finish_non_exhaustive()
    }
}

impl<const N: usize> Files<N> {
    pub fn new(paths: [PathBuf; N]) -> Self {
        Self { paths, seen: None }
    }

    pub fn paths(&self) -> &[PathBuf; N] {
        &self.paths
    }

    /// What the files hold, in the order of the paths. `None`: the same as when this was last asked.
    pub fn changed(&mut self) -> Result<Option<[Vec<u8>; N]>, FileError> {
        let mut before = self.read()?;
        for _ in 0..READINGS {
            let now = self.read()?;
            if now == before {
                if self.seen.as_ref() == Some(&now) {
                    return Ok(None);
                }
                self.seen = Some(now.clone());
                return Ok(Some(now));
            }
            before = now;
        }
        Err(FileError::Unsteady { path: self.paths.first().cloned().unwrap_or_default() })
    }

    /// What was seen last counts as changed again: for who could not use it yet.
    pub fn forget(&mut self) {
        self.seen = None;
    }

    fn read(&self) -> Result<[Vec<u8>; N], FileError> {
        let mut all = [const { Vec::new() }; N];
        for (path, content) in self.paths.iter().zip(&mut all) {
            *content = read(path)?;
        }
        Ok(all)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let mut content = Vec::new();
    File::open(path).map_err(failed)?.take(LARGEST + 1).read_to_end(&mut content).map_err(failed)?;
    if content.len() as u64 > LARGEST {
        return Err(FileError::Large { path: path.to_owned() });
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_change_is_told_once_however_the_file_was_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tls.crt");
        fs::write(&path, "one").unwrap();
        let mut files = Files::new([path.clone()]);
        assert_eq!(files.changed().unwrap(), Some([b"one".to_vec()]));
        assert_eq!(files.changed().unwrap(), None);
        fs::write(&path, "two").unwrap();
        assert_eq!(files.changed().unwrap(), Some([b"two".to_vec()]));
        fs::write(dir.path().join("new"), "three").unwrap();
        fs::rename(dir.path().join("new"), &path).unwrap();
        assert_eq!(files.changed().unwrap(), Some([b"three".to_vec()]));
        assert_eq!(files.changed().unwrap(), None);
        files.forget();
        assert_eq!(files.changed().unwrap(), Some([b"three".to_vec()]));
    }

    #[test]
    fn kubelets_swap_of_the_data_link_is_a_change_of_all_files_at_once() {
        let dir = tempfile::tempdir().unwrap();
        for (version, content) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(dir.path().join(version)).unwrap();
            for name in ["tls.crt", "tls.key"] {
                fs::write(dir.path().join(version).join(name), format!("{content} {name}")).unwrap();
            }
        }
        symlink("..1", dir.path().join("..data")).unwrap();
        for name in ["tls.crt", "tls.key"] {
            symlink(Path::new("..data").join(name), dir.path().join(name)).unwrap();
        }
        let mut files = Files::new(["tls.crt", "tls.key"].map(|name| dir.path().join(name)));
        assert_eq!(files.changed().unwrap(), Some([b"one tls.crt".to_vec(), b"one tls.key".to_vec()]));
        symlink("..2", dir.path().join("..data_tmp")).unwrap();
        fs::rename(dir.path().join("..data_tmp"), dir.path().join("..data")).unwrap();
        assert_eq!(files.changed().unwrap(), Some([b"two tls.crt".to_vec(), b"two tls.key".to_vec()]));
    }

    #[test]
    fn a_file_that_is_missing_or_huge_is_named_and_is_seen_when_it_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tls.key");
        let mut files = Files::new([path.clone()]);
        assert!(files.changed().unwrap_err().to_string().contains("tls.key"));
        File::create(&path).unwrap().set_len(LARGEST + 1).unwrap();
        assert!(matches!(files.changed().unwrap_err(), FileError::Large { .. }));
        fs::write(&path, "key").unwrap();
        assert_eq!(files.changed().unwrap(), Some([b"key".to_vec()]));
        assert!(!format!("{files:?}").contains("107"), "what the files hold is not shown");
    }
}
