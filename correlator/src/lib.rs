//! The correlator: joins who asked (audit records of the kube-apiserver) with what ran (records of the nodes).
//!
//! [`serve`] takes both as they happen, [`replay`] reads them from files; the [`join`] is the same.

pub mod audit;
pub mod intake;
pub mod join;
pub mod outlet;
pub mod replay;
pub mod serve;
mod timestamp;

pub use timestamp::Timestamp;
