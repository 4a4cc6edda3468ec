//! The correlator: joins who asked (audit records of the kube-apiserver) with what ran (records of the nodes).
//!
//! [`serve`] takes both as they happen, [`replay`] reads them from files; the [`join`] is the same.

pub mod audit;
pub mod console;
pub mod enrol;
pub mod export;
pub mod intake;
pub mod join;
mod joining;
pub mod journal;
pub mod listen;
pub mod outlet;
mod pace;
mod rejoin;
pub mod replay;
pub mod serve;
pub mod spo;
pub mod store;
pub mod telemetry;
mod timestamp;

pub use timestamp::Timestamp;
