//! Who descends from whom, and which program a process was when something happened.
//!
//! - A process is named by (pid, start time); pids alone are reused.
//! - A process image is a process between two execs. Images and exited processes stay for a while, because audit records
//!   come later than the events they belong to.
//! - A child belongs to its fork creator, whatever its parent becomes.
//! - A session root is the first exec inside a container by a process whose creators lead out of it; its descendants
//!   inherit it at fork, wherever they move.

mod attempts;
mod entry;
mod event;
mod processes;
mod snapshot;

pub use attempts::Attempts;
pub use entry::Entry;
pub use event::{Argv, Environment, Event, EventKind, KernelRoot, Task};
pub use processes::{Applied, Image, Origin, Process, ProcessKey, Processes, Root};
pub use snapshot::read_proc;
