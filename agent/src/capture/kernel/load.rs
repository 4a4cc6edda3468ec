//! Loading and attaching, by trying; the counters; the rings.
//!
//! In two steps, so that the start misses nothing: lineage first, its ring filling while /proc is read; then the
//! processes that were there already are told to the programs, and verdicts are hooked.

use std::{
    os::fd::{AsFd as _, AsRawFd as _},
    path::Path,
    sync::Arc,
};

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{Array, CgroupArray, HashMap, MapData, MapError, PerCpuArray, ProgramArray, RingBuf},
    programs::{FEntry, KProbe, Program, ProgramFd, RawTracePoint},
};
use clap::ValueEnum;
use seclog_abi::{ABSENT, Known, Offsets, Settings, WANTED_MAX, Wanted, program, root_state};
use seclog_proto::v1::HookStatus;
use thiserror::Error;

use super::{
    connections::KernelConnections,
    info,
    losses::KernelLosses,
    offsets,
    overflow::{self, OverflowMaps, VerdictOverflow},
    scope::Scope,
};
use crate::{
    capture::{active, inactive},
    container::V1,
    lineage::{ProcessKey, Root},
    memory,
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/seclog.bpf.o"));

const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

/// How to see verdicts from eBPF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum VerdictHook {
    /// fentry, else kprobe, else none.
    #[default]
    Auto,
    Fentry,
    Kprobe,
    /// Audit alone.
    None,
}

/// What the programs are told.
#[derive(Clone, Debug)]
pub struct Options {
    pub hook: VerdictHook,
    pub verdict_ring_bytes: u32,
    pub lineage_ring_bytes: u32,
    /// Room in the kernel's own memory of processes that matter.
    pub kernel_processes: u32,
    /// Of the host, and of the runtime service.
    pub host_mount_namespaces: Vec<u64>,
    pub scope: Scope,
    /// The v1 hierarchy that tells containers apart; `None`: the v2 hierarchy.
    pub v1: Option<V1>,
    /// Names of environment variables looked for at session roots; at most [`WANTED_MAX`].
    pub wanted: Vec<String>,
}

#[derive(Debug, Error)]
pub enum LoadError {
    #[error("the kernel's types cannot be read from {BTF_PATH} ({0}): the kernel needs CONFIG_DEBUG_INFO_BTF")]
    Btf(String),
    #[error("the kernel programs cannot be loaded: {0}. They need CAP_BPF and CAP_PERFMON (or CAP_SYS_ADMIN)")]
    Load(String),
    #[error("the kernel programs' object lacks {0}")]
    Incomplete(&'static str),
}

/// The running programs, their rings and counters.
pub struct KernelCapture {
    /// Keeps programs and links alive.
    ebpf: Ebpf,
    pub lineage: RingBuf<MapData>,
    /// `None` where no hook sees verdicts: an unused ring takes its room twice.
    pub verdicts: Option<RingBuf<MapData>>,
    counters: Arc<PerCpuArray<MapData, CountersValue>>,
    processes: HashMap<MapData, u32, KnownValue>,
    namespaces: HashMap<MapData, u32, u8>,
    ready: Array<MapData, u32>,
    overflow: OverflowMaps,
    scope: Scope,
    hook: VerdictHook,
    /// Whether the connection counter can find what it needs.
    tells_sockets: bool,
    pub hooks: Vec<HookStatus>,
    /// Programs that were taken off: what the kernel counted of them counts on.
    taken_off: Vec<(&'static str, ProgramFd)>,
}

/// Sums over CPUs for one program. `seen = submitted + aggregated + dropped`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramCounters {
    pub seen: u64,
    pub submitted: u64,
    pub aggregated: u64,
    pub dropped: u64,
    pub filtered: u64,
    pub process_map_full: u64,
    pub recursion_misses: u64,
    pub verified_instructions: u64,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct CountersValue(pub(super) seclog_abi::Counters);
// SAFETY: Counters is plain data (seclog_abi::Plain).
unsafe impl aya::Pod for CountersValue {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct KnownValue(Known);
// SAFETY: Known is plain data (seclog_abi::Plain).
unsafe impl aya::Pod for KnownValue {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct SettingsValue(Settings);
// SAFETY: Settings is plain data (seclog_abi::Plain).
unsafe impl aya::Pod for SettingsValue {}

/// Lineage programs, in the order they are attached: exec and exit before fork, so that no process is known whose end
/// would be missed.
pub(super) const LINEAGE: [(&str, u32); 5] = [
    ("sched_process_exit", program::EXIT),
    ("sched_process_exec", program::EXEC),
    ("sched_process_fork", program::FORK),
    ("cgroup_mkdir", program::CGROUP_MKDIR),
    ("cgroup_attach_task", program::CGROUP_ATTACH),
];

/// Counts connections for streams.
const CONNECTIONS: &str = "inet_sock_set_state";

/// The two ways in of the verdict program; one of them is attached.
const VERDICT: [&str; 2] = ["audit_seccomp_fentry", "audit_seccomp_kprobe"];

// === impl KernelCapture ===

impl std::fmt::Debug for KernelCapture {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("KernelCapture").field("hooks", &self.hooks).finish_non_exhaustive()
    }
}

impl KernelCapture {
    /// Loads the programs and attaches those of lineage. An error means that nothing of eBPF works here; a program that
    /// alone does not is told in `hooks`.
    pub fn start(options: &Options) -> Result<Self, LoadError> {
        let value = SettingsValue(settings(options)?);
        let Offsets { sock_port, sock_net, net_inum, .. } = value.0.offsets;
        let tells_sockets = ![sock_port, sock_net, net_inum].contains(&ABSENT);
        // aya would read the kernel's types for relocations; the object has none, its offsets are in SETTINGS.
        let mut ebpf = EbpfLoader::new()
            .btf(None)
            .override_global("SETTINGS", &value, true)
            .map_max_entries("LINEAGE", options.lineage_ring_bytes)
            .map_max_entries("VERDICTS", options.verdict_ring_bytes)
            .map_max_entries("PROCESSES", options.kernel_processes)
            .load(OBJECT)
            .map_err(|error| LoadError::Load(with_causes(&error)))?;
        fill_scope(&mut ebpf, &options.scope)?;
        let mut take = |name: &'static str| ebpf.take_map(name).ok_or(LoadError::Incomplete(name));
        let lineage = RingBuf::try_from(take("LINEAGE")?).map_err(load_error)?;
        let verdicts = Some(RingBuf::try_from(take("VERDICTS")?).map_err(load_error)?);
        let counters = Arc::new(PerCpuArray::try_from(take("COUNTERS")?).map_err(load_error)?);
        let processes = HashMap::try_from(take("PROCESSES")?).map_err(load_error)?;
        let namespaces = HashMap::try_from(take("NAMESPACES")?).map_err(load_error)?;
        let ready = Array::try_from(take("READY")?).map_err(load_error)?;
        let turn = Array::try_from(take("OVERFLOW_TURN")?).map_err(load_error)?;
        let mut counts = |name: &'static str| {
            overflow::counts_of(&mut ebpf, name).ok_or(LoadError::Incomplete(name))?.map_err(load_error)
        };
        let overflow = OverflowMaps::new(turn, counts("OVERFLOW_EVEN")?, counts("OVERFLOW_ODD")?);

        if let Err(reason) = set_tail(&mut ebpf) {
            tracing::warn!(reason, "session roots are reported without their environment variables");
        }
        let hooks = LINEAGE
            .iter()
            .map(|(name, _)| match attach_raw_tracepoint(&mut ebpf, name) {
                Ok(()) => active(&format!("lineage/{name}"), &remark(&ebpf, name)),
                Err(reason) => inactive(&format!("lineage/{name}"), reason),
            })
            .collect();
        let (hook, taken_off, scope) = (options.hook, Vec::new(), options.scope.clone());
        Ok(Self {
            ebpf,
            lineage,
            verdicts,
            counters,
            processes,
            namespaces,
            ready,
            overflow,
            scope,
            hook,
            tells_sockets,
            hooks,
            taken_off,
        })
    }

    /// A cgroup of this path was made anew (a service that is restarted gets its own again): its processes matter as
    /// those of the one before did.
    pub fn cgroup_made(&mut self, path: &str) {
        if self.scope.unbounded.is_some() || !self.scope.pods.iter().chain(&self.scope.others).any(|own| own == path) {
            return;
        }
        match fill_scope(&mut self.ebpf, &self.scope) {
            Ok(()) => tracing::info!(cgroup = path, "was made anew: its processes are followed"),
            Err(error) => {
                tracing::warn!(cgroup = path, %error, "was made anew, and its processes may not be followed; restart the agent")
            }
        }
    }

    /// Tells the programs of the processes that were there before them and of the mount namespaces of containers, and hooks
    /// verdicts.
    pub fn open<'a>(
        &mut self,
        rooted: impl Iterator<Item = (ProcessKey, &'a Root)>,
        namespaces: impl Iterator<Item = u64>,
    ) {
        const KEEP_EXISTING: u64 = 1; // BPF_NOEXIST: what the programs learnt meanwhile is better
        let mut refused = 0u64;
        for (key, root) in rooted {
            let known = Known {
                start_boottime_ns: key.start_boottime_ns,
                root_start_boottime_ns: root.key.start_boottime_ns,
                root_pid: root.key.pid,
                root_state: if root.key.pid == 0 { root_state::UNKNOWN } else { root_state::KNOWN },
            };
            if self.processes.insert(key.pid, KnownValue(known), KEEP_EXISTING).is_err() {
                refused += 1;
            }
        }
        if refused > 0 {
            tracing::debug!(refused, "processes that the kernel programs had learnt of already, or had no room for");
        }
        for namespace in namespaces.filter_map(|namespace| u32::try_from(namespace).ok()) {
            if let Err(error) = self.namespaces.insert(namespace, 1, 0) {
                tracing::debug!(
                    error = with_causes(&error),
                    "who enters a container from outside of the scope may not be seen"
                );
            }
        }
        if let Err(error) = self.ready.set(0, 1, 0) {
            tracing::warn!(error = with_causes(&error), "new session roots stay unknown to the kernel programs");
        }
        self.hooks.extend(attach_verdict_hook(&mut self.ebpf, self.hook));
        if !self.sees_verdicts() {
            self.verdicts = None;
        }
        // The kernel's types were read for the last time.
        memory::give_back();
    }

    /// Counts connections for streams from now on.
    pub fn count_connections(&mut self) -> Option<KernelConnections> {
        let name = format!("streams/{CONNECTIONS}");
        let (count, status) = match self.connections() {
            Ok(count) => (Some(count), active(&name, &verified(&self.ebpf, CONNECTIONS, "raw tracepoint"))),
            Err(reason) => (None, inactive(&name, reason)),
        };
        self.hooks.push(status);
        count
    }

    fn connections(&mut self) -> Result<KernelConnections, String> {
        if !self.tells_sockets {
            return Err("this kernel's BTF does not tell where a socket keeps its port and network namespace".into());
        }
        let mut take = |name: &'static str| self.ebpf.take_map(name).ok_or(format!("map {name} is not in the object"));
        let ports = Array::try_from(take("STREAM_PORTS")?).map_err(|error| with_causes(&error))?;
        let connections = PerCpuArray::try_from(take("CONNECTIONS")?).map_err(|error| with_causes(&error))?;
        attach_raw_tracepoint(&mut self.ebpf, CONNECTIONS)?;
        let program = descriptor(&self.ebpf, CONNECTIONS).ok_or("not in the object")?;
        let program = program.try_clone().map_err(|error| error.to_string())?;
        Ok(KernelConnections::new(ports, connections, program))
    }

    /// Counts what is lost of lineage, for who decides by it.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn count_losses(&self) -> Result<KernelLosses, String> {
        let programs = LINEAGE.iter().filter_map(|(name, _)| descriptor(&self.ebpf, name));
        let programs = programs.map(ProgramFd::try_clone).collect::<Result<_, _>>();
        Ok(KernelLosses::new(programs.map_err(|error| error.to_string())?, Arc::clone(&self.counters)))
    }

    /// Whether a hook on `audit_seccomp` is attached.
    pub fn sees_verdicts(&self) -> bool {
        self.hooks.iter().any(|hook| hook.active && hook.name.starts_with("verdict/"))
    }

    /// Of one of [`seclog_abi::program`], summed over CPUs. Zero when they cannot be read.
    pub fn counters(&self, program: u32) -> ProgramCounters {
        let mut sum = ProgramCounters::default();
        if let Ok(values) = self.counters.get(&program, 0) {
            for CountersValue(value) in values.iter() {
                let seclog_abi::Counters { seen, submitted, aggregated, dropped, filtered, process_map_full } = value;
                sum.seen += seen;
                sum.submitted += submitted;
                sum.aggregated += aggregated;
                sum.dropped += dropped;
                sum.filtered += filtered;
                sum.process_map_full += process_map_full;
            }
        }
        let names = LINEAGE.iter().filter(|(_, of)| *of == program).map(|(name, _)| *name);
        let verdict = VERDICT.into_iter().filter(|_| program == program::VERDICT);
        for figures in names.chain(verdict).filter_map(|name| self.figures(name)) {
            sum.recursion_misses += figures.recursion_misses;
            sum.verified_instructions += u64::from(figures.verified_instructions);
        }
        sum
    }

    /// The lineage programs together.
    pub fn lineage_counters(&self) -> ProgramCounters {
        LINEAGE.iter().map(|(_, program)| self.counters(*program)).fold(ProgramCounters::default(), |sum, one| {
            let ProgramCounters {
                seen,
                submitted,
                aggregated,
                dropped,
                filtered,
                process_map_full,
                recursion_misses,
                verified_instructions,
            } = one;
            ProgramCounters {
                seen: sum.seen + seen,
                submitted: sum.submitted + submitted,
                aggregated: sum.aggregated + aggregated,
                dropped: sum.dropped + dropped,
                filtered: sum.filtered + filtered,
                process_map_full: sum.process_map_full + process_map_full,
                recursion_misses: sum.recursion_misses + recursion_misses,
                verified_instructions: sum.verified_instructions.max(verified_instructions),
            }
        })
    }

    /// Counts of verdicts that the ring had no room for, complete by now.
    pub fn take_overflow(&mut self, now_ns: u64, ending: bool) -> Vec<VerdictOverflow> {
        let aggregated = self.counters(program::VERDICT).aggregated;
        self.overflow.take(aggregated, now_ns, ending)
    }

    /// Overflow counts that could not be read.
    pub fn unreadable_overflow(&self) -> u64 {
        self.overflow.unreadable
    }

    /// Takes every program off, verdicts first so that what explains them is in; what is in the rings stays to be read.
    pub fn close(&mut self) {
        for name in VERDICT.into_iter().chain(LINEAGE.iter().map(|(name, _)| *name)) {
            if let Some(Ok(descriptor)) = descriptor(&self.ebpf, name).map(ProgramFd::try_clone) {
                self.taken_off.push((name, descriptor));
            }
            let unloaded = match self.ebpf.program_mut(name) {
                Some(Program::FEntry(program)) => program.unload(),
                Some(Program::KProbe(program)) => program.unload(),
                Some(Program::RawTracePoint(program)) => program.unload(),
                _ => Ok(()),
            };
            // Not loaded is what the hook that is not in use answers, and every one at the second time.
            if let Err(error) = unloaded {
                tracing::debug!(program = name, error = with_causes(&error), "not taken off");
            }
        }
    }

    fn figures(&self, name: &str) -> Option<info::ProgramFigures> {
        let taken_off = self.taken_off.iter().find(|(of, _)| *of == name).map(|(_, descriptor)| descriptor);
        info::figures(descriptor(&self.ebpf, name).or(taken_off)?.as_fd())
    }
}

fn descriptor<'a>(ebpf: &'a Ebpf, name: &str) -> Option<&'a ProgramFd> {
    match ebpf.program(name)? {
        Program::RawTracePoint(program) => program.fd().ok(),
        Program::FEntry(program) => program.fd().ok(),
        Program::KProbe(program) => program.fd().ok(),
        _ => None,
    }
}

/// What is told of an attached lineage program.
fn remark(ebpf: &Ebpf, name: &str) -> String {
    let remark = verified(ebpf, name, "raw tracepoint");
    if name == "sched_process_exec" {
        verified(ebpf, "exec_environment", &format!("{remark}; environment"))
    } else {
        remark
    }
}

/// A remark with what the verifier had to do, where the kernel says it (5.16).
fn verified(ebpf: &Ebpf, name: &str, remark: &str) -> String {
    match descriptor(ebpf, name).and_then(|descriptor| info::figures(descriptor.as_fd())) {
        Some(info::ProgramFigures { verified_instructions, .. }) if verified_instructions > 0 => {
            format!("{remark}, {verified_instructions} instructions verified")
        }
        _ => remark.to_owned(),
    }
}

fn load_error(error: MapError) -> LoadError {
    LoadError::Load(with_causes(&error))
}

fn settings(options: &Options) -> Result<Settings, LoadError> {
    let btf = btf_rs::Btf::from_file(BTF_PATH).map_err(|error| LoadError::Btf(error.to_string()))?;
    let (offsets, missing) = offsets::find(&btf, options.v1.as_ref().map(|v1| v1.controller));
    if !missing.is_empty() {
        tracing::warn!(?missing, "this kernel's BTF lacks fields; what they tell stays unknown");
    }
    let scope = &options.scope;
    let bounded = scope.unbounded.is_none();
    let mut wanted = [Wanted::NONE; WANTED_MAX];
    for (index, name) in options.wanted.iter().enumerate() {
        match (wanted.get_mut(index), Wanted::new(name)) {
            (Some(slot), Some(value)) => *slot = value,
            _ => tracing::warn!(
                name,
                "this environment variable is not looked for: at most {WANTED_MAX} names of at most 31 bytes are"
            ),
        }
    }
    Ok(Settings {
        offsets,
        host_mount_namespaces: [0, 1].map(|index| {
            options.host_mount_namespaces.get(index).and_then(|inode| u32::try_from(*inode).ok()).unwrap_or(0)
        }),
        scope_count: if bounded { (scope.pods.len() + scope.others.len()) as u32 } else { 0 },
        pod_scope_count: if bounded { scope.pods.len() as u32 } else { 0 },
        cgroup_hierarchy: options.v1.as_ref().map_or(0, |v1| v1.number),
        wanted,
    })
}

fn fill_scope(ebpf: &mut Ebpf, scope: &Scope) -> Result<(), LoadError> {
    if scope.unbounded.is_some() {
        return Ok(());
    }
    let map = ebpf.map_mut("SCOPE").ok_or(LoadError::Incomplete("SCOPE"))?;
    let mut map = CgroupArray::try_from(map).map_err(load_error)?;
    for (index, path) in scope.pods.iter().chain(&scope.others).enumerate() {
        let directory = scope.root.join(path.trim_start_matches('/'));
        let cgroup = match std::fs::File::open(&directory) {
            Ok(cgroup) => cgroup,
            // Between two lives of its service.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(LoadError::Load(format!("{}: {error}", directory.display()))),
        };
        map.set(index as u32, cgroup.as_fd().as_raw_fd(), 0).map_err(load_error)?;
    }
    Ok(())
}

/// Puts the second half of the exec program where the first half jumps to.
fn set_tail(ebpf: &mut Ebpf) -> Result<(), String> {
    let program = raw_tracepoint(ebpf, "exec_environment")?;
    program.load().map_err(|error| with_causes(&error))?;
    let descriptor =
        program.fd().and_then(|fd| fd.try_clone().map_err(Into::into)).map_err(|error| with_causes(&error))?;
    let map = ebpf.map_mut("TAILS").ok_or("map TAILS is not in the object")?;
    let mut tails = ProgramArray::try_from(map).map_err(|error| with_causes(&error))?;
    tails.set(0, &descriptor, 0).map_err(|error| with_causes(&error))
}

fn raw_tracepoint<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut RawTracePoint, String> {
    ebpf.program_mut(name).ok_or("not in the object")?.try_into().map_err(|error| with_causes(&error))
}

fn attach_raw_tracepoint(ebpf: &mut Ebpf, name: &'static str) -> Result<(), String> {
    let program = raw_tracepoint(ebpf, name)?;
    program.load().map_err(|error| with_causes(&error))?;
    program.attach(name).map_err(|error| with_causes(&error))?;
    Ok(())
}

/// The ways to hook `audit_seccomp`, in the order of preference.
fn attach_verdict_hook(ebpf: &mut Ebpf, wanted: VerdictHook) -> Vec<HookStatus> {
    type Attach = fn(&mut Ebpf) -> Result<(), String>;
    let ways: [(&str, &str, VerdictHook, Attach); 2] = [
        ("verdict/fentry", "audit_seccomp_fentry", VerdictHook::Fentry, attach_fentry),
        ("verdict/kprobe", "audit_seccomp_kprobe", VerdictHook::Kprobe, attach_kprobe),
    ];
    let mut hooks = Vec::new();
    let mut attached = None;
    for (name, program, way, attach) in ways {
        if wanted != VerdictHook::Auto && wanted != way {
            hooks.push(inactive(name, "not wanted by configuration"));
        } else if let Some(first) = attached {
            hooks.push(inactive(name, format!("not needed: {first} is attached")));
        } else {
            match attach(ebpf) {
                Ok(()) => {
                    attached = Some(name);
                    hooks.push(active(name, &verified(ebpf, program, "audit_seccomp")));
                }
                Err(reason) => hooks.push(inactive(name, reason)),
            }
        }
    }
    hooks
}

fn attach_fentry(ebpf: &mut Ebpf) -> Result<(), String> {
    let btf = Btf::from_sys_fs().map_err(|error| with_causes(&error))?;
    let program = ebpf.program_mut("audit_seccomp_fentry").ok_or("not in the object")?;
    let program: &mut FEntry = program.try_into().map_err(|error| with_causes(&error))?;
    program.load("audit_seccomp", &btf).map_err(|error| with_causes(&error))?;
    program.attach().map_err(|error| with_causes(&error))?;
    Ok(())
}

fn attach_kprobe(ebpf: &mut Ebpf) -> Result<(), String> {
    let kprobes = [
        "/sys/bus/event_source/devices/kprobe/type",
        "/sys/kernel/tracing/kprobe_events",
        "/sys/kernel/debug/tracing/kprobe_events",
    ];
    if !kprobes.iter().any(|path| Path::new(path).exists()) {
        return Err("this kernel has no kprobes (no kprobe event source, no kprobe_events in tracefs)".into());
    }
    let program = ebpf.program_mut("audit_seccomp_kprobe").ok_or("not in the object")?;
    let program: &mut KProbe = program.try_into().map_err(|error| with_causes(&error))?;
    program.load().map_err(|error| with_causes(&error))?;
    program.attach("audit_seccomp", 0).map_err(|error| with_causes(&error))?;
    Ok(())
}

/// An error with what caused it, on one line: the verifier's log can be long, its last lines tell.
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    let text = text.replace("Verifier output:", "");
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [] => text,
        [first, rest @ ..] if rest.len() > 4 => format!("{first} … {}", rest[rest.len() - 4..].join("; ")),
        all => all.join("; "),
    }
}
