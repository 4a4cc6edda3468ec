//! A moment on the wall clock.

use seclog_proto::rfc3339;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Nanoseconds since 1970; RFC 3339 text in JSON.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(#[serde(with = "rfc3339")] pub u64);

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&rfc3339::format(self.0))
    }
}
