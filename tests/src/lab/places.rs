//! Where the build put things.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The directory of this build's programs (target/debug or target/release), found from the running program: tests run
/// in its `deps`, other programs in itself.
pub fn programs() -> Result<PathBuf> {
    let own = std::env::current_exe().context("where this program is")?;
    let directory = own.parent().context("this program has no directory")?;
    if directory.ends_with("deps")
        && let Some(parent) = directory.parent()
    {
        return Ok(parent.to_owned());
    }
    Ok(directory.to_owned())
}

/// A program of this workspace, from the same build as the running one.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = programs()?.join(name);
    if !path.is_file() {
        bail!("{} is not built: run `cargo build --workspace --bins`", path.display());
    }
    Ok(path)
}

/// target/: caches that set-up scripts fill.
pub fn target() -> Result<PathBuf> {
    Ok(programs()?.parent().context("the build directory has no parent")?.to_owned())
}

/// A program of the system; /usr/sbin is looked at too, which a user's PATH may lack.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok()
}
