//! The drop-in check, and the configuration that passes it: the room "check" of docs/ARCHITECTURE.md.
//!
//! A node logs seccomp verdicts only if CRI-O was told to, and CRI-O ignores in silence what it does not understand. This
//! crate holds what both sides must agree on, so that what `seclog-correlator render` writes is what `seclog-agent check`
//! wants to see:
//!
//! ```text
//!   version, options, annotations     what each CRI-O version reads
//!   tree, merge                       its files, merged as it merges them, each value with file and line
//!   profile                           the two logging profiles: reading, judging, writing
//!   facts ──► judge ──► finding       a node as plain data; the judgement, pure; stable codes
//!   spec                              a container's OCI specification
//!   node                              gathers facts: files below a root, CRI-O's socket, the kernel
//!   report, check, install            `seclog-agent check`
//!   render                            `seclog-correlator render`
//! ```

pub mod annotations;
pub mod check;
pub mod facts;
pub mod finding;
pub mod install;
pub mod judge;
pub mod merge;
pub mod node;
pub mod options;
pub mod profile;
pub mod render;
pub mod report;
pub mod spec;
pub mod tree;
pub mod version;
