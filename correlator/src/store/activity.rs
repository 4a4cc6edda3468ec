//! What a session's processes did, as their node told it.

use prost::Message as _;
use seclog_proto::v1::NodeRecord;
use std::collections::HashSet;
use std::io;

/// More than one row of it can hold.
const LARGEST_ROW: usize = 64 << 20;

/// Records below one session root, in the order of time, each once.
#[derive(Debug, Default)]
pub struct Activity {
    pub records: Vec<NodeRecord>,
    /// Further ones that were counted and not kept.
    pub not_kept: u64,
}

impl Activity {
    pub(super) fn add(&mut self, compressed: &[u8], not_kept: u64) -> io::Result<()> {
        let raw = zstd::bulk::decompress(compressed, LARGEST_ROW)?;
        let mut rest = raw.as_slice();
        while !rest.is_empty() {
            self.records.push(NodeRecord::decode_length_delimited(&mut rest).map_err(io::Error::other)?);
        }
        self.not_kept += not_kept;
        Ok(())
    }

    pub(super) fn sort(&mut self) {
        let mut seen = HashSet::new();
        self.records.retain(|record| seen.insert(record.id.clone()));
        self.records.sort_by(|one, other| (one.time_unix_ns, &one.id).cmp(&(other.time_unix_ns, &other.id)));
    }
}
