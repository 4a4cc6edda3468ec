//! Bytes that should have been audit events: kept as they came, for somebody to look at. Two files, the newer and the one
//! before it; beyond the bound the older goes.

use super::Origin;
use crate::audit::Malformed;
use crate::intake::now;
use crate::timestamp::Timestamp;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const NEWER: &str = "quarantine.jsonl";
const OLDER: &str = "quarantine.1.jsonl";

#[derive(Debug, thiserror::Error)]
#[error("cannot write the quarantine {}: {source}", path.display())]
pub struct QuarantineError {
    path: PathBuf,
    source: io::Error,
}

/// A directory of its own.
#[derive(Debug)]
pub struct Quarantine {
    dir: PathBuf,
    /// Of one file.
    most_bytes: u64,
    open: Mutex<Option<(File, u64)>>,
}

/// One line.
#[derive(Debug, Serialize)]
struct Record<'a> {
    time: Timestamp,
    route: &'a str,
    source: &'a str,
    /// Where the bytes began in what was read.
    offset: usize,
    why: String,
    bytes_base64: String,
}

impl Quarantine {
    /// `most_bytes`: of both files.
    pub(super) fn open(dir: &Path, most_bytes: u64) -> Result<Self, QuarantineError> {
        let failed = |source| QuarantineError { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        Ok(Self { dir: dir.to_owned(), most_bytes: most_bytes / 2, open: Mutex::default() })
    }

    /// Returns when they are on the disk.
    pub(super) fn keep(&self, origin: &Origin, malformed: &[Malformed]) -> Result<(), QuarantineError> {
        let mut text = Vec::new();
        for Malformed { bytes, offset, why } in malformed {
            tracing::warn!(route = %origin.route, source = origin.source, offset, "audit event quarantined: {why}");
            let record = Record {
                time: Timestamp(now()),
                route: origin.route.as_str(),
                source: &origin.source,
                offset: *offset,
                why: why.to_string(),
                bytes_base64: STANDARD.encode(bytes),
            };
            serde_json::to_writer(&mut text, &record).map_err(|error| self.failed(error.into()))?;
            text.push(b'\n');
        }
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let written = self.write(&mut open, &text);
        if written.is_err() {
            *open = None;
        }
        written.map_err(|error| self.failed(error))
    }

    fn write(&self, open: &mut Option<(File, u64)>, text: &[u8]) -> io::Result<()> {
        let newer = self.dir.join(NEWER);
        if open.as_ref().is_some_and(|(_, length)| *length >= self.most_bytes) {
            *open = None;
            std::fs::rename(&newer, self.dir.join(OLDER))?;
        }
        let (file, length) = match open {
            Some(open) => open,
            None => {
                let file = OpenOptions::new().create(true).append(true).open(&newer)?;
                let length = file.metadata()?.len();
                open.insert((file, length))
            }
        };
        file.write_all(text)?;
        *length += text.len() as u64;
        file.sync_data()
    }

    fn failed(&self, source: io::Error) -> QuarantineError {
        QuarantineError { path: self.dir.clone(), source }
    }
}
