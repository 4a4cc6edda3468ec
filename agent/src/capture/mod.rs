//! What the kernel tells: seccomp verdicts and the life of processes from eBPF, audit records from netlink.
//!
//! Each source is tried, and its status kept with the reason where it does not work here. Nothing is interpreted in this
//! room beyond decoding.

pub mod audit;
pub mod kernel;

use seclog_proto::v1::HookStatus;

/// A way to see events that works here.
pub fn active(name: &str, remark: &str) -> HookStatus {
    HookStatus { name: name.into(), active: true, reason: remark.into() }
}

/// A way to see events that does not work here, and why.
pub fn inactive(name: &str, reason: impl std::fmt::Display) -> HookStatus {
    HookStatus { name: name.into(), active: false, reason: reason.to_string() }
}
