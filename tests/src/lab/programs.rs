//! seclog's own two programs, started as an administrator would.

use std::{
    collections::HashMap,
    ffi::OsStr,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use seclog_proto::v1::{NodeRecord, ProcessStart, SessionRoot, node_record::Detail};
use serde_json::Value;
use tempfile::TempDir;

use super::{
    kube_audit,
    pki::Pki,
    places,
    process::{PATIENCE, Process},
    webhook,
};

pub const CLUSTER: &str = "hosted-1";

/// A correlator on loopback ports of its own, writing sessions as JSON lines.
#[derive(Debug)]
pub struct Correlator {
    process: Process,
    pub agents: SocketAddr,
    pub webhook: SocketAddr,
    journal: tempfile::TempDir,
}

/// The correlator's allowance, and a little.
const CLOCKS_MAY_DIFFER: Duration = Duration::from_millis(1200);

/// The agent of one node.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    directory: Arc<TempDir>,
}

/// Where an agent's records go.
#[derive(Debug, Clone, Copy)]
pub enum Sink<'a> {
    Stdout,
    Correlator(&'a Correlator, &'a Pki),
}

// === impl Correlator ===

impl Correlator {
    pub fn start(pki: &Pki) -> Result<Self> {
        let journal = tempfile::tempdir()?;
        let mut command = program("seclog-correlator")?;
        command.args(["serve", "--journal"]).arg(journal.path()).args([
            "--cluster",
            CLUSTER,
            "--output",
            "-",
            "--format",
            "json",
        ]);
        command.args(["--agents-listen", "127.0.0.1:0", "--audit-webhook-listen", "127.0.0.1:0"]);
        command.arg("--tls-cert").arg(&pki.server.certificate).arg("--tls-key").arg(&pki.server.key);
        command.arg("--client-ca").arg(&pki.ca);
        // A real API server may report half a minute later; here it does at once.
        command.args(["--audit-lateness", "10"]);
        let process = Process::start("seclog-correlator", &mut command)?;
        let agents = address(&process.wait_for_log("listening for agents")?)?;
        let webhook = address(&process.wait_for_log("listening for audit webhook")?)?;
        Ok(Self { process, agents, webhook, journal })
    }

    /// Delivers events to the webhook as one EventList.
    pub async fn audit(&self, pki: &Pki, events: impl IntoIterator<Item = Value>) -> Result<()> {
        webhook::deliver(pki, self.webhook, kube_audit::event_list(events)).await
    }

    /// Every session in its newest revision, in the order of first mention.
    pub fn sessions(&self) -> Vec<Value> {
        newest_revisions(&self.process.stdout().all())
    }

    /// The first session, in its newest revision, that `wanted` holds for; waits for it.
    pub fn wait_for_session(&self, patience: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let find = |lines: &[String]| newest_revisions(lines).into_iter().find(|session| wanted(session));
        self.process.stdout().wait_until(patience, |lines| find(lines).is_some());
        find(&self.process.stdout().all()).with_context(|| {
            let all: Vec<String> = self.sessions().iter().map(Value::to_string).collect();
            format!(
                "no such session within {patience:?}; there are:\n{}\nits log:\n{}",
                all.join("\n"),
                self.process.log()
            )
        })
    }

    /// What a command prints that reads the store, while this one runs.
    pub fn ask(&self, arguments: &[&str]) -> Result<String> {
        let output = program("seclog-correlator")?.args(arguments).arg("--store").arg(self.store()).output()?;
        if !output.status.success() {
            bail!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?)
    }

    pub fn store(&self) -> PathBuf {
        self.journal.path().join("store")
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    pub fn stop(&self) -> Result<ExitStatus> {
        self.process.terminate()
    }
}

fn newest_revisions(lines: &[String]) -> Vec<Value> {
    let mut order = Vec::new();
    let mut newest: HashMap<String, Value> = HashMap::new();
    for line in lines {
        let Ok(session) = serde_json::from_str::<Value>(line) else { continue };
        let id = session["id"].as_str().unwrap_or_default().to_owned();
        if newest.insert(id.clone(), session).is_none() {
            order.push(id);
        }
    }
    order.iter().filter_map(|id| newest.remove(id)).collect()
}

// === impl Agent ===

impl Agent {
    /// Returns when it captures, and when no request from now on can be taken for one of the time before it: that time is a
    /// declared loss, and the correlator lets clocks differ by a second.
    pub fn start(node: &str, cri_socket: &Path, sink: Sink<'_>) -> Result<Self> {
        let directory = Arc::new(tempfile::tempdir()?);
        Self::start_in(directory, node, sink, &["--cri-socket".as_ref(), cri_socket.as_os_str()])
    }

    /// With what it is to find and to leave on disk, and with these arguments.
    pub fn start_in(directory: Arc<TempDir>, node: &str, sink: Sink<'_>, arguments: &[&OsStr]) -> Result<Self> {
        let mut command = program("seclog-agent")?;
        command.args(["run", "--cluster", CLUSTER, "--node", node, "--verdict-hook", "auto"]);
        command.args(arguments).arg("--state-file").arg(directory.path().join("agent.state"));
        match sink {
            Sink::Stdout => {
                command.args(["--sink", "stdout"]);
            }
            Sink::Correlator(correlator, pki) => {
                let identity = pki.agent(CLUSTER, node)?;
                command.arg("--correlator").arg(format!("https://localhost:{}", correlator.agents.port()));
                command.arg("--tls-ca").arg(&pki.ca).arg("--tls-cert").arg(identity.certificate);
                command.arg("--tls-key").arg(identity.key);
            }
        }
        let process = Process::start("seclog-agent", &mut command)?;
        process.wait_for_log("capturing")?;
        std::thread::sleep(CLOCKS_MAY_DIFFER);
        Ok(Self { process, directory })
    }

    /// Where it keeps what its next run is to know.
    pub fn directory(&self) -> &Arc<TempDir> {
        &self.directory
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Records on standard output so far (with [`Sink::Stdout`]).
    pub fn records(&self) -> Result<Vec<NodeRecord>> {
        let parse = |line: &String| serde_json::from_str(line).with_context(|| format!("not a node record: {line}"));
        self.process.stdout().all().iter().map(parse).collect()
    }

    /// The first record that `wanted` holds for; waits for it.
    pub fn wait_for_record(&self, patience: Duration, wanted: impl Fn(&NodeRecord) -> bool) -> Result<NodeRecord> {
        let matches = |line: &str| serde_json::from_str(line).is_ok_and(|record| wanted(&record));
        let line = self.process.stdout().wait_for(patience, matches).with_context(|| {
            format!("no such record; there are:\n{}\n{}", self.process.stdout().all().join("\n"), self.process.log())
        })?;
        Ok(serde_json::from_str(&line)?)
    }

    /// The start of a program with this argument, but of what runs it in other namespaces; its record and root. Waits for it.
    pub fn wait_for_start(&self, argument: &str) -> Result<(NodeRecord, ProcessStart, SessionRoot)> {
        let is_it = |record: &NodeRecord| match &record.detail {
            Some(Detail::ProcessStart(start)) => {
                start.argv.iter().any(|own| own == argument) && start.argv.first().is_some_and(|own| own != "nsenter")
            }
            _ => false,
        };
        let record = self.wait_for_record(PATIENCE, is_it)?;
        let root = record.session_root.clone().with_context(|| format!("{argument}: no root"))?;
        let Some(Detail::ProcessStart(start)) = record.detail.clone() else { bail!("{argument}: no start") };
        Ok((record, start, root))
    }

    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Lines of its log that contain `text`.
    pub fn log_lines(&self, text: &str) -> Vec<String> {
        self.process.stderr().all().into_iter().filter(|line| line.contains(text)).collect()
    }

    /// Drains and ends; an end other than success is an error.
    pub fn stop(&self) -> Result<()> {
        let status = self.process.terminate()?;
        if !status.success() {
            bail!("the agent ended with {status}; its log:\n{}", self.log());
        }
        self.process.stdout().wait_for_end();
        Ok(())
    }
}

fn program(name: &str) -> Result<Command> {
    let mut command = Command::new(places::program(name)?);
    // Logs are searched for words; colours would stand between them.
    command.env("NO_COLOR", "1");
    Ok(command)
}

/// `… listening for agents addr=127.0.0.1:40123`
fn address(line: &str) -> Result<SocketAddr> {
    let (_, rest) = line.split_once("addr=").ok_or_else(|| anyhow!("no addr= in {line:?}"))?;
    let text: &str = rest.split_whitespace().next().unwrap_or_default();
    text.trim_matches('"').parse().with_context(|| line.to_owned())
}

#[cfg(test)]
mod tests {
    use super::newest_revisions;

    #[test]
    fn a_later_line_replaces_the_session_in_its_place() {
        let lines = [r#"{"id":"a","revision":1}"#, r#"{"id":"b","revision":1}"#, r#"{"id":"a","revision":2}"#];
        let newest = newest_revisions(&lines.map(String::from));
        assert_eq!(newest.len(), 2);
        assert_eq!((&newest[0]["id"], &newest[0]["revision"]), (&"a".into(), &2.into()));
    }
}
