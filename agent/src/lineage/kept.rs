//! What the agent knows of living processes, kept on disk for its next run on this boot.
//!
//! - Kept are the processes below session roots, each with its exact start time, and the roots.
//! - A process of /proc is one that was kept when pid and start time agree, to the tick that /proc tells; nothing else is
//!   taken from the file. Everything that was started meanwhile is `rebuilt`.
//! - The file is written by a thread of its own, whole or not at all, and only when something changed.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use serde::{Deserialize, Serialize};

use super::{
    entry::ENTRIES,
    processes::{ProcessKey, Processes, Root},
};

/// Processes that are kept; the rest is rebuilt.
const MOST: usize = 20_000;
/// A larger file is not ours.
const MOST_BYTES: u64 = 16 << 20;
/// How often the file is written: nanoseconds.
const EVERY_NS: u64 = 2_000_000_000;
/// USER_HZ: /proc tells start times in hundredths of a second.
const TICK_NS: u64 = 10_000_000;

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    boot_id: String,
    roots: Vec<KeptRoot>,
    processes: Vec<KeptProcess>,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptRoot {
    pid: u32,
    start: u64,
    container: String,
    rule: String,
    lineage: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct KeptProcess {
    pid: u32,
    start: u64,
    creator: Option<(u32, u64)>,
    generation: u32,
    /// Index of its root.
    root: usize,
}

/// What the run before knew.
#[derive(Debug, Default)]
pub struct Kept {
    by_pid: HashMap<u32, Remembered>,
}

/// One process as it was known.
#[derive(Clone, Debug)]
pub struct Remembered {
    pub key: ProcessKey,
    pub creator: Option<ProcessKey>,
    pub generation: u32,
    pub root: Arc<Root>,
}

/// Hands what is to be kept to the thread that writes it.
#[derive(Debug)]
pub struct Keeping {
    boot_id: String,
    sender: Option<SyncSender<File>>,
    thread: Option<thread::JoinHandle<()>>,
    written: (u64, u64),
}

// === impl Kept ===

impl Kept {
    /// Of another boot, damaged or missing: nothing is known.
    pub fn read(path: &Path, boot_id: &str) -> Self {
        match read(path) {
            Ok(file) if file.boot_id == boot_id => Self::of(file),
            Ok(_) => Self::default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "what the run before knew of processes cannot be read; their sessions are rebuilt from /proc");
                Self::default()
            }
        }
    }

    fn of(file: File) -> Self {
        let File { roots, processes, .. } = file;
        let roots: Vec<Option<Arc<Root>>> = roots.into_iter().map(root).collect();
        let by_pid = processes.into_iter().filter_map(|process| {
            let KeptProcess { pid, start, creator, generation, root } = process;
            let key = ProcessKey { pid, start_boottime_ns: start };
            let creator = creator.map(|(pid, start_boottime_ns)| ProcessKey { pid, start_boottime_ns });
            Some((pid, Remembered { key, creator, generation, root: Arc::clone(roots.get(root)?.as_ref()?) }))
        });
        Self { by_pid: by_pid.collect() }
    }

    /// The process of /proc, if it is one that was known.
    pub(super) fn of_process(&self, pid: u32, start_boottime_ns: u64) -> Option<&Remembered> {
        let known = self.by_pid.get(&pid)?;
        (known.key.start_boottime_ns / TICK_NS == start_boottime_ns / TICK_NS).then_some(known)
    }

    pub fn len(&self) -> usize {
        self.by_pid.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_pid.is_empty()
    }
}

/// `None`: a rule that this version does not have.
fn root(kept: KeptRoot) -> Option<Arc<Root>> {
    let entry = *ENTRIES.iter().find(|entry| entry.rule == kept.rule)?;
    // What was not observed then is no surer now.
    let lineage = match kept.lineage.as_str() {
        "observed" | "kept" => "kept",
        "kernel" => "kernel",
        "rebuilt" => "rebuilt",
        _ => "unknown",
    };
    let key = ProcessKey { pid: kept.pid, start_boottime_ns: kept.start };
    Some(Arc::new(Root { key, entry, container: kept.container.into(), lineage }))
}

fn read(path: &Path) -> io::Result<File> {
    let length = fs::metadata(path)?.len();
    if length > MOST_BYTES {
        return Err(io::Error::other(format!("{length} bytes, more than the {MOST_BYTES} that this agent writes")));
    }
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

// === impl Keeping ===

impl Keeping {
    pub fn start(path: PathBuf, boot_id: String) -> io::Result<Self> {
        let (sender, receiver) = sync_channel::<File>(1);
        let thread = thread::Builder::new().name("kept".into()).spawn(move || {
            let mut failed = false;
            for file in receiver {
                match write(&path, &file) {
                    Ok(()) => failed = false,
                    Err(error) if !failed => {
                        failed = true;
                        tracing::warn!(path = %path.display(), %error, "what is known of processes cannot be kept; after a restart running sessions are rebuilt from /proc");
                    }
                    Err(_) => {}
                }
            }
        })?;
        Ok(Self { boot_id, sender: Some(sender), thread: Some(thread), written: (0, 0) })
    }

    /// Writes what has changed, now and then. While the disk is slow, nothing waits for it.
    pub fn look(&mut self, processes: &Processes, now_boot_ns: u64) {
        let (at, changes) = self.written;
        if now_boot_ns < at + EVERY_NS || (changes == processes.changes() && at != 0) {
            return;
        }
        let Some(sender) = &self.sender else { return };
        match sender.try_send(file(&self.boot_id, processes)) {
            Ok(()) => self.written = (now_boot_ns, processes.changes()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {}
        }
    }

    /// The same at the end, for sure.
    pub fn stop(&mut self, processes: &Processes) {
        if let Some(sender) = self.sender.take() {
            let _ = sender.send(file(&self.boot_id, processes));
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn file(boot_id: &str, processes: &Processes) -> File {
    let mut file = File { boot_id: boot_id.to_owned(), ..File::default() };
    let mut numbers: HashMap<*const Root, usize> = HashMap::new();
    for process in processes.living_rooted().take(MOST) {
        let Some(root) = &process.root else { continue };
        let index = *numbers.entry(Arc::as_ptr(root)).or_insert_with(|| {
            file.roots.push(KeptRoot {
                pid: root.key.pid,
                start: root.key.start_boottime_ns,
                container: root.container.to_string(),
                rule: root.entry.rule.to_owned(),
                lineage: root.lineage.to_owned(),
            });
            file.roots.len() - 1
        });
        file.processes.push(KeptProcess {
            pid: process.key.pid,
            start: process.key.start_boottime_ns,
            creator: process.creator.map(|creator| (creator.pid, creator.start_boottime_ns)),
            generation: process.image().generation,
            root: index,
        });
    }
    file
}

/// Old or new after a crash, never half. Only the agent may read it: it names what runs in containers.
fn write(path: &Path, file: &File) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let beside = path.with_extension("new");
    let options = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).to_owned();
    let mut beside_file = io::BufWriter::new(options.open(&beside)?);
    serde_json::to_writer(&mut beside_file, file)?;
    io::Write::flush(&mut beside_file)?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lineage::{Entry, Image, Task};

    const BOOT: &str = "b-1";

    fn task(pid: u32, start_boottime_ns: u64) -> Task {
        Task { pid, tid: pid, start_boottime_ns, ..Task::default() }
    }

    /// 40 is a session root that began at 123,456,789 ns; 41 is its child.
    fn kept() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/lineage.state");
        let mut processes = Processes::new([1]);
        processes.insert_rebuilt(&task(40, 123_456_789), 1, Some("c".into()), false, Image::default(), None);
        processes.insert_rebuilt(&task(41, 223_456_789), 40, Some("c".into()), false, Image::default(), None);
        let mut keeping = Keeping::start(path.clone(), BOOT.into()).unwrap();
        keeping.stop(&processes);
        (directory, path)
    }

    #[test]
    fn a_process_is_known_again_by_pid_and_start_time_and_one_that_reuses_its_pid_is_not() {
        let (_directory, path) = kept();
        let kept = Kept::read(&path, BOOT);
        assert_eq!(kept.len(), 2);
        // /proc tells whole ticks.
        let known = kept.of_process(41, 220_000_000).unwrap();
        assert_eq!(known.key.start_boottime_ns, 223_456_789);
        assert_eq!((known.root.key.pid, known.root.key.start_boottime_ns), (40, 123_456_789));
        assert!(kept.of_process(41, 230_000_000).is_none());
        assert!(kept.of_process(42, 220_000_000).is_none());
        assert!(Kept::read(&path, "another boot").is_empty());
    }

    #[test]
    fn damaged_missing_and_foreign_files_say_nothing() {
        let (_directory, path) = kept();
        for bytes in [&b"{"[..], b"[]", b"{\"boot_id\":\"b-1\"}", b"\xff", b""] {
            fs::write(&path, bytes).unwrap();
            assert!(Kept::read(&path, BOOT).is_empty());
        }
        assert!(Kept::read(Path::new("/nowhere/x"), BOOT).is_empty());
        // An index that points nowhere, and a rule of another version.
        let file = r#"{"boot_id":"b-1","roots":[{"pid":1,"start":1,"container":"c","rule":"?","lineage":"observed"}],
            "processes":[{"pid":1,"start":1,"creator":null,"generation":0,"root":0},
                         {"pid":2,"start":1,"creator":null,"generation":0,"root":7}]}"#;
        fs::write(&path, file).unwrap();
        assert!(Kept::read(&path, BOOT).is_empty());
    }

    #[test]
    fn what_was_observed_is_kept_and_what_was_guessed_stays_a_guess() {
        let of = |lineage: &str| {
            let Entry { rule, .. } = ENTRIES[0];
            let kept = KeptRoot { pid: 1, start: 1, container: "c".into(), rule: rule.into(), lineage: lineage.into() };
            root(kept).unwrap().lineage
        };
        assert_eq!((of("observed"), of("kept"), of("rebuilt"), of("x")), ("kept", "kept", "rebuilt", "unknown"));
    }
}
