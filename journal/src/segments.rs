//! Which segment files a directory holds.

use crate::format::{SEGMENT_HEADER, SegmentHeader};
use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

const SUFFIX: &str = ".log";

pub(crate) fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:020}{SUFFIX}"))
}

/// Numbers of the segments' first entries by the files' names, in order.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let mut firsts = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let first = name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).filter(|digits| digits.len() == 20);
        firsts.extend(first.and_then(|digits| digits.parse::<u64>().ok()));
    }
    firsts.sort_unstable();
    Ok(firsts)
}

/// `Ok(None)`: shorter than a header, or damaged.
pub(crate) fn header(file: &File) -> io::Result<Option<SegmentHeader>> {
    let mut bytes = [0; SEGMENT_HEADER];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(SegmentHeader::decode(&bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// The log's id, from the first segment that can be read.
pub(crate) fn any_header(dir: &Path, firsts: &[u64]) -> io::Result<Option<SegmentHeader>> {
    for first in firsts {
        let file = match File::open(path(dir, *first)) {
            Ok(file) => file,
            // Trimmed meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if let Ok(Some(header)) = header(&file) {
            return Ok(Some(header));
        }
    }
    Ok(None)
}
