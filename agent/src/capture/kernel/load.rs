//! Loading and attaching, by trying; the counters; the rings.

use std::path::Path;

use aya::{
    Btf, Ebpf, EbpfLoader,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::{FEntry, KProbe, RawTracePoint},
};
use clap::ValueEnum;
use seclog_abi::{Offsets, program};
use seclog_proto::v1::HookStatus;
use thiserror::Error;

use super::offsets;
use crate::capture::{active, inactive};

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
    /// Keeps programs, links and maps alive.
    _ebpf: Ebpf,
    pub lineage: RingBuf<MapData>,
    pub verdicts: RingBuf<MapData>,
    counters: PerCpuArray<MapData, CountersValue>,
    pub hooks: Vec<HookStatus>,
}

/// Sums over CPUs for one program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProgramCounters {
    pub seen: u64,
    pub submitted: u64,
    pub ring_full: u64,
}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct CountersValue(seclog_abi::Counters);
// SAFETY: Counters is plain data (seclog_abi::Plain).
unsafe impl aya::Pod for CountersValue {}

#[derive(Clone, Copy)]
#[repr(transparent)]
struct OffsetsValue(Offsets);
// SAFETY: Offsets is plain data (seclog_abi::Plain).
unsafe impl aya::Pod for OffsetsValue {}

// === impl KernelCapture ===

impl std::fmt::Debug for KernelCapture {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("KernelCapture").field("hooks", &self.hooks).finish_non_exhaustive()
    }
}

impl KernelCapture {
    /// Loads and attaches what this kernel allows. An error means that nothing of eBPF works here; a program that alone
    /// does not is told in `hooks`.
    pub fn start(wanted: VerdictHook, ring_bytes: u32) -> Result<Self, LoadError> {
        let offsets = {
            let btf = btf_rs::Btf::from_file(BTF_PATH).map_err(|error| LoadError::Btf(error.to_string()))?;
            let (offsets, missing) = offsets::find(&btf);
            if !missing.is_empty() {
                tracing::warn!(?missing, "this kernel's BTF lacks fields; what they tell stays unknown");
            }
            offsets
        };
        let value = OffsetsValue(offsets);
        let mut ebpf = EbpfLoader::new()
            .override_global("OFFSETS", &value, true)
            .map_max_entries("LINEAGE", ring_bytes)
            .map_max_entries("VERDICTS", ring_bytes)
            .load(OBJECT)
            .map_err(|error| LoadError::Load(with_causes(&error)))?;
        let lineage = RingBuf::try_from(ebpf.take_map("LINEAGE").ok_or(LoadError::Incomplete("map LINEAGE"))?)
            .map_err(|error| LoadError::Load(with_causes(&error)))?;
        let verdicts = RingBuf::try_from(ebpf.take_map("VERDICTS").ok_or(LoadError::Incomplete("map VERDICTS"))?)
            .map_err(|error| LoadError::Load(with_causes(&error)))?;
        let counters = PerCpuArray::try_from(ebpf.take_map("COUNTERS").ok_or(LoadError::Incomplete("map COUNTERS"))?)
            .map_err(|error| LoadError::Load(with_causes(&error)))?;

        let mut hooks = Vec::new();
        // Exec and exit before fork, so that no process is known whose end would be missed.
        for name in ["sched_process_exit", "sched_process_exec", "sched_process_fork"] {
            hooks.push(match attach_raw_tracepoint(&mut ebpf, name) {
                Ok(()) => active(&format!("lineage/{name}"), "raw tracepoint"),
                Err(reason) => inactive(&format!("lineage/{name}"), reason),
            });
        }
        hooks.extend(attach_verdict_hook(&mut ebpf, wanted));
        Ok(Self { _ebpf: ebpf, lineage, verdicts, counters, hooks })
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
                sum.seen += value.seen;
                sum.submitted += value.submitted;
                sum.ring_full += value.ring_full;
            }
        }
        sum
    }

    /// The lineage programs together.
    pub fn lineage_counters(&self) -> ProgramCounters {
        [program::FORK, program::EXEC, program::EXIT].into_iter().map(|program| self.counters(program)).fold(
            ProgramCounters::default(),
            |sum, one| ProgramCounters {
                seen: sum.seen + one.seen,
                submitted: sum.submitted + one.submitted,
                ring_full: sum.ring_full + one.ring_full,
            },
        )
    }
}

fn attach_raw_tracepoint(ebpf: &mut Ebpf, name: &'static str) -> Result<(), String> {
    let program = ebpf.program_mut(name).ok_or("not in the object")?;
    let program: &mut RawTracePoint = program.try_into().map_err(|error| with_causes(&error))?;
    program.load().map_err(|error| with_causes(&error))?;
    program.attach(name).map_err(|error| with_causes(&error))?;
    Ok(())
}

/// The ways to hook `audit_seccomp`, in the order of preference.
fn attach_verdict_hook(ebpf: &mut Ebpf, wanted: VerdictHook) -> Vec<HookStatus> {
    type Attach = fn(&mut Ebpf) -> Result<(), String>;
    let ways: [(&str, VerdictHook, Attach); 2] = [
        ("verdict/fentry", VerdictHook::Fentry, attach_fentry),
        ("verdict/kprobe", VerdictHook::Kprobe, attach_kprobe),
    ];
    let mut hooks = Vec::new();
    let mut attached = None;
    for (name, way, attach) in ways {
        if wanted != VerdictHook::Auto && wanted != way {
            hooks.push(inactive(name, "not wanted by configuration"));
        } else if let Some(first) = attached {
            hooks.push(inactive(name, format!("not needed: {first} is attached")));
        } else {
            match attach(ebpf) {
                Ok(()) => {
                    attached = Some(name);
                    hooks.push(active(name, "audit_seccomp"));
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
fn with_causes(error: &dyn std::error::Error) -> String {
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
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.as_slice() {
        [] => text,
        [first, rest @ ..] if rest.len() > 4 => format!("{first} … {}", rest[rest.len() - 4..].join("; ")),
        all => all.join("; "),
    }
}
