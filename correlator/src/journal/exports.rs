//! Who had something read out of a journal: an entry of it, on the disk before anything is given out.
//!
//! A journal has one writer. Where a correlator runs, it is asked by a file beside the segments, writes the entry and takes the
//! file away; where none runs, whoever reads out writes the entry himself. Who may read the files can of course copy them and
//! leave nothing: this tells of those who do as they should.

use super::positions::recover;
use super::{Entry, Journal};
use crate::intake::now;
use clap::Args;
use prost::Message as _;
use ring::rand::{SecureRandom as _, SystemRandom};
use seclog_journal::{Log, LogError, Options};
use seclog_proto::v1::{Export, JournalEntry, Positions};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// How long a correlator may take to write the entry.
const WITHIN: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Bytes of a request.
const LARGEST: u64 = 64 << 10;
/// Characters of who, what and why.
const LONGEST: usize = 1000;

/// Who reads, and why.
#[derive(Debug, Clone, Default, Args)]
pub struct Account {
    /// Who wants it, for the journal's entry [default: the user's name and number].
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
    /// Why, for the journal's entry: a ticket's number, for instance.
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// The directory is a copy of a journal: nothing is written into it.
    #[arg(long)]
    copy: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error(
        "the journal cannot be told who reads it, so nothing is read: {0}; where the directory is a copy of a journal, say --copy"
    )]
    Log(#[from] LogError),
    #[error(
        "the journal cannot be told who reads it, so nothing is read: {}: {source}; where the directory is a copy of a journal, say --copy",
        path.display()
    )]
    File { path: PathBuf, source: io::Error },
    #[error("the correlator that writes {} did not note this export within {WITHIN:?}, so nothing is read", .0.display())]
    NotNoted(PathBuf),
}

/// What a correlator is asked to write.
#[derive(Debug, Serialize, Deserialize)]
struct Request {
    who: String,
    what: String,
    reason: String,
}

// === impl Account ===

impl Account {
    /// Returns when the journal says that this is read out of it.
    pub fn give(&self, dir: &Path, what: String) -> Result<(), ExportError> {
        if seclog_journal::firsts(dir)?.is_empty() {
            return Err(LogError::Nothing(dir.to_owned()).into());
        }
        if self.copy {
            tracing::warn!(dir = %dir.display(), "nothing is written into this copy of a journal about who reads it");
            return Ok(());
        }
        let who = self.by.clone().unwrap_or_else(user);
        note(dir, &Request { who, what, reason: self.reason.clone() }, WITHIN)
    }
}

/// Of this process, by the system.
fn user() -> String {
    let number = fs::metadata("/proc/self").map_or_else(|_| "unknown".to_owned(), |own| own.uid().to_string());
    let name = std::env::var("SUDO_USER").or_else(|_| std::env::var("USER")).unwrap_or_default();
    format!("{name} (user {number})").trim_start().to_owned()
}

fn note(dir: &Path, request: &Request, within: Duration) -> Result<(), ExportError> {
    let deadline = Instant::now() + within;
    let mut asked: Option<PathBuf> = None;
    loop {
        if asked.as_ref().is_some_and(|path| !path.exists()) {
            return Ok(());
        }
        match Log::open(dir, Options::default()) {
            Ok((log, _)) => {
                // The correlator ended meanwhile, and may have written it.
                if let Some(path) = asked
                    && !take_away(&path)
                {
                    return Ok(());
                }
                return Ok(append(log, request)?);
            }
            Err(LogError::Locked(_)) if asked.is_none() => asked = Some(ask(dir, request)?),
            Err(LogError::Locked(_)) => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() >= deadline {
            return match asked {
                Some(path) if take_away(&path) => Err(ExportError::NotNoted(dir.to_owned())),
                _ => Ok(()),
            };
        }
        std::thread::sleep(LOOK_EVERY / 3);
    }
}

/// False: it was gone already.
fn take_away(path: &Path) -> bool {
    fs::remove_file(path).is_ok()
}

/// Into a journal that nobody writes.
fn append(mut log: Log, request: &Request) -> Result<(), LogError> {
    let (positions, _) = recover(&log)?;
    let mut entries = Vec::new();
    if log.is_segment_full() {
        log.roll()?;
        entries.push(Entry::Positions(Positions { positions: positions.encode() }));
    }
    entries.push(request.entry());
    let encode = |entry| JournalEntry { time_unix_ns: now(), entry: Some(entry) }.encode_to_vec();
    let payloads: Vec<Vec<u8>> = entries.into_iter().map(encode).collect();
    log.append(&payloads)?;
    log.sync()
}

fn directory(journal: &Path) -> PathBuf {
    journal.join("exports")
}

/// Asks the correlator that writes the journal. Returns the file that it takes away.
fn ask(dir: &Path, request: &Request) -> Result<PathBuf, ExportError> {
    let place = directory(dir);
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| ExportError::File { path, source }
    };
    fs::create_dir_all(&place).map_err(failed(&place))?;
    let mut random = [0; 8];
    SystemRandom::new().fill(&mut random).map_err(|_| LogError::Random)?;
    let path = place.join(format!("{:016x}.json", u64::from_le_bytes(random)));
    let beside = path.with_extension("new");
    let write = || {
        let mut file = File::create(&beside)?;
        file.write_all(&serde_json::to_vec(request)?)?;
        file.sync_data()?;
        fs::rename(&beside, &path)
    };
    write().map_err(failed(&path))?;
    Ok(path)
}

/// Writes down who asks to read this journal, until told to stop.
pub(crate) async fn follow(journal: Journal, dir: PathBuf, mut stop: watch::Receiver<bool>) {
    let place = directory(&dir);
    loop {
        tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let Ok(files) = fs::read_dir(&place) else { continue };
        for path in files.filter_map(Result::ok).map(|file| file.path()) {
            if path.extension().is_none_or(|end| end != "json") {
                continue;
            }
            let entry = match read(&path) {
                Ok(request) => {
                    let Request { who, what, reason } = &request;
                    tracing::info!(who, what, reason, "read out of the journal");
                    request.entry()
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), "no request to read the journal: {error}");
                    take_away(&path);
                    continue;
                }
            };
            // Else whoever asked goes on waiting, and is told in the end.
            if journal.append(entry).await.is_ok() {
                take_away(&path);
            }
        }
    }
}

fn read(path: &Path) -> io::Result<Request> {
    if fs::metadata(path)?.len() > LARGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "larger than a request"));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

// === impl Request ===

impl Request {
    fn entry(&self) -> Entry {
        let cut = |text: &str| text.chars().take(LONGEST).collect();
        let Self { who, what, reason } = self;
        Entry::Export(Export { who: cut(who), what: cut(what), reason: cut(reason) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::journal::{JournalOptions, Opened};
    use crate::telemetry::Telemetry;
    use seclog_journal::{Item, Reader};

    fn request() -> Request {
        Request { who: "alice".into(), what: "records of node-1".into(), reason: "INC-7".into() }
    }

    fn exports(dir: &Path) -> Vec<Export> {
        let mut reader = Reader::new(dir, 1);
        let mut found = Vec::new();
        while let Some(item) = reader.next(u64::MAX).unwrap() {
            let Item::Entry(entry) = item else { panic!("damaged") };
            if let Some(Entry::Export(export)) = JournalEntry::decode(entry.payload).unwrap().entry {
                found.push(export);
            }
        }
        found
    }

    fn open(dir: &Path) -> Opened {
        let options = JournalOptions {
            dir: dir.to_owned(),
            most_bytes: 1 << 30,
            segment_bytes: 1 << 20,
            checkpoint_every: Duration::from_secs(60),
        };
        Journal::open(options, None, &Telemetry::default()).unwrap()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_export_is_an_entry_whether_a_correlator_writes_the_journal_or_none_does() {
        let dir = tempfile::tempdir().unwrap();
        let Opened { journal, writer, .. } = open(dir.path());
        journal.append(Entry::Positions(Positions::default())).await.unwrap();
        let (stop, stopped) = watch::channel(false);
        let following = tokio::spawn(follow(journal.clone(), dir.path().to_owned(), stopped));
        let path = dir.path().to_owned();
        tokio::task::spawn_blocking(move || note(&path, &request(), WITHIN)).await.unwrap().unwrap();
        assert_eq!(exports(dir.path()).len(), 1);
        stop.send(true).unwrap();
        following.await.unwrap();
        journal.close().await.unwrap();
        drop(journal);
        tokio::task::spawn_blocking(|| writer.join()).await.unwrap().unwrap();

        note(dir.path(), &request(), WITHIN).unwrap();
        let found = exports(dir.path());
        assert_eq!(found.len(), 2);
        assert_eq!((found[1].who.as_str(), found[1].reason.as_str()), ("alice", "INC-7"));
        // And a correlator goes on behind it.
        drop(open(dir.path()));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn where_the_entry_cannot_be_written_nothing_may_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let opened = open(dir.path());
        opened.journal.append(Entry::Positions(Positions::default())).await.unwrap();
        // Nobody follows.
        let error = note(dir.path(), &request(), Duration::ZERO).unwrap_err();
        assert!(matches!(error, ExportError::NotNoted(_)), "{error}");
        assert_eq!(fs::read_dir(directory(dir.path())).unwrap().count(), 0, "what was asked is taken back");
        let nothing =
            Account { by: None, reason: String::new(), copy: true }.give(&dir.path().join("no"), "all".into());
        assert!(nothing.is_err());
    }
}
