//! Audit records by netlink multicast.
//!
//! Read-only by construction: the socket joins the multicast group and never sends, so auditd keeps its place and no
//! setting of the kernel's audit is touched. The kernel does not say how many records there were; what we can count is
//! what came, what could not be parsed, holes in the serial numbers and overruns of our socket.

mod gaps;
mod record;
mod socket;

pub use gaps::SerialGaps;
pub use record::{AuditRecord, AuditTime, ParseError, parse, stamp};
pub use socket::{AuditReader, AuditSocketError, start};

/// AUDIT_SECCOMP, include/uapi/linux/audit.h.
pub const AUDIT_SECCOMP: u16 = 1326;
