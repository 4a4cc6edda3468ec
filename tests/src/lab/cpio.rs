//! The archive format of an initramfs: cpio "newc" (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

use std::io::{self, Write};

const REGULAR: u32 = 0o100_000;
const DIRECTORY: u32 = 0o040_000;
const SYMLINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

/// Writes entries one after the other; parents must come before what is in them.
#[derive(Debug)]
pub struct Archive<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    pub fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    pub fn directory(&mut self, name: &str) -> io::Result<()> {
        self.entry(name, DIRECTORY | 0o755, (0, 0), &[])
    }

    pub fn executable(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.entry(name, REGULAR | 0o755, (0, 0), content)
    }

    pub fn symlink(&mut self, name: &str, to: &str) -> io::Result<()> {
        self.entry(name, SYMLINK | 0o777, (0, 0), to.as_bytes())
    }

    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> io::Result<()> {
        self.entry(name, CHARACTER_DEVICE | 0o600, (major, minor), &[])
    }

    /// Writes the trailer; without it the kernel takes the archive for torn.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::Error::other(format!("{name} is over 4 GiB")))?;
        self.inode += 1;
        let links = 1;
        let fields = [
            self.inode,
            mode,
            0, // uid
            0, // gid
            links,
            0, // mtime: the same content gives the same archive
            size,
            0, // device of the file itself
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0, // checksum, unused in this variant
        ];
        let mut header = String::from("070701");
        fields.iter().for_each(|field| header.push_str(&format!("{field:08x}")));
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        self.out.write_all(&[0])?;
        self.pad(header.len() + name.len() + 1)?;
        self.out.write_all(content)?;
        self.pad(content.len())
    }

    /// Names and contents end on a multiple of four bytes.
    fn pad(&mut self, written: usize) -> io::Result<()> {
        self.out.write_all(&[0; 3][..written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::Archive;
    use std::process::{Command, Stdio};

    #[test]
    fn an_archive_lists_and_unpacks_with_the_systems_cpio() {
        let Some(busybox) = crate::lab::places::tool("busybox") else {
            crate::lab::skip("an_archive_lists_and_unpacks_with_the_systems_cpio", "no busybox");
            return;
        };
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("archive");
        let mut archive = Archive::new(std::fs::File::create(&path).unwrap());
        archive.directory("bin").unwrap();
        archive.executable("bin/odd", b"12345").unwrap();
        archive.symlink("bin/link", "odd").unwrap();
        archive.finish().unwrap();

        let status = Command::new(busybox)
            .args(["cpio", "-i"])
            .current_dir(directory.path())
            .stdin(std::fs::File::open(&path).unwrap())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        assert_eq!(std::fs::read(directory.path().join("bin/link")).unwrap(), b"12345");
    }
}
