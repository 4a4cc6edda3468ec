//! What is measured, and how; one room a figure. docs/performance.md explains each.
//!
//! ```text
//!   figure       a line of the report
//!   processor    who runs where, CPU time of threads
//!   memory       resident sets and a memory cgroup
//!   group        a program whose CPU time is counted whole
//!
//!   synthetic    ring records and audit lines of a session, as bytes
//!     ring         decode, pin, attribute; the audit path beside it
//!     fusing       two streams with delay and loss
//!
//!   audit_state  the host's audit settings, and that they come back
//!   generator    verdicts at full speed
//!     workload     what a logged call costs its caller; programs what the kernel programs cost
//!     instructions the same in QEMU, with the hook, in instructions
//!     storm        the agent in a storm, and idle
//!     peer         auditd and laurel in the same storm
//! ```

pub mod audit_state;
pub mod figure;
pub mod fusing;
pub mod generator;
pub mod group;
pub mod instructions;
pub mod memory;
pub mod peer;
pub mod processor;
pub mod programs;
pub mod ring;
pub mod storm;
pub mod synthetic;
pub mod workload;

/// The middle one; of an even number, the lower of the two. 0 of none.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// `median (least–most)`.
pub fn spread(values: &[f64], digits: usize) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let most = values.iter().copied().fold(0.0, f64::max);
    format!("{:.digits$} ({least:.digits$}–{most:.digits$})", median(values.to_vec()))
}
