//! Who descends from whom, and which program a process was when something happened.
//!
//! - A process is named by (pid, start time); pids alone are reused.
//! - A process image is a process between two execs. Images and exited processes stay for a while, because audit records
//!   come later than the events they belong to.
//! - A child belongs to its fork creator, whatever its parent becomes.
//! - A session root is the first exec inside a container by a process whose creators lead out of it; its descendants
//!   inherit it at fork, wherever they move.

mod attempts;
mod comm;
mod entry;
mod event;
mod gaps;
mod kept;
mod listening;
mod processes;
mod reconcile;
mod runtime;
mod snapshot;
mod standing;
mod streams;

pub use attempts::{Attempts, Outcome};
pub use comm::Comm;
pub use entry::Entry;
pub use event::{Argv, Environment, Event, EventKind, KernelRoot, RecordOrigin, Task};
pub use gaps::{Gaps, LossCount};
pub use kept::{Keeping, Kept, Remembered};
pub use listening::Listening;
pub use processes::{Applied, Image, Origin, Process, ProcessKey, Processes, Root};
pub use reconcile::Reconcile;
pub use runtime::{Role, Runtime};
pub use snapshot::read_proc;
pub use streams::{Connection, ConnectionCount, Counted, Streams};
