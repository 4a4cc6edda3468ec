//! A directory that is taken for `/`. The kernel resolves every path as if it were, links included, so that nothing
//! outside can be reached (openat2(2), `RESOLVE_IN_ROOT`, Linux 5.6).

use std::{
    fs::File,
    io::Read,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fgetxattr, fstat, openat, openat2, statat},
    io::Errno,
};

use crate::facts::{Content, Meta};

/// The root itself cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the root directory {path}: {source}; give a directory that this process may read with --root")]
pub struct RootError {
    path: PathBuf,
    source: std::io::Error,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Root {
    dir: OwnedFd,
}

/// An entry of a directory.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DirEntry {
    pub(crate) name: String,
    pub(crate) is_dir: bool,
}

/// Directories with more entries are cut there.
const MAX_ENTRIES: usize = 100_000;

impl Root {
    pub fn open(path: &Path) -> Result<Self, RootError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(rustix::fs::CWD, path, flags, Mode::empty())
            .map_err(|error| RootError { path: path.to_owned(), source: error.into() })?;
        Ok(Self { dir })
    }

    fn open_below(&self, path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // openat2 refuses flags that mean nothing for a PATH handle.
        let flags = if flags.contains(OFlags::PATH) { flags } else { flags | OFlags::NOCTTY | OFlags::NONBLOCK };
        openat2(&self.dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    /// A handle that reaches the file without opening it, or why there is none.
    pub(crate) fn handle(&self, path: &str) -> Result<OwnedFd, String> {
        self.open_below(path, OFlags::PATH).map_err(reason)
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        // What cannot be reached for want of permission is not called missing.
        !matches!(self.open_below(path, OFlags::PATH), Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
    }

    /// The content of a regular file, at most `limit` bytes of it.
    pub(crate) fn read(&self, path: &str, limit: u64) -> (Content, Meta) {
        // A PATH handle first: opening a device or a pipe for reading can block or act.
        let fd = match self.open_below(path, OFlags::PATH) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => return (Content::Absent, Meta::default()),
            Err(Errno::LOOP) => return (Content::Broken("too many symbolic links".into()), Meta::default()),
            Err(error) => return (Content::Unreadable(reason(error)), Meta::default()),
        };
        let meta = meta(&fd);
        match kind(&fd) {
            Ok(FileType::RegularFile) => {}
            Ok(FileType::Directory) => return (Content::Broken("is a directory".into()), meta),
            Ok(_) => return (Content::Broken("is not a regular file".into()), meta),
            Err(error) => return (Content::Unreadable(reason(error)), meta),
        }
        drop(fd);
        let file = match self.open_below(path, OFlags::RDONLY) {
            Ok(fd) => File::from(fd),
            Err(error) => return (Content::Unreadable(reason(error)), meta),
        };
        (read_text(file, limit), meta)
    }

    /// The text of a small file of the kernel's or of a service; `None` if it cannot be had.
    pub(crate) fn text(&self, path: &str, limit: u64) -> Option<String> {
        match self.read(path, limit).0 {
            Content::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Whether some line of a long file contains the bytes, reading at most `limit`.
    pub(crate) fn contains(&self, path: &str, needle: &[u8], limit: u64) -> Option<bool> {
        let file = File::from(self.open_below(path, OFlags::RDONLY).ok()?);
        let mut file = file.take(limit);
        let mut window = Vec::with_capacity(1 << 17);
        let mut chunk = vec![0; 1 << 16];
        loop {
            let read = file.read(&mut chunk).ok()?;
            if read == 0 {
                return Some(false);
            }
            window.extend_from_slice(chunk.get(..read)?);
            if window.windows(needle.len()).any(|w| w == needle) {
                return Some(true);
            }
            let keep = window.len().min(needle.len());
            window.drain(..window.len() - keep);
        }
    }

    /// Entries sorted by bytes, as Go's filepath.Walk sees them: links are not followed.
    pub(crate) fn list(&self, path: &str) -> Result<Vec<DirEntry>, Errno> {
        let dir = self.open_below(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let is_dir = match entry.file_type() {
                FileType::Unknown => statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory),
                kind => kind == FileType::Directory,
            };
            entries.push(DirEntry { name: String::from_utf8_lossy(name).into_owned(), is_dir });
            if entries.len() == MAX_ENTRIES {
                break;
            }
        }
        entries.sort_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
        Ok(entries)
    }

    /// Is the path itself (not what it leads to) a symbolic link?
    pub(crate) fn is_link(&self, path: &str) -> bool {
        self.open_below(path, OFlags::PATH | OFlags::NOFOLLOW).is_ok_and(|fd| kind(&fd) == Ok(FileType::Symlink))
    }

    /// Is this the root of the machine that runs us? Its kernel's boot id tells.
    pub(crate) fn is_this_machine(&self) -> bool {
        const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
        let own = std::fs::read_to_string(BOOT_ID).ok();
        own.is_some() && own == self.text(BOOT_ID, 64)
    }
}

/// The path by which this process reaches an open handle.
pub(crate) fn path_of(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

pub(crate) fn reason(error: Errno) -> String {
    std::io::Error::from(error).to_string()
}

fn kind(fd: impl AsFd) -> Result<FileType, Errno> {
    fstat(fd).map(|stat| FileType::from_raw_mode(stat.st_mode))
}

fn meta(fd: &OwnedFd) -> Meta {
    let Ok(stat) = fstat(fd) else { return Meta::default() };
    Meta {
        modified: Some(stat.st_mtime),
        mode: Some(stat.st_mode & 0o7777),
        uid: Some(stat.st_uid),
        selinux_type: selinux_type(fd),
    }
}

/// The third field of `system_u:object_r:container_config_t:s0`.
fn selinux_type(fd: &OwnedFd) -> Option<String> {
    let mut label = [0; 256];
    // A PATH handle has no attributes of its own; its link in /proc leads to the file.
    let length = rustix::fs::getxattr(path_of(fd), "security.selinux", &mut label)
        .or_else(|_| fgetxattr(fd, "security.selinux", &mut label))
        .ok()?;
    let label = std::str::from_utf8(label.get(..length)?).ok()?.trim_end_matches('\0');
    label.split(':').nth(2).map(str::to_owned)
}

fn read_text(file: File, limit: u64) -> Content {
    let size = file.metadata().map(|m| m.len()).unwrap_or(0);
    let mut bytes = Vec::new();
    if let Err(error) = file.take(limit + 1).read_to_end(&mut bytes) {
        return Content::Unreadable(error.to_string());
    }
    if bytes.len() as u64 > limit {
        return Content::TooLarge(size.max(limit + 1));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Content::Text(text),
        Err(error) => Content::Broken(format!("byte {} is not UTF-8", error.utf8_error().valid_up_to())),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn nothing_outside_the_root_is_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("secret"), "outside").unwrap();
        let inside = dir.path().join("root");
        std::fs::create_dir_all(inside.join("etc")).unwrap();
        std::fs::write(inside.join("etc/real"), "inside").unwrap();
        for (name, target) in [
            ("etc/up", "../../secret"),
            ("etc/absolute", "/etc/real"),
            ("etc/loop", "loop"),
            ("etc/host", dir.path().join("secret").to_str().unwrap()),
        ] {
            symlink(target, inside.join(name)).unwrap();
        }
        let root = Root::open(&inside).unwrap();
        let read = |path| root.read(path, 100).0;
        assert_eq!(read("/etc/up"), Content::Absent);
        assert_eq!(read("/../secret"), Content::Absent);
        assert_eq!(read("/etc/host"), Content::Absent);
        assert_eq!(read("/etc/absolute"), Content::Text("inside".into()));
        assert_eq!(read("/etc/loop"), Content::Broken("too many symbolic links".into()));
        assert_eq!(read("/etc"), Content::Broken("is a directory".into()));
        assert_eq!(root.read("/etc/real", 3).0, Content::TooLarge(6));
    }

    #[test]
    fn a_pipe_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let root = Root::open(dir.path()).unwrap();
        assert_eq!(root.read("/pipe", 10).0, Content::Broken("is not a regular file".into()));
    }
}
