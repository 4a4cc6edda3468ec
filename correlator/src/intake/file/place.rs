//! Which files one audit log consists of, in the order in which they were written, and which of them is which.
//!
//! The API server renames `audit.log` to `audit-2026-11-26T14-33-45.420.log` (lumberjack, backup.go), may compress that to
//! `….log.gz`, and goes on in a new `audit.log`.

use flate2::read::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Of a file's first line so much tells it from others: audit id and times are in it.
const HEAD: usize = 1024;
/// Backups looked at; more than anybody keeps.
const MOST_BACKUPS: usize = 1000;

/// What a file is, wherever it is moved and whether or not it is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint(pub(super) [u8; 16]);

/// Device and inode.
pub(super) type Inode = (u64, u64);

pub(super) fn inode(file: &File) -> io::Result<Inode> {
    let there = file.metadata()?;
    Ok((there.dev(), there.ino()))
}

impl Fingerprint {
    /// Of what a file begins with; `None` as long as that is not there. `is_over`: nothing more will come.
    fn of(head: &[u8], is_over: bool) -> Option<Self> {
        let line = match head.iter().take(HEAD).position(|byte| *byte == b'\n') {
            Some(end) => head.get(..=end)?,
            None if is_over && !head.is_empty() => head,
            None => head.get(..HEAD)?,
        };
        let mut half = [0; 16];
        half.copy_from_slice(&Sha256::digest(line)[..16]);
        Some(Self(half))
    }

    /// Of a file that is open.
    pub(super) fn of_file(file: &File, is_over: bool) -> io::Result<Option<Self>> {
        let mut head = vec![0; HEAD];
        let mut filled = 0;
        while filled < HEAD {
            match file.read_at(&mut head[filled..], filled as u64) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Self::of(&head[..filled], is_over))
    }

    fn of_compressed(path: &Path) -> io::Result<Option<Self>> {
        let mut head = Vec::with_capacity(HEAD);
        MultiGzDecoder::new(File::open(path)?).take(HEAD as u64).read_to_end(&mut head)?;
        Ok(Self::of(&head, true))
    }

    /// By which the journal knows it.
    pub(super) fn epoch(self) -> u64 {
        let mut half = [0; 8];
        half.copy_from_slice(&self.0[..8]);
        u64::from_be_bytes(half)
    }
}

/// One of a log's files.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) path: PathBuf,
    pub(super) is_compressed: bool,
    /// The one that is written to.
    pub(super) is_active: bool,
}

impl Part {
    /// `None`: it is not there (any more), or too short to say.
    pub(super) fn fingerprint(&self) -> Option<Fingerprint> {
        if self.is_compressed {
            return Fingerprint::of_compressed(&self.path).ok().flatten();
        }
        Fingerprint::of_file(&File::open(&self.path).ok()?, !self.is_active).ok().flatten()
    }
}

/// The files of the log, oldest first; the active one last, whether or not it is there.
pub(super) fn parts(active: &Path) -> Vec<Part> {
    let stem = active.file_stem().and_then(|name| name.to_str()).unwrap_or_default();
    let extension =
        active.extension().and_then(|name| name.to_str()).map(|name| format!(".{name}")).unwrap_or_default();
    let mut backups: Vec<(String, Part)> = Vec::new();
    let entries = active.parent().and_then(|dir| std::fs::read_dir(dir).ok());
    for entry in entries.into_iter().flatten().flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (plain, is_compressed) = match name.strip_suffix(".gz") {
            Some(plain) => (plain, true),
            None => (name.as_str(), false),
        };
        let stamp = plain.strip_prefix(stem).and_then(|rest| rest.strip_prefix('-')?.strip_suffix(&extension));
        let Some(stamp) = stamp.filter(|stamp| is_stamp(stamp)) else { continue };
        let part = Part { path: entry.path(), is_compressed, is_active: false };
        backups.push((stamp.to_owned(), part));
    }
    // While a backup is being compressed it is there twice: the plain one is whole.
    backups.sort_by(|(stamp, part), (other, other_part)| {
        stamp.cmp(other).then(part.is_compressed.cmp(&other_part.is_compressed))
    });
    backups.dedup_by(|(stamp, _), (before, _)| stamp == before);
    let skip = backups.len().saturating_sub(MOST_BACKUPS);
    let active = Part { path: active.to_owned(), is_compressed: false, is_active: true };
    backups.into_iter().skip(skip).map(|(_, part)| part).chain([active]).collect()
}

/// `2026-11-26T14-33-45.420`, whose order is that of time.
fn is_stamp(stamp: &str) -> bool {
    let pattern = "dddd-dd-ddTdd-dd-dd.ddd";
    stamp.len() == pattern.len()
        && stamp.bytes().zip(pattern.bytes()).all(|(byte, wanted)| match wanted {
            b'd' => byte.is_ascii_digit(),
            other => byte == other,
        })
}

#[cfg(test)]
mod tests {
    use super::parts;

    #[test]
    fn backups_come_in_the_order_of_their_stamps_and_strangers_are_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "audit-2026-11-26T14-33-45.420.log",
            "audit-2026-11-25T14-33-45.420.log.gz",
            "audit-2026-11-26T14-33-45.420.log.gz",
            "audit-policy.log",
            "audit-2026-11-25T14-33-45.420.log.gz.tmp",
            "termination.log",
        ] {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        let found = parts(&dir.path().join("audit.log"));
        let names: Vec<&str> = found.iter().map(|part| part.path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, ["audit-2026-11-25T14-33-45.420.log.gz", "audit-2026-11-26T14-33-45.420.log", "audit.log"]);
    }
}
