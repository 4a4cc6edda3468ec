//! `seclog-agent check --install`: for nodes without a Machine Config Operator.
//!
//! In this order, so that no moment leaves the node worse than before:
//!
//! 1. what would be written is judged together with what is there; an error that it would cause stops everything;
//! 2. what it replaces is copied to a backup;
//! 3. the profile is written before the drop-in that names it, each to a temporary file outside crio.conf.d (CRI-O reads
//!    every name in there) that is synced and renamed;
//! 4. CRI-O is told to reload (SIGHUP) and asked for its configuration until it has the profile;
//! 5. if it does not, the backup comes back and CRI-O reloads once more.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;

use crate::{
    check::{self, CheckArgs},
    facts::{ConfigFile, Content, Live, Meta, NodeFacts, ProfileFile},
    finding::{Finding, Severity},
    judge::{Expect, judge},
    merge::Merged,
    node::{self, Root, RootError},
    profile::{self, EXEC, PROCESS},
    render::{DROPIN, PRIVILEGED_PROFILE, WORKLOAD_PROFILE},
};

#[derive(Debug, Clone, Default, Args)]
pub struct InstallArgs {
    /// Write drop-in and profile, reload CRI-O and verify: for nodes that no Machine Config Operator manages.
    #[arg(long)]
    pub install: bool,
    /// With --install: say what would be written, and write nothing.
    #[arg(long, requires = "install")]
    pub dry_run: bool,
    /// With --install: where what is replaced is kept, below the root.
    #[arg(long, requires = "install", value_name = "DIR", default_value = "/var/lib/seclog/backup")]
    pub backup: PathBuf,
}

/// Why nothing was installed, or why it was taken back.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    #[error(transparent)]
    Root(#[from] RootError),
    #[error("CRI-O's version is not known, and what to write depends on it; give --crio-version")]
    NoVersion,
    #[error(
        "OpenShift's Machine Config Operator manages this node and would take the files back; use `seclog-correlator render nodepool`"
    )]
    Managed,
    #[error("nothing was written: it would cause {}: {} ({}); correct that first", .0.code, .0.what, .0.consequence)]
    WouldBreak(Box<Finding>),
    #[error("cannot write {path}: {source}; nothing was left changed")]
    Write { path: String, source: io::Error },
    #[error("CRI-O did not take the configuration ({reason}); the files of before are back{}", match .rollback { Some(e) => format!(", but {e}"), None => String::new() })]
    RolledBack { reason: String, rollback: Option<String> },
    #[error("the built-in profile data cannot be read: {0}; this is a fault of seclog")]
    Data(#[from] serde_json::Error),
}

/// CRI-O as the installation needs it; a test has its own.
pub trait Daemon {
    /// Makes it read its files again.
    fn reload(&mut self) -> Result<(), String>;
    /// Its live configuration.
    fn config(&mut self) -> Result<String, String>;
}

/// What is to be written, in the order of writing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub files: Vec<(&'static str, String)>,
    /// What `GET /config` must say afterwards.
    pub expected: Vec<(&'static str, &'static str)>,
}

/// What a node of these facts gets, if it would do it no harm.
pub fn plan(facts: &NodeFacts, expect: Option<Expect>) -> Result<Plan, InstallError> {
    let version = facts.version.best().ok_or(InstallError::NoVersion)?;
    let expect = expect.unwrap_or_else(|| Expect::of_version(Some(version)));
    let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let mut plan = Plan { files: Vec::new(), expected: Vec::new() };
    let mut dropin = String::from("# Written by seclog-agent check --install.\n[crio.runtime]\n");
    if expect.privileged && version.has_privileged_profile() {
        plan.files.push((PRIVILEGED_PROFILE, profile::privileged(&names(EXEC))?.json));
        plan.expected.push(("privileged_seccomp_profile", PRIVILEGED_PROFILE));
    }
    if expect.workload {
        plan.files.push((WORKLOAD_PROFILE, profile::workload(version, &names(PROCESS))?.json));
        plan.expected.push(("seccomp_profile", WORKLOAD_PROFILE));
    }
    for (key, path) in &plan.expected {
        dropin.push_str(&format!("{key} = \"{path}\"\n"));
    }
    plan.files.push((DROPIN, dropin));
    let before = judge(facts, Some(expect));
    let caused = judge(&with(facts, &plan), Some(expect)).into_iter().find(|finding| {
        finding.severity == Severity::Error
            && !before.iter().any(|b| b.code == finding.code && b.place == finding.place)
    });
    match caused {
        Some(finding) => Err(InstallError::WouldBreak(Box::new(finding))),
        None => Ok(plan),
    }
}

/// The facts as they would be.
fn with(facts: &NodeFacts, plan: &Plan) -> NodeFacts {
    let mut facts = facts.clone();
    // Judged by files: CRI-O's word is about before.
    facts.live = Live::default();
    let meta = Meta { mode: Some(0o644), uid: Some(0), ..Meta::default() };
    for (path, text) in &plan.files {
        let content = Content::Text(text.clone());
        if *path == DROPIN {
            facts.config.retain(|f| f.path != *path);
            let at = facts
                .config
                .partition_point(|f| !f.path.starts_with("/etc/crio/crio.conf.d/") || f.path.as_str() < *path);
            facts.config.insert(at, ConfigFile { path: (*path).into(), content, meta: meta.clone() });
        } else {
            facts.profiles.insert((*path).into(), ProfileFile { content, meta: meta.clone() });
        }
    }
    facts
}

/// Carries out the plan. `wait`: how long CRI-O may take to have the configuration.
pub fn install(
    root: &Path,
    backup: &Path,
    plan: &Plan,
    daemon: &mut dyn Daemon,
    wait: Duration,
) -> Result<(), InstallError> {
    let failed = |path: &str| {
        let path = path.to_owned();
        move |source| InstallError::Write { path, source }
    };
    let mut saved: Vec<(PathBuf, Option<Vec<u8>>)> = Vec::new();
    for (path, _) in &plan.files {
        let target = below(root, Path::new(path));
        let before = match fs::read(&target) {
            Ok(bytes) => Some(bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(failed(path)(source)),
        };
        if let Some(bytes) = &before {
            let copy = below(root, backup).join(path.trim_start_matches('/').replace('/', "_"));
            write_atomically(&copy, bytes).map_err(failed(&copy.display().to_string()))?;
        }
        saved.push((target, before));
    }
    for (path, text) in &plan.files {
        if let Err(source) = write_atomically(&below(root, Path::new(path)), text.as_bytes()) {
            let _ = restore(&saved);
            return Err(failed(path)(source));
        }
    }
    let taken = daemon.reload().and_then(|()| verify(daemon, plan, wait));
    let Err(reason) = taken else { return Ok(()) };
    let rollback = restore(&saved).map_err(|e| format!("not all of them: {e}")).and_then(|()| daemon.reload());
    Err(InstallError::RolledBack { reason, rollback: rollback.err() })
}

fn verify(daemon: &mut dyn Daemon, plan: &Plan, wait: Duration) -> Result<(), String> {
    let until = Instant::now() + wait;
    loop {
        let said = daemon.config().and_then(|text| {
            let live = Merged::of([("GET /config", text.as_str())], None);
            let differs = plan.expected.iter().find(|(key, path)| live.runtime_text(key).map(|(v, _)| v) != Some(path));
            match differs {
                Some((key, path)) => Err(format!("its configuration does not have {key} = {path:?}")),
                None => Ok(()),
            }
        });
        match said {
            Ok(()) => return Ok(()),
            Err(reason) if Instant::now() >= until => return Err(reason),
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Drop-in first: the profile it names goes last.
fn restore(saved: &[(PathBuf, Option<Vec<u8>>)]) -> io::Result<()> {
    let mut result = Ok(());
    for (path, before) in saved.iter().rev() {
        let done = match before {
            Some(bytes) => write_atomically(path, bytes),
            None => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        result = result.and(done);
    }
    result
}

/// The temporary file lies beside the directory, not in it: CRI-O reads every name in crio.conf.d.
fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().ok_or_else(|| io::Error::other("the path has no directory"))?;
    fs::create_dir_all(dir)?;
    let beside = dir.parent().unwrap_or(dir);
    let temporary = beside.join(format!(".seclog-install-{}", std::process::id()));
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(0o644).open(&temporary)?;
        file.write_all(bytes)?;
        // Whatever the umask: CRI-O and the check read it.
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(dir)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// The crio of this machine.
struct Crio<'a> {
    root: &'a Root,
    socket: Option<&'a Path>,
}

impl Daemon for Crio<'_> {
    fn reload(&mut self) -> Result<(), String> {
        let pid = node::crio_pid(self.root).ok_or("no process named crio below /proc")?;
        let pid = i32::try_from(pid).map(nix::unistd::Pid::from_raw).map_err(|e| e.to_string())?;
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).map_err(|e| format!("SIGHUP to crio: {e}"))
    }

    fn config(&mut self) -> Result<String, String> {
        match node::live(self.root, self.socket) {
            Live::Config(text) => Ok(text),
            Live::Unknown(reason) => Err(reason),
        }
    }
}

/// Written by the Machine Config Daemon on every node it manages.
const MANAGED_MARKS: [&str; 2] = ["/etc/machine-config-daemon/currentconfig", "/etc/mco/proxy.env"];

pub(crate) fn command(args: &CheckArgs) -> ExitCode {
    match run(args) {
        Ok(()) => {
            let report = check::run(&args.sources(), args.expect.expect());
            report.map_or_else(|error| check::failed(&error), |report| check::print(&report, args.format))
        }
        Err(error) => check::failed(&error),
    }
}

fn run(args: &CheckArgs) -> Result<(), InstallError> {
    let root = Root::open(&args.root)?;
    if MANAGED_MARKS.iter().any(|mark| root.exists(mark)) {
        return Err(InstallError::Managed);
    }
    let facts = node::gather(&args.sources())?;
    let plan = plan(&facts, args.expect.expect())?;
    for (path, text) in &plan.files {
        eprintln!(
            "seclog check: {} {path} ({} bytes)",
            if args.install.dry_run { "would write" } else { "writing" },
            text.len()
        );
    }
    if args.install.dry_run {
        return Ok(());
    }
    let mut crio = Crio { root: &root, socket: args.crio_socket.as_deref() };
    install(&args.root, &args.install.backup, &plan, &mut crio, Duration::from_secs(15))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{facts::VersionFacts, version::CrioVersion};

    /// A CRI-O that reads the root's drop-in on reload, or refuses to.
    struct Fake<'a> {
        root: &'a Path,
        obeys: bool,
        config: String,
        reloads: u32,
    }

    impl Daemon for Fake<'_> {
        fn reload(&mut self) -> Result<(), String> {
            self.reloads += 1;
            let temporary: Vec<_> =
                fs::read_dir(self.root.join("etc/crio/crio.conf.d")).unwrap().map(|e| e.unwrap().file_name()).collect();
            assert!(temporary.iter().all(|n| !n.to_string_lossy().contains("install")), "{temporary:?}");
            if self.obeys {
                self.config = fs::read_to_string(below(self.root, Path::new(DROPIN))).unwrap_or_default();
            }
            Ok(())
        }

        fn config(&mut self) -> Result<String, String> {
            Ok(self.config.clone())
        }
    }

    fn facts(minor: u32) -> NodeFacts {
        let meta = Meta::default();
        let content = Content::Text("[crio.runtime]\n".into());
        NodeFacts {
            version: VersionFacts { given: Some(CrioVersion { minor }), ..VersionFacts::default() },
            config: vec![ConfigFile { path: "/etc/crio/crio.conf.d/10-x".into(), content, meta }],
            ..NodeFacts::default()
        }
    }

    fn backup() -> PathBuf {
        "/var/lib/seclog/backup".into()
    }

    #[test]
    fn what_is_written_is_taken_up_and_what_was_there_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let dropin = below(dir.path(), Path::new(DROPIN));
        fs::create_dir_all(dropin.parent().unwrap()).unwrap();
        fs::write(&dropin, "# mine\n").unwrap();
        let plan = plan(&facts(33), None).unwrap();
        let mut crio = Fake { root: dir.path(), obeys: true, config: String::new(), reloads: 0 };
        install(dir.path(), &backup(), &plan, &mut crio, Duration::ZERO).unwrap();
        assert_eq!(crio.reloads, 1);
        assert!(fs::read_to_string(&dropin).unwrap().contains(PRIVILEGED_PROFILE));
        assert!(below(dir.path(), Path::new(PRIVILEGED_PROFILE)).exists());
        let kept = below(dir.path(), &backup()).join("etc_crio_crio.conf.d_60-seclog-audit.conf");
        assert_eq!(fs::read_to_string(kept).unwrap(), "# mine\n");
    }

    #[test]
    fn a_crio_that_does_not_take_it_up_gets_its_files_back() {
        let dir = tempfile::tempdir().unwrap();
        let dropin = below(dir.path(), Path::new(DROPIN));
        fs::create_dir_all(dropin.parent().unwrap()).unwrap();
        fs::write(&dropin, "# mine\n").unwrap();
        let plan = plan(&facts(33), None).unwrap();
        let mut crio = Fake { root: dir.path(), obeys: false, config: String::new(), reloads: 0 };
        let error = install(dir.path(), &backup(), &plan, &mut crio, Duration::ZERO).unwrap_err();
        assert!(matches!(error, InstallError::RolledBack { rollback: None, .. }), "{error}");
        assert_eq!(crio.reloads, 2);
        assert_eq!(fs::read_to_string(&dropin).unwrap(), "# mine\n");
        assert!(!below(dir.path(), Path::new(PRIVILEGED_PROFILE)).exists());
    }

    #[test]
    fn a_drop_in_that_would_be_ineffective_is_not_written() {
        let mut facts = facts(33);
        let content = Content::Text("[crio.runtime]\nprivileged_seccomp_profile = \"\"\n".into());
        facts.config.push(ConfigFile { path: "/etc/crio/crio.conf.d/99".into(), content, meta: Meta::default() });
        let error = plan(&facts, None).unwrap_err();
        assert!(error.to_string().contains("dropin-overridden"), "{error}");
        assert!(matches!(plan(&NodeFacts::default(), None), Err(InstallError::NoVersion)));
    }
}
