//! The join: who asked, and what ran, as sessions.
//!
//! A state machine without clock and I/O: records, watermarks and the time of day come in as [`Input`], revisions of
//! sessions come out. Facts merge so that their order does not matter; sessions are a function of the facts of one pod,
//! computed anew when something about it changed. So the same input in any order ends in the same sessions.
//!
//! Bounds: what is finished is let go after [`Config::horizon_ns`], and every collection has a cap. What a cap turned
//! away is counted in [`Counters`].

mod ask;
mod askers;
mod attempt;
pub mod attic;
mod audit_side;
mod checks;
mod component;
mod concluded;
mod config;
mod deeds;
mod evaluate;
pub mod finding;
mod fit;
mod forced;
mod identifiers;
mod ids;
mod input;
mod knowledge;
mod leases;
mod machine;
mod marking;
mod masked;
mod matching;
mod naming;
mod node_side;
mod notes;
mod place;
mod recurring;
mod release;
mod root;
mod scope;
pub mod session;
mod skew;
mod spo;
mod story;
mod telling;

pub use config::{Config, DEFAULT_MEMORY, REQUEST_BYTES, ROOT_BYTES};
pub use input::{Input, Route, Source};
pub use machine::Join;

/// What came in and what became of it, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    pub node_records: u64,
    /// Names of containers that came after records of them.
    pub amendments: u64,
    /// Lines of SPO's JSON enricher.
    pub spo_lines: u64,
    /// Records that belong to no session root.
    pub outside_roots: u64,
    pub audit_events: u64,
    pub repeated_audit_events: u64,
    pub revisions: u64,
    /// Probe roots that were let go, or are still held.
    pub probes: u64,
    /// News of roots that were retired or let go, and of requests that were let go.
    pub late: u64,
    /// Turned away because the join was full.
    pub refused_requests: u64,
    pub refused_roots: u64,
    pub refused_pods: u64,
    /// Findings that nobody took.
    pub findings_not_kept: u64,
    /// Let go although they had not ended.
    pub given_up: u64,
    /// Times that the programs of a session were put in the attic.
    pub put_away: u64,
    pub attic_failures: u64,
    /// Lists of programs that were let go because neither memory nor attic had room.
    pub cut: u64,
}
