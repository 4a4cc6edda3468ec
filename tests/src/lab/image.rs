//! The one image of the tests' containers, made here: nothing is pulled.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};

use super::places;

/// As pods name it.
pub const REFERENCE: &str = "localhost/bb:latest";
/// As `ctr images import --base-name` is to name it; the tag is the layout's.
pub const BASE_NAME: &str = "localhost/bb";

/// Makes an image of the system's static busybox with every command it knows; an archive for `ctr images import`.
/// Without arguments it waits, so that it serves as the pods' pause image too.
pub fn build(directory: &Path) -> Result<PathBuf> {
    let busybox = places::tool("busybox").context("no busybox")?;
    ensure!(is_static(&busybox)?, "{} is not static: install busybox-static", busybox.display());
    let umoci = places::tool("umoci").context("no umoci")?;
    let (layout, bundle) = (directory.join("layout"), directory.join("bundle"));
    let image = format!("{}:latest", layout.display());

    run(Command::new(&umoci).args(["init", "--layout"]).arg(&layout))?;
    run(Command::new(&umoci).args(["new", "--image", &image]))?;
    run(Command::new(&umoci).args(["unpack", "--image", &image]).arg(&bundle))?;
    fill(&bundle.join("rootfs"), &busybox)?;
    run(Command::new(&umoci).args(["repack", "--image", &image]).arg(&bundle))?;
    run(Command::new(&umoci).args([
        "config",
        "--image",
        &image,
        "--config.cmd",
        "/bin/sleep",
        "--config.cmd",
        "1000000",
    ]))?;
    let archive = directory.join("image.tar");
    run(Command::new("tar").arg("-C").arg(&layout).arg("-cf").arg(&archive).arg("."))?;
    Ok(archive)
}

fn fill(rootfs: &Path, busybox: &Path) -> Result<()> {
    for name in ["bin", "dev", "etc", "proc", "root", "sys", "tmp"] {
        fs::create_dir_all(rootfs.join(name))?;
    }
    fs::copy(busybox, rootfs.join("bin/busybox"))?;
    for name in run(Command::new(busybox).arg("--list"))?.lines().filter(|name| *name != "busybox") {
        symlink("busybox", rootfs.join("bin").join(name))?;
    }
    fs::write(rootfs.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(rootfs.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}

fn is_static(program: &Path) -> Result<bool> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    Ok(!output.status.success() || String::from_utf8_lossy(&output.stdout).contains("statically"))
}

/// Runs it to its end; an error has what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
