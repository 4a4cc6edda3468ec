//! The kernel programs: loaded, attached by trying, read through two rings.

mod connections;
mod decode;
mod info;
mod load;
mod losses;
mod offsets;
mod overflow;
mod scope;

pub use connections::KernelConnections;
pub use decode::{DecodeError, KernelVerdict, Record, decode};
pub use load::{KernelCapture, LoadError, Options, ProgramCounters, VerdictHook};
pub use losses::KernelLosses;
pub use overflow::VerdictOverflow;
pub use scope::{Scope, service_pid};
