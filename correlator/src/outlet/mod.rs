//! Where sessions are written: JSON lines, or a short table for people.

pub mod table;

use crate::join::finding::Finding;
use crate::join::session::Session;
use crate::journal::Checkpoint;
use clap::ValueEnum;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One session a line, all that is known.
    Json,
    /// A few lines a session, for people.
    Table,
}

#[derive(Debug, thiserror::Error)]
pub enum OutletError {
    #[error("cannot open output {}: {source}; name a file that can be written, or - for standard output", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("cannot write sessions to {name}: {source}")]
    Write { name: String, source: io::Error },
    #[error("a session has no JSON form: {0}")]
    Json(#[from] serde_json::Error),
}

pub struct Outlet {
    name: String,
    format: Format,
    writer: Box<dyn Write + Send>,
    file: Option<File>,
}

impl std::fmt::Debug for Outlet {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Outlet").field("name", &self.name).field("format", &self.format).finish_non_exhaustive()
    }
}

impl Outlet {
    /// `-` is standard output; a file is appended to, so that a restart keeps what was written.
    pub fn open(path: &Path, format: Format) -> Result<Self, OutletError> {
        if path == Path::new("-") {
            return Ok(Self::to("standard output", Box::new(io::stdout()), format));
        }
        let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(|source| OutletError::Open { path: path.to_owned(), source })?;
        let for_sync = file.try_clone().map_err(|source| OutletError::Open { path: path.to_owned(), source })?;
        Ok(Self { file: Some(for_sync), ..Self::to(&path.display().to_string(), Box::new(file), format) })
    }

    pub fn to(name: &str, writer: Box<dyn Write + Send>, format: Format) -> Self {
        Self { name: name.to_owned(), format, writer, file: None }
    }

    /// Whole lines, handed to the operating system before this returns. Not yet synced to the disk.
    pub fn write(&mut self, sessions: &[Session]) -> Result<(), OutletError> {
        let mut text = Vec::new();
        for session in sessions {
            match self.format {
                Format::Json => {
                    serde_json::to_writer(&mut text, session)?;
                    text.push(b'\n');
                }
                Format::Table => text.extend_from_slice(table::render(session).as_bytes()),
            }
        }
        self.put(&text)
    }

    /// As [`Outlet::write`]. In a table only those that are of no session: the others stand with theirs.
    pub fn write_findings(&mut self, findings: &[Finding]) -> Result<(), OutletError> {
        let mut text = Vec::new();
        for finding in findings {
            match self.format {
                Format::Json => {
                    serde_json::to_writer(&mut text, finding)?;
                    text.push(b'\n');
                }
                Format::Table => text.extend_from_slice(table::render_finding(finding).as_bytes()),
            }
        }
        self.put(&text)
    }

    /// As [`Outlet::write`]. Nothing in a table: it is for `verify`.
    pub fn write_checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), OutletError> {
        let mut text = Vec::new();
        if self.format == Format::Json {
            serde_json::to_writer(&mut text, checkpoint)?;
            text.push(b'\n');
        }
        self.put(&text)
    }

    /// Waits until what was written is on the disk, where that can be.
    pub fn sync(&mut self) -> Result<(), OutletError> {
        let Some(file) = &self.file else { return Ok(()) };
        match file.sync_data() {
            // A pipe, a terminal.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
            result => result.map_err(|source| OutletError::Write { name: self.name.clone(), source }),
        }
    }

    fn put(&mut self, text: &[u8]) -> Result<(), OutletError> {
        if text.is_empty() {
            return Ok(());
        }
        let written = self.writer.write_all(text).and_then(|()| self.writer.flush());
        written.map_err(|source| OutletError::Write { name: self.name.clone(), source })
    }
}
