//! auditd with laurel as its plugin, in the same storm as the agent, in turn.
//!
//! Both get the same records: type 1326 alone, with kauditd's queue at the same length. auditd writes no log of its own and
//! does not resolve names, laurel enriches nothing: the cheapest way to JSON that the two have.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use seclog_agent::quiet::netlink::AuditControl;

use super::{
    audit_state::Backlog,
    figure::Figure,
    generator::{self, Filter},
    group::{Grouped, Spent},
    median,
    memory::{self, mib},
    processor::Idleness,
    spread,
    storm::{Agent, Storm, delivered},
};
use crate::lab::places;

const REPETITIONS: usize = 3;
/// auditd's own advice is to raise it; with 64 the two would be measured waiting.
const BACKLOG: u32 = 65_536;

/// The audit daemon with its plugin.
#[derive(Debug)]
struct Daemon {
    group: Grouped,
    output: PathBuf,
    _directory: tempfile::TempDir,
}

// === impl Daemon ===

impl Daemon {
    fn start(auditd: &Path, laurel: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = |name: &str| directory.path().join(name);
        fs::create_dir(path("plugins.d"))?;
        fs::create_dir(path("out"))?;
        let files = [
            ("auditd.conf", daemon_configuration(directory.path())),
            ("plugins.d/laurel.conf", plugin_configuration(laurel, &path("laurel.toml"))),
            ("laurel.toml", laurel_configuration(&path("out"))),
        ];
        for (name, text) in files {
            fs::write(path(name), text)?;
            // auditd refuses configuration that others may write.
            fs::set_permissions(path(name), fs::Permissions::from_mode(0o640))?;
        }
        let log = path("auditd.log");
        let configuration = directory.path().display().to_string();
        let arguments = ["-n", "-s", "nochange", "-c", &configuration];
        let (stdout, stderr) = (fs::File::create(&log)?, fs::File::create(path("auditd.err"))?);
        let mut group = Grouped::start(auditd, &arguments, stdout, stderr)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while AuditControl::open()?.status()?.daemon_pid != group.pid() || group.others().len() < 2 {
            let said = || fs::read_to_string(path("auditd.err")).unwrap_or_default();
            ensure!(group.is_running()? && Instant::now() < deadline, "auditd does not start: {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
        group.wait_until_still()?;
        Ok(Self { group, output: path("out").join("audit.log"), _directory: directory })
    }

    /// The most memory that the two had, and the storm.
    fn storm(mut self, verdicts: u64) -> Result<(Storm, u64)> {
        self.group.begin()?;
        let cost = generator::calls(Filter::Logging, verdicts)?;
        self.group.wait_until_still()?;
        let peak =
            self.group.others().into_iter().filter_map(|pid| memory::of(pid).ok()).map(|memory| memory.peak).sum();
        // laurel holds back events until it is sure that they are whole; here, until its end.
        self.group.terminate()?;
        let spent = self.group.spent()?;
        let delivered = delivered(&self.output, "\"SECCOMP\"")?;
        Ok((Storm { verdicts, delivered, spent, cost }, peak))
    }
}

fn daemon_configuration(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "local_events = yes\nwrite_logs = no\nlog_file = {directory}/audit.log\nlog_group = root\nlog_format = RAW\n\
         flush = NONE\nmax_log_file = 8\nnum_logs = 0\npriority_boost = 0\nname_format = NONE\n\
         max_log_file_action = IGNORE\nspace_left = 75\nspace_left_action = IGNORE\nadmin_space_left = 50\n\
         admin_space_left_action = IGNORE\ndisk_full_action = IGNORE\ndisk_error_action = IGNORE\nq_depth = 90000\n\
         overflow_action = IGNORE\nmax_restarts = 0\nplugin_dir = {directory}/plugins.d\n"
    )
}

fn plugin_configuration(laurel: &Path, configuration: &Path) -> String {
    let (laurel, configuration) = (laurel.display(), configuration.display());
    format!(
        "active = yes\ndirection = out\npath = {laurel}\ntype = always\nargs = --config {configuration}\nformat = string\n"
    )
}

fn laurel_configuration(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "directory = \"{directory}\"\n\n[auditlog]\nfile = \"audit.log\"\nsize = 100000000000\ngenerations = 1\n\n\
         [enrich]\npid = false\nscript = false\n"
    )
}

/// Where auditd and laurel are; the reason when they are not.
fn tools() -> Result<(PathBuf, PathBuf)> {
    let auditd = places::tool("auditd").context("auditd is not installed (tests/setup/bench.sh)")?;
    let laurel = places::target()?.join("tools/bin/laurel");
    ensure!(laurel.is_file(), "laurel is not installed in target/tools (tests/setup/bench.sh)");
    Ok((auditd, laurel))
}

/// Microseconds of CPU an event that was delivered, kauditd included and alone.
fn per_event(storm: &Storm) -> (f64, f64) {
    let Spent { program_ns, kauditd_ns } = storm.spent;
    let events = storm.delivered.max(1) as f64 * 1000.0;
    ((program_ns + kauditd_ns) as f64 / events, kauditd_ns as f64 / events)
}

const NAME: &str = "agent CPU per event, audit to a JSON file";
const TARGET: &str = "at most 1/10 of auditd + laurel";

pub fn figures(verdicts: u64) -> Result<Vec<Figure>> {
    let (auditd, laurel) = match tools() {
        Ok(tools) => tools,
        Err(error) => return Ok(vec![Figure::not_measured(NAME, TARGET, format!("{error:#}"))]),
    };
    let _backlog = Backlog::set(BACKLOG)?;
    let machine = Idleness::now();
    let (mut ours, mut theirs, mut peaks) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..REPETITIONS {
        let mut agent = Agent::start()?;
        let storm = agent.storm(verdicts)?;
        ours.push(agent.finish(storm)?);
        let (storm, peak) = Daemon::start(&auditd, &laurel)?.storm(verdicts)?;
        theirs.push(storm);
        peaks.push(peak);
    }
    let busy = machine.busy_since();
    let whole = |storms: &[Storm]| storms.iter().map(|storm| per_event(storm).0).collect::<Vec<f64>>();
    let kernel = |storms: &[Storm]| spread(&storms.iter().map(|storm| per_event(storm).1).collect::<Vec<f64>>(), 2);
    let ratios: Vec<f64> = whole(&ours).iter().zip(whole(&theirs)).map(|(ours, theirs)| theirs / ours).collect();
    let ratio = median(ratios.clone());
    let delivered =
        |storms: &[Storm]| storms.iter().map(|storm| storm.delivered.to_string()).collect::<Vec<_>>().join(", ");
    let waits = |storms: &[Storm]| {
        spread(&storms.iter().map(|storm| storm.cost.elapsed_ns_per_call() / 1000.0).collect::<Vec<f64>>(), 1)
    };
    Ok(vec![
        Figure::judged(
            NAME,
            TARGET,
            format!("1/{ratio:.1}"),
            ratio >= 10.0,
            format!(
                "{verdicts} verdicts x {REPETITIONS} in turn, kauditd on both sides, its queue {BACKLOG}; ratios {}; host \
                 {busy:.0} % busy",
                spread(&ratios, 1)
            ),
        ),
        Figure::stated(
            "  seclog-agent",
            format!("{} us", spread(&whole(&ours), 2)),
            format!(
                "of which kauditd {}; delivered {}; the caller's call took {} us",
                kernel(&ours),
                delivered(&ours),
                waits(&ours)
            ),
        ),
        Figure::stated(
            "  auditd + laurel",
            format!("{} us", spread(&whole(&theirs), 2)),
            format!(
                "of which kauditd {}; delivered {}; the caller's call took {} us",
                kernel(&theirs),
                delivered(&theirs),
                waits(&theirs)
            ),
        ),
        Figure::stated(
            "  memory of auditd + laurel in the storm",
            mib(peaks.into_iter().max().unwrap_or(0)),
            "MiB resident at most, both together",
        ),
    ])
}
