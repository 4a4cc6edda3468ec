//! Sessions go on when the correlator is killed in their middle: what it says in the end is what a replay of its journal says,
//! and what the test knows to be true.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
    process::Command,
    thread::sleep,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use seclog_agent::clock;
use seclog_proto::v1::{Container, NodeRecord, ProcessExit, ProcessStart, SessionRoot, node_record::Detail};
use seclog_tests::lab::{
    faults::Dice,
    kube_audit::ExecRequest,
    places,
    process::PATIENCE,
    site::{CLUSTER, Site, wait_until},
};
use serde_json::{Value, json};

const STEPS: u64 = 5;

/// One exec into a pod of its own, as node and API server tell it.
struct Story {
    number: u64,
    request: ExecRequest,
    told: usize,
    step: u64,
}

impl Story {
    fn begin(number: u64) -> Result<Self> {
        let (user, pod) = (format!("user-{number}"), format!("web-{number}"));
        let request = ExecRequest::arrives(&user, "shop", &pod, "app", &["sh", "-c", &format!("work {number}")])?;
        Ok(Self { number, request, told: 0, step: 0 })
    }

    fn is_over(&self) -> bool {
        self.step > STEPS + 1
    }

    /// What happens next.
    fn go_on(&mut self, audit: &mut File, node: &mut File) -> Result<()> {
        let argv = |words: &[&str]| words.iter().map(ToString::to_string).collect();
        match self.step {
            0 => {
                self.request.response_started();
                let detail = ProcessStart {
                    filename: "/bin/sh".into(),
                    argv: argv(&["sh", "-c", &format!("work {}", self.number)]),
                    is_session_root: true,
                    environment_searched: "whole".into(),
                    ..Default::default()
                };
                self.record(node, 0, Detail::ProcessStart(detail))?;
            }
            step if step <= STEPS => {
                let detail = ProcessStart {
                    filename: "/bin/step".into(),
                    argv: argv(&["/bin/step", &step.to_string()]),
                    ..Default::default()
                };
                self.record(node, step, Detail::ProcessStart(detail))?;
                self.record(node, step, Detail::ProcessExit(ProcessExit::default()))?;
            }
            _ => {
                self.record(node, 0, Detail::ProcessExit(ProcessExit::default()))?;
                self.request.response_complete();
            }
        }
        self.step += 1;
        let events = self.request.events();
        for event in events.get(self.told..).unwrap_or_default() {
            writeln!(audit, "{event}")?;
        }
        self.told = events.len();
        Ok(())
    }

    fn record(&self, to: &mut File, process: u64, detail: Detail) -> Result<()> {
        let root = 10_000 + 100 * u32::try_from(self.number)?;
        let pid = root + u32::try_from(process)?;
        let time_unix_ns = clock::unix_ns();
        let record = NodeRecord {
            id: format!("boot:1:l0.{pid}.{time_unix_ns}"),
            time_unix_ns,
            boot_id: "boot".into(),
            pid,
            start_boottime_ns: u64::from(pid) * 1000,
            generation: 1,
            container: Some(Container {
                id: format!("{:0>64x}", self.number),
                pod_uid: format!("uid-{}", self.number),
                pod_name: format!("web-{}", self.number),
                pod_namespace: "shop".into(),
                name: "app".into(),
                names: "cri".into(),
                ..Default::default()
            }),
            session_root: Some(SessionRoot {
                pid: root,
                start_boottime_ns: u64::from(root) * 1000,
                entry: "exec".into(),
                rule: "as built".into(),
                lineage: "observed".into(),
            }),
            detail: Some(detail),
            ..Default::default()
        };
        writeln!(to, "{}", serde_json::to_string(&record)?)?;
        Ok(())
    }
}

/// API servers are never silent: nodes renew their leases.
fn lease(audit: &mut File) -> Result<()> {
    let mut renewal = ExecRequest::arrives("system:node:node-1", "kube-node-lease", "node-1", "", &[])?;
    renewal.response_complete();
    for mut event in renewal.events() {
        event["verb"] = json!("update");
        event["requestURI"] = json!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/node-1");
        event["objectRef"] = json!({ "resource": "leases", "namespace": "kube-node-lease", "name": "node-1" });
        writeln!(audit, "{event}")?;
    }
    Ok(())
}

/// Sessions in their newest revision. A line may come twice, but then it says the same.
fn newest(text: &str) -> Result<BTreeMap<String, Value>> {
    let mut all: BTreeMap<(String, u64), Value> = BTreeMap::new();
    let mut newest: BTreeMap<String, Value> = BTreeMap::new();
    for line in text.lines() {
        let session: Value = serde_json::from_str(line)?;
        let (Some(id), Some(revision)) = (session["id"].as_str(), session["revision"].as_u64()) else { continue };
        if let Some(before) = all.insert((id.to_owned(), revision), session.clone()) {
            ensure!(before == session, "one revision in two texts:\n{before}\n{session}");
        }
        let known = newest.get(id).and_then(|session| session["revision"].as_u64()).unwrap_or(0);
        if revision >= known {
            newest.insert(id.to_owned(), session);
        }
    }
    Ok(newest)
}

fn told(site: &Site) -> Result<BTreeMap<String, Value>> {
    newest(&std::fs::read_to_string(site.path("out.jsonl"))?)
}

fn replayed(site: &Site) -> Result<BTreeMap<String, Value>> {
    let mut command = Command::new(places::program("seclog-correlator")?);
    command.args(["replay", "--cluster", CLUSTER, "--audit-lateness", "3", "--reason", "the test"]);
    let output = command.arg("--journal").arg(&site.journal).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    newest(&String::from_utf8(output.stdout)?)
}

fn append_to(path: &Path) -> Result<File> {
    Ok(OpenOptions::new().create(true).append(true).open(path)?)
}

#[test]
fn a_correlator_killed_in_mid_session_says_in_the_end_what_a_replay_says_and_what_is_true() -> Result<()> {
    let mut site = Site::new()?;
    let (audit_log, records) = (site.path("audit.log"), site.path("node.jsonl"));
    let (mut audit, mut node) = (append_to(&audit_log)?, append_to(&records)?);
    site.options = vec!["--audit-log".into(), audit_log.into(), "--audit-lateness".into(), "3".into()];
    let mut correlator = site.correlator()?;
    let follow = records.to_string_lossy().into_owned();
    let feeder = site.feeder(&["--batches", "20", "--follow", &follow])?;
    let soak = std::env::var_os("SECLOG_SOAK").is_some();
    let (count, kills) = if soak { (300, 100) } else { (20, 6) };
    let mut dice = Dice(11);
    let mut stories: Vec<Story> = Vec::new();
    let (mut begun, mut killed) = (0, 0);
    while begun < count || killed < kills || !stories.is_empty() {
        if begun < count && stories.len() < 8 {
            stories.push(Story::begin(begun)?);
            begun += 1;
        }
        lease(&mut audit)?;
        for story in &mut stories {
            if dice.roll(3) == 0 {
                story.go_on(&mut audit, &mut node)?;
            }
        }
        stories.retain(|story| !story.is_over());
        sleep(Duration::from_millis(100));
        if killed < kills && dice.roll(8) == 0 {
            correlator.signal(Signal::SIGKILL);
            correlator.wait(PATIENCE).context("killed")?;
            correlator = site.correlator()?;
            killed += 1;
        }
    }
    let closed = |sessions: &BTreeMap<String, Value>| {
        sessions.values().filter(|session| session["user"].is_object() && session["state"] == "closed").count() as u64
    };
    wait_until(|| {
        lease(&mut audit)?;
        let sessions = told(&site)?;
        let explained = sessions.values().all(|session| session["ran"].as_array().is_some_and(|ran| !ran.is_empty()));
        Ok(closed(&sessions) >= count && explained)
    })
    .with_context(|| {
        format!("{} of {count} sessions are told as closed", told(&site).map_or(0, |told| closed(&told)))
    })?;
    ensure!(feeder.terminate()?.success(), "{}", feeder.log());
    ensure!(correlator.terminate()?.success(), "{}", correlator.log());

    let (told, replayed) = (told(&site)?, replayed(&site)?);
    let standing: Vec<&Value> = told.values().filter(|session| session["state"] != "superseded").collect();
    ensure!(standing.len() as u64 == count, "{} sessions of {count}: {standing:#?}", standing.len());
    let users: BTreeSet<&str> = standing.iter().filter_map(|session| session["user"]["username"].as_str()).collect();
    ensure!(users.len() as u64 == count, "{users:?}");
    for session in &standing {
        ensure!(session["evidence"] == "unique" && session["state"] == "closed", "{session:#}");
        let ran = session["ran"].as_array().context("ran")?.len() as u64;
        ensure!(ran == STEPS + 1, "{ran} programs: {session:#}");
    }
    for (id, session) in &told {
        let again = replayed.get(id).with_context(|| format!("a replay does not know {session:#}"))?;
        ensure!(session == again, "told:\n{session:#}\nreplayed:\n{again:#}");
    }
    ensure!(replayed.len() == told.len(), "a replay tells {} sessions, {} were told", replayed.len(), told.len());
    let (code, text) = site.verify()?;
    ensure!(code == 0 && text.contains("read out at") && text.contains("the test"), "{text}");
    ensure!(site.journaled()?.exports == 1);
    Ok(())
}
