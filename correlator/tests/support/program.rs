//! The program itself, as an administrator runs it.

use super::scene::Kept;
use seclog_correlator::join::session::Session;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use uuid::Uuid;

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seclog-correlator"));
    command.env_remove("SECLOG_LOG");
    command
}

/// How long a machine under load may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running `serve`, stopped by [`Running::stop`], killed when dropped.
pub(crate) struct Running {
    pub(crate) child: Child,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
    _journal: Option<TempDir>,
}

/// What it has logged; `true`: nothing more comes.
#[derive(Default)]
struct Log(Mutex<(Vec<String>, bool)>, Condvar);

impl Running {
    pub(crate) fn start(args: &[&str]) -> Self {
        let journal = tempfile::tempdir().unwrap();
        let mut running = Self::start_with(journal.path(), args);
        running._journal = Some(journal);
        running
    }

    pub(crate) fn start_with(journal: &Path, args: &[&str]) -> Self {
        Self::start_fed(journal, args, Stdio::null())
    }

    pub(crate) fn start_fed(journal: &Path, args: &[&str], input: Stdio) -> Self {
        let mut command = program();
        command.args(["serve", "--cluster", "guest"]).arg("--journal").arg(journal).args(args);
        let mut child = command.stdin(input).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let log: Arc<Log> = Arc::default();
        let lines = Arc::clone(&log);
        let reader = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                lines.0.lock().unwrap().0.push(line);
                lines.1.notify_all();
            }
            lines.0.lock().unwrap().1 = true;
            lines.1.notify_all();
        });
        Self { child, log, reader: Some(reader), _journal: None }
    }

    /// The address in the log line that has these words.
    pub(crate) fn address(&self, words: &str) -> SocketAddr {
        self.line(words).trim().rsplit_once("addr=").unwrap().1.parse().unwrap()
    }

    /// The first log line that has these words.
    pub(crate) fn line(&self, words: &str) -> String {
        let (deadline, mut held) = (Instant::now() + PATIENCE, self.log.0.lock().unwrap());
        loop {
            if let Some(line) = held.0.iter().find(|line| line.contains(words)) {
                return line.clone();
            }
            assert!(!held.1 && Instant::now() < deadline, "no line says {words:?}: {:#?}", held.0);
            held = self.log.1.wait_timeout(held, Duration::from_secs(1)).unwrap().0;
        }
    }

    pub(crate) fn stop(mut self) -> i32 {
        let signalled = Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        assert!(signalled.success());
        self.ended()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn ended(&mut self) -> i32 {
        self.reader.take().unwrap().join().unwrap();
        let code = self.child.wait().unwrap().code();
        code.unwrap_or_else(|| panic!("killed: {:#?}", self.log.0.lock().unwrap().0))
    }

    /// As a machine that loses its power, but for the disk.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Findings have lines of their own.
pub(crate) fn is_session(line: &&str) -> bool {
    !line.contains(r#""kind":"finding""#)
}

/// The last revision of every session in an output.
pub(crate) fn kept(path: &Path) -> Vec<Session> {
    let mut kept = Kept::default();
    for line in std::fs::read_to_string(path).unwrap().lines().filter(is_session) {
        kept.take(vec![serde_json::from_str(line).unwrap()]);
    }
    kept.sessions()
}

/// The last line of each session, in the order of time: after a restart revisions begin anew.
pub(crate) fn last_lines(output: &Path) -> Vec<Session> {
    let mut last: BTreeMap<Uuid, Session> = BTreeMap::new();
    for line in std::fs::read_to_string(output).unwrap().lines().filter(is_session) {
        let session: Session = serde_json::from_str(line).unwrap();
        last.insert(session.id, session);
    }
    let mut sessions: Vec<Session> = last.into_values().collect();
    sessions.sort_by_key(|session| (session.start, session.id));
    sessions
}

/// Until the output says it.
pub(crate) fn wait_for(output: &Path, words: &str) {
    let deadline = Instant::now() + PATIENCE;
    while !std::fs::read_to_string(output).unwrap_or_default().contains(words) {
        assert!(Instant::now() < deadline, "never {words:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

pub(crate) fn replay(args: &[&str]) -> Output {
    program().args(["replay", "--cluster", "guest"]).args(args).output().unwrap()
}
