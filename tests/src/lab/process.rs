//! A program under observation: its lines as they come, its orderly end.

use std::{
    io::{BufRead as _, BufReader, Read},
    os::unix::process::CommandExt as _,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};

/// Generous: machines that run tests are busy. Nothing waits this long when it works.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Killed when dropped. When a test panics meanwhile, its log is printed first.
#[derive(Debug)]
pub struct Process {
    name: String,
    pid: Pid,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
    end: Arc<Signalled<Option<ExitStatus>>>,
}

/// The lines that one stream gave so far.
#[derive(Debug, Default)]
pub struct Lines(Signalled<Text>);

#[derive(Debug, Default)]
struct Text {
    lines: Vec<String>,
    closed: bool,
}

/// A value that others wait for.
#[derive(Debug, Default)]
struct Signalled<T> {
    value: Mutex<T>,
    changed: Condvar,
}

// === impl Process ===

impl Process {
    /// Starts it in a process group of its own: ctrl-C at the terminal reaches this program, which ends the others in
    /// its order.
    pub fn start(name: &str, command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {name}: {:?}", command.get_program()))?;
        let pid = Pid::from_raw(i32::try_from(child.id()).context("pid")?);
        let stdout = Lines::follow(child.stdout.take(), format!("{name}-stdout"))?;
        let stderr = Lines::follow(child.stderr.take(), format!("{name}-stderr"))?;
        let end = Arc::new(Signalled::default());
        std::thread::Builder::new().name(format!("{name}-end")).spawn({
            let end = Arc::clone(&end);
            move || reap(child, pid, &end)
        })?;
        Ok(Self { name: name.to_owned(), pid, stdout, stderr, end })
    }

    pub fn pid(&self) -> u32 {
        self.pid.as_raw().unsigned_abs()
    }

    pub fn stdout(&self) -> &Lines {
        &self.stdout
    }

    pub fn stderr(&self) -> &Lines {
        &self.stderr
    }

    pub fn is_running(&self) -> bool {
        self.end.lock().is_none()
    }

    /// Waits for a line on standard error that contains `text`.
    pub fn wait_for_log(&self, text: &str) -> Result<String> {
        self.stderr
            .wait_for(PATIENCE, |line| line.contains(text))
            .with_context(|| format!("{} did not log {text:?}; its log:\n{}", self.name, self.log()))
    }

    /// SIGTERM, and the status it ended with.
    pub fn terminate(&self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM);
        match self.wait(PATIENCE) {
            Some(status) => Ok(status),
            None => bail!("{} did not end within {PATIENCE:?} of SIGTERM; its log:\n{}", self.name, self.log()),
        }
    }

    pub fn wait(&self, patience: Duration) -> Option<ExitStatus> {
        *self.end.wait_until(patience, Option::is_some)
    }

    /// Signals it unless it has ended: its pid is kept from reuse as long as `end` is empty and locked.
    pub fn signal(&self, signal: Signal) {
        let end = self.end.lock();
        if end.is_none() {
            let _ = kill(self.pid, signal);
        }
    }

    /// The last of its log.
    pub fn log(&self) -> String {
        let lines = self.stderr.all();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGTERM);
        if self.wait(Duration::from_secs(5)).is_none() {
            self.signal(Signal::SIGKILL);
            self.wait(Duration::from_secs(5));
        }
        if std::thread::panicking() {
            eprintln!("--- the end of {}'s log ---\n{}\n---", self.name, self.log());
        }
    }
}

fn reap(mut child: Child, pid: Pid, end: &Signalled<Option<ExitStatus>>) {
    // Waits without reaping, so that the pid stays this child's until `end` says that it ended.
    while waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) == Err(nix::errno::Errno::EINTR) {}
    let mut value = end.lock();
    *value = child.wait().ok();
    end.changed.notify_all();
}

// === impl Lines ===

impl Lines {
    fn follow(stream: Option<impl Read + Send + 'static>, thread: String) -> Result<Arc<Self>> {
        let lines = Arc::new(Self::default());
        let stream = stream.context("no pipe")?;
        std::thread::Builder::new().name(thread).spawn({
            let lines = Arc::clone(&lines);
            move || {
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    lines.0.change(|text| text.lines.push(String::from_utf8_lossy(&line).into_owned()));
                }
                lines.0.change(|text| text.closed = true);
            }
        })?;
        Ok(lines)
    }

    /// The first line, of all so far and to come, that `wanted` holds for.
    pub fn wait_for(&self, patience: Duration, wanted: impl Fn(&str) -> bool) -> Result<String> {
        let found = |text: &Text| text.lines.iter().find(|line| wanted(line)).cloned();
        let text = self.0.wait_until(patience, |text| text.closed || found(text).is_some());
        match found(&text) {
            Some(line) => Ok(line),
            None if text.closed => bail!("the stream ended without it"),
            None => bail!("nothing for {patience:?}"),
        }
    }

    /// Waits until `enough` holds for all lines so far, or the stream ended; whether it held at the end.
    pub fn wait_until(&self, patience: Duration, enough: impl Fn(&[String]) -> bool) -> bool {
        let text = self.0.wait_until(patience, |text| text.closed || enough(&text.lines));
        enough(&text.lines)
    }

    /// Waits until the program closed the stream.
    pub fn wait_for_end(&self) {
        drop(self.0.wait_until(PATIENCE, |text| text.closed));
    }

    pub fn all(&self) -> Vec<String> {
        self.0.lock().lines.clone()
    }

    pub fn count(&self) -> usize {
        self.0.lock().lines.len()
    }
}

// === impl Signalled ===

impl<T> Signalled<T> {
    fn lock(&self) -> MutexGuard<'_, T> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut T)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn wait_until(&self, patience: Duration, enough: impl Fn(&T) -> bool) -> MutexGuard<'_, T> {
        let deadline = Instant::now() + patience;
        let mut value = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if enough(&value) || left.is_zero() {
                return value;
            }
            value = self.changed.wait_timeout(value, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Process;
    use std::process::Command;

    fn shell(script: &str) -> Process {
        Process::start("shell", Command::new("/bin/sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn a_log_line_is_awaited_and_sigterm_ends_it_in_order() {
        let process = shell("trap 'echo drained >&2; exit 7' TERM; echo ready >&2; while :; do sleep 0.01; done");
        process.wait_for_log("ready").unwrap();
        assert_eq!(process.terminate().unwrap().code(), Some(7));
        process.wait_for_log("drained").unwrap();
    }

    #[test]
    fn a_program_that_ends_early_is_noticed_at_once() {
        let process = shell("echo no such option >&2; exit 2");
        let error = process.wait_for_log("ready").unwrap_err();
        assert!(format!("{error:#}").contains("no such option"), "{error:#}");
    }
}
