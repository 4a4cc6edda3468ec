//! What boots in a virtual machine: programs of this build, the shared libraries they need, busybox.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use super::{cpio::Archive, image::run, places};

/// Writes an initramfs to `out`: `init` as /init, `programs` in /bin, busybox beside them.
pub fn write(out: &Path, init: &Path, programs: &[PathBuf]) -> Result<()> {
    let mut archive = Archive::new(BufWriter::new(File::create(out)?));
    let mut directories = BTreeSet::new();
    for name in ["bin", "dev", "etc", "proc", "run", "sys", "tmp", "var"] {
        archive.directory(name)?;
        directories.insert(PathBuf::from(name));
    }
    // The kernel opens it for the first process, before devtmpfs is mounted.
    archive.character_device("dev/console", 5, 1)?;
    archive.executable("init", &stripped(init)?)?;

    let busybox = places::tool("busybox").context("no busybox")?;
    let mut libraries = shared_libraries(init)?;
    for program in programs.iter().chain([&busybox]) {
        let name = program.file_name().and_then(|name| name.to_str()).context("a program's name")?;
        archive.executable(&format!("bin/{name}"), &stripped(program)?)?;
        libraries.extend(shared_libraries(program)?);
    }
    for name in ["cat", "dmesg", "ls", "sh", "true"] {
        archive.symlink(&format!("bin/{name}"), "busybox")?;
    }
    for library in libraries {
        let inside = library.strip_prefix("/")?;
        let parents: Vec<_> = inside.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
        for parent in parents.into_iter().rev() {
            if directories.insert(parent.to_owned()) {
                archive.directory(&parent.to_string_lossy())?;
            }
        }
        let content = fs::read(&library).with_context(|| library.display().to_string())?;
        archive.executable(&inside.to_string_lossy(), &content)?;
    }
    archive.finish()?.flush()?;
    Ok(())
}

/// The loader and libraries of a dynamically linked program, by the names under which it looks for them.
fn shared_libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    if !output.status.success() {
        // "not a dynamic executable"
        return Ok(BTreeSet::new());
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if text.contains("not found") {
        bail!("{} lacks a library:\n{text}", program.display());
    }
    // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, `/lib64/ld-linux-x86-64.so.2 (0x…)`, `linux-vdso.so.1 (0x…)`
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    Ok(text.lines().filter_map(path).collect())
}

/// Without debug information, which would fill the machine's memory. Where there is no strip, as it is.
fn stripped(program: &Path) -> Result<Vec<u8>> {
    let directory = tempfile::tempdir()?;
    let copy = directory.path().join("stripped");
    if places::tool("strip").is_some() && run(Command::new("strip").arg("-o").arg(&copy).arg(program)).is_ok() {
        return Ok(fs::read(copy)?);
    }
    fs::read(program).with_context(|| program.display().to_string())
}
