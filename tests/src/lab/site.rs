//! One node and one correlator as processes, with their directories: the agent's own spool and stream without a kernel
//! (`seclog-uplink`, the feeder). What is true is told by the feeder (which batches were taken in) and by the journal's
//! files, read with nothing of the correlator's.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use seclog_journal::{Item, Reader};
use seclog_proto::{
    batch::Unpacker,
    v1::{Batch, JournalEntry, journal_entry::Entry, node_record::Detail},
};

use super::{
    faults::Namespace,
    places,
    process::{PATIENCE, Process},
};

/// The cluster that the correlator serves.
pub const CLUSTER: &str = "guest";

#[derive(Debug)]
pub struct Site {
    dir: tempfile::TempDir,
    pub journal: PathBuf,
    pub spool: PathBuf,
    /// Where the correlator listens for agents.
    pub port: u16,
    /// Where the feeder takes the correlator for, if that is elsewhere.
    pub reached_at: Option<String>,
    /// Programs run in this network namespace.
    pub namespace: Option<Namespace>,
    pub environment: Vec<(&'static str, String)>,
    /// Where the correlator writes, if not to out.jsonl.
    pub output: Option<PathBuf>,
    /// More options of `serve`.
    pub options: Vec<OsString>,
    /// More options of the feeder.
    pub feeder_options: Vec<OsString>,
    runs: u64,
}

/// What a journal's files hold.
#[derive(Debug, Default)]
pub struct Journaled {
    /// How often each record is there.
    pub ids: BTreeMap<String, u64>,
    /// Sum of the loss records, each id once.
    pub lost: u64,
    pub missing_entries: u64,
    /// Numbers of entries that are gone before the first, from the deletions that say so.
    pub deleted_until: u64,
    pub exports: u64,
    pub audit_events: u64,
}

// === impl Site ===

impl Site {
    pub fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519)?;
        fs::write(dir.path().join("key.pem"), key.serialize_pem())?;
        fs::write(dir.path().join("public.pem"), key.public_key_pem())?;
        let (journal, spool) = (dir.path().join("journal"), dir.path().join("spool"));
        Ok(Self {
            dir,
            journal,
            spool,
            port: free_port()?,
            reached_at: None,
            namespace: None,
            environment: Vec::new(),
            output: None,
            options: Vec::new(),
            feeder_options: Vec::new(),
            runs: 0,
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn command(&self, program: &str) -> Result<Command> {
        let program = places::program(program)?;
        let mut command = match &self.namespace {
            None => Command::new(program),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace.name()]).arg(program);
                command
            }
        };
        command.env("NO_COLOR", "1").envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    pub fn correlator_command(&self) -> Result<Command> {
        let mut command = self.command("seclog-correlator")?;
        command.args(["serve", "--cluster", CLUSTER, "--checkpoint-every", "1"]);
        if !self.options.iter().any(|option| option == "--tls-cert") {
            command.arg("--plaintext");
        }
        command.arg("--agents-listen").arg(format!("127.0.0.1:{}", self.port));
        command.arg("--journal").arg(&self.journal).arg("--output");
        command.arg(self.output.clone().unwrap_or_else(|| self.path("out.jsonl")));
        command.arg("--checkpoint-key").arg(self.path("key.pem")).args(&self.options);
        Ok(command)
    }

    pub fn correlator(&self) -> Result<Process> {
        let process = Process::start("seclog-correlator", &mut self.correlator_command()?)?;
        process.wait_for_log("listening for agents")?;
        Ok(process)
    }

    fn feeder_command(&mut self) -> Result<Command> {
        self.runs += 1;
        let mut command = self.command("seclog-uplink")?;
        let reached_at = self.reached_at.clone().unwrap_or_else(|| format!("http://127.0.0.1:{}", self.port));
        command.args(["--cluster", CLUSTER, "--correlator", &reached_at]);
        command.arg("--spool-dir").arg(&self.spool).arg("--truth").arg(self.path("truth"));
        command.arg("--run").arg(self.runs.to_string()).args(&self.feeder_options);
        Ok(command)
    }

    pub fn feeder(&mut self, args: &[&str]) -> Result<Process> {
        let feeder = Process::start("seclog-uplink", self.feeder_command()?.args(args))?;
        feeder.wait_for_log("spool/disk")?;
        Ok(feeder)
    }

    /// Sends what the spool still holds, until it is empty.
    pub fn drain(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let feeder = self.feeder(&["--batches", "0"])?;
            let status = feeder.wait(PATIENCE).context("the feeder did not end")?;
            feeder.stderr().wait_for_end();
            let left = feeder.log().contains("has not acknowledged");
            if status.success() && !left {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "the spool did not become empty: {}", feeder.log());
        }
    }

    /// Stops both in order once the spool is empty: see [`Site::expect_all`].
    pub fn settle(&mut self, feeder: &Process, correlator: &Process) -> Result<Journaled> {
        ensure!(feeder.terminate()?.success(), "the feeder failed: {}", feeder.log());
        self.drain()?;
        ensure!(correlator.terminate()?.success(), "the correlator failed: {}", correlator.log());
        self.expect_all()
    }

    /// As [`Site::settle`], and nothing may be told as lost.
    pub fn settle_without_loss(&mut self, feeder: &Process, correlator: &Process) -> Result<Journaled> {
        let journaled = self.settle(feeder, correlator)?;
        ensure!(journaled.lost == 0, "{} are declared lost", journaled.lost);
        Ok(journaled)
    }

    pub fn verify(&self) -> Result<(i32, String)> {
        let mut command = Command::new(places::program("seclog-correlator")?);
        command.arg("verify").arg(&self.journal).arg("--checkpoints").arg(self.path("out.jsonl"));
        let output = command.arg("--public-key").arg(self.path("public.pem")).output()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        Ok((output.status.code().unwrap_or(-1), text))
    }

    /// What was taken in by the agent's rooms.
    pub fn truth(&self) -> Result<BTreeSet<String>> {
        let mut ids = BTreeSet::new();
        for line in fs::read_to_string(self.path("truth"))?.lines() {
            let numbers: Vec<u64> = line.split(' ').map(str::parse).collect::<Result<_, _>>()?;
            let [run, first, last] = numbers[..] else { continue };
            ids.extend((first..=last).map(|number| format!("{run}-{number}")));
        }
        Ok(ids)
    }

    pub fn journaled(&self) -> Result<Journaled> {
        Journaled::read(&self.journal)
    }

    /// Everything that was taken in is in the journal once, or declared lost, and the journal is proven.
    pub fn expect_all(&self) -> Result<Journaled> {
        let (truth, journaled) = (self.truth()?, self.journaled()?);
        ensure!(!truth.is_empty(), "nothing was fed");
        journaled.expect_none_twice()?;
        let missing: Vec<_> = truth.iter().filter(|id| !journaled.ids.contains_key(*id)).collect();
        let declared = journaled.lost;
        ensure!(
            missing.len() as u64 <= declared,
            "{} of {} are missing, {declared} are declared lost; the first: {:?}",
            missing.len(),
            truth.len(),
            missing.first()
        );
        let (code, text) = self.verify()?;
        ensure!(code == 0, "verify: {text}");
        Ok(journaled)
    }

    /// Waits until the outlet's file has this text.
    pub fn wait_for_output(&self, text: &str) -> Result<()> {
        wait_until(|| Ok(fs::read_to_string(self.path("out.jsonl"))?.contains(text)))
            .with_context(|| format!("{text:?} in the output"))
    }
}

/// Asks until it is so.
pub fn wait_until(mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "nothing for {PATIENCE:?}");
        sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// Nobody listens there now.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

// === impl Journaled ===

impl Journaled {
    pub fn read(dir: &Path) -> Result<Self> {
        let mut found = Self::default();
        let mut unpacker = Unpacker::new()?;
        let mut losses = BTreeSet::new();
        let mut reader = Reader::new(dir, 1);
        while let Some(item) = reader.next(u64::MAX)? {
            let Item::Entry(entry) = item else {
                found.missing_entries += 1;
                continue;
            };
            let batch = match JournalEntry::decode(entry.payload)?.entry {
                Some(Entry::NodeBatch(batch)) => batch,
                other => {
                    match other {
                        Some(Entry::Deletion(deletion)) => found.deleted_until = deletion.until,
                        Some(Entry::Export(_)) => found.exports += 1,
                        Some(Entry::AuditEvents(events)) => found.audit_events += events.events.len() as u64,
                        _ => {}
                    }
                    continue;
                }
            };
            let records = unpacker.unpack(&Batch::decode(batch.batch)?)?;
            for record in records.into_iter().skip(usize::try_from(batch.repeated)?) {
                match record.detail {
                    Some(Detail::Loss(loss)) => {
                        if losses.insert(record.id) {
                            found.lost += loss.count;
                        }
                    }
                    _ => *found.ids.entry(record.id).or_default() += 1,
                }
            }
        }
        Ok(found)
    }

    pub fn expect_none_twice(&self) -> Result<()> {
        let twice: Vec<_> = self.ids.iter().filter(|(_, count)| **count > 1).take(5).collect();
        ensure!(twice.is_empty(), "more than once: {twice:?}");
        Ok(())
    }
}
