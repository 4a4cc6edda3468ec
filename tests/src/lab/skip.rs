//! Tests that cannot run here.

use std::{fs::OpenOptions, io::Write as _};

/// Says that the test `name` did not run, and why. A test that returned early is "ok" to libtest; the summary of
/// `make test` takes the names from the file in `SECLOG_SKIPPED` and does not count them as passed.
pub fn skip(name: &str, reason: impl std::fmt::Display) {
    let reason = reason.to_string().replace('\n', " ");
    eprintln!("skipped {name}: {reason}");
    if let Some(path) = std::env::var_os("SECLOG_SKIPPED")
        && let Err(error) = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| writeln!(file, "{name}: {reason}"))
    {
        eprintln!("cannot write {}: {error}", path.display());
    }
}
