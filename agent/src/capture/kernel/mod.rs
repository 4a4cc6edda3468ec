//! The kernel programs: loaded, attached by trying, read through two rings.

mod decode;
mod load;
mod offsets;

pub use decode::{DecodeError, KernelVerdict, Record, decode};
pub use load::{KernelCapture, LoadError, ProgramCounters, VerdictHook};
